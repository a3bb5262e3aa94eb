//! `venictl connectivity test`, as a user runs it against the cluster.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use veni_lab::binaries;

use crate::{
    cluster::{SETTLE, Stage, until},
    print::{Table, step},
};

const NAMESPACE: &str = "veni-connectivity-test";
/// Of all that it makes.
const LABEL: &str = "--selector=app.kubernetes.io/managed-by=venictl-connectivity-test";
const KINDS: &str = "namespaces,pods,services,networkpolicies,clusternetworkpolicies";
/// A client and a server on each node.
const PODS: usize = 4;
/// What cannot be checked here: nothing outside of the VPC answers for good.
const NOT_RUN: &str = "pod to outside";

pub(crate) fn check(stage: &mut Stage, table: &mut Table) -> anyhow::Result<()> {
    step("venictl connectivity test");
    // It tests the nodes on which the daemon's pod is ready, which a node is a moment before.
    stage.daemons_rolled_out()?;
    let output = stage.cluster.control.host().output(&mut venictl(stage)?)?;
    let told = read(&output)?;
    for check in told["checks"].as_array().into_iter().flatten() {
        let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
        let (name, seen) = (format!("venictl: {}", text("check")), text("seen"));
        match text("result").as_str() {
            "ok" => table.record(&name, Ok(seen)),
            "skipped" if text("check") == NOT_RUN => table.not_run(&name, &seen),
            other => table.record(&name, Err(anyhow::anyhow!("{other}: {seen}"))),
        }
    }
    table.record("venictl connectivity test", ended_well(stage, &output, &told));
    table.record("an interrupted test leaves nothing", interrupted(stage));
    Ok(())
}

fn venictl(stage: &Stage) -> anyhow::Result<Command> {
    let mut command = Command::new(binaries::find("venictl")?.path);
    command.args(["connectivity", "test", "--external", "none", "--output", "json"]);
    command.arg("--kubeconfig").arg(stage.cluster.control.kubeconfig("admin"));
    Ok(command)
}

fn read(output: &Output) -> anyhow::Result<Value> {
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!("{}, {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
    })
}

fn ended_well(stage: &Stage, output: &Output, told: &Value) -> anyhow::Result<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, errors.trim());
    ensure!(told["ended"].is_null() && told["left"].is_null(), "{told}");
    nothing_left(stage)?;
    let checks = told["checks"].as_array().map_or(0, Vec::len);
    Ok(format!("{}, {checks} checks, nothing of it is left", output.status))
}

/// Ctrl-C while its pods are there.
fn interrupted(stage: &Stage) -> anyhow::Result<String> {
    let mut command = venictl(stage)?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let io = |source| veni_lab::Error::Io { what: "cannot run venictl".to_owned(), source };
    let child = stage.cluster.control.host().run(|| command.spawn().map_err(io))?;
    let pods = until(SETTLE, || {
        let get = ["get", "pods", "--namespace", NAMESPACE, "--output=name"];
        let pods = stage.cluster.kubectl(&get)?.lines().count();
        ensure!(pods == PODS, "{pods} pods");
        Ok(pods)
    });
    // Whatever came of that: it is not left behind.
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT).context("SIGINT")?;
    let output = child.wait_with_output()?;
    let (pods, told) = (pods?, read(&output)?);
    ensure!(told["ended"] == "ended by SIGINT" && told["left"].is_null(), "{told}");
    ensure!(!output.status.success(), "{}", output.status);
    nothing_left(stage)?;
    Ok(format!("{}, with {pods} pods there; none is left, no policy, no address", output.status))
}

fn nothing_left(stage: &Stage) -> anyhow::Result<()> {
    let get = ["get", KINDS, "--all-namespaces", LABEL, "--output=name"];
    let left = stage.cluster.kubectl(&get)?;
    ensure!(left.is_empty(), "left: {}", left.replace('\n', " "));
    let namespace = ["get", "namespace", NAMESPACE, "--ignore-not-found", "--output=name"];
    ensure!(stage.cluster.kubectl(&namespace)?.is_empty(), "the namespace is left");
    stage.allocated(&[])
}
