//! Verdicts on single packets, by the real programs over tables that a test fills. The rows of the incumbent's wrong
//! verdicts, with the right ones, are in `support/incumbent.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skips"
)]
#![cfg(feature = "bpf")]

use veni_datapath::bpf::{Counter, DropReason, SettingFlags};

#[path = "support/given.rs"]
mod given;
#[path = "support/incumbent.rs"]
mod incumbent;
#[path = "support/node.rs"]
mod node;
#[path = "support/world.rs"]
mod world;

use given::{DENIED, EGRESS_DENIED, isolated};
use world::{
    ACK, ICMP, ICMPV6, OPEN, OTHER, OTHER_V6, PEER, PEER_V6, POD, POD_V6, Rule, SYN, TCP, UDP,
    World, cut, fragment, icmp, icmp6, ip4, ip6, tcp, tcp6, udp, udp6, with_options,
};

#[test]
fn ports_and_peers_are_judged() {
    node::in_node(|directory| {
        let world = isolated(directory);
        world.ingress("TCP/80", &tcp((PEER, 1000), (POD, 80), SYN), Ok(()));
        world.ingress("TCP/22", &tcp((PEER, 1000), (POD, 22), SYN), DENIED);
        world.ingress("TCP/80 from another", &tcp((OTHER, 1000), (POD, 80), SYN), DENIED);
        world.ingress("UDP/53", &udp((OTHER, 1000), (POD, 53)), Ok(()));
        world.ingress("TCP/53", &tcp((OTHER, 1000), (POD, 53), SYN), DENIED);
        world.ingress("v6 TCP/80", &tcp6((PEER_V6, 1000), (POD_V6, 80), SYN), Ok(()));
        world.ingress("v6 TCP/22", &tcp6((PEER_V6, 1000), (POD_V6, 22), SYN), DENIED);
        world.ingress("v6 UDP/53", &udp6((OTHER_V6, 1000), (POD_V6, 53)), Ok(()));
    });
}

#[test]
fn options_do_not_hide_ports() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let denied = tcp((PEER, 1000), (POD, 22), SYN);
        world.ingress(
            "TCP/22, options look like ports",
            &with_options(&denied, &[1, 1, 0, 80]),
            DENIED,
        );
        let allowed = tcp((PEER, 1000), (POD, 80), SYN);
        world.ingress("TCP/80 behind NOPs", &with_options(&allowed, &[1, 1, 1, 1]), Ok(()));
        for option in [131, 137] {
            let route = with_options(&allowed, &[option, 7, 4, 10, 0, 0, 1, 0]);
            world.ingress("a source route", &route, Err(DropReason::SourceRoute));
        }
    });
}

#[test]
fn fragments_follow_their_first() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let whole = udp((OTHER, 1000), (POD, 53));
        world.ingress(
            "a later one alone",
            &fragment(&whole, 7, false, 64),
            Err(DropReason::FragmentUnknown),
        );
        world.ingress("the first", &fragment(&whole, 7, true, 0), Ok(()));
        world.ingress("the second", &fragment(&whole, 7, true, 64), Ok(()));
        world.ingress("the last", &fragment(&whole, 7, false, 128), Ok(()));
        world.ingress(
            "of another datagram",
            &fragment(&whole, 8, false, 64),
            Err(DropReason::FragmentUnknown),
        );
        let denied = udp((OTHER, 1000), (POD, 54));
        world.ingress("a denied first", &fragment(&denied, 9, true, 0), DENIED);
        world.ingress(
            "what follows it",
            &fragment(&denied, 9, false, 64),
            Err(DropReason::FragmentUnknown),
        );
        // A TCP fragment whose payload looks like an allowed port.
        let tail = tcp((PEER, 80), (POD, 80), SYN);
        world.ingress(
            "TCP that no first was seen of",
            &fragment(&tail, 10, false, 64),
            Err(DropReason::FragmentUnknown),
        );
        world.ingress(
            "one that overwrites the header",
            &fragment(&tail, 10, false, 8),
            Err(DropReason::Malformed),
        );
    });
}

