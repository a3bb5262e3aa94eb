//! `veni-lab bench daemon`: what the daemon costs by itself, over its socket, on a simulator that answers at once.
//!
//! Memory and CPU are the kernel's own counts of the process (`/proc/<pid>`). Allocate requests come one at a time,
//! each on a connection of its own, as the plugin makes them: the client's time includes connecting and parsing at both
//! ends. Beside it stands the daemon's own (`veni_request_duration_seconds`): a bound of its buckets.
//!
//! Without policy and without pods' links: a judged ADD is `veni-lab bench add`'s, with the plugin and everything else.

use std::{
    fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use veni_core::wire::{
    AddRequest, Attachment, DelReason, DelRequest, PodRef, ReplyBody, RequestBody,
};
use veni_lab::{
    Lab, LabConfig, Node, NodeConfig, histogram::Histogram, interrupt, lab::READY,
    stats::Percentiles, wire,
};
use veni_provider::sim::SimConfig;

use super::super::{Output, print};

/// The largest ordinary type: 15 ENIs of 49 pods' addresses.
const NODE_TYPE: &str = "m5.24xlarge";
/// Requests per measurement.
const REQUESTS: u32 = 300;
/// A pod that the journal does not have.
const NEWCOMER: u32 = 2_000_000;
/// No source of objects: policy is off.
const MANIFESTS: &str = "VENI_MANIFEST_DIR";
/// How often a start is repeated.
const STARTS: usize = 5;
/// ADDs that find no address; fewer than one ENI of an m5.xlarge has.
const REFILLS: u32 = 12;

#[derive(Debug, Clone, Args)]
pub(in super::super) struct Options {
    /// The lab's name
    #[arg(long, default_value = "bench-daemon")]
    name: String,
    /// Pods at the end
    #[arg(long, default_value_t = 700, value_parser = clap::value_parser!(u32).range(10..=720))]
    pods: u32,
    /// How long the daemon is left alone to see what it does then, seconds
    #[arg(long, default_value_t = 20)]
    idle_secs: u64,
    /// `table` or `json`
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// One measured load.
struct Load {
    pods: u32,
    requests: Percentiles,
    /// The same requests by the daemon's own count; `None` when it keeps none.
    inside: Option<Histogram>,
    resident_kib: u64,
}

pub(in super::super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    interrupt::remove_on_signal(&options.name)?;
    let held = options.pods + 10;
    let config = LabConfig {
        nodes: vec![NodeConfig {
            instance_type: NODE_TYPE.parse()?,
            ..NodeConfig::new("node-1", "m5.xlarge")
        }],
        ec2: SimConfig::instant(),
        ..LabConfig::two_nodes(&options.name)
    }
    .with_env("WARM_IP_TARGET", "1")
    .with_env("MINIMUM_IP_TARGET", &held.to_string())
    .with_env("IP_COOLDOWN_PERIOD", "0")
    .with_env(MANIFESTS, "");
    let lab = Lab::up(&config)?;
    let [node] = lab.nodes() else { bail!("one node was asked for") };
    node.wait_for("a warm pool", READY, |view| {
        view.pool.available >= held && view.plan.running.is_empty()
    })?;
    let mut loads = Vec::new();
    let mut there = 0;
    for pods in [0, options.pods / 7, options.pods] {
        (there..pods).try_for_each(|n| add(node, n).map(drop))?;
        there = pods;
        node.wait_flushed(READY)?;
        loads.push(measure(node, pods)?);
    }
    node.wait_flushed(READY)?;
    let (cpu, switches) = idle(node, Duration::from_secs(options.idle_secs))?;
    let restart = starts(node, options.pods)?;
    drop(lab);
    let [fresh, refills] = [fresh_starts(options)?, refills(options)?];
    report(options, &loads, cpu, switches, &[fresh, restart, refills]);
    Ok(ExitCode::SUCCESS)
}

fn measure(node: &Node, pods: u32) -> anyhow::Result<Load> {
    let before = durations(node)?;
    let requests = (0..REQUESTS).map(|n| {
        let number = 1_000_000 + n;
        let took = add(node, number)?;
        del(node, number)?;
        Ok(took)
    });
    let requests = requests.collect::<anyhow::Result<Percentiles>>()?;
    let inside = durations(node)?.map(|after| after.since(&before.unwrap_or_default()));
    Ok(Load { pods, requests, inside, resident_kib: status(node, "VmRSS:")? })
}

/// How long the daemon took for the ADDs so far.
fn durations(node: &Node) -> anyhow::Result<Option<Histogram>> {
    Ok(Histogram::read(&node.metrics()?, "veni_request_duration_seconds", "request=\"add\""))
}

/// CPU time and voluntary context switches while nothing is asked.
fn idle(node: &Node, time: Duration) -> anyhow::Result<(Duration, u64)> {
    let before = (cpu(node)?, switches(node)?);
    // What is measured is that nothing happens: there is no event to wait for.
    thread::sleep(time);
    Ok((cpu(node)?.saturating_sub(before.0), switches(node)? - before.1))
}

/// From the daemon's fork to the first ADD that it answers, over a journal of the pods.
fn starts(node: &Node, pods: u32) -> anyhow::Result<Percentiles> {
    let starts = (0..STARTS).map(|_| {
        node.stop_ipamd(Signal::SIGKILL)?;
        let start = Instant::now();
        node.spawn_ipamd(&[])?;
        first_add(node, NEWCOMER)?;
        let took = start.elapsed();
        let held = node.inspect()?.pool.assigned;
        ensure!(held == pods + 1, "{held} instead of {} allocations after a restart", pods + 1);
        del(node, NEWCOMER)?;
        Ok(took)
    });
    starts.collect()
}

/// The same on nodes that have no journal and no addresses yet.
fn fresh_starts(options: &Options) -> anyhow::Result<Percentiles> {
    let starts = (0..STARTS).map(|_| {
        let config = LabConfig {
            nodes: vec![NodeConfig { ipamd: false, ..NodeConfig::new("node-1", "m5.xlarge") }],
            ec2: SimConfig::instant(),
            ..LabConfig::two_nodes(&options.name)
        }
        .with_env(MANIFESTS, "");
        let lab = Lab::up(&config)?;
        let [node] = lab.nodes() else { bail!("one node was asked for") };
        let start = Instant::now();
        node.spawn_ipamd(&[])?;
        first_add(node, 0)?;
        Ok(start.elapsed())
    });
    starts.collect()
}

/// ADDs that find no address, one at a time, over a cloud that answers at once: each waits for its refill.
fn refills(options: &Options) -> anyhow::Result<Percentiles> {
    let config = LabConfig {
        nodes: vec![NodeConfig::new("node-1", "m5.xlarge")],
        ec2: SimConfig::instant(),
        ..LabConfig::two_nodes(&options.name)
    }
    .with_env("WARM_IP_TARGET", "0")
    .with_env("MINIMUM_IP_TARGET", "1")
    .with_env(MANIFESTS, "");
    let lab = Lab::up(&config)?;
    let [node] = lab.nodes() else { bail!("one node was asked for") };
    node.wait_for("an address", READY, |view| {
        view.pool.available == 1 && view.plan.running.is_empty()
    })?;
    add(node, 0)?;
    (1..=REFILLS).map(|number| add(node, number)).collect()
}

/// Asks until there is somebody to ask.
fn first_add(node: &Node, number: u32) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match add(node, number) {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() > READY => return Err(error),
            // The socket is not there yet: nothing announces it.
            Err(_) => thread::sleep(Duration::from_micros(200)),
        }
    }
}

