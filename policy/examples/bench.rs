//! How long the index takes from a changed object to its last step, and how much memory it has.
//!
//! `cargo run --release -p veni-policy --example bench -- [PODS] [--repeats N] [-o json]`; 100 namespaces, 500 policies,
//! 110 pods on this node. A row is one kind of change, repeated; what it is at is said on stderr. Times are of `apply`
//! and `change` together, without the maps' own writes (their number is in the row; with them:
//! `veni-ipamd`'s example `enforce`).

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its results")]
#![expect(clippy::disallowed_methods, reason = "a bench has a clock; the crate has none")]

use std::time::Instant;

use serde_json::{Value, json};
use veni_policy::{
    change::Step,
    index::{Index, Scope},
};

#[path = "support/cluster.rs"]
mod cluster;

use cluster::{Cluster, Kind, NAMESPACES, POLICIES};

const REPEATS: usize = 500;

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
    let cluster = Cluster { pods };
    eprintln!("{pods} pods are taken in");
    let before = resident_kib();
    let mut index = Index::new(Scope::Node("node-0".to_owned()));
    let start = Instant::now();
    cluster.objects().for_each(|object| index.apply(object));
    let first = index.change();
    let filled = start.elapsed();
    let memory = resident_kib().saturating_sub(before);
    let sizes = index.sizes();
    let rows = cluster.kinds().map(|kind| measure(kind, repeats, &mut index));
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

fn measure((name, object): Kind<'_>, repeats: usize, index: &mut Index) -> Row {
    eprintln!("{repeats} times: {name}");
    let mut row = Row { name, micros: Vec::new(), cpu_micros: Vec::new(), steps: Vec::new() };
    for round in 0..repeats {
        let object = object(round);
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

impl Row {
    fn json(&self) -> Value {
        json!({"change": self.name, "p50_micros": at(&self.micros, 50), "p99_micros": at(&self.micros, 99),
            "max_micros": at(&self.micros, 100), "cpu_p99_micros": at(&self.cpu_micros, 99), "steps_p99": at(&self.steps, 99)})
    }
}

fn at<T: Copy>(sorted: &[T], percent: usize) -> T {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
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
