//! The packets on which the incumbent's programs were measured, one by one: what they did, and what is right.
//!
//! The pod takes TCP/80 from PEER and UDP/53 from OTHER, over both families, and nothing else; what it sends is open.

use crate::{
    DENIED, EGRESS_DENIED, isolated, node,
    world::{
        ACK, ICMPV6, OPEN, OTHER, PEER, PEER_V6, POD, POD_V6, Rule, SYN, TCP, UDP, World, cut,
        fragment, framed, icmp, icmp6, ip4, ip6, tcp, tcp6, udp, with_options,
    },
};
use veni_datapath::bpf::DropReason;

/// A row: the packet, what the incumbent did with it, and what ours has to do.
type Row = (&'static str, Vec<u8>, Result<(), DropReason>);

fn single_packets() -> Vec<Row> {
    let allowed = tcp((PEER, 1000), (POD, 80), SYN);
    let denied = tcp((PEER, 1000), (POD, 22), SYN);
    let segment6 = |port| tcp6((PEER_V6, 1000), (POD_V6, port), SYN)[54..].to_vec();
    let behind_hop_by_hop = |port| {
        let hop = [TCP, 0, 1, 4, 0, 0, 0, 0];
        ip6(PEER_V6, POD_V6, 0, &[&hop[..], &segment6(port)].concat())
    };
    let unknown = Err(DropReason::FragmentUnknown);
    vec![
        ("TCP/80 allowed: PASS", allowed.clone(), Ok(())),
        ("TCP/22 not allowed: DROP", denied.clone(), DENIED),
        (
            "TCP/22 with IHL=6 and option bytes 01 01 00 50: PASS, wrong",
            with_options(&denied, &[1, 1, 0, 0x50]),
            DENIED,
        ),
        (
            "TCP/80 (allowed) with IHL=6 NOP options: DROP, wrong",
            with_options(&allowed, &[1, 1, 1, 1]),
            Ok(()),
        ),
        (
            "TCP non-first fragment whose payload starts xx xx 00 50, no first seen: PASS, wrong",
            fragment(&tcp((PEER, 1000), (POD, 80), ACK), 77, false, 64),
            unknown,
        ),
        ("IPv4 proto 0 from the TCP/80 peer: PASS, wrong", ip4(PEER, POD, 0, &[0; 40]), DENIED),
        (
            "v6 TCP/22 behind a hop-by-hop header from the TCP/80 peer: PASS, wrong",
            behind_hop_by_hop(22),
            DENIED,
        ),
        ("v6 TCP/80 behind a hop-by-hop header: PASS", behind_hop_by_hop(80), Ok(())),
        (
            "v6 ICMPv6 of any type from anyone: PASS, fixed; here policy decides (echo)",
            icmp6(PEER_V6, POD_V6, 128, 0, &[0, 1, 0, 1], b"x"),
            DENIED,
        ),
        (
            "v6 ICMPv6 of any type from anyone: PASS, fixed; here policy decides (type 200)",
            icmp6(PEER_V6, POD_V6, 200, 0, &[0; 4], b"x"),
            DENIED,
        ),
        (
            "pod's own IP as source (hairpin): DROP; the pod itself is exempt",
            tcp((POD, 4000), (POD, 22), SYN),
            Ok(()),
        ),
        (
            "TCP header cut after 8 bytes, port 22: PASS (fail open), wrong",
            cut(&denied, 28),
            Err(DropReason::Truncated),
        ),
        (
            "TCP header cut after 8 bytes, port 80: what was not read is not judged",
            cut(&allowed, 28),
            Err(DropReason::Truncated),
        ),
        (
            "an IPv4 packet in an IPv6 frame: PASS on the v6 program, wrong",
            framed(false, 0x86dd, &allowed[14..]),
            Err(DropReason::DestinationAddress),
        ),
    ]
}

#[test]
fn every_packet_that_the_incumbent_judged_is_judged_right() {
    node::in_node(|directory| {
        let world = isolated(directory);
        for (row, frame, expect) in single_packets() {
            // A hairpin comes back by the interface that it went out of; any other packet with the pod's address lies.
            let came_in = if row.contains("(hairpin)") { super::world::IFINDEX } else { 2 };
            let direction = veni_datapath::bpf::Direction::Ingress;
            let verdict = match world.verdict_from(direction, &frame, came_in) {
                // Refused by the shape of the header, whichever check comes first.
                Err(DropReason::Malformed | DropReason::Truncated)
                    if expect == Err(DropReason::DestinationAddress) =>
                {
                    expect
                }
                verdict => verdict.map(drop),
            };
            assert_eq!(verdict, expect, "{row}");
        }
    });
}

/// "second fragment of an allowed UDP/53 datagram: DROP, wrong", and "TCP non-first fragment …: must follow the first
/// fragment".
#[test]
fn later_fragments_of_what_is_allowed_pass() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let datagram = udp((OTHER, 1000), (POD, 53));
        world.ingress("the first of UDP/53", &fragment(&datagram, 7, true, 0), Ok(()));
        world.ingress("the second", &fragment(&datagram, 7, false, 64), Ok(()));
        let segment = tcp((PEER, 1000), (POD, 80), SYN);
        world.ingress("the first of TCP/80", &fragment(&segment, 8, true, 0), Ok(()));
        world.ingress("what follows it", &fragment(&segment, 8, false, 64), Ok(()));
        let denied = tcp((PEER, 1000), (POD, 22), SYN);
        world.ingress("the first of TCP/22", &fragment(&denied, 9, true, 0), DENIED);
        let unknown = Err(DropReason::FragmentUnknown);
        world.ingress("what follows that", &fragment(&denied, 9, false, 64), unknown);
    });
}

