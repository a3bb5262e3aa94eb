//! Pods, Services and NodePorts, as kube-proxy and the daemon have them.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::{Context as _, ensure};
use veni_lab::{
    ns::Namespace,
    vpc::{INTERNET_HOST, PEER_HOST, SUBNETS},
};

use crate::{
    cluster::{PORT, Pod, SETTLE, Stage, UDP_PORT, door, until},
    http,
    print::{Table, step},
};

const APP: &str = "talk";
/// The same pods, with the other policy for traffic from outside.
const LOCAL: &str = "talk-local";
const NODE_PORT: u16 = 30080;
const LOCAL_PORT: u16 = 30081;
/// On each node, so that there is a pod to ask and another to answer.
const PODS: u32 = 4;
/// Requests until every back end is expected to have answered: the chance that one of four has not is (3/4)^48.
const MANY: usize = 48;

pub(crate) fn check(stage: &mut Stage, table: &mut Table) -> anyhow::Result<()> {
    step(format!("{PODS} pods on both nodes, and Services in front of them"));
    stage.cluster.apply(&[
        Stage::web(APP, PODS),
        Stage::service(APP, APP, Some(NODE_PORT), false),
        Stage::service(LOCAL, APP, Some(LOCAL_PORT), true),
    ])?;
    stage.rolled_out(APP)?;
    let pods = stage.pods(APP)?;
    table.record("pods have addresses of their nodes' ENIs", own_addresses(stage, &pods));
    table.record("pods on both nodes talk", pairs(stage, &pods));
    table.record("pods reach a Service", service(stage, &pods));
    table.record("NodePort from outside", node_port(stage, &pods));
    table.record("NodePort with externalTrafficPolicy: Local", local_node_port(stage, &pods));
    table.record("the API server reaches kubelets and pods", exec_and_logs(stage, &pods));
    stage.delete(APP, &[APP, LOCAL])?;
    table
        .record("deleted pods hold no address", stage.allocated(&[]).map(|()| "0 held".to_owned()));
    Ok(())
}

fn own_addresses(stage: &Stage, pods: &[Pod]) -> anyhow::Result<String> {
    ensure!(pods.len() == PODS as usize, "{pods:?}");
    stage.allocated(pods)?;
    for (node, subnet) in stage.lab.nodes().iter().zip(SUBNETS) {
        let interfaces = stage.lab.account.interfaces_of(&node.instance);
        let of_enis: BTreeSet<_> =
            interfaces.iter().flat_map(|eni| eni.secondary_addresses.iter().copied()).collect();
        let own: Vec<_> = pods.iter().filter(|pod| pod.node == node.name).collect();
        ensure!(own.len() >= 2, "{} has {} pods: {pods:?}", node.name, own.len());
        for pod in own {
            ensure!(of_enis.contains(&pod.address), "{pod:?} is none of {subnet}: {of_enis:?}");
        }
    }
    Ok(format!("{} pods, as EC2, the daemons and the API server have them", pods.len()))
}

fn pairs(stage: &Stage, pods: &[Pod]) -> anyhow::Result<String> {
    let mut count = 0;
    for from in pods {
        for to in pods {
            for (protocol, port) in [("http", PORT), ("udp", UDP_PORT)] {
                let heard = stage.dial(from, protocol, (to.address, port), "hostname")?;
                ensure!(heard == to.name, "{} → {}: {heard}", from.name, to.name);
            }
            // Nobody translates between pods.
            let seen = stage.dial(from, "http", (to.address, PORT), "clientip")?;
            let own = from.name == to.name || seen.starts_with(&format!("{}:", from.address));
            ensure!(own, "{} is seen as {seen} by {}", from.address, to.name);
            count += 2;
        }
    }
    Ok(format!("{count} of {count} answers, over TCP and UDP, with the pods' own addresses"))
}

fn service(stage: &Stage, pods: &[Pod]) -> anyhow::Result<String> {
    let address = stage.cluster_ip(APP)?;
    let mut count = 0;
    for protocol in ["http", "udp"] {
        for from in pods {
            let ask = || stage.dial(from, protocol, (address, 80), "hostname");
            // kube-proxy may still be behind the API server.
            until(SETTLE, &ask)?;
            let answers = (0..MANY).map(|_| ask()).collect::<anyhow::Result<BTreeSet<_>>>()?;
            every_one_of(pods, &answers)
                .with_context(|| format!("{} over {protocol}", from.name))?;
            count += MANY;
        }
    }
    Ok(format!("{count} of {count} answers, each pod by every one of {} (itself too)", pods.len()))
}

/// Services choose evenly: all pods are among those who answered, and nobody else.
fn every_one_of<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    answers: &BTreeSet<String>,
) -> anyhow::Result<()> {
    let names: BTreeSet<_> = pods.into_iter().map(|pod| pod.name.clone()).collect();
    ensure!(*answers == names, "{answers:?} answered, {names:?} are there");
    Ok(())
}

fn outside(stage: &Stage) -> [(&Namespace, Ipv4Addr); 2] {
    [(&stage.lab.vpc.internet, INTERNET_HOST), (&stage.lab.vpc.peer, PEER_HOST)]
}

fn node_port(stage: &Stage, pods: &[Pod]) -> anyhow::Result<String> {
    let mut count = 0;
    for node in stage.lab.nodes() {
        for (host, _) in outside(stage) {
            let ask = || http::get(host, door(node, NODE_PORT), "/hostname");
            until(SETTLE, &ask)?;
            let answers = (0..MANY).map(|_| ask()).collect::<anyhow::Result<BTreeSet<_>>>()?;
            every_one_of(pods, &answers)
                .with_context(|| format!("{} through {}", host.name(), node.name))?;
            count += MANY;
        }
    }
    Ok(format!("{count} of {count} answers from the internet and a peered VPC, through both nodes"))
}

fn local_node_port(stage: &Stage, pods: &[Pod]) -> anyhow::Result<String> {
    let mut count = 0;
    for node in stage.lab.nodes() {
        for (host, address) in outside(stage) {
            let ask = |path: &str| http::get(host, door(node, LOCAL_PORT), path);
            until(SETTLE, || ask("/hostname"))?;
            let answers =
                (0..MANY).map(|_| ask("/hostname")).collect::<anyhow::Result<BTreeSet<_>>>()?;
            every_one_of(pods.iter().filter(|pod| pod.node == node.name), &answers)?;
            let seen = ask("/clientip")?;
            ensure!(seen.starts_with(&format!("{address}:")), "{address} is seen as {seen}");
            count += MANY + 1;
        }
    }
    Ok(format!("{count} of {count} answers by the node's own pods, which see the client's address"))
}

fn exec_and_logs(stage: &Stage, pods: &[Pod]) -> anyhow::Result<String> {
    for pod in pods {
        let name = stage.cluster.kubectl(&["exec", &pod.name, "--", "hostname"])?;
        ensure!(name.trim() == pod.name, "{} says {name}", pod.name);
        let log = stage.cluster.kubectl(&["logs", &pod.name])?;
        ensure!(log.contains("hostname"), "{} has logged {log}", pod.name);
    }
    Ok(format!("exec and logs of {} pods", pods.len()))
}
