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
