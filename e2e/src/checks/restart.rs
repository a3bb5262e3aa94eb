//! The daemons start again, one node after the other, while traffic goes on and pods come and go.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use veni_lab::kubernetes::chart;

use crate::{
    checks::scale::refused_sandboxes,
    cluster::{PORT, Pod, Stage, dial_path, door},
    load::{Load, Stream},
    print::{Table, seconds, step},
};

const APP: &str = "steady";
const CHURN: &str = "churn";
const NODE_PORT: u16 = 30082;
const PODS: u32 = 4;
/// Replaced one after the other while the daemons restart.
const CHURN_PODS: u32 = 6;
/// Restarts of each daemon.
const ROUNDS: usize = 2;

pub(crate) fn check(stage: &mut Stage, table: &mut Table) -> anyhow::Result<()> {
    step("restarting the daemons under load");
    let load = start_load(stage, APP, NODE_PORT, PODS)?;
    stage.cluster.apply(&[Stage::web(CHURN, CHURN_PODS)])?;
    stage.rolled_out(CHURN)?;
    let refused = refused_sandboxes(stage)?;
    let mut slowest = Duration::ZERO;
    for _ in 0..ROUNDS {
        stage.cluster.kubectl(&["rollout", "restart", &format!("deployment/{CHURN}")])?;
        slowest = slowest.max(restart_daemons(stage)?);
        stage.rolled_out(CHURN)?;
    }
    let report = load.stop();
    table.record("daemons restart under load: traffic", report.nothing_lost());
    let living = [stage.pods(APP)?, stage.pods(CHURN)?].concat();
    let came = stage.allocated(&living).and_then(|()| {
        let refused = refused_sandboxes(stage)? - refused;
        ensure!(refused == 0, "{refused} ADDs were refused");
        Ok(format!(
            "{} pods replaced over {ROUNDS} rollouts of both daemons, 0 ADDs refused; the slower one took {}",
            CHURN_PODS as usize * ROUNDS,
            seconds(slowest)
        ))
    });
    table.record("daemons restart under load: pods", came);
    stage.delete(CHURN, &[])?;
    stage.delete(APP, &[APP])?;
    Ok(())
}

/// A rolling restart of the DaemonSet; how long it took.
pub(crate) fn restart_daemons(stage: &Stage) -> anyhow::Result<Duration> {
    let (start, before) = (Instant::now(), stage.daemons()?);
    let set = format!("daemonset/{}", chart::RELEASE);
    stage.cluster.kubectl(&["rollout", "restart", &set, "--namespace", chart::NAMESPACE])?;
    stage.daemons_rolled_out()?;
    let after = stage.daemons()?;
    ensure!(after.len() == before.len(), "{before:?}, then {after:?}");
    ensure!(
        after.iter().all(|daemon| !before.contains(daemon)),
        "not restarted: {before:?}, {after:?}"
    );
    Ok(start.elapsed())
}

/// An app with a NodePort, and requests to it by every path: kept connections between pods across nodes, new ones from
/// pod to pod and to the Service, and new ones from outside.
pub(crate) fn start_load(
    stage: &Stage,
    app: &str,
    node_port: u16,
    pods: u32,
) -> anyhow::Result<Load> {
    let service = Stage::service(app, app, Some(node_port), false);
    stage.cluster.apply(&[Stage::web(app, pods), service])?;
    stage.rolled_out(app)?;
    let pods = stage.pods(app)?;
    let address = stage.cluster_ip(app)?;
    let control = stage.cluster.control.host();
    let mut streams = Vec::new();
    for node in stage.lab.nodes() {
        let on = |here: bool| pods.iter().find(|pod| (pod.node == node.name) == here);
        let (from, to): (&Pod, &Pod) =
            (on(true).context("no pod on a node")?, on(false).context("no pod on the other")?);
        let stream = |name: String, path: String, kept| Stream {
            name,
            from: control.clone(),
            to: (from.address, PORT).into(),
            path,
            kept,
        };
        streams.push(stream(format!("kept, to {}", node.name), "/hostname".to_owned(), true));
        streams.push(stream(
            format!("pod on {} to the other", node.name),
            dial_path("http", (to.address, PORT), "hostname"),
            false,
        ));
        streams.push(stream(
            format!("pod on {} to the Service", node.name),
            dial_path("http", (address, 80), "hostname"),
            false,
        ));
        streams.push(Stream {
            name: format!("internet to {}", node.name),
            from: stage.lab.vpc.internet.clone(),
            to: door(node, node_port),
            path: "/hostname".to_owned(),
            kept: false,
        });
    }
    Load::start(streams)
}
