//! Running pods keep their traffic through a daemon that is killed and started again, and what policy denies stays
//! denied all the while.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it saw"
)]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::json;
use veni_lab::{
    Lab, LabConfig, Node, Pod,
    lab::READY,
    ns,
    traffic::{
        Server,
        generator::Generator,
        intruder::Intruder,
        reach::{Listeners, Transport},
    },
    vpc::INTERNET_HOST,
};
use veni_provider::sim::SimConfig;

const PORT: u16 = 8080;
/// Where nobody of another namespace may come.
const CLOSED: u16 = 8081;
/// Where a Service leads. Not to [`PORT`]: there a connection by the Service and one without it that have the same port
/// are one and the same.
const BEHIND: u16 = 8082;
/// A Service in front of the pod on the other node.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 21, 0, 80), 80);

/// A lab whose name no other test has.
fn lab(test: &str) -> Option<Lab> {
    if let Some(missing) = ns::missing_feature() {
        println!("SKIPPED: {missing}");
        return None;
    }
    let mut config = LabConfig::two_nodes(&format!("{test}-{}", std::process::id()));
    config.ec2 = SimConfig::instant();
    Some(Lab::up(&config).unwrap())
}

/// Adds pods until one is on a secondary ENI, and returns that one's name.
fn pod_on_a_secondary_eni(lab: &Lab, node: &str) -> String {
    let names: Vec<_> = (0..16).map(|n| (node.to_owned(), format!("{node}-{n}"))).collect();
    for added in lab.add_pods(&names) {
        added.unwrap();
    }
    let view = lab.node(node).unwrap().inspect().unwrap();
    let primary = view.enis.iter().find(|eni| eni.primary).unwrap().id.clone();
    let of_secondary = view.addresses.iter().filter(|a| Some(&a.eni) != primary.as_ref());
    of_secondary.filter_map(|a| a.pod.as_ref()).map(|pod| pod.name.clone()).next().unwrap()
}

/// The pods of the lab's namespace talk to each other and to the internet, and to nobody else.
fn close_the_namespace(lab: &Lab) {
    let inside = json!({"podSelector": {}});
    let internet = json!({"ipBlock": {"cidr": format!("{INTERNET_HOST}/32")}});
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "lab", "name": "inside"},
        "spec": {
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [inside]}], "egress": [{"to": [inside, internet]}],
        },
    });
    lab.cluster.apply("policy.yaml", &policy.to_string()).unwrap();
    lab.settle().unwrap();
}

/// A Service that leads to `pod`.
fn serve(lab: &Lab, pod: &Pod) {
    let port = |number: u16| json!([{"name": "web", "port": number, "protocol": "TCP"}]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "lab", "name": "web"},
        "spec": {"clusterIP": SERVICE.ip(), "clusterIPs": [SERVICE.ip()], "ports": port(SERVICE.port())},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "lab", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": port(BEHIND),
        "endpoints": [{"addresses": [pod.added.address], "conditions": {"ready": true}}],
    });
    lab.cluster.apply("service.yaml", &service.to_string()).unwrap();
    lab.cluster.apply("slice.yaml", &slice.to_string()).unwrap();
    lab.settle().unwrap();
}

/// Pods of another namespace, one a node, that try `targets` all the time.
fn intruders(lab: &Lab, targets: [&Pod; 2]) -> Vec<Intruder> {
    let targets = targets.map(|pod| SocketAddrV4::new(pod.added.address, CLOSED));
    let intruder = |node: &str| {
        let pod = lab.add_pod(node, &format!("outside/{node}")).unwrap();
        Intruder::start(&pod.namespace, &targets).unwrap()
    };
    ["node-1", "node-2"].map(intruder).into()
}

/// What the nodes dropped and counted: for the one who has to find out why something was lost.
fn why(lab: &Lab) -> String {
    let of = |node: &Arc<Node>| {
        let metrics = node.metrics().unwrap_or_default();
        let told = ["veni_dropped", "veni_flow", "veni_policy", "veni_repairs"];
        let lines = metrics.lines().filter(|line| told.iter().any(|name| line.starts_with(name)));
        let counted = lines.filter(|line| !line.ends_with(" 0")).collect::<Vec<_>>().join("\n  ");
        format!("\n{}:\n  {counted}", node.name)
    };
    lab.nodes().iter().map(of).collect()
}

