//! Images made of files of this machine, as archives that `ctr images import` takes: no registry is asked.

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::programs::Programs;
use crate::{
    account::Cloud,
    binaries,
    error::{Context as _, Result, succeeded},
};

/// What every pod's sandbox is.
pub const PAUSE: &str = "veni.test/pause:local";
/// Kubernetes' own test program (`agnhost netexec`, `connect`, `pause`…) beside a busybox.
pub const AGNHOST: &str = "veni.test/agnhost:local";

/// The daemon, the plugin, `venictl`, and the `nft` that the daemon needs.
pub const VENI: &str = "veni.test/veni:local";

/// Who signed AWS' certificates, as the image for users has them.
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

/// One image of one layer.
struct Image {
    name: &'static str,
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
    programs: Vec<(String, PathBuf)>,
    /// What leads to `/bin/busybox`.
    applets: Vec<String>,
    scripts: Vec<(&'static str, &'static str)>,
}

/// What network-policy-api's tests start `agnhost porter` with, to serve SCTP: it ends on a kernel without SCTP, and with it
/// a pod that serves TCP and UDP too.
const BASH: &str = r#"#!/bin/sh
case "$*" in
    *"agnhost porter"*) grep -q ^SCTP /proc/net/protocols || exec sleep 2147483647 ;;
esac
exec /bin/sh "$@"
"#;

/// Writes the archives of all images of a cluster in `cloud` into `dir`; their files.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn write_all(programs: &Programs, cloud: Cloud, dir: &Path) -> Result<Vec<PathBuf>> {
    let busybox = || ("bin/busybox".to_owned(), programs.busybox());
    // A sandbox ends by SIGKILL when its first process ignores the rest: it need not be a program of its own.
    let pause = Image {
        name: PAUSE,
        entrypoint: &["/bin/sleep"],
        command: &["2147483647"],
        programs: vec![busybox()],
        applets: vec!["sleep".to_owned()],
        scripts: Vec::new(),
    };
    let agnhost = Image {
        name: AGNHOST,
        entrypoint: &["/agnhost"],
        command: &["pause"],
        programs: agnhost_programs(programs)?,
        applets: applets(&programs.busybox())?,
        scripts: vec![("bin/bash", BASH)],
    };
    let veni = Image {
        name: VENI,
        entrypoint: &["/usr/bin/veni-ipamd"],
        command: &[],
        programs: veni_programs(cloud)?,
        applets: Vec::new(),
        scripts: Vec::new(),
    };
    let write = |(file, image): (&str, Image)| {
        let file = dir.join(file);
        image.write(&file).context(|| format!("cannot make the image {}", file.display()))?;
        Ok(file)
    };
    let images = [("pause.tar", pause), ("agnhost.tar", agnhost), ("veni.tar", veni)];
    images.into_iter().map(write).collect()
}

/// `agnhost` and busybox; and of what Kubernetes' own tests expect beside them, what there is.
fn agnhost_programs(programs: &Programs) -> Result<Vec<(String, PathBuf)>> {
    let all = [
        ("usr/bin/curl", "/usr/bin/curl"),
        ("usr/bin/dig", "/usr/bin/dig"),
        ("usr/bin/getent", "/usr/bin/getent"),
        // Not busybox', which takes its own `nc` whatever PATH says.
        ("bin/sh", "/usr/bin/dash"),
        ("usr/bin/nc", "/usr/bin/nc.openbsd"),
    ];
    let found = all.into_iter().filter(|(_, path)| Path::new(path).exists());
    let mut own: Vec<_> = found.map(|(place, path)| (place.to_owned(), path.into())).collect();
    let tls =
        ["localhost.crt", "localhost.key"].map(|name| (name.to_owned(), programs.upstream(name)));
    own.extend(tls.into_iter().filter(|(_, path)| path.exists()));
    own.push(("agnhost".to_owned(), programs.kubernetes("agnhost")));
    own.push(("bin/busybox".to_owned(), programs.busybox()));
    with_libraries(own)
}

/// All that a busybox can be called.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output = succeeded("busybox --list", Command::new(busybox).arg("--list").output())?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names.lines().filter(|name| *name != "busybox").map(str::to_owned).collect())
}

/// Our programs, those that speak to `cloud`, and `nft`.
fn veni_programs(cloud: Cloud) -> Result<Vec<(String, PathBuf)>> {
    let mut programs = vec![("usr/sbin/nft".to_owned(), PathBuf::from("/usr/sbin/nft"))];
    for (place, name) in
        [("veni-ipamd", cloud.daemon()), ("veni-cni", "veni-cni"), ("venictl", "venictl")]
    {
        programs.push((format!("usr/bin/{place}"), binaries::find(name)?.path));
    }
    // Where it was built: the chart's `controller.enabled` wants it.
    let controller = binaries::find(cloud.controller()).ok();
    programs.extend(controller.map(|found| ("usr/bin/veni-controller".to_owned(), found.path)));
    let mut all = with_libraries(programs)?;
    // The AWS SDK ends without any, whatever endpoint it is given.
    all.push((AUTHORITIES.to_owned(), Path::new("/").join(AUTHORITIES)));
    Ok(all)
}

