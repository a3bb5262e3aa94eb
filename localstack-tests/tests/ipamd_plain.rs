//! ipamd on plain LocalStack, which users have in CI: it grows, serves and shrinks there too, for all that
//! `plain.rs` lists. In a /16, where its random addresses hardly ever collide.

use std::{collections::BTreeSet, time::Duration};

use veni_localstack_tests::{Account, Daemon, LocalStack, Tier};

#[tokio::test]
async fn the_pool_grows_serves_and_shrinks() {
    let account = Account::new(LocalStack::shared(Tier::Plain)).await.unwrap();
    let subnet = account.subnet("10.0.0.0/16").await.unwrap();
    let node = account.run_instance("m5.xlarge", &subnet, &[]).await.unwrap();
    let vars = [("WARM_IP_TARGET", "5"), ("MINIMUM_IP_TARGET", "10")];
    let daemon = Daemon::start(account, node, &vars).await.unwrap();
    daemon.settle().await.unwrap();
    let wirings = daemon.add_all(0..30).await.unwrap();
    let addresses: BTreeSet<_> = wirings.iter().map(|w| w.address).collect();
    assert_eq!(addresses.len(), 30, "an address was given twice");
    daemon.settle().await.unwrap();
    daemon.audit().await.unwrap();
    for n in 0..30 {
        daemon.del(n).await.unwrap();
    }
    daemon.pass(Duration::from_secs(300));
    daemon
        .until("small again", |view| view.enis.len() == 1 && view.pool.total <= 10)
        .await
        .unwrap();
    daemon.settle().await.unwrap();
    daemon.audit().await.unwrap();
}
