//! Addresses that find no room.

use super::*;

/// A pod with so many addresses.
fn crowd(name: &str, from: u32, addresses: u32) -> Value {
    let address =
        |index: u32| json!({"ip": Ipv4Addr::from(0x0a00_0000 + from + index).to_string()});
    let addresses: Vec<Value> = (0..addresses).map(address).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": name},
        "status": {"podIPs": addresses}})
}

#[test]
fn more_addresses_than_fit_are_left_out_named_and_taken_when_there_is_room() {
    let mut index = Index::new(Scope::Node("n1".to_owned()));
    let mut tables = Applied::default();
    for number in 0..262_u32 {
        index.apply(parsed(&crowd(&format!("c{number}"), number * 1000, 1000)));
    }
    index.apply(parsed(&crowd("rest", 262_000, 144)));
    assert_eq!(change(&mut index, &mut tables), []);
    assert_eq!(tables.class_v4.len(), 262_144);
    index.apply(parsed(&crowd("more", 300_000, 2)));
    let expected = Refusal {
        pods: vec![PodKey::new("x", "more")],
        direction: None,
        map: "CLASS_V4",
        capacity: 262_144,
    };
    assert_eq!(change(&mut index, &mut tables), [expected]);
    assert_eq!(tables.class_v4.len(), 262_144);
    index.delete(&Key::new(Kind::Pod, "x", "rest"));
    change(&mut index, &mut tables);
    assert_eq!(change(&mut index, &mut tables), [], "there is room now");
    assert_eq!(tables.class_v4.len(), 262_002);
}

/// Whether the pod lets an address in on TCP 80.
fn lets_in(tables: &Applied, pod: &str, from: [u8; 4]) -> bool {
    let pod = PodKey::new("x", pod);
    let decision = tables.decide(&pod, Direction::Ingress, from.into(), 6, 80);
    decision.is_some_and(Decision::allowed)
}

#[test]
fn a_rule_that_denies_pods_denies_those_that_found_no_room_too() {
    for (action, then) in
        [("Deny", json!([])), ("Pass", json!([{"action": "Accept", "from": [{"namespaces": {}}]}]))]
    {
        let mut index = Index::new(Scope::Node("n1".to_owned()));
        let mut tables = Applied::default();
        let labelled = |name: &str, app: &str, ip: &str| {
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "x", "name": name, "labels": {"app": app}},
                "spec": {"nodeName": if name == "server" { "n1" } else { "n2" }},
                "status": {"podIP": ip}})
        };
        let by_app = |app: &str| json!({"pods": {"podSelector": {"matchLabels": {"app": app}}}});
        let mut rules = vec![json!({"action": action, "from": [by_app("bad")],
            "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]})];
        rules.extend(then.as_array().cloned().unwrap_or_default());
        index.apply(parsed(&json!({"apiVersion": "policy.networking.k8s.io/v1alpha2",
            "kind": "ClusterNetworkPolicy", "metadata": {"name": "c"},
            "spec": {"tier": "Admin", "priority": 1, "subject": by_app("server"), "ingress": rules}})));
        let deny = json!([{"action": "Deny", "from": [by_app("bad")]}]);
        index.apply(parsed(&json!({"apiVersion": "policy.networking.k8s.io/v1alpha2",
            "kind": "ClusterNetworkPolicy", "metadata": {"name": "below"},
            "spec": {"tier": "Baseline", "priority": 1, "subject": by_app("server"), "ingress": deny}})));
        index.apply(parsed(&labelled("server", "server", "10.9.0.1")));
        index.apply(parsed(&labelled("good", "good", "10.9.0.2")));
        for number in 0..262_u32 {
            index.apply(parsed(&crowd(&format!("c{number}"), number * 1000, 1000)));
        }
        index.apply(parsed(&crowd("rest", 262_000, 142)));
        assert_eq!(change(&mut index, &mut tables), []);
        let (good, known, far, bad) = ([10, 9, 0, 2], [10, 0, 0, 1], [8, 8, 8, 8], [10, 9, 0, 3]);
        assert!(
            [good, known, far].iter().all(|from| lets_in(&tables, "server", *from)),
            "{action}"
        );
        // The map is full now.
        index.apply(parsed(&labelled("bad", "bad", "10.9.0.3")));
        assert_eq!(change(&mut index, &mut tables).len(), 1, "{action}");
        assert!(!tables.class_v4.contains_key(&bad.into()), "it found no room");
        assert!(!lets_in(&tables, "server", bad), "{action}: closed");
        assert!(!lets_in(&tables, "server", far), "{action}: whoever is not known may be it");
        assert!(lets_in(&tables, "server", good) && lets_in(&tables, "server", known), "{action}");
        index.delete(&Key::new(Kind::Pod, "x", "rest"));
        change(&mut index, &mut tables);
        assert_eq!(change(&mut index, &mut tables), [], "there is room now");
        assert!(!lets_in(&tables, "server", bad), "{action}: by its labels");
        assert!(
            [good, known, far].iter().all(|from| lets_in(&tables, "server", *from)),
            "{action}"
        );
    }
}
