//! `veni-lab demo`: the main job, end to end.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use nix::sys::signal::Signal;
use veni_lab::{
    Lab, LabConfig, Node, Pod, interrupt, lab::READY, snapshot::Snapshot, stats::Percentiles,
};

use super::{
    checks::{self, Checks},
    policy, print,
    serve::pools,
};

/// A shorter cooldown than the default of 30 s, so that the end of a demo is not a wait.
const COOLDOWN_SECS: &str = "5";
/// An ADD of this length waited for EC2, which takes over 2 s to attach an ENI here.
const WAITED: Duration = Duration::from_secs(1);
/// How long the pool may take to settle after everything was deleted: the cooldown, detaching, deleting.
const SETTLE: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    /// The lab's name
    #[arg(long, default_value = "demo")]
    name: String,
    /// Pods a node
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=30))]
    pods: u32,
    /// Keep the daemons' logs (their directory is printed)
    #[arg(long)]
    keep_logs: bool,
    /// A variable of every node's veni-ipamd, NAME=VALUE, several times
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
}

/// What a node was like before pods, and before the daemon.
struct Before {
    node: Arc<Node>,
    bare: Snapshot,
    ready: Snapshot,
    enis: usize,
}

pub(super) fn demo(options: &Options) -> anyhow::Result<ExitCode> {
    interrupt::remove_on_signal(&options.name)?;
    let mut checks = Checks::default();
    let lab = lay(options)?;
    let outcome = perform(&lab, options, &mut checks);
    if outcome.is_err() || !checks.all_held() || options.keep_logs {
        keep_logs(&lab);
    }
    if let Err(error) = &outcome {
        checks.record("the demo came to its end", Err(anyhow::anyhow!("{error:#}")));
    }
    drop(lab);
    print::step("summary");
    checks.summary();
    print::line("to play: `target/veni/veni-lab up`; docs/lab.md walks through it");
    Ok(if checks.all_held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn lay(options: &Options) -> anyhow::Result<Lab> {
    print::step(
        "laying a VPC in a box: 10.0.0.0/16, two subnets, a router, an internet host, a peered network",
    );
    let mut config =
        LabConfig::two_nodes(&options.name).with_env("IP_COOLDOWN_PERIOD", COOLDOWN_SECS);
    for variable in &options.env {
        let (name, value) = super::pair(variable, "--env", "NAME=VALUE")?;
        config = config.with_env(name, value);
    }
    for node in &mut config.nodes {
        node.ipamd = false;
    }
    let lab = Lab::up(&config)?;
    print::note(
        "EC2: the simulator (200 ms a call, attaching takes 2 s); IP_COOLDOWN_PERIOD=5 keeps the end short",
    );
    Ok(lab)
}

fn perform(lab: &Lab, options: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let before = start_daemons(lab)?;
    let mut pods = burst(lab, options.pods, checks)?;
    show_pools(lab)?;
    print::step("traffic");
    checks::traffic(lab, checks)?;
    pods.extend(policy::show(lab, checks)?);
    delete(lab, &pods, checks)?;
    settle(lab, &before, checks)?;
    uninstall(lab, &before, checks)
}

fn start_daemons(lab: &Lab) -> anyhow::Result<Vec<Before>> {
    print::step("starting veni-ipamd on each node");
    let bare = lab
        .nodes()
        .iter()
        .map(|node| Snapshot::take(&node.namespace))
        .collect::<Result<Vec<_>, _>>()?;
    let starts = all_ready(lab.nodes());
    lab.nodes()
        .iter()
        .zip(bare)
        .zip(starts)
        .map(|((node, bare), ready)| {
            let ready = ready?;
            node.wait_for("the first pool", SETTLE, |view| idle(view) && view.pool.available > 0)?;
            print::note(format!(
                "{} ({}, {}): ready after {}",
                node.name,
                node.instance_type,
                node.address,
                print::millis(ready)
            ));
            let enis = lab.account.interfaces_of(&node.instance).len();
            Ok(Before {
                node: Arc::clone(node),
                bare,
                ready: Snapshot::take(&node.namespace)?,
                enis,
            })
        })
        .collect()
}

/// Starts all daemons at once; how long each took from its own start until it could serve an ADD.
fn all_ready(nodes: &[Arc<Node>]) -> Vec<veni_lab::Result<Duration>> {
    std::thread::scope(|scope| {
        let start = |node: &Node| {
            let start = Instant::now();
            node.spawn_ipamd(&[])?;
            node.wait_ready(READY)?;
            Ok(start.elapsed())
        };
        let starts: Vec<_> = nodes.iter().map(|node| scope.spawn(move || start(node))).collect();
        let joined = starts.into_iter().map(|of| of.join());
        joined.map(|ready| ready.unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
    })
}

fn burst(lab: &Lab, each: u32, checks: &mut Checks) -> anyhow::Result<Vec<Pod>> {
    let names: Vec<_> = (1..=each)
        .flat_map(|number| {
            lab.nodes()
                .iter()
                .map(move |node| (node.name.clone(), format!("{}-pod-{number}", node.name)))
        })
        .collect();
    print::step(format!("adding {each} pods a node at once, through veni-cni"));
    let start = Instant::now();
    let added = lab.add_pods(&names);
    let elapsed = start.elapsed();
    let (pods, refused): (Vec<_>, Vec<_>) = added.into_iter().partition(Result::is_ok);
    let pods: Vec<_> = pods.into_iter().flatten().collect();
    let (waited, served): (Vec<_>, Vec<_>) =
        pods.iter().map(|pod| pod.added.elapsed).partition(|elapsed| *elapsed >= WAITED);
    let (all, served): (Percentiles, Percentiles) =
        (served.iter().chain(&waited).copied().collect(), served.into_iter().collect());
    let numbers = format!(
        "p50 {}, p99 {}; {} waited for EC2, {} served at once: p50 {}, p99 {}",
        print::millis(all.at(50)),
        print::millis(all.at(99)),
        waited.len(),
        served.count(),
        print::millis(served.at(50)),
        print::millis(served.at(99)),
    );
    print::note(format!("all of them were there after {:.1} s", elapsed.as_secs_f64()));
    let first = refused.into_iter().find_map(Result::err);
    checks.record(
        &format!("ADD of {} pods", names.len()),
        match first {
            None => Ok(numbers),
            Some(error) => Err(anyhow::Error::from(error).context(format!(
                "{} of {} refused",
                names.len() - pods.len(),
                names.len()
            ))),
        },
    );
    checks.record("every pod has an address of its own", distinct(&pods));
    ensure!(!pods.is_empty(), "no pod was added");
    Ok(pods)
}

fn distinct(pods: &[Pod]) -> anyhow::Result<String> {
    let addresses: std::collections::BTreeSet<_> =
        pods.iter().map(|pod| pod.added.address).collect();
    ensure!(
        addresses.len() == pods.len(),
        "{} pods share {} addresses",
        pods.len(),
        addresses.len()
    );
    Ok(format!("{} pods, {} addresses", pods.len(), addresses.len()))
}

fn show_pools(lab: &Lab) -> anyhow::Result<()> {
    print::step("each node's ENIs and pool");
    let views = lab.nodes().iter().map(|node| node.inspect()).collect::<Result<Vec<_>, _>>()?;
    let rows = lab.nodes().iter().zip(&views);
    pools(rows.map(|(node, view)| (node.name.as_str(), node.instance_type.as_str(), Ok(view))));
    Ok(())
}

fn delete(lab: &Lab, pods: &[Pod], checks: &mut Checks) -> anyhow::Result<()> {
    print::step("deleting everything");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let deleting: Vec<_> =
            pods.iter().map(|pod| scope.spawn(|| lab.del_pod(&pod.name))).collect();
        deleting
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect()
    });
    let took: Result<Percentiles, _> = outcomes.into_iter().collect();
    checks.record(
        &format!("DEL of {} pods", pods.len()),
        took.context("a DEL was refused").map(|took| {
            format!("p50 {}, p99 {}", print::millis(took.at(50)), print::millis(took.at(99)))
        }),
    );
    Ok(())
}

fn settle(lab: &Lab, before: &[Before], checks: &mut Checks) -> anyhow::Result<()> {
    print::note(
        "waiting for the cooldown and for the pool to shrink (an ENI is kept for its first minute)",
    );
    for Before { node, ready, enis, .. } in before {
        let settled = node.wait_for("the pool after everything was deleted", SETTLE, |view| {
            idle(view)
                && view.pool.assigned == 0
                && view.pool.cooling == 0
                && view.enis.len() <= *enis
        });
        checks.record(
            &format!("{}: no allocation, no ENI is left", node.name),
            settled.map_err(Into::into).and_then(|view| {
                let now = lab.account.interfaces_of(&node.instance).len();
                ensure!(now == *enis, "EC2 has {now} ENIs of the node, {enis} before");
                Ok(format!(
                    "0 assigned, 0 cooling, {} warm; {}, as the targets want",
                    view.pool.total,
                    print::count(now, "ENI")
                ))
            }),
        );
        checks.record(
            &format!("{}: the network is as before the pods", node.name),
            unchanged(node, ready),
        );
    }
    Ok(())
}

/// Stops the daemons, has them clean the nodes, and ends the instances: nothing of veni is left anywhere.
fn uninstall(lab: &Lab, before: &[Before], checks: &mut Checks) -> anyhow::Result<()> {
    print::step("stopping veni-ipamd, and uninstalling");
    for Before { node, ready, bare, .. } in before {
        let stopped = node.stop_ipamd(Signal::SIGTERM)?;
        checks.record(
            &format!("{}: SIGTERM ends the daemon and detaches nothing", node.name),
            unchanged(node, ready).and_then(|seen| {
                ensure!(stopped.success(), "it ended with {stopped}");
                Ok(seen)
            }),
        );
        let cleaned = node.uninstall().map_err(anyhow::Error::from);
        let name = format!("{}: uninstalled, the network is as before veni", node.name);
        checks.record(&name, cleaned.and_then(|()| unchanged(node, bare)));
        lab.account
            .sim()
            .terminate_instance(lab.account.now(), &node.instance)
            .context("cannot end the instance")?;
    }
    let left = lab.account.sim().interfaces().count();
    checks.record(
        "no ENI is left in the account",
        if left == 0 { Ok("0 ENIs".to_owned()) } else { Err(anyhow::anyhow!("{left} ENIs")) },
    );
    Ok(())
}

fn unchanged(node: &Node, before: &Snapshot) -> anyhow::Result<String> {
    let now = Snapshot::take(&node.namespace)?;
    let difference = before.difference(&now);
    ensure!(difference.is_empty(), "it differs: {}", difference.to_string().replace('\n', "; "));
    Ok(now.summary())
}

fn idle(view: &veni_core::wire::inspect::View) -> bool {
    view.plan.running.is_empty() && view.pool.pending == 0 && view.pool.releasing == 0
}

fn keep_logs(lab: &Lab) {
    for node in lab.nodes() {
        let kept = std::env::temp_dir().join(format!("veni-lab-{}-{}.log", lab.name, node.name));
        if std::fs::copy(node.log(), &kept).is_ok() {
            print::note(format!("the log of {}'s daemon: {}", node.name, kept.display()));
        }
    }
}
