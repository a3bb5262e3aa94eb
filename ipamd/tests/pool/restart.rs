//! Daemons that start over what another one left.

use super::*;

#[tokio::test(start_paused = true)]
async fn metadata_that_forgets_an_eni_drops_nothing() {
    use veni_provider::sim::{Distortion, DistortionKind};
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    assert_all_wired(&add_all(&node, 0..30).await);
    node.settle().await;
    for kind in [DistortionKind::Omit, DistortionKind::Short { addresses: 1 }] {
        let distortion = Distortion {
            instance: veni_ipamd::testing::INSTANCE.parse().unwrap(),
            eni: None,
            kind,
            for_millis: 180_000,
        };
        let now = Duration::from_millis(node.now_millis());
        node.sim().distort(now, distortion);
        tokio::time::sleep(Duration::from_secs(100)).await;
        node.kill().await;
        node.boot().await;
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(node.view().await.pool.assigned, 30);
        assert_all_wired(&add_all(&node, 0..30).await);
        node.assert_sound();
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_flushes_the_connections_of_addresses_that_cool() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    let address = node.add(0).await.address;
    node.add(1).await;
    node.del(0).await;
    node.kill().await;
    // As if it had died between the record and the flush.
    node.host.state().flushed.clear();
    node.boot().await;
    node.settle().await;
    assert_eq!(node.host.state().flushed, [address]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_serves_from_the_journal_while_metadata_does_not_answer() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.add(0).await;
    node.settle().await;
    node.kill().await;
    for path in ["metadata:instance-identity/document", "metadata:network/interfaces/macs"] {
        node.sim().inject(Fault::unavailable(path));
    }
    let began = Instant::now();
    node.boot().await;
    node.add(1).await;
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(node.view().await.node.vpc_cidrs, ["10.0.0.0/16".parse().unwrap()]);
    node.sim().clear_faults();
    node.settle().await;
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_start_without_metadata_holds_requests_for_a_moment_then_refuses_them_and_serves_once_it_can()
 {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    node.kill().await;
    // A fresh node's: nothing is known of it.
    node.store().erase();
    for action in veni_provider::call::ACTIONS {
        node.sim().inject(Fault::unavailable(action));
    }
    let began = Instant::now();
    node.boot().await;
    let requests = node.requests().unwrap();
    let status = requests.ask(Command::Status).await;
    assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
    let (add, del) = tokio::join!(node.begin_add(0), node.del(1));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for body in [status, add, del] {
        let Some(ReplyBody::Error(error)) = body else { panic!("{body:?}") };
        assert_eq!(error.code, ErrorCode::NotReady);
        assert!(
            error.message.starts_with("starting: waits for the instance's identity"),
            "{error:?}"
        );
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let held = tokio::spawn(node.begin_add(2));
    tokio::time::sleep(Duration::from_millis(1)).await;
    node.sim().clear_faults();
    // The next attempt may be later than the ADD's patience; one that comes then is served.
    match held.await.unwrap() {
        Some(ReplyBody::Wiring(_)) => {}
        Some(ReplyBody::Error(error)) => {
            assert_eq!(error.code, ErrorCode::NotReady);
            assert!(error.message.starts_with("starting: "), "{error:?}");
        }
        body => panic!("{body:?}"),
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    node.add(3).await;
    node.settle().await;
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_during_a_short_start_is_answered_in_order_once_it_is_over() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    let former = node.add(0).await.address;
    node.kill().await;
    node.store().erase();
    let identity = veni_provider::call::ACTION_IDENTITY;
    node.sim().inject(Fault::unavailable(identity).times(4));
    node.boot().await;
    // The former pod of this name is known from the kernel only once the start is over.
    let (again, del, new) = tokio::join!(node.begin_add(0), node.del(0), node.begin_add(0));
    let Some(ReplyBody::Wiring(again)) = again else { panic!("{again:?}") };
    assert_eq!(again.address, former);
    assert!(matches!(del, Some(ReplyBody::Released(ref r)) if r.released.len() == 1), "{del:?}");
    let Some(ReplyBody::Wiring(new)) = new else { panic!("{new:?}") };
    assert_ne!(new.address, former, "it cools down");
    assert_eq!(node.view().await.pool.assigned, 1);
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_the_address_of_a_pod_that_is_being_wired() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let requests = node.requests().unwrap();
    // In a mount namespace that the daemon does not see.
    let request =
        veni_core::wire::AddRequest { netns: "/nowhere/netns/pod0".into(), ..Node::request(0) };
    let wired = requests.ask(|reply| Command::Add(ConnectionId::next(), request, reply)).await;
    assert!(matches!(wired, Some(ReplyBody::Wiring(_))), "{wired:?}");
    node.kill().await;
    node.boot().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(node.view().await.pool.assigned, 1, "its plugin is at work still");
    tokio::time::sleep(Duration::from_secs(240)).await;
    assert_eq!(node.view().await.pool.assigned, 0, "nothing came of it");
}

#[tokio::test(start_paused = true)]
async fn a_pod_in_wiring_over_a_restart_is_looked_after_once_its_plugin_is_done() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let done = node.add(0).await;
    // At work through the restart; dead before it made the link; dead, and asked again; deleted after the restart.
    let (slow, dead, again, deleted) = (
        answered(&node, 1).await,
        answered(&node, 2).await,
        answered(&node, 3).await,
        answered(&node, 4).await,
    );
    tokio::time::sleep(Duration::from_secs(10)).await;
    node.kill().await;
    node.boot().await;
    let kept = |wiring: &Wiring| node.host.state().kept.contains(&wiring.host_ifindex);
    node.view().await;
    assert!(kept(&done), "its result is in the runtime's cache");
    assert!(![&slow, &dead, &again, &deleted].into_iter().any(|w| kept(w)), "plugins are at work");
    assert_eq!(node.add(3).await, again, "a repeated ADD is the same");
    node.view().await;
    assert!(kept(&again), "its second plugin is done");
    node.del(4).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(node.view().await.pool.assigned, 4);
    assert!(!kept(&slow), "it has its time");
    node.host.state().links.insert(slow.host_ifindex);
    tokio::time::sleep(Duration::from_secs(30)).await;
    node.view().await;
    assert!(kept(&slow), "it has made its link in time");
    assert!(!kept(&dead), "there is nothing to look after");
    tokio::time::sleep(Duration::from_secs(200)).await;
    // The link alone keeps the one, no cached result the other.
    assert_eq!(node.view().await.pool.assigned, 3, "the dead plugin's address is released");
    for (pod, wiring) in [(0, &done), (1, &slow), (3, &again)] {
        assert_eq!(node.add(pod).await, *wiring, "pod {pod}");
    }
    assert!(!kept(&deleted));
    node.assert_sound();
}
