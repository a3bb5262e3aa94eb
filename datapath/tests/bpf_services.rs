//! Services at the pod's veth: translated there, judged by their back end, answered by their address.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skips"
)]
#![cfg(feature = "bpf")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use veni_datapath::bpf::{
    Action, Counter, Direction, DropReason, FlowFlags, SettingFlags, Write,
    table::{ServiceKeyV4, ServiceValue},
};

#[path = "support/front_ends.rs"]
mod front_ends;
#[path = "support/node.rs"]
mod node;
#[path = "support/world.rs"]
mod world;

use world::{
    ACK, End, FIN, HOST_MAC, NODE, OPEN, OTHER, OTHER_V6, PEER, PEER_V6, POD, POD_MAC, POD_V6, RST,
    Rule, SCTP, SYN, TCP, UDP, VIP, VIP_V6, World, assert_sound, ends, fragment, icmp, icmp6, ip4,
    tcp, tcp6, udp, udp6,
};

const NODE_PORT: u16 = 30_080;
const HAIRPIN: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

fn at(address: impl Into<IpAddr>, port: u16) -> (IpAddr, u16) {
    (address.into(), port)
}

fn front(address: impl Into<IpAddr>, port: u16, protocol: u8) -> (IpAddr, u16, u8) {
    (address.into(), port, protocol)
}

/// VIP:80 and VIP:53/UDP lead to PEER:8080 and PEER:5353; the Service range is known.
fn served(directory: &std::path::Path) -> World {
    let world = World::new(directory);
    world.configure(|s| {
        (s.service_v4, s.service_mask_v4) = ([172, 20, 0, 0], [255, 255, 0, 0]);
        s.service_v6 = Ipv6Addr::new(0xfd00, 0x7172, 0, 0, 0, 0, 0, 0).octets();
        s.service_mask_v6 = Ipv6Addr::new(0xffff, 0xffff, 0, 0, 0, 0, 0, 0).octets();
    });
    world.class(PEER, 5);
    world.class(PEER_V6, 5);
    world.class(OTHER, 6);
    world.class(OTHER_V6, 6);
    world.service(front(VIP, 80, TCP), 1, &[at(PEER, 8080)], 0);
    world.service(front(VIP, 53, UDP), 2, &[at(PEER, 5353)], 0);
    world.service(front(VIP_V6, 80, TCP), 3, &[at(PEER_V6, 8080)], 0);
    world.service(front(VIP_V6, 53, UDP), 4, &[at(PEER_V6, 5353)], 0);
    world
}

#[track_caller]
fn sound(frame: &[u8], from: End, to: End) {
    assert_eq!(ends(frame), (from, to));
    assert_sound(frame);
}

#[test]
fn a_flow_to_a_service_is_translated_both_ways() {
    node::in_node(|directory| {
        let world = served(directory);
        let out = world.egress("SYN", &tcp((POD, 4000), (VIP, 80), SYN), Ok(()));
        sound(&out, (POD, 4000), (PEER, 8080));
        let back = world.ingress("SYN ACK", &tcp((PEER, 8080), (POD, 4000), SYN | ACK), Ok(()));
        sound(&back, (VIP, 80), (POD, 4000));
        let out = world.egress("ACK", &tcp((POD, 4000), (VIP, 80), ACK), Ok(()));
        sound(&out, (POD, 4000), (PEER, 8080));
        assert_eq!(world.filter.flow_counts().unwrap(), (2, 0), "both views are established");
        let back = world.ingress("data", &tcp((PEER, 8080), (POD, 4000), ACK), Ok(()));
        sound(&back, (VIP, 80), (POD, 4000));
        let out = world.egress("FIN", &tcp((POD, 4000), (VIP, 80), FIN | ACK), Ok(()));
        sound(&out, (POD, 4000), (PEER, 8080));
        assert_eq!(world.counter(Counter::Translated), 1);
    });
}

#[test]
fn datagrams_are_translated_with_and_without_checksum() {
    node::in_node(|directory| {
        let world = served(directory);
        let out = world.egress("a query", &udp((POD, 4000), (VIP, 53)), Ok(()));
        sound(&out, (POD, 4000), (PEER, 5353));
        let back = world.ingress("its answer", &udp((PEER, 5353), (POD, 4000)), Ok(()));
        sound(&back, (VIP, 53), (POD, 4000));
        let mut bare = udp((POD, 4001), (VIP, 53));
        bare[40..42].fill(0);
        let out = world.egress("a query without a checksum", &bare, Ok(()));
        assert_eq!(out[40..42], [0, 0], "none stays none");
        sound(&out, (POD, 4001), (PEER, 5353));
    });
}

