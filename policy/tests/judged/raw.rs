//! Manifests as text, and the verdicts that they come to. The oracle takes what the parser made of a manifest, so that
//! what the parser gets wrong is seen here alone.

use serde_json::Value;
use veni_policy::object::Object;

use crate::support::{check_poke, objects};

const PODS: &str = r#"[
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}},
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "server", "labels": {"role": "server"}},
        "status": {"podIP": "10.0.0.1"}},
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "client", "labels": {"role": "client"}},
        "status": {"podIP": "10.0.0.2"}},
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "y", "name": "other"}, "status": {"podIP": "10.0.1.1"}}
]"#;

/// Whether the client, and the pod of another namespace, reach the server on TCP 80, and which fields are named.
#[track_caller]
fn check(manifest: &str, client: bool, other: bool, fields: &[&str]) {
    let parsed = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let mut manifests = parsed(PODS).as_array().cloned().expect("a list");
    let manifest = parsed(manifest);
    crate::support::put(&mut manifests, manifest.clone());
    let objects = objects(&manifests);
    let wrong = objects.iter().flat_map(Object::diagnostics);
    let found: Vec<&str> = wrong.map(|wrong| wrong.field.as_str()).collect();
    assert_eq!(found, fields, "{manifest}");
    check_poke(&objects, ("x/client", "x/server", "TCP", 80, client));
    check_poke(&objects, ("y/other", "x/server", "TCP", 80, other));
}

#[track_caller]
fn check_policy(spec: &str, client: bool, other: bool, fields: &[&str]) {
    let head = r#""apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "x", "name": "p"}"#;
    check(&format!("{{{head}, \"spec\": {spec}}}"), client, other, fields);
}

#[track_caller]
fn check_cluster_policy(spec: &str, client: bool, other: bool, fields: &[&str]) {
    let head = r#""apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "c"}"#;
    check(
        &format!("{{{head}, \"spec\": {{\"tier\": \"Admin\", \"priority\": 1, {spec}}}}}"),
        client,
        other,
        fields,
    );
}

