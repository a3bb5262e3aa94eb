//! Custom networking over the simulator: where ENIs are made, what fills up, and what a changed ENIConfig does to pods.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what does not hold")]

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::sync::watch;

use veni_core::{
    config::{Config, Targets},
    ipam::placement::{PlacedSubnet, Placement},
    net::Ipv4Prefix,
    wire::{ErrorCode, ReplyBody, inspect::View},
};
use veni_eniconfig_crd::EniConfig;
use veni_ipamd::{
    owner::Command,
    placement::{News, follow},
    start,
    testing::{Node, NodeSpec},
};
use veni_provider::sim::{Fault, SubnetSpec};

/// The pods' subnets, beside `subnet-1`, the node's, 10.0.0.0/24.
const SUBNETS: [(&str, &str); 3] =
    [("subnet-a", "10.0.1.0/24"), ("subnet-b", "10.0.2.0/24"), ("subnet-small", "10.0.3.0/28")];
const GROUP: &str = "sg-pods";
const CREATE: &str = "CreateNetworkInterface";

fn config() -> Config {
    Config {
        targets: Targets { warm_ip: 5, minimum_ip: 10, ..Targets::default() },
        custom_networking: true,
        ..Config::default()
    }
}

/// An m5.xlarge: 3 ENIs of 14 addresses beside the primary.
async fn node(config: Config) -> Node {
    let node = Node::start(NodeSpec::instant(config)).await;
    let mut sim = node.sim();
    for (id, cidr) in SUBNETS {
        let spec = SubnetSpec {
            id: id.parse().unwrap(),
            vpc_id: "vpc-1".parse().unwrap(),
            availability_zone: "eu-central-1a".into(),
            cidr: cidr.parse().unwrap(),
            tags: std::collections::BTreeMap::default(),
        };
        sim.add_subnet(spec).unwrap();
    }
    sim.add_security_group(GROUP.parse().unwrap(), "vpc-1".parse().unwrap()).unwrap();
    drop(sim);
    node
}

/// What an ENIConfig of these subnets comes to.
fn in_subnets(ids: &[&str]) -> News {
    let placed = |id: &&str| {
        let (_, cidr) = SUBNETS.iter().find(|(known, _)| known == id).unwrap();
        PlacedSubnet { id: id.parse().unwrap(), prefix: cidr.parse().ok() }
    };
    News::Found(Placement {
        source: "ENIConfig pods".into(),
        subnets: ids.iter().map(placed).collect(),
        security_groups: vec![GROUP.parse().unwrap()],
    })
}

fn gone() -> News {
    News::Awaits("ENIConfig pods does not exist: create it".into())
}

/// A node whose pool is filled out of `subnets`.
async fn placed(subnets: &[&str]) -> Node {
    let node = node(config()).await;
    node.place(in_subnets(subnets));
    node.settle().await;
    node
}

async fn add(node: &Node, pods: std::ops::Range<u32>) -> Vec<Ipv4Addr> {
    let mut addresses = Vec::new();
    for n in pods {
        addresses.push(node.add(n).await.address);
    }
    addresses
}

async fn refused(node: &Node, pod: u32) -> String {
    match node.begin_add(pod).await {
        Some(ReplyBody::Error(error)) if error.code == ErrorCode::NoAddress => error.message,
        other => panic!("ADD of pod {pod}: {other:?}"),
    }
}

/// How many addresses the ENIs in a subnet have, their own aside.
fn held(node: &Node, subnet: &str) -> usize {
    let sim = node.sim();
    let there = sim.interfaces().filter(|i| i.subnet_id.as_str() == subnet);
    there.map(|i| i.secondary_addresses.len()).sum()
}

fn enis(node: &Node, subnet: &str) -> usize {
    node.sim().interfaces().filter(|i| i.subnet_id.as_str() == subnet).count()
}

fn assert_in(addresses: &[Ipv4Addr], subnet: &str) {
    let (_, cidr) = SUBNETS.iter().find(|(id, _)| *id == subnet).unwrap();
    let cidr: Ipv4Prefix = cidr.parse().unwrap();
    assert!(addresses.iter().all(|address| cidr.contains(*address)), "{addresses:?}");
}

