//! A node is drained, and comes back.

use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::{
    cluster::{SETTLE, Stage, door},
    load::{Load, Stream},
    print::{Table, seconds, step},
};

const APP: &str = "moving";
const NODE_PORT: u16 = 30084;
const PODS: u32 = 6;

pub(crate) fn check(stage: &mut Stage, table: &mut Table) -> anyhow::Result<()> {
    let [stays, drained] = stage.lab.nodes() else { anyhow::bail!("two nodes are needed") };
    step(format!("draining {}", drained.name));
    stage.cluster.apply(&[
        Stage::web(APP, PODS),
        Stage::service(APP, APP, Some(NODE_PORT), false),
        disruption_budget(),
    ])?;
    stage.rolled_out(APP)?;
    // Through both nodes: a drained one is still there.
    let streams = [stays, drained].map(|node| Stream {
        name: format!("internet to {}", node.name),
        from: stage.lab.vpc.internet.clone(),
        to: door(node, NODE_PORT),
        path: "/hostname".to_owned(),
        kept: false,
    });
    let before = stage.pods(APP)?.iter().filter(|pod| pod.node == drained.name).count();
    let load = Load::start(streams.into())?;
    let start = Instant::now();
    let timeout = format!("--timeout={}s", SETTLE.as_secs());
    let drain = ["drain", &drained.name, "--ignore-daemonsets", "--delete-emptydir-data", &timeout];
    let done = stage.cluster.kubectl(&drain).context("kubectl drain");
    let took = start.elapsed();
    let moved = done.and_then(|_| {
        stage.rolled_out(APP)?;
        let pods = stage.pods(APP)?;
        ensure!(pods.len() == PODS as usize, "{pods:?}");
        ensure!(pods.iter().all(|pod| pod.node == stays.name), "{pods:?}");
        stage.allocated(&pods)?;
        Ok(format!(
            "{before} pods moved within {}, {} holds 0 addresses",
            seconds(took),
            drained.name
        ))
    });
    table.record("a drained node: pods", moved);
    table.record("a drained node: its Service's clients", load.stop().nothing_lost());
    stage.cluster.kubectl(&["uncordon", &drained.name])?;
    stage.cluster.kubectl(&["rollout", "restart", &format!("deployment/{APP}")])?;
    stage.rolled_out(APP)?;
    let back = stage.pods(APP)?.iter().filter(|pod| pod.node == drained.name).count();
    let served = || {
        ensure!(back > 0, "no pod came back to {}", drained.name);
        Ok(format!("{back} pods on it again"))
    };
    table.record("a drained node comes back", served());
    stage.cluster.kubectl(&["delete", "poddisruptionbudget", APP])?;
    stage.delete(APP, &[APP])?;
    Ok(())
}

/// Without it a drain ends all pods of a node at once.
fn disruption_budget() -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": APP},
        "spec": {"minAvailable": PODS - 2, "selector": {"matchLabels": {"app": APP}}},
    })
}