#[test]
fn ipv6_is_translated_both_ways() {
    node::in_node(|directory| {
        let world = served(directory);
        let address = |frame: &[u8], at: usize| {
            Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap())
        };
        for (request, answer, port, service_port) in [
            (
                tcp6((POD_V6, 4000), (VIP_V6, 80), SYN),
                tcp6((PEER_V6, 8080), (POD_V6, 4000), SYN | ACK),
                8080u16,
                80u16,
            ),
            (udp6((POD_V6, 4000), (VIP_V6, 53)), udp6((PEER_V6, 5353), (POD_V6, 4000)), 5353, 53),
        ] {
            let out = world.egress("out", &request, Ok(()));
            assert_eq!((address(&out, 38), &out[56..58]), (PEER_V6, &port.to_be_bytes()[..]));
            assert_sound(&out);
            let back = world.ingress("back", &answer, Ok(()));
            assert_eq!(
                (address(&back, 22), &back[54..56]),
                (VIP_V6, &service_port.to_be_bytes()[..])
            );
            assert_sound(&back);
        }
    });
}

#[test]
fn policy_sees_the_back_end() {
    node::in_node(|directory| {
        let mut world = served(directory);
        world.set(2, 8, &[Rule(5, TCP, 8080, 8080, 21)]);
        world.isolate(OPEN, 2);
        world.egress("its back end is allowed", &tcp((POD, 4000), (VIP, 80), SYN), Ok(()));
        world.egress(
            "the other Service's is not",
            &udp((POD, 4000), (VIP, 53)),
            Err(DropReason::EgressDenied),
        );
        let event = world.events()[0];
        assert_eq!((event.remote[..4].to_vec(), event.remote_port), (PEER.octets().to_vec(), 8080));
        assert_eq!((event.service[..4].to_vec(), event.service_port), (VIP.octets().to_vec(), 80));
        assert_eq!(event.decision.rule(), 21);
        // The Service gets another back end, which is not allowed: new flows follow, the old one stays where it is.
        world.service(front(VIP, 80, TCP), 9, &[at(OTHER, 8080)], 0);
        world.egress(
            "a Service whose back ends changed",
            &tcp((POD, 4001), (VIP, 80), SYN),
            Err(DropReason::EgressDenied),
        );
        world.ingress("the old flow's answer", &tcp((PEER, 8080), (POD, 4000), SYN | ACK), Ok(()));
        let out = world.egress("the old flow", &tcp((POD, 4000), (VIP, 80), ACK), Ok(()));
        assert_eq!(ends(&out).1, (PEER, 8080));
        // Its own back end loses its label.
        world.class(PEER, 99);
        world.filter.raise_epoch().unwrap();
        world.ingress("revoked", &tcp((PEER, 8080), (POD, 4000), ACK), Err(DropReason::Revoked));
        world.egress("gone", &tcp((POD, 4000), (VIP, 80), ACK), Err(DropReason::UnknownService));
    });
}

#[test]
fn a_syn_that_is_sent_again_keeps_its_back_end() {
    node::in_node(|directory| {
        let world = served(directory);
        let many: Vec<_> = (1..=32).map(|n| at(Ipv4Addr::new(10, 0, 7, n), 8080)).collect();
        world.service(front(VIP, 80, TCP), 5, &many, 0);
        let syn = tcp((POD, 4000), (VIP, 80), SYN);
        let first = ends(&world.egress("SYN", &syn, Ok(()))).1;
        for _ in 0..20 {
            assert_eq!(ends(&world.egress("again", &syn, Ok(()))).1, first);
        }
        assert_eq!(world.counter(Counter::Translated), 1);
        let chosen: std::collections::BTreeSet<End> = (1..200)
            .map(|port| {
                ends(&world.egress("others", &tcp((POD, 5000 + port), (VIP, 80), SYN), Ok(()))).1
            })
            .collect();
        assert!(chosen.len() > 20, "{} of 32 back ends were chosen", chosen.len());
    });
}

