//! Debian's containerd and runc as a private daemon: its own root, state and socket, in mount and pid namespaces of its
//! own, started in the network namespace of a node. Killing it leaves no shim and no mount behind.
//!
//! `/var/lib/cni` (where libcni keeps its result cache) and `/run/containerd` (shim sockets) are fixed in containerd
//! 1.6: inside its mount namespace they are directories of the test.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use veni_lab::ns::{Namespace, Worker};

use crate::{cri::Cri, image};

/// Where containerd's parts are.
#[derive(Debug, Clone)]
pub struct Tools {
    root: PathBuf,
}

/// What a containerd is told of its node.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The CNI configuration list.
    pub conflist: String,
    /// Our plugin, beside which Debian's own are (`loopback`, `portmap`).
    pub plugin: PathBuf,
    /// Where libcni's result cache (`/var/lib/cni` inside) is to be.
    pub cni_cache: PathBuf,
}

/// A running private containerd. Dropping it kills it and everything it started.
#[derive(Debug)]
pub struct Containerd {
    dir: tempfile::TempDir,
    child: Child,
    worker: Worker,
}

const READY_WITHIN: Duration = Duration::from_secs(30);

// === impl Tools ===

impl Tools {
    /// The tools that `hack/setup.sh test` unpacked (`VENI_CONTAINERD_DIR`, default `.tools/containerd` of the
    /// workspace).
    ///
    /// # Errors
    /// When they are not there.
    pub fn find() -> anyhow::Result<Self> {
        let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/containerd");
        let root = std::env::var_os("VENI_CONTAINERD_DIR").unwrap_or_else(|| default.into());
        let tools = Self { root: fs::canonicalize(&root).unwrap_or_else(|_| root.into()) };
        for file in [tools.path("usr/bin/containerd"), tools.path("usr/sbin/runc"), tools.busybox()]
        {
            ensure!(file.exists(), "{} is missing: run hack/setup.sh test", file.display());
        }
        Ok(tools)
    }

    /// The static busybox.
    #[must_use]
    pub fn busybox(&self) -> PathBuf {
        self.path("bin/busybox")
    }

    /// The reference CNI plugins.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.path("usr/lib/cni")
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }
}

// === impl Containerd ===

impl Containerd {
    /// Starts containerd in the namespace of `node`, waits until its CRI answers, and imports [`image::IMAGE`].
    ///
    /// # Errors
    /// When it does not come up in 30 s; the end of its log is in the error.
    pub async fn start(
        tools: &Tools,
        setup: &Setup,
        node: &Namespace,
    ) -> anyhow::Result<(Self, Cri)> {
        let dir = tempfile::Builder::new().prefix("veni-cri-").tempdir()?;
        prepare(tools, setup, dir.path())?;
        let worker = Worker::start(node)?;
        let child = spawn(&worker, tools, setup, dir.path())?;
        let this = Self { dir, child, worker };
        let cri = this.connected().await.with_context(|| this.log_end())?;
        this.import_image(tools).with_context(|| this.log_end())?;
        ensure!(cri.has_image(image::IMAGE).await?, "the image is not there after its import");
        Ok((this, cri))
    }

    /// Kills containerd and with it every container, shim and pod namespace, as a reboot of the machine would, and
    /// starts it again over what it had on disk.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub async fn restart(&mut self, tools: &Tools, setup: &Setup) -> anyhow::Result<Cri> {
        self.kill();
        self.child = spawn(&self.worker, tools, setup, self.dir.path())?;
        self.connected().await.with_context(|| self.log_end())
    }

    /// The parent of the control groups of all pods here.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        let name = self.dir.path().file_name().unwrap_or_default();
        format!("/{}", name.to_string_lossy())
    }

    /// The last lines of containerd's log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn kill(&mut self) {
        // `unshare --kill-child`: the pid namespace, and so every shim and container, dies with the child.
        self.child.kill().ok();
        self.child.wait().ok();
    }

    async fn connected(&self) -> anyhow::Result<Cri> {
        let socket = self.dir.path().join("containerd.sock");
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let last = match Cri::connect(&socket).await {
                Err(error) => error,
                Ok(cri) => match cri.unready().await {
                    Ok(unready) if unready.is_empty() => return Ok(cri),
                    Ok(unready) => anyhow::anyhow!("not ready: {unready:?}"),
                    Err(error) => error,
                },
            };
            if Instant::now() > deadline {
                return Err(last.context("containerd did not become ready"));
            }
            // containerd tells nobody when it is ready (sd_notify aside).
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn import_image(&self, tools: &Tools) -> anyhow::Result<()> {
        let archive = self.dir.path().join("image.tar");
        image::write(&tools.busybox(), &archive)?;
        let output = Command::new(tools.path("usr/bin/ctr"))
            .arg("--address")
            .arg(self.dir.path().join("containerd.sock"))
            .args(["--namespace", "k8s.io", "images", "import", "--snapshotter", "native"])
            .arg(&archive)
            .output()?;
        if !output.status.success() {
            bail!("ctr images import: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.kill();
        remove_cgroups(&self.cgroup_parent());
    }
}

/// Everything that containerd finds in its directory.
fn prepare(tools: &Tools, setup: &Setup, dir: &Path) -> anyhow::Result<()> {
    for sub in ["root", "state", "run", "conf", "bin"] {
        fs::create_dir(dir.join(sub))?;
    }
    fs::create_dir_all(&setup.cni_cache)?;
    fs::write(dir.join("conf/10-veni.conflist"), &setup.conflist)?;
    fs::write(dir.join("config.toml"), config(dir))?;
    link_plugins(&tools.plugins(), &dir.join("bin"))?;
    symlink(&setup.plugin, dir.join("bin/veni-cni"))?;
    Ok(())
}

/// Starts containerd as the first process of a pid namespace, which dies with it, and it with the worker's thread.
fn spawn(worker: &Worker, tools: &Tools, setup: &Setup, dir: &Path) -> anyhow::Result<Child> {
    let script = r#"set -e
mkdir -p /var/lib/cni /run/containerd
mount --bind "$CNI_CACHE" /var/lib/cni
mount --bind "$DIR/run" /run/containerd
exec containerd --config "$DIR/config.toml""#;
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log"))?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .args(["sh", "-c", script])
        .env("DIR", dir)
        .env("CNI_CACHE", &setup.cni_cache)
        .env("PATH", search_path(tools))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let child = worker.run(move || {
        command.spawn().map_err(|source| veni_lab::Error::Io {
            what: "cannot start containerd with setpriv and unshare (package util-linux)".into(),
            source,
        })
    })?;
    Ok(child)
}

fn search_path(tools: &Tools) -> String {
    let own = [tools.path("usr/bin"), tools.path("usr/sbin")];
    let own: Vec<_> = own.iter().map(|dir| dir.display().to_string()).collect();
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", own.join(":"))
}

fn link_plugins(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        symlink(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// containerd 1.6's configuration. `restrict_oom_score_adj`: a machine without `CAP_SYS_RESOURCE` cannot lower it.
/// The native snapshotter works on any file system, below an overlay too.
fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{dir}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{dir}/bin"
    conf_dir = "{dir}/conf"
"#,
        image = image::IMAGE
    )
}

/// Control groups outlive the processes in them: removes `parent` in every hierarchy, deepest first.
fn remove_cgroups(parent: &str) {
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else {
        return;
    };
    let roots =
        hierarchies.flatten().map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
    for root in roots {
        remove_tree(&root.join(parent.trim_start_matches('/')));
    }
}

fn remove_tree(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path());
    }
    fs::remove_dir(dir).ok();
}
