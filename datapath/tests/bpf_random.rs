//! Random packets, whole, mutated and cut, through the real programs and through a model of them.
//!
//! `VENI_RANDOM_PACKETS` says how many (200,000 if it does not), `VENI_SEED` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it did"
)]
#![cfg(feature = "bpf")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use veni_datapath::bpf::{
    Action, Direction, Remove, Skb, Write,
    table::{ServiceKeyV4, ServiceKeyV6, ServiceValue},
};

#[path = "support/model.rs"]
mod model;
#[path = "support/node.rs"]
mod node;
#[path = "support/world.rs"]
mod world;

use model::{Expected, Model, Service};
use world::{
    ICMP, ICMPV6, IFINDEX, NODE, OTHER, OTHER_V6, PEER, PEER_V6, POD, POD_MAC, POD_V6, Rule, SCTP,
    TCP, UDP, VIP, VIP_V6, World, ip4, ip6,
};

/// The class of an address that is the node's, and named by a policy.
const OF_NODE: u32 = 50;
/// Another address that the node may have.
const NODE_2: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 11);
/// Back ends.
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 0, 4, 4);
const BACKEND_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 4, 0, 0, 0, 0, 0, 4);

/// A front end: address, port, protocol.
type Front = (IpAddr, u16, u8);

/// xorshift64*: good enough to be surprised by.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % end
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

fn in_service_range(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.octets()[..2] == [172, 20],
        IpAddr::V6(a) => a.segments()[..2] == [0xfd00, 0x7172],
    }
}

/// The same policy for the programs and for the model.
fn policy(directory: &std::path::Path) -> (World, Model) {
    let mut world = World::new(directory);
    let nodes = [IpAddr::from(NODE)].into();
    let mut model = Model::new((POD, POD_V6, POD_MAC), nodes, in_service_range);
    world.configure(|s| {
        (s.service_v4, s.service_mask_v4) = ([172, 20, 0, 0], [255, 255, 0, 0]);
        s.service_v6 = Ipv6Addr::new(0xfd00, 0x7172, 0, 0, 0, 0, 0, 0).octets();
        s.service_mask_v6 = Ipv6Addr::new(0xffff, 0xffff, 0, 0, 0, 0, 0, 0).octets();
        // Most half-open flows are over the share then: where they are must not matter.
        s.half_open_cap = 4;
        let weeks = 1 << 30;
        (s.half_open_ticks, s.tcp_ticks, s.closing_ticks) = (weeks, weeks, weeks);
        (s.reset_ticks, s.other_ticks) = (weeks, weeks);
        (s.event_rate, s.event_burst) = (10, 10);
    });
    let ingress = [
        Rule(5, TCP, 80, 81, 1),
        Rule(6, UDP, 53, 53, 2),
        Rule(6, ICMP, 8 << 8, 8 << 8, 3),
        Rule(6, ICMPV6, 128 << 8, 128 << 8, 4),
        Rule(5, 99, 0, 0, 5),
    ];
    let egress = [
        Rule(5, TCP, 80, 80, 1),
        Rule(5, SCTP, 1, 65535, 1),
        Rule(6, UDP, 1, 65535, 2),
        Rule(7, TCP, 8080, 8080, 3),
        Rule(7, UDP, 5353, 5353, 4),
        Rule(5, ICMP, 0, 65535, 5),
        Rule(5, ICMPV6, 0, 65535, 5),
    ];
    for (set, rules) in [(1, &ingress[..]), (2, &egress[..])] {
        world.set(set, 9, rules);
        for rule in rules {
            let allowed = model.allowed.entry((set, rule.0)).or_default();
            allowed.push((rule.1, rule.2, rule.3));
        }
    }
    let at_node = [Rule(OF_NODE, TCP, 80, 81, 6), Rule(OF_NODE, ICMP, 8 << 8, 8 << 8, 7)];
    world.of_node(2, OF_NODE, 8, &at_node);
    let allowed = at_node.map(|rule| (rule.1, rule.2, rule.3));
    model.of_node.insert((2, OF_NODE), allowed.to_vec());
    let classes: [(IpAddr, u32); 6] = [
        (PEER.into(), 5),
        (PEER_V6.into(), 5),
        (OTHER.into(), 6),
        (OTHER_V6.into(), 6),
        (BACKEND.into(), 7),
        (BACKEND_V6.into(), 7),
    ];
    for (address, class) in classes {
        world.class(address, class);
        model.classes.insert(address, class);
    }
    for (list, (front, ends)) in (1u32..).zip(services()) {
        serve(&world, &mut model, front, list, ends[0]);
    }
    model.sets = (Some(1), Some(2));
    world.isolate(1, 2);
    model.epoch += 1;
    (world, model)
}

