//! The programs on single frames, with one pod and tables that a test fills: no interface, no traffic.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use etherparse::PacketBuilder;
use veni_core::{marks::EniMarkMask, net::Mac};
use veni_datapath::bpf::{
    Action, Counter, Direction, DropReason, Event, Events, Filter, Outcome, PodEntry, PodIdentity,
    PodPolicy, Settings, Skb, Write,
    table::{
        ANY_CLASS, BackendKey, BackendValue, Decision, OPEN_SET, PortRange, Profile, ServiceKeyV4,
        ServiceKeyV6, ServiceValue, VerdictKey,
    },
};

use crate::node;

pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
pub(crate) const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);
pub(crate) const POD_MAC: [u8; 6] = [2, 0xbb, 0, 0, 0, 1];
pub(crate) const HOST_MAC: [u8; 6] = [2, 0xaa, 0, 0, 0, 1];
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 9);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 3);
pub(crate) const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 9);
pub(crate) const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 3, 0, 0, 0, 0, 0, 3);
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
/// The node's only where a test says so.
pub(crate) const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 10);
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 10);
pub(crate) const VIP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x7172, 0, 0, 0, 0, 0, 10);
pub(crate) const MARK: u32 = 0x0002_0000;
pub(crate) const IFINDEX: u32 = 0x10_0001;

/// TCP flags.
pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const RST: u8 = 0x04;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// The loaded filter and the pod.
pub(crate) struct World {
    pub(crate) filter: Filter,
    pub(crate) identity: PodIdentity,
    pub(crate) entry: PodEntry,
    pub(crate) policy: PodPolicy,
}

/// What a rule of a made-up set says: class, protocol, ports, allowed, rule number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule(
    pub(crate) u32,
    pub(crate) u8,
    pub(crate) u16,
    pub(crate) u16,
    pub(crate) u32,
);

impl World {
    pub(crate) fn new(directory: &Path) -> Self {
        let filter = Filter::open(&node::pins(directory), EniMarkMask::default()).unwrap();
        node::ip(&format!("link add veth1 index {IFINDEX} type veth peer name peer1"));
        let entry = PodEntry { address: POD, mac: Mac(POD_MAC), mark: MARK };
        let policy = PodPolicy { address_v6: Some(POD_V6), ..PodPolicy::default() };
        let identity = filter.pod_admit(IFINDEX, entry, policy).unwrap();
        filter.set_node_addresses(&[IpAddr::from(NODE)].into()).unwrap();
        // Slow machines, fast tests: nothing is held back.
        filter.configure(|s| (s.event_rate, s.event_burst) = (1_000_000, 1_000_000)).unwrap();
        Self { filter, identity, entry, policy }
    }

    /// Puts the pod under sets; the epoch is raised.
    pub(crate) fn isolate(&mut self, ingress_set: u32, egress_set: u32) {
        self.policy = PodPolicy { ingress_set, egress_set, ..self.policy };
        assert!(self.filter.pod_policy(IFINDEX, self.policy).unwrap());
        self.filter.raise_epoch().unwrap();
    }

    pub(crate) fn configure(&self, change: impl FnOnce(&mut Settings)) {
        self.filter.configure(change).unwrap();
    }

    pub(crate) fn write(&self, writes: &[Write]) {
        self.filter.tables().apply(writes).unwrap();
    }

    /// A set that denies (by rule `default`) what no rule allows.
    pub(crate) fn set(&self, set: u32, default: u32, rules: &[Rule]) {
        let mut by_class: BTreeMap<u32, Vec<Rule>> = BTreeMap::from([(ANY_CLASS, Vec::new())]);
        for rule in rules {
            by_class.entry(rule.0).or_default().push(*rule);
        }
        let mut writes = Vec::new();
        for (position, (class, rules)) in by_class.into_iter().enumerate() {
            let number = set * 16 + u32::try_from(position).unwrap();
            writes.push(Write::Profile { number, profile: profile(default, &rules) });
            writes.push(Write::Verdict { key: VerdictKey { set, class }, profile: number });
        }
        self.write(&writes);
    }

