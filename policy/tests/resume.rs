//! A daemon that starts over the tables of an earlier one: no verdict changes but from the old to the new, at whatever
//! step the earlier one ended.

use std::net::IpAddr;

use serde_json::{Value, json};
use veni_ebpf_common::table::Decision;
use veni_policy::{
    applied::Applied,
    change::{Direction, PodKey},
    index::{Index, Scope},
    object::{self, Object},
};

const PORTS: [u16; 4] = [53, 80, 443, 8080];

fn pod(number: u8, app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": format!("p{number}"), "labels": {"app": app}},
        "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"podIP": format!("10.0.0.{number}")}})
}

fn policy(name: &str, selects: &str, from: &Value, ports: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": name},
        "spec": {"podSelector": {"matchLabels": {"app": selects}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": from, "ports": ports}], "egress": [{"to": from, "ports": ports}]}})
}

fn pods() -> Vec<Value> {
    (1..=8).map(|number| pod(number, ["web", "db", "cache"][usize::from(number) % 3])).collect()
}

/// What the earlier daemon knew, and what the later one is told.
fn before() -> Vec<Value> {
    let mut objects = pods();
    objects.push(policy(
        "web",
        "web",
        &json!([{"podSelector": {"matchLabels": {"app": "db"}}}]),
        &json!([{"port": 80}]),
    ));
    objects.push(policy(
        "db",
        "db",
        &json!([{"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.4/30"]}}]),
        &json!([{"port": "http"}]),
    ));
    objects
}

fn after() -> Vec<Value> {
    let mut objects = pods();
    objects[2] = pod(3, "db");
    let many: Vec<Value> = (0..12).map(|port| json!({"port": 70 + 3 * port})).collect();
    objects.push(policy(
        "web",
        "web",
        &json!([{"podSelector": {"matchLabels": {"app": "cache"}}}]),
        &json!(many),
    ));
    objects.push(policy(
        "db",
        "db",
        &json!([{"ipBlock": {"cidr": "10.0.0.0/28"}}]),
        &json!([{"port": 443}]),
    ));
    objects
}

fn parsed(values: &[Value]) -> Vec<Object> {
    let read = |value| object::parse(value).expect("valid").expect("a kind that counts");
    values.iter().map(read).collect()
}

fn index(values: &[Value]) -> Index {
    let mut index = Index::new(Scope::All);
    index.reset(parsed(values));
    index
}

fn peers() -> Vec<IpAddr> {
    let pods = (1..=9).map(|number| IpAddr::from([10, 0, 0, number]));
    pods.chain([IpAddr::from([10, 0, 0, 200]), IpAddr::from([8, 8, 8, 8])]).collect()
}

/// Whether each probe passes. Rule numbers differ between daemons.
fn verdicts(tables: &Applied) -> Vec<Option<bool>> {
    let mut verdicts = Vec::new();
    for number in 1..=8 {
        let pod = PodKey::new("x", format!("p{number}"));
        for direction in Direction::BOTH {
            for peer in peers() {
                for port in PORTS {
                    let decision = tables.decide(&pod, direction, peer, 6, port);
                    verdicts.push(decision.map(Decision::allowed));
                }
            }
        }
    }
    verdicts
}

fn carry_out(tables: &mut Applied, index: &mut Index, allowed: [&[Option<bool>]; 2]) {
    for step in index.change().steps {
        tables.apply(&step);
        for (probe, verdict) in verdicts(tables).iter().enumerate() {
            let fits = allowed.iter().any(|state| state[probe] == *verdict);
            assert!(fits, "probe {probe} is {verdict:?} after {step:?}");
        }
    }
}

fn tables_of(values: &[Value]) -> Applied {
    let mut tables = Applied::default();
    index(values).change().steps.iter().for_each(|step| tables.apply(step));
    tables
}

#[test]
fn a_later_daemon_goes_from_the_old_verdicts_to_the_new() {
    let mut tables = tables_of(&before());
    let (old, new) = (verdicts(&tables), verdicts(&tables_of(&after())));
    assert_ne!(old, new);
    let mut index = Index::resume(Scope::All, &tables.found());
    carry_out(&mut tables, &mut index, [&old, &old]);
    index.reset(parsed(&after()));
    index.complete();
    carry_out(&mut tables, &mut index, [&old, &new]);
    assert_eq!(verdicts(&tables), new);
    carry_out(&mut tables, &mut index, [&new, &new]);
    let fresh = tables_of(&after());
    assert_eq!(tables.class_v4.len(), fresh.class_v4.len());
    assert_eq!(tables.cidr_v4.len(), fresh.cidr_v4.len());
    assert_eq!(tables.verdicts.len(), fresh.verdicts.len(), "nothing is left behind");
    assert_eq!(tables.ports.len(), fresh.ports.len());
}

