use serde_json::json;

use super::*;

fn object(kind: Kind, spec: &Value) -> Object {
    let value = json!({"apiVersion": kind.api_version(), "kind": kind.as_str(),
        "metadata": {"name": "o", "namespace": "x"}, "spec": spec});
    parse(&value).expect("taken").expect("a kind that counts")
}

fn network_policy(spec: &Value) -> NetworkPolicy {
    let Object::NetworkPolicy(policy) = object(Kind::NetworkPolicy, spec) else {
        panic!("no policy")
    };
    policy
}

fn cluster_policy(spec: &Value) -> ClusterNetworkPolicy {
    let Object::ClusterNetworkPolicy(policy) = object(Kind::ClusterNetworkPolicy, spec) else {
        panic!("no policy")
    };
    policy
}

fn rule_peers(peer: &Value) -> (Option<Vec<Peer>>, usize) {
    let policy = network_policy(&json!({"podSelector": {}, "ingress": [{"from": [peer]}]}));
    (policy.ingress.expect("isolates")[0].peers.clone(), policy.diagnostics.len())
}

#[test]
fn an_invalid_peer_matches_nothing_and_is_named() {
    for peer in [
        json!({}),
        json!({"podselector": {}}),
        json!({"ipBlock": {"cidr": "10.0.0.0/33"}}),
        json!({"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}}),
        json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}),
        json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}),
        json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}}),
        json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}}),
        json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}),
        json!({"podSelector": {"matchExpressions": [{"key": "a b", "operator": "DoesNotExist"}]}}),
        json!({"podSelector": {"matchLabels": {"a": 1}}}),
        json!("everyone"),
    ] {
        assert_eq!(rule_peers(&peer), (Some(vec![]), 1), "{peer}");
    }
}

#[test]
fn an_invalid_port_matches_nothing_and_is_named() {
    for (port, field) in [
        (json!({"port": 0}), "port"),
        (json!({"port": 65536}), "port"),
        (json!({"port": "HTTP"}), "port"),
        (json!({"port": "a-name-far-too-long"}), "port"),
        (json!({"port": 80, "protocol": "tcp"}), "protocol"),
        (json!({"port": 80, "endPort": 79}), "endPort"),
        (json!({"endPort": 79}), "endPort"),
        (json!({"port": "http", "endPort": 90}), "endPort"),
        (json!({"prot": 80}), "prot"),
    ] {
        let policy = network_policy(&json!({"podSelector": {}, "ingress": [{"ports": [port]}]}));
        assert_eq!(policy.ingress.expect("isolates")[0].ports, Some(vec![]), "{port}");
        let fields: Vec<&str> = policy.diagnostics.iter().map(|d| d.field.as_str()).collect();
        assert_eq!(fields, [format!("spec.ingress[0].ports[0].{field}")], "{port}");
    }
}

#[test]
fn all_that_is_wrong_with_a_port_is_named_at_once() {
    let ports = json!([{"protocol": "TPC", "port": 80000}]);
    let policy = network_policy(&json!({"podSelector": {}, "ingress": [{"ports": ports}]}));
    let fields: Vec<&str> = policy.diagnostics.iter().map(|d| d.field.as_str()).collect();
    assert_eq!(
        fields,
        ["spec.ingress[0].ports[0].protocol", "spec.ingress[0].ports[0].port"],
        "{policy:?}"
    );
}

#[test]
fn names_that_the_api_server_refuses_are_named() {
    let long = "a".repeat(64);
    for (namespace, name, fields) in [
        ("shop", "web-0.v2", &[][..]),
        ("shop", &long, &[]),
        ("shop", "Bad_Name", &["metadata.name"]),
        ("shop", "a..b", &["metadata.name"]),
        ("shop", "-a", &["metadata.name"]),
        ("Shop_", "web", &["metadata.namespace"]),
        ("a.b", "web-", &["metadata.name", "metadata.namespace"]),
        (&long, "web", &["metadata.namespace"]),
    ] {
        let metadata = json!({"name": name, "namespace": namespace});
        let value = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata,
            "spec": {"podSelector": {}}});
        let object = parse(&value).expect("taken").expect("a kind that counts");
        let found: Vec<&str> = object.diagnostics().iter().map(|d| d.field.as_str()).collect();
        assert_eq!(found, fields, "{namespace}/{name}");
    }
}