#[test]
fn fragments_follow_their_first_over_ipv6() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let datagram = udp6((OTHER_V6, 1000), (POD_V6, 53))[54..].to_vec();
        let piece = |offset: u16, more: u16, id: u8| {
            let [a, b] = (offset | more).to_be_bytes();
            let header = [UDP, 0, a, b, 0, 0, 0, id];
            ip6(OTHER_V6, POD_V6, 44, &[&header[..], &datagram].concat())
        };
        world.ingress("alone", &piece(64, 0, 1), Err(DropReason::FragmentUnknown));
        world.ingress("first", &piece(0, 1, 1), Ok(()));
        world.ingress("later", &piece(64, 0, 1), Ok(()));
        world.ingress("atomic", &piece(0, 0, 2), Ok(()));
    });
}

#[test]
fn protocol_zero_is_no_wildcard() {
    node::in_node(|directory| {
        let world = isolated(directory);
        world.ingress("IPv4 protocol 0", &ip4(PEER, POD, 0, &[0; 40]), DENIED);
        world.ingress("IPv4 protocol 99", &ip4(PEER, POD, 99, &[0; 40]), DENIED);
    });
}

#[test]
fn extension_headers_are_walked() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let segment = |port| tcp6((PEER_V6, 1000), (POD_V6, port), SYN)[54..].to_vec();
        let behind = |first: u8, headers: &[&[u8]], port| {
            ip6(PEER_V6, POD_V6, first, &[headers.concat(), segment(port)].concat())
        };
        let hop: &[u8] = &[TCP, 0, 1, 4, 0, 0, 0, 0];
        world.ingress("TCP/22 behind hop-by-hop", &behind(0, &[hop], 22), DENIED);
        world.ingress("TCP/80 behind hop-by-hop", &behind(0, &[hop], 80), Ok(()));
        let to = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
        let five: Vec<Vec<u8>> = vec![to(60), to(60), to(60), to(60), to(TCP)];
        let five: Vec<&[u8]> = five.iter().map(Vec::as_slice).collect();
        world.ingress("five headers", &behind(60, &five, 80), Ok(()));
        let seven: Vec<Vec<u8>> = (0..6).map(|_| to(60)).chain([to(TCP)]).collect();
        let seven: Vec<&[u8]> = seven.iter().map(Vec::as_slice).collect();
        world.ingress("seven", &behind(60, &seven, 80), Err(DropReason::ExtensionHeader));
        world.ingress(
            "hop-by-hop twice",
            &behind(0, &[&to(0), hop], 80),
            Err(DropReason::ExtensionHeader),
        );
        let routed: &[u8] = &[TCP, 0, 0, 1, 0, 0, 0, 0];
        world.ingress(
            "a route not walked",
            &behind(43, &[routed], 80),
            Err(DropReason::SourceRoute),
        );
        let long: &[u8] = &[TCP, 200, 1, 4, 0, 0, 0, 0];
        world.ingress(
            "longer than the packet",
            &behind(60, &[long], 80),
            Err(DropReason::Truncated),
        );
        world.ingress("no next header", &behind(60, &[&to(59)], 80), DENIED);
    });
}

#[test]
fn cut_headers_are_dropped() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let frame = tcp((PEER, 1000), (POD, 22), SYN);
        world.ingress("TCP of 8 bytes", &cut(&frame, 28), Err(DropReason::Truncated));
        let allowed = tcp((PEER, 1000), (POD, 80), SYN);
        world.ingress("TCP/80 of 8 bytes", &cut(&allowed, 28), Err(DropReason::Truncated));
        // What lies behind the packet's own length is padding.
        let padded = [cut(&allowed, 28), vec![0; 40]].concat();
        world.ingress("padding is no header", &padded, Err(DropReason::Truncated));
        world.ingress(
            "UDP of 4 bytes",
            &cut(&udp((OTHER, 1), (POD, 53)), 24),
            Err(DropReason::Truncated),
        );
        let mut offset = allowed.clone();
        offset[46] = 0x40;
        world.ingress("a TCP header of 4 words", &offset, Err(DropReason::Malformed));
    });
}

