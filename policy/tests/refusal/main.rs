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

mod addresses;
mod denies;
mod gone;
mod room;

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
