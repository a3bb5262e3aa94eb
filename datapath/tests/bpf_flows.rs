//! Flows: begun, answered, established, judged again, forgotten; between the pod and its own node; bounded for each pod.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skips"
)]
#![cfg(feature = "bpf")]

use veni_datapath::bpf::{Action, Counter, Direction, DropReason, SettingFlags, Skb};

#[path = "support/given.rs"]
mod given;
#[path = "support/node.rs"]
mod node;
#[path = "support/world.rs"]
mod world;

use given::{DENIED, EGRESS_DENIED, at, front, isolated, served};
use world::{
    ACK, FIN, NODE, NODE_V6, OPEN, OTHER, OTHER_V6, PEER, PEER_V6, POD, POD_V6, RST, Rule, SYN,
    TCP, UDP, VIP, World, ends, icmp, icmp6, tcp, tcp6, udp, udp6,
};

#[test]
fn answers_of_allowed_flows_pass() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.set(2, 8, &[]);
        world.isolate(1, 2);
        world.egress("the pod begins", &tcp((POD, 4000), (PEER, 80), SYN), EGRESS_DENIED);
        world.egress(
            "an answer to nothing",
            &tcp((POD, 80), (PEER, 1000), SYN | ACK),
            EGRESS_DENIED,
        );
        world.ingress("SYN", &tcp((PEER, 1000), (POD, 80), SYN), Ok(()));
        world.egress("SYN ACK", &tcp((POD, 80), (PEER, 1000), SYN | ACK), Ok(()));
        assert_eq!(world.filter.flow_counts().unwrap(), (0, 1));
        world.ingress("ACK", &tcp((PEER, 1000), (POD, 80), ACK), Ok(()));
        assert_eq!(world.filter.flow_counts().unwrap(), (1, 0), "established");
        world.egress("data", &tcp((POD, 80), (PEER, 1000), ACK), Ok(()));
        world.ingress("FIN", &tcp((PEER, 1000), (POD, 80), FIN | ACK), Ok(()));
        world.egress("FIN", &tcp((POD, 80), (PEER, 1000), FIN | ACK), Ok(()));
        world.ingress("RST", &tcp((PEER, 1000), (POD, 80), RST), Ok(()));
        world.ingress("UDP", &udp((OTHER, 1000), (POD, 53)), Ok(()));
        world.egress("its answer", &udp((POD, 53), (OTHER, 1000)), Ok(()));
        world.egress("another's", &udp((POD, 53), (OTHER, 1001)), EGRESS_DENIED);
        world.ingress("v6", &tcp6((PEER_V6, 1000), (POD_V6, 80), SYN), Ok(()));
        world.egress("v6 answer", &tcp6((POD_V6, 80), (PEER_V6, 1000), SYN | ACK), Ok(()));
    });
}

#[test]
fn a_flow_is_judged_again_when_the_epoch_changes() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        let (syn, answer, data) = (
            tcp((PEER, 1000), (POD, 80), SYN),
            tcp((POD, 80), (PEER, 1000), SYN | ACK),
            tcp((PEER, 1000), (POD, 80), ACK),
        );
        let establish = |world: &World| {
            world.ingress("SYN", &syn, Ok(()));
            world.egress("SYN ACK", &answer, Ok(()));
            world.ingress("ACK", &data, Ok(()));
        };
        establish(&world);
        world.filter.raise_epoch().unwrap();
        world.ingress("the same policy", &data, Ok(()));
        world.class(PEER, 99);
        world.ingress("before the epoch", &data, Ok(()));
        world.filter.raise_epoch().unwrap();
        world.egress("the answer, judged as the flow began", &answer, Err(DropReason::Revoked));
        world.ingress("and gone", &data, DENIED);
        assert_eq!(world.counter(Counter::Revoked), 1);
        world.class(PEER, 5);
        establish(&world);
        world.configure(|s| s.flags |= SettingFlags::KEEP_ESTABLISHED);
        world.class(PEER, 99);
        world.isolate(1, OPEN);
        world.ingress("kept by the setting", &data, Ok(()));
        world.ingress("a new one is not", &tcp((PEER, 1001), (POD, 80), SYN), DENIED);
    });
}

