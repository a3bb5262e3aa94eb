//! An OCI image layout made by hand: one layer with a static busybox and links to its applets.

use std::{fs::File, path::Path};

use serde_json::json;
use sha2::{Digest as _, Sha256};

/// The name that the image has in containerd; never looked up in a registry.
pub const IMAGE: &str = "veni.test/busybox:local";

/// What every pod's `httpd -h /www` serves.
pub const PAGE: &str = "hello from a pod\n";

const APPLETS: &[&str] = &["sh", "sleep", "ping", "nc", "httpd", "ip", "cat"];

/// Writes an OCI image archive around the static `busybox` to `archive`.
///
/// # Errors
/// When one of the files cannot be read or written.
pub fn write(busybox: &Path, archive: &Path) -> anyhow::Result<()> {
    let layer = layer(busybox)?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
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
    named["annotations"] = json!({"io.containerd.image.name": IMAGE});
    named["platform"] = json!({"architecture": "amd64", "os": "linux"});
    let index = json!({"schemaVersion": 2, "manifests": [named]}).to_string().into_bytes();

    let mut tar = tar::Builder::new(File::create(archive)?);
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut tar, "index.json", &index, 0o644)?;
    for blob in [&layer, &config, &manifest] {
        append(&mut tar, &digest(blob).replacen("sha256:", "blobs/sha256/", 1), blob, 0o644)?;
    }
    tar.finish()?;
    Ok(())
}

fn layer(busybox: &Path) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "bin/busybox", &std::fs::read(busybox)?, 0o755)?;
    append(&mut tar, "www/index.html", PAGE.as_bytes(), 0o644)?;
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    for dir in ["etc", "tmp", "proc", "sys", "dev"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, format!("{dir}/"), std::io::empty())?;
    }
    Ok(tar.into_inner()?)
}

fn append<W: std::io::Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    data: &[u8],
    mode: u32,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len().try_into()?);
    header.set_mode(mode);
    tar.append_data(&mut header, path, data)?;
    Ok(())
}

fn descriptor(media_type: &str, blob: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    let hex: Vec<String> = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{}", hex.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_names_the_image_and_every_blob_has_its_digest_as_name() {
        let dir = tempfile::tempdir().unwrap();
        let (busybox, archive) = (dir.path().join("busybox"), dir.path().join("image.tar"));
        std::fs::write(&busybox, b"not really").unwrap();
        write(&busybox, &archive).unwrap();

        let mut names = Vec::new();
        for entry in tar::Archive::new(File::open(&archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(digest(&data), format!("sha256:{hex}"));
            } else if name == "index.json" {
                assert!(String::from_utf8(data).unwrap().contains(IMAGE));
            }
            names.push(name);
        }
        assert_eq!(names.len(), 5, "{names:?}");
    }
}