#[test]
fn icmp_errors_belong_to_the_flow_that_they_quote() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let router = "10.9.9.9".parse().unwrap();
        let sent = tcp((POD, 4000), (PEER, 443), SYN);
        let error = |quoted: &[u8]| icmp(router, POD, 3, 4, &[0, 0, 5, 220], &quoted[14..42]);
        world.ingress("about nothing", &error(&sent), DENIED);
        world.egress("the flow", &sent, Ok(()));
        world.ingress("fragmentation needed", &error(&sent), Ok(()));
        world.ingress("about another port", &error(&tcp((POD, 4001), (PEER, 443), SYN)), DENIED);
        world.ingress("about somebody else", &error(&tcp((OTHER, 4000), (PEER, 443), SYN)), DENIED);
        world.ingress("cut", &icmp(router, POD, 3, 4, &[0; 4], &sent[14..30]), DENIED);
        world.ingress("echo", &icmp(PEER, POD, 8, 0, &[0, 1, 0, 1], b""), DENIED);
        let sent = tcp6((POD_V6, 4000), (PEER_V6, 443), SYN);
        let error = |quoted: &[u8]| {
            icmp6("fd00:9::9".parse().unwrap(), POD_V6, 2, 0, &[0, 0, 5, 0], &quoted[14..74])
        };
        world.ingress("v6 about nothing", &error(&sent), DENIED);
        world.egress("the v6 flow", &sent, Ok(()));
        world.ingress("packet too big", &error(&sent), Ok(()));
    });
}

#[test]
fn echoes_are_flows_and_judged_by_type() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.egress("a request", &icmp(POD, PEER, 8, 0, &[0, 7, 0, 1], b"x"), Ok(()));
        world.ingress("its reply", &icmp(PEER, POD, 0, 0, &[0, 7, 0, 1], b"x"), Ok(()));
        world.ingress("a reply to nothing", &icmp(PEER, POD, 0, 0, &[0, 8, 0, 1], b"x"), DENIED);
        world.ingress("a request", &icmp(PEER, POD, 8, 0, &[0, 7, 0, 1], b"x"), DENIED);
        world.set(
            2,
            9,
            &[Rule(5, ICMP, 8 << 8, 8 << 8, 3), Rule(5, ICMPV6, 128 << 8, 128 << 8, 4)],
        );
        world.isolate(2, OPEN);
        world.ingress("a request by rule", &icmp(PEER, POD, 8, 0, &[0, 9, 0, 1], b"x"), Ok(()));
        world.ingress("timestamp", &icmp(PEER, POD, 13, 0, &[0, 9, 0, 1], &[0; 12]), DENIED);
        world.ingress("v6 by rule", &icmp6(PEER_V6, POD_V6, 128, 0, &[0, 9, 0, 1], b"x"), Ok(()));
        world.ingress(
            "v6 from another",
            &icmp6(OTHER_V6, POD_V6, 128, 0, &[0, 9, 0, 1], b"x"),
            DENIED,
        );
    });
}

#[test]
fn cut_ipv6_headers_are_dropped() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let whole = tcp6((PEER_V6, 1000), (POD_V6, 80), SYN);
        let cut = |length: usize| ip6(PEER_V6, POD_V6, TCP, &whole[54..54 + length]);
        world.ingress("whole", &cut(20), Ok(()));
        for length in [0, 4, 8, 13, 19] {
            world.ingress("TCP cut", &cut(length), Err(DropReason::Truncated));
        }
        let mut long = whole.clone();
        long[18..20].copy_from_slice(&8u16.to_be_bytes());
        world.ingress("padding is no header", &long, Err(DropReason::Truncated));
        let extension = ip6(PEER_V6, POD_V6, 60, &[TCP, 0, 1, 4]);
        world.ingress("an extension header cut", &extension, Err(DropReason::Truncated));
        let six: Vec<u8> = (0..6)
            .flat_map(|n| [if n == 5 { TCP } else { 60 }, 0, 1, 4, 0, 0, 0, 0])
            .chain(whole[54..].iter().copied())
            .collect();
        world.ingress("six extension headers, the most", &ip6(PEER_V6, POD_V6, 60, &six), Ok(()));
    });
}

/// An error opens no address but that of the packet which it quotes.
#[test]
fn a_pod_complains_only_to_whom_it_heard_from() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.set(2, 8, &[]);
        world.isolate(1, 2);
        let heard = tcp((PEER, 1000), (POD, 80), SYN);
        world.ingress("SYN", &heard, Ok(()));
        let error = |to| icmp(POD, to, 3, 3, &[0; 4], &heard[14..42]);
        world.egress("to the peer", &error(PEER), Ok(()));
        world.egress("to another, with the peer's quotation", &error(OTHER), EGRESS_DENIED);
        let heard = tcp6((PEER_V6, 1000), (POD_V6, 80), SYN);
        world.ingress("SYN", &heard, Ok(()));
        let error = |to| icmp6(POD_V6, to, 1, 4, &[0; 4], &heard[14..74]);
        world.egress("to the peer", &error(PEER_V6), Ok(()));
        world.egress("to another, with the peer's quotation", &error(OTHER_V6), EGRESS_DENIED);
    });
}