    /// What a set says of the node itself, to an address of this class: it denies (by rule `default`) what no rule allows.
    pub(crate) fn of_node(&self, set: u32, class: u32, default: u32, rules: &[Rule]) {
        let (number, mut profile) = (set * 16 + 15, profile(default, rules));
        profile.ranges[0].of_node = 1;
        let key = VerdictKey { set, class };
        self.write(&[Write::Profile { number, profile }, Write::Verdict { key, profile: number }]);
    }

    pub(crate) fn class(&self, address: impl Into<IpAddr>, class: u32) {
        self.write(&[match address.into() {
            IpAddr::V4(address) => Write::ClassV4 { address: address.octets(), class },
            IpAddr::V6(address) => Write::ClassV6 { address: address.octets(), class },
        }]);
    }

    /// A front end with these back ends, in list `list`.
    pub(crate) fn service(
        &self,
        front: (IpAddr, u16, u8),
        list: u32,
        backends: &[(IpAddr, u16)],
        affinity_secs: u32,
    ) {
        let mut writes = Vec::new();
        for (slot, (address, port)) in backends.iter().enumerate() {
            let mut wide = [0; 16];
            match address {
                IpAddr::V4(address) => wide[..4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => wide = address.octets(),
            }
            writes.push(Write::Backend {
                key: BackendKey { backends: list, slot: u32::try_from(slot).unwrap() },
                value: BackendValue { address: wide, port: port.to_be_bytes(), reserved: [0; 2] },
            });
        }
        let value = ServiceValue {
            backends: list,
            count: u32::try_from(backends.len()).unwrap(),
            affinity_secs,
            service: 7,
        };
        let (port, protocol) = (front.1.to_be_bytes(), front.2);
        writes.push(match front.0 {
            IpAddr::V4(address) => Write::ServiceV4 {
                key: ServiceKeyV4 { address: address.octets(), port, protocol, reserved: 0 },
                value,
            },
            IpAddr::V6(address) => Write::ServiceV6 {
                key: ServiceKeyV6 { address: address.octets(), port, protocol, reserved: 0 },
                value,
            },
        });
        self.write(&writes);
    }

    pub(crate) fn run(&self, direction: Direction, frame: &[u8]) -> Outcome {
        self.run_from(direction, frame, 2)
    }

    /// With the interface that the packet came in by.
    pub(crate) fn run_from(&self, direction: Direction, frame: &[u8], came_in: u32) -> Outcome {
        let skb = Skb { ifindex: IFINDEX, ingress_ifindex: came_in, mark: 0 };
        self.filter.run(direction, frame, skb, 1).unwrap_or_else(|e| panic!("{e:?}: {frame:02x?}"))
    }

    /// Runs, and says how it ended: passed, or the one reason that was counted.
    pub(crate) fn verdict(
        &self,
        direction: Direction,
        frame: &[u8],
    ) -> Result<Outcome, DropReason> {
        self.verdict_from(direction, frame, 2)
    }

    pub(crate) fn verdict_from(
        &self,
        direction: Direction,
        frame: &[u8],
        came_in: u32,
    ) -> Result<Outcome, DropReason> {
        let before = self.filter.drops().unwrap();
        let outcome = self.run_from(direction, frame, came_in);
        let after = self.filter.drops().unwrap();
        let counted: Vec<DropReason> = after
            .into_iter()
            .flat_map(|(reason, n)| {
                std::iter::repeat_n(reason, usize::try_from(n - before[&reason]).unwrap())
            })
            .collect();
        match outcome.action {
            Action::Drop => {
                let [reason] = counted[..] else { panic!("{counted:?}") };
                Err(reason)
            }
            _ => {
                assert!(counted.is_empty(), "{counted:?}");
                Ok(outcome)
            }
        }
    }

    #[track_caller]
    pub(crate) fn egress(
        &self,
        what: &str,
        frame: &[u8],
        expect: Result<(), DropReason>,
    ) -> Vec<u8> {
        self.check(Direction::Egress, what, frame, expect)
    }

    #[track_caller]
    pub(crate) fn ingress(
        &self,
        what: &str,
        frame: &[u8],
        expect: Result<(), DropReason>,
    ) -> Vec<u8> {
        self.check(Direction::Ingress, what, frame, expect)
    }

    /// Asserts the verdict; the frame afterwards.
    #[track_caller]
    pub(crate) fn check(
        &self,
        direction: Direction,
        what: &str,
        frame: &[u8],
        expect: Result<(), DropReason>,
    ) -> Vec<u8> {
        let verdict = self.verdict(direction, frame);
        assert_eq!(verdict.as_ref().map(drop).map_err(|e| *e), expect, "{what}");
        verdict.map_or_else(|_| Vec::new(), |outcome| outcome.frame)
    }

    pub(crate) fn counter(&self, counter: Counter) -> u64 {
        self.filter.counters().unwrap()[&counter]
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        let mut events: Events = self.filter.events().unwrap();
        std::iter::from_fn(|| events.next()).collect()
    }
}

pub(crate) const OPEN: u32 = OPEN_SET;

/// Denies (by rule `default`) what no rule allows.
fn profile(default: u32, rules: &[Rule]) -> Profile {
    let none = PortRange {
        protocol: 0,
        of_node: 0,
        first: 1,
        last: 0,
        reserved2: 0,
        decision: Decision::deny(0),
    };
    let mut ranges = [none; 8];
    for (range, Rule(_, protocol, first, last, number)) in ranges.iter_mut().zip(rules) {
        let (protocol, first, last) = (*protocol, *first, *last);
        *range = PortRange { protocol, first, last, decision: Decision::allow(*number), ..none };
    }
    let count = u32::try_from(rules.len()).unwrap();
    Profile { otherwise: Decision::deny(default), count, ranges }
}

/// One end of a packet.
pub(crate) type End = (Ipv4Addr, u16);

fn ethernet(from_pod: bool) -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    if from_pod {
        PacketBuilder::ethernet2(POD_MAC, HOST_MAC)
    } else {
        PacketBuilder::ethernet2(HOST_MAC, POD_MAC)
    }
}

