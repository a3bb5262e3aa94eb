//! What is bounded stays so: a map that is full refuses the new set, truncates nothing, and takes it when there is room;
//! numbers of what has gone come back.

use std::{net::Ipv4Addr, slice};

use serde_json::{Value, json};
use veni_ebpf_common::table::{Decision, Profile};
use veni_policy::{
    applied::Applied,
    change::{Direction, PodKey, PodSets},
    index::{Index, Refusal, Scope},
    object::{self, Key, Kind, Object},
};

/// Each has a profile of its own, of 12 ranges with 22 prefixes or so.
const PODS: u16 = 1300;

fn parsed(value: &Value) -> Object {
    object::parse(value).expect("valid").expect("a kind that counts")
}

fn pod(number: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": format!("p{number}"), "labels": {"number": number.to_string()}},
        "status": {"podIP": format!("10.0.{}.{}", number >> 8, number & 255)}})
}

fn policy(number: u16) -> Value {
    let ports: Vec<Value> = (0..12)
        .map(|range| json!({"port": 1 + range * 4096, "endPort": 4094 - (number % 1300) + range * 4096}))
        .collect();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": format!("p{number}")},
        "spec": {"podSelector": {"matchLabels": {"number": number.to_string()}}, "ingress": [{"ports": ports}]}})
}

#[test]
fn a_full_map_refuses_new_sets_says_so_and_takes_them_when_there_is_room() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    (0..PODS).for_each(|number| index.apply(parsed(&pod(number))));
    (0..PODS).for_each(|number| index.apply(parsed(&policy(number))));
    let change = index.change();
    change.steps.iter().for_each(|step| tables.apply(step));
    let refused: Vec<&PodKey> = change.refused.iter().flat_map(|refusal| &refusal.pods).collect();
    assert!(!refused.is_empty() && refused.len() < usize::from(PODS), "{}", refused.len());
    assert!(change.refused.iter().all(|refusal| refusal.map == "PORTS"));
    assert!(tables.ports.len() <= 262_144);
    for pod in &refused {
        let closed = PodSets::CLOSED.of(Direction::Ingress);
        assert_eq!(tables.endpoints[*pod].of(Direction::Ingress), closed, "{pod} had nothing");
    }
    let accepted = (0..PODS).map(|number| PodKey::new("x", format!("p{number}")));
    let accepted: Vec<PodKey> = accepted.filter(|pod| !refused.contains(&pod)).collect();
    for pod in &accepted {
        let set = tables.endpoints[pod].of(Direction::Ingress);
        assert!(set > 1, "{pod} has a set of its own");
    }
    for pod in accepted.iter().take(refused.len()) {
        index.delete(&Key::new(Kind::NetworkPolicy, "x", &*pod.name));
    }
    index.change().steps.iter().for_each(|step| tables.apply(step));
    let change = index.change();
    change.steps.iter().for_each(|step| tables.apply(step));
    assert_eq!(change.refused, [], "there is room now");
}

fn of(namespace: &str, mut object: Value) -> Object {
    object["metadata"]["namespace"] = json!(namespace);
    parsed(&object)
}

/// The set of a pod.
fn set(tables: &Applied, namespace: &str, pod: u16, direction: Direction) -> u32 {
    tables.endpoints[&PodKey::new(namespace, format!("p{pod}"))].of(direction)
}

/// An index whose namespace `x` has taken all port ranges that it can have, but for less than a policy's; and the first of
/// its pods that found no room.
fn crowded(index: &mut Index, tables: &mut Applied) -> u16 {
    (0..PODS).for_each(|number| index.apply(parsed(&pod(number))));
    (0..PODS).for_each(|number| index.apply(parsed(&policy(number))));
    let refused = change(index, tables);
    let refused: Vec<&PodKey> = refused.iter().flat_map(|refusal| &refusal.pods).collect();
    let first = (0..PODS).find(|number| refused.iter().any(|pod| pod.name == format!("p{number}")));
    first.expect("they do not all fit")
}