#[test]
fn session_affinity_holds_across_changes_of_the_list() {
    node::in_node(|directory| {
        let world = served(directory);
        let backend = |n| at(Ipv4Addr::new(10, 0, 7, n), 8080);
        let many: Vec<_> = (1..=32).map(backend).collect();
        world.service(front(VIP, 80, TCP), 5, &many, 10_800);
        let connect =
            |port| ends(&world.egress("SYN", &tcp((POD, port), (VIP, 80), SYN), Ok(()))).1;
        let first = connect(4000);
        assert!((1..50).all(|n| connect(4000 + n) == first));
        // The one before it goes: every later one moves by one.
        let fewer: Vec<_> = many
            .iter()
            .copied()
            .filter(|b| *b != many[usize::from(first.0 == Ipv4Addr::new(10, 0, 7, 1))])
            .collect();
        world.service(front(VIP, 80, TCP), 6, &fewer, 10_800);
        assert!((50..80).all(|n| connect(4000 + n) == first), "still there");
        let turned: Vec<_> = fewer.iter().copied().rev().collect();
        world.service(front(VIP, 80, TCP), 8, &turned, 10_800);
        assert!((80..95).all(|n| connect(4000 + n) == first), "in quite another place");
        let without: Vec<_> = fewer.into_iter().filter(|b| b.0 != IpAddr::from(first.0)).collect();
        world.service(front(VIP, 80, TCP), 7, &without, 10_800);
        let second = connect(4100);
        assert_ne!(second, first, "gone");
        assert!((101..120).all(|n| connect(4000 + n) == second));
    });
}

#[test]
fn session_affinity_ends_with_its_time() {
    node::in_node(|directory| {
        let world = served(directory);
        let many: Vec<_> =
            (0..2000u32).map(|n| at(Ipv4Addr::from(0x0a00_0700 + n), 8080)).collect();
        world.service(front(VIP, 80, TCP), 5, &many, 1);
        let mut ports = 4000..u16::MAX;
        let mut connect = || {
            let port = ports.next().unwrap();
            ends(&world.egress("SYN", &tcp((POD, port), (VIP, 80), SYN), Ok(()))).1
        };
        let first = connect();
        // Each use renews it.
        assert!((0..20).all(|_| connect() == first));
        // The programs' clock is the kernel's. One in 2000 is the same by chance, and has a second go.
        let changed = (0..2).any(|_| {
            std::thread::sleep(Duration::from_millis(1100));
            connect() != first
        });
        assert!(changed, "the same after its time");
    });
}

/// What it becomes within the second or so in which the programs look at a flow's back end again.
fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn datagrams_leave_a_back_end_that_has_left_the_service() {
    node::in_node(|directory| {
        let mut world = served(directory);
        let dns = front(VIP, 53, UDP);
        let query = udp((POD, 4000), (VIP, 53));
        let sent = |world: &World| ends(&world.egress("a query", &query, Ok(()))).1;
        let segment = |flags| tcp((POD, 4000), (VIP, 80), flags);
        world.egress("SYN", &segment(SYN), Ok(()));
        world.ingress("SYN ACK", &tcp((PEER, 8080), (POD, 4000), SYN | ACK), Ok(()));
        assert_eq!(sent(&world), (PEER, 5353));
        world.ingress("its answer", &udp((PEER, 5353), (POD, 4000)), Ok(()));
        // No policy changes with it.
        world.service(dns, 12, &[at(OTHER, 5353)], 0);
        soon("the flow stays at what is gone", || sent(&world) == (OTHER, 5353));
        assert_eq!(world.counter(Counter::BackendGone), 1);
        let back = world.ingress("the answer", &udp((OTHER, 5353), (POD, 4000)), Ok(()));
        sound(&back, (VIP, 53), (POD, 4000));
        // Others come and go: it stays.
        world.service(dns, 13, &[at(PEER, 5353), at(PEER, 5354), at(OTHER, 5353)], 0);
        world.filter.raise_epoch().unwrap();
        assert_eq!((sent(&world), world.counter(Counter::BackendGone)), ((OTHER, 5353), 1));
        // With a change of policy it is looked at at once, and judged by what it gets.
        world.service(dns, 14, &[at(PEER, 5353)], 0);
        world.set(2, 8, &[Rule(6, UDP, 5353, 5353, 21), Rule(5, TCP, 8080, 8080, 22)]);
        world.isolate(OPEN, 2);
        world.egress("its new back end is not allowed", &query, Err(DropReason::EgressDenied));
        assert_eq!(world.counter(Counter::BackendGone), 2);
        world.service(dns, 15, &[at(OTHER, 5353)], 0);
        assert_eq!(sent(&world), (OTHER, 5353));
        world.service(dns, 16, &[], 0);
        world.filter.raise_epoch().unwrap();
        world.egress("no back end is left", &query, Err(DropReason::NoBackend));
        // TCP stays: its ends find out by themselves.
        world.service(front(VIP, 80, TCP), 17, &[at(OTHER, 8080)], 0);
        world.filter.raise_epoch().unwrap();
        let out = world.egress("TCP", &segment(ACK), Ok(()));
        assert_eq!(ends(&out).1, (PEER, 8080));
    });
}

