//! Two daemons on one node, as in a rolling update.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use veni_fault_tests::{Bench, Daemon, bench::eventually, checks};
use veni_lab::runtime::Sandbox;

/// Beyond this a runtime would have noticed the daemon's absence.
const TAKE_OVER: Duration = Duration::from_secs(1);

/// What a runtime did in a loop.
#[derive(Debug, Default)]
struct Requests {
    done: AtomicU32,
    repeated: AtomicU32,
}

/// ADD and DEL in turns until `stop`; what fails is repeated once, when the next daemon may have taken over.
fn add_and_del(
    bench: &Bench,
    sandbox: &Sandbox,
    requests: &Requests,
    stop: &AtomicBool,
) -> Result<()> {
    let runtime = &bench.node.runtime;
    while !stop.load(Ordering::Acquire) {
        if runtime.add(sandbox).is_err() {
            requests.repeated.fetch_add(1, Ordering::Relaxed);
            thread::sleep(TAKE_OVER);
            runtime.add(sandbox).context("ADD failed twice")?;
        }
        runtime.del(sandbox).context("DEL")?;
        requests.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn takes_over(first_ends_by: Signal, test: &str) -> Result<()> {
    let Some(mut bench) = Bench::up(test)? else { return Ok(()) };
    bench.add("a")?;
    let sandbox = bench.sandbox("c")?;
    let mut second = Daemon::start(&bench.node, None)?;
    eventually(Duration::from_secs(5), || {
        let log = std::fs::read_to_string(bench.node.log())?;
        ensure!(log.contains("another ipamd serves this node"), "the second does not wait");
        Ok(())
    })?;

    let (requests, stop) = (Requests::default(), AtomicBool::new(false));
    let took = thread::scope(|scope| -> Result<Duration> {
        let client = scope.spawn(|| add_and_del(&bench, &sandbox, &requests, &stop));
        let more = |n| {
            let until = requests.done.load(Ordering::Relaxed) + n;
            eventually(Duration::from_secs(20), || {
                let done = requests.done.load(Ordering::Relaxed);
                ensure!(client.is_finished() || done >= until, "{requests:?}");
                Ok(())
            })
        };
        let outcome = (|| {
            more(5)?;
            // Both live, one serves.
            ensure!(second.ended()?.is_none(), "the second did not wait");
            let first = bench.view()?.daemon.pid;
            ensure!(first != second.pid(), "the second serves beside the first");
            let pid = nix::unistd::Pid::from_raw(i32::try_from(first)?);
            nix::sys::signal::kill(pid, first_ends_by)?;
            let end = Instant::now();
            second.wait_ready()?;
            let took = end.elapsed();
            more(5)?;
            Ok(took)
        })();
        stop.store(true, Ordering::Release);
        client.join().unwrap()?;
        outcome
    })?;
    println!("{first_ends_by}: the second serves after {took:?}; {requests:?}");
    ensure!(took < TAKE_OVER, "the second serves only after {took:?}");
    bench.daemon()?.wait_end(Duration::from_secs(1))?;
    bench.use_daemon(second);
    bench.del("c")?;
    bench.settle(1, 2, 1)?;
    checks::sound(&bench)?;
    bench.del("a")?;
    bench.settle(0, 1, 1)?;
    checks::clean(&bench)
}

#[test]
fn a_second_daemon_takes_over_from_a_terminated_one() {
    takes_over(Signal::SIGTERM, "two-term").unwrap();
}

#[test]
fn a_second_daemon_takes_over_from_a_killed_one() {
    takes_over(Signal::SIGKILL, "two-kill").unwrap();
}
