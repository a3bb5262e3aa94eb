//! Manifests and verdicts, both written by hand: from the reader through the index to what `judge` says.
//!
//! The oracle judges the same structs as the compiler, so what the reader makes of a manifest is judged here alone.

use std::net::IpAddr;

use serde_json::{Value, json};
use veni_policy::change::PodKey;
use veni_policy::index::{Explanation, Index, Scope};
use veni_policy::object::parse;
use veni_policy::security_group::{
    GroupPeer, GroupProtocol, GroupRule, GroupState, ResolvedGroup, SecurityGroups,
};

use crate::support::number;

const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 0, 0, 2];
const C: [u8; 4] = [10, 0, 1, 1];
const FAR: [u8; 4] = [8, 8, 8, 8];

/// From, to, protocol, port, whether it passes.
type Verdict = ([u8; 4], [u8; 4], &'static str, u16, bool);

/// x/a (which has a port `web`, 80), x/b, and y/c in a namespace of its own label.
fn cluster() -> Vec<Value> {
    let pod = |namespace: &str, name: &str, ip: [u8; 4]| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
            "spec": {"containers": [{"ports": [{"name": "web", "containerPort": 80}]}]},
            "status": {"phase": "Running", "podIP": IpAddr::from(ip)},
        })
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "y", "labels": {"team": "y"}}}),
        pod("x", "a", A),
        pod("x", "b", B),
        pod("y", "c", C),
    ]
}

/// sg-open lets everything in and out; sg-web lets TCP 443 in and out.
fn groups() -> SecurityGroups {
    let rule = |id: &str, protocol, first, last| GroupRule {
        id: format!("sgr-{id}"),
        protocol,
        first,
        last,
        peer: GroupPeer::Cidr("0.0.0.0/0".parse().expect("a block")),
    };
    let mut groups = SecurityGroups::default();
    for (name, rule) in [
        ("sg-open", rule("open", GroupProtocol::Any, 0, 65535)),
        ("sg-web", rule("web", GroupProtocol::Number(6), 443, 443)),
    ] {
        let id: veni_core::id::SecurityGroupId = name.parse().expect("a group");
        let (ingress, egress) = (vec![rule.clone()], vec![rule]);
        let group = ResolvedGroup { id: id.clone(), state: GroupState::Resolved, ingress, egress };
        groups.groups.insert(id, group);
    }
    groups
}

fn index(manifests: &[Value]) -> Index {
    let mut index = Index::new(Scope::All);
    index.set_security_groups(groups());
    for manifest in manifests {
        let object = parse(manifest).unwrap_or_else(|wrong| panic!("{wrong:?}: {manifest}"));
        index.apply(object.expect("a kind that counts"));
    }
    assert_eq!(index.change().refused, []);
    index
}

fn judge(index: &Index, from: [u8; 4], to: [u8; 4], protocol: &str, port: u16) -> Explanation {
    index.judge(from.into(), to.into(), number(protocol), port)
}

/// The cluster and these objects.
#[track_caller]
fn check(objects: &[Value], verdicts: &[Verdict]) {
    let index = index(&[&cluster(), objects].concat());
    for verdict in verdicts {
        let (from, to, protocol, port, allowed) = *verdict;
        let said = judge(&index, from, to, protocol, port);
        assert_eq!(said.allowed, allowed, "{verdict:?}: {said:?}");
    }
}

fn policy(spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "p"}, "spec": spec})
}

fn cluster_policy(spec: &Value) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "p"}, "spec": spec})
}

fn group_policy(spec: &Value) -> Value {
    json!({"apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
        "metadata": {"namespace": "x", "name": "p"}, "spec": spec})
}

/// `spec.securityGroups`.
fn given(group: &str) -> Value {
    json!({"groupIds": [group]})
}

#[test]
fn a_policys_types_follow_from_what_it_lists() {
    let a = json!({"matchLabels": {"app": "a"}});
    let ingress_alone = policy(&json!({"podSelector": a}));
    check(&[ingress_alone], &[(B, A, "TCP", 80, false), (A, B, "TCP", 80, true)]);
    let both = policy(&json!({"podSelector": a, "egress": [{}]}));
    check(&[both], &[(B, A, "TCP", 80, false), (A, B, "TCP", 80, true), (A, FAR, "UDP", 53, true)]);
    let egress_alone = policy(&json!({"podSelector": a, "policyTypes": ["Egress"]}));
    check(&[egress_alone], &[(B, A, "TCP", 80, true), (A, B, "TCP", 80, false)]);
}

