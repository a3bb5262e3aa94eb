//! How long the index takes from a changed object to its last step, and how much memory it has.
//!
//! `cargo run --release -p veni-policy --example bench -- [PODS] [--repeats N] [-o json]`; 100 namespaces, 500 policies,
//! 110 pods on this node. A row is one kind of change, repeated; what it is at is said on stderr. Times are of `apply` and `change` together, without the maps'
//! own writes (their number is in the row).

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its results")]

use std::time::Instant;

use serde_json::{Value, json};
use veni_policy::{
    change::Step,
    index::{Index, Scope},
    object::{self, Object},
};

const NAMESPACES: usize = 100;
const POLICIES: usize = 500;
const APPS: usize = 10;
const LOCAL_PODS: usize = 110;
const REPEATS: usize = 500;

/// A cluster's size.
struct Cluster {
    pods: usize,
    /// How often each kind of change is made.
    repeats: usize,
}

/// Times and numbers of steps of one kind of change.
struct Row {
    name: &'static str,
    micros: Vec<u64>,
    /// The same on the processor: what others on the machine did not take.
    cpu_micros: Vec<u64>,
    steps: Vec<usize>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = arguments.windows(2).any(|pair| pair == ["-o", "json"]);
    let repeats = arguments.windows(2).find(|pair| pair[0] == "--repeats");
    let repeats =
        repeats.map_or(REPEATS, |pair| pair[1].parse().expect("--repeats takes a number"));
    let pods = arguments.first().and_then(|argument| argument.parse().ok()).unwrap_or(10_000);
    let cluster = Cluster { pods, repeats };
    eprintln!("{pods} pods are taken in");
    let before = resident_kib();
    let mut index = Index::new(Scope::Node("node-0".to_owned()));
    let start = Instant::now();
    cluster.fill(&mut index);
    let first = index.change();
    let filled = start.elapsed();
    let memory = resident_kib().saturating_sub(before);
    let sizes = index.sizes();
    let rows = cluster.measure(&mut index);
    let after = resident_kib().saturating_sub(before);
    if json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        let report = json!({
            "pods": pods, "namespaces": NAMESPACES, "policies": POLICIES, "local_pods": sizes.local_pods,
            "identities": sizes.identities, "classes": sizes.classes, "sets": sizes.sets,
            "verdicts": sizes.verdicts, "index_kib": memory, "index_kib_after": after,
            "fill_millis": filled.as_millis(), "fill_steps": first.steps.len(), "changes": rows,
        });
        println!("{report:#}");
        return;
    }
    println!(
        "{pods} pods ({} alike), {} here, {} classes, {} sets, {} verdicts: {} MiB, {} MiB after the changes; filled in {} ms, {} steps",
        sizes.identities,
        sizes.local_pods,
        sizes.classes,
        sizes.sets,
        sizes.verdicts,
        memory / 1024,
        after / 1024,
        filled.as_millis(),
        first.steps.len(),
    );
    let head = ["p50 µs", "p99 µs", "max µs", "cpu p99", "steps p99"];
    println!("{:24}{}", "change", head.map(|name| format!("{name:>10}")).concat());
    for row in &rows {
        let numbers = [
            at(&row.micros, 50),
            at(&row.micros, 99),
            at(&row.micros, 100),
            at(&row.cpu_micros, 99),
            at(&row.steps, 99) as u64,
        ];
        println!("{:24}{}", row.name, numbers.map(|number| format!("{number:>10}")).concat());
    }
}

impl Cluster {
    fn fill(&self, index: &mut Index) {
        for namespace in 0..NAMESPACES {
            index.apply(parsed(&namespace_of(namespace, 0)));
        }
        for pod in 0..self.pods {
            index.apply(parsed(&self.pod(pod, 0)));
        }
        for policy in 0..POLICIES {
            index.apply(parsed(&policy_of(policy, 0)));
        }
        index.apply(parsed(&cluster_policy(0)));
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

    fn measure(&self, index: &mut Index) -> Vec<Row> {
        vec![
            self.measure_one("NetworkPolicy", index, |round| {
                policy_of((round * 7) % POLICIES, 1 + round)
            }),
            self.measure_one("ClusterNetworkPolicy", index, cluster_policy),
            self.measure_one("Namespace labels", index, |round| {
                namespace_of(round % NAMESPACES, 1 + round)
            }),
            self.measure_one("Pod elsewhere, labels", index, |round| {
                self.pod((round * 13 + 1) % self.pods, 1 + round)
            }),
            self.measure_one("Pod here, labels", index, |round| {
                self.pod(((round % 100) * self.step()) % self.pods, 1 + round)
            }),
        ]
    }

    fn measure_one(
        &self,
        name: &'static str,
        index: &mut Index,
        object: impl Fn(usize) -> Value,
    ) -> Row {
        eprintln!("{} times: {name}", self.repeats);
        let mut row = Row { name, micros: Vec::new(), cpu_micros: Vec::new(), steps: Vec::new() };
        for round in 0..self.repeats {
            let object = parsed(&object(round));
            let (start, cpu) = (Instant::now(), cpu_nanos());
            index.apply(object);
            let change = index.change();
            row.micros.push(u64::try_from(start.elapsed().as_micros()).expect("less than an age"));
            row.cpu_micros.push((cpu_nanos() - cpu) / 1000);
            row.steps.push(change.steps.iter().filter(|step| **step != Step::Grace).count());
        }
        row.micros.sort_unstable();
        row.cpu_micros.sort_unstable();
        row.steps.sort_unstable();
        row
    }
}

impl Row {
    fn json(&self) -> Value {
        json!({"change": self.name, "p50_micros": at(&self.micros, 50), "p99_micros": at(&self.micros, 99),
            "max_micros": at(&self.micros, 100), "cpu_p99_micros": at(&self.cpu_micros, 99), "steps_p99": at(&self.steps, 99)})
    }
}

fn at<T: Copy>(sorted: &[T], percent: usize) -> T {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
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

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn cpu_nanos() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
}
