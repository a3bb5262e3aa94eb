//! Where the test's pods go, and what they run: two nodes on which veni is ready. On any other node pods may have another
//! plugin's network, and a test that holds there says nothing of veni.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{Test, api::Cluster, stage::is_ready};

/// Those of veni's chart.
pub(super) const DAEMON_SETS: &str =
    "/apis/apps/v1/daemonsets?labelSelector=app.kubernetes.io%2Fname%3Dveni";
/// How many nodes are tested, unless they are named.
const NODES: usize = 2;

/// Where, and with what.
pub(super) struct Place {
    pub(super) image: String,
    /// By name, with their addresses.
    pub(super) nodes: Vec<(String, Option<IpAddr>)>,
    /// Why there are fewer than two.
    pub(super) short: Option<String>,
}

/// Chooses.
///
/// # Errors
/// When there is no node to test, or one was named on which veni is not ready.
pub(super) async fn choose(cluster: &impl Cluster, test: &Test) -> anyhow::Result<Place> {
    let sets = cluster.get(DAEMON_SETS).await?.unwrap_or_default();
    let sets = sets["items"].as_array().cloned().unwrap_or_default();
    let of_set = || sets.first()?["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
    let next = "the cluster has no DaemonSet of veni's chart (app.kubernetes.io/name=veni) whose image the pods could have: \
                name one that has /usr/bin/venictl with --image";
    let image = test.image.as_deref().or_else(of_set).context(next)?.to_owned();
    let list = cluster.get("/api/v1/nodes").await?.unwrap_or_default();
    let all = list["items"].as_array().cloned().unwrap_or_default();
    let ready = ready_on(cluster, &sets).await?;
    if !test.nodes.is_empty() {
        let nodes = named(&all, &test.nodes, ready.as_ref())?;
        return Ok(Place { image, nodes, short: None });
    }
    let Some(ready) = ready else {
        bail!(
            "the cluster has no DaemonSet of veni's chart (app.kubernetes.io/name=veni) that would tell on which nodes veni \
             is ready: name them with --nodes"
        );
    };
    let free: Vec<_> = all.iter().filter(|node| takes_pods(node)).collect();
    let with_veni: Vec<_> = free.iter().filter(|node| ready.contains(&name(node))).collect();
    let counts = format!(
        "veni is ready on {} of {} nodes that take any pod, of {} in all",
        with_veni.len(),
        free.len(),
        all.len()
    );
    let next = "see `kubectl get nodes` and veni's pods, or name nodes with --nodes";
    ensure!(!with_veni.is_empty(), "{counts}: {next}");
    let short = (with_veni.len() < NODES)
        .then(|| format!("{counts}: paths on that one node are tested, none between nodes"));
    let nodes = with_veni.into_iter().take(NODES).map(|node| with_address(node)).collect();
    Ok(Place { image, nodes, short })
}

/// The nodes that have a Ready pod of one of these DaemonSets; `None`: there is no such set.
async fn ready_on(
    cluster: &impl Cluster,
    sets: &[Value],
) -> anyhow::Result<Option<BTreeSet<String>>> {
    let mut nodes = BTreeSet::new();
    for set in sets {
        let metadata = &set["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        let list = cluster.get(&format!("/api/v1/namespaces/{namespace}/pods")).await?;
        let list = list.unwrap_or_default();
        for pod in list["items"].as_array().into_iter().flatten() {
            let mut owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            let of_set = owners.any(|o| o["kind"] == "DaemonSet" && o["name"] == metadata["name"]);
            if of_set && is_ready(pod) {
                nodes.extend(pod["spec"]["nodeName"].as_str().map(str::to_owned));
            }
        }
    }
    Ok((!sets.is_empty()).then_some(nodes))
}

/// The nodes of these names.
fn named(
    all: &[Value],
    wanted: &[String],
    ready: Option<&BTreeSet<String>>,
) -> anyhow::Result<Vec<(String, Option<IpAddr>)>> {
    let find = |wanted: &String| {
        let found = all.iter().find(|node| name(node) == *wanted).with_context(|| {
            let there: Vec<_> = all.iter().map(name).collect();
            format!("--nodes {wanted}: there is no such node; there are {there:?}")
        })?;
        ensure!(
            ready.is_none_or(|ready| ready.contains(wanted)),
            "--nodes {wanted}: veni has no ready pod there"
        );
        Ok(with_address(found))
    };
    wanted.iter().map(find).collect()
}

fn name(node: &Value) -> String {
    node["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn with_address(node: &Value) -> (String, Option<IpAddr>) {
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let mut internal = addresses.filter(|address| address["type"] == "InternalIP");
    let address = internal.next().and_then(|address| address["address"].as_str()?.parse().ok());
    (name(node), address)
}

/// Ready, without a taint, and a machine of the user's own that veni runs on.
fn takes_pods(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    let closed = taints.into_iter().any(|taint| taint["effect"] != "PreferNoSchedule");
    let labels = &node["metadata"]["labels"];
    let kind = labels["eks.amazonaws.com/compute-type"].as_str().unwrap_or_default();
    let linux = labels["kubernetes.io/os"].as_str().is_none_or(|os| os == "linux");
    ready && !closed && linux && !["fargate", "auto", "hybrid"].contains(&kind)
}