#[test]
fn a_daemon_that_ended_at_any_step_is_followed_without_a_third_verdict() {
    let mut earlier = index(&before());
    let mut tables = Applied::default();
    earlier.change().steps.iter().for_each(|step| tables.apply(step));
    let old = verdicts(&tables);
    let new = verdicts(&tables_of(&after()));
    earlier.reset(parsed(&after()));
    let steps = earlier.change().steps;
    for end in 0..=steps.len() {
        let mut tables = tables.clone();
        steps[..end].iter().for_each(|step| tables.apply(step));
        let mut index = Index::resume(Scope::All, &tables.found());
        index.reset(parsed(&after()));
        index.complete();
        carry_out(&mut tables, &mut index, [&old, &new]);
        assert_eq!(verdicts(&tables), new, "ended after {end} steps");
    }
}

#[test]
fn a_pod_without_an_object_keeps_its_set_until_the_objects_are_complete() {
    let mut tables = tables_of(&before());
    let old = verdicts(&tables);
    let mut index = Index::resume(Scope::All, &tables.found());
    let known = parsed(&before()).split_off(1);
    known.into_iter().for_each(|object| index.apply(object));
    let own = old.len() / 8;
    for step in index.change().steps {
        tables.apply(&step);
        assert_eq!(verdicts(&tables)[..own], old[..own], "after {step:?}");
    }
    index.complete();
    index.change().steps.iter().for_each(|step| tables.apply(step));
    let first = PodKey::new("x", "p1");
    let decision = tables.decide(&first, Direction::Ingress, IpAddr::from([10, 0, 0, 2]), 6, 80);
    assert!(decision.is_some_and(|decision| !decision.allowed()), "nothing is known of it");
}

/// A sandbox that is made anew while the API does not answer: the pod's old sets are all that is known.
#[test]
fn a_pod_that_is_made_anew_keeps_its_set_until_the_objects_are_complete() {
    let mut tables = tables_of(&before());
    let pod = PodKey::new("x", "p1");
    let sets = tables.endpoints[&pod];
    let mut index = Index::resume(Scope::All, &tables.found());
    index.attach(pod.clone(), vec![IpAddr::from([10, 0, 0, 1])]);
    index.change().steps.iter().for_each(|step| tables.apply(step));
    index.detach(&pod);
    index.change().steps.iter().for_each(|step| tables.apply(step));
    index.attach(pod.clone(), vec![IpAddr::from([10, 0, 0, 77])]);
    index.change().steps.iter().for_each(|step| tables.apply(step));
    assert_eq!(index.pod_sets(&pod), Some(sets));
    index.detach(&pod);
    index.complete();
    index.change().steps.iter().for_each(|step| tables.apply(step));
    assert_eq!(index.pod_sets(&pod), None, "gone, and not among the objects");
}

/// Its object is there, and what decides about it is not known yet.
#[test]
fn a_pod_whose_object_comes_later_keeps_its_set_until_it_does_or_is_let_go() {
    for comes in [true, false] {
        let mut tables = tables_of(&before());
        let (first, second) = (PodKey::new("x", "p1"), PodKey::new("x", "p2"));
        let old = [tables.endpoints[&first], tables.endpoints[&second]];
        let mut index = Index::resume(Scope::All, &tables.found());
        parsed(&before()).split_off(2).into_iter().for_each(|object| index.apply(object));
        index.complete_but(|pod| *pod == first);
        for step in index.change().steps {
            tables.apply(&step);
            assert_eq!(index.pod_sets(&first), Some(old[0]), "after {step:?}");
        }
        assert_eq!(tables.endpoints[&first], old[0]);
        assert_ne!(tables.endpoints.get(&second), Some(&old[1]), "it has no object");
        index.let_go(&first);
        if comes {
            index.apply(parsed(&before()).remove(0));
        }
        index.change().steps.iter().for_each(|step| tables.apply(step));
        let from = IpAddr::from([10, 0, 0, 3]);
        let decision = tables.decide(&first, Direction::Ingress, from, 6, 8080);
        let allowed = decision.is_some_and(|decision| decision.allowed());
        let known = tables_of(&before()).decide(&first, Direction::Ingress, from, 6, 8080);
        assert_eq!(allowed, comes && known.is_some_and(|known| known.allowed()));
    }
}
