//! A cluster for benchmarks: 100 namespaces, 500 policies, as many pods as asked for, 110 of them on `node-0`.

use serde_json::{Value, json};
use veni_policy::object::{self, Object};

pub(crate) const NAMESPACES: usize = 100;
pub(crate) const POLICIES: usize = 500;
const APPS: usize = 10;
pub(crate) const LOCAL_PODS: usize = 110;

/// A cluster of this size.
pub(crate) struct Cluster {
    pub(crate) pods: usize,
}

/// A kind of change: its name, and the object of each round.
pub(crate) type Kind<'a> = (&'static str, Box<dyn Fn(usize) -> Object + 'a>);

impl Cluster {
    /// Everything that is there.
    pub(crate) fn objects(&self) -> impl Iterator<Item = Object> {
        let namespaces = (0..NAMESPACES).map(|namespace| namespace_of(namespace, 0));
        let pods = (0..self.pods).map(|pod| self.pod(pod, 0));
        let policies = (0..POLICIES).map(|policy| policy_of(policy, 0));
        let all = namespaces.chain(pods).chain(policies).chain([cluster_policy(0)]);
        all.map(|value| parsed(&value))
    }

    /// What changes.
    pub(crate) fn kinds(&self) -> [Kind<'_>; 5] {
        [
            ("NetworkPolicy", Box::new(|n| parsed(&policy_of((n * 7) % POLICIES, 1 + n)))),
            ("ClusterNetworkPolicy", Box::new(|n| parsed(&cluster_policy(n)))),
            ("Namespace labels", Box::new(|n| parsed(&namespace_of(n % NAMESPACES, 1 + n)))),
            (
                "Pod elsewhere, labels",
                Box::new(|n| parsed(&self.pod((n * 13 + 1) % self.pods, 1 + n))),
            ),
            (
                "Pod here, labels",
                Box::new(|n| parsed(&self.pod(((n % 100) * self.step()) % self.pods, 1 + n))),
            ),
        ]
    }

    fn pod(&self, number: usize, version: usize) -> Value {
        let namespace = number % NAMESPACES;
        let app = (number / NAMESPACES) % APPS;
        let address = format!("10.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255);
        let here = self.is_here(number);
        let mut labels = json!({
            "app": format!("app-{app}"), "tier": format!("tier-{}", app % 3),
            "version": format!("v{version}"), "pod-template-hash": format!("{namespace:x}{app:x}"),
        });
        // Every tenth is a StatefulSet's: alike to no other.
        if number.is_multiple_of(10) {
            labels["statefulset.kubernetes.io/pod-name"] = json!(format!("pod-{number}"));
        }
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": format!("ns-{namespace}"), "name": format!("pod-{number}"),
                "uid": format!("00000000-0000-0000-0000-{number:012}"), "labels": labels},
            "spec": {"nodeName": if here { "node-0".to_owned() } else { format!("node-{}", 1 + number / 110) },
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080},
                    {"name": "metrics", "containerPort": 9000 + app}]}]},
            "status": {"podIP": address, "podIPs": [{"ip": address}], "phase": "Running"}})
    }

    /// Prime to the number of namespaces, so that they are of all of them.
    fn step(&self) -> usize {
        (self.pods / LOCAL_PODS).max(1) | 1
    }

    fn is_here(&self, number: usize) -> bool {
        number.is_multiple_of(self.step())
    }
}

fn parsed(value: &Value) -> Object {
    object::parse(value).expect("the bench's objects are valid").expect("of kinds that count")
}

fn namespace_of(number: usize, version: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("ns-{number}"),
        "labels": {"team": format!("team-{}", (number + version) % 10)}}})
}

fn policy_of(number: usize, version: usize) -> Value {
    let namespace = number % NAMESPACES;
    let app = |offset: usize| format!("app-{}", (number / NAMESPACES + version + offset) % APPS);
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": format!("ns-{namespace}"), "name": format!("policy-{number}")},
        "spec": {"podSelector": {"matchLabels": {"tier": format!("tier-{}", number % 3)}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": app(1)}}}, {"podSelector": {"matchLabels": {"app": app(2)}}}],
                    "ports": [{"port": "http"}, {"port": 8443}]},
                {"from": [{"namespaceSelector": {"matchLabels": {"team": format!("team-{}", (number + version) % 10)}},
                    "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": [app(3), app(4)]}]}}],
                    "ports": [{"port": 9000, "endPort": 9000 + (version % 100)}]},
                {"from": [{"ipBlock": {"cidr": format!("10.{}.0.0/16", version % 4), "except": [format!("10.{}.{}.0/24", version % 4, version % 200)]}}]}],
            "egress": [
                {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ns-1"}}}], "ports": [{"protocol": "UDP", "port": 53}, {"port": 53}]},
                {"to": [{"podSelector": {"matchLabels": {"app": app(5)}}}], "ports": [{"port": "metrics"}]},
                {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "169.254.169.254/32"]}}], "ports": [{"port": 443}]}]}})
}

fn cluster_policy(version: usize) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "guard"},
        "spec": {"tier": "Admin", "priority": 10, "subject": {"namespaces": {}},
            "ingress": [{"action": "Accept", "from": [{"namespaces": {"matchLabels": {"team": format!("team-{}", version % 10)}}}],
                "protocols": [{"tcp": {"destinationPort": {"number": 9090}}}]}],
            "egress": [{"action": "Deny", "to": [{"networks": ["169.254.169.254/32"]}]},
                {"action": "Pass", "to": [{"namespaces": {}}]}]}})
}