#[test]
fn flows_of_another_pod_in_the_slot_count_for_nothing() {
    node::in_node(|directory| {
        let world = isolated(directory);
        world.ingress("SYN", &tcp((PEER, 1000), (POD, 80), SYN), Ok(()));
        world.egress("SYN ACK", &tcp((POD, 80), (PEER, 1000), SYN | ACK), Ok(()));
        world.ingress("ACK", &tcp((PEER, 1000), (POD, 80), ACK), Ok(()));
        world.filter.pod_remove(world::IFINDEX).unwrap();
        world.set(3, 9, &[]);
        let policy =
            veni_datapath::bpf::PodPolicy { ingress_set: 3, egress_set: 3, ..world.policy };
        let next = world.filter.pod_admit(world::IFINDEX, world.entry, policy).unwrap();
        assert_eq!(next.slot, world.identity.slot);
        assert_ne!(next.incarnation, world.identity.incarnation);
        world.ingress("of the pod before", &tcp((PEER, 1000), (POD, 80), ACK), DENIED);
        world.egress("its answers", &tcp((POD, 80), (PEER, 1000), ACK), EGRESS_DENIED);
    });
}

#[test]
fn half_open_flows_are_capped_for_each_pod() {
    node::in_node(|directory| {
        let world = isolated(directory);
        world.configure(|s| s.half_open_cap = 10);
        for port in 0..50 {
            world.ingress("a flood", &tcp((PEER, 2000 + port), (POD, 80), SYN), Ok(()));
        }
        assert_eq!(world.filter.flow_counts().unwrap(), (0, 10));
        assert_eq!(world.counter(Counter::HalfOpenCapped), 40);
        let state = world.filter.pod_state(world.identity.slot).unwrap();
        assert_eq!((state.half_open, state.capped), ([0, 10], 40));
        // One of them completes: there is room again.
        world.egress("SYN ACK", &tcp((POD, 80), (PEER, 2000), SYN | ACK), Ok(()));
        world.ingress("ACK", &tcp((PEER, 2000), (POD, 80), ACK), Ok(()));
        world.ingress("another", &tcp((PEER, 3000), (POD, 80), SYN), Ok(()));
        assert_eq!(world.filter.flow_counts().unwrap(), (1, 10));
        // What is over the share is answered and established like any other.
        world.egress("SYN ACK", &tcp((POD, 80), (PEER, 2049), SYN | ACK), Ok(()));
        world.ingress("ACK", &tcp((PEER, 2049), (POD, 80), ACK), Ok(()));
        assert_eq!(world.filter.flow_counts().unwrap(), (2, 10));
        assert_eq!(world.filter.overflow_count().unwrap(), 39);
    });
}

/// A refused connection leaves nothing half open, whoever refuses it.
#[test]
fn a_reset_gives_back_what_a_half_open_flow_took() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.set(2, 8, &[]);
        world.isolate(1, 2);
        world.configure(|s| s.half_open_cap = 2);
        for port in 0..20 {
            world.ingress("SYN", &tcp((PEER, 2000 + port), (POD, 80), SYN), Ok(()));
            world.egress("refused", &tcp((POD, 80), (PEER, 2000 + port), RST | ACK), Ok(()));
            world.ingress("SYN", &tcp((PEER, 3000 + port), (POD, 80), SYN), Ok(()));
            world.ingress("given up", &tcp((PEER, 3000 + port), (POD, 80), RST), Ok(()));
        }
        assert_eq!(world.counter(Counter::HalfOpenCapped), 0);
        assert_eq!(world.filter.flow_counts().unwrap(), (0, 0));
        let late = tcp((POD, 80), (PEER, 2000), SYN | ACK);
        world.egress("an answer after the end", &late, EGRESS_DENIED);
    });
}