fn written<T>(write: impl FnOnce(&mut Vec<u8>) -> T) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame);
    frame
}

fn is_pod(address: IpAddr) -> bool {
    address == IpAddr::from(POD) || address == IpAddr::from(POD_V6)
}

pub(crate) fn tcp(from: End, to: End, flags: u8) -> Vec<u8> {
    let builder = ethernet(is_pod(from.0.into()))
        .ipv4(from.0.octets(), to.0.octets(), 64)
        .tcp(from.1, to.1, 1000, 1024);
    let builder = if flags & SYN != 0 { builder.syn() } else { builder };
    let builder = if flags & ACK != 0 { builder.ack(5) } else { builder };
    let builder = if flags & FIN != 0 { builder.fin() } else { builder };
    let builder = if flags & RST != 0 { builder.rst() } else { builder };
    written(|frame| builder.write(frame, b"payload").unwrap())
}

pub(crate) fn udp(from: End, to: End) -> Vec<u8> {
    let builder =
        ethernet(is_pod(from.0.into())).ipv4(from.0.octets(), to.0.octets(), 64).udp(from.1, to.1);
    written(|frame| builder.write(frame, b"a datagram with a payload").unwrap())
}

pub(crate) fn tcp6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), flags: u8) -> Vec<u8> {
    let builder = ethernet(is_pod(from.0.into()))
        .ipv6(from.0.octets(), to.0.octets(), 64)
        .tcp(from.1, to.1, 1000, 1024);
    let builder = if flags & SYN != 0 { builder.syn() } else { builder };
    let builder = if flags & ACK != 0 { builder.ack(5) } else { builder };
    written(|frame| builder.write(frame, b"payload").unwrap())
}

pub(crate) fn udp6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16)) -> Vec<u8> {
    let builder =
        ethernet(is_pod(from.0.into())).ipv6(from.0.octets(), to.0.octets(), 64).udp(from.1, to.1);
    written(|frame| builder.write(frame, b"a datagram").unwrap())
}

/// Any IPv4 payload.
pub(crate) fn ip4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap();
    let mut header = etherparse::Ipv4Header::new(
        total - 20,
        64,
        etherparse::IpNumber(protocol),
        from.octets(),
        to.octets(),
    )
    .unwrap();
    header.header_checksum = header.calc_header_checksum();
    framed(is_pod(from.into()), 0x0800, &[&header.to_bytes()[..], payload].concat())
}

