//! What makes a node of the lab a node of a cluster: containerd, a kubelet and a kube-proxy, in the node's machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use veni_core::limits;

use super::{ControlPlane, control_plane, image, process::Process, programs::Programs};
use crate::{
    Node,
    error::{Context as _, Error, Result, make_dir},
    machine::{SEARCH_PATH, cgroup_parent},
    ns::Worker,
};

/// How long containerd may take to answer.
const READY: Duration = Duration::from_secs(30);

/// A node's programs besides veni's own.
#[derive(Debug)]
pub struct WorkerNode {
    /// The node.
    pub node: Arc<Node>,
    lab_dir: PathBuf,
    programs: Programs,
    worker: Worker,
    // In the order in which they end: containerd stops nothing of what it started.
    kube_proxy: Option<Process>,
    kubelet: Option<Process>,
    containerd: Process,
}

// === impl WorkerNode ===

impl WorkerNode {
    /// Starts containerd; the kubelet comes with [`WorkerNode::join`].
    ///
    /// # Errors
    /// When the node is no machine, or containerd cannot be started.
    pub(super) fn start(node: &Arc<Node>, lab_dir: &Path, programs: &Programs) -> Result<Self> {
        let machine = node.machine.as_ref();
        let machine =
            machine.ok_or_else(|| Error::invalid(format!("{} is no machine", node.name)))?;
        for dir in ["log", "static-pods", "kubelet/volume-plugins"] {
            make_dir(&node.dir.join(dir))?;
        }
        install_plugins(node, programs)?;
        write(&node.dir.join("containerd.toml"), &containerd_config())?;
        let worker = machine.worker()?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(node.dir.join("containerd.toml"));
        command.env("PATH", search_path(programs));
        let containerd = Process::start(&worker, &node.dir.join("log"), "containerd", &command)?;
        Ok(Self {
            node: Arc::clone(node),
            lab_dir: lab_dir.to_owned(),
            programs: programs.clone(),
            worker,
            kube_proxy: None,
            kubelet: None,
            containerd,
        })
    }

    /// Waits for containerd and imports `archives`.
    ///
    /// # Errors
    /// When containerd does not come up, or refuses an image.
    pub(super) fn import(&mut self, archives: &[PathBuf]) -> Result<()> {
        let (worker, programs) = (&self.worker, &self.programs);
        self.containerd.wait_until(READY, || ctr(worker, programs, &["version".into()]))?;
        for archive in archives {
            let archive = archive.display().to_string();
            ctr(worker, programs, &["images".into(), "import".into(), archive])?;
        }
        Ok(())
    }

    /// Starts the kubelet and kube-proxy.
    ///
    /// # Errors
    /// When one cannot be started.
    pub(super) fn join(&mut self, control: &ControlPlane) -> Result<()> {
        let dir = &self.node.dir;
        write(&dir.join("kubelet.json"), &self.kubelet_config(control))?;
        write(&dir.join("kube-proxy.json"), &self.proxy_config(control))?;
        let name = &self.node.name;
        let kubelet = [
            format!("--config={}", dir.join("kubelet.json").display()),
            format!("--kubeconfig={}", control.kubeconfig(&format!("node-{name}")).display()),
            format!("--hostname-override={name}"),
            format!("--node-ip={}", self.node.address),
            format!("--node-labels={}", self.labels()),
        ];
        let proxy = [format!("--config={}", dir.join("kube-proxy.json").display())];
        self.kubelet = Some(self.run("kubelet", &kubelet)?);
        self.kube_proxy = Some(self.run("kube-proxy", &proxy)?);
        Ok(())
    }

