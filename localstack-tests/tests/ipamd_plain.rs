//! ipamd on plain LocalStack, which users have in CI: it grows, serves and shrinks there too, for all that
//! `plain.rs` lists.

use std::{collections::BTreeSet, time::Duration};

use anyhow::ensure;
use veni_localstack_tests::{Account, Daemon, LocalStack, Tier};

/// LocalStack chooses addresses at random: of 50 out of a /16, two are the same once in 50 runs. That is not to be
/// held against the daemon, nor to be hidden when it is not the case.
const ATTEMPTS: u32 = 4;

#[tokio::test]
async fn the_pool_grows_serves_and_shrinks() {
    for attempt in 1..=ATTEMPTS {
        let account = Account::new(LocalStack::shared(Tier::Plain)).await.unwrap();
        let subnet = account.subnet("10.0.0.0/16").await.unwrap();
        let node = account.run_instance("m5.xlarge", &subnet, &[]).await.unwrap();
        let vars = [("WARM_IP_TARGET", "5"), ("MINIMUM_IP_TARGET", "10")];
        let daemon = Daemon::start(account, node, &vars).await.unwrap();
        let Err(error) = grow_and_shrink(&daemon).await else { return };
        let twice = given_twice(&daemon).await;
        assert!(!twice.is_empty() && attempt < ATTEMPTS, "attempt {attempt}: {error:#}");
        println!("attempt {attempt}: LocalStack gave {twice:?} twice: {error:#}");
    }
}

async fn grow_and_shrink(daemon: &Daemon) -> anyhow::Result<()> {
    daemon.settle().await?;
    let wirings = daemon.add_all(0..30).await?;
    let addresses: BTreeSet<_> = wirings.iter().map(|w| w.address).collect();
    ensure!(addresses.len() == 30, "an address was given to two pods: {wirings:?}");
    daemon.settle().await?;
    ensure!(daemon.audit().await?.len() == 3, "30 pods and 5 spare addresses need 3 ENIs");
    let twice = given_twice(daemon).await;
    ensure!(twice.is_empty(), "given twice: {twice:?}");
    for n in 0..30 {
        daemon.del(n).await?;
    }
    daemon.pass(Duration::from_secs(300));
    daemon.until("small again", |view| view.enis.len() == 1 && view.pool.total <= 10).await?;
    daemon.settle().await?;
    daemon.audit().await?;
    Ok(())
}

/// Addresses that several of the node's ENIs hold, as LocalStack has it.
async fn given_twice(daemon: &Daemon) -> Vec<std::net::Ipv4Addr> {
    let attached = daemon.account().attached_to(&daemon.node().instance).await.unwrap_or_default();
    let mut seen = BTreeSet::new();
    let own = attached.iter().map(|eni| eni.primary_address);
    let all = own.chain(attached.iter().flat_map(|eni| eni.secondary_addresses.iter().copied()));
    all.filter(|address| !seen.insert(*address)).collect()
}
