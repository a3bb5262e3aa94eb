//! EC2 fails before and after the effect of every call, and instance metadata forgets an ENI.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use veni_fault_tests::{Bench, bench::eventually, checks, journal};
use veni_lab::traffic::generator::Generator;
use veni_provider::{
    call::ACTION_METADATA_INTERFACES,
    sim::{Distortion, DistortionKind, Fault},
};

/// Past the age before which an ENI is kept.
const OLD: Duration = Duration::from_secs(120);
/// The calls of EC2 that the daemon makes.
const ACTIONS: [&str; 8] = [
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
    "DescribeNetworkInterfaces",
];

/// The first call of each action fails as `fault` makes it. An action that an error before has made needless comes in
/// the next round.
fn survives(test: &str, fault: fn(&str) -> Fault) -> Result<()> {
    let Some(mut bench) = Bench::up(test)? else { return Ok(()) };
    bench.add_all(&["a", "b"])?;
    bench.rest(2)?;
    let mut actions: Vec<_> = ACTIONS.to_vec();
    let mut rounds = 0;
    while !actions.is_empty() {
        ensure!(rounds < 5, "not called: {actions:?}");
        let inject =
            |action: &'static str| (action, bench.lab.account.sim().inject(fault(action).times(1)));
        let faults: Vec<_> = actions.into_iter().map(inject).collect();
        round(&mut bench)?;
        let mut sim = bench.lab.account.sim();
        actions = faults.into_iter().filter(|(_, id)| sim.withdraw(*id)).map(|(a, _)| a).collect();
        rounds += 1;
    }
    println!("{test}: {rounds} rounds");
    bench.del("a")?;
    bench.del("b")?;
    bench.rest(0)?;
    checks::sound(&bench)
}

/// Grows and shrinks.
fn round(bench: &mut Bench) -> Result<()> {
    bench.add_all(&["c", "d"])?;
    bench.rest(4)?;
    checks::sound(bench)?;
    bench.add("e")?;
    bench.rest(5)?;
    checks::sound(bench)?;
    for pod in ["e", "c", "d"] {
        bench.del(pod)?;
        bench.rest(u32::try_from(bench.pods().len())?)?;
    }
    bench.grow_old(OLD, None)?;
    bench.rest(2)?;
    checks::sound(bench)
}

/// A minute in which metadata does not list the ENI of a running pod: through restarts, one of them without a
/// journal, and until the daemon has compared.
fn forgetful_metadata() -> Result<()> {
    let Some(mut bench) = Bench::up("metadata")? else { return Ok(()) };
    bench.add_all(&["a", "b"])?;
    bench.settle(2, 3, 1)?;
    bench.add_all(&["c", "d"])?;
    bench.settle(4, 5, 2)?;
    let secondary = bench.view()?.enis.into_iter().find(|eni| !eni.primary).and_then(|e| e.id);
    let traffic = Generator::ping_flood(&bench.pod("d")?.namespace, bench.pod("a")?.added.address)?;
    let distortion = Distortion {
        instance: bench.node.instance.clone(),
        eni: secondary,
        kind: DistortionKind::Omit,
        for_millis: 75_000,
    };
    let now = bench.lab.account.now();
    bench.lab.account.sim().distort(now, distortion);

    bench.stop(Signal::SIGKILL)?;
    bench.start()?;
    checks::sound(&bench)?;
    bench.stop(Signal::SIGKILL)?;
    std::fs::remove_file(journal::path(&bench.node))?;
    bench.start()?;
    checks::sound(&bench)?;
    bench.add("e")?;
    bench.rest(5)?;
    checks::sound(&bench)?;

    let compared = || {
        let sim = bench.lab.account.sim();
        sim.call_log().filter(|call| call.action == ACTION_METADATA_INTERFACES).count()
    };
    let before = compared();
    eventually(Duration::from_secs(70), || {
        ensure!(compared() > before, "metadata was not compared");
        Ok(())
    })?;
    bench.rest(5)?;
    checks::sound(&bench)?;
    let counts = traffic.stop();
    println!("{counts}");
    counts.all_answered()?;
    for pod in ["a", "b", "c", "d", "e"] {
        bench.del(pod)?;
    }
    bench.grow_old(OLD, None)?;
    bench.rest(0)?;
    checks::sound(&bench)
}

#[test]
fn an_error_before_the_effect_of_any_call_is_overcome() {
    survives("before", Fault::unavailable).unwrap();
}

#[test]
fn a_lost_answer_of_any_call_is_overcome() {
    survives("after", Fault::lost_answer).unwrap();
}

#[test]
fn metadata_that_forgets_an_eni_for_a_minute_changes_nothing() {
    forgetful_metadata().unwrap();
}