/// Whatever the identifier, zero included: a ping out opens no ping in.
#[test]
fn a_ping_out_opens_no_ping_in() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        for id in [[0, 0], [0xff, 0xff], [0, 1]] {
            world.isolate(1, OPEN);
            let echo = |from, to, kind| icmp(from, to, kind, 0, &[id[0], id[1], 0, 1], b"x");
            world.egress("a ping out", &echo(POD, OTHER, 8), Ok(()));
            world.ingress("its answer", &echo(OTHER, POD, 0), Ok(()));
            world.ingress("a ping in", &echo(OTHER, POD, 8), DENIED);
            world.egress("a ping out", &echo(POD, OTHER, 8), Ok(()));
        }
    });
}

/// A receiver that takes the later of two overlapping fragments would find another header than the one that was judged.
#[test]
fn headers_that_a_later_fragment_could_overwrite_are_refused() {
    node::in_node(|directory| {
        let world = isolated(directory);
        let options: Vec<u8> = [TCP, 0, 1, 4, 0, 0, 0, 0]
            .into_iter()
            .chain(tcp6((PEER_V6, 1000), (POD_V6, 80), SYN)[54..].iter().copied())
            .collect();
        let whole = ip6(PEER_V6, POD_V6, 60, &options);
        world.ingress("whole", &whole, Ok(()));
        let fragmented = |offset: u16, more: u16| {
            let [high, low] = (offset | more).to_be_bytes();
            ip6(PEER_V6, POD_V6, 44, &[&[60, 0, high, low, 0, 0, 0, 7], &options[..]].concat())
        };
        let refused = Err(DropReason::ExtensionHeader);
        world.ingress("the first", &fragmented(0, 1), refused);
        world.ingress("a later one", &fragmented(16, 0), refused);
        world.ingress("the only one", &fragmented(0, 0), Ok(()));
    });
}

#[test]
fn metadata_can_be_closed() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        let metadata = tcp((POD, 4000), ("169.254.169.254".parse().unwrap(), 80), SYN);
        let metadata6 = tcp6((POD_V6, 4000), ("fd00:ec2::254".parse().unwrap(), 80), SYN);
        world.egress("open by default", &metadata, Ok(()));
        world.configure(|s| s.flags |= SettingFlags::METADATA_CLOSED);
        world.egress("closed", &metadata, Err(DropReason::Metadata));
        world.egress("closed, v6", &metadata6, Err(DropReason::Metadata));
        world.egress("nothing else", &tcp((POD, 4000), (PEER, 80), SYN), Ok(()));
        world.class(std::net::Ipv4Addr::new(169, 254, 169, 254), 7);
        world.set(2, 0, &[Rule(7, TCP, 80, 80, 21)]);
        world.isolate(1, 2);
        world.egress("opened by a rule", &metadata, Ok(()));
        world.egress("not for v6", &metadata6, EGRESS_DENIED);
    });
}

