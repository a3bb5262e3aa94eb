//! ClusterNetworkPolicy: the themes of network-policy-api's conformance suite in both tiers, and what its text says
//! beyond them, with expectations written by hand.
//!
//! Four houses with two pods each, `web` being TCP 80; forest/centaur is on its node's network.

use std::net::IpAddr;
use std::slice;

use serde_json::{Value, json};
use veni_policy::oracle::manifest::{
    cluster_network_policy, expression, labels, namespace, network_policy, node, pod,
};

use crate::support::{check_poke, objects, put, valid_objects};

const HOUSES: [&str; 4] = ["gryffindor", "ravenclaw", "hufflepuff", "slytherin"];
const TIERS: [&str; 2] = ["Admin", "Baseline"];

/// From, to (a pod or an address), protocol, port, whether it passes.
type Poke<'a> = (&'a str, &'a str, &'a str, u16, bool);

fn address(house: usize, index: u8) -> IpAddr {
    IpAddr::from([10, 2, u8::try_from(house).expect("four houses"), 10 + index])
}

fn houses() -> Vec<Value> {
    let ports = json!([
        {"name": "web", "containerPort": 80}, {"name": "web-alt", "containerPort": 8080},
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "diameter", "containerPort": 9003, "protocol": "SCTP"},
    ]);
    let mut objects = Vec::new();
    for (number, house) in HOUSES.iter().enumerate() {
        objects.push(namespace(house, &json!({"conformance-house": house})));
        for index in 0..2 {
            let name = format!("p{index}");
            let own = json!({"conformance-house": house, "pod-name": name});
            objects.push(pod(house, &name, &own, &[address(number, index)], &ports));
        }
    }
    let node_ip = IpAddr::from([192, 168, 0, 1]);
    objects.push(node("node-1", &json!({"kubernetes.io/os": "linux"}), &[node_ip]));
    objects.push(namespace("forest", &json!({"conformance-house": "forest"})));
    let mut centaur =
        pod("forest", "centaur", &json!({"conformance-house": "forest"}), &[node_ip], &ports);
    centaur["spec"]["hostNetwork"] = json!(true);
    objects.push(centaur);
    objects
}

