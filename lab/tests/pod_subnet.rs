//! A node with custom networking: its pods are in a subnet that no node is in, and reach and are reached as others.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what does not hold")]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use serde_json::json;
use veni_core::{net::Ipv4Prefix, wire::inspect::View};
use veni_lab::{
    Lab, LabConfig,
    lab::READY,
    ns,
    traffic::{Server, ping, tcp_seen},
    vpc::{INTERNET_HOST, POD_SUBNET},
};
use veni_provider::sim::SimConfig;

const PORT: u16 = 8080;
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 21, 0, 81), 80);

/// Two nodes, the first of them with custom networking and its daemon not started.
fn lab() -> Lab {
    let mut config = LabConfig::two_nodes(&format!("pods-{}", std::process::id()));
    config.ec2 = SimConfig::instant();
    let custom = ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG".to_owned(), "true".to_owned());
    config.nodes[0].environment.extend([custom]);
    config.nodes[0].ipamd = false;
    Lab::up(&config).unwrap()
}

fn eni_config() -> String {
    json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig",
        "metadata": {"name": "default"}, "spec": {"subnet": POD_SUBNET.0},
    })
    .to_string()
}

/// A Service in front of `address`.
fn service(lab: &Lab, address: Ipv4Addr) {
    let port = |number: u16| json!([{"name": "web", "port": number, "protocol": "TCP"}]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "lab", "name": "web"},
        "spec": {"clusterIP": SERVICE.ip(), "clusterIPs": [SERVICE.ip()], "ports": port(SERVICE.port())},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "lab", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": port(PORT),
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
    });
    lab.cluster.apply("service.yaml", &service.to_string()).unwrap();
    lab.cluster.apply("slice.yaml", &slice.to_string()).unwrap();
    lab.settle().unwrap();
}

#[test]
fn pods_of_a_node_with_custom_networking_are_in_its_eniconfigs_subnet_and_reach_everything() {
    if let Some(missing) = ns::missing_feature() {
        println!("SKIPPED: {missing}");
        return;
    }
    let lab = lab();
    let (custom, plain) = (lab.node("node-1").unwrap(), lab.node("node-2").unwrap());
    custom.spawn_ipamd(&[]).unwrap();
    let start = Instant::now();
    while custom.inspect().is_err() {
        assert!(start.elapsed() < READY, "the daemon does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    let waits = |view: &View| view.problems.iter().any(|problem| problem.kind == "eni_config");
    let view = custom.wait_for("it says what it waits for", READY, waits).unwrap();
    assert_eq!(view.pool.total, 0, "{view:?}");
    lab.cluster.apply("eniconfig.yaml", &eni_config()).unwrap();
    custom.wait_ready(READY).unwrap();

    let subnet: Ipv4Prefix = POD_SUBNET.1.parse().unwrap();
    let there = |pod: &veni_lab::Pod| subnet.contains(pod.added.address);
    let one = lab.add_pod("node-1", "one").unwrap();
    let two = lab.add_pod("node-1", "two").unwrap();
    let other = lab.add_pod("node-2", "other").unwrap();
    assert!(there(&one) && there(&two) && !there(&other), "{one:?} {two:?} {other:?}");

    let places = [&one.namespace, &two.namespace, &other.namespace, &lab.vpc.internet];
    let _servers = places.map(|place| Server::start(place, PORT).unwrap());
    service(&lab, one.added.address);
    let at = |address| SocketAddrV4::new(address, PORT);
    let (first, second, third) = (one.added.address, two.added.address, other.added.address);
    let seen = |from, to| *tcp_seen(from, to).unwrap().ip();
    for (from, source, to) in [
        (&one.namespace, first, second),
        (&one.namespace, first, third),
        (&other.namespace, third, first),
        (&plain.namespace, plain.address, first),
        (&custom.namespace, custom.address, first),
    ] {
        assert_eq!(seen(from, at(to)), source, "to {to}");
    }
    // What leaves the VPC has the node's address, by way of the node's primary ENI.
    assert_eq!(seen(&one.namespace, at(INTERNET_HOST)), custom.address);
    assert_eq!(seen(&two.namespace, SERVICE), second);
    assert_eq!(seen(&other.namespace, SERVICE), third);
    ping(&one.namespace, custom.address).unwrap();
    ping(&two.namespace, plain.address).unwrap();
    assert_eq!(lab.vpc.drops().unwrap(), veni_lab::vpc::Drops::default());

    // A restart goes on with what it knew: the ENIConfig is away meanwhile.
    lab.cluster.delete("eniconfig.yaml").unwrap();
    custom.restart_ipamd(READY).unwrap();
    let three = lab.add_pod("node-1", "three").unwrap();
    assert!(there(&three), "{three:?}");
    assert_eq!(seen(&three.namespace, at(third)), three.added.address);
    let view = custom.inspect().unwrap();
    let primary = view.enis.iter().find(|eni| eni.primary).unwrap();
    assert_eq!(primary.pool.total, 0, "{primary:?}");
}
