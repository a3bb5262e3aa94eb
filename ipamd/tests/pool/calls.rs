//! How many calls to EC2 the pool costs, and how fast it grows.

use veni_provider::Cloud;

use super::*;

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

/// As a Deployment's pods come: each finds the calls for those before it under way.
#[tokio::test(start_paused = true)]
async fn pods_that_come_one_after_another_bring_no_eni_too_many() {
    let targets = Targets { warm_ip: 2, ..Targets::default() };
    let mut spec = NodeSpec::instant(Config { targets, ..Config::default() });
    spec.sim.latency = Latency::fixed(300, 2000);
    let node = Node::start(spec).await;
    node.settle().await;
    let (before, began) = (node.sim().calls().ec2(), Instant::now());
    let mut adds = Vec::new();
    for pod in 0..20 {
        adds.push(tokio::spawn(node.begin_add(pod)));
        tokio::time::sleep(Duration::from_millis(70)).await;
    }
    for add in adds {
        let body = add.await.unwrap().expect("the daemon answers");
        assert!(matches!(body, ReplyBody::Wiring(_)), "{body:?}");
    }
    let took = began.elapsed();
    let view = node.settle().await;
    let calls = node.sim().calls().ec2() - before;
    println!("20 pods, one each 70 ms: {took:?}, {} ENIs, {calls} calls", view.enis.len());
    assert_eq!(view.enis.len(), 2, "two have room for 28");
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

#[tokio::test(start_paused = true)]
async fn other_security_groups_of_the_primary_eni_are_the_other_enis_too() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    assert_all_wired(&add_all(&node, 0..30).await);
    node.settle().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let calls = |node: &Node| node.sim().calls().of("ModifyNetworkInterfaceAttribute").calls;
    let (before, enis) = (calls(&node), node.view().await.enis);
    let groups: Vec<veni_core::id::SecurityGroupId> =
        ["sg-new1", "sg-new2"].map(|id| id.parse().unwrap()).into();
    for group in &groups {
        node.sim().add_security_group(group.clone(), "vpc-1".parse().unwrap()).unwrap();
    }
    let primary = enis[0].id.clone().unwrap();
    node.cloud().set_security_groups(&primary, &groups).await.unwrap();
    tokio::time::sleep(Duration::from_secs(130)).await;
    for interface in node.sim().interfaces() {
        assert_eq!(interface.security_groups, groups, "{}", interface.id);
    }
    assert_eq!(enis.len(), 3);
    assert_eq!(calls(&node) - before, 3, "one by this test, one for each further ENI");
}
