//! Custom networking: a cluster of its own, whose nodes' pods are where the ENIConfig of their zone says.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use veni_lab::{
    Node,
    vpc::{INTERNET_HOST, POD_SUBNET},
};

use crate::{
    cluster::{PORT, Pod, SETTLE, Stage, door, until},
    http,
    print::{Table, seconds, step},
};

const APP: &str = "placed";
const NODE_PORT: u16 = 30085;
const PODS: u32 = 4;
const ZONE: &str = "topology.kubernetes.io/zone";

/// The variables that a cluster needs for it.
pub(crate) fn settings() -> [(String, String); 2] {
    [("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"), ("ENI_CONFIG_LABEL_DEF", ZONE)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
}

/// On a cluster whose daemons were installed just now.
pub(crate) fn check(stage: &mut Stage, table: &mut Table) -> anyhow::Result<()> {
    step("custom networking");
    table.record("no ENIConfig: no address, and it says so", waits(stage));
    let start = Instant::now();
    let subnets = subnets(stage);
    let configs: Vec<_> = subnets.iter().map(|(zone, subnet)| eni_config(zone, subnet)).collect();
    stage.cluster.apply(&configs)?;
    stage.cluster.wait_ready()?;
    let ready = start.elapsed();
    stage
        .cluster
        .apply(&[Stage::web(APP, PODS), Stage::service(APP, APP, Some(NODE_PORT), false)])?;
    stage.rolled_out(APP)?;
    let pods = stage.pods(APP)?;
    table.record("pods are where their zone's ENIConfig says", placed(stage, &pods, ready));
    table.record("custom networking: pods talk", talk(stage, &pods));
    table.record("an ENIConfig that goes touches no pod", gone(stage, &pods));
    stage.delete(APP, &[APP])?;
    Ok(())
}

/// The first node's zone has a subnet for pods only; the other's pods are beside their node.
fn subnets(stage: &Stage) -> BTreeMap<String, String> {
    let own = |(index, node): (usize, &std::sync::Arc<Node>)| {
        let subnet = if index == 0 { POD_SUBNET.0.to_owned() } else { node.subnet.to_string() };
        (node.zone.to_owned(), subnet)
    };
    stage.lab.nodes().iter().enumerate().map(own).collect()
}

fn eni_config(zone: &str, subnet: &str) -> Value {
    json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig",
        "metadata": {"name": zone}, "spec": {"subnet": subnet},
    })
}

/// Both daemons say what they wait for, and the nodes take no pod.
fn waits(stage: &Stage) -> anyhow::Result<String> {
    let mut said = String::new();
    for node in stage.lab.nodes() {
        said = until(SETTLE, || {
            let view = node.inspect()?;
            ensure!(view.pool.total == 0, "{:?}", view.pool);
            let problem = view.problems.iter().find(|problem| problem.kind == "eni_config");
            Ok(problem.with_context(|| format!("{:?}", view.problems))?.message.clone())
        })?;
    }
    let unready = stage.cluster.unready()?;
    ensure!(unready.len() == stage.lab.nodes().len(), "ready without an address: {unready:?}");
    Ok(said)
}

fn placed(stage: &Stage, pods: &[Pod], ready: Duration) -> anyhow::Result<String> {
    ensure!(pods.len() == PODS as usize, "{pods:?}");
    stage.allocated(pods)?;
    let subnets = subnets(stage);
    for node in stage.lab.nodes() {
        let wanted = &subnets[node.zone];
        let enis = stage.lab.account.interfaces_of(&node.instance);
        let (primary, others) = enis.split_first().context("an instance without ENIs")?;
        ensure!(primary.secondary_addresses.is_empty(), "{primary:?}");
        ensure!(others.iter().all(|eni| eni.subnet_id.as_str() == *wanted), "{others:?}");
        let own: Vec<_> = pods.iter().filter(|pod| pod.node == node.name).collect();
        ensure!(!own.is_empty(), "{} has no pod", node.name);
        for pod in own {
            let has = others.iter().any(|eni| eni.secondary_addresses.contains(&pod.address));
            ensure!(has, "{pod:?}: {others:?}");
        }
    }
    Ok(format!(
        "nodes Ready {} after the ENIConfigs, {} pods, none by a primary ENI",
        seconds(ready),
        pods.len()
    ))
}

fn talk(stage: &Stage, pods: &[Pod]) -> anyhow::Result<String> {
    let mut count = 0;
    for from in pods {
        for to in pods {
            let heard = stage.dial(from, "http", (to.address, PORT), "hostname")?;
            ensure!(heard == to.name, "{} → {}: {heard}", from.name, to.name);
            count += 1;
        }
    }
    for node in stage.lab.nodes() {
        let ask = || http::get(&stage.lab.vpc.internet, door(node, NODE_PORT), "/hostname");
        until(SETTLE, ask).with_context(|| format!("{INTERNET_HOST} through {}", node.name))?;
        count += 1;
    }
    Ok(format!("{count} of {count} answers, from the internet too"))
}

/// Pods go on, and the daemon names what new ENIs wait for.
fn gone(stage: &Stage, pods: &[Pod]) -> anyhow::Result<String> {
    stage.cluster.kubectl(&["delete", "eniconfigs", "--all"])?;
    for node in stage.lab.nodes() {
        until(SETTLE, || {
            let view = node.inspect()?;
            let said = view.problems.iter().any(|problem| problem.kind == "eni_config");
            ensure!(said, "{}: {:?}", node.name, view.problems);
            Ok(())
        })?;
    }
    stage.allocated(pods)?;
    talk(stage, pods)
}
