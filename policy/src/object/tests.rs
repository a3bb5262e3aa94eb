use serde_json::json;

use super::*;

fn rule_peers(peer: &Value) -> (Option<Vec<Peer>>, usize) {
    let value = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "x"},
        "spec": {"podSelector": {}, "ingress": [{"from": [peer]}]}});
    let Ok(Some(Object::NetworkPolicy(policy))) = parse(&value) else { panic!("no policy") };
    (policy.ingress.expect("isolates")[0].peers.clone(), policy.diagnostics.len())
}

#[test]
fn an_invalid_peer_matches_nothing_and_is_named() {
    for peer in [
        json!({}),
        json!({"podselector": {}}),
        json!({"ipBlock": {"cidr": "10.0.0.0/33"}}),
        json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}),
        json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}),
        json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}}),
        json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}}),
        json!({"podSelector": {"matchLabels": {"a": 1}}}),
        json!("everyone"),
    ] {
        assert_eq!(rule_peers(&peer), (Some(vec![]), 1), "{peer}");
    }
}