#[test]
fn a_pod_that_a_refused_set_was_to_isolate_is_closed_not_left_open() {
    let (ingress, egress) = (Direction::Ingress, Direction::Egress);
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    // One pod that nothing selects, one that only a ClusterNetworkPolicy does, which isolates nobody.
    let (open, guarded) = (PODS, PODS + 1);
    [open, guarded].iter().for_each(|number| index.apply(parsed(&pod(*number))));
    let subject = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"number": guarded.to_string()}}});
    index.apply(parsed(&json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "guard"}, "spec": {"tier": "Admin", "priority": 1, "subject": {"pods": subject},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {"matchLabels": {"a": "b"}}}]}]}})));
    crowded(&mut index, &mut tables);
    assert_eq!(set(&tables, "x", open, ingress), 0, "open");
    assert!(set(&tables, "x", guarded, ingress) > 1);
    let isolated = (0..PODS).find(|number| set(&tables, "x", *number, ingress) > 1);
    let isolated = isolated.expect("some found room");
    let before = set(&tables, "x", isolated, ingress);
    for number in [open, guarded, isolated] {
        // Ranges of their own, so that no profile is there already.
        let mut other = policy(number);
        for range in other["spec"]["ingress"][0]["ports"].as_array_mut().expect("ranges") {
            range["protocol"] = json!("UDP");
        }
        index.apply(parsed(&other));
    }
    let refused = change(&mut index, &mut tables);
    let refused: Vec<&PodKey> = refused.iter().flat_map(|refusal| &refusal.pods).collect();
    for number in [open, guarded, isolated] {
        assert!(refused.iter().any(|pod| pod.name == format!("p{number}")), "{number}");
    }
    let closed = PodSets::CLOSED.of(ingress);
    assert_eq!(set(&tables, "x", open, ingress), closed, "nothing selected it before");
    assert_eq!(set(&tables, "x", guarded, ingress), closed, "it was not isolated before");
    assert_eq!(set(&tables, "x", isolated, ingress), before, "it was isolated before");
    assert_eq!(set(&tables, "x", open, egress), 0, "nothing isolates its egress");
    index.delete(&Key::new(Kind::NetworkPolicy, "x", format!("p{open}")));
    change(&mut index, &mut tables);
    assert_eq!(set(&tables, "x", open, ingress), 0, "nothing isolates it any more");
}

#[test]
fn a_namespace_that_takes_all_it_can_leaves_room_for_others() {
    for at_once in [false, true] {
        let mut index = Index::new(Scope::All);
        let mut tables = Applied::default();
        if !at_once {
            crowded(&mut index, &mut tables);
        }
        for number in 0..20 {
            let mut other = policy(number);
            other["spec"]["ingress"][0]["ports"][0]["protocol"] = json!("UDP");
            index.apply(of("y", pod(2_000 + number)));
            index.apply(of("y", {
                other["spec"]["podSelector"]["matchLabels"]["number"] =
                    json!((2_000 + number).to_string());
                other
            }));
        }
        if at_once {
            crowded(&mut index, &mut tables);
        } else {
            change(&mut index, &mut tables);
        }
        for number in 2_000..2_020 {
            assert!(
                set(&tables, "y", number, Direction::Ingress) > 1,
                "{number}, at once: {at_once}"
            );
        }
        assert!(tables.ports.len() <= 262_144);
    }
}

#[test]
fn a_namespace_with_blocks_without_end_leaves_room_for_those_of_others() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    let shifted = |name: &str, number: u16, from: u32, count: u32| {
        let cidr = |block: u32| json!({"ipBlock": {"cidr": format!("{}/26", Ipv4Addr::from((from + block) << 6))}});
        let mut policy = blocks(name, number, 1);
        policy["spec"]["ingress"][0]["from"] = (0..count).map(cidr).collect();
        policy
    };
    (1..=4).for_each(|number| index.apply(parsed(&pod(number))));
    index.apply(of("y", pod(5)));
    index.apply(parsed(&shifted("a", 1, 0, 57_000)));
    index.apply(parsed(&shifted("b", 2, 57_000, 57_000)));
    assert_eq!(change(&mut index, &mut tables), []);
    index.apply(parsed(&shifted("c", 3, 114_000, 17_072)));
    // The table would be full to the last entry.
    for _ in 0..2 {
        let refused = change(&mut index, &mut tables);
        assert_eq!(refused.len(), 1);
        let (map, pods) = (refused[0].map, refused[0].pods.as_slice());
        assert_eq!((map, pods), ("CIDR_V4", &[PodKey::new("x", "p3")][..]));
        index.apply(of("y", shifted("d", 5, 140_000, 3)));
    }
    assert!(set(&tables, "y", 5, Direction::Ingress) > 1);
    // What it has already is no more, and what stays in its part fits.
    index.apply(parsed(&shifted("c", 4, 0, 57_000)));
    assert_eq!(change(&mut index, &mut tables), []);
}