#[test]
fn datagrams_leave_over_ipv6_and_the_pod_itself_too() {
    node::in_node(|directory| {
        let world = served(directory);
        let query = udp6((POD_V6, 4000), (VIP_V6, 53));
        let sent = |to: Ipv6Addr| {
            let out = world.egress("a query", &query, Ok(()));
            assert_eq!(out[38..54], to.octets());
            assert_sound(&out);
        };
        sent(PEER_V6);
        world.service(front(VIP_V6, 53, UDP), 12, &[at(OTHER_V6, 5353)], 0);
        world.filter.raise_epoch().unwrap();
        sent(OTHER_V6);
        let own = udp((POD, 4000), (VIP, 53));
        let turned = || {
            let outcome = world.verdict(Direction::Egress, &own).unwrap();
            (outcome.action == Action::TurnRound).then_some(ends(&outcome.frame))
        };
        world.service(front(VIP, 53, UDP), 13, &[at(POD, 5353)], 0);
        assert_eq!(turned(), Some(((HAIRPIN, 4000), (POD, 5353))));
        world.filter.raise_epoch().unwrap();
        assert_eq!(turned(), Some(((HAIRPIN, 4000), (POD, 5353))), "it is still one");
        assert_eq!(world.counter(Counter::BackendGone), 1);
        world.service(front(VIP, 53, UDP), 14, &[at(POD, 5354)], 0);
        world.filter.raise_epoch().unwrap();
        assert_eq!(turned(), Some(((HAIRPIN, 4000), (POD, 5354))), "another port of the same pod");
        world.service(front(VIP, 53, UDP), 15, &[at(PEER, 5353)], 0);
        world.filter.raise_epoch().unwrap();
        assert_eq!(ends(&world.egress("away", &own, Ok(()))).1, (PEER, 5353));
    });
}

#[test]
fn a_service_without_back_ends_is_refused_with_its_reason() {
    node::in_node(|directory| {
        let world = served(directory);
        world.service(front(VIP, 80, TCP), 5, &[], 0);
        world.egress("no back end", &tcp((POD, 4000), (VIP, 80), SYN), Err(DropReason::NoBackend));
    });
}

#[test]
fn a_service_that_is_not_known_yet_is_left_to_kube_proxy_only_for_the_open() {
    node::in_node(|directory| {
        let mut world = served(directory);
        let syn = tcp((POD, 4000), (VIP, 81), SYN);
        let out = world.egress("open", &syn, Ok(()));
        assert_eq!(out, syn, "as it is");
        world.ingress("by kube-proxy", &tcp((VIP, 81), (POD, 4000), SYN | ACK), Ok(()));
        world.egress("established so", &tcp((POD, 4000), (VIP, 81), ACK), Ok(()));
        world.set(2, 8, &[Rule(0, TCP, 1, 65535, 21), Rule(5, TCP, 1, 65535, 22)]);
        world.isolate(OPEN, 2);
        world.egress(
            "the flow through kube-proxy",
            &tcp((POD, 4000), (VIP, 81), ACK),
            Err(DropReason::Revoked),
        );
        world.egress(
            "a new one",
            &tcp((POD, 4001), (VIP, 81), SYN),
            Err(DropReason::UnknownService),
        );
        world.egress(
            "a ping",
            &icmp(POD, VIP, 8, 0, &[0; 4], b""),
            Err(DropReason::UnknownService),
        );
        world.egress(
            "v6",
            &tcp6((POD_V6, 4001), (VIP_V6, 81), SYN),
            Err(DropReason::UnknownService),
        );
        world.egress("a known one", &tcp((POD, 4002), (VIP, 80), SYN), Ok(()));
    });
}

