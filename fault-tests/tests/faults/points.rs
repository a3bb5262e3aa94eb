//! The daemon dies at each of its fault points, in each way, in the middle of ADDs, DELs, growth and shrinking.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use veni_fault_tests::{Bench, Death, bench::in_lanes, checks};
use veni_ipamd::fault::POINTS;

/// One operation of the workload, with what the pool comes to after it: pods, addresses, ENIs.
struct Operation {
    add: &'static [&'static str],
    del: &'static [&'static str],
    then: (u32, u32, usize),
}

const fn add(pods: &'static [&'static str], then: (u32, u32, usize)) -> Operation {
    Operation { add: pods, del: &[], then }
}

const fn del(pods: &'static [&'static str], then: (u32, u32, usize)) -> Operation {
    Operation { add: &[], del: pods, then }
}

/// Two pods stay all the time on the primary ENI, which has a third address. Of two pods at once one must wait for a
/// new ENI; one more pod needs one more address on it; without that pod the address goes back.
const GROW: [Operation; 3] =
    [add(&["c", "d"], (4, 5, 2)), add(&["e"], (5, 6, 2)), del(&["e"], (4, 5, 2))];
/// Later the ENI is old enough to go.
const SHRINK: [Operation; 2] = [del(&["c"], (3, 4, 2)), del(&["d"], (2, 3, 1))];
const GROW_STEPS: [&str; 5] = ["create", "attach", "let", "assign", "give"];
const SHRINK_STEPS: [&str; 3] = ["give", "detach", "delete"];
/// Labs side by side: most of a round is waiting for EC2's detachment to settle.
const LANES: usize = 4;
/// Past the age before which an ENI is kept.
const OLD: Duration = Duration::from_secs(120);

/// The faults for the first or second half of the workload: each point as often as it is passed there.
fn faults(step_count: usize, requests: bool) -> Vec<String> {
    let passed = |point: &str| match point.split('-').next() {
        // The first of two ADDs has its address at once, the second waits.
        Some("add") if requests => 2,
        Some("del") if requests => 1,
        Some("step") => step_count,
        // Those of the journal's compaction have a test of their own.
        _ => 0,
    };
    let numbered = |point: &&'static str| {
        let point = *point;
        (1..=passed(point)).map(move |nth| (point, nth))
    };
    POINTS.iter().flat_map(numbered).map(|(point, nth)| format!("{point}|{nth}")).collect()
}

fn in_words(fault: &str, death: Death) -> String {
    fault.replace('|', &format!(":{}:", death.name()))
}

/// Does an operation; whatever of it failed because the daemon died is repeated once it is back.
fn operate(bench: &mut Bench, operation: &Operation, death: Death) -> Result<bool> {
    let mut died = false;
    loop {
        let outcome = attempt(bench, operation);
        let Err(error) = outcome else { return Ok(died) };
        let ended = bench.daemon()?.wait_end(Duration::from_secs(2));
        let status = ended.with_context(|| format!("with a living daemon: {error:#}"))?;
        ensure!(!died, "the daemon died twice: {status}");
        ensure!(death.explains(status), "the daemon died by itself: {status}");
        died = true;
        bench.start()?;
    }
}

fn attempt(bench: &mut Bench, operation: &Operation) -> Result<()> {
    let missing: Vec<_> =
        operation.add.iter().copied().filter(|pod| !bench.pods().contains_key(*pod)).collect();
    bench.add_all(&missing)?;
    for pod in operation.del {
        if bench.pods().contains_key(*pod) {
            bench.del(pod)?;
        }
    }
    let (assigned, total, enis) = operation.then;
    bench.settle(assigned, total, enis)?;
    Ok(())
}