/// "IPv4 frame on the v6 program (V4-egress NIC, IMDS): PASS": a deny-all that leaves one family open is none.
#[test]
fn a_deny_all_holds_for_both_families_and_for_instance_metadata() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.set(2, 8, &[]);
        world.isolate(2, 2);
        for (what, out, back) in
            [("IMDS", "169.254.169.254", "fd00:ec2::254"), ("a peer", "10.0.2.9", "fd00:2::9")]
        {
            let (v4, v6) = (out.parse().unwrap(), back.parse().unwrap());
            world.egress(what, &tcp((POD, 4000), (v4, 80), SYN), EGRESS_DENIED);
            world.egress(what, &tcp6((POD_V6, 4000), (v6, 80), SYN), EGRESS_DENIED);
            world.ingress(what, &tcp((v4, 80), (POD, 4000), SYN | ACK), DENIED);
            world.ingress(what, &tcp6((v6, 80), (POD_V6, 4000), SYN | ACK), DENIED);
        }
    });
}

/// "ICMP frag-needed from a router in no rule: DROP, wrong (RELATED; PMTU breaks)", and its like of both families.
#[test]
fn errors_of_routers_in_no_rule_reach_the_flow_that_they_are_about() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let sent = tcp((POD, 4000), (PEER, 443), SYN);
        world.egress("the flow", &sent, Ok(()));
        let router = "10.9.9.9".parse().unwrap();
        for (what, kind, code) in [
            ("fragmentation needed", 3, 4),
            ("host unreachable", 3, 1),
            ("time exceeded", 11, 0),
            ("parameter problem", 12, 0),
        ] {
            let error = icmp(router, POD, kind, code, &[0, 0, 5, 220], &sent[14..42]);
            world.ingress(what, &error, Ok(()));
        }
        let redirect = icmp(router, POD, 5, 1, &[10, 9, 9, 8], &sent[14..42]);
        world.ingress("a redirect is none", &redirect, DENIED);
        let sent = tcp6((POD_V6, 4000), (PEER_V6, 443), SYN);
        world.egress("the v6 flow", &sent, Ok(()));
        let router = "fd00:9::9".parse().unwrap();
        for (what, kind, code) in [
            ("no route", 1, 0),
            ("packet too big", 2, 0),
            ("hop limit exceeded", 3, 0),
            ("parameter problem", 4, 1),
        ] {
            let error = icmp6(router, POD_V6, kind, code, &[0, 0, 5, 0], &sent[14..74]);
            world.ingress(what, &error, Ok(()));
        }
        // Behind an extension header in the quotation, and in the error itself.
        let quoted =
            [&sent[14..20], &[60, 64], &sent[22..54], &[TCP, 0, 1, 4, 0, 0, 0, 0]].concat();
        let quoted = [&quoted[..], &sent[54..74]].concat();
        let error = icmp6(router, POD_V6, 2, 0, &[0, 0, 5, 0], &quoted);
        world.ingress("about a packet with options", &error, Ok(()));
        let behind = [&[ICMPV6, 0, 1, 4, 0, 0, 0, 0][..], &error[54..]].concat();
        world.ingress("an error with options", &ip6(router, POD_V6, 60, &behind), Ok(()));
    });
}

/// "flow X after its only allow rule was deleted, other policies remain: PASS, implementation-defined": here it ends.
#[test]
fn a_flow_ends_with_its_only_allow_rule() {
    node::in_node(|directory| {
        let mut world: World = isolated(directory);
        let data = tcp((PEER, 1000), (POD, 80), ACK);
        world.ingress("SYN", &tcp((PEER, 1000), (POD, 80), SYN), Ok(()));
        world.egress("SYN ACK", &tcp((POD, 80), (PEER, 1000), SYN | ACK), Ok(()));
        world.ingress("ACK", &data, Ok(()));
        world.ingress("the other policy's", &udp((OTHER, 1000), (POD, 53)), Ok(()));
        world.set(3, 9, &[Rule(6, UDP, 53, 53, 12)]);
        world.isolate(3, OPEN);
        world.ingress("its rule is gone", &data, Err(DropReason::Revoked));
        world.ingress("the other's remains", &udp((OTHER, 1000), (POD, 53)), Ok(()));
        world.egress("and answers", &udp((POD, 53), (OTHER, 1000)), Ok(()));
    });
}