#[test]
fn a_policy_isolates_what_its_types_or_its_sections_say() {
    for (spec, ingress, egress) in [
        (json!({}), true, false),
        (json!({"egress": []}), true, false),
        (json!({"egress": null}), true, false),
        (json!({"egress": [{}]}), true, true),
        (json!({"egress": "all"}), true, true),
        (json!({"policyTypes": ["Ingress", "Egress"], "egress": []}), true, true),
        (json!({"policyTypes": []}), true, false),
        (json!({"policyTypes": ["Egress"]}), false, true),
        (json!({"policyTypes": ["Ingress"], "egress": [{}]}), true, false),
        (json!({"policyTypes": ["egress"]}), true, true),
    ] {
        let policy = network_policy(&spec);
        assert_eq!(
            (policy.ingress.is_some(), policy.egress.is_some()),
            (ingress, egress),
            "{spec}"
        );
    }
}

#[test]
fn a_policy_whose_head_is_invalid_isolates_the_namespace_and_allows_nothing() {
    for spec in [
        json!({"podSelector": {"matchLabels": []}, "ingress": [{}]}),
        json!({"podselector": {"matchLabels": {"a": "b"}}, "ingress": [{}]}),
        json!({"podSelector": {}, "policyTypes": ["All"], "ingress": [{}]}),
    ] {
        let policy = network_policy(&spec);
        assert_eq!(policy.pods, Selector::everything(), "{spec}");
        assert_eq!(policy.ingress, Some(vec![PolicyRule::nothing()]), "{spec}");
        assert_eq!(policy.diagnostics.len(), 1, "{spec}");
    }
}

#[test]
fn a_cluster_policy_whose_head_is_invalid_holds_for_all_and_only_denies() {
    let subject = json!({"namespaces": {}});
    let actions = ["Accept", "Deny", "Pass"];
    let rules: Vec<Value> =
        actions.iter().map(|a| json!({"action": a, "to": [{"namespaces": {}}]})).collect();
    for spec in [
        json!({"tier": "admin", "priority": 5, "subject": subject, "egress": rules}),
        json!({"tier": "Admin", "priority": 1001, "subject": subject, "egress": rules}),
        json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}, "pods": {}}, "egress": rules}),
        json!({"tier": "Baseline", "priority": 5, "subject": {}, "egress": rules}),
    ] {
        let policy = cluster_policy(&spec);
        assert_eq!((policy.tier, policy.priority), (Tier::Admin, 0), "{spec}");
        let closed: Vec<_> = policy.egress.iter().map(|r| (r.action, r.peers.len())).collect();
        assert_eq!(closed, [(Action::Accept, 0), (Action::Deny, 1), (Action::Deny, 1)], "{spec}");
        assert_eq!(policy.diagnostics.len(), 1, "{spec}");
    }
}

#[test]
fn kinds_and_versions_that_are_not_ours_are_left_alone_or_named() {
    let of = |api: &str, kind: &str| {
        parse(&json!({"apiVersion": api, "kind": kind, "metadata": {"name": "o"}}))
    };
    assert_eq!(of("apps/v1", "Deployment"), Ok(None));
    assert_eq!(of("serving.knative.dev/v1", "Service"), Ok(None));
    let refused = of("networking.k8s.aws/v1alpha1", "ClusterNetworkPolicy").expect_err("not ours");
    assert_eq!(refused[0].field, "apiVersion");
    assert_eq!(refused[0].key.to_string(), "ClusterNetworkPolicy o");
}

#[test]
fn everything_that_is_wrong_with_an_object_is_told_at_once() {
    let port = json!({"containerPort": "eighty", "protocol": "tcp", "hostPort": "x", "hostIP": 5});
    for (value, expected) in [
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": 5}},
                "spec": {"containers": [{"ports": [port]}]}, "status": {"podIP": "nowhere"}}),
            vec![
                "metadata.labels.a",
                "spec.containers[0].ports[0].containerPort",
                "spec.containers[0].ports[0].hostIP",
                "spec.containers[0].ports[0].hostPort",
                "spec.containers[0].ports[0].protocol",
                "status.podIP",
            ],
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": 5}}}),
            vec!["metadata.labels.a", "metadata.name"],
        ),
        (
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec":
                {"clusterIP": "nowhere", "type": "Odd", "ports": [{"port": 0}, {"port": 80, "protocol": "tcp"}]}}),
            vec!["spec.clusterIP", "spec.ports[0].port", "spec.ports[1].protocol", "spec.type"],
        ),
        (
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"a": 5}},
                "status": {"addresses": [{"type": "InternalIP", "address": "nowhere"}]}}),
            vec!["metadata.labels.a", "status.addresses[0].address"],
        ),
        (
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
                "endpoints": [{"addresses": ["nowhere"]}, {"nodeName": 5}], "ports": [{"port": 0}]}),
            vec!["endpoints[0].addresses[0]", "endpoints[1].nodeName", "ports[0].port"],
        ),
    ] {
        let found = match parse(&value) {
            Ok(object) => object.expect("a kind that counts").diagnostics().to_vec(),
            Err(wrong) => wrong,
        };
        let mut fields: Vec<_> = found.iter().map(|wrong| wrong.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, expected, "{value}");
    }
}

