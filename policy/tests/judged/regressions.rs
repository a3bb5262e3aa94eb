//! Histories that the compiler once got wrong, shrunk, by what was wrong.

use std::net::IpAddr;

use serde_json::{Value, json};
use veni_policy::change::PodKey;
use veni_policy::index::Scope;
use veni_policy::oracle::manifest::{cluster_network_policy, expression, network_policy, pod};
use veni_policy::security_group::{
    GroupPeer, GroupProtocol, GroupRule, GroupState, ResolvedGroup, SecurityGroups,
};

use crate::compiled::Compiled;
use crate::generate::Change::{self, Apply, Attach, Delete, Detach, Groups};

/// Runs a history and checks it after every step.
#[track_caller]
fn check(history: &[&[Change]]) {
    let mut compiled = Compiled::new(Scope::All);
    for batch in history {
        compiled.apply(batch).unwrap_or_else(|error| panic!("{batch:?}: {error}"));
    }
    compiled.compare_with_fresh().unwrap_or_else(|error| panic!("{error}"));
}

fn a_pod(namespace: &str, name: &str, labels: &Value, ip: &str, ports: &Value) -> Value {
    let address: IpAddr = ip.parse().expect("an address");
    pod(namespace, name, labels, &[address], ports)
}

#[test]
fn a_profile_that_came_and_went_in_one_change_is_written_when_it_is_used() {
    let none = json!([]);
    let subject = json!({"pods": {
        "namespaceSelector": expression("a", "NotIn", &["1"]),
        "podSelector": expression("a", "In", &["1"]),
    }});
    let named = json!([{"destinationNamedPort": "alt"}]);
    let rules = json!([{"action": "Accept", "to": [{"namespaces": {}}], "protocols": named}]);
    let policy = cluster_network_policy("c0", "Admin", 1, &subject, &json!(null), &rules);
    let mut grouped = a_pod("n1", "p1", &json!({}), "10.0.1.1", &none);
    grouped["metadata"]["annotations"] = json!({"vpc.amazonaws.com/security-groups": "sg-0"});
    let served = json!([{"name": "alt", "containerPort": 80}]);
    let p0 = a_pod("n0", "p0", &json!({}), "10.0.0.0", &served);
    let p1 = a_pod("n0", "p1", &json!({"a": "1"}), "10.0.0.1", &none);
    let isolate = network_policy("n0", "q0", &json!({}), None, Some(json!([])));
    check(&[
        &[Apply(policy)],
        &[Apply(grouped)],
        &[Groups(one_group()), Apply(p0.clone())],
        &[Apply(p1)],
        &[Apply(isolate), Delete(p0)],
    ]);
}

/// sg-0, which lets everything out to two IPv6 addresses.
fn one_group() -> SecurityGroups {
    let id: veni_core::id::SecurityGroupId = "sg-0".parse().expect("a group");
    let peer = GroupPeer::Cidr("fd00::/127".parse().expect("a block"));
    let rule = GroupRule {
        id: "sgr-0".to_owned(),
        protocol: GroupProtocol::Any,
        first: 0,
        last: 65535,
        peer,
    };
    let group = ResolvedGroup {
        id: id.clone(),
        state: GroupState::Resolved,
        ingress: vec![],
        egress: vec![rule],
    };
    SecurityGroups { groups: [(id, group)].into(), ..SecurityGroups::default() }
}

#[test]
fn the_status_of_a_detached_pod_counts_again() {
    let selector = expression("a", "NotIn", &["1"]);
    let rules = json!([{"from": [{"namespaceSelector": selector}]}]);
    let policy = network_policy("n1", "q0", &json!({}), Some(rules), None);
    let p2 = PodKey::new("n0", "p2");
    check(&[
        &[Apply(a_pod("n0", "p2", &json!({}), "fd00::2", &json!([]))), Apply(policy)],
        &[Attach(p2.clone(), vec![IpAddr::from([10, 0, 0, 2])])],
        &[Apply(a_pod("n1", "p0", &json!({}), "10.0.1.0", &json!([])))],
        &[Detach(p2)],
    ]);
}

#[test]
fn what_was_passed_on_stays_passed_where_a_later_rule_meets_the_same_peer() {
    let to = json!([{"networks": ["10.0.0.0/23"]}]);
    let tcp = json!([{"tcp": {"destinationPort": {"number": 80}}}]);
    for last in ["Accept", "Deny"] {
        let rules = json!([
            {"action": "Pass", "to": to, "protocols": tcp},
            {"action": last, "to": [{"namespaces": {}}]},
        ]);
        let subject = json!({"namespaces": {}});
        let policy = cluster_network_policy("c0", "Admin", 1, &subject, &json!(null), &rules);
        check(&[
            &[Apply(policy), Apply(a_pod("n1", "p0", &json!({}), "10.0.1.0", &json!([])))],
            &[Apply(a_pod("n0", "p0", &json!({}), "10.0.0.0", &json!([])))],
        ]);
    }
}

#[test]
fn an_address_that_goes_is_not_judged_by_what_its_class_becomes() {
    let rules = json!([{"action": "Deny", "to": [{"pods": {"namespaceSelector": {}, "podSelector": {}}}],
        "protocols": [{"destinationNamedPort": "web"}]}]);
    let subject = json!({"namespaces": {}});
    let policy = cluster_network_policy("c0", "Admin", 1, &subject, &json!(null), &rules);
    let mut both = a_pod("n1", "p0", &json!({}), "10.0.1.0", &json!([]));
    both["status"]["podIPs"] = json!([{"ip": "10.0.1.0"}, {"ip": "fd00::100"}]);
    let served = json!([{"name": "web", "containerPort": 80}]);
    let one = a_pod("n1", "p0", &json!({}), "10.0.1.0", &served);
    check(&[&[Apply(policy), Apply(both)], &[Apply(one)]]);
}

/// Each time the peer's class becomes another's in place, so that nothing is deleted and no grace is needed for that.
#[test]
fn a_profiles_number_is_used_again_only_after_a_grace() {
    let peer = |app: &str| a_pod("n0", "p1", &json!({"app": app}), "10.0.0.1", &json!([]));
    let rule = |app: &str, port: u16| json!({"from": [{"podSelector": {"matchLabels": {"app": app}}}], "ports": [{"port": port}]});
    let rules = json!([rule("a", 80), rule("b", 81), rule("c", 443), rule("d", 444)]);
    let server = a_pod("n0", "p0", &json!({"app": "s"}), "10.0.0.0", &json!([]));
    let policy =
        network_policy("n0", "q0", &json!({"matchLabels": {"app": "s"}}), Some(rules), None);
    check(&[
        &[Apply(policy), Apply(server), Apply(peer("a"))],
        &[Apply(peer("b"))],
        &[Apply(peer("c"))],
        &[Apply(peer("d"))],
    ]);
}
