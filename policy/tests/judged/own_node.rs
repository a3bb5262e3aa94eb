//! The pod's own node: exempt, but where a ClusterNetworkPolicy names nodes and it is among them (ADR 0023).

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use veni_core::config::Enforcing;
use veni_policy::change::Direction;
use veni_policy::index::Scope;
use veni_policy::oracle::Oracle;
use veni_policy::oracle::manifest::{
    cluster_network_policy, expression, labels, namespace, network_policy, node, pod,
};
use veni_policy::security_group::SecurityGroups;

use crate::compiled::Compiled;
use crate::support::{number, pods, put, valid_objects};

const HERE: [u8; 4] = [192, 168, 0, 1];
/// An address of the same node that its object does not name.
const HERE_TOO: [u8; 4] = [172, 17, 0, 1];
const ELSEWHERE: [u8; 4] = [192, 168, 0, 2];
const POD: [u8; 4] = [10, 0, 0, 1];

fn ip(octets: [u8; 4]) -> IpAddr {
    Ipv4Addr::from(octets).into()
}

/// One pod, its node and another.
fn cluster(policies: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let mut pod = pod("x", "a", &json!({"app": "a"}), &[ip(POD)], &json!([]));
    pod["spec"]["nodeName"] = json!("here");
    let mut objects = vec![
        namespace("x", &json!({})),
        pod,
        node("here", &json!({"role": "worker"}), &[ip(HERE)]),
        node("elsewhere", &json!({"role": "control"}), &[ip(ELSEWHERE)]),
    ];
    policies.into_iter().for_each(|policy| put(&mut objects, policy));
    objects
}

fn rules(tier: &str, egress: &Value) -> Value {
    let name = tier.to_lowercase();
    cluster_network_policy(&name, tier, 5, &json!({"namespaces": {}}), &Value::Null, egress)
}

fn rule(action: &str, peers: &Value) -> Value {
    json!({"action": action, "to": peers})
}

fn nodes() -> Value {
    json!([{"nodes": {}}])
}

/// Nothing goes out of the namespace, by NetworkPolicy.
fn closed() -> Value {
    network_policy("x", "closed", &json!({}), None, Some(json!([])))
}

/// (address, TCP port, allowed); on a node that enforces policy in this way.
#[track_caller]
fn check_on(enforcing: Enforcing, manifests: &[Value], expect: &[([u8; 4], u16, bool)]) {
    let objects = valid_objects(manifests);
    let groups = SecurityGroups::default();
    let own = [ip(HERE), ip(HERE_TOO)].into();
    let oracle = Oracle::new(&objects, &groups).enforcing(enforcing).at_node("here", &own);
    for (address, port, allowed) in expect {
        let half = oracle.judge(Direction::Egress, pods(&objects)[0], ip(*address), 6, *port);
        assert_eq!(half.allowed, *allowed, "{address:?} port {port}: {half:?}");
    }
    let probes = expect.iter().map(|(_, port, _)| (number("TCP"), *port)).collect();
    let scope = Scope::Node("here".to_owned());
    let mut compiled =
        Compiled::with_peers(scope, vec![ip(ELSEWHERE)], probes).enforcing(enforcing);
    compiled.own_addresses(own);
    compiled.at_once(&objects, &groups).unwrap_or_else(|error| panic!("compiled: {error}"));
}

#[track_caller]
fn check(policies: impl IntoIterator<Item = Value>, expect: &[([u8; 4], u16, bool)]) {
    check_on(Enforcing::Standard, &cluster(policies), expect);
}

#[test]
fn a_deny_of_nodes_closes_every_address_of_the_own_one_too() {
    let denied = [(HERE, 80, false), (HERE_TOO, 80, false), (ELSEWHERE, 80, false)];
    for tier in ["Admin", "Baseline"] {
        check([rules(tier, &json!([rule("Deny", &nodes())]))], &denied);
    }
    let open = rules("Admin", &json!([]));
    check([open], &[(HERE, 80, true), (ELSEWHERE, 80, true)]);
}

#[test]
fn only_nodes_that_are_selected_are_closed() {
    for (role, here, elsewhere) in [("worker", false, true), ("control", true, false)] {
        let peers = json!([{"nodes": labels(&json!({"role": role}))}]);
        let expect = [(HERE, 80, here), (HERE_TOO, 80, here), (ELSEWHERE, 80, elsewhere)];
        check([rules("Admin", &json!([rule("Deny", &peers)]))], &expect);
    }
}