/// Carries out a change; what was refused.
fn change(index: &mut Index, tables: &mut Applied) -> Vec<Refusal> {
    let change = index.change();
    change.steps.iter().for_each(|step| tables.apply(step));
    change.refused
}

/// Allows the first blocks of 64 addresses, so many.
fn blocks(name: &str, number: u16, blocks: u32) -> Value {
    let cidr =
        |block: u32| json!({"ipBlock": {"cidr": format!("{}/26", Ipv4Addr::from(block << 6))}});
    let peers: Vec<Value> = (0..blocks).map(cidr).collect();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": name},
        "spec": {"podSelector": {"matchLabels": {"number": number.to_string()}}, "ingress": [{"from": peers}]}})
}

#[test]
fn a_set_with_more_blocks_than_fit_is_refused_whole() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    (1..=2).for_each(|number| index.apply(parsed(&pod(number))));
    index.apply(parsed(&blocks("small", 1, 3)));
    index.apply(parsed(&blocks("large", 2, 131_073)));
    let refused = change(&mut index, &mut tables);
    let expected = Refusal {
        pods: vec![PodKey::new("x", "p2")],
        direction: Some(Direction::Ingress),
        map: "CIDR_V4",
        capacity: 131_072,
    };
    assert_eq!(refused, slice::from_ref(&expected));
    assert_eq!(tables.cidr_v4.len(), 3);
    let of = |tables: &Applied, pod| tables.endpoints[&PodKey::new("x", pod)];
    assert_eq!(of(&tables, "p2"), PodSets::new(1, 0), "closed: it had nothing");
    assert!(of(&tables, "p1").ingress > 1);
    assert_eq!(change(&mut index, &mut tables), [expected], "it is said for as long as it is so");
    index.apply(parsed(&blocks("large", 2, 5)));
    assert_eq!(change(&mut index, &mut tables), []);
    assert!(of(&tables, "p2").ingress > 1 && tables.cidr_v4.len() == 5);
}

/// Five of the kernel's ticks, in which it counts.
const LEAST_NANOS: u64 = 20_000_000;

/// What this thread took of the processor.
fn cpu_nanos() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let nanos = stat.split_whitespace().next().expect("three numbers");
    nanos.parse().expect("a number")
}

/// How long it takes until a policy with these ingress rules is in force; the best of three.
fn cost(ingress: &Value) -> u64 {
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "large"}, "spec": {"podSelector": {}, "ingress": ingress}});
    let policy = parsed(&policy);
    let once = |_| {
        let mut index = Index::new(Scope::All);
        index.apply(parsed(&pod(1)));
        drop(index.change());
        let start = cpu_nanos();
        index.apply(policy.clone());
        assert_eq!(index.change().refused, []);
        cpu_nanos() - start
    };
    (0..3).map(once).min().expect("three rounds")
}

