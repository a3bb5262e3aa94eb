//! ADDs, DELs, and pods that go without one.

use veni_core::wire::DelReason;

use super::*;

#[tokio::test(start_paused = true)]
async fn two_adds_for_one_container_at_once_get_one_address() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let (first, second) = tokio::join!(node.begin_add(7), node.begin_add(7));
    assert_eq!(first, second);
    assert_eq!(node.view().await.pool.assigned, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_second_add_does_not_free_the_first_ones_hold() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let requests = node.requests().unwrap();
    let [first, second] = [ConnectionId::next(), ConnectionId::next()];
    let wired = requests.ask(|reply| Command::Add(first, Node::request(0), reply)).await;
    assert!(matches!(wired, Some(ReplyBody::Wiring(_))), "{wired:?}");
    // The same ADD again, whose plugin dies behind the first one, which is at work still.
    let (reply, answer) = tokio::sync::oneshot::channel();
    requests.tell(Command::Add(second, Node::request(0), reply)).await;
    drop(answer);
    requests.tell(Command::AddClosed(second, Node::attachment(0))).await;
    let check = tokio::spawn({
        let requests = requests.clone();
        async move { requests.ask(|reply| Command::Check(Node::attachment(0), reply)).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!check.is_finished(), "the attachment was let go while its plugin worked");
    requests.tell(Command::AddClosed(first, Node::attachment(0))).await;
    assert!(matches!(check.await.unwrap(), Some(ReplyBody::Wiring(_))));
    assert_eq!(node.view().await.pool.assigned, 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_vanished_is_kept_while_the_runtimes_results_cannot_be_read() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.add(0).await;
    node.add(1).await;
    let results = node.runtime().cache_dir().join("results");
    node.vanish(0);
    let aside = node.runtime().cache_dir().join("aside");
    std::fs::rename(&results, &aside).unwrap();
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(node.view().await.pool.assigned, 2, "no evidence is no evidence of absence");
    std::fs::rename(&aside, &results).unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(node.view().await.pool.assigned, 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_released_while_its_link_is_there_keeps_its_address_from_others() {
    let config = Config {
        targets: Targets { warm_ip: 1, ..Targets::default() },
        cooldown: Duration::ZERO,
        ..Config::default()
    };
    let node = Node::start(NodeSpec::instant(config)).await;
    let wiring = node.add(0).await;
    node.settle().await;
    let requests = node.requests().unwrap();
    let attachment = Node::attachment(0);
    requests.del(attachment, DelReason::PodDeleted).await.unwrap();
    for n in 1..4 {
        assert_ne!(node.add(n).await.address, wiring.address, "its link may send from it");
    }
    node.host.cut(wiring.host_ifindex);
    node.settle().await;
    let addresses = [node.add(4).await.address, node.add(5).await.address];
    assert!(addresses.contains(&wiring.address), "{addresses:?}");
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_vanished_without_a_del_is_collected() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    for n in 0..3 {
        node.add(n).await;
    }
    node.vanish(1);
    let requests = node.requests().unwrap();
    let released = requests.ask(|reply| Command::Gc(Node::gc([0, 2]), reply)).await;
    let Some(ReplyBody::Released(released)) = released else { panic!("{released:?}") };
    let collected: Vec<_> = released.released.into_iter().map(|r| r.attachment).collect();
    assert_eq!(collected, [Node::attachment(1)]);
    assert_eq!(node.view().await.pool.assigned, 2);
}

#[tokio::test(start_paused = true)]
async fn adds_whose_plugins_have_died_are_no_demand() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    assert_all_wired(&add_all(&node, 0..10).await);
    for action in ["CreateNetworkInterface", "AssignPrivateIpAddresses"] {
        node.sim().inject(Fault::deny(action).times(u32::MAX));
    }
    let living = tokio::spawn(node.begin_add(20));
    tokio::time::sleep(Duration::from_millis(10)).await;
    let requests = node.requests().unwrap();
    let mut answers = Vec::new();
    for pod in 100..140 {
        let (reply, answer) = tokio::sync::oneshot::channel();
        requests.tell(Command::Add(ConnectionId::next(), Node::request(pod), reply)).await;
        answers.push(answer);
    }
    assert_eq!(node.view().await.pool.waiting, 41);
    drop(answers);
    // What wakes the daemon next finds them gone.
    node.view().await;
    assert_eq!(node.view().await.pool.waiting, 1);
    drop(living.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_a_plugin_holds_is_not_released_as_long_as_it_is_there() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    let (connection, request) = (ConnectionId::next(), Node::request(0));
    let (requests, attachment) = (node.requests().unwrap(), request.attachment.clone());
    let body = requests.ask(|reply| Command::Add(connection, request, reply)).await;
    let Some(ReplyBody::Wiring(wiring)) = body else { panic!("{body:?}") };
    // It is stopped: no link, no result.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(node.view().await.pool.assigned, 1, "its address is kept for it");
    let del = tokio::spawn({
        let (requests, attachment) = (requests.clone(), attachment.clone());
        async move { requests.del(attachment, DelReason::PodDeleted).await }
    });
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!del.is_finished(), "DEL stands behind the ADD");
    node.host.state().links.insert(wiring.host_ifindex);
    requests.tell(Command::AddClosed(connection, attachment)).await;
    assert!(matches!(del.await.unwrap(), Some(ReplyBody::Released(_))));
    assert_eq!(node.view().await.pool.assigned, 0);
}

#[tokio::test(start_paused = true)]
async fn a_second_add_that_fails_takes_nothing_from_the_pod_that_the_first_has_wired() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    let wiring = node.add(0).await;
    let requests = node.requests().unwrap();
    let failed = |pod| requests.del(Node::attachment(pod), DelReason::AddFailed);
    assert_eq!(node.add(0).await, wiring);
    assert!(matches!(failed(0).await, Some(ReplyBody::Released(_))));
    assert_eq!(node.view().await.pool.assigned, 1, "the pod runs");
    assert!(node.host.state().admitted.contains_key(&wiring.host_ifindex));
    // One that made the allocation, and has undone its link.
    let (connection, request) = (ConnectionId::next(), Node::request(1));
    let body = requests.ask(|reply| Command::Add(connection, request, reply)).await;
    assert!(matches!(body, Some(ReplyBody::Wiring(_))));
    requests.tell(Command::AddClosed(connection, Node::attachment(1))).await;
    assert!(matches!(failed(1).await, Some(ReplyBody::Released(_))));
    assert_eq!(node.view().await.pool.assigned, 1, "nothing of the failed ADD is left");
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn gc_takes_nothing_from_a_plugin_that_the_former_daemon_answered() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    answered(&node, 0).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    node.kill().await;
    node.boot().await;
    // The runtime has no result of an ADD that is under way.
    let gc = || async {
        let requests = node.requests().unwrap();
        requests.ask(|reply| Command::Gc(Node::gc([]), reply)).await.unwrap();
        node.view().await.pool.assigned
    };
    assert_eq!(gc().await, 1, "its plugin wires the pod still");
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(gc().await, 1);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(gc().await, 0, "a plugin past its time wires nothing");
}
