//! Journals that are lost, damaged, or cannot be written.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_adds_and_loses_no_dels() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    node.add(0).await;
    node.add(1).await;
    node.store().set_full(true);
    match node.begin_add(2).await {
        Some(ReplyBody::Error(error)) => assert_eq!(error.code, ErrorCode::Storage),
        other => panic!("{other:?}"),
    }
    assert!(matches!(node.del(0).await, Some(ReplyBody::Released(_))));
    assert!(node.view().await.problems.iter().any(|p| p.kind == "storage"));
    node.store().set_full(false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    node.kill().await;
    node.boot().await;
    assert_eq!(node.view().await.pool.assigned, 1);
    node.add(2).await;
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_lost_journal_is_rebuilt_from_the_kernel() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    let before = add_all(&node, 0..20).await;
    node.settle().await;
    node.kill().await;
    node.store().erase();
    node.boot().await;
    let view = node.settle().await;
    assert_eq!(view.pool.assigned, 20);
    let after = add_all(&node, 100..110).await;
    let all: Vec<_> = before.into_iter().chain(after).collect();
    assert_all_wired(&all);
    node.assert_sound();
}

/// The journal is lost, and EC2's first answers are older than the newest address. Its pod is the only one on its ENI and
/// has the highest interface index.
#[tokio::test(start_paused = true)]
async fn a_lost_journal_and_a_stale_answer_cost_the_newest_pod_nothing() {
    let config =
        Config { targets: Targets { warm_ip: 1, ..Targets::default() }, ..Config::default() };
    let stale = |percent| Consistency {
        describe_delay_millis: 20_000,
        describe_stale_percent: percent,
        ..Consistency::default()
    };
    let mut spec = NodeSpec::instant(config);
    spec.sim.consistency = stale(0);
    let mut node = Node::start(spec).await;
    assert_all_wired(&add_all(&node, 0..16).await);
    node.settle().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    // It gets what is there, and the next address comes: the newest one's.
    node.add(16).await;
    node.settle().await;
    let newest = node.add(17).await;
    del_all(&node, 0..6).await;
    del_all(&node, 14..17).await;
    node.kill().await;
    node.store().erase();
    node.sim().set_consistency(stale(100));
    node.boot().await;
    let next = node.add(100).await;
    assert_ne!(next.host_ifindex, newest.host_ifindex, "the index is a living link's");
    let entry = |node: &Node| node.host.state().admitted.get(&newest.host_ifindex).cloned();
    assert_eq!(entry(&node).unwrap().address, newest.address);
    assert_eq!(node.view().await.pool.assigned, 9, "the newest one's address is not shown yet");
    tokio::time::sleep(Duration::from_secs(600)).await;
    let view = node.settle().await;
    let held = |node: &Node| {
        node.sim().interfaces().any(|i| i.secondary_addresses.contains(&newest.address))
    };
    assert!(held(&node), "the pod's address went back to the cloud");
    assert_eq!(view.pool.assigned, 10);
    assert_eq!(entry(&node).unwrap().attachment, Node::attachment(17));
    assert!(node.host.state().kept.contains(&newest.host_ifindex));
    assert_eq!(node.add(17).await.address, newest.address);
    let bodies = add_all(&node, 200..230).await;
    assert_all_wired(&bodies);
    assert!(
        !bodies.iter().any(|b| matches!(b, ReplyBody::Wiring(w) if w.address == newest.address))
    );
    del_all(&node, 200..230).await;
    tokio::time::sleep(Duration::from_secs(400)).await;
    node.settle().await;
    let describes = |node: &Node| node.sim().calls().of("DescribeNetworkInterfaces").calls;
    let before = describes(&node);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(describes(&node), before, "EC2 is asked for ever");
    assert!(held(&node));
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_goes_before_its_address_is_shown_does_not_keep_the_pool_from_shrinking() {
    let config =
        Config { targets: Targets { warm_ip: 1, ..Targets::default() }, ..Config::default() };
    let mut spec = NodeSpec::instant(config);
    spec.sim.consistency = Consistency {
        describe_delay_millis: 20_000,
        describe_stale_percent: 0,
        ..Consistency::default()
    };
    let mut node = Node::start(spec).await;
    assert_all_wired(&add_all(&node, 0..20).await);
    node.settle().await;
    node.kill().await;
    node.store().erase();
    let stale = Consistency {
        describe_delay_millis: 20_000,
        metadata_delay_millis: 20_000,
        ..Consistency::default()
    };
    node.sim().set_consistency(stale);
    node.boot().await;
    node.view().await;
    del_all(&node, 0..20).await;
    node.sim().set_consistency(Consistency::default());
    tokio::time::sleep(Duration::from_secs(900)).await;
    let view = node.settle().await;
    assert_eq!((view.pool.assigned, view.pool.available, view.enis.len()), (0, 1, 1));
    assert_nothing_leaked(&node).await;
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_a_lost_record_hid_thaws_its_own_address_only() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    for n in 0..3 {
        node.add(n).await;
    }
    let pod_1 =
        node.host.state().admitted.values().find(|a| a.attachment == Node::attachment(1)).cloned();
    let pod_1 = pod_1.unwrap();
    node.del(0).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let late = node.requests().unwrap();
    drop(late.del(Node::attachment(1), veni_core::wire::DelReason::PodDeleted).await);
    assert_eq!(node.view().await.pool.cooling, 2);
    // The kernel shows pod 1 still: its record was another's.
    node.host.state().admitted.insert(pod_1.host_ifindex, pod_1);
    node.kill().await;
    node.boot().await;
    let pool = node.view().await.pool;
    assert_eq!((pool.assigned, pool.cooling), (2, 1), "pod 0's address cools on");
}

#[tokio::test(start_paused = true)]
async fn whatever_record_is_lost_a_daemon_killed_at_once_leaves_the_next_one_to_ask_ec2() {
    let (_, records) = node_with_a_past().await;
    assert!(records > 50, "{records} records");
    for lost in 0..records {
        let (mut node, _) = node_with_a_past().await;
        node.store().damage(lost);
        node.boot().await;
        // It has heard of EC2 once, which is not enough, and what it has heard goes with it.
        node.view().await;
        node.kill().await;
        node.sim().inject(Fault::unavailable("DescribeNetworkInterfaces").times(u32::MAX));
        node.boot().await;
        match node.begin_add(100).await {
            Some(ReplyBody::Error(error)) => {
                assert!(
                    error.message.contains("part of the journal was lost"),
                    "{}",
                    error.message
                );
            }
            other => panic!("without record {lost}, before EC2 has answered: {other:?}"),
        }
        // A pod that is known is served.
        assert!(matches!(node.del(1).await, Some(ReplyBody::Released(_))));
        node.sim().clear_faults();
        node.settle().await;
        assert_all_wired(&add_all(&node, 101..103).await);
        node.assert_sound();
        tokio::time::sleep(Duration::from_secs(200)).await;
        node.settle().await;
        assert!(!node.store().recover().ledger.unconfirmed(), "record {lost}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_journal_is_not_served_from_by_the_next_daemon_before_ec2_is_heard_of_again() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    assert_all_wired(&add_all(&node, 0..3).await);
    node.settle().await;
    node.kill().await;
    node.store().erase();
    node.boot().await;
    node.view().await;
    node.kill().await;
    node.sim().inject(Fault::unavailable("DescribeNetworkInterfaces").times(u32::MAX));
    node.boot().await;
    let answer = node.begin_add(100).await;
    assert!(matches!(answer, Some(ReplyBody::Error(_))), "{answer:?}");
    let problems = node.view().await.problems;
    assert!(problems.iter().any(|p| p.kind == "journal"), "{problems:?}");
    node.sim().clear_faults();
    tokio::time::sleep(Duration::from_secs(200)).await;
    node.add(101).await;
    assert!(!node.store().recover().ledger.unconfirmed());
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_damaged_journal_is_confirmed_by_the_daemon_that_reads_it() {
    let (_, records) = node_with_a_past().await;
    for lost in 0..records {
        let (mut node, _) = node_with_a_past().await;
        node.store().damage(lost);
        node.boot().await;
        tokio::time::sleep(Duration::from_secs(300)).await;
        node.settle().await;
        assert!(!node.store().recover().ledger.unconfirmed(), "without record {lost}");
        node.assert_sound();
    }
}

/// The answer to a call that gives addresses back is lost, and EC2 gives the same ones to this node again.
#[tokio::test(start_paused = true)]
async fn an_address_that_went_and_came_back_is_handed_out() {
    let targets = Targets { warm_ip: 4, minimum_ip: 4, ..Targets::default() };
    let mut spec = NodeSpec::instant(Config { targets, ..Config::default() });
    // Nothing else is to be had than what was given back.
    spec.subnet = "10.0.0.0/28";
    let node = Node::start(spec).await;
    assert_all_wired(&add_all(&node, 0..6).await);
    node.settle().await;
    node.sim().inject(Fault::lost_answer("UnassignPrivateIpAddresses"));
    del_all(&node, 0..6).await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    node.settle().await;
    assert_all_wired(&add_all(&node, 10..16).await);
    tokio::time::sleep(Duration::from_secs(100)).await;
    let view = node.settle().await;
    let free = node.store().recover().ledger.counts().free;
    assert_eq!((view.pool.available, free), (4, 4), "{:?}", view.pool);
    node.assert_sound();
}
