//! Many pods up and down at once.

use std::{collections::BTreeSet, time::Instant};

use anyhow::ensure;
use serde_json::json;
use veni_lab::kubernetes::image;

use crate::{
    cluster::Stage,
    print::{Table, seconds, step},
};

const APP: &str = "many";

pub(crate) fn check(stage: &mut Stage, pods: u32, table: &mut Table) -> anyhow::Result<()> {
    step(format!("{pods} pods at once"));
    let start = Instant::now();
    stage.cluster.apply(&[deployment(APP, pods)])?;
    stage.rolled_out(APP)?;
    let took = start.elapsed();
    let running = stage.pods(APP)?;
    let addresses: BTreeSet<_> = running.iter().map(|pod| pod.address).collect();
    let distinct = || {
        ensure!(running.len() == pods as usize, "{} pods are Ready", running.len());
        ensure!(addresses.len() == running.len(), "{} share {addresses:?}", running.len());
        stage.allocated(&running)?;
        let refused = refused_sandboxes(stage)?;
        let enis: Vec<_> = stage
            .lab
            .nodes()
            .iter()
            .map(|node| stage.lab.account.interfaces_of(&node.instance).len().to_string())
            .collect();
        Ok(format!(
            "Ready after {} ({:.0} a second), {} ENIs, {refused} ADDs refused",
            seconds(took),
            f64::from(pods) / took.as_secs_f64(),
            enis.join(" and "),
        ))
    };
    table.record(&format!("{pods} pods up"), distinct());
    let took = stage.delete(APP, &[])?;
    let gone = stage.allocated(&[]).map(|()| format!("gone after {}, 0 held", seconds(took)));
    table.record(&format!("{pods} pods down"), gone);
    Ok(())
}

/// How often a kubelet was told that a pod's sandbox cannot be made.
pub(crate) fn refused_sandboxes(stage: &Stage) -> anyhow::Result<u64> {
    let get = ["get", "events", "--field-selector=reason=FailedCreatePodSandBox"];
    let events = stage.cluster.objects(&get)?;
    Ok(events.iter().map(|event| event["count"].as_u64().unwrap_or(1)).sum())
}

/// Pods that do nothing: what is measured is how they come and go.
pub(super) fn deployment(app: &str, replicas: u32) -> serde_json::Value {
    let labels = json!({"app": app});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": app},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "dnsPolicy": "Default",
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "idle", "image": image::PAUSE}],
            }},
        },
    })
}
