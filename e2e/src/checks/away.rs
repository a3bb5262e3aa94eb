//! The API server is away for a while.

use std::{
    fs,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
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
/// A pod that the kubelet reads from a file: it needs no API server to come. Its node has had it, and knows its labels.
const STATIC: &str = "static";
/// Another, whose labels nobody can tell while there is no API server.
const STRANGER: &str = "stranger";

pub(crate) fn check(stage: &mut Stage, away: Duration, table: &mut Table) -> anyhow::Result<()> {
    step(format!("{} s without an API server", away.as_secs()));
    let load = start_load(stage, APP, NODE_PORT, PODS)?;
    let known = known_before(stage);
    stage.cluster.control.stop_api_server()?;
    let gone = Instant::now();
    let added = known.and_then(|()| add_static_pods(stage));
    let closed = add_strangers(stage);
    thread::sleep(away.saturating_sub(gone.elapsed()));
    let took = Instant::now();
    stage.cluster.control.start_api_server()?;
    stage.cluster.control.finish()?;
    let back = back(stage, took);
    let opened = answers(stage, STRANGER);
    table.record("API server away: pods are added", added);
    let closed = closed.and_then(|told| {
        opened.context("the API server is back")?;
        Ok(told)
    });
    table.record("API server away: a pod of unknown labels is closed until it is back", closed);
    table.record("API server away: traffic", load.stop().nothing_lost());
    table.record("API server back", back);
    take_away(stage, STATIC)?;
    take_away(stage, STRANGER)?;
    stage.delete(APP, &[APP])?;
    table
        .record("deleted pods hold no address", stage.allocated(&[]).map(|()| "0 held".to_owned()));
    Ok(())
}

/// They come and go while the API server is there.
fn known_before(stage: &Stage) -> anyhow::Result<()> {
    put(stage, STATIC)?;
    answers(stage, STATIC)?;
    take_away(stage, STATIC)?;
    until(SETTLE, || {
        let selector = format!("--selector=app={STATIC}");
        let left = stage.cluster.kubectl(&["get", "pods", &selector, "--output=name"])?;
        ensure!(left.is_empty(), "left: {left}");
        for node in stage.lab.nodes() {
            ensure!(
                address_of(node, STATIC).is_err(),
                "{STATIC} holds an address of {}",
                node.name
            );
        }
        Ok(())
    })
}

/// One on each node, and each answers.
fn add_static_pods(stage: &Stage) -> anyhow::Result<String> {
    let start = Instant::now();
    put(stage, STATIC)?;
    answers(stage, STATIC)?;
    Ok(format!("one on each node, which answer after {}", seconds(start.elapsed())))
}

/// One on each node: it runs, its node reaches it and nobody else does, and the daemon says so.
fn add_strangers(stage: &Stage) -> anyhow::Result<String> {
    put(stage, STRANGER)?;
    for node in stage.lab.nodes() {
        let address = until(SETTLE, || {
            let address = address_of(node, STRANGER)?;
            http::get(&node.namespace, (address, PORT).into(), "/hostname").map(|_| address)
        })?;
        let asked = http::get(stage.cluster.control.host(), (address, PORT).into(), "/hostname");
        ensure!(asked.is_err(), "{STRANGER} on {} answers: {asked:?}", node.name);
        let policy: Value = node.document("/v1/policy")?;
        let name = format!("default/{STRANGER}-{}", node.name);
        let mut pods = policy["unlabelled"].as_array().into_iter().flatten();
        let told = pods.any(|pod| pod["pod"] == name.as_str() && pod["judged_by"] == "closed");
        ensure!(told, "{name}: {}", policy["unlabelled"]);
    }
    Ok("one on each node, which its node alone reaches until the API server is back".to_owned())
}

/// Gives each node's kubelet the pod.
fn put(stage: &Stage, name: &str) -> anyhow::Result<()> {
    for node in stage.lab.nodes() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "dnsPolicy": "Default",
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "web", "image": image::AGNHOST,
                    "args": ["netexec", format!("--http-port={PORT}")],
                }],
            },
        });
        fs::write(manifest(node, name), pod.to_string())?;
    }
    Ok(())
}

fn take_away(stage: &Stage, name: &str) -> anyhow::Result<()> {
    stage.lab.nodes().iter().try_for_each(|node| Ok(fs::remove_file(manifest(node, name))?))
}

/// Waits until each node's pod of this name answers whoever asks.
fn answers(stage: &Stage, pod: &str) -> anyhow::Result<()> {
    for node in stage.lab.nodes() {
        let name = until(SETTLE, || {
            let address = address_of(node, pod)?;
            http::get(stage.cluster.control.host(), (address, PORT).into(), "/hostname")
        })?;
        ensure!(name == format!("{pod}-{}", node.name), "{name} answered");
    }
    Ok(())
}

fn address_of(node: &Node, pod: &str) -> anyhow::Result<Ipv4Addr> {
    let view = node.inspect()?;
    let name = format!("{pod}-{}", node.name);
    let address =
        view.addresses.iter().find(|a| a.pod.as_ref().is_some_and(|pod| pod.name == name));
    Ok(address.with_context(|| format!("no pod {name} on {}", node.name))?.address)
}

fn manifest(node: &Node, pod: &str) -> std::path::PathBuf {
    node.dir.join("static-pods").join(format!("{pod}.json"))
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
