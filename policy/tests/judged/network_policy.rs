//! What NetworkPolicy's text says and Kubernetes' suite leaves out, with expectations written by hand.

use std::net::IpAddr;

use serde_json::{Value, json};
use veni_core::config::Enforcing;
use veni_policy::change::Step;
use veni_policy::index::{Index, Scope};
use veni_policy::oracle::manifest::{labels, namespace, network_policy, node, pod};
use veni_policy::oracle::{End, Family, Oracle};
use veni_policy::security_group::SecurityGroups;

use crate::support::{Expect, check_poke, check_state, objects, put, valid_objects};

/// Pods x/a, x/b and y/a; x/a serves `web` at 80, y/a at 8080 and `dns` at 53 over UDP.
fn cluster() -> Vec<Value> {
    let web = |port: u16| json!({"name": "web", "containerPort": port});
    let dns = json!({"name": "dns", "containerPort": 53, "protocol": "UDP"});
    let address = |namespace, name| [IpAddr::from([10, 0, namespace, name])];
    let named = |name: &str| json!({"pod": name});
    vec![
        namespace("x", &json!({"team": "red"})),
        namespace("y", &json!({"team": "blue"})),
        pod("x", "a", &named("a"), &address(0, 1), &json!([web(80)])),
        pod("x", "b", &named("b"), &address(0, 2), &json!([web(80)])),
        pod("y", "a", &named("a"), &address(1, 1), &json!([web(8080), dns])),
    ]
}

/// A policy in x on everything, `spec` as it stands.
fn policy(spec: &Value) -> Value {
    let mut policy = network_policy("x", "policy", &json!({}), None, None);
    policy["spec"] = spec.clone();
    policy
}

#[track_caller]
fn check(spec: &Value, protocol: &str, port: u16, expect: Expect<'_>) {
    let mut state = cluster();
    state.push(policy(spec));
    check_state(&state, protocol, port, expect);
}

#[track_caller]
fn poke(spec: &Value, pokes: &[(&str, &str, &str, u16, bool)]) {
    let mut state = cluster();
    state.push(policy(spec));
    let objects = objects(&state);
    pokes.iter().for_each(|one| check_poke(&objects, *one));
}

const IN: Expect<'static> = &[("*", "x", false)];
const OUT: Expect<'static> = &[("x", "*", false)];
const BOTH: Expect<'static> = &[("*", "x", false), ("x", "*", false)];

#[test]
fn policy_types_default_to_ingress_and_egress_when_there_is_one() {
    check(&json!({"podSelector": {}}), "TCP", 80, IN);
    check(&json!({"podSelector": {}, "policyTypes": []}), "TCP", 80, IN);
    check(&json!({"podSelector": {}, "ingress": []}), "TCP", 80, IN);
    check(&json!({"podSelector": {}, "ingress": [{}]}), "TCP", 80, &[]);
    check(&json!({"podSelector": {}, "egress": []}), "TCP", 80, IN);
    check(
        &json!({"podSelector": {}, "egress": [], "policyTypes": ["Ingress", "Egress"]}),
        "TCP",
        80,
        BOTH,
    );
    check(&json!({"podSelector": {}, "egress": [{}]}), "TCP", 80, IN);
    check(&json!({"podSelector": {}, "policyTypes": ["Egress"]}), "TCP", 80, OUT);
    check(&json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": []}), "TCP", 80, OUT);
}

#[test]
fn an_absent_selector_selects_the_whole_namespace() {
    check(&json!({}), "TCP", 80, IN);
    check(&json!({"podSelector": null}), "TCP", 80, IN);
}

#[test]
fn absent_and_empty_lists_are_any() {
    for rule in [json!({}), json!({"from": [], "ports": []}), json!({"from": null, "ports": null})]
    {
        check(&json!({"ingress": [rule]}), "SCTP", 7, &[]);
        poke(&json!({"ingress": [rule]}), &[("8.8.8.8", "x/a", "ICMP", 0x0800, true)]);
    }
}

#[test]
fn an_empty_selector_is_not_an_absent_one() {
    let rules = |peer: Value| json!({"ingress": [{"from": [peer]}]});
    let own: Expect<'_> = &[("y", "x", false)];
    check(&rules(json!({"podSelector": {}})), "TCP", 80, own);
    check(&rules(json!({"namespaceSelector": {}})), "TCP", 80, &[]);
    check(&rules(json!({"namespaceSelector": {}, "podSelector": {}})), "TCP", 80, &[]);
    // Pods only: an address that is no pod's meets no selector.
    let everyone = rules(json!({"namespaceSelector": {}}));
    poke(&everyone, &[("8.8.8.8", "x/a", "TCP", 80, false)]);
}

#[test]
fn an_invalid_peer_opens_nothing_and_the_policy_still_isolates() {
    for peer in [json!({}), json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}})] {
        poke(&json!({"ingress": [{"from": [peer]}]}), &[("y/a", "x/a", "TCP", 80, false)]);
    }
}

