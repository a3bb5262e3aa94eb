//! How long the index takes for the largest objects that an API server takes (etcd's 1.5 MiB), and for sizes below, so
//! that what grows faster than the object is seen.
//!
//! `cargo run --release -p veni-policy --example large -- [-o json]`. A row is an object that comes (`apply` and
//! `change`) and goes again, in an index with two pods of the object's namespace and 200 others. The
//! last column is the processor's time for one item, as a ratio to the same for the smallest object of the kind. Each row
//! is the mean of as many rounds as take a tenth of a second. It ends with 1 where an item costs more than twice what it
//! does in an object of a quarter of the size, or a little less: what is asked of each item with each grows by four.

#![expect(clippy::print_stdout, reason = "a program that prints its results")]
#![expect(clippy::disallowed_methods, reason = "a bench has a clock; the crate has none")]

use std::{net::Ipv4Addr, process::ExitCode};

use serde_json::{Value, json};
use veni_policy::{
    index::{Index, Scope},
    object::{self, Key, Object},
};

/// Items of an object, by its size.
const SIZES: [u32; 3] = [2_500, 10_000, 35_000];
/// Pods elsewhere.
const OTHERS: u32 = 200;
/// A round takes as long as the kernel's clock can tell, or more: it counts in ticks.
const ENOUGH_MILLIS: f64 = 100.0;
const MOST_ROUNDS: u32 = 50;
/// An item's cost, to that in the next smaller object.
const MOST_RATIO: f64 = 2.0;

/// A kind of object: what there are many of, and the spec with so many.
struct Large {
    name: &'static str,
    objects: u32,
    /// Most that fit into an object.
    most: u32,
    spec: fn(object: u32, items: u32) -> Value,
}

const KINDS: [Large; 8] = [
    Large { name: "ipBlocks", objects: 1, most: 35_000, spec: blocks },
    Large { name: "ipBlocks, 3 objects", objects: 3, most: 35_000, spec: blocks },
    Large { name: "except of one block", objects: 1, most: 35_000, spec: excepts },
    Large { name: "single ports", objects: 1, most: 32_000, spec: ports },
    Large { name: "rules of one port", objects: 1, most: 20_000, spec: port_rules },
    Large { name: "rules, ports of blocks", objects: 1, most: 10_000, spec: overlapping },
    Large { name: "podSelectors", objects: 1, most: 20_000, spec: selectors },
    Large { name: "values of a requirement", objects: 1, most: 35_000, spec: values },
];

/// Milliseconds of the processor.
struct Row {
    name: &'static str,
    items: u32,
    bytes: usize,
    comes: f64,
    goes: f64,
    refused: usize,
}

fn main() -> ExitCode {
    let json = std::env::args().any(|argument| argument == "json");
    let mut rows: Vec<Row> = Vec::new();
    for kind in &KINDS {
        for items in SIZES.map(|size| size.min(kind.most)) {
            rows.push(measure(kind, items));
        }
    }
    let out_of_proportion = rows.chunks(SIZES.len()).flat_map(|rows| rows.array_windows());
    let out_of_proportion: Vec<String> = out_of_proportion
        .filter(|[smaller, larger]| larger.each() >= MOST_RATIO * smaller.each())
        .map(|[_, larger]| format!("{} of {} items", larger.name, larger.items))
        .collect();
    let ends = ExitCode::from(u8::from(!out_of_proportion.is_empty()));
    if json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        println!("{:#}", json!({"objects": rows}));
        return ends;
    }
    let head = ["items", "bytes", "comes ms", "goes ms", "refused", "ratio"];
    println!("{:26}{}", "object", head.map(|name| format!("{name:>11}")).concat());
    for rows in rows.chunks(SIZES.len()) {
        for row in rows {
            println!(
                "{:26}{:>11}{:>11}{:>11.1}{:>11.1}{:>11}{:>11.2}",
                row.name,
                row.items,
                row.bytes,
                row.comes,
                row.goes,
                row.refused,
                row.each() / rows[0].each(),
            );
        }
    }
    if !out_of_proportion.is_empty() {
        println!("out of proportion: {}", out_of_proportion.join(", "));
    }
    ends
}

fn measure(kind: &Large, items: u32) -> Row {
    let mut sum = once(kind, items);
    let mut rounds = 1;
    while sum.comes < ENOUGH_MILLIS && rounds < MOST_ROUNDS {
        let row = once(kind, items);
        sum.comes += row.comes;
        sum.goes += row.goes;
        rounds += 1;
    }
    let mean = |millis: f64| millis / f64::from(rounds);
    Row { comes: mean(sum.comes), goes: mean(sum.goes), ..sum }
}

