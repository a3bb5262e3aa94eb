//! What a packet costs (`BPF_PROG_TEST_RUN`), beside an empty program and bare look-ups, in interleaved rounds.
//!
//! `cargo bench -p veni-datapath --features bpf --bench programs [-- -o json]`, as root. In namespaces of its own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends at the first surprise, and prints"
)]

use std::net::{IpAddr, Ipv4Addr};

use veni_datapath::bpf::{
    Direction, SettingFlags, Skb, Write,
    bare::{Bare, Family},
    table::{ANY_CLASS, Decision, PortRange, Profile, VerdictKey},
};

#[path = "../tests/support/node.rs"]
mod node;
#[path = "../tests/support/world.rs"]
mod world;

use world::{ACK, IFINDEX, PEER, PEER_V6, POD, POD_V6, SYN, TCP, VIP, World, ip6, tcp, tcp6, udp};

/// Addresses that have a class, as many as the incumbent was measured with.
const ADDRESSES: u32 = 60_000;
const ROUNDS: usize = 15;
/// Runs of a measurement that repeats one packet.
const REPEAT: u32 = 100_000;
/// Packets of a measurement with a fresh one each time.
const FRESH: u16 = 2000;

/// Flows that fill the table of half-open ones.
const FILL: u32 = 40_000;

const SKB: Skb = Skb { ifindex: IFINDEX, ingress_ifindex: 2, mark: 0 };

/// Measures once: nanoseconds.
type Measure<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// One thing that is measured.
struct Case<'a> {
    name: &'a str,
    measure: Measure<'a>,
    rounds: Vec<f64>,
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A world with this many rules in each set, this many Services and 60,000 addresses.
fn filled(directory: &std::path::Path, rules: u32, services: u32) -> World {
    let mut world = World::new(directory);
    let mut writes: Vec<Write> = (0..ADDRESSES)
        .map(|n| Write::ClassV4 {
            address: Ipv4Addr::from(0x0b00_0000 + n).octets(),
            class: 10 + n % 5000,
        })
        .collect();
    writes.push(Write::ClassV4 { address: PEER.octets(), class: 5 });
    writes.push(Write::ClassV6 { address: PEER_V6.octets(), class: 5 });
    writes.extend((0..64).map(|n| Write::CidrV4 { prefix: [12, n, 0, 0], length: 16, class: 3 }));
    let none = PortRange {
        protocol: 0,
        of_node: 0,
        first: 1,
        last: 0,
        reserved2: 0,
        decision: Decision::deny(0),
    };
    let mut ranges = [none; 8];
    ranges[0] =
        PortRange { protocol: TCP, first: 80, last: 80, decision: Decision::allow(1), ..none };
    ranges[1] =
        PortRange { protocol: TCP, first: 8080, last: 8080, decision: Decision::allow(1), ..none };
    writes.push(Write::Profile {
        number: 1,
        profile: Profile { otherwise: Decision::deny(2), count: 2, ranges },
    });
    for set in [1, 2] {
        writes.push(Write::Verdict { key: VerdictKey { set, class: ANY_CLASS }, profile: 1 });
        writes.extend(
            (0..rules)
                .map(|n| Write::Verdict { key: VerdictKey { set, class: 5 + n }, profile: 1 }),
        );
    }
    world.write(&writes);
    for n in 0..services {
        let front = IpAddr::from(Ipv4Addr::from(u32::from(VIP) + n));
        world.service((front, 80, TCP), 1 + n, &[(IpAddr::from(PEER), 8080)], 0);
    }
    world.configure(|s| {
        s.flags &= !(SettingFlags::EVENTS_ALLOWED | SettingFlags::EVENTS_DENIED);
        s.half_open_cap = u32::MAX;
    });
    world.isolate(1, 2);
    world
}

/// Takes a flow through its beginning, so that the next packet is of an established one.
fn establish(world: &World, syn: &[u8], answer: &[u8], ack: &[u8]) {
    world.egress("SYN", syn, Ok(()));
    world.ingress("SYN ACK", answer, Ok(()));
    world.egress("ACK", ack, Ok(()));
}

fn repeated<'a>(world: &'a World, direction: Direction, frame: Vec<u8>) -> Measure<'a> {
    Box::new(move || world.filter.run(direction, &frame, SKB, REPEAT).unwrap().nanos.into())
}

/// With events as they are by default, of which this packet's flood has long used up the pod's share.
fn with_events(world: &World, frame: Vec<u8>) -> Measure<'_> {
    let denied = SettingFlags::EVENTS_DENIED;
    Box::new(move || {
        world.configure(|s| {
            (s.flags, s.event_rate, s.event_burst) = (s.flags | denied, 100, 200);
        });
        let nanos = world.filter.run(Direction::Ingress, &frame, SKB, REPEAT).unwrap().nanos;
        world.configure(|s| s.flags &= !denied);
        nanos.into()
    })
}

