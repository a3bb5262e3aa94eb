//! The pool of a node over the simulator: what it asks of EC2, how fast, and what people are told.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what does not hold")]

use std::time::Duration;

use tokio::time::Instant;
use veni_core::{
    config::{Config, Targets},
    wire::{ErrorCode, ReplyBody, Wiring},
};
use veni_ipamd::{
    owner::{Command, ConnectionId},
    testing::{ACTIONS, Node, NodeSpec},
};
use veni_provider::{
    ErrorClass,
    call::Failure,
    sim::{Consistency, Fault, Latency},
};

fn by_addresses() -> Config {
    Config {
        targets: Targets { warm_ip: 5, minimum_ip: 10, ..Targets::default() },
        ..Config::default()
    }
}

async fn add_all(node: &Node, pods: std::ops::Range<u32>) -> Vec<ReplyBody> {
    let adds: Vec<_> = pods.map(|n| tokio::spawn(node.begin_add(n))).collect();
    let mut bodies = Vec::new();
    for add in adds {
        bodies.push(add.await.unwrap().expect("the daemon answers"));
    }
    bodies
}

async fn del_all(node: &Node, pods: std::ops::Range<u32>) {
    for n in pods {
        node.del(n).await.expect("the daemon answers");
    }
}

fn assert_all_wired(bodies: &[ReplyBody]) {
    let refused: Vec<_> = bodies.iter().filter(|b| !matches!(b, ReplyBody::Wiring(_))).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let mut addresses: Vec<_> = bodies
        .iter()
        .map(|body| match body {
            ReplyBody::Wiring(wiring) => wiring.address,
            _ => unreachable!("checked above"),
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), bodies.len(), "an address was given twice");
}

/// 30 up, 30 down, cooldown passed, 56 up: EC2 calls and idle addresses at each step.
async fn trace(config: Config) -> (u64, [u32; 4]) {
    let node = Node::start(NodeSpec::instant(config)).await;
    let start = node.settle().await.pool;
    let before = node.sim().calls().ec2();
    assert_all_wired(&add_all(&node, 0..30).await);
    let up = node.settle().await.pool;
    tokio::time::sleep(Duration::from_secs(90)).await;
    del_all(&node, 0..30).await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    let down = node.settle().await.pool;
    assert_all_wired(&add_all(&node, 100..156).await);
    let full = node.settle_full().await.pool;
    node.assert_sound();
    let calls = node.sim().calls().ec2() - before;
    (calls, [start, up, down, full].map(|pool| pool.total - pool.assigned))
}

#[tokio::test(start_paused = true)]
async fn the_trace_costs_at_most_six_tenths_of_the_peers_calls_by_default() {
    let (calls, idle) = trace(Config::default()).await;
    println!("default: {calls} EC2 calls (peer 46), idle addresses {idle:?}");
    assert!(calls <= 27, "{calls} calls");
    assert_eq!(idle, [14, 26, 14, 0]);
}

#[tokio::test(start_paused = true)]
async fn the_trace_costs_at_most_six_tenths_of_the_peers_calls_by_addresses() {
    let (calls, idle) = trace(by_addresses()).await;
    println!(
        "WARM_IP_TARGET=5 MINIMUM_IP_TARGET=10: {calls} EC2 calls (peer 35), idle addresses {idle:?}"
    );
    assert!(calls <= 21, "{calls} calls");
    assert_eq!(idle, [10, 5, 10, 0]);
}