fn nothing_is_lost_through(test: &str, end: Signal) {
    let Some(lab) = lab(test) else { return };
    let from = lab.pod(&pod_on_a_secondary_eni(&lab, "node-1")).unwrap();
    let to = lab.pod(&pod_on_a_secondary_eni(&lab, "node-2")).unwrap();
    let servers = [(&to.namespace, PORT), (&to.namespace, BEHIND), (&lab.vpc.internet, PORT)];
    let _servers = servers.map(|(place, port)| Server::start(place, port).unwrap());
    serve(&lab, &to);
    close_the_namespace(&lab);
    let closed = Listeners::start(
        &[&from.namespace, &to.namespace],
        &[(Transport::Tcp, CLOSED), (Transport::Udp, CLOSED)],
    );
    let closed = closed.unwrap();
    let intruders = intruders(&lab, [&from, &to]);
    let peer = SocketAddrV4::new(to.added.address, PORT);
    let traffic = [
        (
            "pings to the other node",
            Generator::ping_flood(&from.namespace, to.added.address).unwrap(),
        ),
        ("pings to the internet", Generator::ping_flood(&from.namespace, INTERNET_HOST).unwrap()),
        ("new connections", Generator::connections(&from.namespace, peer, 1000).unwrap()),
        (
            "new connections to a Service",
            Generator::connections(&from.namespace, SERVICE, 200).unwrap(),
        ),
        (
            "new SNATed connections",
            Generator::connections(&from.namespace, SocketAddrV4::new(INTERNET_HOST, PORT), 100)
                .unwrap(),
        ),
    ];
    let [_, _, (_, connections), ..] = &traffic;
    connections.wait_for(500);
    let node = lab.node("node-1").unwrap();
    node.stop_ipamd(end).unwrap();
    connections.wait_for(500);
    node.spawn_ipamd(&[]).unwrap();
    node.wait_ready(READY).unwrap();
    connections.wait_for(1000);
    for (what, generator) in traffic {
        let counts = generator.stop();
        println!("{what}: {counts}");
        if let Err(error) = counts.all_answered() {
            panic!("{what}: {error}{}", why(&lab));
        }
    }
    for intruder in &intruders {
        assert!(intruder.wait_for(100, Duration::from_secs(10)), "an intruder does not send");
        println!("an intruder sent {} datagrams", intruder.sent());
    }
    drop(intruders);
    assert_eq!(closed.arrived(), 0, "what policy denies has arrived");
    assert_eq!(lab.vpc.drops().unwrap(), veni_lab::vpc::Drops::default());
    // The daemon that came back holds every pod.
    let view = node.inspect().unwrap();
    assert_eq!(view.pool.assigned, 17, "{:?}", view.pool);
    for pod in lab.pods() {
        pod.node.runtime.check(&pod.sandbox).unwrap();
    }
}

/// A daemon that was left in some state is a ready one after a restart, and has kept its pod.
#[test]
fn a_restart_works_from_every_state_of_the_daemon() {
    let Some(lab) = lab("back") else { return };
    let node = lab.node("node-1").unwrap();
    lab.add_pod("node-1", "kept").unwrap();
    for (state, runs) in [("running", true), ("suspended", true), ("killed", false)] {
        let before = node.ipamd_pid().unwrap();
        let raw = nix::unistd::Pid::from_raw(i32::try_from(before).unwrap());
        match state {
            "suspended" => nix::sys::signal::kill(raw, Signal::SIGSTOP).unwrap(),
            "killed" => drop(node.stop_ipamd(Signal::SIGKILL).unwrap()),
            _ => {}
        }
        let restarted = node.restart_ipamd(READY).unwrap();
        assert_eq!(restarted.ended, runs.then_some(before), "{state}");
        assert_ne!(node.ipamd_pid(), Some(before), "{state}");
        assert_eq!(node.inspect().unwrap().pool.assigned, 1, "{state}");
    }
}

#[test]
fn traffic_loses_nothing_through_a_killed_daemon() {
    nothing_is_lost_through("kill", Signal::SIGKILL);
}

#[test]
fn traffic_loses_nothing_through_a_terminated_daemon() {
    nothing_is_lost_through("term", Signal::SIGTERM);
}