#[test]
fn node_ports_and_host_ports_lead_to_their_back_ends() {
    node::in_node(|directory| {
        let mut world = served(directory);
        world.set(2, 8, &[Rule(5, TCP, 8080, 8080, 21)]);
        world.isolate(OPEN, 2);
        world.egress(
            "not known yet",
            &tcp((POD, 4000), (NODE, NODE_PORT), SYN),
            Err(DropReason::UnknownService),
        );
        world.service(front(NODE, NODE_PORT, TCP), 5, &[at(OTHER, 8080)], 0);
        world.egress(
            "own node's node port to another pod",
            &tcp((POD, 4001), (NODE, NODE_PORT), SYN),
            Err(DropReason::EgressDenied),
        );
        world.service(front(NODE, 9000, TCP), 6, &[at(OTHER, 80)], 0);
        world.egress(
            "a host port",
            &tcp((POD, 4002), (NODE, 9000), SYN),
            Err(DropReason::EgressDenied),
        );
        world.service(front(NODE, 9001, TCP), 7, &[at(PEER, 8080)], 0);
        let out = world.egress("an allowed one", &tcp((POD, 4003), (NODE, 9001), SYN), Ok(()));
        sound(&out, (POD, 4003), (PEER, 8080));
        let back = world.ingress("its answer", &tcp((PEER, 8080), (POD, 4003), SYN | ACK), Ok(()));
        sound(&back, (NODE, 9001), (POD, 4003));
        world.egress("the node itself", &tcp((POD, 4004), (NODE, 10250), SYN), Ok(()));
        // A Service whose back end is a process of the node, and one whose back end is a front end again.
        world.service(front(VIP, 443, TCP), 8, &[at(NODE, 6443)], 0);
        world.egress(
            "a back end in the host's network",
            &tcp((POD, 4005), (VIP, 443), SYN),
            Ok(()),
        );
        world.service(front(VIP, 444, TCP), 9, &[at(NODE, 9000)], 0);
        world.egress("nested", &tcp((POD, 4006), (VIP, 444), SYN), Err(DropReason::NestedService));
    });
}

/// Services go on for a pod over its share of half-open flows; one that is sent again keeps its back end.
#[test]
fn a_pod_over_its_share_of_half_open_flows_still_reaches_services() {
    node::in_node(|directory| {
        let world = served(directory);
        world.configure(|s| s.half_open_cap = 2);
        let syn = |port| tcp((POD, port), (VIP, 80), SYN);
        for port in 4000..4010 {
            let sent = world.egress("SYN", &syn(port), Ok(()));
            assert_eq!(world.egress("SYN again", &syn(port), Ok(())), sent);
        }
        assert_eq!(world.counter(Counter::HalfOpenCapped), 8);
        assert_eq!(world.filter.overflow_count().unwrap(), 16);
        for port in (4000..4010).rev() {
            world.ingress("SYN ACK", &tcp((PEER, 8080), (POD, port), SYN | ACK), Ok(()));
            world.egress("ACK", &tcp((POD, port), (VIP, 80), ACK), Ok(()));
        }
        assert_eq!(world.filter.flow_counts().unwrap(), (20, 0));
        assert_eq!(world.filter.overflow_count().unwrap(), 0);
    });
}

/// Either end's close frees the ports of both views: the pod may use them for a connection straight to the back end.
#[test]
fn the_end_of_a_flow_to_a_service_frees_its_ports() {
    for end in [FIN, RST] {
        for by_pod in [true, false] {
            node::in_node(move |directory| {
                let world = served(directory);
                world.egress("SYN", &tcp((POD, 4000), (VIP, 80), SYN), Ok(()));
                let answer = tcp((PEER, 8080), (POD, 4000), SYN | ACK);
                world.ingress("SYN ACK", &answer, Ok(()));
                world.egress("ACK", &tcp((POD, 4000), (VIP, 80), ACK), Ok(()));
                let straight = tcp((POD, 4000), (PEER, 8080), SYN);
                world.egress("while it is open", &straight, Err(DropReason::PortCollision));
                if by_pod {
                    world.egress("end", &tcp((POD, 4000), (VIP, 80), end | ACK), Ok(()));
                } else {
                    world.ingress("end", &tcp((PEER, 8080), (POD, 4000), end | ACK), Ok(()));
                }
                world.egress("straight, by the same ports", &straight, Ok(()));
            });
        }
    }
}