/// What others send to a pod takes nothing from what the pod may begin.
#[test]
fn a_flood_into_a_pod_takes_nothing_from_what_the_pod_begins() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.configure(|s| s.half_open_cap = 2);
        world.set(2, 8, &[Rule(5, TCP, 443, 443, 13)]);
        world.isolate(1, 2);
        for port in 0..50 {
            world.ingress("a flood", &tcp((PEER, 2000 + port), (POD, 80), SYN), Ok(()));
        }
        let capped = world.counter(Counter::HalfOpenCapped);
        world.egress("the pod's own", &tcp((POD, 4000), (PEER, 443), SYN), Ok(()));
        assert_eq!(world.counter(Counter::HalfOpenCapped), capped);
        let state = world.filter.pod_state(world.identity.slot).unwrap();
        assert_eq!(state.half_open, [1, 2]);
    });
}

/// One pod's flood costs no other pod a flow.
#[test]
fn a_flood_of_one_pod_does_not_reach_anothers_flows() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let (other, index) = (std::net::Ipv4Addr::new(10, 0, 9, 2), world::IFINDEX + 1);
        node::ip(&format!("link add veth2 index {index} type veth peer name peer2"));
        let entry = veni_datapath::bpf::PodEntry { address: other, ..world.entry };
        let policy = veni_datapath::bpf::PodPolicy { address_v6: None, ..world.policy };
        world.filter.pod_admit(index, entry, policy).unwrap();
        let run = |direction, frame: &[u8]| {
            let skb = Skb { ifindex: index, ingress_ifindex: 2, mark: 0 };
            world.filter.run(direction, frame, skb, 1).unwrap().action
        };
        let mut syn = tcp((other, 4000), (PEER, 443), SYN);
        syn[..12].copy_from_slice(&[&world::HOST_MAC[..], &world::POD_MAC].concat());
        assert_eq!(run(Direction::Egress, &syn), Action::Pass);
        // More than the table holds, were they all kept.
        let mut flood = tcp((PEER, 1), (POD, 80), SYN);
        for number in 0..50_000u32 {
            flood[26..30].copy_from_slice(&PEER.octets());
            let [a, b, c, d] = number.to_be_bytes();
            flood[34..36].copy_from_slice(&[c, d]);
            // PEER's class: other addresses are not allowed, and would not be kept anyway.
            flood[18..20].copy_from_slice(&[a, b]);
            world.run(Direction::Ingress, &flood);
        }
        let (_, half_open) = world.filter.flow_counts().unwrap();
        let cap = usize::try_from(world.filter.settings().unwrap().half_open_cap).unwrap();
        assert_eq!(half_open, cap + 1);
        assert_eq!(world.counter(Counter::HalfOpenCapped), 50_000 - u64::try_from(cap).unwrap());
        let answer = tcp((PEER, 443), (other, 4000), SYN | ACK);
        assert_eq!(run(Direction::Ingress, &answer), Action::Pass, "the other pod's answer");
        // The flooded pod's own flows begin.
        world.ingress("another peer's", &tcp((PEER, 60_000), (POD, 80), SYN), Ok(()));
    });
}

