//! The objects that the test makes, and where they are.

use serde_json::{Value, json};

use super::PORTS;

/// All that a namespace can hold is in this one. A fixed name: two tests at once would disturb each other.
pub(super) const NAMESPACE: &str = "veni-connectivity-test";
/// The namespace itself.
pub(super) const NAMESPACE_PATH: &str = "/api/v1/namespaces/veni-connectivity-test";
pub(super) const NAMESPACES: &str = "/api/v1/namespaces";
/// What the namespace says of who made it, and that he is still at it.
pub(super) const RUN: &str = "veni.dev/connectivity-run";
pub(super) const BEAT: &str = "veni.dev/connectivity-beat";
const LABEL: &str = "app.kubernetes.io/managed-by";
const OWNER: &str = "venictl-connectivity-test";

pub(super) const SERVICE: &str = "server";
/// Not of the pods' ports, so that a packet that nobody translated reaches nobody.
pub(super) const SERVICE_PORT: u16 = 80;

/// The version of ClusterNetworkPolicy that is known here.
pub(super) const CLUSTER_POLICY_VERSION: &str = "policy.networking.k8s.io/v1alpha2";
pub(super) const CLUSTER_POLICIES: &str =
    "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";
/// Named after the test, because they are in no namespace.
pub(super) const CLUSTER_POLICY: &str = "veni-connectivity-test";

/// What a pod is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

impl Role {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// A collection of the test's namespace: `pods`, `services`.
pub(super) fn core(resource: &str) -> String {
    format!("{NAMESPACE_PATH}/{resource}")
}

pub(super) fn policies() -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies")
}

pub(super) fn namespace(run: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {LABEL: OWNER, "pod-security.kubernetes.io/enforce": "restricted"},
            "annotations": {RUN: run, BEAT: "0"},
        },
    })
}

/// Whether a namespace is the test's.
pub(super) fn is_ours(namespace: &Value) -> bool {
    namespace["metadata"]["labels"][LABEL] == OWNER
}

/// A pod on the node of this name and number.
pub(super) fn pod(role: Role, number: usize, node: &str, image: &str) -> Value {
    let name = pod_name(role, number);
    let port = |number: &u16| json!({"containerPort": number});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": {LABEL: OWNER, "role": role.name(), "number": number.to_string()},
        },
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "restartPolicy": "Always",
            // By the scheduler, as any pod: a node that takes none is not tested.
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [
                    {"key": "metadata.name", "operator": "In", "values": [node]},
                ]}],
            }}},
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65534, "runAsGroup": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "agent", "image": image, "imagePullPolicy": "IfNotPresent",
                "command": [super::api::PROGRAM, "connectivity", "serve"],
                "env": [{"name": "POD_NAME", "value": name}],
                "ports": PORTS.iter().map(port).collect::<Vec<_>>(),
                "readinessProbe": {"tcpSocket": {"port": PORTS[0]}, "periodSeconds": 1},
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}

pub(super) fn pod_name(role: Role, number: usize) -> String {
    format!("{}-{}", role.name(), number + 1)
}

/// In front of all servers, with node ports.
pub(super) fn service() -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": SERVICE_PORT, "targetPort": PORTS[0]});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE},
        "spec": {
            "type": "NodePort", "selector": {"role": "server"},
            "ports": [port("tcp", "TCP"), port("udp", "UDP")],
        },
    })
}

/// A NetworkPolicy over the pods of a role.
pub(super) fn policy(name: &str, of: Role, direction: &str, rules: &Value) -> Value {
    let mut spec = json!({
        "podSelector": {"matchLabels": {"role": of.name()}},
        "policyTypes": [direction],
    });
    spec[direction.to_lowercase()] = rules.clone();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    })
}

/// An admin policy over the servers, for what comes from the clients: `Accept` or `Deny`. The first of all priorities, so
/// that the cluster's own do not decide before it.
pub(super) fn cluster_policy(action: &str) -> Value {
    let pods = |role: Role| {
        json!({"pods": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
            "podSelector": {"matchLabels": {"role": role.name()}},
        }})
    };
    json!({
        "apiVersion": CLUSTER_POLICY_VERSION, "kind": "ClusterNetworkPolicy",
        "metadata": {"name": CLUSTER_POLICY, "labels": {LABEL: OWNER}},
        "spec": {
            "tier": "Admin", "priority": 0, "subject": pods(Role::Server),
            "ingress": [{"name": "test", "action": action, "from": [pods(Role::Client)]}],
        },
    })
}