#[test]
fn end_port_closes_a_range() {
    let ports = json!([{"protocol": "TCP", "port": 80, "endPort": 90}]);
    for (port, allowed) in [(79, false), (80, true), (85, true), (90, true), (91, false)] {
        let spec = json!({"ingress": [{"ports": ports}]});
        poke(&spec, &[("y/a", "x/a", "TCP", port, allowed), ("y/a", "x/a", "UDP", port, false)]);
    }
}

#[test]
fn a_named_port_has_the_destinations_number_and_protocol() {
    let egress = json!({"egress": [{"ports": [{"port": "web"}]}], "policyTypes": ["Egress"]});
    let pokes = [
        ("x/a", "x/b", "TCP", 80, true),
        ("x/a", "x/b", "TCP", 8080, false),
        ("x/a", "y/a", "TCP", 8080, true),
        ("x/a", "y/a", "TCP", 80, false),
        ("x/a", "8.8.8.8", "TCP", 80, false),
    ];
    poke(&egress, &pokes);
    let dns = json!({"egress": [{"ports": [{"port": "dns"}]}], "policyTypes": ["Egress"]});
    poke(&dns, &[("x/a", "y/a", "TCP", 53, false), ("x/a", "y/a", "UDP", 53, false)]);
    let ports = json!([{"protocol": "UDP", "port": "dns"}]);
    let udp = json!({"egress": [{"ports": ports}], "policyTypes": ["Egress"]});
    poke(&udp, &[("x/a", "y/a", "UDP", 53, true), ("x/a", "x/b", "UDP", 53, false)]);
}

#[test]
fn an_exception_holds_for_its_own_block_only() {
    let block = |cidr: &str, except: Value| json!({"ipBlock": {"cidr": cidr, "except": except}});
    let hole = block("10.0.0.0/8", json!(["10.0.1.0/24"]));
    let spec = json!({"ingress": [{"from": [hole]}]});
    poke(&spec, &[("y/a", "x/a", "TCP", 80, false), ("x/b", "x/a", "TCP", 80, true)]);
    let again = block("10.0.1.1/32", json!(null));
    for spec in [
        json!({"ingress": [{"from": [hole, again]}]}),
        json!({"ingress": [{"from": [hole]}, {"from": [again]}]}),
        json!({"ingress": [{"from": [hole]}, {"from": [{"namespaceSelector": {}}]}]}),
    ] {
        poke(&spec, &[("y/a", "x/a", "TCP", 80, true)]);
    }
}

#[test]
fn other_protocols_pass_where_a_rule_names_no_ports() {
    let to_b = json!({"podSelector": labels(&json!({"pod": "b"}))});
    let peers = json!({"ingress": [{"from": [to_b]}]});
    let pokes = [("x/b", "x/a", "ICMP", 0x0800, true), ("y/a", "x/a", "ICMP", 0x0800, false)];
    poke(&peers, &pokes);
    for ports in [json!([{"protocol": "TCP"}]), json!([{"port": 80}])] {
        let spec = json!({"ingress": [{"from": [to_b], "ports": ports}]});
        poke(&spec, &[("x/b", "x/a", "ICMP", 0x0800, false), ("x/b", "x/a", "TCP", 80, true)]);
    }
}

