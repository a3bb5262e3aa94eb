//! Security groups that are not known yet: who is judged keeps what it has, who is new stays closed.

use std::net::IpAddr;

use serde_json::{Value, json};
use veni_core::id::SecurityGroupId;
use veni_policy::{
    applied::Applied,
    change::{CLOSED_SET, Direction, PodKey, Step},
    index::{Index, Scope},
    object,
    security_group::{
        GroupPeer, GroupProtocol, GroupRule, GroupState, ResolvedGroup, SecurityGroups,
    },
};

const FAR: [u8; 4] = [8, 8, 8, 8];

struct Node {
    index: Index,
    tables: Applied,
}

impl Node {
    fn new() -> Self {
        let mut node =
            Self { index: Index::new(Scope::Node("n1".into())), tables: Applied::default() };
        node.change();
        node
    }

    /// A daemon that starts over these tables.
    fn restarted(&self) -> Self {
        let index = Index::resume(Scope::Node("n1".into()), &self.tables.found());
        Self { index, tables: self.tables.clone() }
    }

    fn change(&mut self) -> Vec<Step> {
        let steps = self.index.change().steps;
        steps.iter().for_each(|step| self.tables.apply(step));
        steps
    }

    fn told(&mut self, objects: &[Value]) -> Vec<Step> {
        for object in objects {
            self.index.apply(object::parse(object).expect("valid").expect("a kind that counts"));
        }
        self.change()
    }

    fn resolved(&mut self, groups: &SecurityGroups) -> Vec<Step> {
        self.index.set_security_groups(groups.clone());
        self.change()
    }

    /// Whether the pod may talk to somebody far away on a TCP port; `None`: it has no sets.
    fn reaches(&self, port: u16) -> Option<bool> {
        let decision = self.tables.decide(&web(), Direction::Egress, FAR.into(), 6, port);
        decision.map(|decision| decision.allowed())
    }
}

fn web() -> PodKey {
    PodKey::new("x", "web")
}

fn pod(groups: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": "web",
            "annotations": {"vpc.amazonaws.com/security-groups": groups}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
        "status": {"podIP": "10.0.0.1"}})
}

fn only(port: u16) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "only"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"],
            "egress": [{"ports": [{"port": port}]}]}})
}

/// Groups that let TCP out to everybody on a port each; those without a port are in `state`.
fn groups(list: &[(&str, Result<u16, GroupState>)]) -> SecurityGroups {
    let mut groups = SecurityGroups::default();
    for (id, says) in list {
        let id: SecurityGroupId = id.parse().expect("a group");
        let (state, egress) = match says {
            Ok(port) => {
                let peer = GroupPeer::Cidr("0.0.0.0/0".parse().expect("a block"));
                let protocol = GroupProtocol::Number(6);
                let rule = GroupRule {
                    id: format!("sgr-{port}"),
                    protocol,
                    first: *port,
                    last: *port,
                    peer,
                };
                (GroupState::Resolved, vec![rule])
            }
            Err(state) => (state.clone(), Vec::new()),
        };
        let group = ResolvedGroup { id: id.clone(), state, ingress: Vec::new(), egress };
        groups.groups.insert(id, group);
    }
    groups
}

fn pending() -> GroupState {
    GroupState::Pending { reason: "EC2 does not answer".to_owned() }
}

#[test]
fn a_new_pod_has_no_sets_until_its_groups_are_known() {
    let mut node = Node::new();
    for unknown in [SecurityGroups::default(), groups(&[("sg-1", Err(pending()))])] {
        node.index.set_security_groups(unknown);
        node.told(&[pod("sg-1")]);
        assert_eq!((node.index.pod_sets(&web()), node.reaches(443)), (None, None));
        assert_eq!(node.index.awaited_groups(&web()).len(), 1);
        let said = node.index.judge([10, 0, 0, 1].into(), FAR.into(), 6, 443);
        assert!(!said.allowed && said.egress.set == CLOSED_SET, "{said:?}");
    }
    node.resolved(&groups(&[("sg-1", Ok(443))]));
    assert_eq!((node.reaches(443), node.reaches(80)), (Some(true), Some(false)));
    assert_eq!(node.index.awaited_groups(&web()), []);
}

