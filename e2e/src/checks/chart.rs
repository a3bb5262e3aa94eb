//! The chart: what it renders, what the API server says of that, and what its container really has.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use veni_lab::{
    Node,
    kubernetes::{Programs, chart},
};

use crate::{
    cluster::Stage,
    print::{Table, step},
};

/// Values, and what they render to: `NAME.yaml` and `NAME.rendered.yaml`.
const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/chart");
/// Set, what is rendered is kept instead of compared.
const BLESS: &str = "VENI_BLESS";
/// What is rendered for; the cluster's version is in no template.
const KUBERNETES: &str = "1.35.0";
/// `NET_ADMIN`, `PERFMON` and `BPF` (capability.h).
const CAPABILITIES: u64 = 1 << 12 | 1 << 38 | 1 << 39;

pub(crate) fn check(stage: &Stage, table: &mut Table) -> anyhow::Result<()> {
    step("the chart");
    let cases = cases()?;
    let rendered: anyhow::Result<Vec<_>> = cases.iter().map(|case| render(case)).collect();
    let rendered = rendered?;
    table.record("what the chart renders", same(&cases, &rendered));
    table.record("the API server takes it", dry_run(stage, &rendered));
    table.record("values that mean nothing here are refused", refused());
    table.record("the daemon's container", container(stage));
    Ok(())
}

fn cases() -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(CASES).context(CASES)?.flatten().map(|entry| entry.path());
    let is_case = |path: &PathBuf| !path.to_string_lossy().ends_with(".rendered.yaml");
    let mut cases: Vec<_> = entries.filter(is_case).collect();
    cases.sort();
    ensure!(!cases.is_empty(), "{CASES} is empty");
    Ok(cases)
}

fn render(values: &Path) -> anyhow::Result<String> {
    helm(&["--values", &values.display().to_string()])
        .with_context(|| format!("rendering {}", values.display()))
}

fn helm(args: &[&str]) -> anyhow::Result<String> {
    let programs = Programs::find()?;
    let mut command = Command::new(programs.kubernetes("helm"));
    command.args(["template", chart::RELEASE]).arg(programs.chart());
    command.args(["--namespace", chart::NAMESPACE, "--kube-version", KUBERNETES]).args(args);
    let output = command.output().context("cannot run helm")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

fn same(cases: &[PathBuf], rendered: &[String]) -> anyhow::Result<String> {
    for (case, text) in cases.iter().zip(rendered) {
        let kept = case.with_extension("rendered.yaml");
        if std::env::var_os(BLESS).is_some() {
            fs::write(&kept, text)?;
        }
        let expected = fs::read_to_string(&kept).with_context(|| kept.display().to_string())?;
        let first = text.lines().zip(expected.lines()).find(|(new, old)| new != old);
        ensure!(
            *text == expected,
            "{} differs, first {first:?}: run make e2e E2E_ARGS='--only chart' with {BLESS}=1 if it is meant",
            kept.display()
        );
    }
    Ok(format!("{} sets of values, as kept", cases.len()))
}

fn dry_run(stage: &Stage, rendered: &[String]) -> anyhow::Result<String> {
    let mut objects = 0;
    for text in rendered {
        let apply = ["apply", "--dry-run=server", "--validate=strict", "--filename", "-"];
        let told = stage.cluster.control.kubectl(&apply, text)?;
        objects += told.lines().count();
    }
    Ok(format!("{objects} objects, none with a field that it does not know"))
}

/// Of the aws-vpc-cni chart, with the words that say what to do.
fn refused() -> anyhow::Result<String> {
    let cases = [
        ("nodeAgent.enabled=true", "ipamd enforces policy itself"),
        ("init.image.tag=v1", "Put init.env's variables under env"),
        ("cniConfig.enabled=true", "cni.version chooses which"),
        ("image.region=eu-central-1", "Set image.repository"),
        ("env.VENI_SOCKET=/x", "runDir"),
        ("enableNetworkPolice=true", "enableNetworkPolice"),
    ];
    for (value, words) in cases {
        let error = helm(&["--set", value]).err().with_context(|| format!("{value} is taken"))?;
        ensure!(error.to_string().contains(words), "{value}: {error}");
    }
    Ok(format!("{} of {}, each with what to do", cases.len(), cases.len()))
}

/// What the kernel says of the daemon's process.
fn container(stage: &Stage) -> anyhow::Result<String> {
    for node in stage.lab.nodes() {
        let process = daemon(node)?;
        let status = fs::read_to_string(process.join("status"))?;
        let field = |name: &str| {
            let lines = status.lines().filter_map(|line| line.strip_prefix(name));
            lines.filter_map(|rest| rest.strip_prefix(":")).next().unwrap_or("").trim().to_owned()
        };
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let has = u64::from_str_radix(&field(set), 16)?;
            ensure!(has == CAPABILITIES, "{set} on {}: {has:x}, not {CAPABILITIES:x}", node.name);
        }
        for (name, expected) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
            ensure!(field(name) == expected, "{name} on {}: {}", node.name, field(name));
        }
        let mounts = fs::read_to_string(process.join("mounts"))?;
        let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/"));
        let options = root.and_then(|line| line.split(' ').nth(3)).unwrap_or("");
        ensure!(options.split(',').any(|option| option == "ro"), "the root: {options}");
    }
    Ok("NET_ADMIN, BPF, PERFMON; a seccomp filter, no new privileges, a read-only root".to_owned())
}

/// The daemon's directory below `/proc`: of this name, in the node's network namespace.
fn daemon(node: &Node) -> anyhow::Result<PathBuf> {
    let (net, _) = node.namespace.fds();
    let own = fs::metadata(format!("/proc/self/fd/{net}"))?.ino();
    let is_it = |path: &PathBuf| {
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let space = fs::metadata(path.join("ns/net")).map(|meta| meta.ino());
        name.trim() == "veni-ipamd" && space.is_ok_and(|space| space == own)
    };
    let mut processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    processes.find(is_it).with_context(|| format!("no veni-ipamd runs on {}", node.name))
}
