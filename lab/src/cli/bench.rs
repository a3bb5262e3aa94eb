//! `veni-lab bench`: `daemon` measures the daemon by itself; `add` what an ADD takes, beside what it must take at least, in the same run.
//!
//! Every number is the time from before the fork to after the exit, as a runtime sees it. The plugin and the floor
//! take turns, on the same node, with the same pipes and environment; each in a namespace made before. The pool is
//! warm: no ADD waits for EC2.

mod daemon;
mod report;
mod runs;
mod traffic;

use std::process::ExitCode;

use anyhow::ensure;
use clap::{Args, Subcommand};
use veni_lab::{Lab, LabConfig, NodeConfig, binaries, interrupt, lab::READY};
use veni_provider::sim::SimConfig;

use self::{
    report::Report,
    runs::{Bench, Programs},
};
use super::{Output, print};

#[derive(Debug, Subcommand)]
pub(super) enum What {
    /// ADD and DEL through the plugin, against the floor
    Add(Options),
    /// The daemon by itself: allocate requests, memory, idle CPU, starts
    Daemon(daemon::Options),
    /// Pod to pod with and without the programs; a Service against kube-proxy's nftables rules
    Traffic(traffic::Options),
}

#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    /// The lab's name
    #[arg(long, default_value = "bench")]
    name: String,
    /// Pods that are added one at a time
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=500))]
    pods: u32,
    /// Pods that are added at once in a burst
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=100))]
    concurrency: u32,
    /// Bursts, of the plugin and the floor in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=20))]
    bursts: u32,
    /// The node's type: it must hold all pods with their cooling addresses
    #[arg(long, default_value = "m5.24xlarge")]
    node_type: String,
    /// A variable of veni-ipamd, NAME=VALUE, several times
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// `table` or `json`
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// Allocate requests that are measured on their own.
const REQUESTS: u32 = 100;

/// ADDs whose memory is measured.
const PEAKS: u32 = 10;

pub(super) fn bench(what: &What) -> anyhow::Result<ExitCode> {
    match what {
        What::Add(options) => add(options),
        What::Daemon(options) => daemon::run(options),
        What::Traffic(options) => traffic::run(options),
    }
}

fn add(options: &Options) -> anyhow::Result<ExitCode> {
    interrupt::remove_on_signal(&options.name)?;
    let progress = |text: &str| {
        if options.output == Output::Table {
            print::step(text);
        }
    };
    let programs = Programs {
        floor: binaries::find("veni-floor")?,
        nop: binaries::find("veni-nop")?,
        peak: binaries::find("veni-peak")?,
    };
    // Enough for everything that is ever assigned or cooling: the pool never grows while something is measured.
    let held = options.pods + options.concurrency * options.bursts + REQUESTS + PEAKS + 10;
    progress(&format!("a node of type {} with a warm pool of {held} addresses", options.node_type));
    let lab = warm_lab(options, held)?;
    let bench = Bench::new(&lab, programs);
    progress(&format!("{} pods, one at a time, plugin and floor in turn", options.pods));
    let sequential = bench.sequential(options.pods)?;
    progress(&format!(
        "{} bursts of {}, plugin and floor in turn",
        options.bursts, options.concurrency
    ));
    let burst = bench.bursts(options.concurrency, options.bursts)?;
    progress(&format!("{REQUESTS} allocate requests on their own"));
    let requests = bench.requests(REQUESTS)?;
    let plugin_peak_kib = bench.peak_kib(PEAKS)?;
    let plugin = binaries::find("veni-cni")?;
    let floor = binaries::find("veni-floor")?;
    let report = Report {
        sequential,
        burst,
        burst_size: options.concurrency,
        requests,
        plugin,
        plugin_peak_kib,
        floor,
    };
    match options.output {
        Output::Table => report.print(),
        Output::Json => print::line(serde_json::to_string(&report.json())?),
    }
    Ok(ExitCode::SUCCESS)
}

fn warm_lab(options: &Options, held: u32) -> anyhow::Result<Lab> {
    let node = NodeConfig {
        instance_type: options.node_type.parse()?,
        ..NodeConfig::new("node-1", "m5.xlarge")
    };
    let limits = veni_core::limits::lookup(&node.instance_type);
    if let Some(limits) = limits {
        let most = limits.max_enis * (limits.addresses_per_eni - 1);
        ensure!(
            held <= most,
            "{} holds {most} pods' addresses, {held} are needed: choose a larger --node-type or fewer --pods",
            node.instance_type
        );
    }
    let mut config = LabConfig {
        nodes: vec![node],
        ec2: SimConfig::instant(),
        ..LabConfig::two_nodes(&options.name)
    }
    .with_env("WARM_IP_TARGET", "1")
    .with_env("MINIMUM_IP_TARGET", &held.to_string());
    for variable in &options.env {
        let (name, value) = super::pair(variable, "--env", "NAME=VALUE")?;
        config = config.with_env(name, value);
    }
    let lab = Lab::up(&config)?;
    let [node] = lab.nodes() else { anyhow::bail!("one node was asked for") };
    node.wait_for("a warm pool", READY, |view| {
        view.pool.available >= held && view.plan.running.is_empty()
    })?;
    Ok(lab)
}