#[test]
fn host_network_pods_are_addresses() {
    let ip = IpAddr::from([192, 168, 0, 1]);
    let mut host = pod("x", "host", &json!({"pod": "host"}), &[ip], &json!([]));
    host["spec"]["hostNetwork"] = json!(true);
    let mut state = cluster();
    state.push(node("node", &json!({}), &[ip]));
    state.push(host);
    let run = |policy: Value, pokes: &[(&str, &str, &str, u16, bool)]| {
        let mut state = state.clone();
        put(&mut state, policy);
        let objects = valid_objects(&state);
        pokes.iter().for_each(|one| check_poke(&objects, *one));
    };
    let everyone = json!({"ingress": [{"from": [{"namespaceSelector": {}}]}]});
    let pokes = [
        ("x/host", "x/a", "TCP", 80, false),
        ("x/b", "x/a", "TCP", 80, true),
        ("x/a", "x/host", "TCP", 80, true),
    ];
    run(policy(&everyone), &pokes);
    let block = json!({"ingress": [{"from": [{"ipBlock": {"cidr": "192.168.0.0/24"}}]}]});
    run(policy(&block), &[("x/host", "x/a", "TCP", 80, true), ("x/b", "x/a", "TCP", 80, false)]);
    // Nothing is in force on the host's own pod.
    let closed = json!({"policyTypes": ["Ingress", "Egress"]});
    run(policy(&closed), &[("y/a", "x/host", "TCP", 80, true), ("x/host", "y/a", "TCP", 80, true)]);
}

#[test]
fn a_finished_pod_gives_its_address_up() {
    let mut state = cluster();
    let mut done =
        pod("x", "done", &json!({"pod": "b"}), &[IpAddr::from([10, 0, 1, 1])], &json!([]));
    done["status"]["phase"] = json!("Succeeded");
    state.insert(0, done);
    let peer = json!({"podSelector": labels(&json!({"pod": "b"}))});
    state.push(policy(&json!({"ingress": [{"from": [peer]}]})));
    let objects = valid_objects(&state);
    check_poke(&objects, ("y/a", "x/a", "TCP", 80, false));
    check_poke(&objects, ("10.0.1.1", "x/a", "TCP", 80, false));
    check_poke(&objects, ("x/b", "x/a", "TCP", 80, true));
}

#[test]
fn a_pod_reaches_itself_whatever_denies() {
    let closed = json!({"policyTypes": ["Ingress", "Egress"]});
    poke(&closed, &[("x/a", "x/a", "TCP", 80, true), ("x/a", "10.0.0.1", "TCP", 80, true)]);
}

#[test]
fn an_unknown_namespace_has_only_its_name() {
    let mut state = cluster();
    state.retain(|object| object["kind"] != "Namespace");
    let by = |key: &str, value: &str| json!({"ingress": [{"from": [{"namespaceSelector": labels(&json!({key: value}))}]}]});
    let mut by_name = state.clone();
    by_name.push(policy(&by("kubernetes.io/metadata.name", "y")));
    check_state(&by_name, "TCP", 80, &[("x", "x", false)]);
    state.push(policy(&by("team", "blue")));
    check_state(&state, "TCP", 80, &[("*", "x", false)]);
}

#[test]
fn more_ports_than_a_profile_holds() {
    // Every tenth port over TCP, every fifteenth over UDP, and overlapping ranges above.
    let mut ports: Vec<Value> = Vec::new();
    ports.extend((10..400).step_by(10).map(|port| json!({"protocol": "TCP", "port": port})));
    ports.extend((15..400).step_by(15).map(|port| json!({"protocol": "UDP", "port": port})));
    for (first, last) in [(1000, 2000), (1500, 2500), (2501, 2600), (65000, 65535)] {
        ports.push(json!({"protocol": "SCTP", "port": first, "endPort": last}));
    }
    let spec = json!({"ingress": [{"from": [{"namespaceSelector": {}}], "ports": ports}]});
    let mut pokes = Vec::new();
    for port in [9, 10, 11, 15, 30, 390, 399, 400] {
        let (tcp, udp) = (port % 10 == 0 && port < 400, port % 15 == 0 && port < 400);
        pokes.push(("y/a", "x/a", "TCP", port, tcp));
        pokes.push(("y/a", "x/a", "UDP", port, udp));
    }
    for (port, allowed) in
        [(999, false), (1000, true), (2501, true), (2600, true), (2601, false), (65535, true)]
    {
        pokes.push(("y/a", "x/a", "SCTP", port, allowed));
    }
    pokes.push(("y/a", "x/a", "ICMP", 0x0800, false));
    poke(&spec, &pokes);
}