/// A table that is full forgets what was used least, and judges it anew; that is counted where it can be seen.
#[test]
fn a_full_table_forgets_what_is_idle_and_opens_nothing() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.configure(|s| s.half_open_cap = u32::MAX);
        world.set(2, 8, &[]);
        world.isolate(1, 2);
        let begin = |port| {
            let answer = tcp6((POD_V6, 80), (PEER_V6, port), SYN | ACK);
            world.ingress("SYN", &tcp6((PEER_V6, port), (POD_V6, 80), SYN), Ok(()));
            world.egress("SYN ACK", &answer, Ok(()));
            let data = tcp6((PEER_V6, port), (POD_V6, 80), ACK);
            world.ingress("ACK", &data, Ok(()));
            (data, tcp6((POD_V6, 80), (PEER_V6, port), ACK))
        };
        let (busy, idle) = (begin(1000), begin(1001));
        let (mut there, mut back) =
            (udp6((OTHER_V6, 0), (POD_V6, 53)), udp6((POD_V6, 53), (OTHER_V6, 0)));
        // As many others as the table holds, and some more: by peers of one class.
        for peer in [1, 2] {
            let mut address = OTHER_V6.octets();
            address[14] = peer;
            world.class(std::net::Ipv6Addr::from(address), 6);
            there[22..38].copy_from_slice(&address);
            back[38..54].copy_from_slice(&address);
            for port in 0..40_000u16 {
                there[54..56].copy_from_slice(&port.to_be_bytes());
                back[56..58].copy_from_slice(&port.to_be_bytes());
                let ends = [
                    world.run(Direction::Ingress, &there).action,
                    world.run(Direction::Egress, &back).action,
                ];
                assert_eq!(ends, [Action::Pass; 2], "{peer} {port}");
                if port % 1000 == 0 {
                    world.egress("one in use stays", &busy.1, Ok(()));
                }
            }
        }
        let (established, _) = world.filter.flow_counts().unwrap();
        assert!(established <= 65_536, "{established}");
        world.egress("forgotten: what is not known answers nothing", &idle.1, EGRESS_DENIED);
        assert_eq!(world.counter(Counter::PickedUp), 0);
        world.ingress("judged anew, from its middle", &idle.0, Ok(()));
        assert_eq!(world.counter(Counter::PickedUp), 1, "and counted");
        world.egress("known again", &idle.1, Ok(()));
        world.ingress("in use all the time", &busy.0, Ok(()));
        assert_eq!(world.counter(Counter::PickedUp), 1);
    });
}

#[test]
fn the_node_is_exempt_only_when_it_is_the_node() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.set(2, 8, &[]);
        world.isolate(1, 2);
        let probe = tcp((NODE, 40000), (POD, 22), SYN);
        assert_eq!(
            world.verdict_from(Direction::Ingress, &probe, 0).map(drop),
            Ok(()),
            "made here"
        );
        world.egress("its answer", &tcp((POD, 22), (NODE, 40000), SYN | ACK), Ok(()));
        let forwarded = tcp((NODE, 40001), (POD, 22), SYN);
        world.ingress("masqueraded: the node's address, but it came in", &forwarded, DENIED);
        let local = tcp((OTHER, 40000), (POD, 22), SYN);
        assert_eq!(
            world.verdict_from(Direction::Ingress, &local, 0).map(drop),
            DENIED,
            "made here by another address"
        );
        world.egress("to the node", &tcp((POD, 4000), (NODE, 10250), SYN), Ok(()));
        world.egress(
            "to what may be a node port",
            &tcp((POD, 4000), (NODE, 30080), SYN),
            Err(DropReason::UnknownService),
        );
        world.egress("ping the node", &icmp(POD, NODE, 8, 0, &[0, 7, 0, 1], b"x"), Ok(()));
        world.egress("another node", &tcp((POD, 4000), (OTHER, 10250), SYN), EGRESS_DENIED);
        let itself = tcp((POD, 4000), (POD, 22), SYN);
        let turned = world.verdict_from(Direction::Ingress, &itself, world::IFINDEX);
        assert_eq!(turned.map(drop), Ok(()), "the pod itself");
        world.ingress("the pod's address, but not the pod", &itself, DENIED);
    });
}

/// Masquerading keeps a client's port when it can: its datagrams may look like the node's own flow.
#[test]
fn a_flow_of_the_node_carries_nothing_that_came_in() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.set(2, 8, &[]);
        world.isolate(1, 2);
        let probe = udp((NODE, 40_000), (POD, 161));
        let made_here = || world.verdict_from(Direction::Ingress, &probe, 0).map(drop);
        assert_eq!(made_here(), Ok(()));
        world.egress("its answer", &udp((POD, 161), (NODE, 40_000)), Ok(()));
        assert_eq!(made_here(), Ok(()), "established");
        world.ingress("masqueraded, by the same ports", &probe, DENIED);
        assert_eq!(made_here(), Ok(()), "the node's own goes on");
    });
}