#[test]
fn neighbour_discovery_lives_and_forgeries_do_not() {
    node::in_node(|directory| {
        let mut world = World::new(directory);
        world.set(1, 9, &[]);
        world.isolate(1, 1);
        let own: std::net::Ipv6Addr = "fe80::bb:1".parse().unwrap();
        let all = "ff02::2".parse().unwrap();
        let host: std::net::Ipv6Addr = "fe80::aa:1".parse().unwrap();
        let advertise = |target: std::net::Ipv6Addr| {
            icmp6(own, host, 136, 0, &[0x60, 0, 0, 0], &target.octets())
        };
        let check = |world: &World| {
            world.egress("router solicitation", &icmp6(own, all, 133, 0, &[0; 4], b""), Ok(()));
            let probe = icmp6(
                "::".parse().unwrap(),
                "ff02::1:ff00:1".parse().unwrap(),
                135,
                0,
                &[0; 4],
                &own.octets(),
            );
            world.egress("duplicate address detection", &probe, Ok(()));
            world.egress("advertisement", &advertise(own), Ok(()));
            world.egress(
                "a router's",
                &icmp6(own, all, 134, 0, &[0; 4], &[0; 8]),
                Err(DropReason::NeighbourDiscovery),
            );
            world.egress(
                "another's address",
                &advertise(PEER_V6),
                Err(DropReason::NeighbourDiscovery),
            );
            let report = [&[0, 5, 2, 0, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat();
            let report = [&[ICMPV6, 0][..], &report[2..]].concat();
            world.egress(
                "listener report",
                &ip6(own, "ff02::16".parse().unwrap(), 0, &report),
                Ok(()),
            );
            let mut asked = icmp6(host, own, 135, 0, &[0; 4], &own.octets());
            asked[..6].copy_from_slice(&world::POD_MAC);
            asked[6..12].copy_from_slice(&world::HOST_MAC);
            world.ingress("solicited", &asked, Ok(()));
        };
        check(&world);
        world.egress("its own address", &advertise(POD_V6), Ok(()));
        world.egress(
            "discovery that would be forwarded",
            &icmp6(POD_V6, PEER_V6, 135, 0, &[0; 4], &[0; 16]),
            EGRESS_DENIED,
        );
        world.policy.address_v6 = None;
        world.isolate(1, 1);
        check(&world);
        world.egress(
            "IPv6 without an address",
            &tcp6((POD_V6, 1), (PEER_V6, 80), SYN),
            Err(DropReason::Ipv6),
        );
        world.egress(
            "from its link-local one",
            &ip6(own, PEER_V6, UDP, &[0; 8]),
            Err(DropReason::Ipv6),
        );
    });
}

#[test]
fn what_is_not_sent_to_the_pod_does_not_reach_it() {
    node::in_node(|directory| {
        let world = World::new(directory);
        let foreign = tcp((PEER, 1000), (OTHER, 80), SYN);
        world.ingress("another's address", &foreign, Err(DropReason::DestinationAddress));
        let foreign = tcp6((PEER_V6, 1000), (OTHER_V6, 80), SYN);
        world.ingress("another's v6 address", &foreign, Err(DropReason::DestinationAddress));
        let spoofed = tcp6((POD_V6, 1000), (PEER_V6, 80), SYN);
        let spoofed = [&spoofed[..22], &OTHER_V6.octets(), &spoofed[38..]].concat();
        world.egress("a spoofed v6 source", &spoofed, Err(DropReason::SourceAddress));
    });
}

#[test]
fn events_name_the_rule_and_the_reason() {
    node::in_node(|directory| {
        let world = isolated(directory);
        world.ingress("allowed", &tcp((PEER, 1000), (POD, 80), SYN), Ok(()));
        world.ingress("again", &tcp((PEER, 1000), (POD, 80), SYN), Ok(()));
        world.ingress("denied", &tcp((PEER, 1000), (POD, 22), SYN), DENIED);
        let events = world.events();
        let [allowed, denied] = events[..] else { panic!("{events:?}") };
        assert_eq!(
            (allowed.reason, allowed.decision.rule(), allowed.class),
            (veni_datapath::bpf::event::ALLOWED, 11, 5)
        );
        assert_eq!(
            (allowed.slot, allowed.incarnation),
            (world.identity.slot, world.identity.incarnation)
        );
        assert_eq!(
            (allowed.local_port, allowed.remote_port, allowed.protocol, allowed.family),
            (80, 1000, TCP, 4)
        );
        assert_eq!(allowed.remote[..4], PEER.octets());
        assert_eq!(u32::from(denied.reason), DropReason::IngressDenied.slot());
        assert_eq!(
            (denied.decision.rule(), denied.decision.allowed(), denied.local_port),
            (9, false, 22)
        );
        world.configure(|s| (s.event_rate, s.event_burst) = (0, 0));
        let state = world.filter.pod_state(world.identity.slot).unwrap();
        let mut sent = 0;
        for port in 0..200 {
            world.ingress("denied", &tcp((PEER, 2000 + port), (POD, 22), SYN), DENIED);
            sent += world.events().len();
        }
        let after = world.filter.pod_state(world.identity.slot).unwrap();
        assert_eq!(after.suppressed - state.suppressed + u64::try_from(sent).unwrap(), 200);
        assert_eq!(world.counter(Counter::EventsSuppressed), after.suppressed);
        assert_eq!(world.counter(Counter::FlowsDenied), 201, "counted all the same");
    });
}

#[test]
fn an_event_tells_of_the_flow_that_a_change_ended() {
    node::in_node(|directory| {
        let mut world = isolated(directory);
        world.ingress("SYN", &tcp6((PEER_V6, 1000), (POD_V6, 80), SYN), Ok(()));
        world.egress("SYN ACK", &tcp6((POD_V6, 80), (PEER_V6, 1000), SYN | ACK), Ok(()));
        world.set(3, 19, &[]);
        world.isolate(3, OPEN);
        let answer = tcp6((POD_V6, 80), (PEER_V6, 1000), ACK);
        world.egress("revoked", &answer, Err(DropReason::Revoked));
        world.configure(|s| s.flags &= !SettingFlags::EVENTS_DENIED);
        world.ingress("not told", &tcp((PEER, 1), (POD, 1), SYN), DENIED);
        world.configure(|s| s.flags = SettingFlags::EVENTS_DENIED);
        world.isolate(1, OPEN);
        world.ingress("allowed, not told", &tcp((PEER, 2), (POD, 80), SYN), Ok(()));
        let events = world.events();
        let [allowed, revoked] = events[..] else { panic!("{events:?}") };
        assert_eq!((allowed.family, allowed.revoked), (6, 0));
        assert_eq!((revoked.family, revoked.revoked, revoked.decision.rule()), (6, 1, 19));
        assert_eq!(u32::from(revoked.reason), DropReason::Revoked.slot());
        assert_eq!((revoked.remote, revoked.local_port), (PEER_V6.octets(), 80));
    });
}

#[test]
fn tables_that_lack_something_refuse() {
    node::in_node(|directory| {
        let mut world = World::new(directory);
        world.isolate(77, OPEN);
        let syn = tcp((PEER, 1000), (POD, 80), SYN);
        world.ingress("a set that is not there", &syn, Err(DropReason::TablesIncomplete));
    });
}

/// What an error quotes may be no flow of anybody's: such an error is a message, judged by its type and code.
#[test]
fn an_error_about_what_cannot_be_followed_is_a_message_like_any_other() {
    node::in_node(|directory| {
        let mut world = World::new(directory);
        world.class(OTHER, 6);
        world.class(OTHER_V6, 6);
        let timestamp = ip4(POD, PEER, ICMP, &[13, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
        let whole = udp((POD, 4000), (PEER, 53));
        let fragment = fragment(&whole, 7, false, 64);
        let about = |quoted: &[u8]| icmp(OTHER, POD, 3, 1, &[0; 4], quoted);
        let errors = [
            ("a timestamp", about(&timestamp[14..])),
            ("a later fragment", about(&fragment[14..42])),
            ("a cut header", about(&whole[14..36])),
            ("a cut IP header", about(&whole[14..30])),
            ("nothing", about(&[])),
            (
                "a solicitation",
                icmp6(OTHER_V6, POD_V6, 1, 0, &[0; 4], &{
                    let quoted = icmp6(POD_V6, PEER_V6, 128, 0, &[0; 4], b"x");
                    let mut quoted = quoted[14..].to_vec();
                    quoted[40] = 139;
                    quoted
                }),
            ),
        ];
        for (what, error) in &errors {
            world.ingress(what, error, Ok(()));
        }
        let sent = icmp(POD, OTHER, 3, 1, &[0; 4], &timestamp[14..]);
        world.egress("from the pod", &sent, Ok(()));
        world.set(1, 9, &[]);
        world.set(2, 8, &[]);
        world.isolate(1, 2);
        for (what, error) in &errors {
            world.ingress(what, error, DENIED);
        }
        world.egress("from the pod", &sent, EGRESS_DENIED);
        let unreachable = 3 << 8 | 1;
        world.set(
            3,
            9,
            &[Rule(6, ICMP, unreachable, unreachable, 1), Rule(6, ICMPV6, 1 << 8, 1 << 8, 2)],
        );
        world.isolate(3, 3);
        for (what, error) in &errors {
            world.ingress(what, error, Ok(()));
        }
        world.egress("from the pod", &sent, Ok(()));
        let other = icmp(OTHER, POD, 11, 0, &[0; 4], &timestamp[14..]);
        world.ingress("of another type", &other, DENIED);
    });
}