/// Front ends, and what each may lead to. No two have a back end in common: that flows share one is the matter of
/// other tests.
fn services() -> [(Front, [Service; 4]); 6] {
    let to = |address: IpAddr, port| Service::To(address, port);
    let (v4, v6, node) = (IpAddr::from(BACKEND), IpAddr::from(BACKEND_V6), IpAddr::from(NODE));
    let (none, proxys) = (Service::Empty, Service::Proxys);
    [
        ((VIP.into(), 80, TCP), [to(v4, 8080), to(node, 8080), none, proxys]),
        ((VIP.into(), 53, UDP), [to(v4, 5353), to(v4, 53), none, proxys]),
        ((VIP_V6.into(), 80, TCP), [to(v6, 8080), to(v6, 81), none, proxys]),
        ((NODE.into(), 9000, TCP), [to(v4, 8081), to(v4, 9000), none, proxys]),
        ((VIP.into(), 443, UDP), [to(node, 443), to(v4, 443), none, proxys]),
        ((OTHER.into(), 1000, UDP), [to(v4, 1000), to(node, 1000), none, proxys]),
    ]
}

fn serve(world: &World, model: &mut Model, front: Front, list: u32, service: Service) {
    match service {
        Service::To(address, port) => world.service(front, list, &[(address, port)], 0),
        Service::Empty => world.service(front, list, &[], 0),
        Service::Proxys => {
            let count = ServiceValue::OF_PROXY;
            let value = ServiceValue { backends: 0, count, affinity_secs: 0, service: 9 };
            world.write(&[match key(front) {
                Ok(key) => Write::ServiceV4 { key, value },
                Err(key) => Write::ServiceV6 { key, value },
            }]);
        }
    }
    model.services.insert(front, service);
}

fn key(front: Front) -> Result<ServiceKeyV4, ServiceKeyV6> {
    let (port, protocol, reserved) = (front.1.to_be_bytes(), front.2, 0);
    match front.0 {
        IpAddr::V4(a) => Ok(ServiceKeyV4 { address: a.octets(), port, protocol, reserved }),
        IpAddr::V6(a) => Err(ServiceKeyV6 { address: a.octets(), port, protocol, reserved }),
    }
}

fn transport(random: &mut Random, protocol: u8, out: bool) -> Vec<u8> {
    let local = random.one(&[80u16, 22, 53, 4000, 4001]);
    let remote = random.one(&[80u16, 81, 53, 1000, 8080, 5353, 9000, 30080, 443]);
    let (from, to) = if out { (local, remote) } else { (remote, local) };
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    match protocol {
        TCP => {
            let flags =
                random.one(&[0x02, 0x02, 0x12, 0x10, 0x10, 0x10, 0x11, 0x04, 0x14, 0x00, 0x03]);
            [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 4, 0, 0, 0, 0, 0], b"data"].concat()
        }
        UDP => [&ports[..], &[0, 20, 0, 0], b"some data..."].concat(),
        SCTP => [&ports[..], &[0; 12]].concat(),
        ICMP | ICMPV6 => {
            let kind = if protocol == ICMP {
                random.one(&[8, 0, 8, 0, 13, 5])
            } else {
                random.one(&[128, 129, 128, 129, 133, 135, 136, 134, 143, 200])
            };
            [&[kind, 0, 0, 0, 0, random.one(&[0, 1, 2]), 0, 1][..], &[0; 24]].concat()
        }
        _ => vec![0; 24],
    }
}