/// Four times the items may cost eight times as much; what is asked of each with each is sixteen times.
#[test]
fn a_large_object_costs_in_proportion_to_its_size() {
    type Ingress = fn(u32) -> Value;
    fn address(number: u32) -> Value {
        json!(format!("{}/32", Ipv4Addr::from(0x0a00_0000 + 2 * number)))
    }
    let blocks: Ingress = |items| {
        let peers = (0..items).map(|item| json!({"ipBlock": {"cidr": address(item)}}));
        json!([{"from": peers.collect::<Vec<_>>()}])
    };
    let except: Ingress = |items| {
        let except: Vec<Value> = (0..items).map(address).collect();
        json!([{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": except}}]}])
    };
    let ports: Ingress = |items| {
        let ports = (0..items).map(|item| json!({"port": 1 + 2 * item}));
        json!([{"ports": ports.collect::<Vec<_>>()}])
    };
    let rules: Ingress =
        |items| (0..items).map(|item| json!({"ports": [{"port": 1 + 2 * item}]})).collect();
    let overlapping: Ingress = |items| {
        let wide = json!({"ipBlock": {"cidr": "10.0.0.0/8"}});
        let rule = |item: u32| json!({"from": [wide], "ports": [{"port": 1 + 2 * item}]});
        let narrow = (0..items).map(|item| json!({"ipBlock": {"cidr": address(item)}}));
        let narrow = json!({"from": narrow.collect::<Vec<_>>()});
        (0..items).map(rule).chain([narrow]).collect()
    };
    for (name, ingress, items) in [
        ("blocks", blocks, 8_000),
        ("except", except, 8_000),
        ("ports", ports, 8_000),
        ("rules", rules, 4_000),
        ("rules and ports of blocks", overlapping, 3_000),
    ] {
        let (small, large) = (cost(&ingress(items)), cost(&ingress(4 * items)));
        assert!(
            large < 8 * small.max(LEAST_NANOS),
            "{name}: {items} items {small} ns, four times as many {large} ns"
        );
    }
}

/// A pod with so many addresses.
fn crowd(name: &str, from: u32, addresses: u32) -> Value {
    let address =
        |index: u32| json!({"ip": Ipv4Addr::from(0x0a00_0000 + from + index).to_string()});
    let addresses: Vec<Value> = (0..addresses).map(address).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": name},
        "status": {"podIPs": addresses}})
}

#[test]
fn more_addresses_than_fit_are_left_out_named_and_taken_when_there_is_room() {
    let mut index = Index::new(Scope::Node("n1".to_owned()));
    let mut tables = Applied::default();
    for number in 0..262_u32 {
        index.apply(parsed(&crowd(&format!("c{number}"), number * 1000, 1000)));
    }
    index.apply(parsed(&crowd("rest", 262_000, 144)));
    assert_eq!(change(&mut index, &mut tables), []);
    assert_eq!(tables.class_v4.len(), 262_144);
    index.apply(parsed(&crowd("more", 300_000, 2)));
    let expected = Refusal {
        pods: vec![PodKey::new("x", "more")],
        direction: None,
        map: "CLASS_V4",
        capacity: 262_144,
    };
    assert_eq!(change(&mut index, &mut tables), [expected]);
    assert_eq!(tables.class_v4.len(), 262_144);
    index.delete(&Key::new(Kind::Pod, "x", "rest"));
    change(&mut index, &mut tables);
    assert_eq!(change(&mut index, &mut tables), [], "there is room now");
    assert_eq!(tables.class_v4.len(), 262_002);
}

/// Whether the pod lets an address in on TCP 80.
fn lets_in(tables: &Applied, pod: &str, from: [u8; 4]) -> bool {
    let pod = PodKey::new("x", pod);
    let decision = tables.decide(&pod, Direction::Ingress, from.into(), 6, 80);
    decision.is_some_and(Decision::allowed)
}

#[test]
fn a_rule_that_denies_pods_denies_those_that_found_no_room_too() {
    for (action, then) in
        [("Deny", json!([])), ("Pass", json!([{"action": "Accept", "from": [{"namespaces": {}}]}]))]
    {
        let mut index = Index::new(Scope::Node("n1".to_owned()));
        let mut tables = Applied::default();
        let labelled = |name: &str, app: &str, ip: &str| {
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "x", "name": name, "labels": {"app": app}},
                "spec": {"nodeName": if name == "server" { "n1" } else { "n2" }},
                "status": {"podIP": ip}})
        };
        let by_app = |app: &str| json!({"pods": {"podSelector": {"matchLabels": {"app": app}}}});
        let mut rules = vec![json!({"action": action, "from": [by_app("bad")],
            "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]})];
        rules.extend(then.as_array().cloned().unwrap_or_default());
        index.apply(parsed(&json!({"apiVersion": "policy.networking.k8s.io/v1alpha2",
            "kind": "ClusterNetworkPolicy", "metadata": {"name": "c"},
            "spec": {"tier": "Admin", "priority": 1, "subject": by_app("server"), "ingress": rules}})));
        let deny = json!([{"action": "Deny", "from": [by_app("bad")]}]);
        index.apply(parsed(&json!({"apiVersion": "policy.networking.k8s.io/v1alpha2",
            "kind": "ClusterNetworkPolicy", "metadata": {"name": "below"},
            "spec": {"tier": "Baseline", "priority": 1, "subject": by_app("server"), "ingress": deny}})));
        index.apply(parsed(&labelled("server", "server", "10.9.0.1")));
        index.apply(parsed(&labelled("good", "good", "10.9.0.2")));
        for number in 0..262_u32 {
            index.apply(parsed(&crowd(&format!("c{number}"), number * 1000, 1000)));
        }
        index.apply(parsed(&crowd("rest", 262_000, 142)));
        assert_eq!(change(&mut index, &mut tables), []);
        let (good, known, far, bad) = ([10, 9, 0, 2], [10, 0, 0, 1], [8, 8, 8, 8], [10, 9, 0, 3]);
        assert!(
            [good, known, far].iter().all(|from| lets_in(&tables, "server", *from)),
            "{action}"
        );
        // The map is full now.
        index.apply(parsed(&labelled("bad", "bad", "10.9.0.3")));
        assert_eq!(change(&mut index, &mut tables).len(), 1, "{action}");
        assert!(!tables.class_v4.contains_key(&bad.into()), "it found no room");
        assert!(!lets_in(&tables, "server", bad), "{action}: closed");
        assert!(!lets_in(&tables, "server", far), "{action}: whoever is not known may be it");
        assert!(lets_in(&tables, "server", good) && lets_in(&tables, "server", known), "{action}");
        index.delete(&Key::new(Kind::Pod, "x", "rest"));
        change(&mut index, &mut tables);
        assert_eq!(change(&mut index, &mut tables), [], "there is room now");
        assert!(!lets_in(&tables, "server", bad), "{action}: by its labels");
        assert!(
            [good, known, far].iter().all(|from| lets_in(&tables, "server", *from)),
            "{action}"
        );
    }
}

#[test]
fn namespaces_that_came_and_went_leave_nothing_behind() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    let (mut most, mut rules) = (0, 0);
    for round in 0..1_000_u32 {
        let objects: Vec<Value> = (0..100)
            .flat_map(|number| {
                let namespace = format!("ci-{round}-{number}");
                let object = |api: &str, kind: &str, spec: Value| {
                    json!({"apiVersion": api, "kind": kind, "spec": spec,
                        "metadata": {"namespace": namespace, "name": "o"},
                        "status": {"podIP": format!("10.0.0.{number}")}})
                };
                let groups = json!({"podSelector": {}, "securityGroups": {"groupIds": ["sg-1"]}});
                let group_policy = ("vpcresources.k8s.aws/v1beta1", "SecurityGroupPolicy", groups);
                let last = match number % 10 {
                    0 => ("networking.k8s.io/v1", "NetworkPolicy", json!({"podSelector": {}})),
                    _ => group_policy,
                };
                [
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
                    object("v1", "Pod", json!({})),
                    object(last.0, last.1, last.2),
                ]
            })
            .collect();
        let mut objects: Vec<Object> = objects.iter().map(parsed).collect();
        let mut keys: Vec<Key> = objects.iter().map(Object::key).collect();
        // A namespace is not always the last of its objects to go, nor the first to come.
        let turn = round as usize % objects.len();
        objects.rotate_left(turn);
        keys.rotate_right(turn);
        objects.into_iter().for_each(|object| index.apply(object));
        change(&mut index, &mut tables);
        most = most.max(index.sizes().namespaces);
        rules = rules.max(index.rules().len());
        keys.iter().for_each(|key| index.delete(key));
        change(&mut index, &mut tables);
    }
    let sizes = index.sizes();
    assert_eq!((sizes.pods, sizes.local_pods, sizes.identities, sizes.addresses), (0, 0, 0, 0));
    assert!(most <= 100 && sizes.namespaces <= 100, "{most} places for namespaces");
    assert!(rules < 4096, "{rules} rules");
    assert!(tables.endpoints.values().all(|sets| *sets == PodSets::CLOSED));
}

