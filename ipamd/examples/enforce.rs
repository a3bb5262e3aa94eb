//! How long it takes from a changed object to the last write into the kernel's maps that it needs.
//!
//! `cargo run --release -p veni-ipamd --example enforce -- [PODS] [--repeats N] [-o json]`, as root; in namespaces of its
//! own. The daemon's own enforcer over the real programs' maps, the cluster of `veni-policy`'s example `bench`. `in force`:
//! until the last write; `tidied`: until what it replaced is removed, for which nobody waits.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its results")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use veni_core::{config::Enforcing, marks::EniMarkMask, net::Mac};
use veni_datapath::bpf::{Filter, PodEntry, PodIdentity, PodPolicy};
use veni_ipamd::enforcer::{Enforcer, FilterPlane, Found, Memory, Plane, Wired};
use veni_policy::{
    change::{PodKey, PodSets, Remove, Write},
    object::{Object, Pod},
    service::OwnNode,
};

#[path = "../../policy/examples/support/cluster.rs"]
mod cluster;

use cluster::{Cluster, Kind, NAMESPACES, POLICIES};

const REPEATS: usize = 200;
/// Set for the process that has namespaces of its own.
const INSIDE: &str = "VENI_BENCH_INSIDE";

/// A kind of change, and the microseconds that each took until it was in force and until it was tidied up.
struct Row {
    name: &'static str,
    in_force: Vec<u64>,
    tidied: Vec<u64>,
}

/// The programs' maps, and when they were last written to.
struct Timed {
    plane: FilterPlane,
    last_write: Arc<Mutex<Instant>>,
}

impl Timed {
    fn note<T>(&self, done: T) -> T {
        *self.last_write.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        done
    }
}

impl Plane for Timed {
    fn write(&self, writes: &[Write]) -> Result<(), String> {
        self.note(self.plane.write(writes))
    }

    fn remove(&self, removes: &[Remove]) -> Result<(), String> {
        self.plane.remove(removes)
    }

    fn judge(&self, ifindex: u32, sets: PodSets) -> Result<bool, String> {
        self.note(self.plane.judge(ifindex, sets))
    }

    fn own_addresses(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), String> {
        self.note(self.plane.own_addresses(addresses))
    }

    fn raise_epoch(&self) -> Result<(), String> {
        self.note(self.plane.raise_epoch())
    }

    fn grace(&self) {
        self.plane.grace();
    }

    fn identity(&self, ifindex: u32) -> Option<PodIdentity> {
        self.plane.identity(ifindex)
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        self.plane.drops()
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        self.plane.counters()
    }
}