/// With the programs' libraries, where they look for them.
fn with_libraries(mut programs: Vec<(String, PathBuf)>) -> Result<Vec<(String, PathBuf)>> {
    let mut libraries = BTreeSet::new();
    for (_, program) in &programs {
        libraries.extend(libraries_of(program)?);
    }
    let place = |path: PathBuf| (path.to_string_lossy().trim_start_matches('/').to_owned(), path);
    programs.extend(libraries.into_iter().map(place));
    Ok(programs)
}

/// What the dynamic linker loads for `program`, by its own account: nothing for a static one.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    if !binaries::is_dynamic(program)? {
        return Ok(Vec::new());
    }
    let output = succeeded("ldd", Command::new("ldd").arg(program).output())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

// === impl Image ===

impl Image {
    /// An OCI image layout (image-spec, `image-layout.md`), as a tar archive.
    fn write(&self, archive: &Path) -> std::io::Result<()> {
        let layer = self.layer()?;
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint, "Cmd": self.command, "Env": ["PATH=/usr/sbin:/usr/bin:/bin:/"], "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        })
        .to_string()
        .into_bytes();
        let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        named["annotations"] = json!({"io.containerd.image.name": self.name});
        named["platform"] = json!({"architecture": "amd64", "os": "linux"});
        let index = json!({"schemaVersion": 2, "manifests": [named]}).to_string().into_bytes();

        let mut tar = tar::Builder::new(File::create(archive)?);
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        append(&mut tar, "index.json", &index, 0o644)?;
        for blob in [&layer, &config, &manifest] {
            append(&mut tar, &digest(blob).replacen("sha256:", "blobs/sha256/", 1), blob, 0o644)?;
        }
        tar.finish()
    }

    fn layer(&self) -> std::io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (dir, mode) in [
            ("bin/", 0o755),
            ("etc/", 0o755),
            ("tmp/", 0o1777),
            ("proc/", 0o755),
            ("sys/", 0o755),
            ("dev/", 0o755),
            ("run/", 0o755),
        ] {
            let mut header = header(tar::EntryType::Directory, 0, mode);
            tar.append_data(&mut header, dir, std::io::empty())?;
        }
        for (path, program) in &self.programs {
            append(&mut tar, path, &std::fs::read(program)?, 0o755)?;
        }
        for (path, script) in &self.scripts {
            append(&mut tar, path, script.as_bytes(), 0o755)?;
        }
        let scripts = self.scripts.iter().map(|(path, _)| *path);
        let places: Vec<_> =
            self.programs.iter().map(|(place, _)| place.as_str()).chain(scripts).collect();
        let is_there = |applet: &&String| places.contains(&format!("bin/{applet}").as_str());
        for applet in self.applets.iter().filter(|applet| !is_there(applet)) {
            let mut header = header(tar::EntryType::Symlink, 0, 0o777);
            tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
        }
        append(&mut tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)?;
        append(&mut tar, "etc/nsswitch.conf", b"hosts: files dns\n", 0o644)?;
        append(&mut tar, "etc/group", b"root:x:0:\n", 0o644)?;
        tar.into_inner()
    }
}

fn append<W: std::io::Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    data: &[u8],
    mode: u32,
) -> std::io::Result<()> {
    let mut header = header(tar::EntryType::Regular, data.len() as u64, mode);
    tar.append_data(&mut header, path, data)
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    let hex: Vec<String> = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{}", hex.concat())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn every_blob_has_its_digest_as_name_and_the_index_names_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let (program, archive) = (dir.path().join("program"), dir.path().join("image.tar"));
        std::fs::write(&program, b"not really").unwrap();
        let image = Image {
            name: PAUSE,
            entrypoint: &["/bin/sleep"],
            command: &["1"],
            programs: vec![("bin/busybox".to_owned(), program)],
            applets: vec!["sleep".to_owned()],
            scripts: vec![("bin/script", "#!/bin/sh\n")],
        };
        image.write(&archive).unwrap();

        let mut names = Vec::new();
        for entry in tar::Archive::new(File::open(&archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            match name.strip_prefix("blobs/sha256/") {
                Some(hex) => assert_eq!(digest(&data), format!("sha256:{hex}")),
                None if name == "index.json" => {
                    assert!(String::from_utf8(data).unwrap().contains(PAUSE));
                }
                None => assert_eq!(name, "oci-layout"),
            }
            names.push(name);
        }
        assert_eq!(names.len(), 5, "{names:?}");
    }
}