#[test]
fn an_absent_list_is_any_and_an_absent_protocol_tcp() {
    let from_b = json!([{"podSelector": {"matchLabels": {"app": "b"}}}]);
    let any_port = policy(&json!({"podSelector": {}, "ingress": [{"from": from_b}]}));
    check(
        &[any_port],
        &[(B, A, "UDP", 9, true), (C, A, "UDP", 9, false), (FAR, A, "TCP", 1, false)],
    );
    let any_peer = policy(&json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}));
    check(
        &[any_peer],
        &[(C, A, "TCP", 80, true), (C, A, "UDP", 80, false), (C, A, "TCP", 81, false)],
    );
}

#[test]
fn a_name_of_a_port_is_looked_up_on_the_destination() {
    let named = policy(&json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}]}]}));
    check(
        &[named],
        &[(C, A, "TCP", 80, true), (C, A, "UDP", 80, false), (C, A, "TCP", 443, false)],
    );
}

#[test]
fn a_block_does_not_hold_for_its_exceptions() {
    let block = json!({"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.1.0/24"]}});
    let blocks = policy(&json!({"podSelector": {}, "ingress": [{"from": [block]}]}));
    check(
        &[blocks],
        &[(B, A, "TCP", 80, true), (C, A, "TCP", 80, false), (FAR, A, "TCP", 80, false)],
    );
}

#[test]
fn what_a_policy_says_that_cannot_be_read_closes() {
    let galaxy = policy(&json!({"podSelector": {}, "ingress": [{"from": [{"galaxy": {}}]}]}));
    check(&[galaxy], &[(B, A, "TCP", 80, false), (A, FAR, "TCP", 80, true)]);
    let selector =
        json!({"matchExpressions": [{"key": "app", "operator": "Inn", "values": ["b"]}]});
    let whom = policy(&json!({"podSelector": selector, "ingress": [{}]}));
    check(&[whom], &[(C, A, "TCP", 80, false), (C, B, "TCP", 80, false)]);
    let port = json!([{"ports": [{"port": 90, "endPort": 80}]}]);
    let range = policy(&json!({"podSelector": {}, "ingress": port}));
    check(&[range], &[(C, A, "TCP", 85, false), (C, A, "TCP", 90, false)]);
    let sideways = policy(&json!({"podSelector": {}, "policyTypes": ["Sideways"]}));
    check(&[sideways], &[(C, A, "TCP", 80, false), (A, C, "TCP", 80, false)]);
}

#[test]
fn a_rule_for_the_cluster_that_cannot_be_read_closes() {
    let with = |action: &str| {
        let rules = json!([
            {"action": action, "from": [{"galaxies": {}}]},
            {"action": "Deny", "from": [{"namespaces": {}}]},
        ]);
        cluster_policy(
            &json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": rules}),
        )
    };
    // Who it accepts is nobody; who it denies or passes is everybody.
    check(&[with("Accept")], &[(B, A, "TCP", 80, false), (FAR, A, "TCP", 80, true)]);
    check(&[with("Deny")], &[(B, A, "TCP", 80, false), (FAR, A, "TCP", 80, false)]);
    check(&[with("Pass")], &[(B, A, "TCP", 80, false), (FAR, A, "TCP", 80, false)]);
}

#[test]
fn a_rule_for_the_cluster_comes_before_a_policy_and_a_baseline_after() {
    let allow = policy(&json!({"podSelector": {}, "ingress": [{}]}));
    let tier = |tier: &str| {
        let rules =
            json!([{"action": "Deny", "from": [{"namespaces": {"matchLabels": {"team": "y"}}}]}]);
        cluster_policy(
            &json!({"tier": tier, "priority": 1, "subject": {"namespaces": {}}, "ingress": rules}),
        )
    };
    check(&[allow.clone(), tier("Admin")], &[(C, A, "TCP", 80, false), (B, A, "TCP", 80, true)]);
    check(&[allow, tier("Baseline")], &[(C, A, "TCP", 80, true), (A, C, "TCP", 80, true)]);
    check(&[tier("Baseline")], &[(C, A, "TCP", 80, false), (B, A, "TCP", 80, true)]);
}

#[test]
fn a_pod_on_its_nodes_network_is_an_address() {
    let host = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"hostNetwork": true},
        "metadata": {"namespace": "x", "name": "h", "labels": {"app": "b"}}, "status": {"podIP": "192.168.0.1"}});
    let from_b = json!([{"podSelector": {"matchLabels": {"app": "b"}}}]);
    let by_label = policy(&json!({"podSelector": {}, "ingress": [{"from": from_b}]}));
    let node = [192, 168, 0, 1];
    check(&[host.clone(), by_label], &[(node, A, "TCP", 80, false), (B, A, "TCP", 80, true)]);
    let block = json!([{"ipBlock": {"cidr": "192.168.0.0/24"}}]);
    let by_block = policy(&json!({"podSelector": {}, "ingress": [{"from": block}]}));
    check(&[host, by_block], &[(node, A, "TCP", 80, true), (B, A, "TCP", 80, false)]);
}