/// Half of the workload. With a fault the daemon must die, and be whole when it is back.
fn half(
    bench: &mut Bench,
    operations: &[Operation],
    fault: Option<&str>,
    death: Death,
) -> Result<()> {
    let mut died = false;
    for operation in operations {
        let now = operate(bench, operation, death)?;
        if now {
            checks::sound(bench)?;
        }
        died |= now;
    }
    if fault.is_some() && !died {
        let ended =
            bench.daemon()?.wait_end(Duration::from_secs(1)).context("the point was not passed")?;
        ensure!(death.explains(ended), "the daemon died by itself: {ended}");
        bench.start()?;
        checks::sound(bench)?;
    }
    Ok(())
}

/// Which cloud calls were started since the log had `from` bytes, by their first word.
fn steps_since(bench: &Bench, from: usize) -> Result<Vec<String>> {
    let log = std::fs::read_to_string(bench.node.log())?;
    let started = log[from..].lines().filter(|line| line.contains("cloud call started"));
    let word = |line: &str| {
        let step = line.split("\"step\":\"").nth(1)?;
        Some(step.split(' ').next()?.to_owned())
    };
    Ok(started.filter_map(word).collect())
}

fn log_len(bench: &Bench) -> Result<usize> {
    Ok(usize::try_from(std::fs::metadata(bench.node.log())?.len())?)
}

fn survives(death: Death) -> Result<()> {
    let growth = faults(GROW_STEPS.len(), true);
    let shrinking = faults(SHRINK_STEPS.len(), false);
    println!(
        "{}: {} faults in growth, {} in shrinking",
        death.name(),
        growth.len(),
        shrinking.len()
    );
    let of_lane = |faults: &[String], lane: usize| {
        faults.iter().skip(lane).step_by(LANES).cloned().collect::<Vec<_>>()
    };
    in_lanes(LANES, |lane| {
        lane_survives(death, lane, of_lane(&growth, lane), of_lane(&shrinking, lane))
    })
}

fn lane_survives(
    death: Death,
    lane: usize,
    mut growth: Vec<String>,
    mut shrinking: Vec<String>,
) -> Result<()> {
    let Some(mut bench) = Bench::up(&format!("{}-{lane}", death.name()))? else { return Ok(()) };
    bench.add_all(&["a", "b"])?;
    bench.settle(2, 3, 1)?;
    if lane == 0 {
        // A round without a fault: the workload takes just these steps, so each fault below is passed.
        let from = log_len(&bench)?;
        half(&mut bench, &GROW, None, death)?;
        assert_eq!(steps_since(&bench, from)?, GROW_STEPS);
        bench.grow_old(OLD, None)?;
        let from = log_len(&bench)?;
        half(&mut bench, &SHRINK, None, death)?;
        assert_eq!(steps_since(&bench, from)?, SHRINK_STEPS);
        checks::sound(&bench)?;
    }
    while !growth.is_empty() || !shrinking.is_empty() {
        let fault = growth.pop().map(|fault| in_words(&fault, death));
        if let Some(fault) = &fault {
            bench.stop(Signal::SIGTERM)?;
            bench.start_with(fault)?;
        }
        half(&mut bench, &GROW, fault.as_deref(), death).with_context(|| format!("{fault:?}"))?;
        let fault = shrinking.pop().map(|fault| in_words(&fault, death));
        bench.grow_old(OLD, fault.as_deref())?;
        half(&mut bench, &SHRINK, fault.as_deref(), death).with_context(|| format!("{fault:?}"))?;
    }
    bench.del("a")?;
    bench.del("b")?;
    bench.settle(0, 1, 1)?;
    checks::clean(&bench)
}

#[test]
fn killed_at_every_point_the_daemon_loses_and_leaks_nothing() {
    survives(Death::Kill).unwrap();
}

#[test]
fn panicking_at_every_point_the_daemon_loses_and_leaks_nothing() {
    survives(Death::Panic).unwrap();
}

#[test]
fn terminated_at_every_point_the_daemon_loses_and_leaks_nothing() {
    survives(Death::Term).unwrap();
}
