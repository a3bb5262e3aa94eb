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
    Action, Counter, Direction, DropReason, SettingFlags, Write,
    table::{ServiceKeyV4, ServiceValue},
};

#[path = "support/front_ends.rs"]
mod front_ends;
#[path = "support/given.rs"]
mod given;
#[path = "support/node.rs"]
mod node;
#[path = "support/world.rs"]
mod world;

use given::{at, front, served, sound};
use world::{
    ACK, End, FIN, NODE, OPEN, OTHER, OTHER_V6, PEER, PEER_V6, POD, POD_V6, RST, Rule, SYN, TCP,
    UDP, VIP, VIP_V6, World, assert_sound, ends, icmp, tcp, tcp6, udp, udp6,
};

const NODE_PORT: u16 = 30_080;
const HAIRPIN: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

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

/// kube-proxy rejects: an open pod's connection fails at once, and nothing of it stays.
#[test]
fn a_service_without_back_ends_is_left_to_kube_proxy_only_for_the_open() {
    node::in_node(|directory| {
        let mut world = served(directory);
        world.service(front(VIP, 80, TCP), 5, &[], 0);
        world.service(front(VIP, 53, UDP), 6, &[], 0);
        let (syn, query) = (tcp((POD, 4000), (VIP, 80), SYN), udp((POD, 4000), (VIP, 53)));
        assert_eq!(world.egress("open", &syn, Ok(())), syn, "as it is");
        assert_eq!(world.egress("a datagram", &query, Ok(())), query, "as it is");
        assert_eq!(world.counter(Counter::LeftToProxy), 2);
        assert_eq!(world.filter.flow_counts().unwrap(), (0, 0));
        assert_eq!(world.events(), []);
        world.set(1, 9, &[]);
        world.isolate(1, OPEN);
        let rejected = icmp(NODE, POD, 3, 3, &[0; 4], &syn[14..42]);
        let told = world.verdict_from(Direction::Ingress, &rejected, 0).map(drop);
        assert_eq!(told, Ok(()), "kube-proxy's answer");
        world.service(front(VIP, 53, UDP), 7, &[at(PEER, 5353)], 0);
        assert_eq!(ends(&world.egress("a back end, now", &query, Ok(()))).1, (PEER, 5353));
        world.set(2, 8, &[Rule(5, TCP, 1, 65535, 22)]);
        world.isolate(OPEN, 2);
        world.events();
        world.egress("isolated", &syn, Err(DropReason::NoBackend));
        let event = world.events()[0];
        assert_eq!((event.remote[..4].to_vec(), event.remote_port), (VIP.octets().to_vec(), 80));
        assert_eq!(
            (u32::from(event.reason), event.decision.rule()),
            (DropReason::NoBackend.slot(), 0)
        );
        world.service(front(VIP, 80, TCP), 8, &[at(PEER, 8080)], 0);
        assert_eq!(ends(&world.egress("a back end, now", &syn, Ok(()))).1, (PEER, 8080));
    });
}

/// A SYN sent again to a Service that became known after the first: by its back end, not as the first went.
#[test]
fn a_syn_sent_again_goes_by_the_service_that_is_known_now() {
    node::in_node(|directory| {
        let mut world = served(directory);
        let syn = tcp((POD, 4000), (VIP, 81), SYN);
        assert_eq!(world.egress("not known", &syn, Ok(())), syn);
        world.service(front(VIP, 81, TCP), 5, &[at(PEER, 8080)], 0);
        assert_eq!(ends(&world.egress("known", &syn, Ok(()))).1, (PEER, 8080));
        let back = world.ingress("its answer", &tcp((PEER, 8080), (POD, 4000), SYN | ACK), Ok(()));
        sound(&back, (VIP, 81), (POD, 4000));
        let syn = tcp((POD, 4001), (VIP, 82), SYN);
        world.egress("not known", &syn, Ok(()));
        world.service(front(VIP, 82, TCP), 6, &[at(OTHER, 8080)], 0);
        world.set(2, 8, &[Rule(5, TCP, 1, 65535, 22)]);
        world.isolate(OPEN, 2);
        world.egress("known, and not allowed", &syn, Err(DropReason::EgressDenied));
    });
}

/// An external or a load balancer's address may be a machine's as well. What comes from there is no answer of the Service.
#[test]
fn what_comes_from_a_services_own_address_is_not_of_its_flow() {
    node::in_node(|directory| {
        let mut world = served(directory);
        world.set(1, 9, &[Rule(6, TCP, 4001, 4001, 7)]);
        world.set(2, 8, &[Rule(5, TCP, 1, 65535, 1), Rule(5, UDP, 1, 65535, 1)]);
        world.service(front(OTHER, 80, TCP), 5, &[at(PEER, 8080)], 0);
        world.service(front(OTHER, 53, UDP), 6, &[at(PEER, 5353)], 0);
        let denied = Err(DropReason::IngressDenied);
        // Isolated; where a rule lets it in; open.
        for (ingress, port, expect) in [(1, 4000, denied), (1, 4001, Ok(())), (OPEN, 4002, Ok(()))]
        {
            world.isolate(ingress, 2);
            let real = |flags| tcp((OTHER, 80), (POD, port), flags);
            let out = |flags| tcp((POD, port), (OTHER, 80), flags);
            world.egress("SYN", &out(SYN), Ok(()));
            world.ingress("of the machine, half open", &real(ACK), expect);
            world.ingress("its answer", &real(SYN | ACK), expect);
            world.ingress("its SYN", &real(SYN), expect);
            world.ingress("its reset", &real(RST | ACK), expect);
            let back = tcp((PEER, 8080), (POD, port), SYN | ACK);
            sound(&world.ingress("the back end's answer", &back, Ok(())), (OTHER, 80), (POD, port));
            sound(&world.egress("ACK", &out(ACK), Ok(())), (POD, port), (PEER, 8080));
            for flags in [ACK, SYN, FIN | ACK, RST | ACK] {
                assert_eq!(
                    world.ingress("established", &real(flags), expect).is_empty(),
                    expect.is_err()
                );
            }
            sound(&world.egress("it goes on", &out(ACK), Ok(())), (POD, port), (PEER, 8080));
        }
        world.isolate(OPEN, 2);
        world.egress("a query", &udp((POD, 4000), (OTHER, 53)), Ok(()));
        let real = udp((OTHER, 53), (POD, 4000));
        assert_eq!(world.ingress("the machine's datagram", &real, Ok(())), real, "as it is");
        assert_eq!(
            ends(&world.egress("a query", &udp((POD, 4000), (OTHER, 53)), Ok(()))).1,
            (PEER, 5353)
        );
        assert_eq!(world.filter.flow_counts().unwrap(), (6, 2), "the machine's are no answers");
        sound(
            &world.ingress("an answer", &udp((PEER, 5353), (POD, 4000)), Ok(())),
            (OTHER, 53),
            (POD, 4000),
        );
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
