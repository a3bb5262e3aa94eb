//! veni's chart on the cluster, as its users have it: rendered and installed by the real helm, with the image that is made
//! of this machine's files.
//!
//! Deliberately absent: anything that the chart's values do not offer every user.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use serde_json::{Value, json};
use veni_core::id::InstanceId;

use super::{control_plane, control_plane::ControlPlane, image};
use crate::{
    Lab,
    error::{Context as _, Error, Result, make_dir},
};

/// The release's name, which is its DaemonSet's too.
pub const RELEASE: &str = "veni";
/// Where it is installed.
pub const NAMESPACE: &str = "kube-system";
/// Where a node has its way to EC2.
const CLOUD: &str = "/run/veni-cloud";
/// Below it, the controller's way.
const CONTROLLER_DOOR: &str = "controller";
/// Whose the controller's calls are, in the simulator's counts: they come from no instance.
pub const CONTROLLER: &str = "i-controller";

/// What a user sets beside what the lab needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Variables of the daemon.
    pub env: BTreeMap<String, String>,
    /// Variables of the controller.
    pub controller: BTreeMap<String, String>,
}

/// Gives the controller a way to EC2 on every node. A socket of its own, because it is not root there, and the daemon's is
/// root's: whoever is let in by this one can ask what an instance can, and nothing else of the lab.
pub(super) fn open_doors(lab: &Lab) -> Result<()> {
    let caller: InstanceId =
        CONTROLLER.parse().map_err(|error| Error::invalid(format!("{CONTROLLER}: {error}")))?;
    for node in lab.nodes() {
        let dir = node.dir.join("cloud").join(CONTROLLER_DOOR);
        make_dir(&dir)?;
        // Who has the AWS SDK goes another way.
        if lab.account.localstack().is_some() {
            continue;
        }
        let socket = dir.join("ec2.sock");
        lab.account.serve_instance(&caller, &socket)?;
        // Connecting takes the right to write (unix(7)).
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))
            .context(|| format!("cannot open {} to all", socket.display()))?;
    }
    Ok(())
}

/// Installs the chart and ClusterNetworkPolicy's definition, which it uses and does not bring; or changes it.
pub(super) fn install(control: &ControlPlane, settings: &Settings) -> Result<()> {
    let (programs, config) = (control.programs(), control.kubeconfig("admin"));
    let definition = programs.cluster_network_policy().display().to_string();
    control.kubectl(&["apply", "--server-side", "--filename", &definition], "")?;
    let file = config.with_file_name("values.json");
    fs::write(&file, values(settings).to_string())
        .context(|| format!("cannot write {}", file.display()))?;
    let text = |path: &std::path::Path| path.display().to_string();
    let (helm, chart) = (text(&programs.kubernetes("helm")), text(&programs.chart()));
    let (file, config) = (text(&file), text(&config));
    let args = ["upgrade", "--install", RELEASE, &chart, "--namespace", NAMESPACE];
    let how = ["--values", &file, "--kubeconfig", &config];
    control.host().tool(&helm, &[&args[..], &how].concat(), "").map(drop)
}

fn values(settings: &Settings) -> Value {
    let mut env: BTreeMap<_, _> = [
        ("VENI_PROVIDER", format!("sim:{CLOUD}/ec2.sock")),
        // Nobody: each node's socket knows which instance it is.
        ("VENI_SIM_INSTANCE", "i-unknown".to_owned()),
        ("VENI_SERVICE_CIDRS", control_plane::SERVICE_CIDR.to_owned()),
        ("CLUSTER_NAME", "lab".to_owned()),
        ("RUST_BACKTRACE", "1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    env.extend(settings.env.clone());
    json!({
        "image": {"override": image::VENI, "pullPolicy": "Never"},
        "env": env,
        "controller": controller(settings),
        "extraVolumes": [{"name": "cloud", "hostPath": {"path": CLOUD, "type": "Directory"}}],
        "extraVolumeMounts": [{"name": "cloud", "mountPath": CLOUD, "readOnly": true}],
    })
}

/// Its door is where the daemon's is, so that what says where the daemons find EC2 is true for it too.
fn controller(settings: &Settings) -> Value {
    let mut env = settings.controller.clone();
    env.insert("VENI_SIM_INSTANCE".to_owned(), CONTROLLER.to_owned());
    let door = format!("{CLOUD}/{CONTROLLER_DOOR}");
    json!({
        "env": env,
        "extraVolumes": [{"name": "cloud", "hostPath": {"path": door, "type": "Directory"}}],
        "extraVolumeMounts": [{"name": "cloud", "mountPath": CLOUD, "readOnly": true}],
    })
}
