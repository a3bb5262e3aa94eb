//! Manifests as the cases write them: plain Kubernetes JSON, no more than a case says.
//!
//! Deliberately absent: checks. A case may want an object that is wrong.

use std::net::IpAddr;

use serde_json::{Value, json};

/// A namespace; `kubernetes.io/metadata.name` is there without being written.
#[must_use]
pub fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A running pod with these addresses and container ports (`name`, `protocol`, `containerPort`).
#[must_use]
pub fn pod(namespace: &str, name: &str, labels: &Value, ips: &[IpAddr], ports: &Value) -> Value {
    let pod_ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"containers": [{"name": "server", "ports": ports}]},
        "status": {"phase": "Running", "podIP": ips.first(), "podIPs": pod_ips},
    })
}

/// A node with these addresses.
#[must_use]
pub fn node(name: &str, labels: &Value, ips: &[IpAddr]) -> Value {
    let addresses: Vec<Value> =
        ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"addresses": addresses},
    })
}

/// A NetworkPolicy whose types are the directions that are given.
#[must_use]
pub fn network_policy(
    namespace: &str,
    name: &str,
    selector: &Value,
    ingress: Option<Value>,
    egress: Option<Value>,
) -> Value {
    let mut types = Vec::new();
    let mut spec = json!({"podSelector": selector});
    for (policy_type, section, rules) in
        [("Ingress", "ingress", ingress), ("Egress", "egress", egress)]
    {
        if let Some(rules) = rules {
            types.push(policy_type);
            spec[section] = rules;
        }
    }
    spec["policyTypes"] = json!(types);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    })
}

/// A ClusterNetworkPolicy; `ingress` and `egress` are lists, left out when null.
#[must_use]
pub fn cluster_network_policy(
    name: &str,
    tier: &str,
    priority: u32,
    subject: &Value,
    ingress: &Value,
    egress: &Value,
) -> Value {
    let mut spec = json!({"tier": tier, "priority": priority, "subject": subject});
    for (section, rules) in [("ingress", ingress), ("egress", egress)] {
        if !rules.is_null() {
            spec[section] = rules.clone();
        }
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// A selector by labels: `labels(json!({"pod": "a"}))`.
#[must_use]
pub fn labels(labels: &Value) -> Value {
    json!({"matchLabels": labels})
}

/// A selector of one expression.
#[must_use]
pub fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
}
