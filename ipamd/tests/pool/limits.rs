//! Full instances, full subnets, and what is said of them.

use super::*;

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
            &[
                "all 9 addresses that this instance can hold (3 ENIs × 3) are on pods or cooling: ",
                "larger instance type",
            ],
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
async fn a_node_of_one_address_says_so_of_one() {
    let mut spec = NodeSpec::instant(by_addresses());
    spec.instance_type = "t3.nano";
    spec.config.max_eni = Some(1);
    let node = Node::start(spec).await;
    let bodies = add_all(&node, 0..2).await;
    let refused = bodies.iter().find_map(|body| match body {
        ReplyBody::Error(error) => Some(error.message.clone()),
        _ => None,
    });
    let expect = "the only address that MAX_ENI=1 allows (1 ENI × 1) is on a pod or cooling: raise MAX_ENI (the instance type \
                  takes 2 ENIs: 2 addresses) or lower the kubelet's maxPods (1 address on pods, 0 cooling)";
    let refused = refused.expect("one ADD too many");
    assert!(refused.contains(expect), "{refused}");
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
async fn a_node_that_is_full_of_pods_is_ready_and_an_empty_pool_that_can_grow_is_not() {
    let mut spec = NodeSpec::instant(by_addresses());
    spec.instance_type = "t3.small";
    let mut node = Node::start(spec).await;
    assert_all_wired(&add_all(&node, 0..9).await);
    let full = node.settle_full().await;
    assert_eq!((full.pool.available, full.pool.assigned, full.daemon.ready), (0, 9, true));
    // One too many waits, and is refused: the instance's affair, not this daemon's.
    drop(node.begin_add(9).await);
    assert!(node.view().await.daemon.ready);
    node.kill().await;
    node.boot().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(node.view().await.daemon.ready, "a restart of a full node comes to its end");
    node.store().set_full(true);
    drop(node.begin_add(10).await);
    node.del(0).await;
    assert!(!node.view().await.daemon.ready, "the journal takes nothing");
    node.store().set_full(false);
    tokio::time::sleep(Duration::from_secs(40)).await;
    node.sim().inject(Fault::deny("CreateNetworkInterface").times(u32::MAX));
    node.sim().inject(Fault::deny("AssignPrivateIpAddresses").times(u32::MAX));
    assert_all_wired(&add_all(&node, 11..12).await);
    del_all(&node, 1..5).await;
    let pool = node.view().await.pool;
    let cooling = (pool.assigned, pool.available, node.view().await.daemon.ready);
    assert_eq!(cooling, (5, 0, false), "the next pod would wait: {pool:?}");
    let mut spec = NodeSpec::instant(by_addresses());
    spec.sim.latency = Latency::fixed(3000, 3000);
    let empty = Node::start(spec).await;
    let view = empty.view().await;
    assert_eq!((view.pool.available, view.daemon.ready), (0, false), "it has not grown yet");
}