/// What the view says of a problem of this kind.
fn problem(view: &View, kind: &str) -> Option<String> {
    view.problems.iter().find(|p| p.kind == kind).map(|p| p.message.clone())
}

async fn pass(secs: u64) {
    tokio::time::sleep(Duration::from_secs(secs)).await;
}

/// The pods' addresses in the view.
fn pods(view: &View) -> Vec<Ipv4Addr> {
    let assigned = view.addresses.iter().filter(|address| address.state == "assigned");
    assigned.map(|address| address.address).collect()
}

#[tokio::test(start_paused = true)]
async fn without_an_eniconfig_nothing_is_made_and_everyone_is_told_what_is_waited_for() {
    let node = node(config()).await;
    let message = refused(&node, 1).await;
    assert!(message.contains("no ENI is made: the ENIConfig of this node"), "{message}");
    node.place(gone());
    let message = refused(&node, 1).await;
    let what = "no ENI is made: ENIConfig pods does not exist: create it";
    assert!(message.contains(what), "{message}");
    let view = node.view().await;
    assert!(view.plan.waiting_for.iter().any(|line| line == what), "{:?}", view.plan);
    assert_eq!(problem(&view, "eni_config").as_deref(), Some(what));
    let status = node.requests().unwrap().ask(Command::Status).await;
    assert!(matches!(&status, Some(ReplyBody::Error(e)) if e.message.contains(what)), "{status:?}");
    assert_eq!(node.sim().interfaces().count(), 1);
    assert_eq!(held(&node, "subnet-1"), 0);
    assert_eq!(node.sim().calls().of(CREATE).calls, 0);

    node.place(in_subnets(&["subnet-a"]));
    assert_in(&add(&node, 1..2).await, "subnet-a");
    assert_eq!(problem(&node.view().await, "eni_config"), None);
}