#[test]
fn a_pod_reaches_itself_by_its_service_over_ipv6_and_by_datagrams() {
    node::in_node(|directory| {
        let mut world = served(directory);
        world.service(front(VIP_V6, 80, TCP), 5, &[at(POD_V6, 8080)], 0);
        world.service(front(VIP, 53, UDP), 6, &[at(POD, 5353)], 0);
        world.set(2, 8, &[]);
        world.isolate(2, 2);
        let turned = |what: &str, frame: &[u8]| {
            let outcome = world.verdict(Direction::Egress, frame).unwrap();
            assert_eq!(outcome.action, Action::TurnRound, "{what}");
            assert_sound(&outcome.frame);
            assert_eq!(world.ingress(what, &outcome.frame, Ok(())), outcome.frame);
            outcome.frame
        };
        let hairpin = Ipv6Addr::from(world.filter.settings().unwrap().hairpin_v6);
        let there = turned("SYN", &tcp6((POD_V6, 4000), (VIP_V6, 80), SYN));
        assert_eq!((&there[22..38], &there[38..54]), (&hairpin.octets()[..], &POD_V6.octets()[..]));
        assert_eq!(there[56..58], 8080u16.to_be_bytes());
        let back = turned("SYN ACK", &tcp6((POD_V6, 8080), (hairpin, 4000), SYN | ACK));
        assert_eq!(
            (&back[22..38], &back[54..56]),
            (&VIP_V6.octets()[..], &80u16.to_be_bytes()[..])
        );
        let there = turned("a query", &udp((POD, 4000), (VIP, 53)));
        assert_eq!(ends(&there), ((HAIRPIN, 4000), (POD, 5353)));
        let back = turned("its answer", &udp((POD, 5353), (HAIRPIN, 4000)));
        assert_eq!(ends(&back), ((VIP, 53), (POD, 4000)));
    });
}

#[test]
fn a_pod_reaches_itself_by_its_service() {
    node::in_node(|directory| {
        let mut world = served(directory);
        world.service(front(VIP, 80, TCP), 5, &[at(POD, 8080)], 0);
        world.set(2, 8, &[]);
        world.isolate(2, 2);
        let turned = |what: &str, frame: &[u8]| {
            let outcome = world.verdict(Direction::Egress, frame).unwrap();
            assert_eq!(outcome.action, Action::TurnRound, "{what}");
            assert_eq!(outcome.frame[..12], [&POD_MAC[..], &HOST_MAC].concat(), "{what}: the MACs");
            outcome.frame
        };
        let there = turned("SYN", &tcp((POD, 4000), (VIP, 80), SYN));
        sound(&there, (HAIRPIN, 4000), (POD, 8080));
        assert_eq!(world.ingress("the pod's server gets it", &there, Ok(())), there);
        let back = turned("SYN ACK", &tcp((POD, 8080), (HAIRPIN, 4000), SYN | ACK));
        sound(&back, (VIP, 80), (POD, 4000));
        assert_eq!(world.ingress("the pod's client gets it", &back, Ok(())), back);
        let there = turned("ACK", &tcp((POD, 4000), (VIP, 80), ACK));
        sound(&there, (HAIRPIN, 4000), (POD, 8080));
        let event = world.events()[0];
        assert_eq!(event.flags & FlowFlags::HAIRPIN, FlowFlags::HAIRPIN);
    });
}

#[test]
fn a_port_that_is_taken_on_the_wire_is_changed() {
    node::in_node(|directory| {
        let world = served(directory);
        world.service(front(VIP, 8000, TCP), 5, &[at(PEER, 8080)], 0);
        world.egress("by one Service", &tcp((POD, 4000), (VIP, 80), SYN), Ok(()));
        let out = world.egress(
            "by another, same ports on the wire",
            &tcp((POD, 4000), (VIP, 8000), SYN),
            Ok(()),
        );
        let (from, to) = ends(&out);
        assert_eq!(to, (PEER, 8080));
        assert_ne!(from, (POD, 4000));
        assert_sound(&out);
        assert_eq!(world.counter(Counter::PortChanged), 1);
        let back = world.ingress("the other's answer", &tcp((PEER, 8080), from, SYN | ACK), Ok(()));
        sound(&back, (VIP, 8000), (POD, 4000));
        let back = world.ingress("the one's", &tcp((PEER, 8080), (POD, 4000), SYN | ACK), Ok(()));
        sound(&back, (VIP, 80), (POD, 4000));
        world.egress(
            "straight, by the same ports",
            &tcp((POD, 4000), (PEER, 8080), SYN),
            Err(DropReason::PortCollision),
        );
        world.ingress("the one is reset", &tcp((PEER, 8080), (POD, 4000), RST), Ok(()));
        world.egress("straight, then", &tcp((POD, 4000), (PEER, 8080), SYN), Ok(()));
    });
}