/// The median over packets of which each is run once.
fn fresh<'a>(mut run: impl FnMut(u16) -> f64 + 'a) -> Measure<'a> {
    Box::new(move || median(&(0..FRESH).map(&mut run).collect::<Vec<_>>()))
}

/// As [`bare_once`].
fn new_flows(world: &World) -> Measure<'_> {
    for n in 0..FILL {
        let from = Ipv4Addr::from(0x0b00_0000 + (n >> 14));
        let port = u16::try_from(n & 0x3fff).unwrap();
        let frame = tcp((from, 40_000 + port), (POD, 80), SYN);
        world.filter.run(Direction::Ingress, &frame, SKB, 1).unwrap();
    }
    let mut round = 0u8;
    fresh(move |n| {
        if n == 0 {
            round = round.wrapping_add(1);
        }
        let from = Ipv4Addr::new(11, 0, round, 7);
        let frame = tcp((from, 1000 + n), (POD, 80), SYN);
        world.filter.run(Direction::Ingress, &frame, SKB, 1).unwrap().nanos.into()
    })
}

/// Over a full table, as a busy node has it: an insertion is an eviction.
fn bare_once(bare: &Bare, frame: Vec<u8>) -> Measure<'_> {
    bare.run(&frame, SKB, FILL).unwrap();
    fresh(move |_| bare.run(&frame, SKB, 1).unwrap().nanos.into())
}

fn cases<'a>(small: &'a World, bares: &'a [Bare; 4]) -> Vec<Case<'a>> {
    let data = tcp((POD, 4000), (PEER, 80), ACK);
    let data6 = tcp6((POD_V6, 4000), (PEER_V6, 80), ACK);
    establish(
        small,
        &tcp((POD, 4000), (PEER, 80), SYN),
        &tcp((PEER, 80), (POD, 4000), SYN | ACK),
        &data,
    );
    establish(
        small,
        &tcp6((POD_V6, 4000), (PEER_V6, 80), SYN),
        &tcp6((PEER_V6, 80), (POD_V6, 4000), SYN | ACK),
        &data6,
    );
    let headers = [[60, 0, 1, 4, 0, 0, 0, 0]; 5].concat();
    let behind = [&headers[..], &[TCP, 0, 1, 4, 0, 0, 0, 0], &data6[54..]].concat();
    let behind = ip6(POD_V6, PEER_V6, 60, &behind);
    let service = tcp((POD, 4001), (VIP, 80), ACK);
    establish(
        small,
        &tcp((POD, 4001), (VIP, 80), SYN),
        &tcp((PEER, 8080), (POD, 4001), SYN | ACK),
        &service,
    );
    let bare = |n: usize| -> Measure<'a> {
        let frame = data.clone();
        Box::new(move || bares[n].run(&frame, SKB, REPEAT).unwrap().nanos.into())
    };
    // Of a class with an entry in both worlds, and of one that has the set's own answer in the smaller one.
    let (known, default) = (Ipv4Addr::new(11, 0, 0, 0), Ipv4Addr::new(11, 0, 0, 9));
    let told = tcp((known, 4000), (POD, 22), SYN);
    let all: Vec<(&str, Measure<'a>)> = vec![
        ("empty program", bare(0)),
        ("bare: LRU and two LPM look-ups, v4", bare(1)),
        ("bare: LRU and two LPM look-ups, v6", bare(2)),
        ("established flow, v4", repeated(small, Direction::Egress, data.clone())),
        (
            "established flow, v4, its answers",
            repeated(small, Direction::Ingress, tcp((PEER, 80), (POD, 4000), ACK)),
        ),
        ("established flow, v6, six extension headers", repeated(small, Direction::Egress, behind)),
        ("established flow, v6", repeated(small, Direction::Egress, data6)),
        ("established flow to a Service", repeated(small, Direction::Egress, service)),
        (
            "denied packet, v4",
            repeated(small, Direction::Ingress, tcp((known, 4000), (POD, 22), SYN)),
        ),
        (
            "denied packet, v4, by the set's default",
            repeated(small, Direction::Ingress, tcp((default, 4000), (POD, 22), SYN)),
        ),
        ("denied packet, v4, events over their rate", with_events(small, told)),
        ("denied datagram, v4", repeated(small, Direction::Ingress, udp((known, 4000), (POD, 22)))),
        (
            "denied packet, v6",
            repeated(small, Direction::Ingress, tcp6((PEER_V6, 4000), (POD_V6, 22), SYN)),
        ),
        ("bare, once: look-ups and an insertion", bare_once(&bares[3], data.clone())),
        ("new flow, once, allowed", new_flows(small)),
    ];
    all.into_iter().map(|(name, measure)| Case { name, measure, rounds: Vec::new() }).collect()
}

