//! Traffic through ends of the daemon that `veni-lab`'s own tests do not have: a panic, a journal that is lost, a
//! rolling update. (`lab/tests/restart.rs` has SIGKILL and SIGTERM.)

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use veni_fault_tests::{Bench, Daemon, checks, journal};
use veni_lab::{
    traffic::{Server, generator::Generator},
    vpc::{Drops, INTERNET_HOST},
};

const PORT: u16 = 8080;
/// New connections a second.
const RATE: u32 = 1000;

/// Pods on both ENIs; pings and new connections between them and to the internet while the daemon ends by `end`.
fn nothing_is_lost(test: &str, end: impl FnOnce(&mut Bench) -> Result<()>) -> Result<()> {
    let Some(mut bench) = Bench::up(test)? else { return Ok(()) };
    bench.add_all(&["a", "b"])?;
    bench.rest(2)?;
    bench.add_all(&["c", "d"])?;
    bench.rest(4)?;
    let (from, to) = (bench.pod("d")?.clone(), bench.pod("a")?.clone());
    let servers =
        [Server::start(&to.namespace, PORT)?, Server::start(&bench.lab.vpc.internet, PORT)?];
    let peer = SocketAddrV4::new(to.added.address, PORT);
    let outside = SocketAddrV4::new(INTERNET_HOST, PORT);
    let connections = Generator::connections(&from.namespace, peer, RATE)?;
    let others = [
        ("pings", Generator::ping_flood(&from.namespace, to.added.address)?),
        ("pings to the internet", Generator::ping_flood(&from.namespace, INTERNET_HOST)?),
        ("SNATed connections", Generator::connections(&from.namespace, outside, RATE / 10)?),
    ];
    connections.wait_for(300);
    end(&mut bench)?;
    connections.wait_for(500);
    let mut lost = Vec::new();
    for (what, generator) in others.into_iter().chain([("connections", connections)]) {
        let counts = generator.stop();
        println!("{test}: {what}: {counts}");
        lost.extend(counts.all_answered().is_err().then(|| format!("{what}: {counts}")));
    }
    drop(servers);
    let (fabric, mut filter) = (bench.lab.vpc.drops()?, bench.view()?.drops);
    // What a new pod's kernel says by itself (router solicitations).
    filter.remove("ipv6");
    ensure!(
        lost.is_empty() && fabric == Drops::default() && filter.values().all(|count| *count == 0),
        "lost: {lost:?}; EC2 dropped: {fabric:?}; the filter dropped: {filter:?}"
    );
    bench.rest(u32::try_from(bench.pods().len())?)?;
    checks::sound(&bench)
}

#[test]
fn traffic_loses_nothing_through_a_panic() {
    nothing_is_lost("panic-traffic", |bench| {
        bench.stop(Signal::SIGTERM)?;
        bench.start_with("add-after-filter:panic")?;
        ensure!(bench.add("e").is_err(), "the daemon did not panic");
        bench.daemon()?.wait_end(std::time::Duration::from_secs(2))?;
        bench.start()?;
        bench.add("e").map(drop)
    })
    .unwrap();
}

#[test]
fn traffic_loses_nothing_through_a_lost_journal() {
    nothing_is_lost("lost-traffic", |bench| {
        bench.stop(Signal::SIGKILL)?;
        std::fs::remove_file(journal::path(&bench.node))?;
        bench.start()
    })
    .unwrap();
}

#[test]
fn traffic_loses_nothing_through_a_rolling_update() {
    nothing_is_lost("roll-traffic", |bench| {
        let mut next = Daemon::start(&bench.node, None)?;
        bench.stop(Signal::SIGTERM)?;
        next.wait_ready()?;
        bench.use_daemon(next);
        Ok(())
    })
    .unwrap();
}