#[test]
fn sctp_is_translated_where_ports_are_equal() {
    node::in_node(|directory| {
        let mut world = served(directory);
        let init = |from: u16, port: u16| {
            let ports = [from.to_be_bytes(), port.to_be_bytes()].concat();
            ip4(POD, VIP, SCTP, &[&ports[..], &[0; 24]].concat())
        };
        world.service(front(VIP, 38412, SCTP), 5, &[at(PEER, 38412)], 0);
        world.service(front(VIP, 38413, SCTP), 6, &[at(PEER, 9999)], 0);
        let out = world.egress("equal", &init(4000, 38412), Ok(()));
        sound(&out, (POD, 4000), (PEER, 38412));
        let out = world.egress("left to kube-proxy", &init(4000, 38413), Ok(()));
        sound(&out, (POD, 4000), (VIP, 38413));
        assert_eq!(world.counter(Counter::LeftToProxy), 1);
        world.set(2, 8, &[Rule(5, SCTP, 1, 65535, 21)]);
        world.isolate(OPEN, 2);
        world.egress("refused", &init(4001, 38413), Err(DropReason::SctpPort));
        let event = *world.events().last().unwrap();
        assert_eq!(u32::from(event.reason), DropReason::SctpPort.slot(), "and told");
        // Begun before the pod was isolated: where kube-proxy leads it cannot be known.
        world.egress("left to kube-proxy, once", &init(4000, 38413), Err(DropReason::Revoked));
        let out = world.egress("equal, still", &init(4000, 38412), Ok(()));
        sound(&out, (POD, 4000), (PEER, 38412));
    });
}

/// No port of SCTP ever changes, as its CRC32c covers them: not the source port either, when it is taken.
#[test]
fn sctp_whose_source_port_is_taken_is_refused() {
    node::in_node(|directory| {
        let world = served(directory);
        let other = Ipv4Addr::new(172, 20, 0, 11);
        let init = |to: Ipv4Addr| ip4(POD, to, SCTP, &[&[15, 160, 150, 12][..], &[0; 24]].concat());
        for (list, vip) in [(5, VIP), (6, other)] {
            world.service(front(vip, 38412, SCTP), list, &[at(PEER, 38412)], 0);
        }
        world.egress("by one Service", &init(VIP), Ok(()));
        world.egress("by another, to the same", &init(other), Err(DropReason::PortCollision));
        world.service(front(other, 38412, SCTP), 7, &[at(OTHER, 38412)], 0);
        world.egress("by another, elsewhere", &init(other), Ok(()));
    });
}

#[test]
fn sctp_is_translated_over_ipv6() {
    node::in_node(|directory| {
        let world = served(directory);
        world.service(front(VIP_V6, 38412, SCTP), 5, &[at(PEER_V6, 38412)], 0);
        let chunk =
            |from: u16, to: u16| [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 24]].concat();
        let out = world::ip6(POD_V6, VIP_V6, SCTP, &chunk(4000, 38412));
        let out = world.egress("INIT", &out, Ok(()));
        assert_eq!(out[38..54], PEER_V6.octets());
        let back = world::ip6(PEER_V6, POD_V6, SCTP, &chunk(38412, 4000));
        let back = world.ingress("INIT ACK", &back, Ok(()));
        assert_eq!((&back[22..38], &back[54..]), (&VIP_V6.octets()[..], &chunk(38412, 4000)[..]));
    });
}

#[test]
fn the_middle_of_a_tcp_flow_is_not_given_a_back_end() {
    node::in_node(|directory| {
        let mut world = served(directory);
        let data = tcp((POD, 4000), (VIP, 80), ACK);
        assert_eq!(world.egress("by kube-proxy, if by anyone", &data, Ok(())), data);
        world.set(2, 8, &[Rule(5, TCP, 1, 65535, 21)]);
        world.isolate(OPEN, 2);
        world.configure(|s| s.flags |= SettingFlags::LEARN);
        world.egress(
            "isolated",
            &tcp((POD, 4001), (VIP, 80), ACK),
            Err(DropReason::UnknownService),
        );
    });
}

