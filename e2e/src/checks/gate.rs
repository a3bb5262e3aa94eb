//! A node whose pool is empty takes no pod.

use std::time::Instant;

use anyhow::ensure;
use serde_json::Value;

use crate::{
    cluster::{SETTLE, Stage, until},
    print::seconds,
};

const APP: &str = "early";
const PODS: u32 = 2;

/// Without daemons: nodes are registered and not ready, and the scheduler keeps pods from them.
pub(crate) fn closed(stage: &Stage) -> anyhow::Result<()> {
    stage.cluster.apply(&[Stage::web(APP, PODS)])?;
    until(SETTLE, || {
        let pods = objects(stage)?;
        ensure!(pods.len() == PODS as usize, "{} pods of {PODS}", pods.len());
        for pod in &pods {
            let condition = &pod["status"]["conditions"][0];
            ensure!(condition["reason"] == "Unschedulable", "{condition}");
        }
        Ok(())
    })?;
    let unready = stage.cluster.unready()?;
    ensure!(unready.len() == stage.lab.nodes().len(), "ready without a daemon: {unready:?}");
    ensure!(unready.iter().all(|why| why.contains("cni")), "{unready:?}");
    Ok(())
}

/// With them, since `start`: the pods come, and none was ever refused an address.
pub(crate) fn opened(
    stage: &Stage,
    closed: anyhow::Result<()>,
    start: Instant,
) -> anyhow::Result<String> {
    let waited = closed.and_then(|()| {
        stage.rolled_out(APP)?;
        let refused = super::scale::refused_sandboxes(stage)?;
        ensure!(refused == 0, "{refused} ADDs were refused");
        Ok(format!(
            "{PODS} pods waited for a Ready node, and ran {} after the chart's installation",
            seconds(start.elapsed())
        ))
    });
    stage.delete(APP, &[])?;
    waited
}

fn objects(stage: &Stage) -> anyhow::Result<Vec<Value>> {
    Ok(stage.cluster.objects(&["get", "pods", &format!("--selector=app={APP}")])?)
}
