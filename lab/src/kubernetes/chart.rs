//! veni's chart on the cluster, as its users have it: rendered and installed by the real helm, with the image that is made
//! of this machine's files.
//!
//! Deliberately absent: anything that the chart's values do not offer every user.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use super::{control_plane, control_plane::ControlPlane, image};
use crate::error::{Context as _, Result};

/// The release's name, which is its DaemonSet's too.
pub const RELEASE: &str = "veni";
/// Where it is installed.
pub const NAMESPACE: &str = "kube-system";
/// Where a node has its way to EC2.
const CLOUD: &str = "/run/veni-cloud";

/// What a user sets beside what the lab needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Variables of the daemon.
    pub env: BTreeMap<String, String>,
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
        // It is nobody's: it would have to reach a socket that is root's.
        "controller": {"enabled": false},
        "extraVolumes": [{"name": "cloud", "hostPath": {"path": CLOUD, "type": "Directory"}}],
        "extraVolumeMounts": [{"name": "cloud", "mountPath": CLOUD, "readOnly": true}],
    })
}