/// x/a has sg-web; a policy of which it cannot be told whom it selects must not add sg-open to that.
#[test]
fn groups_are_not_given_to_pods_that_may_not_be_meant() {
    let web = group_policy(
        &json!({"podSelector": {"matchLabels": {"app": "a"}}, "securityGroups": given("sg-web")}),
    );
    let with = |mut spec: Value| {
        spec["securityGroups"] = given("sg-open");
        let mut open = group_policy(&spec);
        open["metadata"]["name"] = json!("open");
        [web.clone(), open]
    };
    let a = json!({"matchLabels": {"app": "a"}});
    let b = json!({"matchLabels": {"app": "b"}});
    let (a_443, a_80) =
        (|allowed| (C, A, "TCP", 443, allowed), |allowed| (C, A, "TCP", 80, allowed));
    let b_80 = |allowed| (C, B, "TCP", 80, allowed);
    check(std::slice::from_ref(&web), &[a_443(true), a_80(false), b_80(true)]);
    // What can be told.
    check(&with(json!({"podSelector": a})), &[a_443(true), a_80(true), b_80(true)]);
    check(&with(json!({"podSelector": {}})), &[a_80(true), b_80(true)]);
    check(
        &with(json!({"podSelector": b, "serviceAccountSelector": {}})),
        &[a_443(true), a_80(false), b_80(true)],
    );
    check(&with(json!({"serviceAccountSelector": {}})), &[a_80(true), b_80(true)]);
    // What cannot: those that it might select are denied, others are as they were.
    let near = json!({"matchExpressions": [{"key": "app", "operator": "Inn", "values": ["a"]}]});
    for spec in [
        json!({"podSelector": near}),
        json!({"serviceAccountSelector": {"matchLabels": {"role": "db"}}}),
        json!({"podSelector": {}, "serviceAccountSelector": near}),
        json!({"podSelector": a, "namespaceSelector": {}}),
        json!({}),
    ] {
        check(
            &with(spec),
            &[
                a_443(false),
                a_80(false),
                b_80(false),
                (B, FAR, "TCP", 1, false),
                (FAR, C, "TCP", 1, true),
            ],
        );
    }
    let bounded =
        json!({"podSelector": b, "serviceAccountSelector": {"matchLabels": {"role": "db"}}});
    check(&with(bounded), &[a_443(true), a_80(false), b_80(false)]);
}

#[test]
fn a_pod_that_is_denied_for_a_selector_is_told_how_to_go_on() {
    let spec = json!({"serviceAccountSelector": {"matchLabels": {"role": "db"}}, "securityGroups": given("sg-open")});
    let index = index(&[cluster(), vec![group_policy(&spec)]].concat());
    let said = judge(&index, C, A, "TCP", 80);
    let rule = said.ingress.rule.expect("a rule").to_string();
    for part in ["SecurityGroupPolicy x/p", "serviceAccountSelector", "podSelector"] {
        assert!(rule.contains(part), "{part} in {rule}");
    }
    let explained = index.explain(&PodKey::new("x", "a")).expect("it is known");
    let [group] = explained.security_groups.as_slice() else { panic!("{explained:?}") };
    assert_eq!(group.id, "SecurityGroupPolicy x/p");
    assert!(group.unresolved.as_ref().is_some_and(|why| why.contains("podSelector")));
}

#[test]
fn groups_that_are_none_deny() {
    let mut pod = cluster().remove(1);
    pod["metadata"]["annotations"] = json!({"vpc.amazonaws.com/security-groups": "sg-open, web"});
    check(&[pod], &[(C, A, "TCP", 80, false), (C, B, "TCP", 80, true)]);
    let none = group_policy(&json!({"podSelector": {}, "securityGroups": {"groupIds": []}}));
    check(&[none], &[(C, A, "TCP", 80, false), (C, B, "TCP", 80, false)]);
}