#[test]
fn rules_that_came_and_went_leave_neither_memory_nor_numbers_behind() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    index.apply(parsed(&pod(1)));
    let (mut most, mut last) = (0, 0);
    for round in 0..100_000_u32 {
        let name = |round: u32| format!("policy-{round}");
        index.apply(parsed(&blocks(&name(round), 1, 1)));
        if round > 0 {
            index.delete(&Key::new(Kind::NetworkPolicy, "x", name(round - 1)));
        }
        change(&mut index, &mut tables);
        most = most.max(index.rules().len());
        let decision = |profile: &Profile| {
            profile
                .ranges
                .iter()
                .map(|range| range.decision)
                .chain([profile.otherwise])
                .map(Decision::rule)
                .max()
        };
        let set = tables.endpoints[&PodKey::new("x", "p1")].ingress;
        let profiles =
            tables.verdicts.iter().filter(|(key, _)| key.set == set).map(|(_, profile)| profile);
        for rule in profiles.filter_map(|profile| decision(&tables.profiles[profile])) {
            last = last.max(rule);
            let rule = index.rules().get(rule).expect("a number in the tables is a rule's");
            assert_eq!(rule.name, name(round));
        }
    }
    assert!(most < 4096 && last < 4096, "{most} rules, number {last}");
}

