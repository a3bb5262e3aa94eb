//! The box without the daemon: addresses laid by hand reach each other, and what EC2 drops is dropped.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::Duration,
};

use veni_lab::{
    dhcp,
    ns::{Namespace, Outer},
    traffic::{
        self, Server,
        generator::Generator,
        intruder::Intruder,
        reach::{Listeners, Target, Transport, reach},
        workload::{Load, Responder},
    },
    vpc::{INTERNET_HOST, PEER_HOST, Port, SUBNETS, Vpc},
};

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 16, 10);
/// A secondary address of the second node's second ENI, which the test puts on its loopback.
const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 16, 30);

struct Fabric {
    vpc: Vpc,
    nodes: Vec<Namespace>,
    _dir: tempfile::TempDir,
}

fn port(node: &str, device_index: u8, addresses: &[Ipv4Addr]) -> Port {
    let mac = format!(
        "0a:00:00:00:{:02x}:{device_index:02x}",
        node.len() + usize::from(addresses[0].octets()[2])
    );
    Port {
        node: node.to_owned(),
        device_index,
        mac: mac.parse().unwrap(),
        addresses: addresses.iter().copied().collect(),
    }
}

fn node(
    vpc: &Vpc,
    dir: &Path,
    outer: &Outer,
    name: &str,
    address: Ipv4Addr,
    subnet: &str,
) -> Namespace {
    let node = Namespace::create(name, dir.join("netns").join(name), outer).unwrap();
    vpc.plug(&node, &port(name, 0, &[address])).unwrap();
    vpc.make_public(address).unwrap();
    dhcp::configure(&node, address, subnet.parse().unwrap()).unwrap();
    node
}

fn fabric() -> Fabric {
    let dir = tempfile::tempdir().unwrap();
    let outer = Outer::new().unwrap();
    let vpc = Vpc::build(dir.path(), &outer).unwrap();
    let nodes = vec![
        node(&vpc, dir.path(), &outer, "a", FIRST, SUBNETS[0]),
        node(&vpc, dir.path(), &outer, "b", SECOND, SUBNETS[1]),
    ];
    Fabric { vpc, nodes, _dir: dir }
}

#[test]
fn nodes_reach_each_other_the_internet_and_the_peered_network() {
    let fabric = fabric();
    let _second = Server::start(&fabric.nodes[1], 8080).unwrap();
    let _internet = Server::start(&fabric.vpc.internet, 8080).unwrap();
    let _peer = Server::start(&fabric.vpc.peer, 8080).unwrap();
    for to in [SECOND, INTERNET_HOST, PEER_HOST] {
        traffic::ping(&fabric.nodes[0], to).unwrap();
        let to = SocketAddrV4::new(to, 8080);
        assert_eq!(*traffic::tcp_seen(&fabric.nodes[0], to).unwrap().ip(), FIRST, "TCP to {to}");
        assert_eq!(*traffic::udp_seen(&fabric.nodes[0], to).unwrap().ip(), FIRST, "UDP to {to}");
    }
    assert_eq!(
        *traffic::tcp_seen(&fabric.vpc.internet, SocketAddrV4::new(SECOND, 8080)).unwrap().ip(),
        INTERNET_HOST
    );
    assert_eq!(fabric.vpc.drops().unwrap(), veni_lab::vpc::Drops::default());
}