fn attachment(number: u32) -> anyhow::Result<Attachment> {
    Ok(Attachment {
        network: "veni".parse()?,
        container_id: format!("bench-{number}").parse()?,
        ifname: "eth0".parse()?,
    })
}

fn add(node: &Node, number: u32) -> anyhow::Result<Duration> {
    let request = AddRequest {
        attachment: attachment(number)?,
        pod: PodRef { namespace: "bench".into(), name: format!("pod-{number}"), uid: None },
        netns: "/proc/self/ns/net".into(),
        wait_millis: None,
    };
    let start = Instant::now();
    let reply = wire::ask(&node.socket(), RequestBody::Add(request))?;
    let took = start.elapsed();
    ensure!(matches!(reply, ReplyBody::Wiring(_)), "the daemon answered {reply:?}");
    Ok(took)
}

fn del(node: &Node, number: u32) -> anyhow::Result<()> {
    let request = DelRequest { attachment: attachment(number)?, reason: DelReason::AddFailed };
    wire::ask(&node.socket(), RequestBody::Del(request))?;
    Ok(())
}

fn status(node: &Node, field: &str) -> anyhow::Result<u64> {
    let pid = node.ipamd_pid().context("the daemon does not run")?;
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|rest| rest.split_whitespace().next()).context("no such field")?;
    Ok(number.parse()?)
}