#[test]
fn sidecars_have_ports_and_other_init_containers_do_not() {
    let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations":
            {"vpc.amazonaws.com/security-groups": "sg-1, nonsense"}},
        "spec": {"containers": [{"ports": [{"containerPort": 80, "hostPort": 8080}]}],
            "initContainers": [{"ports": [{"containerPort": 81}]},
                {"restartPolicy": "Always", "ports": [{"name": "m", "containerPort": 82, "protocol": "UDP"}]}]},
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}});
    let Ok(Some(Object::Pod(pod))) = parse(&value) else { panic!("no pod") };
    let ports: Vec<_> = pod.ports.iter().map(|port| (port.port, port.host_port)).collect();
    assert_eq!(ports, [(80, Some(8080)), (82, None)]);
    assert_eq!(pod.named_port("m", Protocol::Udp), Some(82));
    assert_eq!(pod.addresses.len(), 2);
    assert_eq!(pod.namespace, "default");
    assert_eq!(pod.security_groups.expect("chosen").invalid, ["nonsense"]);
    assert_eq!(pod.diagnostics.len(), 1);
}

#[test]
fn a_selector_treats_an_absent_label_as_the_api_does() {
    let labels: Labels = [("a".to_owned(), "1".to_owned())].into();
    for (expression, wanted) in [
        (json!({"key": "a", "operator": "In", "values": ["1", "2"]}), true),
        (json!({"key": "b", "operator": "In", "values": ["1"]}), false),
        (json!({"key": "a", "operator": "NotIn", "values": ["1"]}), false),
        (json!({"key": "b", "operator": "NotIn", "values": ["1"]}), true),
        (json!({"key": "a", "operator": "Exists"}), true),
        (json!({"key": "b", "operator": "DoesNotExist"}), true),
    ] {
        let policy = network_policy(&json!({"podSelector": {"matchExpressions": [expression]}}));
        assert_eq!(policy.pods.matches(&labels), wanted, "{expression}");
    }
}

#[test]
fn a_pod_is_read_back_from_its_manifest() {
    let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "p", "uid": "u",
            "labels": {"app": "a"}, "annotations": {"vpc.amazonaws.com/security-groups": "sg-2,nonsense,sg-1"}},
        "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]}});
    let Ok(Some(Object::Pod(pod))) = parse(&value) else { panic!("a pod") };
    assert_eq!(parse(&pod.manifest()), Ok(Some(Object::Pod(pod))));
}

#[test]
fn an_invalid_part_takes_nothing_else_of_a_pod_or_namespace_away() {
    let value = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": "p", "uid": 7, "labels": {"app": "db", "v": 1}},
        "spec": {"nodeName": "n1", "containers": [{"ports": [{"containerPort": "eighty"},
            {"name": "a", "containerPort": 81}, {"containerPort": 82, "protocol": "tcp"}]}, {"ports": 5}]},
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.256"}, {"ip": "fd00::1"}]}});
    let Ok(Some(object @ Object::Pod(_))) = parse(&value) else { panic!("a pod") };
    let Object::Pod(pod) = &object else { panic!("a pod") };
    let labels: Labels = [("app".to_owned(), "db".to_owned())].into();
    assert_eq!((&pod.labels, pod.node.as_deref(), pod.addresses.len()), (&labels, Some("n1"), 2));
    assert_eq!(pod.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [81]);
    let fields: Vec<&str> = object.diagnostics().iter().map(|wrong| wrong.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "metadata.uid",
            "metadata.labels.v",
            "status.podIPs[0].ip",
            "spec.containers[0].ports[0].containerPort",
            "spec.containers[0].ports[2].protocol",
            "spec.containers[1].ports",
        ]
    );
    assert!(object.lacks_labels());

    let value = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "x", "labels": {"team": "a", "n": 1}}});
    let Ok(Some(object)) = parse(&value) else { panic!("a namespace") };
    let Object::Namespace(namespace) = &object else { panic!("a namespace") };
    assert_eq!(namespace.labels.get("team").map(String::as_str), Some("a"));
    assert!(object.lacks_labels() && namespace.labels.len() == 2);
}

#[test]
fn an_annotation_of_groups_that_is_no_text_denies() {
    let value = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "annotations": {"vpc.amazonaws.com/security-groups": 5}}});
    let Ok(Some(Object::Pod(pod))) = parse(&value) else { panic!("a pod") };
    assert_eq!(pod.security_groups.expect("chosen").invalid, ["5"]);
}