#[test]
fn errors_about_translated_flows_are_translated() {
    node::in_node(|directory| {
        let world = served(directory);
        let query = world.egress("a query", &udp((POD, 4000), (VIP, 53)), Ok(()));
        let router = Ipv4Addr::new(10, 9, 9, 9);
        for (source, seen) in [(router, router), (PEER, VIP)] {
            let error = icmp(source, POD, 3, 3, &[0; 4], &query[14..42]);
            let told = world.ingress("unreachable", &error, Ok(()));
            assert_eq!(Ipv4Addr::new(told[26], told[27], told[28], told[29]), seen);
            let quoted = [&[0; 14], &told[42..]].concat();
            assert_eq!(ends(&quoted), ((POD, 4000), (VIP, 53)));
            assert_eq!(world::checksum(&[&told[42..62]]), 0, "the quoted header's");
            assert_sound(&told);
        }
        world.ingress("an answer", &udp((PEER, 5353), (POD, 4000)), Ok(()));
        // The pod's client is gone: its error quotes what the pod saw.
        let error = icmp(POD, VIP, 3, 3, &[0; 4], &udp((VIP, 53), (POD, 4000))[14..42]);
        let told = world.egress("port unreachable", &error, Ok(()));
        assert_eq!(Ipv4Addr::new(told[30], told[31], told[32], told[33]), PEER);
        assert_eq!(ends(&[&[0; 14], &told[42..]].concat()), ((PEER, 5353), (POD, 4000)));
        assert_sound(&told);
    });
}

#[test]
fn errors_about_translated_flows_are_translated_over_ipv6() {
    node::in_node(|directory| {
        let world = served(directory);
        let query = world.egress("a query", &udp6((POD_V6, 4000), (VIP_V6, 53)), Ok(()));
        for (source, seen) in [(OTHER_V6, OTHER_V6), (PEER_V6, VIP_V6)] {
            let error = icmp6(source, POD_V6, 1, 4, &[0; 4], &query[14..62]);
            let told = world.ingress("unreachable", &error, Ok(()));
            assert_eq!(told[22..38], seen.octets());
            assert_eq!(told[62 + 24..62 + 40], VIP_V6.octets(), "the quoted destination");
            assert_eq!(told[62 + 42..62 + 44], 53u16.to_be_bytes());
            assert_sound(&told);
        }
    });
}

#[test]
fn fragments_of_translated_datagrams_follow() {
    node::in_node(|directory| {
        let world = served(directory);
        let whole = udp((POD, 4000), (VIP, 53));
        let first = world.egress("first", &fragment(&whole, 7, true, 0), Ok(()));
        assert_eq!(ends(&first).1, (PEER, 5353));
        let later = world.egress("later", &fragment(&whole, 7, false, 64), Ok(()));
        assert_eq!(later[30..34], PEER.octets());
        assert_eq!(world::checksum(&[&later[14..34]]), 0);
        let answer = udp((PEER, 5353), (POD, 4000));
        let first = world.ingress("the answer's first", &fragment(&answer, 9, true, 0), Ok(()));
        assert_eq!(ends(&first).0, (VIP, 53));
        let later = world.ingress("later", &fragment(&answer, 9, false, 64), Ok(()));
        assert_eq!(later[26..30], VIP.octets());
    });
}

#[test]
fn a_front_end_that_kube_proxy_alone_can_serve_is_left_to_it_and_refused_from_isolated_pods() {
    node::in_node(|directory| {
        let mut world = served(directory);
        // A load balancer's, outside the range of Services: allowed as an address like any other.
        let balancer = Ipv4Addr::new(198, 51, 100, 1);
        let port = 81u16.to_be_bytes();
        let key = ServiceKeyV4 { address: balancer.octets(), port, protocol: TCP, reserved: 0 };
        let count = ServiceValue::OF_PROXY;
        let value = ServiceValue { backends: 0, count, affinity_secs: 0, service: 9 };
        world.filter.tables().apply(&[Write::ServiceV4 { key, value }]).unwrap();
        let syn = tcp((POD, 4000), (balancer, 81), SYN);
        assert_eq!(world.egress("open", &syn, Ok(())), syn, "as it is");
        assert_eq!(world.counter(Counter::LeftToProxy), 1);
        world.set(2, 8, &[Rule(0, TCP, 1, 65535, 21), Rule(5, TCP, 1, 65535, 22)]);
        world.isolate(OPEN, 2);
        let refused = Err(DropReason::UnknownService);
        world.egress("a new one", &tcp((POD, 4001), (balancer, 81), SYN), refused);
        world.egress("at another port", &tcp((POD, 4002), (balancer, 82), SYN), Ok(()));
    });
}