#[test]
fn an_address_leaves_only_by_the_eni_that_holds_it() {
    let fabric = fabric();
    let second = &fabric.nodes[1];
    fabric.vpc.plug(second, &port("b", 1, &[Ipv4Addr::new(10, 0, 16, 20), SECONDARY])).unwrap();
    second.ip(&format!("link set eth1 up\naddr add {SECONDARY}/32 dev lo\n")).unwrap();
    second.sysctls(&[("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/eth1/rp_filter", "0")]).unwrap();
    let server = Server::start(second, 8080).unwrap();
    let to = SocketAddrV4::new(SECONDARY, 8080);

    // The answer leaves by eth0, as the main table says: dropped, counted, named.
    assert!(traffic::tcp_seen(&fabric.nodes[0], to).is_err(), "an answer by the wrong ENI arrived");
    let drops = fabric.vpc.drops().unwrap();
    assert!(drops.source_check > 0, "{drops:?}");
    assert!(drops.offenders.iter().any(|o| o.starts_with("10.0.16.30 from b.eth0")), "{drops:?}");

    second
        .ip(&format!(
            "rule add from {SECONDARY} lookup 100\nroute add 10.0.16.1 dev eth1 scope link table 100\n\
             route add default via 10.0.16.1 dev eth1 table 100\n"
        ))
        .unwrap();
    assert_eq!(*traffic::tcp_seen(&fabric.nodes[0], to).unwrap().ip(), FIRST);
    assert_eq!(*traffic::tcp_seen(&fabric.vpc.peer, to).unwrap().ip(), PEER_HOST);
    // No public address: nothing from the internet, in either direction.
    assert!(traffic::udp_seen(&fabric.vpc.internet, to).is_err());
    assert!(fabric.vpc.drops().unwrap().no_public_address > 0);

    fabric.vpc.unplug("b.eth1").unwrap();
    assert!(second.ip("link show eth1\n").is_err(), "the link outlived its ENI");
    drop(server);
}

#[test]
fn generators_count_what_is_lost() {
    let fabric = fabric();
    let (first, second) = (&fabric.nodes[0], &fabric.nodes[1]);
    let _server = Server::start(second, 8080).unwrap();

    let pings = Generator::ping_flood(first, SECOND).unwrap();
    let connections = Generator::connections(first, SocketAddrV4::new(SECOND, 8080), 1000).unwrap();
    connections.wait_for(500);
    let (pings, connections) = (pings.stop(), connections.stop());
    pings.all_answered().unwrap();
    connections.all_answered().unwrap();

    let pings = Generator::ping_flood(first, SECOND).unwrap();
    fabric.vpc.set_addresses("b.eth0", &[].into()).unwrap();
    pings.wait_for(100);
    fabric.vpc.set_addresses("b.eth0", &[SECOND].into()).unwrap();
    pings.wait_for(100);
    let pings = pings.stop();
    assert!(pings.lost() > 0 && pings.answered > 0, "{pings}");
}

#[test]
fn what_is_closed_does_not_answer_and_does_not_arrive() {
    let fabric = fabric();
    let (first, second) = (&fabric.nodes[0], &fabric.nodes[1]);
    let both = [Transport::Tcp, Transport::Udp];
    let listen = |port| Listeners::start(&[second], &both.map(|t| (t, port))).unwrap();
    let (open, closed) = (listen(8080), listen(8081));
    let drop_8081 =
        "table ip t { chain c { type filter hook input priority 0; th dport 8081 drop; }; }\n";
    second.nft(drop_8081).unwrap();
    let target = |transport, port, expected| Target {
        transport,
        to: SocketAddrV4::new(SECOND, port),
        expected,
    };
    let targets = [(8080, true), (8081, false)]
        .into_iter()
        .flat_map(|(port, expected)| both.map(|transport| target(transport, port, expected)));
    let worked = reach(first, &targets.collect::<Vec<_>>()).unwrap();
    assert_eq!(worked, [true, true, false, false]);

    let intruder = Intruder::start(first, &[SocketAddrV4::new(SECOND, 8081)]).unwrap();
    assert!(intruder.wait_for(50, Duration::from_secs(10)));
    drop(intruder);
    assert_eq!((open.arrived(), closed.arrived()), (2, 0));
}

#[test]
fn loads_have_speeds() {
    let fabric = fabric();
    let _responder = Responder::start(&fabric.nodes[1], 8080).unwrap();
    for load in [Load::Rr, Load::Crr, Load::Stream] {
        let to = SocketAddrV4::new(SECOND, 8080);
        let speed = load.run(&fabric.nodes[0], to, Duration::from_millis(100)).unwrap();
        assert!(speed > 10.0, "{}: {speed}", load.name());
    }
}
