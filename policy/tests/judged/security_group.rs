//! Security groups, with expectations written by hand from EC2's documentation.

use std::net::IpAddr;

use serde_json::{Value, json};
use veni_policy::object::Object;
use veni_policy::oracle::manifest::{network_policy, pod};
use veni_policy::oracle::{End, Family, Oracle};
use veni_policy::security_group::{
    GroupPeer, GroupProtocol, GroupRule, GroupState, ResolvedGroup, SecurityGroups,
};

use crate::support::{compiler_agrees, number, objects};

/// x/web has sg-1, x/db sg-2, x/free none.
fn cluster() -> Vec<Value> {
    let address = |last| [IpAddr::from([10, 0, 0, last])];
    let grouped = |name: &str, last, groups: &str| {
        let mut pod = pod("x", name, &json!({"pod": name}), &address(last), &json!([]));
        pod["metadata"]["annotations"] = json!({"vpc.amazonaws.com/security-groups": groups});
        pod
    };
    vec![
        grouped("web", 1, "sg-1"),
        grouped("db", 2, "sg-2"),
        pod("x", "free", &json!({"pod": "free"}), &address(3), &json!([])),
    ]
}

fn rule(protocol: GroupProtocol, first: u16, last: u16, peer: &str) -> GroupRule {
    let peer = match peer.parse() {
        Ok(net) => GroupPeer::Cidr(net),
        Err(_) => GroupPeer::Group(peer.parse().expect("a group")),
    };
    GroupRule { id: format!("sgr-{first}-{last}"), protocol, first, last, peer }
}

fn tcp(port: u16, peer: &str) -> GroupRule {
    rule(GroupProtocol::Number(6), port, port, peer)
}

fn anything(peer: &str) -> GroupRule {
    rule(GroupProtocol::Any, 0, 65535, peer)
}

fn groups(list: Vec<(&str, Vec<GroupRule>, Vec<GroupRule>)>) -> SecurityGroups {
    let mut groups = SecurityGroups::default();
    for (id, ingress, egress) in list {
        let id: veni_core::id::SecurityGroupId = id.parse().expect("a group");
        let state = GroupState::Resolved;
        groups.groups.insert(id.clone(), ResolvedGroup { id, state, ingress, egress });
    }
    groups
}

/// Web takes TCP 443 from anywhere and talks to db on 5432; db takes that from web's group and says nothing itself.
fn usual() -> SecurityGroups {
    groups(vec![
        ("sg-1", vec![tcp(443, "0.0.0.0/0")], vec![tcp(5432, "sg-2")]),
        ("sg-2", vec![tcp(5432, "sg-1")], vec![]),
    ])
}

#[track_caller]
fn check(manifests: &[Value], groups: &SecurityGroups, poke: (&str, &str, &str, u16, bool)) {
    let objects: Vec<Object> = objects(manifests);
    let (from, to, protocol, port, allowed) = poke;
    let end = |text: &str| match text.parse() {
        Ok(address) => End::Address(address),
        Err(_) => End::pod("x", text),
    };
    let addresses = [from, to].map(str::parse).into_iter().flatten().collect::<Vec<IpAddr>>();
    compiler_agrees(&objects, groups, &addresses, (number(protocol), port));
    let oracle = Oracle::new(&objects, groups);
    let verdict = oracle.verdict(&end(from), &end(to), number(protocol), port, Family::V4);
    assert_eq!(verdict.allowed(), allowed, "{poke:?}: {verdict:?}");
}

#[test]
fn groups_allow_and_nothing_else_passes() {
    for poke in [
        ("free", "web", "TCP", 443, true),
        ("8.8.8.8", "web", "TCP", 443, true),
        ("8.8.8.8", "web", "TCP", 80, false),
        ("8.8.8.8", "web", "UDP", 443, false),
        ("web", "8.8.8.8", "TCP", 443, false),
        ("web", "db", "TCP", 5432, true),
        ("free", "db", "TCP", 5432, false),
        ("db", "free", "TCP", 80, false),
        ("db", "web", "TCP", 443, false),
        ("free", "8.8.8.8", "TCP", 443, true),
        ("web", "web", "TCP", 1, true),
    ] {
        check(&cluster(), &usual(), poke);
    }
}

#[test]
fn any_rule_of_any_group_allows() {
    let mut state = cluster();
    state[0]["metadata"]["annotations"] =
        json!({"vpc.amazonaws.com/security-groups": "sg-1, sg-3"});
    let mut groups = usual();
    let more = self::groups(vec![("sg-3", vec![tcp(80, "10.0.0.0/8")], vec![])]);
    groups.groups.extend(more.groups);
    check(&state, &groups, ("free", "web", "TCP", 443, true));
    check(&state, &groups, ("free", "web", "TCP", 80, true));
    check(&state, &groups, ("8.8.8.8", "web", "TCP", 80, false));
}