fn once(kind: &Large, items: u32) -> Row {
    let mut index = Index::new(Scope::Node("n".to_owned()));
    (0..2 + OTHERS).for_each(|number| index.apply(parsed(&pod(number))));
    drop(index.change());
    let manifests: Vec<Value> = (0..kind.objects)
        .map(|object| {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": "x", "name": format!("p{object}")},
                "spec": (kind.spec)(object, items)})
        })
        .collect();
    let bytes = manifests.iter().map(|manifest| manifest.to_string().len()).max().unwrap_or(0);
    let objects: Vec<Object> = manifests.iter().map(parsed).collect();
    let keys: Vec<Key> = objects.iter().map(Object::key).collect();
    let start = cpu_millis();
    objects.into_iter().for_each(|object| index.apply(object));
    let change = index.change();
    let comes = cpu_millis() - start;
    let refused = change.refused.len();
    drop(change);
    let start = cpu_millis();
    keys.iter().for_each(|key| index.delete(key));
    drop(index.change());
    Row { name: kind.name, items, bytes, comes, goes: cpu_millis() - start, refused }
}

impl Row {
    /// Milliseconds for one item.
    fn each(&self) -> f64 {
        self.comes / f64::from(self.items)
    }

    fn json(&self) -> Value {
        json!({"object": self.name, "items": self.items, "bytes": self.bytes,
            "comes_cpu_millis": self.comes, "goes_cpu_millis": self.goes, "refused": self.refused})
    }
}

fn parsed(value: &Value) -> Object {
    object::parse(value).expect("the bench's objects are valid").expect("of kinds that count")
}

/// The first two are here, and alike in all but a label that no rule asks for.
fn pod(number: u32) -> Value {
    let (namespace, node) = if number < 2 { ("x", "n") } else { ("y", "m") };
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": format!("pod-{number}"),
            "labels": {"app": format!("app-{number}")}},
        "spec": {"nodeName": node},
        "status": {"podIP": Ipv4Addr::from(0xac10_0000 + number).to_string()}})
}

/// Every other address, so that none joins another.
fn address(number: u32) -> String {
    format!("{}/32", Ipv4Addr::from(0x0a00_0000 + 2 * number))
}

fn ingress(rules: Value) -> Value {
    json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules})
}

fn blocks(object: u32, items: u32) -> Value {
    let block = |item| json!({"ipBlock": {"cidr": address(object * items + item)}});
    let peers: Vec<Value> = (0..items).map(block).collect();
    ingress(json!([{"from": peers}]))
}

fn excepts(_: u32, items: u32) -> Value {
    let except: Vec<String> = (0..items).map(address).collect();
    ingress(json!([{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": except}}]}]))
}

fn ports(_: u32, items: u32) -> Value {
    let ports: Vec<Value> = (0..items).map(|item| json!({"port": 1 + 2 * item})).collect();
    ingress(json!([{"ports": ports}]))
}

fn port_rules(_: u32, items: u32) -> Value {
    let rule = |item: u32| json!({"ports": [{"port": 1 + 2 * item}]});
    ingress((0..items).map(rule).collect())
}

/// Every block of the second half lies in that of every rule of the first.
fn overlapping(_: u32, items: u32) -> Value {
    let block = json!({"ipBlock": {"cidr": "10.0.0.0/8"}});
    let rule = |item: u32| json!({"from": [block], "ports": [{"port": 1 + 2 * item}]});
    let mut rules: Vec<Value> = (0..items / 2).map(rule).collect();
    let peers: Vec<Value> =
        (0..items / 2).map(|item| json!({"ipBlock": {"cidr": address(item)}})).collect();
    rules.push(json!({"from": peers}));
    ingress(json!(rules))
}

fn selectors(_: u32, items: u32) -> Value {
    let peer = |item: u32| json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": format!("app-{item}")}}});
    let peers: Vec<Value> = (0..items).map(peer).collect();
    ingress(json!([{"from": peers}]))
}

fn values(_: u32, items: u32) -> Value {
    let values: Vec<String> = (0..items).map(|item| format!("v-{item}")).collect();
    let peer = json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": values}]}});
    ingress(json!([{"from": [peer]}]))
}

fn cpu_millis() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos: f64 =
        stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0.0);
    nanos / 1e6
}