/// A policy for one pod that lets in who is so labelled, on ports that take more prefixes than [`crowded`] leaves free.
fn wide(name: &str, number: u16, app: &str, offset: u16) -> Value {
    let ports: Vec<Value> = (0..40)
        .map(|range| json!({"port": 1 + offset + range * 1024, "endPort": 1022 + range * 1024}))
        .collect();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": name},
        "spec": {"podSelector": {"matchLabels": {"number": number.to_string()}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}], "ports": ports}]}})
}

/// A pod so labelled.
fn client(name: &str, app: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "labels": {"app": app}}, "status": {"podIP": address}})
}

/// Whether a refusal names the pod.
fn names(refused: &[Refusal], pod: &str) -> bool {
    refused.iter().flat_map(|refusal| &refusal.pods).any(|named| named.name == pod)
}

#[test]
fn a_class_that_found_no_room_stays_named_and_gets_its_verdict_when_there_is_room() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    let server = PODS + 1;
    index.apply(parsed(&pod(server)));
    // Nobody is so labelled yet: its ports take nothing.
    index.apply(parsed(&wide("wide", server, "a", 0)));
    crowded(&mut index, &mut tables);
    let own = set(&tables, "x", server, Direction::Ingress);
    let server_name = format!("p{server}");
    index.apply(parsed(&client("client", "a", "10.9.0.1")));
    let refused = change(&mut index, &mut tables);
    assert!(names(&refused, &server_name), "{refused:?}");
    let client_in = |tables: &Applied| {
        let pod = PodKey::new("x", &*server_name);
        let decision = tables.decide(&pod, Direction::Ingress, [10, 9, 0, 1].into(), 6, 100);
        decision.is_some_and(Decision::allowed)
    };
    assert!(!client_in(&tables), "there is no room for what lets it in");
    // A change of something else; then one that gives another address the same class.
    index.apply(parsed(&client("other", "b", "10.9.0.2")));
    let refused = change(&mut index, &mut tables);
    assert!(names(&refused, &server_name), "it is said for as long as it is so: {refused:?}");
    for number in
        (0..PODS).filter(|number| set(&tables, "x", *number, Direction::Ingress) > 1).take(20)
    {
        index.delete(&Key::new(Kind::NetworkPolicy, "x", format!("p{number}")));
    }
    for number in (0..PODS).filter(|number| set(&tables, "x", *number, Direction::Ingress) == 1) {
        index.delete(&Key::new(Kind::NetworkPolicy, "x", format!("p{number}")));
    }
    change(&mut index, &mut tables);
    assert_eq!(change(&mut index, &mut tables), [], "there is room now");
    assert_eq!(set(&tables, "x", server, Direction::Ingress), own, "the set is patched in place");
    assert!(client_in(&tables), "the class that was closed is open");
}