#[test]
fn icmp_goes_by_type_and_code() {
    let ping = rule(GroupProtocol::Number(1), 0x0800, 0x08ff, "0.0.0.0/0");
    let groups = groups(vec![("sg-1", vec![ping], vec![])]);
    check(&cluster(), &groups, ("free", "web", "ICMP", 0x0800, true));
    check(&cluster(), &groups, ("free", "web", "ICMP", 0x0d00, false));
    check(&cluster(), &groups, ("free", "web", "TCP", 0x0800, false));
}

#[test]
fn any_protocol_is_every_protocol() {
    let groups = groups(vec![("sg-1", vec![anything("0.0.0.0/0")], vec![])]);
    for protocol in ["TCP", "UDP", "SCTP", "ICMP"] {
        check(&cluster(), &groups, ("8.8.8.8", "web", protocol, 9, true));
    }
}

#[test]
fn members_are_pods_and_interfaces() {
    let mut groups = groups(vec![("sg-2", vec![tcp(5432, "sg-9")], vec![])]);
    check(&cluster(), &groups, ("10.9.9.9", "db", "TCP", 5432, false));
    let members = [IpAddr::from([10, 9, 9, 9])].into();
    groups.members.insert("sg-9".parse().expect("a group"), members);
    check(&cluster(), &groups, ("10.9.9.9", "db", "TCP", 5432, true));
    check(&cluster(), &groups, ("free", "db", "TCP", 5432, false));
}

#[test]
fn a_group_that_is_not_resolved_denies() {
    let mut unresolved = usual();
    let group = unresolved.groups.get_mut(&"sg-1".parse().expect("a group")).expect("it is there");
    group.state = GroupState::Unresolved { reason: "it does not exist".to_owned() };
    check(&cluster(), &unresolved, ("free", "web", "TCP", 443, false));
    check(&cluster(), &SecurityGroups::default(), ("free", "web", "TCP", 443, false));
    check(&cluster(), &SecurityGroups::default(), ("web", "free", "TCP", 443, false));
}

#[test]
fn an_annotation_without_an_id_denies() {
    let mut state = cluster();
    state[0]["metadata"]["annotations"] = json!({"vpc.amazonaws.com/security-groups": "web"});
    check(&state, &usual(), ("free", "web", "TCP", 443, false));
}

#[test]
fn policies_choose_groups_by_label() {
    let mut state = cluster();
    state.push(json!({
        "apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
        "metadata": {"namespace": "x", "name": "policy"},
        "spec": {
            "podSelector": {"matchLabels": {"pod": "free"}},
            "securityGroups": {"groupIds": ["sg-1"]},
        },
    }));
    check(&state, &usual(), ("8.8.8.8", "free", "TCP", 80, false));
    check(&state, &usual(), ("8.8.8.8", "free", "TCP", 443, true));
    // It is a member now.
    check(&state, &usual(), ("free", "db", "TCP", 5432, true));
}

#[test]
fn groups_and_policies_must_both_allow() {
    let mut state = cluster();
    let ports = json!([{"port": 443}, {"port": 80}]);
    let rules = Some(json!([{"from": [{"podSelector": {}}], "ports": ports}]));
    state.push(network_policy("x", "policy", &json!({}), rules, None));
    check(&state, &usual(), ("free", "web", "TCP", 443, true));
    check(&state, &usual(), ("8.8.8.8", "web", "TCP", 443, false));
    check(&state, &usual(), ("free", "web", "TCP", 80, false));
}

#[test]
fn a_pod_with_groups_of_its_own_is_no_member_of_its_interfaces() {
    let mut groups = groups(vec![
        ("sg-1", vec![], vec![tcp(5432, "0.0.0.0/0")]),
        ("sg-2", vec![tcp(5432, "sg-9")], vec![]),
    ]);
    // The node's ENI carries sg-9, and both pods' addresses are among its secondary ones.
    let members = [1, 3, 9].map(|last| IpAddr::from([10, 0, 0, last])).into();
    groups.members.insert("sg-9".parse().expect("a group"), members);
    check(&cluster(), &groups, ("web", "db", "TCP", 5432, false));
    check(&cluster(), &groups, ("free", "db", "TCP", 5432, true));
    check(&cluster(), &groups, ("10.0.0.9", "db", "TCP", 5432, true));
    // With the policy that chooses comes and goes the membership.
    let policy = json!({
        "apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
        "metadata": {"namespace": "x", "name": "policy"},
        "spec": {"podSelector": {"matchLabels": {"pod": "free"}}, "securityGroups": {"groupIds": ["sg-1"]}},
    });
    let mut compiled = crate::compiled::Compiled::new(veni_policy::index::Scope::All);
    let apply = |value: &Value| crate::generate::Change::Apply(value.clone());
    let mut all: Vec<_> = cluster().iter().map(apply).collect();
    all.push(crate::generate::Change::Groups(groups));
    for batch in [all, vec![apply(&policy)], vec![crate::generate::Change::Delete(policy)]] {
        compiled.apply(&batch).unwrap_or_else(|error| panic!("{error}"));
    }
}