fn packet4(random: &mut Random, out: bool) -> Vec<u8> {
    let remote = if out {
        random.one(&[
            PEER,
            OTHER,
            VIP,
            VIP,
            NODE,
            NODE,
            NODE_2,
            BACKEND,
            Ipv4Addr::new(172, 20, 9, 9),
            Ipv4Addr::new(1, 1, 1, 1),
        ])
    } else {
        random.one(&[
            PEER,
            OTHER,
            BACKEND,
            BACKEND,
            NODE,
            NODE,
            NODE_2,
            VIP,
            Ipv4Addr::new(1, 1, 1, 1),
        ])
    };
    let (from, to) = if out { (POD, remote) } else { (remote, POD) };
    let protocol = random.one(&[TCP, TCP, TCP, UDP, UDP, ICMP, SCTP, 99, 58]);
    if random.chance(8) {
        // An error about a packet that went the other way.
        let inner = random.one(&[TCP, UDP, ICMP]);
        let body = transport(random, inner, !out);
        let quoted = ip4(to, from, inner, &body);
        let router = random.one(&[remote, OTHER]);
        let (from, to) = if out { (POD, router) } else { (router, POD) };
        let cut = 14 + random.one(&[28, 28, 28, 40, 24, 10]);
        return ip4(
            from,
            to,
            ICMP,
            &[&[random.one(&[3, 11]), 1, 0, 0, 0, 0, 0, 0], &quoted[14..cut.min(quoted.len())]]
                .concat(),
        );
    }
    let body = transport(random, protocol, out);
    let mut frame = ip4(from, to, protocol, &body);
    if random.chance(10) {
        let options = random.one(&[
            &[1u8, 1, 1, 1][..],
            &[1, 1, 0, 80],
            &[7, 7, 4, 0, 0, 0, 0, 0],
            &[131, 7, 4, 1, 2, 3, 4, 0],
        ]);
        frame = world::with_options(&frame, options);
    } else if random.chance(12) {
        let (more, offset) =
            random.one(&[(true, 0), (true, 0), (false, 24), (true, 48), (false, 8), (false, 16)]);
        frame = world::fragment(&frame, random.one(&[1, 2, 3]), more, offset);
    }
    frame
}

fn packet6(random: &mut Random, out: bool) -> Vec<u8> {
    let link = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xaa);
    let remote = if out {
        random.one(&[
            PEER_V6,
            OTHER_V6,
            VIP_V6,
            VIP_V6,
            BACKEND_V6,
            link,
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        ])
    } else {
        random.one(&[PEER_V6, OTHER_V6, BACKEND_V6, VIP_V6, link])
    };
    let own = if random.chance(10) { link } else { POD_V6 };
    let (from, to) = if out { (own, remote) } else { (remote, own) };
    let protocol = random.one(&[TCP, TCP, UDP, ICMPV6, ICMPV6, SCTP, 99]);
    let mut payload = transport(random, protocol, out);
    if random.chance(8) {
        let inner = random.one(&[TCP, UDP, ICMPV6]);
        let body = transport(random, inner, !out);
        let quoted = ip6(to, from, inner, &body);
        let cut = 14 + random.one(&[48, 48, 60, 44, 20]);
        payload =
            [&[random.one(&[1, 2, 3]), 0, 0, 0, 0, 0, 0, 0], &quoted[14..cut.min(quoted.len())]]
                .concat();
        return framed6(out, from, to, ICMPV6, &payload);
    }
    let mut next = protocol;
    for _ in 0..random.one(&[0, 0, 0, 0, 1, 1, 2, 5, 6, 7]) {
        let kind = random.one(&[60, 60, 60, 0, 43, 51, 44]);
        let header = match kind {
            44 => {
                let [a, b] = random.one(&[0u16, 1, 1, 24, 49, 8]).to_be_bytes();
                vec![next, 0, a, b, 0, 0, 0, random.one(&[1, 2])]
            }
            43 => vec![next, 0, 0, random.one(&[0, 0, 1]), 0, 0, 0, 0],
            51 => vec![next, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
        };
        payload = [header, payload].concat();
        next = kind;
    }
    framed6(out, from, to, next, &payload)
}

/// With the MACs of the direction, whatever the addresses are.
fn framed6(out: bool, from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let frame = ip6(from, to, next, payload);
    world::framed(out, 0x86dd, &frame[14..])
}

fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(4) {
        0 => {
            let length = 14 + random.below(frame.len() - 14);
            frame.truncate(length);
        }
        1 => frame.extend_from_slice(&[0xa5; 20]),
        _ => {
            for _ in 0..=random.below(3) {
                let at = 6 + random.below(frame.len() - 6);
                frame[at] = if random.chance(50) {
                    frame[at] ^ 1 << random.below(8)
                } else {
                    u8::try_from(random.below(256)).unwrap()
                };
            }
        }
    }
}

/// The remote end of a frame, and its port where the transport header is at its usual place.
fn remote_end(frame: &[u8], out: bool) -> (IpAddr, Option<u16>) {
    let v4 = frame[12..14] == [8, 0];
    let (address, ports) = match (v4, out) {
        (true, true) => (30, 36),
        (true, false) => (26, 34),
        (false, true) => (38, 56),
        (false, false) => (22, 54),
    };
    let port = frame.get(ports..ports + 2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    if v4 {
        let octets: [u8; 4] = frame[address..address + 4].try_into().unwrap();
        (octets.into(), port.filter(|_| frame[14] == 0x45))
    } else {
        let octets: [u8; 16] = frame[address..address + 16].try_into().unwrap();
        (octets.into(), port.filter(|_| frame[20] == TCP || frame[20] == UDP))
    }
}

/// What answers a TCP segment or a datagram whose header is at its usual place.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let (protocol, address, length, ports) = match frame[12..14] {
        [8, 0] if frame[14] == 0x45 => (frame[23], 26, 4, 34),
        [0x86, 0xdd] => (*frame.get(20)?, 22, 16, 54),
        _ => return None,
    };
    if !matches!(protocol, TCP | UDP | SCTP) || frame.len() < ports + 20 {
        return None;
    }
    let swapped =
        |from: usize, n: usize| [&frame[from + n..from + 2 * n], &frame[from..from + n]].concat();
    let mut answer = frame.to_vec();
    answer[..12].copy_from_slice(&swapped(0, 6));
    answer[address..address + 2 * length].copy_from_slice(&swapped(address, length));
    answer[ports..ports + 4].copy_from_slice(&swapped(ports, 2));
    if protocol == TCP {
        // A SYN is answered; what is not a SYN stays what it is.
        answer[ports + 13] |= if answer[ports + 13] & 0x12 == 0x02 { 0x10 } else { 0 };
    }
    Some(answer)
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |value| value.parse().expect("a number"))
}

/// Packets in one world: fresh maps before entries of the last get old by the clock (fragments live 30 s).
const CHUNK: u64 = 200_000;

#[test]
fn random_packets_end_as_the_model_says() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("VENI_SEED", now.as_secs());
    let packets = number("VENI_RANDOM_PACKETS", CHUNK);
    for (chunk, seed) in (0..packets.div_ceil(CHUNK)).zip(seed..) {
        let packets = CHUNK.min(packets - chunk * CHUNK);
        println!("VENI_SEED={seed}, {packets} packets");
        node::in_node(move |directory| Run::new(directory, seed).all(packets));
    }
}

/// A run over one seed.
struct Run {
    world: World,
    model: Model,
    random: Random,
    seed: u64,
    ends: BTreeMap<&'static str, u64>,
    /// Of the next list of back ends.
    list: u32,
    /// Some that passed, with their direction, and what would answer them.
    recent: Vec<(bool, Vec<u8>)>,
}

impl Run {
    fn new(directory: &std::path::Path, seed: u64) -> Self {
        let (world, model) = policy(directory);
        let random = Random(seed.wrapping_mul(2).wrapping_add(1));
        Self { world, model, random, seed, ends: BTreeMap::new(), list: 100, recent: Vec::new() }
    }

    fn all(mut self, packets: u64) {
        let mut run = 0;
        while run < packets {
            if self.random.chance(1) && self.random.chance(40) {
                self.change();
            }
            run += u64::from(self.one(run));
        }
        println!("{:?}, at the end {:?}", self.ends, self.model.flows());
        for (end, share) in [("passed", 10), ("dropped", 10), ("translated", 500)] {
            assert!(self.ends.get(end).is_some_and(|n| *n > packets / share), "{end}");
        }
    }

