//! A map that is full refuses the new set, truncates nothing, and takes it when there is room.

use serde_json::{Value, json};
use veni_policy::{
    applied::Applied,
    change::{Direction, PodKey, PodSets},
    index::{Index, Scope},
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