/// Checks the houses with these policies, all of which have to be valid.
#[track_caller]
fn check(policies: &[Value], pokes: &[Poke<'_>]) {
    let manifests: Vec<Value> = houses().into_iter().chain(policies.iter().cloned()).collect();
    let objects = valid_objects(&manifests);
    pokes.iter().for_each(|poke| check_poke(&objects, *poke));
}

/// As [`check`], with policies that are invalid somewhere.
#[track_caller]
fn check_invalid(policies: &[Value], pokes: &[Poke<'_>]) {
    let manifests: Vec<Value> = houses().into_iter().chain(policies.iter().cloned()).collect();
    let objects = objects(&manifests);
    let noted = objects.iter().map(|object| object.diagnostics().len()).sum::<usize>();
    assert!(noted > 0, "nothing was found wrong with {policies:?}");
    pokes.iter().for_each(|poke| check_poke(&objects, *poke));
}

fn house(name: &str) -> Value {
    json!({"namespaces": labels(&json!({"conformance-house": name}))})
}

fn pods_of(name: &str) -> Value {
    let selector = labels(&json!({"conformance-house": name}));
    json!({"pods": {"namespaceSelector": selector, "podSelector": selector}})
}

fn port(protocol: &str, number: u16) -> Value {
    json!({protocol.to_lowercase(): {"destinationPort": {"number": number}}})
}

/// A policy on a house with the rules of one direction.
fn policy(tier: &str, subject: &Value, direction: &str, rules: &Value) -> Value {
    let none = json!(null);
    match direction {
        "ingress" => cluster_network_policy("policy", tier, 10, subject, rules, &none),
        _ => cluster_network_policy("policy", tier, 10, subject, &none, rules),
    }
}

fn rule(direction: &str, action: &str, peers: Value, protocols: Option<Value>) -> Value {
    let field = if direction == "ingress" { "from" } else { "to" };
    let mut rule = json!({"action": action, field: peers});
    if let Some(protocols) = protocols {
        rule["protocols"] = protocols;
    }
    rule
}

/// The seven rules that the conformance suite permutes.
fn seven(direction: &str, protocol: &str, [low, high]: [u16; 2]) -> Vec<Value> {
    let at = |number| Some(json!([port(protocol, number)]));
    let [r, s, h] = ["ravenclaw", "slytherin", "hufflepuff"].map(|name| json!([house(name)]));
    vec![
        rule(direction, "Accept", r.clone(), None),
        rule(direction, "Deny", r.clone(), None),
        rule(direction, "Pass", r, None),
        rule(direction, "Deny", s.clone(), at(low)),
        rule(direction, "Pass", s, at(low)),
        rule(direction, "Accept", h.clone(), at(high)),
        rule(direction, "Deny", h, None),
    ]
}

/// One (tier, direction, protocol): the order of rules, Accept, Deny and Pass at one port.
fn order_of_rules(tier: &str, direction: &str, protocol: &str, ports: [u16; 2]) {
    let [low, high] = ports;
    let check = |swaps: &[(usize, usize)], expect: &[(&str, u16, bool)]| {
        let mut rules = seven(direction, protocol, ports);
        swaps.iter().for_each(|(one, other)| rules.swap(*one, *other));
        let policy = policy(tier, &house("gryffindor"), direction, &json!(rules));
        for (other, port, allowed) in expect {
            let other = format!("{other}/p0");
            let (from, to) = match direction {
                "ingress" => (other.as_str(), "gryffindor/p1"),
                _ => ("gryffindor/p1", other.as_str()),
            };
            check(slice::from_ref(&policy), &[(from, to, protocol, *port, *allowed)]);
        }
    };
    check(&[], &[("ravenclaw", low, true), ("ravenclaw", high, true)]);
    check(&[], &[("hufflepuff", high, true), ("hufflepuff", low, false)]);
    check(&[(0, 1)], &[("ravenclaw", low, false), ("ravenclaw", high, false)]);
    check(&[], &[("slytherin", low, false), ("slytherin", high, true)]);
    check(&[(0, 1), (0, 2)], &[("ravenclaw", low, true), ("ravenclaw", high, true)]);
    check(&[(3, 4)], &[("slytherin", low, true), ("slytherin", high, true)]);
}

#[test]
fn rules_go_by_their_order_in_both_tiers_and_directions() {
    for tier in TIERS {
        for direction in ["ingress", "egress"] {
            order_of_rules(tier, direction, "TCP", [80, 8080]);
            order_of_rules(tier, direction, "UDP", [53, 5353]);
            order_of_rules(tier, direction, "SCTP", [9003, 9005]);
        }
    }
}

#[test]
fn ingress_and_egress_rules_of_one_policy() {
    let three = json!([port("TCP", 80), port("UDP", 53), port("SCTP", 9003)]);
    for tier in TIERS {
        let egress = json!([
            rule("egress", "Accept", json!([house("ravenclaw")]), None),
            rule("egress", "Deny", json!([house("slytherin")]), Some(three.clone())),
        ]);
        let ingress = json!([
            rule("ingress", "Accept", json!([house("hufflepuff")]), Some(three.clone())),
            rule("ingress", "Deny", json!([house("hufflepuff")]), None),
        ]);
        let subject = house("gryffindor");
        let policy = cluster_network_policy("both", tier, 15, &subject, &ingress, &egress);
        let pokes: [Poke<'_>; 9] = [
            ("gryffindor/p0", "ravenclaw/p0", "UDP", 53, true),
            ("gryffindor/p0", "slytherin/p0", "TCP", 80, false),
            ("gryffindor/p0", "slytherin/p0", "UDP", 53, false),
            ("gryffindor/p0", "slytherin/p0", "SCTP", 9003, false),
            ("gryffindor/p0", "slytherin/p0", "SCTP", 9005, true),
            ("hufflepuff/p0", "gryffindor/p1", "SCTP", 9003, true),
            ("hufflepuff/p0", "gryffindor/p1", "UDP", 5353, false),
            ("slytherin/p0", "gryffindor/p1", "TCP", 80, true),
            ("gryffindor/p0", "gryffindor/p1", "TCP", 80, true),
        ];
        check(&[policy], &pokes);
    }
}

#[test]
fn one_direction_leaves_the_other_alone() {
    for tier in TIERS {
        let deny = |direction| json!([rule(direction, "Deny", json!([house("slytherin")]), None)]);
        let inward = policy(tier, &house("gryffindor"), "ingress", &deny("ingress"));
        let pokes: [Poke<'_>; 4] = [
            ("slytherin/p0", "gryffindor/p0", "TCP", 80, false),
            ("gryffindor/p0", "slytherin/p0", "TCP", 80, true),
            ("gryffindor/p0", "ravenclaw/p0", "TCP", 80, true),
            ("ravenclaw/p0", "gryffindor/p0", "TCP", 80, true),
        ];
        check(&[inward], &pokes);
        let outward = policy(tier, &house("gryffindor"), "egress", &deny("egress"));
        let pokes: [Poke<'_>; 3] = [
            ("gryffindor/p0", "slytherin/p0", "TCP", 80, false),
            ("slytherin/p0", "gryffindor/p0", "TCP", 80, true),
            ("hufflepuff/p0", "gryffindor/p0", "TCP", 80, true),
        ];
        check(&[outward], &pokes);
    }
}

#[test]
fn a_deny_closes_only_what_it_names() {
    // No isolation: what no rule names stays open.
    let rules = json!([rule("ingress", "Deny", json!([house("slytherin")]), None)]);
    let policy = policy("Admin", &house("gryffindor"), "ingress", &rules);
    check(&[policy], &[("ravenclaw/p1", "gryffindor/p0", "ICMP", 0x0800, true)]);
}

#[test]
fn port_ranges() {
    let range = |protocol: &str, start: u16, end: u16| {
        Some(json!([{protocol: {"destinationPort": {"range": {"start": start, "end": end}}}}]))
    };
    let all = json!([{"namespaces": expression("conformance-house", "Exists", &[])}]);
    for tier in TIERS {
        for direction in ["ingress", "egress"] {
            let rules = json!([
                rule(direction, "Accept", json!([house("ravenclaw")]), range("tcp", 80, 8080)),
                rule(direction, "Accept", json!([house("hufflepuff")]), range("udp", 53, 5353)),
                rule(direction, "Accept", json!([house("slytherin")]), range("sctp", 9003, 9005)),
                rule(direction, "Deny", all.clone(), None),
            ]);
            let policy = policy(tier, &house("gryffindor"), direction, &rules);
            for (other, protocol, port, allowed) in [
                ("ravenclaw/p0", "TCP", 79, false),
                ("ravenclaw/p0", "TCP", 80, true),
                ("ravenclaw/p0", "TCP", 8080, true),
                ("ravenclaw/p0", "TCP", 8081, false),
                ("ravenclaw/p1", "UDP", 80, false),
                ("hufflepuff/p0", "UDP", 53, true),
                ("hufflepuff/p0", "UDP", 5353, true),
                ("hufflepuff/p1", "TCP", 80, false),
                ("slytherin/p0", "SCTP", 9003, true),
                ("slytherin/p0", "SCTP", 9005, true),
                ("slytherin/p1", "SCTP", 9006, false),
            ] {
                let (from, to) = match direction {
                    "ingress" => (other, "gryffindor/p0"),
                    _ => ("gryffindor/p0", other),
                };
                check(slice::from_ref(&policy), &[(from, to, protocol, port, allowed)]);
            }
        }
    }
}

#[test]
fn a_lower_priority_number_goes_first() {
    let both = |action: &str, name: &str, tier: &str, priority| {
        let ingress = json!([rule("ingress", action, json!([pods_of("slytherin")]), None)]);
        let egress = json!([rule("egress", action, json!([pods_of("slytherin")]), None)]);
        let subject = pods_of("gryffindor");
        cluster_network_policy(name, tier, priority, &subject, &ingress, &egress)
    };
    let deny = both("Deny", "deny-50", "Admin", 50);
    let accept = both("Accept", "default", "Baseline", 10);
    let pokes = |allowed| -> [Poke<'static>; 2] {
        [
            ("slytherin/p0", "gryffindor/p0", "TCP", 80, allowed),
            ("gryffindor/p1", "slytherin/p0", "TCP", 8080, allowed),
        ]
    };
    check(&[deny.clone(), both("Pass", "pass", "Admin", 60), accept.clone()], &pokes(false));
    check(&[deny, both("Pass", "pass", "Admin", 40), accept], &pokes(true));
}

#[test]
fn the_tiers_go_admin_network_policy_baseline_default() {
    let both = |action: &str, name: &str, tier: &str| {
        let ingress = json!([rule("ingress", action, json!([house("slytherin")]), None)]);
        let egress = json!([rule("egress", action, json!([house("slytherin")]), None)]);
        cluster_network_policy(name, tier, 10, &house("gryffindor"), &ingress, &egress)
    };
    let peer = json!({"namespaceSelector": labels(&json!({"conformance-house": "slytherin"}))});
    let allow = network_policy(
        "gryffindor",
        "allow",
        &json!({}),
        Some(json!([{"from": [peer]}])),
        Some(json!([{"to": [peer]}])),
    );
    let baseline = both("Deny", "default", "Baseline");
    let pokes = |allowed| -> [Poke<'static>; 2] {
        [
            ("slytherin/p0", "gryffindor/p0", "TCP", 80, allowed),
            ("gryffindor/p1", "slytherin/p0", "TCP", 8080, allowed),
        ]
    };
    let (deny, pass) = (both("Deny", "admin", "Admin"), both("Pass", "admin", "Admin"));
    check(&[deny, allow.clone(), baseline.clone()], &pokes(false));
    check(&[pass.clone(), allow, baseline.clone()], &pokes(true));
    check(&[pass.clone(), baseline], &pokes(false));
    check(&[pass], &pokes(true));
}

#[test]
fn a_network_policy_is_final_for_its_pods_in_its_direction() {
    let accept = |tier: &str, direction: &str| {
        let rules = json!([rule(direction, "Accept", json!([house("slytherin")]), None)]);
        policy(tier, &house("gryffindor"), direction, &rules)
    };
    let isolate = network_policy("gryffindor", "isolate", &json!({}), Some(json!([])), None);
    let inward: Poke<'_> = ("slytherin/p0", "gryffindor/p0", "TCP", 80, false);
    check(&[isolate.clone(), accept("Baseline", "ingress")], &[inward]);
    check(&[isolate.clone(), accept("Admin", "ingress")], &[(inward.0, inward.1, "TCP", 80, true)]);
    // Egress is not isolated: the Baseline tier is asked.
    let rules = json!([rule("egress", "Deny", json!([house("slytherin")]), None)]);
    let deny = policy("Baseline", &house("gryffindor"), "egress", &rules);
    check(&[isolate, deny], &[("gryffindor/p0", "slytherin/p0", "TCP", 80, false)]);
}

#[test]
fn a_pass_of_one_port_is_not_undone_by_a_later_rule_of_its_tier() {
    for direction in ["ingress", "egress"] {
        let everyone = json!([{"namespaces": {}}]);
        let pass = rule(direction, "Pass", everyone.clone(), Some(json!([port("TCP", 80)])));
        let (from, to) = match direction {
            "ingress" => ("ravenclaw/p0", "gryffindor/p0"),
            _ => ("gryffindor/p0", "ravenclaw/p0"),
        };
        let deny = json!([pass, rule(direction, "Deny", everyone.clone(), None)]);
        let closed = policy("Admin", &house("gryffindor"), direction, &deny);
        check(&[closed], &[(from, to, "TCP", 80, true), (from, to, "TCP", 81, false)]);
        // Passed on to a NetworkPolicy that isolates.
        let nothing = || Some(json!([]));
        let isolate = network_policy("gryffindor", "isolate", &json!({}), nothing(), nothing());
        let accept = json!([pass, rule(direction, "Accept", everyone, None)]);
        let open = policy("Admin", &house("gryffindor"), direction, &accept);
        check(&[open, isolate], &[(from, to, "TCP", 80, false), (from, to, "TCP", 81, true)]);
    }
}

#[test]
fn pod_selectors_in_subject_and_peers() {
    let by_label =
        |name: &str| json!({"pods": {"podSelector": labels(&json!({"conformance-house": name}))}});
    let cedric = json!({"pods": {
        "namespaceSelector": labels(&json!({"conformance-house": "hufflepuff"})),
        "podSelector": labels(&json!({"pod-name": "p0"})),
    }});
    for tier in TIERS {
        let egress = json!([
            rule("egress", "Deny", json!([by_label("ravenclaw")]), None),
            rule("egress", "Deny", json!([cedric]), None),
        ]);
        let ingress = json!([
            rule("ingress", "Deny", json!([by_label("slytherin")]), None),
            rule("ingress", "Deny", json!([cedric]), None),
        ]);
        let subject = by_label("gryffindor");
        let first = cluster_network_policy("by-label", tier, 20, &subject, &ingress, &egress);
        let luna = json!({"pods": {
            "namespaceSelector": labels(&json!({"conformance-house": "ravenclaw"})),
            "podSelector": labels(&json!({"pod-name": "p0"})),
        }});
        let rules = json!([rule("egress", "Deny", json!([house("slytherin")]), None)]);
        let second = cluster_network_policy("by-name", tier, 21, &luna, &json!(null), &rules);
        let pokes: [Poke<'_>; 9] = [
            ("gryffindor/p0", "ravenclaw/p0", "TCP", 80, false),
            ("gryffindor/p0", "hufflepuff/p0", "TCP", 80, false),
            ("gryffindor/p0", "hufflepuff/p1", "TCP", 80, true),
            ("slytherin/p0", "gryffindor/p0", "TCP", 80, false),
            ("hufflepuff/p0", "gryffindor/p0", "TCP", 80, false),
            ("hufflepuff/p1", "gryffindor/p0", "TCP", 80, true),
            ("slytherin/p0", "hufflepuff/p0", "TCP", 80, true),
            ("ravenclaw/p0", "slytherin/p0", "TCP", 80, false),
            ("ravenclaw/p1", "slytherin/p0", "TCP", 80, true),
        ];
        check(&[first, second], &pokes);
    }
}

#[test]
fn networks_match_pods_and_every_protocol() {
    let everything = json!([{"networks": ["0.0.0.0/0", "::/0"]}]);
    for tier in TIERS {
        let mut rules = vec![
            rule("egress", "Accept", json!([pods_of("slytherin")]), None),
            rule("egress", "Deny", everything.clone(), None),
        ];
        let closed = policy(tier, &pods_of("gryffindor"), "egress", &json!(rules));
        let pokes: [Poke<'_>; 6] = [
            ("gryffindor/p1", "ravenclaw/p0", "TCP", 80, false),
            ("gryffindor/p1", "ravenclaw/p0", "ICMP", 0x0800, false),
            ("gryffindor/p1", "8.8.8.8", "UDP", 53, false),
            ("gryffindor/p1", "2001:db8::1", "ICMPv6", 0x8000, false),
            ("gryffindor/p1", "slytherin/p0", "SCTP", 9003, true),
            ("ravenclaw/p0", "gryffindor/p1", "TCP", 80, true),
        ];
        check(&[closed], &pokes);
        let two = [address(1, 0), address(2, 0)].map(|ip| format!("{ip}/32"));
        rules.insert(0, rule("egress", "Accept", json!([{"networks": two}]), None));
        let opened = policy(tier, &pods_of("gryffindor"), "egress", &json!(rules));
        let pokes: [Poke<'_>; 4] = [
            ("gryffindor/p1", "ravenclaw/p0", "UDP", 53, true),
            ("gryffindor/p1", "hufflepuff/p0", "TCP", 80, true),
            ("gryffindor/p1", "ravenclaw/p1", "TCP", 80, false),
            ("gryffindor/p1", "hufflepuff/p1", "SCTP", 9003, false),
        ];
        check(&[opened], &pokes);
    }
}

#[test]
fn nodes_are_addresses_of_nodes() {
    let nodes = json!({"nodes": labels(&json!({"kubernetes.io/os": "linux"}))});
    let others = json!({"nodes": labels(&json!({"kubernetes.io/os": "windows"}))});
    for tier in TIERS {
        let rules = json!([
            rule("egress", "Deny", json!([others]), None),
            rule("egress", "Accept", json!([nodes]), Some(json!([port("TCP", 36363)]))),
            rule("egress", "Pass", json!([nodes]), Some(json!([port("UDP", 34345)]))),
            rule("egress", "Deny", json!([nodes, {"networks": ["0.0.0.0/0"]}]), None),
        ]);
        let policy = policy(tier, &pods_of("gryffindor"), "egress", &rules);
        for to in ["forest/centaur", "192.168.0.1"] {
            let pokes: [Poke<'_>; 5] = [
                ("gryffindor/p1", to, "TCP", 36363, true),
                ("gryffindor/p1", to, "UDP", 34345, true),
                ("gryffindor/p1", to, "TCP", 36364, false),
                ("gryffindor/p1", to, "UDP", 34346, false),
                ("gryffindor/p1", to, "SCTP", 9003, false),
            ];
            check(slice::from_ref(&policy), &pokes);
        }
    }
}

#[test]
fn a_named_port_is_looked_up_at_the_destination() {
    let web = Some(json!([{"destinationNamedPort": "web"}]));
    for tier in TIERS {
        for direction in ["ingress", "egress"] {
            let rules = json!([
                rule(direction, "Accept", json!([house("hufflepuff")]), web.clone()),
                rule(direction, "Deny", json!([house("hufflepuff")]), None),
            ]);
            let policy = policy(tier, &house("gryffindor"), direction, &rules);
            for (protocol, port, allowed) in
                [("TCP", 80, true), ("TCP", 8080, false), ("UDP", 80, false)]
            {
                let (from, to) = match direction {
                    "ingress" => ("hufflepuff/p1", "gryffindor/p0"),
                    _ => ("gryffindor/p0", "hufflepuff/p1"),
                };
                check(slice::from_ref(&policy), &[(from, to, protocol, port, allowed)]);
            }
        }
    }
}

#[test]
fn a_named_port_has_the_number_of_each_pod() {
    let rules = json!([
        rule(
            "egress",
            "Accept",
            json!([house("hufflepuff")]),
            Some(json!([{"destinationNamedPort": "web"}]))
        ),
        rule("egress", "Deny", json!([house("hufflepuff")]), None),
    ]);
    let mut manifests = houses();
    let ports = json!([{"name": "web", "containerPort": 8080}]);
    let own = json!({"conformance-house": "hufflepuff"});
    put(&mut manifests, pod("hufflepuff", "p1", &own, &[address(2, 1)], &ports));
    manifests.push(policy("Admin", &house("gryffindor"), "egress", &rules));
    let objects = valid_objects(&manifests);
    for (to, port, allowed) in [
        ("hufflepuff/p0", 80, true),
        ("hufflepuff/p0", 8080, false),
        ("hufflepuff/p1", 80, false),
        ("hufflepuff/p1", 8080, true),
    ] {
        check_poke(&objects, ("gryffindor/p0", to, "TCP", port, allowed));
    }
}

#[test]
fn a_pod_reaches_itself_whatever_denies() {
    for tier in TIERS {
        let rules = json!([rule("ingress", "Deny", json!([house("gryffindor")]), None)]);
        let policy = policy(tier, &house("gryffindor"), "ingress", &rules);
        let pokes: [Poke<'_>; 3] = [
            ("gryffindor/p0", "gryffindor/p0", "TCP", 80, true),
            ("gryffindor/p0", "10.2.0.10", "TCP", 80, true),
            ("gryffindor/p0", "gryffindor/p1", "TCP", 80, false),
        ];
        check(&[policy], &pokes);
    }
}

#[test]
fn host_network_pods_are_neither_subject_nor_pod_peer() {
    for direction in ["ingress", "egress"] {
        let everyone = json!([{"namespaces": {}}]);
        let rules = json!([rule(direction, "Deny", everyone, None)]);
        let policy = policy("Admin", &json!({"namespaces": {}}), direction, &rules);
        let pokes: [Poke<'_>; 3] = [
            ("forest/centaur", "gryffindor/p0", "TCP", 80, true),
            ("gryffindor/p0", "forest/centaur", "TCP", 80, true),
            ("ravenclaw/p0", "gryffindor/p0", "TCP", 80, false),
        ];
        check(&[policy], &pokes);
    }
}

/// Rules of one direction with a peer that nobody knows, beside one that would match.
fn with_unknown_peer(direction: &str, action: &str) -> Value {
    let peers = json!([house("ravenclaw"), {"galaxies": {"matchLabels": {"arm": "perseus"}}}]);
    json!([rule(direction, action, peers, Some(json!([port("TCP", 80)])))])
}

#[test]
fn an_accept_rule_with_an_unknown_peer_matches_nothing() {
    for tier in TIERS {
        for direction in ["ingress", "egress"] {
            let mut rules = with_unknown_peer(direction, "Accept");
            let deny = rule(direction, "Deny", json!([house("ravenclaw")]), None);
            rules.as_array_mut().expect("a list").push(deny);
            let policy = policy(tier, &house("gryffindor"), direction, &rules);
            let (from, to) = match direction {
                "ingress" => ("ravenclaw/p0", "gryffindor/p0"),
                _ => ("gryffindor/p0", "ravenclaw/p0"),
            };
            check_invalid(&[policy], &[(from, to, "TCP", 80, false)]);
        }
    }
}

#[test]
fn a_deny_or_pass_rule_with_an_unknown_peer_denies_all() {
    for tier in TIERS {
        for action in ["Deny", "Pass"] {
            for direction in ["ingress", "egress"] {
                let rules = with_unknown_peer(direction, action);
                let policy = policy(tier, &house("gryffindor"), direction, &rules);
                for (other, protocol, port) in [
                    ("ravenclaw/p0", "TCP", 80),
                    ("slytherin/p0", "UDP", 53),
                    ("8.8.8.8", "TCP", 443),
                ] {
                    let (from, to) = match direction {
                        "ingress" => (other, "gryffindor/p0"),
                        _ => ("gryffindor/p0", other),
                    };
                    check_invalid(slice::from_ref(&policy), &[(from, to, protocol, port, false)]);
                }
            }
        }
    }
}

#[test]
fn a_peer_whose_unknown_field_was_pruned_fails_closed() {
    // The API server of an older CRD drops what it does not know: an empty peer is left.
    let rules = json!([rule("egress", "Pass", json!([{}]), None)]);
    let policy = policy("Admin", &house("gryffindor"), "egress", &rules);
    check_invalid(&[policy], &[("gryffindor/p0", "ravenclaw/p0", "TCP", 80, false)]);
}

#[test]
fn domain_names_open_nothing() {
    let names = json!([{"domainNames": ["*.kubernetes.io"]}]);
    let rules = json!([
        rule("egress", "Accept", names, None),
        rule("egress", "Deny", json!([{"networks": ["0.0.0.0/0"]}]), None),
    ]);
    let policy = policy("Admin", &house("gryffindor"), "egress", &rules);
    check_invalid(&[policy], &[("gryffindor/p0", "8.8.8.8", "TCP", 443, false)]);
}

/// The API has no form for "all ports": `tcp: {}` is an unknown way to name ports, as after an unknown field was pruned.
#[test]
fn an_empty_or_unknown_port_matcher_fails_closed() {
    let matchers = [json!({}), json!({"ports": [80]}), json!({"destinationPort": {}}), json!(null)];
    let lists = matchers.map(|matcher| json!([{"tcp": matcher}])).into_iter();
    for protocols in lists.chain([json!([{}]), json!([])]) {
        for action in ["Accept", "Pass"] {
            let rules = json!([
                rule("ingress", action, json!([house("ravenclaw")]), Some(protocols.clone())),
                rule("ingress", "Deny", json!([{"namespaces": {}}]), None),
            ]);
            let policy = policy("Admin", &house("gryffindor"), "ingress", &rules);
            check_invalid(&[policy], &[("ravenclaw/p0", "gryffindor/p0", "TCP", 80, false)]);
        }
    }
}
