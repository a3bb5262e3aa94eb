//! The API server is away for a while.

use std::{
    fs,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::json;
use veni_lab::{Node, kubernetes::image};

use crate::{
    checks::restart::start_load,
    cluster::{PORT, SETTLE, Stage, until},
    http,
    print::{Table, seconds, step},
};

const APP: &str = "offline";
const NODE_PORT: u16 = 30083;
const PODS: u32 = 4;
/// A pod that the kubelet reads from a file: it needs no API server to come.
const STATIC: &str = "static";

pub(crate) fn check(stage: &mut Stage, away: Duration, table: &mut Table) -> anyhow::Result<()> {
    step(format!("{} s without an API server", away.as_secs()));
    let load = start_load(stage, APP, NODE_PORT, PODS)?;
    stage.cluster.control.stop_api_server()?;
    let gone = Instant::now();
    let added = add_static_pods(stage);
    thread::sleep(away.saturating_sub(gone.elapsed()));
    let took = Instant::now();
    stage.cluster.control.start_api_server()?;
    stage.cluster.control.finish()?;
    let back = back(stage, took);
    table.record("API server away: pods are added", added);
    table.record("API server away: traffic", load.stop().nothing_lost());
    table.record("API server back", back);
    for node in stage.lab.nodes() {
        fs::remove_file(manifest(node))?;
    }
    stage.delete(APP, &[APP])?;
    table
        .record("deleted pods hold no address", stage.allocated(&[]).map(|()| "0 held".to_owned()));
    Ok(())
}

/// One on each node, and each answers.
fn add_static_pods(stage: &Stage) -> anyhow::Result<String> {
    let start = Instant::now();
    for node in stage.lab.nodes() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": STATIC, "labels": {"app": STATIC}},
            "spec": {
                "dnsPolicy": "Default",
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "web", "image": image::AGNHOST,
                    "args": ["netexec", format!("--http-port={PORT}")],
                }],
            },
        });
        fs::write(manifest(node), pod.to_string())?;
    }
    for node in stage.lab.nodes() {
        let name = until(SETTLE, || {
            let address = address_of_static(node)?;
            http::get(stage.cluster.control.host(), (address, PORT).into(), "/hostname")
        })?;
        ensure!(name == format!("{STATIC}-{}", node.name), "{name} answered");
    }
    Ok(format!("one on each node, which answer after {}", seconds(start.elapsed())))
}

fn address_of_static(node: &Node) -> anyhow::Result<Ipv4Addr> {
    let view = node.inspect()?;
    let name = format!("{STATIC}-{}", node.name);
    let address =
        view.addresses.iter().find(|a| a.pod.as_ref().is_some_and(|pod| pod.name == name));
    Ok(address.with_context(|| format!("no pod {name} on {}", node.name))?.address)
}

fn manifest(node: &Node) -> std::path::PathBuf {
    node.dir.join("static-pods").join(format!("{STATIC}.json"))
}

/// The cluster does what it is asked to again.
fn back(stage: &mut Stage, start: Instant) -> anyhow::Result<String> {
    stage.cluster.wait_ready()?;
    let ready = start.elapsed();
    stage.cluster.kubectl(&["scale", &format!("deployment/{APP}"), "--replicas=8"])?;
    stage.rolled_out(APP)?;
    let pods = stage.pods(APP)?.len();
    ensure!(pods == 8, "{pods} pods of {APP} are Ready");
    Ok(format!(
        "nodes Ready after {}, 4 more pods after {}",
        seconds(ready),
        seconds(start.elapsed())
    ))
}