fn switches(node: &Node) -> anyhow::Result<u64> {
    let pid = node.ipamd_pid().context("the daemon does not run")?;
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.context("no such field")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

/// User and system time (`/proc/<pid>/schedstat` of every thread, nanoseconds on a CPU).
fn cpu(node: &Node) -> anyhow::Result<Duration> {
    let pid = node.ipamd_pid().context("the daemon does not run")?;
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += text.split(' ').next().context("no time")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

fn report(
    options: &Options,
    loads: &[Load],
    cpu: Duration,
    switches: u64,
    [fresh, restart, refills]: &[Percentiles; 3],
) {
    if options.output == Output::Json {
        let loads: Vec<Value> = loads
            .iter()
            .map(|load| {
                json!({
                    "pods": load.pods, "resident_kib": load.resident_kib,
                    "allocate_us": {"p50": micros(load.requests.at(50)), "p99": micros(load.requests.at(99))},
                    "in_daemon_at_most_us": {"p50": load.inside_micros(50), "p99": load.inside_micros(99)},
                })
            })
            .collect();
        let whole = json!({
            "loads": loads,
            "idle": {"secs": options.idle_secs, "cpu_us": micros(cpu), "wakeups": switches},
            "refill_us": {"min": micros(refills.at(0)), "p50": micros(refills.at(50))},
            "first_add_us": {"fresh": micros(fresh.at(50)), "restart": micros(restart.at(50)), "restart_pods": options.pods},
        });
        print::line(whole);
        return;
    }
    let mut table = print::table([
        "pods",
        "allocate p50",
        "allocate p99",
        "in the daemon p50",
        "in the daemon p99",
        "resident",
    ]);
    let inside = |load: &Load, percent| {
        load.inside_micros(percent).map_or_else(|| "-".to_owned(), |most| format!("≤ {most} µs"))
    };
    for load in loads {
        table.add_row([
            load.pods.to_string(),
            format!("{} µs", micros(load.requests.at(50))),
            format!("{} µs", micros(load.requests.at(99))),
            inside(load, 50),
            inside(load, 99),
            format!(
                "{:.1} MiB",
                f64::from(u32::try_from(load.resident_kib).unwrap_or(u32::MAX)) / 1024.0
            ),
        ]);
    }
    print::line(table);
    print::line(format!(
        "idle for {} s over {} pods: {} of CPU, {switches} wake-ups",
        options.idle_secs,
        options.pods,
        print::millis(cpu)
    ));
    print::line(format!(
        "exec to first ADD: {} on a fresh node, {} over a journal of {} pods (p50 of {STARTS})",
        print::millis(fresh.at(50)),
        print::millis(restart.at(50)),
        options.pods
    ));
    print::line(format!(
        "an ADD that finds no address, its refill and answer: {} at least, p50 {} (of {REFILLS})",
        print::millis(refills.at(0)),
        print::millis(refills.at(50))
    ));
}

// === impl Load ===

impl Load {
    fn inside_micros(&self, percent: u64) -> Option<u64> {
        self.inside.as_ref()?.at_most(percent).map(micros)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