#[test]
fn only_pods_that_are_selected_are_closed() {
    for (pods, allowed) in [("a", false), ("b", true)] {
        let subject = json!({"pods": {
            "namespaceSelector": {}, "podSelector": expression("app", "In", &[pods]),
        }});
        let egress = json!([rule("Deny", &nodes())]);
        let policy = cluster_network_policy("p", "Admin", 5, &subject, &Value::Null, &egress);
        check([policy], &[(HERE, 80, allowed)]);
    }
}

#[test]
fn what_names_no_nodes_closes_nothing_at_the_own_one() {
    let everything = json!([{"networks": ["0.0.0.0/0"]}]);
    let networks = rule("Deny", &everything);
    let others = [(HERE, 80, true), (HERE_TOO, 80, true), (ELSEWHERE, 80, false)];
    check([rules("Admin", &json!([networks]))], &others);
    check([closed()], &others);
    check_on(Enforcing::Strict, &cluster([]), &others);
    // Nor where a later rule names them, on other ports.
    let mut ssh = rule("Deny", &nodes());
    ssh["protocols"] = json!([{"tcp": {"destinationPort": {"number": 22}}}]);
    let expect =
        [(HERE, 22, false), (HERE_TOO, 22, false), (HERE, 80, true), (ELSEWHERE, 80, false)];
    let both = rules("Admin", &json!([networks, ssh]));
    check([both.clone()], &expect);
    check([both.clone(), closed()], &expect);
    check_on(Enforcing::Strict, &cluster([both]), &expect);
}

#[test]
fn an_accept_or_pass_before_counts_by_any_peer() {
    let this = json!([{"networks": ["192.168.0.1/32"]}]);
    for action in ["Accept", "Pass"] {
        let ordered = json!([rule(action, &this), rule("Deny", &nodes())]);
        check(
            [rules("Admin", &ordered)],
            &[(HERE, 80, true), (HERE_TOO, 80, false), (ELSEWHERE, 80, false)],
        );
    }
    let ordered = json!([rule("Deny", &nodes()), rule("Accept", &this)]);
    check([rules("Admin", &ordered)], &[(HERE, 80, false)]);
}

#[test]
fn network_policies_accept_the_own_node_and_hide_the_baseline_tier() {
    let baseline = || rules("Baseline", &json!([rule("Deny", &nodes())]));
    let admin = |action| rules("Admin", &json!([rule(action, &nodes())]));
    check([baseline(), closed()], &[(HERE, 80, true), (ELSEWHERE, 80, false)]);
    check([admin("Pass"), baseline()], &[(HERE, 80, false), (ELSEWHERE, 80, false)]);
    check([admin("Pass"), baseline(), closed()], &[(HERE, 80, true), (ELSEWHERE, 80, false)]);
    check([admin("Accept"), baseline()], &[(HERE, 80, true), (ELSEWHERE, 80, true)]);
    check([admin("Deny"), closed()], &[(HERE, 80, false), (ELSEWHERE, 80, false)]);
}

#[test]
fn security_groups_have_no_say_about_the_own_node() {
    let mut objects = cluster([rules("Admin", &json!([rule("Accept", &nodes())]))]);
    objects[1]["metadata"]["annotations"] = json!({"vpc.amazonaws.com/security-groups": "none"});
    let objects = crate::support::objects(&objects);
    let groups = SecurityGroups::default();
    let own = [ip(HERE)].into();
    let oracle = Oracle::new(&objects, &groups).at_node("here", &own);
    for (address, allowed) in [(HERE, true), (ELSEWHERE, false)] {
        let half = oracle.judge(Direction::Egress, pods(&objects)[0], ip(address), 6, 80);
        assert_eq!(half.allowed, allowed, "{address:?}: {half:?}");
    }
    let scope = Scope::Node("here".to_owned());
    let mut compiled = Compiled::with_peers(scope, vec![ip(ELSEWHERE)], vec![(6, 80)]);
    compiled.own_addresses(own);
    compiled.at_once(&objects, &groups).unwrap_or_else(|error| panic!("compiled: {error}"));
}

#[test]
fn what_carries_the_nodes_address_into_a_pod_is_judged_as_before() {
    let policy = network_policy("x", "closed", &json!({}), Some(json!([])), None);
    let deny = rules("Admin", &json!([rule("Deny", &nodes())]));
    let objects = valid_objects(&cluster([policy, deny]));
    let groups = SecurityGroups::default();
    let own = [ip(HERE)].into();
    let oracle = Oracle::new(&objects, &groups).at_node("here", &own);
    let half = oracle.judge(Direction::Ingress, pods(&objects)[0], ip(HERE), 6, 80);
    assert!(!half.allowed, "{half:?}");
}