/// What was the node's when a flow began may be a host port now, or another's address.
#[test]
fn a_flow_to_the_node_is_judged_again_when_it_is_the_nodes_no_more() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.set(2, 8, &[]);
        world.isolate(1, 2);
        let (host_port, kubelet) =
            (udp((POD, 4000), (NODE, 8080)), udp((POD, 4001), (NODE, 10250)));
        let from_node = udp((NODE, 40_000), (POD, 161));
        world.egress("not known as a host port yet", &host_port, Ok(()));
        world.egress("to the node", &kubelet, Ok(()));
        let made_here = || world.verdict_from(Direction::Ingress, &from_node, 0).map(drop);
        assert_eq!(made_here(), Ok(()));
        world.service((NODE.into(), 8080, UDP), 3, &[(PEER.into(), 80)], 0);
        world.filter.raise_epoch().unwrap();
        world.egress("it leads to a pod", &host_port, Err(DropReason::Revoked));
        world.egress("still the node", &kubelet, Ok(()));
        assert_eq!(made_here(), Ok(()));
        world.filter.set_node_addresses(&[std::net::IpAddr::from(OTHER)].into()).unwrap();
        world.filter.raise_epoch().unwrap();
        world.egress("another's address now", &kubelet, Err(DropReason::Revoked));
        assert_eq!(made_here(), Err(DropReason::Revoked));
    });
}

#[test]
fn the_middle_of_a_flow_is_taken_in_from_its_other_end_only_while_learning() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.set(2, 8, &[]);
        world.isolate(1, 2);
        let answer = tcp((POD, 80), (PEER, 1000), ACK);
        world.egress("an answer of an unknown flow", &answer, EGRESS_DENIED);
        world.configure(|s| s.flags |= SettingFlags::LEARN);
        world.egress("one that policy would have allowed", &answer, Ok(()));
        world.egress("one that it would not", &tcp((POD, 22), (PEER, 1000), ACK), EGRESS_DENIED);
        world.egress("a new one", &tcp((POD, 80), (PEER, 1002), SYN), EGRESS_DENIED);
        world.configure(|s| s.flags &= !SettingFlags::LEARN);
        world.egress("known now", &answer, Ok(()));
    });
}

/// Nobody asks for whom an open pod's packet is; the first policy does, of flows that run already.
#[test]
fn a_flow_to_the_own_node_outlives_the_pods_first_policy() {
    for node_first in [true, false] {
        node::in_node(move |directory| {
            let mut world = served(directory);
            world.service(front(VIP, 443, UDP), 5, &[at(NODE, 6443)], 0);
            let (ask, answer) = (udp((POD, 4000), (NODE, 10250)), udp((NODE, 10250), (POD, 4000)));
            let (service, its) = (udp((POD, 4001), (VIP, 443)), udp((NODE, 6443), (POD, 4001)));
            let ping = icmp(POD, NODE, 8, 0, &[0, 7, 0, 1], b"x");
            let made_here = |world: &World, frame: &[u8]| {
                world.verdict_from(Direction::Ingress, frame, 0).map(drop)
            };
            world.egress("open", &ask, Ok(()));
            assert_eq!(made_here(&world, &answer), Ok(()));
            world.egress("by a Service", &service, Ok(()));
            assert_eq!(made_here(&world, &its), Ok(()));
            world.egress("a ping", &ping, Ok(()));
            world.egress("half open", &udp((POD, 4002), (NODE, 10250)), Ok(()));
            world.egress("what may be a node port", &udp((POD, 4003), (NODE, 30_080)), Ok(()));
            world.events();
            world.set(2, 8, &[]);
            world.isolate(2, 2);
            if node_first {
                assert_eq!(made_here(&world, &answer), Ok(()), "the node's answer");
                assert_eq!(made_here(&world, &its), Ok(()), "the node's answer by the Service");
            }
            world.egress("isolated", &ask, Ok(()));
            assert_eq!(ends(&world.egress("by the Service", &service, Ok(()))).1, (NODE, 6443));
            world.egress("the ping", &ping, Ok(()));
            world.egress("half open", &udp((POD, 4002), (NODE, 10250)), Ok(()));
            assert_eq!(made_here(&world, &answer), Ok(()));
            assert_eq!(made_here(&world, &its), Ok(()));
            assert_eq!((world.counter(Counter::Revoked), world.events()), (0, vec![]));
            world.ingress("masqueraded, by the same ports", &answer, DENIED);
            let led_elsewhere = udp((POD, 4003), (NODE, 30_080));
            world.egress("through kube-proxy", &led_elsewhere, Err(DropReason::Revoked));
        });
    }
}