#[test]
fn a_group_that_is_added_takes_nothing_away_before_it_is_known() {
    let mut node = Node::new();
    node.index.set_security_groups(groups(&[("sg-1", Ok(443))]));
    node.told(&[pod("sg-1")]);
    assert_eq!(node.told(&[pod("sg-1,sg-2")]), [], "no flip, no epoch");
    assert_eq!(node.resolved(&groups(&[("sg-1", Ok(443)), ("sg-2", Err(pending()))])), []);
    let wanted: Vec<String> = node.index.wanted_groups().iter().map(ToString::to_string).collect();
    assert_eq!(wanted, ["sg-1", "sg-2"]);
    node.resolved(&groups(&[("sg-1", Ok(443)), ("sg-2", Ok(80))]));
    assert_eq!((node.reaches(443), node.reaches(80)), (Some(true), Some(true)));
    // It gets another one in place of both: what it had is wanted until then.
    node.told(&[pod("sg-3")]);
    assert_eq!(node.index.wanted_groups().len(), 3);
    assert_eq!((node.reaches(443), node.reaches(80)), (Some(true), Some(true)));
    node.resolved(&groups(&[("sg-1", Ok(443)), ("sg-2", Ok(80)), ("sg-3", Ok(22))]));
    assert_eq!((node.reaches(443), node.reaches(22)), (Some(false), Some(true)));
    assert_eq!(node.index.wanted_groups().len(), 1);
}

#[test]
fn policies_hold_at_once_for_a_pod_that_waits_for_groups() {
    let mut node = Node::new();
    node.index.set_security_groups(groups(&[("sg-1", Ok(443))]));
    node.told(&[pod("sg-1")]);
    node.told(&[pod("sg-1,sg-2")]);
    node.told(&[only(80)]);
    assert_eq!((node.reaches(443), node.reaches(80)), (Some(false), Some(false)));
    node.told(&[only(443)]);
    assert_eq!(node.reaches(443), Some(true));
}

#[test]
fn what_cannot_be_known_or_is_no_group_denies_at_once() {
    let gone = GroupState::Unresolved { reason: "it does not exist".to_owned() };
    for (chosen, known) in [
        ("sg-1,sg-2,sg-3", groups(&[("sg-1", Ok(443)), ("sg-3", Err(gone))])),
        ("sg-1,sg-2,web", groups(&[("sg-1", Ok(443))])),
    ] {
        let mut node = Node::new();
        node.index.set_security_groups(known);
        node.told(&[pod("sg-1")]);
        assert_eq!(node.reaches(443), Some(true));
        node.told(&[pod(chosen)]);
        assert_eq!(node.reaches(443), Some(false), "{chosen}");
    }
}

#[test]
fn a_restart_flips_nothing_while_the_groups_are_not_known() {
    let mut node = Node::new();
    node.index.set_security_groups(groups(&[("sg-1", Ok(443))]));
    node.told(&[pod("sg-1"), only(443)]);
    let mut node = node.restarted();
    let calm = |steps: Vec<Step>| {
        let moves = steps.iter().any(|s| matches!(s, Step::Endpoint { .. } | Step::Epoch));
        assert!(!moves, "{steps:?}");
    };
    calm(node.change());
    node.told(&[pod("sg-1"), only(443)]);
    node.index.complete();
    let before = node.index.pod_sets(&web());
    node.resolved(&groups(&[("sg-1", Err(pending()))]));
    assert_eq!(node.index.pod_sets(&web()), before);
    assert_eq!((node.reaches(443), node.reaches(80)), (Some(true), Some(false)));
    node.resolved(&groups(&[("sg-1", Ok(443))]));
    assert_eq!((node.reaches(443), node.reaches(80)), (Some(true), Some(false)));
    assert_ne!(node.index.pod_sets(&web()), before, "its own set from now on");
    let peer: IpAddr = FAR.into();
    assert!(node.index.judge([10, 0, 0, 1].into(), peer, 6, 443).allowed);
}

const PEER: [u8; 4] = [10, 0, 0, 5];

/// A pod of another node, with the address that two of them get.
fn peer(name: &str, created: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "labels": {"app": name},
            "creationTimestamp": created},
        "spec": {"nodeName": "n2", "containers": [{"name": "c"}]},
        "status": {"podIP": IpAddr::from(PEER).to_string()}})
}

/// A web pod that waits for a group and may reach friends; some other local pod that no group judges may say more.
fn around_friend(asks_of_stranger: bool) -> Vec<Value> {
    let mut web_pod = pod("sg-1");
    web_pod["metadata"]["labels"] = json!({"role": "web"});
    let to_friends = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "friends"},
        "spec": {"podSelector": {"matchLabels": {"role": "web"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}]}});
    let mut objects = vec![web_pod, to_friends];
    if asks_of_stranger {
        objects.push(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "x", "name": "other", "labels": {"role": "other"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
            "status": {"podIP": "10.0.0.2"}}));
        objects.push(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "strangers"},
            "spec": {"podSelector": {"matchLabels": {"role": "other"}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "stranger"}}}]}]}}));
    }
    objects
}

/// A daemon that starts over the tables of one that knew the friend; web keeps the set of the former.
fn with_a_set_from_before(asks_of_stranger: bool) -> Node {
    let mut node = Node::new();
    node.index.set_security_groups(groups(&[("sg-1", Ok(443))]));
    node.told(&around_friend(asks_of_stranger));
    node.told(&[peer("friend", "2026-01-01T00:00:00Z")]);
    let mut node = node.restarted();
    node.index.set_security_groups(groups(&[("sg-1", Err(pending()))]));
    node
}

