//! Translation of Services in full: ports that are taken, the pod itself behind its Service, SCTP, errors, fragments.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skips"
)]
#![cfg(feature = "bpf")]

use std::net::{Ipv4Addr, Ipv6Addr};

use veni_datapath::bpf::{Action, Counter, Direction, DropReason, FlowFlags};

#[path = "support/given.rs"]
mod given;
#[path = "support/node.rs"]
mod node;
#[path = "support/world.rs"]
mod world;

use given::{at, front, served, sound};
use world::{
    ACK, FIN, HOST_MAC, IFINDEX, OPEN, OTHER, OTHER_V6, PEER, PEER_V6, POD, POD_MAC, POD_V6, RST,
    Rule, SCTP, SYN, TCP, UDP, VIP, VIP_V6, World, assert_sound, ends, fragment, icmp, icmp6, ip4,
    tcp, tcp6, udp, udp6,
};

const HAIRPIN: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Into the pod, turned round at its own interface.
#[track_caller]
fn turned_in(world: &World, frame: &[u8]) -> Vec<u8> {
    world.verdict_from(Direction::Ingress, frame, IFINDEX).unwrap().frame
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

/// A host-network back end behind its own node's external address, by the same port: both views are one.
#[test]
fn a_back_end_that_is_its_own_front_end_answers() {
    node::in_node(|directory| {
        let mut world = served(directory);
        world.service(front(PEER, 8080, TCP), 5, &[at(PEER, 8080)], 0);
        world.service(front(PEER_V6, 8080, TCP), 6, &[at(PEER_V6, 8080)], 0);
        world.set(2, 8, &[]);
        world.isolate(2, OPEN);
        let answer = tcp((PEER, 8080), (POD, 4000), SYN | ACK);
        world.ingress("before it is asked", &answer, Err(DropReason::IngressDenied));
        world.egress("SYN", &tcp((POD, 4000), (PEER, 8080), SYN), Ok(()));
        world.ingress("SYN ACK", &answer, Ok(()));
        world.egress("ACK", &tcp((POD, 4000), (PEER, 8080), ACK), Ok(()));
        world.ingress("data", &tcp((PEER, 8080), (POD, 4000), ACK), Ok(()));
        world.ingress(
            "another's",
            &tcp((OTHER, 8080), (POD, 4000), ACK),
            Err(DropReason::IngressDenied),
        );
        world.egress("SYN", &tcp6((POD_V6, 4000), (PEER_V6, 8080), SYN), Ok(()));
        world.ingress("SYN ACK", &tcp6((PEER_V6, 8080), (POD_V6, 4000), SYN | ACK), Ok(()));
    });
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
            assert_eq!(turned_in(&world, &outcome.frame), outcome.frame, "{what}");
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
        assert_eq!(turned_in(&world, &there), there, "the pod's server gets it");
        let denied = Err(DropReason::IngressDenied);
        world.ingress("by another interface", &there, denied);
        let back = turned("SYN ACK", &tcp((POD, 8080), (HAIRPIN, 4000), SYN | ACK));
        sound(&back, (VIP, 80), (POD, 4000));
        assert_eq!(turned_in(&world, &back), back, "the pod's client gets it");
        world.ingress("by another interface", &back, denied);
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

/// Gossip: by the Service to join, then among its members, from one port that is bound for good.
#[test]
fn datagrams_straight_to_a_back_end_take_the_place_of_those_by_its_service() {
    for isolated in [false, true] {
        node::in_node(move |directory| {
            let mut world = served(directory);
            world.service(front(VIP, 7946, UDP), 5, &[at(PEER, 7946)], 0);
            if isolated {
                world.set(2, 8, &[Rule(5, UDP, 7946, 7946, 21)]);
                world.isolate(2, 2);
            }
            let join = udp((POD, 7946), (VIP, 7946));
            let (direct, gossip) = (udp((POD, 7946), (PEER, 7946)), udp((PEER, 7946), (POD, 7946)));
            sound(&world.egress("join", &join, Ok(())), (POD, 7946), (PEER, 7946));
            for _ in 0..3 {
                let back = world.ingress("the member's, as the Service's", &gossip, Ok(()));
                sound(&back, (VIP, 7946), (POD, 7946));
            }
            world.events();
            assert_eq!(world.egress("straight", &direct, Ok(())), direct, "as it is");
            let [event] = world.events()[..] else { panic!("one event") };
            assert_eq!(
                (event.remote[..4].to_vec(), event.remote_port),
                (PEER.octets().to_vec(), 7946)
            );
            for _ in 0..3 {
                assert_eq!(world.ingress("the member's own", &gossip, Ok(())), gossip, "as it is");
                assert_eq!(world.egress("straight", &direct, Ok(())), direct, "as it is");
            }
            assert_eq!(world.filter.flow_counts().unwrap(), (1, 0), "the other's views are gone");
            // By the Service again: beside it.
            let out = world.egress("join", &join, Ok(()));
            let (from, to) = ends(&out);
            assert_eq!((to, from.1 == 7946), ((PEER, 7946), false));
            sound(
                &world.ingress("its answer", &udp((PEER, 7946), from), Ok(())),
                (VIP, 7946),
                (POD, 7946),
            );
            assert_eq!(world.ingress("the member's own", &gossip, Ok(())), gossip);
        });
    }
}

/// Half open as well: what the flow took of the pod's share is given back.
#[test]
fn a_half_open_flow_by_a_service_makes_room_too_but_only_for_the_pod() {
    node::in_node(|directory| {
        let mut world = served(directory);
        world.service(front(VIP, 7946, UDP), 5, &[at(PEER, 7946)], 0);
        let (join, direct) = (udp((POD, 7946), (VIP, 7946)), udp((POD, 7946), (PEER, 7946)));
        world.egress("join", &join, Ok(()));
        assert_eq!(world.egress("straight", &direct, Ok(())), direct);
        let state = world.filter.pod_state(world.identity.slot).unwrap();
        assert_eq!((state.half_open, world.filter.flow_counts().unwrap()), ([1, 0], (0, 1)));
        // What policy does not let through takes nothing's place.
        world.service(front(VIP, 7947, UDP), 6, &[at(PEER, 7947)], 0);
        world.set(2, 8, &[Rule(5, UDP, 7947, 7947, 21)]);
        world.isolate(OPEN, 2);
        world.egress("join", &udp((POD, 7947), (VIP, 7947)), Ok(()));
        world.set(3, 8, &[]);
        world.policy.egress_set = 3;
        world.filter.pod_policy(IFINDEX, world.policy).unwrap();
        let denied = Err(DropReason::EgressDenied);
        world.egress("straight, denied", &udp((POD, 7947), (PEER, 7947)), denied);
        let back = world.ingress("the Service's", &udp((PEER, 7947), (POD, 7947)), Ok(()));
        sound(&back, (VIP, 7947), (POD, 7947));
    });
}

#[test]
fn sctp_straight_to_a_back_end_takes_the_place_of_that_by_its_service() {
    node::in_node(|directory| {
        let world = served(directory);
        world.service(front(VIP, 38412, SCTP), 5, &[at(PEER, 38412)], 0);
        let chunk = |from: Ipv4Addr, to: Ipv4Addr| {
            ip4(from, to, SCTP, &[&[150, 12, 150, 12][..], &[0; 24]].concat())
        };
        sound(&world.egress("INIT", &chunk(POD, VIP), Ok(())), (POD, 38412), (PEER, 38412));
        world.ingress("INIT ACK", &chunk(PEER, POD), Ok(()));
        let direct = chunk(POD, PEER);
        assert_eq!(world.egress("straight", &direct, Ok(())), direct);
        let back = chunk(PEER, POD);
        assert_eq!(world.ingress("its answer", &back, Ok(())), back);
    });
}

/// TCP's client can take another port, and is told by an event that it has to.
#[test]
fn a_collision_of_tcp_is_told() {
    node::in_node(|directory| {
        let world = served(directory);
        world.egress("by the Service", &tcp((POD, 4000), (VIP, 80), SYN), Ok(()));
        world.events();
        let straight = tcp((POD, 4000), (PEER, 8080), SYN);
        world.egress("straight", &straight, Err(DropReason::PortCollision));
        let data = tcp((POD, 4000), (PEER, 8080), ACK);
        world.egress("straight, from its middle", &data, Err(DropReason::PortCollision));
        let told: Vec<_> = world
            .events()
            .iter()
            .map(|e| (u32::from(e.reason), e.remote[..4].to_vec(), e.remote_port))
            .collect();
        let expect = (DropReason::PortCollision.slot(), PEER.octets().to_vec(), 8080);
        assert_eq!(told, [expect.clone(), expect]);
    });
}