/// AWS's modes: what holds for pods that no policy selects, and whether policies hold at all.
#[test]
fn a_strict_node_closes_pods_that_no_policy_selects_and_one_without_policy_opens_all() {
    let address = |last| IpAddr::from([10, 0, 0, last]);
    let pod =
        |name: &str, last| pod("x", name, &json!({"app": name}), &[address(last)], &json!([]));
    let ingress = json!([{"from": [{"podSelector": {}}]}]);
    let selects_b = network_policy("x", "b", &labels(&json!({"app": "b"})), Some(ingress), None);
    let accept = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "admin"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "egress": [{"action": "Accept", "to": [{"networks": ["192.0.2.0/24"]}]}]}});
    let manifests = [namespace("x", &json!({})), pod("a", 1), pod("b", 2), selects_b, accept];
    let objects = valid_objects(&manifests);
    let groups = SecurityGroups::default();
    let outside = IpAddr::from([192, 0, 2, 1]);
    for (from, to, [none, standard, strict]) in [
        // b is selected for ingress alone: what leaves it is open; a is not selected at all.
        (address(2), IpAddr::from([1, 1, 1, 1]), [true, true, true]),
        (address(1), address(2), [true, true, false]),
        (address(2), address(1), [true, true, false]),
        (outside, address(2), [true, false, false]),
        (outside, address(1), [true, true, false]),
        (address(1), outside, [true, true, true]),
        (address(1), address(1), [true, true, true]),
    ] {
        for (mode, allowed) in
            [(Enforcing::None, none), (Enforcing::Standard, standard), (Enforcing::Strict, strict)]
        {
            let mut index = Index::new(Scope::All).enforcing(mode);
            index.reset(objects.clone());
            drop(index.change());
            let said = index.judge(from, to, 6, 80);
            assert_eq!(said.allowed, allowed, "{mode:?}: {from} to {to}: {said:?}");
            let oracle = Oracle::new(&objects, &groups).enforcing(mode);
            let ends = [from, to].map(End::Address);
            let verdict = oracle.verdict(&ends[0], &ends[1], 6, 80, Family::V4);
            assert_eq!(verdict.allowed(), allowed, "{mode:?}: {from} to {to}: {verdict:?}");
        }
    }
}

#[test]
fn a_new_address_that_no_rule_tells_from_others_does_not_have_all_flows_judged_again() {
    let pod = |name: &str, node: &str, address: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "x", "name": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": address},
        })
    };
    let allow = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "allow"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "a"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}],
        },
    });
    let mut index = Index::new(Scope::Node("n1".to_owned()));
    let mut epochs = |manifests: &[Value]| {
        objects(manifests).into_iter().for_each(|object| index.apply(object));
        let steps = index.change().steps;
        assert!(!steps.is_empty());
        steps.iter().filter(|step| matches!(step, Step::Epoch)).count()
    };
    epochs(&[pod("a", "n1", "10.0.0.1"), allow]);
    assert_eq!(epochs(&[pod("c", "n2", "10.0.0.3")]), 0);
    assert_eq!(epochs(&[pod("b", "n2", "10.0.0.2")]), 1);
    let mut other = pod("b", "n2", "10.0.0.2");
    other["metadata"]["labels"] = json!({"app": "c"});
    assert_eq!(epochs(&[other]), 1, "its flows are not allowed any more");
}