#[test]
fn null_opens_nothing_in_a_network_policy() {
    let values =
        r#"{"matchExpressions": [{"key": "role", "operator": "NotIn", "values": [null]}]}"#;
    for (spec, client, other, fields) in [
        (
            r#"{"podSelector": {"matchLabels": {"role": "server"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}]}]}"#,
            true,
            false,
            &[][..],
        ),
        (r#"{"podSelector": {"matchLabels": {"role": ""}}}"#, true, true, &[]),
        (
            r#"{"podSelector": {"matchLabels": {"role": null}}, "ingress": [{}]}"#,
            false,
            false,
            &["spec.podSelector.matchLabels.role"],
        ),
        (
            r#"{"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": null}}}]}]}"#,
            false,
            false,
            &["spec.ingress[0].from[0].podSelector.matchLabels.role"],
        ),
        (
            r#"{"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": null}}}]}]}"#,
            false,
            false,
            &["spec.ingress[0].from[0].namespaceSelector.matchLabels.team"],
        ),
        (
            &format!(
                r#"{{"podSelector": {{}}, "ingress": [{{"from": [{{"podSelector": {values}}}]}}]}}"#
            ),
            false,
            false,
            &["spec.ingress[0].from[0].podSelector.matchExpressions[0].values[0]"],
        ),
        (
            r#"{"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchExpressions": [null]}}]}]}"#,
            false,
            false,
            &["spec.ingress[0].from[0].podSelector.matchExpressions[0].key"],
        ),
        (
            r#"{"podSelector": {}, "ingress": [{"from": [null]}]}"#,
            false,
            false,
            &["spec.ingress[0].from[0]"],
        ),
        (
            r#"{"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": [null]}]}"#,
            false,
            false,
            &["spec.ingress[0].ports[0]"],
        ),
        (r#"{"podSelector": {}, "ingress": [null]}"#, false, false, &["spec.ingress[0]"]),
        (
            r#"{"podSelector": {}, "policyTypes": [null], "ingress": [{}]}"#,
            false,
            false,
            &["spec.policyTypes[0]"],
        ),
        (
            r#"{"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": [null]}}]}]}"#,
            false,
            false,
            &["spec.ingress[0].from[0].ipBlock.except[0]"],
        ),
    ] {
        check_policy(spec, client, other, fields);
    }
}

/// As for the API server.
#[test]
fn a_field_that_is_null_is_as_one_that_is_absent() {
    for (spec, client, other, fields) in [
        (r#"{"podSelector": {"matchLabels": null}, "ingress": null}"#, false, false, &[][..]),
        (r#"{"podSelector": null, "ingress": [{"from": null, "ports": null}]}"#, true, true, &[]),
    ] {
        check_policy(spec, client, other, fields);
    }
}

#[test]
fn null_opens_nothing_in_a_cluster_network_policy() {
    let deny = r#"{"action": "Deny", "from": [{"namespaces": {}}]}"#;
    let null = r#"{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": null}}}"#;
    for (spec, client, other, fields) in [
        (
            format!(
                r#""subject": {{"namespaces": {{}}}}, "ingress": [{{"action": "Accept", "from": [{{"pods": {null}}}]}}, {deny}]"#
            ),
            false,
            false,
            &["spec.ingress[0].from[0].pods.podSelector.matchLabels.role"][..],
        ),
        (
            format!(
                r#""subject": {{"namespaces": {{}}}}, "ingress": [{{"action": "Accept", "from": [{{"namespaces": {{"matchLabels": {{"t": null}}}}}}]}}, {deny}]"#
            ),
            false,
            false,
            &["spec.ingress[0].from[0].namespaces.matchLabels.t"],
        ),
        (
            format!(
                r#""subject": {{"namespaces": {{}}}}, "ingress": [{{"action": "Deny", "from": [{{"pods": {null}}}]}}]"#
            ),
            false,
            false,
            &["spec.ingress[0].from[0].pods.podSelector.matchLabels.role"],
        ),
        (
            format!(
                r#""subject": {{"pods": {null}}}, "ingress": [{{"action": "Accept", "from": [{{"namespaces": {{}}}}]}}, {deny}]"#
            ),
            false,
            false,
            &["spec.subject.pods.podSelector.matchLabels.role"],
        ),
        (
            format!(r#""subject": {{"namespaces": {{}}}}, "ingress": [null, {deny}]"#),
            false,
            false,
            &["spec.ingress[0].action", "spec.ingress[0].from"],
        ),
    ] {
        check_cluster_policy(&spec, client, other, fields);
    }
}

#[test]
fn null_opens_nothing_where_groups_are_chosen() {
    let server = |metadata: &str| {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "status": {{"podIP": "10.0.0.1"}},
                "metadata": {{"namespace": "x", "name": "server", {metadata}}}}}"#
        )
    };
    let annotation = "metadata.annotations.vpc.amazonaws.com/security-groups";
    let chosen = |value: &str| {
        server(&format!(r#""annotations": {{"vpc.amazonaws.com/security-groups": {value}}}"#))
    };
    check(&chosen("null"), false, false, &[annotation]);
    check(&chosen("\"\""), false, false, &[annotation]);
    check(&server(r#""annotations": null"#), true, true, &[]);
    check(&server(r#""labels": {"role": null}"#), true, true, &["metadata.labels.role"]);
    let policy = |spec: &str| {
        format!(
            r#"{{"apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
                "metadata": {{"namespace": "x", "name": "s"}}, "spec": {spec}}}"#
        )
    };
    let null = policy(
        r#"{"podSelector": {"matchLabels": {"role": null}}, "securityGroups": {"groupIds": ["sg-1"]}}"#,
    );
    check(&null, false, false, &["spec.podSelector.matchLabels.role"]);
    let null = policy(r#"{"podSelector": {}, "securityGroups": {"groupIds": [null]}}"#);
    check(&null, false, false, &["spec.securityGroups.groupIds[0]"]);
}