    /// Lets an image that is here go by `names` too.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn tag(&self, image: &str, names: &[&str]) -> Result<()> {
        let mut args = vec!["images", "tag", "--force", image];
        args.extend(names);
        let args: Vec<_> = args.into_iter().map(str::to_owned).collect();
        ctr(&self.worker, &self.programs, &args)
    }

    /// # Errors
    /// When one of its programs has ended.
    pub fn check(&mut self) -> Result<()> {
        self.containerd.check()?;
        let others = [&mut self.kubelet, &mut self.kube_proxy];
        others.into_iter().flatten().try_for_each(Process::check)
    }

    fn run(&self, name: &str, args: &[String]) -> Result<Process> {
        let mut command = Command::new(self.programs.kubernetes(name));
        command.args(args).env("PATH", search_path(&self.programs)).env("HOME", &self.node.dir);
        Process::start(&self.worker, &self.node.dir.join("log"), name, &command)
    }

    fn labels(&self) -> String {
        format!(
            "node.kubernetes.io/instance-type={},topology.kubernetes.io/zone={}",
            self.node.instance_type, self.node.zone
        )
    }

    fn kubelet_config(&self, control: &ControlPlane) -> String {
        let pki = |file: String| control.pki().join(file);
        let name = &self.node.name;
        // As EKS sets it: what the type's ENIs hold, and two that share the node's network.
        let limits = limits::lookup(&self.node.instance_type);
        let max_pods = limits.map_or(110, |l| l.max_enis * (l.addresses_per_eni - 1) + 2);
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false}, "webhook": {"enabled": true},
                "x509": {"clientCAFile": pki("ca.crt".to_owned())},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": pki(format!("node-{name}.crt")),
            "tlsPrivateKeyFile": pki(format!("node-{name}.key")),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "clusterDNS": [control_plane::ADDRESS],
            "clusterDomain": control_plane::DNS_DOMAIN,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", cgroup_parent(&self.lab_dir, name)),
            "failCgroupV1": false,
            "failSwapOn": false,
            "maxPods": max_pods,
            "providerID": format!("aws:///{}/{}", self.node.zone, self.node.instance),
            "staticPodPath": self.node.dir.join("static-pods"),
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "serializeImagePulls": false,
            // The disk is the real machine's, whose fullness is no reason to evict pods from here.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%",
                "memory.available": "100Mi",
            },
        })
        .to_string()
    }

    fn proxy_config(&self, control: &ControlPlane) -> String {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": control.kubeconfig("proxy")},
            "mode": "nftables",
            "hostnameOverride": self.node.name,
            // These belong to no network namespace, or are read-only outside the first one.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        })
        .to_string()
    }
}

/// What is beside our plugin, which the daemon's first container installs: containerd wants `loopback`, and the daemon's
/// configuration list names `portmap`. Files, because a link would lead out of what a container sees. The list of the lab's
/// own runtime goes: the daemon writes one.
fn install_plugins(node: &Node, programs: &Programs) -> Result<()> {
    for plugin in ["loopback", "portmap"] {
        let (from, to) = (programs.plugins().join(plugin), node.dir.join("bin").join(plugin));
        fs::copy(&from, &to).context(|| format!("cannot copy {}", from.display()))?;
    }
    for own in ["net.d/10-veni.conflist", "bin/veni-cni"] {
        let own = node.dir.join(own);
        fs::remove_file(&own).context(|| format!("cannot remove {}", own.display()))?;
    }
    Ok(())
}

fn ctr(worker: &Worker, programs: &Programs, args: &[String]) -> Result<()> {
    let mut command = Command::new("ctr");
    command.args(["--namespace", "k8s.io"]).args(args).env("PATH", search_path(programs));
    let what = format!("ctr {}", args.join(" "));
    worker.run(move || crate::error::succeeded(&what, command.output()).map(drop))
}

fn search_path(programs: &Programs) -> String {
    let [bin, sbin] = programs.containerd_dirs();
    format!("{}:{}:{SEARCH_PATH}", bin.display(), sbin.display())
}

/// containerd 1.6's. `restrict_oom_score_adj`: a machine without `CAP_SYS_RESOURCE` cannot lower it.
fn containerd_config() -> String {
    format!(
        r#"version = 2
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#,
        image = image::PAUSE
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).context(|| format!("cannot write {}", path.display()))
}