/// As the answer comes first: what was masqueraded says nothing about the node's own flow.
#[test]
fn what_came_in_does_not_end_a_flow_to_the_own_node() {
    node::in_node(|directory| {
        let mut world = World::new(directory);
        let (ask, answer) = (udp((POD, 4000), (NODE, 10250)), udp((NODE, 10250), (POD, 4000)));
        world.egress("open", &ask, Ok(()));
        world.set(2, 8, &[]);
        world.isolate(2, 2);
        world.ingress("masqueraded, by the same ports", &answer, DENIED);
        world.egress("isolated", &ask, Ok(()));
        assert_eq!(world.verdict_from(Direction::Ingress, &answer, 0).map(drop), Ok(()));
        assert_eq!(world.counter(Counter::Revoked), 0);
    });
}

/// Where node ports are is the cluster's choice.
#[test]
fn the_range_of_node_ports_is_a_setting() {
    node::in_node(|directory| {
        let mut world = World::new(directory);
        world.set(2, 8, &[]);
        world.isolate(OPEN, 2);
        let to = |from, port| tcp((POD, from), (NODE, port), SYN);
        let refused = Err(DropReason::UnknownService);
        world.egress("in the default range", &to(4000, 30_080), refused);
        world.egress("outside", &to(4001, 20_080), Ok(()));
        world.configure(|s| (s.node_port_first, s.node_port_last) = (20_000, 20_100));
        world.egress("in the range", &to(4002, 20_080), refused);
        world.egress("outside", &to(4003, 30_080), Ok(()));
        world.egress("its last", &to(4004, 20_100), refused);
        world.egress("behind it", &to(4005, 20_101), Ok(()));
    });
}

/// The pod under sets 4 and 2, which deny by rules 7 and 8, at a node of both families whose addresses have class 50.
fn at_own_node(directory: &std::path::Path) -> World {
    let mut world = served(directory);
    world.filter.set_node_addresses(&[NODE.into(), NODE_V6.into()].into()).unwrap();
    world.class(NODE, 50);
    world.class(NODE_V6, 50);
    world.set(4, 7, &[]);
    world.set(2, 8, &[]);
    world.isolate(4, 2);
    world
}