#[tokio::test(start_paused = true)]
async fn bursts_get_their_addresses_as_fast_as_the_cloud_can_make_enis() {
    for (latency, bound) in [(Latency::fixed(0, 0), 500), (Latency::fixed(100, 2000), 2640)] {
        let mut spec = NodeSpec::instant(by_addresses());
        spec.sim.latency = latency.clone();
        let node = Node::start(spec).await;
        node.settle().await;
        for pods in [0..30, 100..156] {
            let began = Instant::now();
            assert_all_wired(&add_all(&node, pods.clone()).await);
            let took = began.elapsed().as_millis();
            println!("{} pods at once, {latency:?}: {took} ms (bound {bound} ms)", pods.len());
            assert!(took <= bound, "{} pods took {took} ms", pods.len());
            tokio::time::sleep(Duration::from_secs(90)).await;
            del_all(&node, pods).await;
            tokio::time::sleep(Duration::from_secs(90)).await;
        }
        node.assert_sound();
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_add_starts_its_refill_within_five_milliseconds() {
    let config = Config {
        targets: Targets { minimum_ip: 1, warm_ip: 0, ..Targets::default() },
        ..Config::default()
    };
    let node = Node::start(NodeSpec::instant(config)).await;
    node.settle().await;
    node.add(0).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let began = Instant::now();
    node.add(1).await;
    assert!(began.elapsed() <= Duration::from_millis(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_restart_over_100_pods_and_4_enis_costs_at_most_two_calls() {
    let mut spec = NodeSpec::instant(by_addresses());
    spec.instance_type = "m5.4xlarge";
    let mut node = Node::start(spec).await;
    assert_all_wired(&add_all(&node, 0..100).await);
    node.settle().await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    let before = node.sim().calls().ec2();
    node.kill().await;
    node.boot().await;
    let view = node.settle().await;
    assert_eq!(view.pool.assigned, 100);
    let calls = node.sim().calls().ec2() - before;
    println!("restart over 100 pods and {} ENIs: {calls} EC2 calls", view.enis.len());
    assert!(calls <= 2, "{calls} calls");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_full_says_so() {
    let mut spec = NodeSpec::instant(by_addresses());
    spec.instance_type = "t3.small";
    let node = Node::start(spec).await;
    let bodies = add_all(&node, 0..10).await;
    let errors: Vec<_> = bodies
        .iter()
        .filter_map(|b| match b {
            ReplyBody::Error(error) => Some(error),
            _ => None,
        })
        .collect();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].code, ErrorCode::NoAddress);
    assert!(
        errors[0].message.contains("all 9 addresses that this instance can hold"),
        "{}",
        errors[0].message
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_add_says_which_limit_holds_and_how_to_raise_it() {
    type Limit = fn(&mut Config);
    let cases: [(Limit, &[&str]); 4] = [
        (
            |_| {},
            &["all 9 addresses that this instance can hold (3 ENIs × 3)", "larger instance type"],
        ),
        (
            |config| config.max_eni = Some(2),
            &[
                "all 6 addresses that MAX_ENI=2 allows",
                "raise MAX_ENI (the instance type takes 3 ENIs: 9 addresses)",
            ],
        ),
        (|config| config.max_pods = Some(4), &["VENI_MAX_PODS (4 addresses", "raise it"]),
        (
            |config| config.disable_provisioning = true,
            &["DISABLE_NETWORK_RESOURCE_PROVISIONING is set", "unset it"],
        ),
    ];
    for (limit, expect) in cases {
        let mut spec = NodeSpec::instant(by_addresses());
        spec.instance_type = "t3.small";
        limit(&mut spec.config);
        let node = Node::start(spec).await;
        let bodies = add_all(&node, 0..10).await;
        let refused = bodies.iter().find_map(|body| match body {
            ReplyBody::Error(error) => Some(error.message.clone()),
            _ => None,
        });
        let refused = refused.expect("one ADD too many");
        for part in expect {
            assert!(refused.contains(part), "{part:?} is not in {refused:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_subnet_gives_what_it_has_and_says_so() {
    let mut spec = NodeSpec::instant(by_addresses());
    spec.subnet = "10.0.0.0/28";
    let node = Node::start(spec).await;
    let bodies = add_all(&node, 0..12).await;
    let wired = bodies.iter().filter(|b| matches!(b, ReplyBody::Wiring(_))).count();
    let free = node.sim().free_addresses(&"subnet-1".parse().unwrap()).unwrap();
    assert_eq!((wired, free), (10, 0), "11 usable addresses, one is the primary's");
    let refused = bodies.iter().find_map(|b| match b {
        ReplyBody::Error(error) => Some(error.message.clone()),
        _ => None,
    });
    assert!(refused.unwrap().contains("subnet subnet-1 (10.0.0.0/28) is full"));
    let problems = node.view().await.problems;
    assert!(problems.iter().any(|p| p.kind == "subnet_full"), "{problems:?}");
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_is_named_and_recovered_from() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let fault = node.sim().inject(Fault::deny("CreateNetworkInterface"));
    let bodies = add_all(&node, 0..20).await;
    let refused = bodies.iter().find_map(|b| match b {
        ReplyBody::Error(error) => Some(error.message.clone()),
        _ => None,
    });
    let message = refused.expect("some pods get no address");
    assert!(message.contains("lacks ec2:CreateNetworkInterface"), "{message}");
    node.sim().withdraw(fault);
    tokio::time::sleep(Duration::from_secs(150)).await;
    assert_all_wired(&add_all(&node, 100..110).await);
    node.assert_sound();
}

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
async fn a_link_that_is_nobodys_keeps_its_index() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    let index = node.add(0).await.host_ifindex;
    node.host.state().links.extend([index + 1, index + 2]);
    assert_eq!(node.add(1).await.host_ifindex, index + 3);
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_has_room_again_is_asked_for_all_that_is_missing() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let full = || ErrorClass::SubnetExhausted { subnet: None };
    node.sim().inject(refusal("CreateNetworkInterface", full()).times(2));
    assert_all_wired(&add_all(&node, 0..12).await);
    node.settle().await;
    let calls = |node: &Node| {
        let calls = |action| node.sim().calls().of(action).calls;
        calls("CreateNetworkInterface") + calls("AssignPrivateIpAddresses")
    };
    // Idle ENIs are too young yet to be freed.
    tokio::time::sleep(Duration::from_secs(40)).await;
    let before = calls(&node);
    let began = Instant::now();
    assert_all_wired(&add_all(&node, 100..144).await);
    let took = began.elapsed();
    node.settle_full().await;
    let made = calls(&node) - before;
    println!("44 pods after a full subnet: {made} calls, {took:?}");
    // What is missing on each of the four ENIs.
    assert!(made <= 5, "{made} calls");
    assert!(took <= Duration::from_millis(500), "{took:?}");
    let most = node.sim().interfaces().map(|i| i.secondary_addresses.len()).collect::<Vec<_>>();
    assert_eq!(most, [14; 4]);
    node.assert_sound();
}

/// One failure of each action, before and after its effect, and as a lost answer, while the pool grows and shrinks.
#[tokio::test(start_paused = true)]
async fn an_error_before_or_after_the_effect_of_any_call_leaves_nothing_behind() {
    for action in ACTIONS {
        for fault in [
            Fault::unavailable(action),
            Fault::lost_answer(action),
            Fault::throttle(action, Some(300)),
        ] {
            let node = Node::start(NodeSpec::instant(by_addresses())).await;
            node.settle().await;
            node.sim().inject(fault.clone().times(1));
            assert_all_wired(&add_all(&node, 0..30).await);
            node.settle().await;
            tokio::time::sleep(Duration::from_secs(90)).await;
            // Those on one ENI only, so that single addresses go back as well as whole ENIs.
            del_all(&node, 0..25).await;
            tokio::time::sleep(Duration::from_secs(400)).await;
            let view = node.settle().await;
            node.assert_sound();
            let sim = node.sim();
            let held: usize = sim.interfaces().map(|i| i.secondary_addresses.len()).sum();
            assert_eq!(
                (view.enis.len(), view.addresses.len()),
                (sim.interfaces().count(), held),
                "{fault:?}"
            );
            assert_eq!((view.pool.assigned, view.pool.available), (5, 5), "{fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_adds_for_one_container_at_once_get_one_address() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let (first, second) = tokio::join!(node.begin_add(7), node.begin_add(7));
    assert_eq!(first, second);
    assert_eq!(node.view().await.pool.assigned, 1);
}

#[tokio::test(start_paused = true)]
async fn a_fault_that_lasts_an_hour_costs_few_calls() {
    for fault in [
        Fault::unavailable("CreateNetworkInterface"),
        Fault::throttle("AssignPrivateIpAddresses", None),
        Fault::lost_answer("AssignPrivateIpAddresses"),
        Fault::deny("AttachNetworkInterface"),
    ] {
        let node = Node::start(NodeSpec::instant(by_addresses())).await;
        node.sim().inject(fault.clone().times(u32::MAX));
        let before = node.sim().calls().ec2();
        for round in 0..12 {
            drop(add_all(&node, round * 20..round * 20 + 20).await);
            del_all(&node, round * 20..round * 20 + 20).await;
            tokio::time::sleep(Duration::from_secs(280)).await;
        }
        let calls = node.sim().calls().ec2() - before;
        println!("{fault:?} for an hour under 240 ADDs: {calls} calls");
        assert!(calls <= 250, "{fault:?}: {calls} calls in an hour");
        node.assert_sound();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_does_not_bring_back_what_was_given_back() {
    let config =
        Config { targets: Targets { warm_ip: 1, ..Targets::default() }, ..Config::default() };
    let stale = |percent| Consistency {
        describe_delay_millis: 10_000,
        describe_stale_percent: percent,
        ..Consistency::default()
    };
    let mut spec = NodeSpec::instant(config);
    spec.sim.consistency = stale(0);
    let mut node = Node::start(spec).await;
    assert_all_wired(&add_all(&node, 0..10).await);
    node.settle().await;
    del_all(&node, 0..9).await;
    while node.view().await.addresses.len() > 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // From now on EC2 answers as it was ten seconds ago, to the restarted daemon's survey too.
    node.sim().set_consistency(stale(100));
    node.kill().await;
    node.boot().await;
    // At once: an excess would go back before anybody could get it.
    assert_all_wired(&add_all(&node, 100..108).await);
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn an_eni_costs_three_calls_to_make_and_two_to_free() {
    let mut spec = NodeSpec::instant(by_addresses());
    spec.sim.latency = Latency::fixed(50, 1500);
    let node = Node::start(spec).await;
    assert_all_wired(&add_all(&node, 0..9).await);
    node.settle().await;
    assert_all_wired(&add_all(&node, 9..14).await);
    node.settle().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(node.view().await.enis.len(), 2, "one ENI was made");
    assert_eq!(node.sim().calls().of("CreateNetworkInterface").calls, 1);
    assert_eq!(node.sim().calls().of("AttachNetworkInterface").calls, 1);
    assert_eq!(node.sim().calls().of("ModifyNetworkInterfaceAttribute").calls, 1);
    assert_eq!(node.sim().calls().of("DescribeNetworkInterfaces").calls, 2, "at the start only");
    tokio::time::sleep(Duration::from_secs(90)).await;
    del_all(&node, 0..14).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(node.view().await.enis.len(), 1);
    assert_eq!(node.sim().calls().of("DetachNetworkInterface").calls, 1);
    assert_eq!(node.sim().calls().of("DeleteNetworkInterface").calls, 1);
    assert_eq!(node.sim().calls().of("DescribeNetworkInterfaces").calls, 2, "at the start only");
}

/// Nothing in the account that the ledger does not know.
async fn assert_nothing_leaked(node: &Node) {
    let view = node.view().await;
    let sim = node.sim();
    let held: usize = sim.interfaces().map(|i| i.secondary_addresses.len()).sum();
    let account = (sim.interfaces().count(), held);
    assert_eq!((view.enis.len(), view.addresses.len()), account, "{:?}", view.enis);
}

/// The effect of a Create whose answer was lost, and then a refusal: the tags have changed, or the role has.
#[tokio::test(start_paused = true)]
async fn a_creation_that_is_refused_when_repeated_leaves_no_eni_behind() {
    let lost = || Fault::lost_answer("CreateNetworkInterface").times(1);
    for (what, then) in [
        ("other tags", None),
        ("other tags, unseen for a while", None),
        ("denied", Some(Fault::deny("CreateNetworkInterface").times(1))),
        ("denied, and the look too", Some(Fault::deny("DescribeNetworkInterfaces").times(2))),
    ] {
        let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
        node.settle().await;
        if what.contains("unseen") {
            let hidden =
                Consistency { new_interface_hidden_millis: 8_000, ..Consistency::default() };
            node.sim().set_consistency(hidden);
        }
        node.sim().inject(lost());
        let adds: Vec<_> = (0..14).map(|n| tokio::spawn(node.begin_add(n))).collect();
        while node.sim().interfaces().count() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        node.kill().await;
        for add in adds {
            add.await.unwrap();
        }
        node.reconfigure(|config| config.additional_eni_tags = vec![("team".into(), "b".into())]);
        if let Some(fault) = then {
            node.sim().inject(fault);
        }
        node.boot().await;
        node.settle().await;
        tokio::time::sleep(Duration::from_secs(300)).await;
        node.settle().await;
        let refused = node.sim().calls().of("CreateNetworkInterface").errors;
        assert!(refused > 0, "{what}: the repetition was refused");
        assert_nothing_leaked(&node).await;
        node.assert_sound();
    }
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
async fn a_survey_that_fails_is_repeated_with_backoff_and_within_the_budget() {
    for (fault, most) in [
        (Fault::unavailable("DescribeNetworkInterfaces"), 80),
        (Fault::deny("DescribeNetworkInterfaces"), 36),
        (Fault::throttle("DescribeNetworkInterfaces", Some(300_000)), 15),
    ] {
        let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
        node.settle().await;
        node.kill().await;
        node.sim().inject(fault.clone().times(u32::MAX));
        node.boot().await;
        let before = node.sim().calls().of("DescribeNetworkInterfaces").calls;
        tokio::time::sleep(Duration::from_secs(1)).await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        let calls = node.sim().calls().of("DescribeNetworkInterfaces").calls - before;
        println!("{fault:?} for an hour: {calls} surveys");
        assert!((2..=most).contains(&calls), "{fault:?}: {calls} surveys in an hour");
        node.sim().clear_faults();
        tokio::time::sleep(Duration::from_secs(400)).await;
        assert_eq!(node.view().await.problems, [], "{fault:?}");
    }
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
async fn an_address_that_leads_to_a_link_of_no_pod_is_neither_handed_out_nor_given_back() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    let before = node.settle().await;
    let taken: Vec<_> = before.addresses.iter().take(6).map(|a| a.address).collect();
    node.host.stray(&taken);
    let set_aside = node.settle().await;
    assert_eq!(set_aside.pool.available, 10, "others are there instead: {:?}", set_aside.pool);
    let told = set_aside.problems.iter().filter(|p| p.kind == "address_quarantined");
    assert_eq!(told.count(), taken.len(), "{:?}", set_aside.problems);
    let bodies = add_all(&node, 0..40).await;
    assert_all_wired(&bodies);
    for body in &bodies {
        let ReplyBody::Wiring(wiring) = body else { unreachable!("checked above") };
        assert!(!taken.contains(&wiring.address), "{} was handed out", wiring.address);
    }
    del_all(&node, 0..40).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let shrunk = node.settle().await;
    let held: Vec<_> = shrunk.addresses.iter().map(|a| a.address).collect();
    assert!(taken.iter().all(|address| held.contains(address)), "given back: {held:?}");
    node.host.stray(&[]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let last = node.settle().await;
    assert_eq!((last.pool.total, last.pool.available), (10, 10), "as if nothing had been");
    assert!(last.problems.is_empty(), "{:?}", last.problems);
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_restarted_daemon_hands_out_nothing_before_it_has_looked_what_leads_where() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    let before = node.settle().await;
    node.kill().await;
    // Somebody's, while no daemon ran; and the thread that looks tells nothing.
    let taken: Vec<_> = before.addresses.iter().skip(1).map(|a| a.address).collect();
    node.host.stray(&taken);
    node.host.state().unreadable = true;
    node.boot().await;
    let refused = node.begin_add(0).await;
    let Some(ReplyBody::Error(error)) = refused else { panic!("{refused:?}") };
    assert!(error.message.contains("the filter is not in force"), "{error:?}");
    node.host.state().unreadable = false;
    // All but one address are taken: whatever the first ADDs get, it is none of those.
    let bodies = add_all(&node, 1..12).await;
    assert_all_wired(&bodies);
    for body in &bodies {
        let ReplyBody::Wiring(wiring) = body else { unreachable!("checked above") };
        assert!(!taken.contains(&wiring.address), "{} was handed out", wiring.address);
    }
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_restarted_daemon_hands_out_nothing_of_an_eni_whose_link_went_meanwhile() {
    let mut node =
        Node::start(NodeSpec::instant(Config { max_eni: Some(2), ..Config::default() })).await;
    assert_all_wired(&add_all(&node, 0..1).await);
    let before = node.settle().await;
    let (primary, second) = (&before.enis[0], &before.enis[1]);
    let lost: Vec<_> =
        before.addresses.iter().filter(|a| Some(&a.eni) == second.id.as_ref()).collect();
    assert_eq!((before.enis.len(), lost.len()), (2, 14));
    node.kill().await;
    node.host.plug([primary.mac.unwrap()].into());
    node.host.state().silent = true;
    node.boot().await;
    for body in add_all(&node, 1..20).await {
        let ReplyBody::Wiring(wiring) = body else { continue };
        let on_lost = lost.iter().any(|a| a.address == wiring.address);
        assert!(!on_lost, "{} is on the ENI without a link", wiring.address);
    }
    node.assert_sound();
}

/// A node that has grown and shrunk, without a daemon; with the number of its journal's records.
async fn node_with_a_past() -> (Node, usize) {
    let targets = Targets { warm_ip: 2, minimum_ip: 3, ..Targets::default() };
    let mut node = Node::start(NodeSpec::instant(Config { targets, ..Config::default() })).await;
    assert_all_wired(&add_all(&node, 0..20).await);
    node.settle().await;
    del_all(&node, 2..20).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    node.settle().await;
    node.kill().await;
    let records = node.store().len();
    (node, records)
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
    requests.del(attachment, veni_core::wire::DelReason::PodDeleted).await.unwrap();
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

fn refusal(action: &str, class: ErrorClass) -> Fault {
    let code = format!("Test.{class:?}");
    Fault::error_before(action, Failure::new(class, code, "the test says so"))
}

/// Calls in ten minutes and the problems after them, while EC2 refuses one action for one reason. The pool wants to
/// grow by an ENI and by addresses, then to give an ENI and addresses back.
async fn refused_for_ten_minutes(fault: Fault) -> (Node, u64, Vec<String>) {
    let config = by_addresses();
    let node = Node::start(NodeSpec::instant(config)).await;
    assert_all_wired(&add_all(&node, 0..20).await);
    node.settle().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    node.sim().inject(fault.times(u32::MAX));
    let before = node.sim().calls().ec2();
    drop(add_all(&node, 100..112).await);
    del_all(&node, 0..20).await;
    del_all(&node, 100..112).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let calls = node.sim().calls().ec2() - before;
    let problems = node.view().await.problems.into_iter().map(|p| p.message).collect();
    node.assert_sound();
    (node, calls, problems)
}

#[tokio::test(start_paused = true)]
async fn a_persistent_refusal_of_any_call_costs_few_calls_and_is_recovered_from() {
    let limit = || ErrorClass::AddressLimit { eni: None };
    for action in ACTIONS {
        let classes = [
            ErrorClass::Invalid,
            ErrorClass::NotFound,
            ErrorClass::Quota,
            ErrorClass::AttachmentLimit,
            ErrorClass::Transient,
            limit(),
        ];
        for class in classes {
            let what = format!("{action} {class:?}");
            // Who is told that an ENI does not exist has no reason to look for it.
            let denied = class == ErrorClass::NotFound
                && ["DeleteNetworkInterface", "DescribeNetworkInterfaces"].contains(action);
            let (node, calls, problems) = refused_for_ten_minutes(refusal(action, class)).await;
            println!("{what}: {calls} calls; {problems:?}");
            assert!(calls <= 90, "{what}: {calls} calls in ten minutes");
            node.sim().clear_faults();
            tokio::time::sleep(Duration::from_secs(1_200)).await;
            let view = node.settle().await;
            assert_eq!((view.pool.assigned, view.pool.available), (0, 10), "{what}");
            assert_eq!(view.problems, [], "{what}");
            if !denied {
                assert_nothing_leaked(&node).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_detachment_that_is_refused_is_reported() {
    let fault = refusal("DetachNetworkInterface", ErrorClass::NotFound);
    let (_, calls, problems) = refused_for_ten_minutes(fault).await;
    assert!(calls <= 60, "{calls} calls");
    assert!(problems.iter().any(|p| p.contains("DetachNetworkInterface")), "{problems:?}");
}

#[tokio::test(start_paused = true)]
async fn an_eni_that_ec2_calls_full_is_left_alone_and_others_are_made() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    node.sim().inject(
        refusal("AssignPrivateIpAddresses", ErrorClass::AddressLimit { eni: None }).times(u32::MAX),
    );
    let before = node.sim().calls().ec2();
    assert_all_wired(&add_all(&node, 0..14).await);
    node.settle().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let calls = node.sim().calls().ec2() - before;
    assert!(calls <= 40, "{calls} calls in ten minutes");
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn an_eni_that_ec2_makes_with_fewer_addresses_only_is_made_with_fewer() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    node.sim()
        .inject(refusal("CreateNetworkInterface", ErrorClass::AddressLimit { eni: None }).times(2));
    assert_all_wired(&add_all(&node, 0..20).await);
    node.settle().await;
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn an_eni_that_is_refused_at_its_creation_is_not_counted_as_coming() {
    for class in [ErrorClass::AddressLimit { eni: None }, ErrorClass::AttachmentLimit] {
        let node = Node::start(NodeSpec::instant(by_addresses())).await;
        node.settle().await;
        let fault = refusal("CreateNetworkInterface", class.clone()).times(u32::MAX);
        node.sim().inject(fault);
        let before = node.sim().calls().ec2();
        drop(add_all(&node, 0..30).await);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let view = node.view().await;
        let calls = node.sim().calls().ec2() - before;
        assert_eq!(view.pool.pending, 0, "{class:?}");
        assert!(view.plan.wanted > 0, "{class:?}");
        assert!(view.problems.iter().any(|p| p.kind == "limit_reached"), "{:?}", view.problems);
        assert!(calls <= 40, "{class:?}: {calls} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn enis_that_ec2_does_not_attach_are_made_ever_more_seldom() {
    for class in [ErrorClass::AttachmentLimit, ErrorClass::Invalid, ErrorClass::NotFound] {
        let node = Node::start(NodeSpec::instant(by_addresses())).await;
        node.settle().await;
        let fault = refusal("AttachNetworkInterface", class.clone()).times(u32::MAX);
        node.sim().inject(fault);
        let before = node.sim().calls().ec2();
        drop(add_all(&node, 0..20).await);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let calls = node.sim().calls().ec2() - before;
        let made = node.sim().calls().of("CreateNetworkInterface").calls;
        println!("{class:?}: {calls} calls, {made} ENIs");
        assert!(calls <= 60 && made <= 6, "{class:?}: {calls} calls, {made} ENIs");
        assert!(node.view().await.problems.iter().any(|p| p.kind == "limit_reached"));
        node.sim().clear_faults();
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        assert_all_wired(&add_all(&node, 0..20).await);
    }
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

/// The answer to an ADD whose plugin does nothing with it yet.
async fn answered(node: &Node, pod: u32) -> Box<Wiring> {
    let (connection, request) = (ConnectionId::next(), Node::request(pod));
    let body = node.requests().unwrap().ask(|reply| Command::Add(connection, request, reply)).await;
    let Some(ReplyBody::Wiring(wiring)) = body else { panic!("{body:?}") };
    wiring
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
async fn a_problem_is_as_old_as_its_cause() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    node.sim().inject(Fault::deny("CreateNetworkInterface").times(u32::MAX));
    drop(add_all(&node, 0..30).await);
    tokio::time::sleep(Duration::from_secs(100)).await;
    drop(add_all(&node, 30..50).await);
    let problems = node.view().await.problems;
    let denied = problems.iter().find(|p| p.kind == "denied").unwrap();
    assert!(denied.age_secs >= 100, "nobody has looked before: {denied:?}");
}

#[tokio::test(start_paused = true)]
async fn addresses_of_an_eni_without_its_link_are_not_counted_as_available() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    for action in ["CreateNetworkInterface", "AssignPrivateIpAddresses"] {
        node.sim().inject(Fault::deny(action).times(u32::MAX));
    }
    node.host.plug(std::collections::HashSet::new());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let view = node.view().await;
    assert_eq!((view.pool.available, view.daemon.ready), (0, false));
    assert!(view.plan.wanted > 0, "what nobody can get is not warm: {:?}", view.plan);
    let status = node.requests().unwrap().ask(Command::Status).await;
    let Some(ReplyBody::Error(error)) = status else { panic!("{status:?}") };
    assert!(error.message.contains("the link of eni-"), "{}", error.message);
    assert!(error.message.contains("is not configured"), "{}", error.message);
}