    /// A change of policy, of Services, or of the node's addresses, each with its epoch.
    fn change(&mut self) {
        let Self { world, model, random, .. } = self;
        match random.below(5) {
            0 => {
                let class = random.one(&[5, 5, 6, 6, 99, 99, OF_NODE]);
                world.class(PEER, class);
                model.classes.insert(PEER.into(), class);
            }
            4 => {
                for address in [NODE, NODE_2] {
                    let class = random.one(&[0, OF_NODE]);
                    world.class(address, class);
                    model.classes.insert(address.into(), class);
                }
            }
            1 => {
                let sets = (random.one(&[Some(1), Some(1), None]), random.one(&[Some(2), None]));
                model.sets = sets;
                world.policy.ingress_set = sets.0.unwrap_or(world::OPEN);
                world.policy.egress_set = sets.1.unwrap_or(world::OPEN);
                world.filter.pod_policy(IFINDEX, world.policy).unwrap();
            }
            2 => {
                let (front, ends) = random.one(&services());
                if random.chance(25) {
                    let remove = match key(front) {
                        Ok(key) => Remove::ServiceV4(key),
                        Err(key) => Remove::ServiceV6(key),
                    };
                    world.filter.tables().remove(&[remove]).unwrap();
                    model.services.remove(&front);
                } else {
                    self.list += 1;
                    serve(world, model, front, self.list, ends[random.one(&[0, 0, 0, 1, 1, 2, 3])]);
                }
            }
            _ => {
                let all = [IpAddr::from(NODE), IpAddr::from(NODE_2)];
                model.nodes =
                    random.one(&[&all[..1], &all[..], &all[1..]]).iter().copied().collect();
                world.filter.set_node_addresses(&model.nodes).unwrap();
            }
        }
        world.filter.raise_epoch().unwrap();
        model.epoch += 1;
    }

    fn keep(&mut self, out: bool, frame: Vec<u8>) {
        const RECENT: usize = 200;
        if self.recent.len() < RECENT {
            self.recent.push((out, frame));
        } else {
            self.recent[self.random.below(RECENT)] = (out, frame);
        }
    }

    /// One packet; `false` when the kernel refuses to run it (some cut ones, EINVAL), before any program.
    fn one(&mut self, number: u64) -> bool {
        let random = &mut self.random;
        let (out, frame) = if !self.recent.is_empty() && random.chance(40) {
            self.recent[random.below(self.recent.len())].clone()
        } else {
            let out = random.chance(50);
            let mut frame =
                if random.chance(65) { packet4(random, out) } else { packet6(random, out) };
            if random.chance(30) {
                mutate(random, &mut frame);
            }
            (out, frame)
        };
        let direction = if out { Direction::Egress } else { Direction::Ingress };
        let came_in = random.one(&[2, 2, 0, IFINDEX]);
        let skb = Skb { ifindex: IFINDEX, ingress_ifindex: came_in, mark: 0 };
        let Ok(outcome) = self.world.filter.run(direction, &frame, skb, 1) else {
            *self.ends.entry("refused by the kernel").or_default() += 1;
            return false;
        };
        let about = format!(
            "packet {number} of seed {}, {direction:?}, in by {came_in}: {frame:02x?}",
            self.seed
        );
        let expected = self.model.expect(direction, &frame, came_in);
        let action = if expected == Expected::Drop { Action::Drop } else { Action::Pass };
        assert_eq!(
            outcome.action,
            action,
            "{expected:?}, and again {:?}: {about}",
            self.world.verdict_from(direction, &frame, came_in).map(|outcome| outcome.action),
        );
        self.model.see(&outcome.frame);
        if action == Action::Pass {
            self.keep(out, frame);
            if let Some(answer) = answer(&outcome.frame) {
                self.keep(!out, answer);
            }
        }
        *self.ends.entry(if action == Action::Drop { "dropped" } else { "passed" }).or_default() +=
            1;
        if let Expected::Pass(Some((address, port))) = expected {
            *self.ends.entry("translated").or_default() += 1;
            let end = remote_end(&outcome.frame, out);
            assert_eq!(end.0, address, "{about}");
            // 0: a later fragment, which has none.
            assert!(port == 0 || end.1.is_none_or(|end| end == port), "{about}");
        }
        true
    }
}