fn main() -> Result<()> {
    if std::env::var_os(INSIDE).is_none() {
        return inside();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let repeats = arguments.windows(2).find(|pair| pair[0] == "--repeats");
    let repeats = repeats.map_or(Ok(REPEATS), |pair| pair[1].parse()).context("--repeats")?;
    let pods = arguments.first().and_then(|argument| argument.parse().ok()).unwrap_or(10_000);
    let directory = tempfile::tempdir()?;
    let rows = measure_all(&Cluster { pods }, repeats, directory.path())?;
    if arguments.windows(2).any(|pair| pair == ["-o", "json"]) {
        let changes: Vec<Value> = rows.iter().map(as_json).collect();
        let report = json!({"pods": pods, "namespaces": NAMESPACES, "policies": POLICIES, "changes": changes});
        println!("{report:#}");
        return Ok(());
    }
    let head = ["in force p50", "p99", "max µs", "tidied p50", "p99", "max µs"];
    println!("{:22}{}", "change", head.map(|name| format!("{name:>13}")).concat());
    for row in rows {
        let times = [&row.in_force, &row.tidied];
        let times = times.map(|t| [50, 99, 100].map(|percent| format!("{:>13}", at(t, percent))));
        println!("{:22}{}", row.name, times.concat().concat());
    }
    Ok(())
}

/// The same program, in network and mount namespaces of its own.
fn inside() -> Result<()> {
    let status = Command::new("unshare")
        .args(["--net", "--mount"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .context("running unshare (util-linux); root is needed")?;
    ensure!(status.success(), "the benchmark ended with {status}");
    Ok(())
}

fn measure_all(cluster: &Cluster, repeats: usize, directory: &Path) -> Result<Vec<Row>> {
    let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(directory).status()?;
    ensure!(mounted.success(), "no BPF file system mounted: {mounted}");
    let filter = Arc::new(Filter::open(&directory.join("veni"), EniMarkMask::default())?);
    let last_write = Arc::new(Mutex::new(Instant::now()));
    let mut enforcer = started(cluster, &filter, &last_write)?;
    let kinds = cluster.kinds().into_iter();
    kinds.map(|kind| measure(kind, repeats, &mut enforcer, &last_write)).collect()
}

/// The pods of the node wired, every object known.
fn started(
    cluster: &Cluster,
    filter: &Arc<Filter>,
    last_write: &Arc<Mutex<Instant>>,
) -> Result<Enforcer<Timed>> {
    eprintln!("{} pods are taken in", cluster.pods);
    let own = OwnNode { name: "node-0".to_owned(), zone: None, addresses: [].into() };
    let plane = Timed { plane: FilterPlane(filter.clone()), last_write: last_write.clone() };
    let memory = Memory::default();
    let mut enforcer = Enforcer::new(plane, own, Enforcing::Standard, memory, &Found::default());
    let objects: Vec<Object> = cluster.objects().collect();
    let here = objects.iter().filter_map(|object| match object {
        Object::Pod(pod) if pod.node.as_deref() == Some("node-0") => Some(pod),
        _ => None,
    });
    let wired: Result<Vec<_>> =
        (0_u32..).zip(here).map(|(n, pod)| wire(filter, 0x10_0000 + n, pod)).collect();
    let now = Instant::now();
    enforcer.adopt(wired?, now);
    enforcer.objects(objects, &[], Vec::new(), true, now);
    in_force(&enforcer)?;
    Ok(enforcer)
}

fn wire(filter: &Filter, ifindex: u32, pod: &Pod) -> Result<Wired> {
    let Some(IpAddr::V4(address)) = pod.addresses.first().copied() else {
        anyhow::bail!("pod {} without an IPv4 address", pod.name);
    };
    let entry = PodEntry { address, mac: mac(address), mark: 0 };
    filter.pod_admit(ifindex, entry, PodPolicy::default())?;
    let pod = PodKey::new(&pod.namespace, &pod.name);
    Ok(Wired { pod, uid: None, addresses: vec![address.into()], ifindex })
}

fn measure(
    (name, object): Kind<'_>,
    repeats: usize,
    enforcer: &mut Enforcer<Timed>,
    last_write: &Mutex<Instant>,
) -> Result<Row> {
    eprintln!("{repeats} times: {name}");
    let mut row = Row { name, in_force: Vec::new(), tidied: Vec::new() };
    for round in 0..repeats {
        let object = object(round);
        let start = Instant::now();
        enforcer.objects(vec![object], &[], Vec::new(), true, start);
        let end = Instant::now();
        let last = *last_write.lock().unwrap_or_else(PoisonError::into_inner);
        row.in_force.push(micros(last.saturating_duration_since(start)));
        row.tidied.push(micros(end - start));
        in_force(enforcer)?;
    }
    row.in_force.sort_unstable();
    row.tidied.sort_unstable();
    Ok(row)
}

fn in_force(enforcer: &Enforcer<Timed>) -> Result<()> {
    let standing = enforcer.standing(Instant::now());
    ensure!(standing.pending == 0 && standing.refused.is_empty(), "not in force: {standing:?}");
    Ok(())
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

fn as_json(row: &Row) -> Value {
    let times = |sorted: &[u64]| json!({"p50_micros": at(sorted, 50), "p99_micros": at(sorted, 99), "max_micros": at(sorted, 100)});
    json!({"change": row.name, "in_force": times(&row.in_force), "tidied": times(&row.tidied)})
}

fn mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([2, 0, a, b, c, d])
}

fn at(sorted: &[u64], percent: usize) -> u64 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