#[tokio::test(start_paused = true)]
async fn the_primary_gives_none_and_the_other_enis_have_subnet_and_groups_of_the_eniconfig() {
    let node = placed(&["subnet-a"]).await;
    assert_eq!((held(&node, "subnet-1"), held(&node, "subnet-a")), (0, 10));
    let groups: Vec<_> = node
        .sim()
        .interfaces()
        .filter(|i| i.subnet_id.as_str() == "subnet-a")
        .map(|i| i.security_groups.clone())
        .collect();
    assert_eq!(groups, [[GROUP.parse().unwrap()]]);
    let wanted = node.host.state().wanted.clone();
    let prefixes: Vec<_> = wanted.enis.iter().map(|(_, f)| f.subnet_prefix.unwrap()).collect();
    assert_eq!(prefixes, ["10.0.0.0/24".parse().unwrap(), "10.0.1.0/24".parse().unwrap()]);

    let addresses = add(&node, 0..42).await;
    assert_in(&addresses, "subnet-a");
    let message = refused(&node, 42).await;
    assert!(message.contains("all 42 addresses that this instance can hold"), "{message}");
    assert_eq!((held(&node, "subnet-1"), enis(&node, "subnet-a")), (0, 3));
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn whole_warm_enis_are_beside_the_primary() {
    let node = node(Config { targets: Targets::default(), ..config() }).await;
    node.place(in_subnets(&["subnet-a"]));
    let view = node.settle().await;
    assert_eq!((view.pool.available, held(&node, "subnet-1"), enis(&node, "subnet-a")), (14, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_full_subnet_gives_way_to_the_next_and_is_taken_again_once_it_has_room() {
    let node = node(config()).await;
    let small = "subnet-small".parse().unwrap();
    let others = node.sim().occupy(&small, 10).unwrap();
    node.place(in_subnets(&["subnet-small", "subnet-b"]));
    let view = node.settle().await;
    assert_eq!((held(&node, "subnet-small"), held(&node, "subnet-b")), (0, 10));
    let told = problem(&view, "subnet_full").unwrap();
    assert!(
        told.contains("subnet subnet-small (10.0.3.0/28) is full, the other subnets of ENIConfig pods are used"),
        "{told}"
    );
    assert_in(&add(&node, 0..5).await, "subnet-b");
    node.settle().await;

    node.sim().vacate(&small, &others);
    pass(150).await;
    assert_eq!(problem(&node.view().await, "subnet_full"), None);
    // Another 5 fit on the ENI in b; then a new one is made, in the first subnet again.
    let addresses = add(&node, 5..18).await;
    node.settle().await;
    assert!(held(&node, "subnet-small") > 0, "{addresses:?}");
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_full_subnet_of_an_eni_with_room_sends_the_pool_to_the_next() {
    let node = placed(&["subnet-small", "subnet-b"]).await;
    assert_eq!((held(&node, "subnet-small"), held(&node, "subnet-b")), (10, 0));
    let addresses = add(&node, 0..12).await;
    assert_in(&addresses[10..], "subnet-b");
    let view = node.settle().await;
    assert_eq!((view.pool.assigned, view.pool.available >= 5), (12, true));
    assert_eq!(held(&node, "subnet-small"), 10);
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn when_every_subnet_is_full_the_reason_names_each_and_what_is_left_is_used_up() {
    let node = node(config()).await;
    let (a, b) = ("subnet-a".parse().unwrap(), "subnet-b".parse().unwrap());
    let left = 3;
    let free = |id| node.sim().free_addresses(id).unwrap();
    let (in_a, in_b) = (free(&a) - left, free(&b) - left);
    node.sim().occupy(&a, in_a).unwrap();
    let others = node.sim().occupy(&b, in_b).unwrap();
    node.place(in_subnets(&["subnet-a", "subnet-b"]));
    pass(150).await;
    // An ENI's own address, and two for pods.
    assert_eq!((held(&node, "subnet-a"), held(&node, "subnet-b")), (2, 2));
    add(&node, 0..4).await;
    let message = refused(&node, 4).await;
    for part in [
        "every subnet of ENIConfig pods is full",
        "subnet-a (10.0.1.0/24)",
        "subnet-b (10.0.2.0/24)",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let calls = node.sim().calls().of(CREATE).calls;
    pass(600).await;
    let more = node.sim().calls().of(CREATE).calls - calls;
    assert!(more <= 60, "{more} attempts in ten minutes");

    node.sim().vacate(&b, &others);
    pass(150).await;
    assert_in(&add(&node, 5..10).await, "subnet-b");
    assert_eq!(problem(&node.view().await, "subnet_full"), None);
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn one_full_subnet_is_handled_as_the_nodes_own() {
    let node = node(config()).await;
    let small = "subnet-small".parse().unwrap();
    let others = node.sim().occupy(&small, 11).unwrap();
    node.place(in_subnets(&["subnet-small"]));
    let message = refused(&node, 0).await;
    assert!(
        message.contains("subnet subnet-small (10.0.3.0/28) is full: free addresses"),
        "{message}"
    );
    node.sim().vacate(&small, &others);
    pass(150).await;
    assert_in(&add(&node, 0..1).await, "subnet-small");
}

#[tokio::test(start_paused = true)]
async fn a_changed_eniconfig_touches_no_pod_and_its_former_enis_go_with_their_last_pod() {
    let node = placed(&["subnet-a"]).await;
    let before = add(&node, 0..3).await;
    node.settle().await;
    node.place(in_subnets(&["subnet-b"]));
    assert_in(&add(&node, 3..5).await, "subnet-b");
    pass(120).await;
    let view = node.settle().await;
    let told = problem(&view, "eni_leaves").unwrap();
    for part in
        ["is in subnet-a, which ENIConfig pods does not name", "goes when its 3 pods have gone"]
    {
        assert!(told.contains(part), "{told}");
    }
    assert!(view.plan.reasons.contains(&told), "{:?}", view.plan);
    assert!(before.iter().all(|address| pods(&view).contains(address)));
    assert_eq!(enis(&node, "subnet-a"), 1);
    // What it has does not count: 10 in all, 5 to spare, of the other one.
    assert!(view.pool.available >= 5, "{:?}", view.pool);

    for pod in 0..3 {
        node.del(pod).await;
    }
    pass(200).await;
    let view = node.settle().await;
    assert_eq!((enis(&node, "subnet-a"), problem(&view, "eni_leaves")), (0, None));
    assert_eq!(view.pool.assigned, 2);
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn an_eniconfig_that_comes_back_finds_its_enis_in_use_again() {
    let node = placed(&["subnet-a"]).await;
    add(&node, 0..3).await;
    node.settle().await;
    node.place(in_subnets(&["subnet-b"]));
    assert!(problem(&node.settle().await, "eni_leaves").is_some());
    node.place(in_subnets(&["subnet-b", "subnet-a"]));
    pass(5).await;
    assert_eq!(problem(&node.view().await, "eni_leaves"), None);
    let created = node.sim().calls().of(CREATE).calls;
    // Of its ENI, which is the first.
    assert_in(&add(&node, 3..10).await, "subnet-a");
    assert_eq!(node.sim().calls().of(CREATE).calls, created);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_eniconfig_leaves_what_is_there_in_use_and_nothing_new_is_made() {
    let node = placed(&["subnet-a"]).await;
    let created = node.sim().calls().of(CREATE).calls;
    node.place(gone());
    let addresses = add(&node, 0..14).await;
    assert_in(&addresses, "subnet-a");
    let message = refused(&node, 14).await;
    assert!(message.contains("no ENI is made: ENIConfig pods does not exist"), "{message}");
    assert_eq!(node.sim().calls().of(CREATE).calls, created);
    let view = node.view().await;
    assert!(problem(&view, "eni_config").is_some() && problem(&view, "eni_leaves").is_none());
    assert_eq!(pods(&view).len(), 14);

    node.place(in_subnets(&["subnet-a"]));
    assert_in(&add(&node, 14..20).await, "subnet-a");
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_hears_of_no_eniconfig_goes_on_with_the_last_one() {
    for deleted in [false, true] {
        let mut node = placed(&["subnet-a"]).await;
        let before = add(&node, 0..3).await;
        if deleted {
            node.place(gone());
            pass(1).await;
        }
        node.kill().await;
        node.place(News::Unheard);
        node.boot().await;
        if deleted {
            assert!(problem(&node.view().await, "eni_config").is_some());
        } else {
            assert_in(&add(&node, 3..25).await, "subnet-a");
            assert_eq!(held(&node, "subnet-1"), 0);
        }
        let view = node.view().await;
        assert!(before.iter().all(|address| pods(&view).contains(address)));
        node.assert_sound();
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_a_kill_cuts_short_is_repeated_as_it_was_planned() {
    for fault in [Fault::delay(CREATE, 10_000), Fault::lost_answer(CREATE)] {
        let mut node = node(config()).await;
        node.sim().inject(fault.clone());
        node.place(in_subnets(&["subnet-a"]));
        pass(1).await;
        node.kill().await;
        node.sim().clear_faults();
        node.place(in_subnets(&["subnet-b"]));
        pass(15).await;
        let planned = node.store().recover().ledger;
        assert_eq!(planned.enis().filter(|eni| eni.facts.is_none()).count(), 1, "{fault:?}");
        node.boot().await;
        pass(20).await;
        // Had it been asked for elsewhere, EC2 would have refused the token, or made a second one.
        assert_eq!(enis(&node, "subnet-a"), 1, "{fault:?}");
        let refused = node.sim().call_log().any(|call| format!("{call:?}").contains("Idempotent"));
        assert!(!refused, "{fault:?}");
        assert_in(&add(&node, 0..5).await, "subnet-b");
        pass(300).await;
        node.settle().await;
        assert_eq!(enis(&node, "subnet-a"), 0, "{fault:?}: it leaves");
        node.assert_sound();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_journal_is_rebuilt_with_the_enis_wherever_they_are() {
    let mut node = placed(&["subnet-a"]).await;
    let before = add(&node, 0..3).await;
    node.place(in_subnets(&["subnet-b"]));
    let moved = add(&node, 3..5).await;
    node.settle().await;
    node.kill().await;
    node.store().erase();
    node.place(News::Unheard);
    node.boot().await;
    let view = node.view().await;
    let all: Vec<_> = before.iter().chain(&moved).copied().collect();
    assert!(all.iter().all(|address| pods(&view).contains(address)), "{:?}", pods(&view));
    assert!(problem(&view, "eni_config").is_some());
    let created = node.sim().calls().of(CREATE).calls;
    pass(100).await;
    assert_eq!(node.sim().calls().of(CREATE).calls, created, "nothing is known of where");

    node.place(in_subnets(&["subnet-b"]));
    assert_in(&add(&node, 5..12).await, "subnet-b");
    for pod in 0..3 {
        node.del(pod).await;
    }
    pass(400).await;
    node.settle().await;
    assert_eq!(enis(&node, "subnet-a"), 0);
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_turns_it_on_keeps_its_pods_and_gives_the_primarys_addresses_back() {
    let mut node = node(Config { custom_networking: false, ..config() }).await;
    // The primary's 14, and some of another ENI in its subnet.
    let before = add(&node, 0..16).await;
    node.settle().await;
    assert_eq!(enis(&node, "subnet-1"), 2);
    node.kill().await;
    node.reconfigure(|config| config.custom_networking = true);
    node.boot().await;
    pass(60).await;
    assert!(refused(&node, 16).await.contains("no ENI is made"), "none of the node's own subnet");
    node.place(in_subnets(&["subnet-a"]));
    assert_in(&add(&node, 16..18).await, "subnet-a");
    let view = node.settle().await;
    assert!(before.iter().all(|address| pods(&view).contains(address)));

    for pod in 0..16 {
        node.del(pod).await;
    }
    pass(400).await;
    node.settle().await;
    assert_eq!((enis(&node, "subnet-1"), held(&node, "subnet-1")), (1, 0));
    assert!(held(&node, "subnet-a") >= 7);
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_subnet_whose_cidr_nobody_told_is_learned_from_instance_metadata() {
    let node = node(config()).await;
    let News::Found(mut placement) = in_subnets(&["subnet-a"]) else { unreachable!("see above") };
    placement.subnets[0].prefix = None;
    node.place(News::Found(placement));
    pass(90).await;
    let wanted = node.host.state().wanted.clone();
    let prefixes: Vec<_> = wanted.enis.iter().map(|(_, f)| f.subnet_prefix).collect();
    assert_eq!(prefixes[1], "10.0.1.0/24".parse().ok());
}

#[tokio::test(start_paused = true)]
async fn an_ec2_that_does_not_tell_of_tags_stops_no_eni_and_no_restart_remembers_it() {
    let mut node = node(config()).await;
    let tag = ("pods".to_owned(), "yes".to_owned());
    node.sim().tag_security_group(&GROUP.parse().unwrap(), [tag].into()).unwrap();
    let object = serde_json::json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": {"name": "pods"},
        "spec": {"subnet": "subnet-a", "securityGroupTags": {"pods": "yes"}},
    });
    let cloud = Arc::new(node.cloud());
    let whereabouts = start::whereabouts(&*cloud).await;
    let (_choose, choices) = watch::channel(Some(Ok(EniConfig::parse(&object).unwrap())));
    let mut source = follow(cloud, &whereabouts, choices);
    source.changed().await.unwrap();
    node.place(source.borrow_and_update().clone());
    add(&node, 0..3).await;
    node.settle().await;

    let action = "DescribeSecurityGroups";
    node.sim().inject(Fault::throttle(action, None).times(u32::MAX));
    pass(700).await;
    assert!(node.sim().calls().of(action).errors > 0, "it was asked again");
    if source.has_changed().unwrap() {
        node.place(source.borrow_and_update().clone());
        pass(1).await;
    }
    assert_eq!(problem(&node.view().await, "eni_config"), None);
    // The next daemon hears of no ENIConfig: the API server is away.
    node.kill().await;
    node.place(News::Unheard);
    node.boot().await;
    assert_in(&add(&node, 3..25).await, "subnet-a");
    assert_eq!(enis(&node, "subnet-a"), 2, "22 more do not fit on one");
    node.assert_sound();
}
