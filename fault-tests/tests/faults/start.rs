//! The cloud does not answer when the daemon starts: it says so, lives, and serves what it can.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use veni_fault_tests::{
    Bench, Daemon,
    bench::eventually,
    checks, journal,
    plugin::{refusal, run},
};
use veni_lab::traffic::ping;
use veni_provider::{call::ACTIONS, sim::Fault};

/// CNI spec 1.0.0, "Error": 11, try again later.
const TRY_AGAIN: u64 = 11;
/// Past the age before which an allocation without a link is kept.
const OLD: Duration = Duration::from_secs(150);
const SOON: Duration = Duration::from_secs(5);

/// Neither instance metadata nor EC2 answers from now on, until `clear_faults`.
fn cut_off(bench: &Bench) {
    let mut sim = bench.lab.account.sim();
    for action in ACTIONS {
        sim.inject(Fault::unavailable(action));
    }
}

/// What `path` answers, with success or not.
fn get(bench: &Bench, path: &str) -> String {
    bench.node.get(path).unwrap_or_else(|error| error.to_string())
}

/// It waits for metadata and says so wherever it is asked, and lives.
fn waits(bench: &mut Bench, daemon: &mut Daemon) -> Result<()> {
    eventually(SOON, || {
        let text = get(bench, "/readyz");
        let told =
            ["503", "starting: waits for the instance's identity", "last error", "next step"];
        ensure!(told.iter().all(|words| text.contains(words)), "{text}");
        Ok(())
    })?;
    let health = get(bench, "/healthz");
    ensure!(health.starts_with("ok"), "{health}");
    let status = get(bench, "/v1/status");
    ensure!(status.contains("503") && status.contains("starting: waits for"), "{status}");
    let error = bench.view().err().context("a view of nothing")?.to_string();
    ensure!(error.contains("starting: waits for"), "{error}");
    let sandbox = bench.sandbox("early")?;
    let (code, message) = refusal(&run(&bench.node, "ADD", &sandbox, None, None)?)?;
    println!("{code}: {message}");
    ensure!(code == TRY_AGAIN && message.contains("starting: waits for"), "{code}: {message}");
    bench.del("early")?;
    ensure!(daemon.ended()?.is_none(), "it ended");
    Ok(())
}

fn fresh() -> Result<()> {
    let Some(mut bench) = Bench::without_daemon("cut-off")? else { return Ok(()) };
    cut_off(&bench);
    let mut daemon = Daemon::start(&bench.node, None)?;
    waits(&mut bench, &mut daemon)?;
    bench.lab.account.sim().clear_faults();
    daemon.wait_ready()?;
    bench.use_daemon(daemon);
    bench.add("a")?;
    bench.rest(1)?;
    let ready = get(&bench, "/readyz");
    ensure!(ready.starts_with("ready"), "{ready}");
    checks::sound(&bench)?;
    bench.del("a")?;
    bench.rest(0).map(drop)
}

fn with_a_journal() -> Result<()> {
    let Some(mut bench) = Bench::up("island")? else { return Ok(()) };
    bench.add("a")?;
    bench.rest(1)?;
    bench.stop(Signal::SIGKILL)?;
    cut_off(&bench);
    // Ready, with pods and a spare address out of the journal.
    bench.start()?;
    bench.add("b")?;
    bench.del("a")?;
    bench.add("c")?;
    bench.lab.account.sim().clear_faults();
    bench.rest(2)?;
    checks::sound(&bench)?;
    bench.del("b")?;
    bench.del("c")?;
    bench.rest(0).map(drop)
}

/// Who the instance is, is not known: pods live on, DELs succeed, and what they said is true once it is known.
fn without_whereabouts() -> Result<()> {
    let Some(mut bench) = Bench::up("nobody")? else { return Ok(()) };
    bench.add_all(&["a", "b"])?;
    bench.rest(2)?;
    bench.stop(Signal::SIGKILL)?;
    journal::grow_old(&bench.node, OLD)?;
    fs::remove_file(journal::path(&bench.node).with_extension("whereabouts"))?;
    cut_off(&bench);
    let mut daemon = Daemon::start(&bench.node, None)?;
    waits(&mut bench, &mut daemon)?;
    ping(&bench.pod("a")?.namespace, bench.pod("b")?.added.address)?;
    bench.del("a")?;
    bench.lab.account.sim().clear_faults();
    daemon.wait_ready()?;
    bench.use_daemon(daemon);
    bench.rest(1)?;
    checks::sound(&bench)?;
    bench.del("b")?;
    bench.rest(0).map(drop)
}

#[test]
fn a_fresh_daemon_without_a_cloud_lives_says_so_and_serves_once_it_can() {
    fresh().unwrap();
}

#[test]
fn a_daemon_with_a_journal_serves_from_it_without_a_cloud() {
    with_a_journal().unwrap();
}

#[test]
fn a_daemon_that_does_not_know_its_instance_waits_and_pods_live_on() {
    without_whereabouts().unwrap();
}