/// Whether web reaches the address, as the tables and as the index have it.
fn reaches_peer(node: &Node) -> (bool, bool) {
    let said = node.tables.decide(&web(), Direction::Egress, PEER.into(), 6, 443);
    let judged = node.index.judge([10, 0, 0, 1].into(), PEER.into(), 6, 443);
    (said.expect("it has sets").allowed(), judged.egress.allowed)
}

/// Whether the stranger, who has the address now, is none of web's friends, while `other` still knows it.
fn is_a_stranger(node: &Node, asks_of_stranger: bool) {
    assert_eq!(node.index.pod_at(PEER.into()), Some(PodKey::new("x", "stranger")));
    assert_eq!(node.index.awaited_groups(&web()).len(), 1, "web has its set from before");
    assert_eq!(reaches_peer(node), (false, false));
    if asks_of_stranger {
        let other = PodKey::new("x", "other");
        let said = node.tables.decide(&other, Direction::Ingress, PEER.into(), 6, 443);
        assert!(said.expect("it has sets").allowed());
    }
}

/// A set that stays from before knows addresses by the class that they had then.
#[test]
fn an_address_that_another_pod_gets_is_not_the_former_one_to_a_set_from_before() {
    let (friend, stranger) =
        (peer("friend", "2026-01-01T00:00:00Z"), peer("stranger", "2026-01-02T00:00:00Z"));
    let gone = object::parse(&friend).expect("valid").expect("a kind that counts").key();
    for (asks, deleted) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut node = with_a_set_from_before(asks);
        node.told(&around_friend(asks));
        node.told(std::slice::from_ref(&friend));
        node.index.complete();
        node.change();
        assert_eq!(reaches_peer(&node), (true, true));
        if deleted {
            node.index.delete(&gone);
        } // else the friend's object stays for a while
        node.told(std::slice::from_ref(&stranger));
        is_a_stranger(&node, asks);
    }
}

#[test]
fn an_address_that_two_pods_of_the_first_list_claim_is_neither_to_a_set_from_before() {
    let (friend, stranger) =
        (peer("friend", "2026-01-01T00:00:00Z"), peer("stranger", "2026-01-02T00:00:00Z"));
    for asks in [false, true] {
        for list in [[friend.clone(), stranger.clone()], [stranger.clone(), friend.clone()]] {
            let mut node = with_a_set_from_before(asks);
            node.told(&around_friend(asks));
            node.told(&list);
            is_a_stranger(&node, asks);
            node.index.complete();
            node.change();
            is_a_stranger(&node, asks);
        }
    }
}

#[test]
fn an_address_that_no_pod_had_any_more_is_not_the_former_ones_to_a_set_from_before() {
    for asks in [false, true] {
        let mut node = with_a_set_from_before(asks);
        node.told(&around_friend(asks));
        node.index.complete();
        node.change();
        node.told(&[peer("stranger", "2026-01-02T00:00:00Z")]);
        is_a_stranger(&node, asks);
    }
}

#[test]
fn what_a_group_allows_is_named_by_no_rule() {
    // The programs open instance metadata to a pod when a rule is named (VENI_INSTANCE_METADATA=closed).
    let mut node = Node::new();
    node.index.set_security_groups(groups(&[("sg-1", Ok(80))]));
    node.told(&[pod("sg-1")]);
    let metadata: IpAddr = [169, 254, 169, 254].into();
    let decide = |node: &Node| node.tables.decide(&web(), Direction::Egress, metadata, 6, 80);
    let by_group = decide(&node).expect("it has sets");
    assert!(by_group.allowed() && by_group.rule() == 0, "{by_group:?}");
    let said = node.index.judge([10, 0, 0, 1].into(), metadata, 6, 80);
    assert_eq!(said.egress.rule.expect("the group's").name, "sg-1", "explained all the same");
    node.told(&[only(80)]);
    let by_policy = decide(&node).expect("it has sets");
    assert!(by_policy.allowed() && by_policy.rule() != 0, "{by_policy:?}");
}

#[test]
fn another_wording_of_the_same_failure_changes_nothing() {
    let failing = |request: u32| {
        let reason = format!("EC2 says no (request {request})");
        groups(&[("sg-1", Err(GroupState::Unresolved { reason }))])
    };
    let mut node = Node::new();
    node.index.set_security_groups(failing(1));
    node.told(&[pod("sg-1")]);
    let rules = node.index.rules().len();
    for request in 2..100 {
        assert_eq!(node.resolved(&failing(request)), []);
    }
    assert_eq!(node.index.rules().len(), rules);
    let said = node.index.judge([10, 0, 0, 1].into(), FAR.into(), 6, 443);
    let reason = said.egress.rule.expect("a rule").reason.expect("why");
    assert!(reason.contains("request 99"), "the latest words: {reason}");
}
