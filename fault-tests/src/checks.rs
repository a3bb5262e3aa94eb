//! What must hold whenever the daemon has come to rest: kernel, ledger, EC2 and the pods agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use veni_core::marks::EniMarkMask;
use veni_datapath::bpf::Filter;
use veni_lab::{Node, snapshot::Snapshot, traffic, vpc::INTERNET_HOST};

use crate::Bench;

/// Every pod has its address and traffic, nobody else has it, and nothing is there beyond.
///
/// # Errors
/// What does not hold.
pub fn sound(bench: &Bench) -> Result<()> {
    ledger_has_exactly_the_pods(bench)?;
    filter_has_exactly_the_pods(bench)?;
    kernel_has_exactly_the_pods(bench)?;
    ec2_has_exactly_the_ledger(bench)?;
    pods_are_whole(bench)?;
    traffic_flows(bench)
}

/// After the last pod: nothing of any pod is left.
///
/// # Errors
/// What is left.
pub fn clean(bench: &Bench) -> Result<()> {
    ensure!(bench.pods().is_empty(), "there are pods: {:?}", bench.addresses());
    sound(bench)?;
    let now = Snapshot::take(&bench.node.namespace)?;
    let difference = bench.bare().difference(&now);
    ensure!(difference.is_empty(), "the node is not as it was before the first pod:\n{difference}");
    Ok(())
}

/// The ledger, as Inspect shows it.
fn ledger_has_exactly_the_pods(bench: &Bench) -> Result<()> {
    let view = bench.view()?;
    let of_pods = view.addresses.iter().filter(|address| address.state == "assigned");
    let name = |pod: &veni_core::wire::PodRef| pod.name.clone();
    let shown: Vec<_> =
        of_pods.map(|a| (a.pod.as_ref().map(name).unwrap_or_default(), a.address)).collect();
    let ledger: BTreeMap<_, _> = shown.iter().cloned().collect();
    ensure!(ledger.len() == shown.len(), "a pod is twice in the ledger: {shown:?}");
    ensure!(
        ledger == bench.addresses(),
        "the ledger has {ledger:?}, the pods are {:?}",
        bench.addresses()
    );
    let addresses: BTreeSet<_> = ledger.values().collect();
    ensure!(addresses.len() == ledger.len(), "an address is on two pods: {ledger:?}");
    Ok(())
}

/// The filter's pinned map.
fn filter_has_exactly_the_pods(bench: &Bench) -> Result<()> {
    let map: Vec<_> = filter_pods(&bench.node)?;
    let expected: BTreeSet<_> = bench.addresses().into_values().collect();
    let found: BTreeSet<_> = map.iter().copied().collect();
    ensure!(
        found == expected && map.len() == expected.len(),
        "the filter's map has {map:?}, the pods are {expected:?}"
    );
    Ok(())
}

/// Addresses of the filter's entries.
///
/// # Errors
/// When the map cannot be read.
pub fn filter_pods(node: &Node) -> Result<Vec<Ipv4Addr>> {
    let dir = node.dir.join("bpf/veni");
    let read = || {
        let pods = Filter::open(&dir, EniMarkMask::default()).and_then(|filter| filter.pods());
        Ok(pods.map(|pods| pods.values().map(|pod| pod.address).collect()))
    };
    node.namespace.run(read)?.map_err(|error| anyhow!(error)).context("reading the filter's map")
}

/// Veths and pod routes.
fn kernel_has_exactly_the_pods(bench: &Bench) -> Result<()> {
    let namespace = &bench.node.namespace;
    let links = namespace.tool("ip", &["-o", "link", "show"], "")?;
    let veths = links
        .lines()
        .filter(|line| line.split_whitespace().nth(1).is_some_and(|name| name.starts_with("eni")));
    ensure!(
        veths.clone().count() == bench.pods().len(),
        "pods {:?}, links:\n{links}",
        bench.addresses()
    );
    let routes = namespace.tool("ip", &["-4", "route", "show", "table", "7600"], "")?;
    let routed: BTreeSet<Ipv4Addr> =
        routes.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    let expected: BTreeSet<_> = bench.addresses().into_values().collect();
    ensure!(routed == expected, "pod routes {routed:?}, pods {expected:?}");
    Ok(())
}

/// The same ENIs with the same addresses, and no other ENI in the region.
fn ec2_has_exactly_the_ledger(bench: &Bench) -> Result<()> {
    let wrong = bench.lab.account.sim().audit();
    ensure!(wrong.is_empty(), "EC2: {wrong:?}");
    let ec2: BTreeMap<_, BTreeSet<_>> = {
        let sim = bench.lab.account.sim();
        sim.interfaces()
            .map(|i| (i.id.clone(), i.secondary_addresses.iter().copied().collect()))
            .collect()
    };
    let view = bench.view()?;
    let mut ledger: BTreeMap<_, BTreeSet<_>> =
        view.enis.iter().filter_map(|eni| Some((eni.id.clone()?, BTreeSet::new()))).collect();
    for address in &view.addresses {
        ledger.entry(address.eni.clone()).or_default().insert(address.address);
    }
    ensure!(ec2 == ledger, "EC2 has {ec2:?}, the ledger {ledger:?}");
    Ok(())
}

/// CHECK finds every pod as it was wired, and a repeated ADD gives the same address.
fn pods_are_whole(bench: &Bench) -> Result<()> {
    for (name, pod) in bench.pods() {
        let runtime = &bench.node.runtime;
        runtime.check(&pod.sandbox).with_context(|| format!("CHECK of {name}"))?;
        let again = runtime.add(&pod.sandbox).with_context(|| format!("ADD of {name} again"))?;
        ensure!(
            again.address == pod.added.address,
            "{name} had {}, and has {} now",
            pod.added.address,
            again.address
        );
    }
    Ok(())
}

/// From every pod to the next one and to the internet.
fn traffic_flows(bench: &Bench) -> Result<()> {
    let pods: Vec<_> = bench.pods().values().collect();
    for (pod, next) in pods.iter().zip(pods.iter().cycle().skip(1)) {
        for to in [next.added.address, INTERNET_HOST] {
            traffic::ping(&pod.namespace, to).with_context(|| format!("{} to {to}", pod.name))?;
        }
    }
    Ok(())
}