/// What a pod may begin with the node: over both families, by every kind of protocol.
fn to_node(port: u16) -> [(&'static str, Vec<u8>); 7] {
    [
        ("TCP", tcp((POD, port), (NODE, 10250), SYN)),
        ("UDP", udp((POD, port), (NODE, 10250))),
        ("a ping", icmp(POD, NODE, 8, 0, &[0, 7, 0, 1], b"x")),
        ("a message", icmp(POD, NODE, 13, 0, &[0; 4], &[0; 12])),
        ("GRE", world::ip4(POD, NODE, 47, &[0; 12])),
        ("TCP over IPv6", tcp6((POD_V6, port), (NODE_V6, 10250), SYN)),
        ("a ping over IPv6", icmp6(POD_V6, NODE_V6, 128, 0, &[0, 7, 0, 1], b"x")),
    ]
}

#[test]
fn a_policy_that_names_nodes_closes_the_own_one() {
    node::in_node(|directory| {
        let mut world = at_own_node(directory);
        let check = |world: &World, port, expect| {
            for (what, frame) in to_node(port) {
                world.egress(what, &frame, expect);
            }
        };
        check(&world, 4000, Ok(()));
        world.of_node(2, 50, 9, &[Rule(50, TCP, 443, 443, 10)]);
        world.filter.raise_epoch().unwrap();
        world.events();
        for (what, frame) in to_node(4001) {
            let verdict = world.verdict(Direction::Egress, &frame).map(drop);
            // The same ping is of a flow that had begun.
            let begun = what.starts_with("a ping") || what == "GRE";
            let reason = if begun { DropReason::Revoked } else { DropReason::EgressDenied };
            assert_eq!(verdict, Err(reason), "{what}");
            let events = world.events();
            let [event] = events[..] else { panic!("{what}: {events:?}") };
            assert_eq!((event.decision.rule(), event.decision.allowed()), (9, false), "{what}");
        }
        check(&world, 4002, EGRESS_DENIED);
        world.events();
        // What one of its rules allows, and nothing that came in by its ports.
        let answer = tcp((NODE, 443), (POD, 4003), SYN | ACK);
        world.egress("allowed", &tcp((POD, 4003), (NODE, 443), SYN), Ok(()));
        assert_eq!(world.events()[0].decision.rule(), 10);
        world.ingress("masqueraded", &answer, DENIED);
        assert_eq!(world.verdict_from(Direction::Ingress, &answer, 0).map(drop), Ok(()));
        world.filter.raise_epoch().unwrap();
        world.egress("and goes on", &tcp((POD, 4003), (NODE, 443), ACK), Ok(()));
        // Pods under other sets, and without any.
        world.set(3, 8, &[]);
        world.isolate(3, 3);
        check(&world, 4004, Ok(()));
        world.isolate(OPEN, OPEN);
        check(&world, 4005, Ok(()));
    });
}

#[test]
fn a_flow_to_the_own_node_ends_when_a_policy_names_nodes() {
    for (node_first, open_before) in [(true, true), (true, false), (false, true), (false, false)] {
        node::in_node(move |directory| {
            let mut world = at_own_node(directory);
            if open_before {
                world.isolate(OPEN, OPEN);
            }
            world.service(front(VIP, 443, UDP), 5, &[at(NODE, 6443)], 0);
            let made_here = |world: &World, frame: &[u8]| {
                world.verdict_from(Direction::Ingress, frame, 0).map(drop)
            };
            let flows = [
                (
                    tcp((POD, 4000), (NODE, 10250), SYN),
                    tcp((NODE, 10250), (POD, 4000), SYN | ACK),
                    tcp((POD, 4000), (NODE, 10250), ACK),
                ),
                (
                    udp((POD, 4001), (NODE, 53)),
                    udp((NODE, 53), (POD, 4001)),
                    udp((POD, 4001), (NODE, 53)),
                ),
                (
                    udp((POD, 4002), (VIP, 443)),
                    udp((NODE, 6443), (POD, 4002)),
                    udp((POD, 4002), (VIP, 443)),
                ),
                (
                    udp6((POD_V6, 4003), (NODE_V6, 53)),
                    udp6((NODE_V6, 53), (POD_V6, 4003)),
                    udp6((POD_V6, 4003), (NODE_V6, 53)),
                ),
            ];
            for (ask, answer, more) in &flows {
                world.egress("asks", ask, Ok(()));
                assert_eq!(made_here(&world, answer), Ok(()));
                world.egress("goes on", more, Ok(()));
            }
            world.of_node(2, 50, 9, &[]);
            world.isolate(4, 2);
            for (_, answer, more) in &flows {
                if node_first {
                    assert_eq!(made_here(&world, answer), Err(DropReason::Revoked));
                    world.egress("gone", more, EGRESS_DENIED);
                } else {
                    world.egress("revoked", more, Err(DropReason::Revoked));
                }
            }
            assert_eq!(world.counter(Counter::Revoked), 4);
        });
    }
}

#[test]
fn what_the_node_begins_is_exempt_whatever_a_policy_names() {
    node::in_node(|directory| {
        let mut world = at_own_node(directory);
        world.of_node(2, 50, 9, &[]);
        let made_here = |world: &World, frame: &[u8]| {
            world.verdict_from(Direction::Ingress, frame, 0).map(drop)
        };
        let probe = |flags| tcp((NODE, 40_000), (POD, 8080), flags);
        let answer = |flags| tcp((POD, 8080), (NODE, 40_000), flags);
        assert_eq!(made_here(&world, &probe(SYN)), Ok(()));
        world.egress("its answer", &answer(SYN | ACK), Ok(()));
        assert_eq!(made_here(&world, &probe(ACK)), Ok(()));
        world.isolate(4, 2);
        world.egress("another epoch", &answer(ACK), Ok(()));
        assert_eq!(made_here(&world, &probe(ACK)), Ok(()));
        let ask = udp6((NODE_V6, 40_001), (POD_V6, 161));
        assert_eq!(made_here(&world, &ask), Ok(()));
        world.filter.raise_epoch().unwrap();
        world.egress("over IPv6", &udp6((POD_V6, 161), (NODE_V6, 40_001)), Ok(()));
        // Without it the node's packets do not find the pod.
        let advertised = icmp6(POD_V6, NODE_V6, 136, 0, &[0x60, 0, 0, 0], &POD_V6.octets());
        world.egress("where the pod is", &advertised, Ok(()));
        // Of a flow that began before there was a table.
        let known_before = tcp((POD, 8080), (NODE, 40_002), ACK);
        world.egress("of an unknown flow", &known_before, EGRESS_DENIED);
        world.configure(|s| s.flags |= SettingFlags::LEARN);
        world.egress("while learning", &known_before, Ok(()));
        world.egress("a new one", &tcp((POD, 8081), (NODE, 40_002), SYN), EGRESS_DENIED);
        world.configure(|s| s.flags &= !SettingFlags::LEARN);
        world.filter.raise_epoch().unwrap();
        world.egress("as what the node began", &known_before, Ok(()));
    });
}

#[test]
fn front_ends_of_a_node_that_a_policy_names_are_what_they_were() {
    node::in_node(|directory| {
        let world = at_own_node(directory);
        world.set(2, 8, &[Rule(5, TCP, 8080, 8080, 12)]);
        world.of_node(2, 50, 9, &[Rule(50, TCP, 443, 443, 10)]);
        world.service(front(NODE, 30_080, TCP), 5, &[at(PEER, 8080)], 0);
        world.service(front(VIP, 8443, TCP), 6, &[at(NODE, 443)], 0);
        world.service(front(VIP, 8444, TCP), 7, &[at(NODE, 6443)], 0);
        world.service(front(VIP, 8445, TCP), 8, &[at(NODE, 30_080)], 0);
        let syn = |from, to, port| tcp((POD, from), (to, port), SYN);
        let translated = world.egress("a node port", &syn(4000, NODE, 30_080), Ok(()));
        assert_eq!(ends(&translated).1, (PEER, 8080));
        let unknown = Err(DropReason::UnknownService);
        world.egress("one that nobody has", &syn(4001, NODE, 30_081), unknown);
        let translated = world.egress("a back end on the node", &syn(4002, VIP, 8443), Ok(()));
        assert_eq!(ends(&translated).1, (NODE, 443));
        world.egress("another that is closed", &syn(4003, VIP, 8444), EGRESS_DENIED);
        let nested = Err(DropReason::NestedService);
        world.egress("one that leads to a node port", &syn(4004, VIP, 8445), nested);
    });
}

/// Rules say more to the node than to anybody else.
#[test]
fn what_is_said_of_the_node_counts_for_no_other_address() {
    node::in_node(|directory| {
        let world = at_own_node(directory);
        world.of_node(2, 50, 9, &[Rule(50, TCP, 443, 443, 10)]);
        world.class(OTHER, 50);
        let incomplete = Err(DropReason::TablesIncomplete);
        world.egress("another's", &tcp((POD, 4000), (OTHER, 443), SYN), incomplete);
        world.egress("the node's", &tcp((POD, 4001), (NODE, 443), SYN), Ok(()));
        world.filter.set_node_addresses(&[NODE_V6.into()].into()).unwrap();
        world.egress("the node's no more", &tcp((POD, 4002), (NODE, 443), SYN), incomplete);
        world.filter.raise_epoch().unwrap();
        let data = tcp((POD, 4001), (NODE, 443), ACK);
        world.egress("nor what it began", &data, Err(DropReason::Revoked));
    });
}