/// Any IPv6 payload.
pub(crate) fn ip6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    header.extend([next, 255]);
    header.extend(from.octets());
    header.extend(to.octets());
    let local = from.is_unicast_link_local() || from.is_unspecified();
    framed(local || is_pod(from.into()), 0x86dd, &[header, payload.to_vec()].concat())
}

/// An Ethernet header over any EtherType.
pub(crate) fn framed(from_pod: bool, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let (to, from) = if from_pod { (HOST_MAC, POD_MAC) } else { (POD_MAC, HOST_MAC) };
    [&to[..], &from, &ether_type.to_be_bytes(), payload].concat()
}

/// IPv4 options put into a frame; the header's checksum is made good.
pub(crate) fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let mut frame = [&frame[..34], options, &frame[34..]].concat();
    frame[14] = 0x40 | u8::try_from(5 + options.len() / 4).unwrap();
    let total = u16::try_from(frame.len() - 14).unwrap();
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    fix_ip(&mut frame);
    frame
}

/// Fragment fields of an IPv4 frame: identification, "more", offset in bytes.
pub(crate) fn fragment(frame: &[u8], id: u16, more: bool, offset: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    let field = (offset / 8) | if more { 0x2000 } else { 0 };
    frame[20..22].copy_from_slice(&field.to_be_bytes());
    fix_ip(&mut frame);
    frame
}

/// Cuts a frame to `length` bytes of IPv4 packet.
pub(crate) fn cut(frame: &[u8], length: usize) -> Vec<u8> {
    let mut frame = frame[..14 + length].to_vec();
    frame[16..18].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    fix_ip(&mut frame);
    frame
}

pub(crate) fn fix_ip(frame: &mut [u8]) {
    let header = usize::from(frame[14] & 0x0f) * 4;
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..14 + header]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Asserts that all checksums of an unfragmented frame are right.
#[track_caller]
pub(crate) fn assert_sound(frame: &[u8]) {
    let (pseudo, at, protocol) = match frame[12..14] {
        [0x08, 0x00] => {
            let header = usize::from(frame[14] & 0x0f) * 4;
            assert_eq!(checksum(&[&frame[14..14 + header]]), 0, "the IPv4 header's");
            let length = u16::try_from(frame.len() - 14 - header).unwrap().to_be_bytes();
            let pseudo = [&frame[26..34], &[0, frame[23]], &length[..]].concat();
            (pseudo, 14 + header, frame[23])
        }
        _ => {
            let length = u32::try_from(frame.len() - 54).unwrap().to_be_bytes();
            ([&frame[22..54], &length[..], &[0, 0, 0, frame[20]]].concat(), 54, frame[20])
        }
    };
    match protocol {
        TCP | UDP | ICMPV6 => {
            if protocol == UDP && frame[at + 6..at + 8] == [0, 0] {
                return;
            }
            assert_eq!(checksum(&[&pseudo, &frame[at..]]), 0, "the transport's");
        }
        ICMP => assert_eq!(checksum(&[&frame[at..]]), 0, "ICMP's"),
        _ => {}
    }
}

/// Source and destination of an IPv4 frame with ports.
pub(crate) fn ends(frame: &[u8]) -> (End, End) {
    let at = 14 + usize::from(frame[14] & 0x0f) * 4;
    let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    ((address(26), port(at)), (address(30), port(at + 2)))
}

/// An ICMP message with its checksum.
pub(crate) fn icmp(
    from: Ipv4Addr,
    to: Ipv4Addr,
    kind: u8,
    code: u8,
    rest: &[u8],
    body: &[u8],
) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], rest, body].concat();
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip4(from, to, ICMP, &message)
}

pub(crate) fn icmp6(
    from: Ipv6Addr,
    to: Ipv6Addr,
    kind: u8,
    code: u8,
    rest: &[u8],
    body: &[u8],
) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], rest, body].concat();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, ICMPV6]].concat();
    let sum = checksum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip6(from, to, ICMPV6, &message)
}