fn measure(mut cases: Vec<Case<'_>>) -> Vec<(String, f64)> {
    for _ in 0..ROUNDS {
        for case in &mut cases {
            let nanos = (case.measure)();
            case.rounds.push(nanos);
        }
    }
    cases.iter().map(|case| (case.name.to_owned(), median(&case.rounds))).collect()
}

fn all(rules: u32, services: u32) -> Vec<(String, f64)> {
    let (send, receive) = std::sync::mpsc::channel();
    node::in_node(move |directory| {
        let world = filled(directory, rules, services);
        let bares = [
            Bare::empty().unwrap(),
            Bare::lookups(Family::V4, ADDRESSES).unwrap(),
            Bare::lookups(Family::V6, ADDRESSES).unwrap(),
            Bare::lookups_and_insert(Family::V4, ADDRESSES).unwrap(),
        ];
        send.send(measure(cases(&world, &bares))).unwrap();
    });
    receive.recv().expect("measured")
}

const BARE_V4: &str = "bare: LRU and two LPM look-ups, v4";
const BARE_V6: &str = "bare: LRU and two LPM look-ups, v6";
const BARE_ONCE: &str = "bare, once: look-ups and an insertion";
const EMPTY: &str = "empty program";

/// What is bound, beside what, and by how much: of a run with few rules. A bound of none is for comparison.
const RATIOS: [(&str, &str, Option<f64>); 10] = [
    ("established flow, v4", BARE_V4, Some(1.4)),
    ("established flow, v6", BARE_V6, Some(1.75)),
    ("new flow, once, allowed", BARE_ONCE, Some(1.3)),
    ("denied packet, v4", BARE_V4, None),
    ("denied packet, v4", EMPTY, None),
    ("denied packet, v4, events over their rate", BARE_V4, None),
    ("denied packet, v4, events over their rate", EMPTY, None),
    ("denied datagram, v4", BARE_V4, None),
    ("denied datagram, v4", EMPTY, None),
    ("denied packet, v6", BARE_V6, None),
];

type Medians = [(String, f64)];

fn of(medians: &Medians, name: &str) -> f64 {
    medians.iter().find(|(other, _)| other == name).unwrap().1
}

/// How a case grows with rules and Services, each beside the bare program of its own run: the machine's mood is in both.
fn growth(small: &Medians, big: &Medians, name: &str) -> f64 {
    let bare = if name.contains("once") { BARE_ONCE } else { BARE_V4 };
    (of(big, name) / of(big, bare)) / (of(small, name) / of(small, bare))
}

fn print_json(small: &Medians, big: &Medians) {
    let line = |name: &str, unit: &str, value: f64| {
        format!("{{\"name\":\"{name}\",\"unit\":\"{unit}\",\"value\":{value:.2}}}")
    };
    let mut lines = Vec::new();
    for (medians, rules) in [(small, "10"), (big, "10000")] {
        let name = |name: &str| format!("{name}, {rules} rules and Services");
        lines.extend(medians.iter().map(|(case, nanos)| line(&name(case), "ns", *nanos)));
    }
    lines.extend(
        small.iter().map(|(name, _)| {
            line(&format!("growth of: {name}"), "ratio", growth(small, big, name))
        }),
    );
    lines.extend(RATIOS.map(|(name, base, _)| {
        line(&format!("{name} / {base}"), "ratio", of(small, name) / of(small, base))
    }));
    println!("[{}]", lines.join(","));
}

fn print_table(small: &Medians, big: &Medians) {
    println!(
        "{:<44} {:>9} {:>12} {:>8}",
        "nanoseconds, median of rounds", "10 rules", "10,000 rules", "growth"
    );
    for ((name, few), (_, many)) in small.iter().zip(big) {
        println!("{name:<44} {few:>9.0} {many:>12.0} {:>8.2}", growth(small, big, name));
    }
    println!();
    for (name, base, bound) in RATIOS {
        let bound = bound.map_or_else(String::new, |bound| format!("  (≤ {bound})"));
        let ratio = of(small, name) / of(small, base);
        println!("{:<84} {ratio:>5.2}{bound}", format!("{name} / {base}"));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let json = arguments.windows(2).any(|pair| pair == ["-o", "json"]);
    let (small, big) = (all(10, 10), all(10_000, 10_000));
    if json { print_json(&small, &big) } else { print_table(&small, &big) }
}