/// docs.aws.amazon.com/vpc/latest/userguide/vpc-security-groups.html: not filtered by security groups.
#[test]
fn groups_do_not_filter_amazon_dns_time_sync_and_metadata() {
    let web = group_policy(&json!({"podSelector": {}, "securityGroups": given("sg-web")}));
    let (dns, time, metadata) = ([169, 254, 169, 253], [169, 254, 169, 123], [169, 254, 169, 254]);
    let passes = [
        (A, dns, "UDP", 53, true),
        (A, dns, "TCP", 53, true),
        (A, time, "UDP", 123, true),
        (A, metadata, "TCP", 80, true),
        (A, [169, 254, 169, 252], "UDP", 53, false),
        (A, [10, 0, 0, 200], "UDP", 53, false),
    ];
    check(std::slice::from_ref(&web), &passes);
    // Policies do.
    let closed = policy(&json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    check(&[web, closed], &[(A, dns, "UDP", 53, false), (A, metadata, "TCP", 80, false)]);
    // And groups that are not known deny all.
    let unknown = group_policy(&json!({"podSelector": {}, "securityGroups": given("sg-gone")}));
    check(&[unknown], &[(A, dns, "UDP", 53, false)]);
}

#[test]
fn an_address_is_the_live_pods_whatever_came_last() {
    let claims = |name: &str, meta: &Value| {
        let mut pod = cluster().remove(2);
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["labels"] = json!({"app": name});
        for (key, value) in meta.as_object().expect("a map") {
            pod["metadata"][key] = value.clone();
        }
        pod
    };
    let time = |hour: u8| json!(format!("2025-11-21T{hour:02}:00:00Z"));
    let from = |name: &str| {
        let from = json!([{"podSelector": {"matchLabels": {"app": name}}}]);
        policy(&json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{"from": from}]}))
    };
    let deleting = json!({"deletionTimestamp": time(9), "creationTimestamp": time(8)});
    for (right, wrong) in [
        // A live one before one that is stuck in its deletion, however new that is.
        (json!({"creationTimestamp": time(1)}), deleting.clone()),
        // Of two of a kind the newest.
        (json!({"creationTimestamp": time(3)}), json!({"creationTimestamp": time(2)})),
        (deleting, json!({"deletionTimestamp": time(9), "creationTimestamp": time(7)})),
        (json!({"uid": "2"}), json!({"uid": "1"})),
    ] {
        for names in [["k", "z"], ["z", "k"]] {
            let objects = [claims(names[0], &right), claims(names[1], &wrong)];
            for order in [[0, 1], [1, 0]] {
                let ordered = order.map(|place| objects[place].clone());
                let only = cluster().into_iter().filter(|o| o["metadata"]["name"] != "b");
                for (name, allowed) in [(names[0], true), (names[1], false)] {
                    let all = only.clone().chain(ordered.clone()).chain([from(name)]);
                    let index = index(&all.collect::<Vec<_>>());
                    let said = judge(&index, B, A, "TCP", 80);
                    assert_eq!(said.allowed, allowed, "{ordered:?}, {name} may: {said:?}");
                    let explained = index.explain(&PodKey::new("x", name)).expect("it is known");
                    assert_eq!(!explained.addresses.is_empty(), allowed, "{explained:?}");
                }
            }
        }
    }
    let finished = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "z",
        "labels": {"app": "z"}}, "status": {"phase": "Failed", "podIP": IpAddr::from(B)}});
    check(&[from("b"), finished.clone()], &[(B, A, "TCP", 80, true)]);
    check(&[from("z"), finished], &[(B, A, "TCP", 80, false)]);
}

#[test]
fn an_address_that_the_node_gave_is_that_pods() {
    let stale = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "z",
        "labels": {"app": "z"}, "creationTimestamp": "2025-11-21T09:00:00Z"}, "status": {"podIP": IpAddr::from(B)}});
    let from = |name: &str| {
        let from = json!([{"podSelector": {"matchLabels": {"app": name}}}]);
        policy(&json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{"from": from}]}))
    };
    let own = PodKey::new("x", "b");
    for (name, stale_is_let_in, own_is_let_in) in [("b", false, true), ("z", true, false)] {
        let mut index = Index::new(Scope::All);
        let apply = |index: &mut Index, manifest: &Value| {
            index.apply(parse(manifest).expect("valid").expect("a kind that counts"));
            assert_eq!(index.change().refused, []);
            judge(index, B, A, "TCP", 80).allowed
        };
        for manifest in [&cluster()[1], &from(name)] {
            apply(&mut index, manifest);
        }
        assert_eq!(apply(&mut index, &stale), stale_is_let_in);
        index.attach(own.clone(), vec![B.into()]);
        assert_eq!(index.change().refused, []);
        assert!(!judge(&index, B, A, "TCP", 80).allowed, "nothing is known of its pod yet");
        assert_eq!(apply(&mut index, &cluster()[2]), own_is_let_in);
        assert_eq!(apply(&mut index, &stale), own_is_let_in, "a status that comes later");
        index.detach(&own);
        index.delete(&veni_policy::object::Key::new(veni_policy::object::Kind::Pod, "x", "b"));
        assert_eq!(index.change().refused, []);
        assert_eq!(judge(&index, B, A, "TCP", 80).allowed, stale_is_let_in);
    }
}
