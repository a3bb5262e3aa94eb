//! Every kind of front end before every kind of back end: a front end is an address and a port, whatever leads to it
//! (a ClusterIP, an external or a load balancer's address, a node port, a host port), and policy sees what is behind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use veni_datapath::bpf::DropReason;

use crate::{
    NODE_PORT, at, front, node, served,
    world::{
        ACK, NODE, OPEN, OTHER, OTHER_V6, PEER, PEER_V6, POD, POD_V6, Rule, SYN, TCP, VIP, VIP_V6,
        World, assert_sound, tcp, tcp6,
    },
};

const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x10);
/// Another pod of the node.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 2);

const FRONTS: [(&str, IpAddr, u16); 8] = [
    ("a ClusterIP", IpAddr::V4(VIP), 1080),
    ("an external address", IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)), 1080),
    ("a load balancer's address", IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 1080),
    ("a node port", IpAddr::V4(NODE), NODE_PORT),
    ("a host port", IpAddr::V4(NODE), 9000),
    ("a v6 ClusterIP", IpAddr::V6(VIP_V6), 1080),
    ("a v6 node port", IpAddr::V6(NODE_V6), NODE_PORT),
    ("a v6 load balancer's", IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)), 1080),
];

/// Both families' back ends: where they are, and what policy says of them.
const BACKS: [(&str, IpAddr, IpAddr, Result<(), DropReason>); 3] = [
    ("a remote pod", IpAddr::V4(PEER), IpAddr::V6(PEER_V6), Ok(())),
    ("the node", IpAddr::V4(NODE), IpAddr::V6(NODE_V6), Ok(())),
    ("another node", IpAddr::V4(OTHER), IpAddr::V6(OTHER_V6), Err(DropReason::EgressDenied)),
];

/// A segment of either family between the pod and an end.
fn segment(out: bool, pod_port: u16, end: (IpAddr, u16), flags: u8) -> Vec<u8> {
    match (end.0, out) {
        (IpAddr::V4(end_at), true) => tcp((POD, pod_port), (end_at, end.1), flags),
        (IpAddr::V4(end_at), false) => tcp((end_at, end.1), (POD, pod_port), flags),
        (IpAddr::V6(end_at), true) => tcp6((POD_V6, pod_port), (end_at, end.1), flags),
        (IpAddr::V6(end_at), false) => tcp6((end_at, end.1), (POD_V6, pod_port), flags),
    }
}

/// The end of a frame that is not the pod's.
fn end_of(frame: &[u8], out: bool) -> (IpAddr, u16) {
    let v4 = frame[12..14] == [8, 0];
    let (at, ports) = match (v4, out) {
        (true, true) => (30, 36),
        (true, false) => (26, 34),
        (false, true) => (38, 56),
        (false, false) => (22, 54),
    };
    let address = if v4 {
        IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap())
    } else {
        IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap())
    };
    (address, u16::from_be_bytes([frame[ports], frame[ports + 1]]))
}

fn check(
    world: &World,
    what: &str,
    ports: (u16, u16),
    ends: (IpAddr, IpAddr),
    may: Result<(), DropReason>,
) {
    let (pod_port, port) = ports;
    let out = world.egress(what, &segment(true, pod_port, (ends.0, port), SYN), may);
    if may.is_err() {
        return;
    }
    assert_sound(&out);
    assert_eq!(end_of(&out, true), (ends.1, 8080), "{what}");
    let answer = segment(false, pod_port, (ends.1, 8080), SYN | ACK);
    // The node's own answer is made here.
    let of_node = [IpAddr::from(NODE), IpAddr::from(NODE_V6)].contains(&ends.1);
    let came_in = if of_node { 0 } else { 2 };
    let back = world.verdict_from(veni_datapath::bpf::Direction::Ingress, &answer, came_in);
    let back = back.unwrap_or_else(|reason| panic!("the answer: {what}: {reason:?}")).frame;
    assert_sound(&back);
    assert_eq!(end_of(&back, false), (ends.0, port), "{what}");
}

#[test]
fn every_kind_of_front_end_leads_to_every_kind_of_back_end() {
    node::in_node(|directory| {
        let mut world = served(directory);
        world.filter.set_node_addresses(&[NODE.into(), NODE_V6.into()].into()).unwrap();
        world.class(NEIGHBOUR, 5);
        world.set(2, 8, &[Rule(5, TCP, 8080, 8080, 21)]);
        world.isolate(OPEN, 2);
        let mut numbers = 100u16..;
        for (kind, address, port) in FRONTS {
            let of_node =
                ("a pod of this node", IpAddr::from(NEIGHBOUR), IpAddr::from(PEER_V6), Ok(()));
            for (backend, v4, v6, may) in BACKS.into_iter().chain([of_node]) {
                let number = numbers.next().unwrap();
                let to = if address.is_ipv4() { v4 } else { v6 };
                world.service(front(address, port, TCP), number.into(), &[at(to, 8080)], 0);
                let what = format!("{kind} to {backend}");
                check(&world, &what, (5000 + number, port), (address, to), may);
            }
        }
        let unknown = segment(true, 4000, (NODE_V6.into(), NODE_PORT + 1), SYN);
        world.egress("a v6 node port that is not known", &unknown, Err(DropReason::UnknownService));
    });
}
