//! What a ClusterNetworkPolicy denies is denied although the set that says so finds no room.

use super::*;

const SSH: u16 = 22;

/// A ClusterNetworkPolicy for the pods that are so numbered, or all.
fn cluster_policy(name: &str, number: Option<u16>, direction: Direction, rules: &Value) -> Object {
    let labels = match number {
        Some(number) => json!({"matchLabels": {"number": number.to_string()}}),
        None => json!({}),
    };
    let subject = json!({"pods": {"namespaceSelector": {}, "podSelector": labels}});
    let mut policy = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
        "spec": {"tier": "Admin", "priority": 1, "subject": subject}});
    policy["spec"][direction.to_string()] = rules.clone();
    parsed(&policy)
}

/// Denies every pod a port.
fn deny_ssh(direction: Direction) -> Value {
    let mut rule =
        json!({"action": "Deny", "protocols": [{"tcp": {"destinationPort": {"number": SSH}}}]});
    let peers = if direction == Direction::Ingress { "from" } else { "to" };
    rule[peers] = json!([{"namespaces": {}}]);
    rule
}

/// Whether the pod and the one with this address may talk.
fn passes(tables: &Applied, pod: u16, direction: Direction, other: [u8; 4], port: u16) -> bool {
    let pod = PodKey::new("x", format!("p{pod}"));
    tables.decide(&pod, direction, other.into(), 6, port).is_some_and(Decision::allowed)
}

#[test]
fn what_an_admin_denies_stays_closed_where_the_former_set_would_be_open_to_it() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    crowded(&mut index, &mut tables);
    let accepted = (0..PODS).find(|pod| set(&tables, "x", *pod, Direction::Ingress) > 1);
    let accepted = accepted.expect("some found room");
    let lets_in =
        |tables: &Applied, pod, port| passes(tables, pod, Direction::Ingress, [10, 0, 4, 1], port);
    assert!(lets_in(&tables, accepted, SSH) && lets_in(&tables, accepted, 80));
    let deny = json!([deny_ssh(Direction::Ingress)]);
    index.apply(cluster_policy("ssh", None, Direction::Ingress, &deny));
    for round in 0..4 {
        let change = index.change();
        for step in &change.steps {
            tables.apply(step);
        }
        assert!(!change.refused.is_empty(), "they do not fit twice");
        for pod in 0..PODS {
            assert!(!lets_in(&tables, pod, SSH), "{pod} in change {round}");
        }
    }
    let judged = (0..PODS).filter(|pod| lets_in(&tables, *pod, 80)).count();
    assert!(
        judged > usize::from(PODS) / 4,
        "they are tried again in the room of the former: {judged}"
    );
}

/// Denies blocks of 64 addresses from this one on.
fn networks(first: u32, count: u32) -> Value {
    let net = |block: u32| json!(format!("{}/26", Ipv4Addr::from(block << 6)));
    json!({"action": "Deny", "to": [{"networks": (first..first + count).map(net).collect::<Vec<_>>()}]})
}

/// An index where the map of prefixes is full but for a few; pod 1 has the set of a ClusterNetworkPolicy alone, of these
/// rules.
fn without_prefixes(rules: &Value) -> (Index, Applied) {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    (1..=3).for_each(|number| index.apply(parsed(&pod(number))));
    index.apply(cluster_policy("guard", Some(1), Direction::Egress, rules));
    // Nobody's share: it is written for the cluster.
    let filler = json!([networks(1 << 20, 131_062)]);
    index.apply(cluster_policy("filler", Some(2), Direction::Egress, &filler));
    assert_eq!(change(&mut index, &mut tables), []);
    assert!(set(&tables, "x", 1, Direction::Egress) > 1);
    (index, tables)
}

#[test]
fn a_set_of_cluster_policies_stays_only_where_it_denies_what_the_refused_one_does() {
    let check = |had: Value, wanted: Value, kept: bool, ssh: bool| {
        let (mut index, mut tables) = without_prefixes(&had);
        let before = set(&tables, "x", 1, Direction::Egress);
        index.apply(cluster_policy("guard", Some(1), Direction::Egress, &wanted));
        let refused = change(&mut index, &mut tables);
        assert!(refused.iter().any(|refusal| refusal.map == "CIDR_V4"), "{wanted}: {refused:?}");
        let now = set(&tables, "x", 1, Direction::Egress);
        let expected = if kept { before } else { PodSets::CLOSED.of(Direction::Egress) };
        assert_eq!(now, expected, "{had} to {wanted}");
        let reaches = passes(&tables, 1, Direction::Egress, [10, 0, 0, 3], SSH);
        assert_eq!(reaches, ssh, "{had} to {wanted}");
    };
    let (deny, blocks) = (deny_ssh(Direction::Egress), networks(1 << 21, 25));
    let to_all = |action: &str| json!({"action": action, "to": [{"namespaces": {}}]});
    let (accept, pass) = (to_all("Accept"), to_all("Pass"));
    let odd = json!({"action": "Deny", "to": [{"namespaces": {"matchLabels": {"a": "b"}}}]});
    let wide = json!({"action": "Accept", "to": [{"networks": ["0.0.0.0/0"]}]});
    // As many prefixes, and nothing closed.
    let mut opens = blocks.clone();
    opens["action"] = json!("Accept");
    // It lacks the denial, or another.
    check(json!([odd]), json!([odd, deny, blocks]), false, false);
    check(json!([deny]), json!([deny, blocks]), false, false);
    // What is refused only opens.
    check(json!([deny]), json!([deny, opens]), true, false);
    check(json!([odd, deny]), json!([deny, opens]), true, false);
    check(json!([deny]), json!([opens, deny]), true, false);
    // An exception before the denial that the refused one does not have, or has after it.
    check(json!([accept, deny]), json!([deny, accept, opens]), false, false);
    check(json!([wide, deny]), json!([deny, opens]), false, false);
    // One that it has as well.
    check(json!([accept, deny]), json!([accept, deny, opens]), true, true);
    // What is passed on is not accepted by what follows.
    check(json!([accept]), json!([pass, accept, opens]), false, false);
    check(json!([pass, accept]), json!([pass, accept, opens]), true, true);
}