#[test]
fn what_was_refused_is_said_and_not_made_anew_while_nothing_is_freed() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    crowded(&mut index, &mut tables);
    index.apply(parsed(&pod(PODS + 1)));
    index.apply(parsed(&client("client", "a", "10.9.0.1")));
    index.apply(parsed(&wide("wide", PODS + 1, "a", 0)));
    let name = format!("p{}", PODS + 1);
    assert!(names(&change(&mut index, &mut tables), &name));
    for _ in 0..2 {
        change(&mut index, &mut tables);
    }
    let before = index.change();
    for round in 0..3 {
        index.apply(parsed(&client("other", "b", &format!("10.9.1.{round}"))));
        let change = index.change();
        change.steps.iter().for_each(|step| tables.apply(step));
        assert_eq!(change.refused, before.refused);
        assert!(names(&change.refused, &name));
        // To compile the refused set tells its clients from others for as long as it lasts, in the tables too.
        let known = format!("{:?}", change.steps);
        assert!(!known.contains("10.9.0.1"), "a refused set is compiled again: {known}");
    }
    assert_eq!(before.steps, [], "nothing happened");
    index.apply(parsed(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "wide"},
        "spec": {"podSelector": {"matchLabels": {"number": (PODS + 1).to_string()}}, "ingress": [{}]}})));
    assert!(!names(&change(&mut index, &mut tables), &name), "its content is another");
    assert!(set(&tables, "x", PODS + 1, Direction::Ingress) > 1);
}

/// Lets in blocks of 64 addresses, an eighth of them on each of eight ports: no answer is that of most.
fn eighths(namespace: &str, number: u16, blocks: u32, port: u16) -> Object {
    let rule = |part: u16| {
        let own = (0..blocks).filter(|block| block % 8 == u32::from(part));
        let cidr =
            |block: u32| json!({"ipBlock": {"cidr": format!("{}/26", Ipv4Addr::from(block << 6))}});
        json!({"from": own.map(cidr).collect::<Vec<_>>(), "ports": [{"port": port + part}]})
    };
    let mut policy = blocks_policy(number);
    policy["spec"]["ingress"] = (0..8).map(rule).collect();
    of(namespace, policy)
}

fn blocks_policy(number: u16) -> Value {
    blocks(&format!("p{number}"), number, 0)
}

#[test]
fn verdicts_of_new_classes_never_overfill_their_map() {
    const VERDICTS: usize = 524_288;
    const NAMESPACES: [&str; 6] = ["", "x", "x", "w", "w", "y"];
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    for number in 1..=5 {
        let namespace = NAMESPACES[usize::from(number)];
        index.apply(of(namespace, pod(number)));
        index.apply(eighths(namespace, number, 110_000, 8 * number));
    }
    assert_eq!(change(&mut index, &mut tables), []);
    let used = tables.verdicts.len();
    assert!(used < VERDICTS && used > VERDICTS - 50_000, "{used}");
    // Blocks within those: a class each, and an entry of it in nearly every set.
    let cidr =
        |block: u32| json!({"ipBlock": {"cidr": format!("{}/28", Ipv4Addr::from(block << 6))}});
    let mut inner = blocks_policy(6);
    inner["spec"]["ingress"][0]["from"] = (0..12_000).map(cidr).collect();
    index.apply(of("z", pod(6)));
    index.apply(of("z", inner));
    let step = index.change();
    for step in &step.steps {
        tables.apply(step);
        assert!(tables.verdicts.len() <= VERDICTS, "more than the map takes");
    }
    let refused = step.refused;
    assert!(!refused.is_empty() && refused.iter().all(|refusal| refusal.map == "VERDICTS"));
    let in_force =
        refused.iter().flat_map(|refusal| &refusal.pods).filter(|pod| pod.namespace != "z");
    assert!(in_force.count() > 0, "a set that was in force");
    let pods: Vec<&PodKey> = refused.iter().flat_map(|refusal| &refusal.pods).collect();
    for pod in &pods {
        let ingress = tables.endpoints[*pod].of(Direction::Ingress);
        assert_eq!(ingress, PodSets::CLOSED.of(Direction::Ingress), "{pod}");
    }
    assert!(set(&tables, "y", 5, Direction::Ingress) > 1, "who has least is refused last");
    assert_eq!(tables.endpoints[&PodKey::new("z", "p6")].of(Direction::Egress), 0);
    for _ in 0..3 {
        let again = index.change();
        for step in &again.steps {
            tables.apply(step);
            assert!(tables.verdicts.len() <= VERDICTS, "more than the map takes");
        }
    }
    index.delete(&Key::new(Kind::NetworkPolicy, "z", "p6"));
    for _ in 0..3 {
        change(&mut index, &mut tables);
    }
    assert_eq!(change(&mut index, &mut tables), [], "there is room now");
    for number in 1..=5 {
        let namespace = NAMESPACES[usize::from(number)];
        assert!(set(&tables, namespace, number, Direction::Ingress) > 1, "{number}");
    }
}
