//! What the programs have to do with a packet, said again: another parser, another conntrack, the shared `judge`.
//!
//! Written for clearness, from the rules, not from the programs: slices and `Option` in place of words and offsets,
//! one map of flows in place of four.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use veni_datapath::bpf::{
    Direction,
    table::{self, Decision, OPEN_SET, Tables, VerdictKey},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// What has to happen to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Drop,
    /// With the remote end, and its port, that it has afterwards.
    Pass(Option<(IpAddr, u16)>),
}

/// The world that the model judges in.
pub(crate) struct Model {
    pub(crate) pod: (Ipv4Addr, Ipv6Addr, [u8; 6]),
    pub(crate) node: IpAddr,
    pub(crate) sets: (u32, u32),
    pub(crate) classes: HashMap<IpAddr, u32>,
    pub(crate) profiles: HashMap<VerdictKey, Vec<(u8, u16, u16)>>,
    /// Front ends with their only back end.
    pub(crate) services: HashMap<(IpAddr, u16, u8), (IpAddr, u16)>,
    pub(crate) service_range: fn(IpAddr) -> bool,
    pub(crate) epoch: u32,
    flows: HashMap<Key, Flow>,
    fragments: HashMap<(bool, u32, IpAddr, u8), Option<IpAddr>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    remote: IpAddr,
    local_port: u16,
    remote_port: u16,
    protocol: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Direct,
    /// The pod's view: its remote end is the Service; the other view's key.
    Pods(Key),
    /// The wire's.
    Wires(Key),
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    view: View,
    out: bool,
    answered: bool,
    established: bool,
    closing: bool,
    reset: bool,
    exempt: bool,
    epoch: u32,
}

#[derive(Debug, Clone)]
struct Seen {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    ports: (u16, u16),
    flags: u8,
    message: u16,
    what: What,
    first_of_more: bool,
    id: u32,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Flow,
    Message,
    /// Between neighbours; the target of an advertisement.
    Neighbours(Option<Ipv6Addr>),
    Later,
    /// The quoted packet: source, destination, protocol, ports.
    Error(IpAddr, IpAddr, u8, (u16, u16)),
}

struct Profiles<'a>(
    &'a HashMap<VerdictKey, Vec<(u8, u16, u16)>>,
    std::cell::Cell<Option<VerdictKey>>,
);

impl Tables for Profiles<'_> {
    fn verdict(&self, key: &VerdictKey) -> Option<u32> {
        self.0.contains_key(key).then(|| {
            self.1.set(Some(*key));
            0
        })
    }

    fn profile(&self, _: u32, protocol: u8, port: u16) -> Option<Decision> {
        let ranges = &self.0[&self.1.get()?];
        let allowed =
            ranges.iter().any(|r| (r.0 == protocol || r.0 == 255) && (r.1..=r.2).contains(&port));
        Some(if allowed { Decision::allow(1) } else { Decision::deny(1) })
    }
}

impl Model {
    pub(crate) fn new(
        pod: (Ipv4Addr, Ipv6Addr, [u8; 6]),
        node: IpAddr,
        service_range: fn(IpAddr) -> bool,
    ) -> Self {
        Self {
            pod,
            node,
            sets: (OPEN_SET, OPEN_SET),
            classes: HashMap::new(),
            profiles: HashMap::new(),
            services: HashMap::new(),
            service_range,
            epoch: 0,
            flows: HashMap::new(),
            fragments: HashMap::new(),
        }
    }

    /// How many flows there are, for the one who wants to know how much the packets meant.
    pub(crate) fn flows(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for flow in self.flows.values() {
            let state = if flow.established { "established" } else { "half open" };
            *counts.entry(state).or_default() += 1;
        }
        counts
    }

    pub(crate) fn expect(&mut self, direction: Direction, frame: &[u8], came_in: u32) -> Expected {
        let out = direction == Direction::Egress;
        self.frame(out, frame, came_in).unwrap_or(Expected::Drop)
    }

    fn frame(&mut self, out: bool, frame: &[u8], came_in: u32) -> Option<Expected> {
        let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().unwrap());
        if frame.len() < 34 || (out && frame[6..12] != self.pod.2) {
            return None;
        }
        match kind {
            0x0800 => {
                let own = &frame[if out { 26 } else { 30 }..][..4];
                if own != self.pod.0.octets() {
                    return None;
                }
                let seen = ipv4(&frame[14..])?;
                self.follow(out, &seen, came_in)
            }
            0x86dd => {
                let seen = ipv6(&frame[14..])?;
                let link = |a: IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
                let scope = |a: IpAddr| matches!(a, IpAddr::V6(a) if a.octets()[0] == 0xff && a.octets()[1] & 15 <= 2);
                let none = |a: IpAddr| a.is_unspecified();
                let own = IpAddr::from(self.pod.1);
                if let What::Neighbours(target) = &seen.what {
                    if out && (link(seen.to) || scope(seen.to)) {
                        if !(link(seen.from) || none(seen.from) || seen.from == own) {
                            return None;
                        }
                        let advertises = seen.message >> 8 == 136;
                        let may = target.is_some_and(|t| t.is_unicast_link_local() || own == t);
                        let forged = matches!(seen.message >> 8, 134 | 137) || (advertises && !may);
                        return (!forged).then_some(Expected::Pass(None));
                    }
                    if !out
                        && (link(seen.from) || scope(seen.from) || none(seen.from) || came_in == 0)
                    {
                        return Some(Expected::Pass(None));
                    }
                }
                (if out { seen.from } else { seen.to } == own).then_some(())?;
                self.follow(out, &seen, came_in)
            }
            0x0806 if !out => Some(Expected::Pass(None)),
            0x0806 => {
                let arp = frame.get(14..42)?;
                let right = arp[..6] == [0, 1, 8, 0, 6, 4]
                    && arp[8..14] == self.pod.2
                    && arp[14..18] == self.pod.0.octets();
                right.then_some(Expected::Pass(None))
            }
            _ => None,
        }
    }

    fn follow(&mut self, out: bool, seen: &Seen, came_in: u32) -> Option<Expected> {
        let remote = if out { seen.to } else { seen.from };
        let (local_port, remote_port) = if out { seen.ports } else { (seen.ports.1, seen.ports.0) };
        let fragment = (out, seen.id, remote, if remote.is_ipv4() { seen.protocol } else { 44 });
        let key = Key { remote, local_port, remote_port, protocol: seen.protocol };
        let error = matches!(seen.what, What::Error(..));
        let passed = match &seen.what {
            What::Later => {
                return self
                    .fragments
                    .get(&fragment)
                    .map(|to| Expected::Pass(to.map(|to| (to, 0))));
            }
            What::Flow => self.flow(out, seen, key, came_in),
            What::Error(from, to, protocol, ports) => {
                let own = if out { *to } else { *from };
                let (remote, local_port, remote_port) =
                    if out { (*from, ports.1, ports.0) } else { (*to, ports.0, ports.1) };
                let key = Key { remote, local_port, remote_port, protocol: *protocol };
                let is_own = own == IpAddr::from(self.pod.0) || own == IpAddr::from(self.pod.1);
                // The pod complains to whom it heard from, or says nothing about a flow.
                let aside = out && seen.to != *from;
                if !is_own || aside || !self.flows.contains_key(&key) {
                    return self.message(out, seen, remote_of(out, seen), came_in);
                }
                self.still(key)?;
                // What becomes of the quotation is not modelled here.
                Some(Expected::Pass(None))
            }
            What::Message | What::Neighbours(_) => self.message(out, seen, remote, came_in),
        }?;
        if seen.first_of_more && !error {
            let Expected::Pass(to) = passed else { unreachable!() };
            self.fragments.insert(fragment, to.map(|(to, _)| to));
        }
        Some(passed)
    }

    fn message(&self, out: bool, seen: &Seen, remote: IpAddr, came_in: u32) -> Option<Expected> {
        let exempt = if out { remote == self.node } else { self.is_from_node(seen, came_in) };
        if !exempt {
            if out && (self.service_range)(remote) {
                return None;
            }
            self.judge(out, remote, seen.protocol, seen.message)?;
        }
        Some(Expected::Pass(None))
    }

    fn is_from_node(&self, seen: &Seen, came_in: u32) -> bool {
        (came_in == 0 && seen.from == self.node)
            || (came_in == super::world::IFINDEX && seen.from == seen.to)
    }

    fn judge(&self, out: bool, remote: IpAddr, protocol: u8, port: u16) -> Option<()> {
        let set = if out { self.sets.1 } else { self.sets.0 };
        let class = self.classes.get(&remote).copied().unwrap_or(table::NO_CLASS);
        let tables = Profiles(&self.profiles, std::cell::Cell::default());
        table::judge(&tables, set, class, protocol, port)?.allowed().then_some(())
    }

    /// Judges a known flow again, if it has to be; forgets it when it is not allowed any more.
    fn still(&mut self, key: Key) -> Option<()> {
        let flow = self.flows[&key];
        if flow.epoch != self.epoch && !flow.exempt {
            let (end, direct) = match flow.view {
                View::Pods(other) => (other, false),
                View::Wires(_) => (key, false),
                View::Direct => (key, true),
            };
            let port = match end.protocol {
                1 if end.remote.is_ipv4() => 8 << 8,
                58 if end.remote.is_ipv6() => 128 << 8,
                _ if flow.out => end.remote_port,
                _ => end.local_port,
            };
            let behind = direct
                && flow.out
                && ((self.service_range)(end.remote)
                    || self.services.contains_key(&(end.remote, end.remote_port, end.protocol)));
            if behind || self.judge(flow.out, end.remote, end.protocol, port).is_none() {
                if let View::Pods(other) | View::Wires(other) = flow.view {
                    self.flows.remove(&other);
                }
                self.flows.remove(&key);
                return None;
            }
        }
        self.flows.get_mut(&key).unwrap().epoch = self.epoch;
        Some(())
    }

    fn flow(&mut self, out: bool, seen: &Seen, key: Key, came_in: u32) -> Option<Expected> {
        let syn = seen.protocol == TCP && seen.flags & 0x12 == 0x02;
        if !syn && let Some(flow) = self.flows.get(&key).copied() {
            let own = came_in == super::world::IFINDEX && seen.from == seen.to;
            if flow.exempt && !out && came_in != 0 && !own {
                // It only looks like the node's own.
            } else if out && matches!(flow.view, View::Wires(_)) {
                // The pod goes straight where a translated flow goes, by the same ports.
                if !(flow.closing || flow.reset) {
                    return None;
                }
            } else {
                self.still(key)?;
                return Some(self.advance(out, seen, key));
            }
        }
        self.begin(out, seen, key, came_in, syn)
    }

    /// A packet of a known flow.
    fn advance(&mut self, out: bool, seen: &Seen, key: Key) -> Expected {
        let flow = self.flows.get_mut(&key).unwrap();
        if seen.protocol == TCP {
            flow.reset |= seen.flags & 0x04 != 0;
            flow.closing |= seen.flags & 0x01 != 0;
        }
        let syn = seen.protocol == TCP && seen.flags & 0x12 == 0x02;
        let (reset, closing) = (flow.reset, flow.closing);
        let (mut tell, mut establish) = (false, false);
        let mut over = false;
        if !flow.established {
            over = reset;
            if flow.out != out {
                tell = !flow.answered;
                flow.answered = true;
            } else {
                establish = flow.answered && !flow.reset && !syn;
                flow.established |= establish;
            }
        }
        let flow = *flow;
        if let View::Pods(other) | View::Wires(other) = flow.view
            && let Some(other) = self.flows.get_mut(&other)
        {
            other.reset |= reset;
            other.closing |= closing;
            other.answered |= tell && !other.established;
            other.established |= establish;
        }
        if over {
            self.flows.remove(&key);
            if let View::Pods(other) | View::Wires(other) = flow.view {
                self.flows.remove(&other);
            }
        }
        match flow.view {
            View::Pods(other) if out => Expected::Pass(Some((other.remote, other.remote_port))),
            View::Wires(other) if !out => Expected::Pass(Some((other.remote, other.remote_port))),
            _ => Expected::Pass(None),
        }
    }

    fn begin(
        &mut self,
        out: bool,
        seen: &Seen,
        key: Key,
        came_in: u32,
        syn: bool,
    ) -> Option<Expected> {
        let ports = matches!(seen.protocol, TCP | UDP | SCTP);
        let mut end = (key.remote, key.remote_port);
        let mut translated = false;
        if out
            && ports
            && let Some(backend) = self.services.get(&(key.remote, key.remote_port, key.protocol))
        {
            if seen.protocol == TCP && seen.flags & 0x02 == 0 {
                return None;
            }
            if let Some(flow) = self.flows.get(&key)
                && matches!(flow.view, View::Pods(_))
                && !flow.established
                && flow.epoch == self.epoch
                && !(flow.reset || flow.closing)
            {
                return Some(self.advance(out, seen, key));
            }
            (end, translated) = (*backend, true);
        }
        let exempt = if !out {
            self.is_from_node(seen, came_in)
        } else if end.0 == self.node {
            if ports && self.services.contains_key(&(end.0, end.1, key.protocol)) {
                return None;
            }
            if ports && !translated && (30_000..=32_767).contains(&end.1) {
                return None;
            }
            true
        } else if !translated && (self.service_range)(end.0) {
            return None;
        } else {
            false
        };
        if !exempt {
            let is_icmp = seen.protocol == if end.0.is_ipv4() { 1 } else { 58 };
            let port = if is_icmp {
                seen.message
            } else if out {
                end.1
            } else {
                key.local_port
            };
            self.judge(out, end.0, seen.protocol, port)?;
        }
        self.track(out, seen, key, end, (translated, exempt, syn))
    }

    fn track(
        &mut self,
        out: bool,
        seen: &Seen,
        key: Key,
        end: (IpAddr, u16),
        (translated, exempt, syn): (bool, bool, bool),
    ) -> Option<Expected> {
        if seen.protocol == TCP && seen.flags & 0x02 == 0 && seen.flags & 0x04 != 0 {
            return Some(Expected::Pass(None));
        }
        let mut fresh = Flow {
            view: View::Direct,
            out,
            answered: false,
            established: false,
            closing: false,
            reset: false,
            exempt,
            epoch: self.epoch,
        };
        if let Some(old) = self.flows.get_mut(&key) {
            let over = old.closing || old.reset;
            if matches!(old.view, View::Wires(_)) && !over {
                return None;
            }
            if old.view == View::Direct && old.out == out && !old.established && !over && syn {
                old.epoch = self.epoch;
                return Some(Expected::Pass(None));
            }
        }
        if !translated {
            self.flows.insert(key, fresh);
            return Some(Expected::Pass(None));
        }
        let other = Key { remote: end.0, remote_port: end.1, ..key };
        if let Some(old) = self.flows.get(&other)
            && old.view != View::Wires(key)
            && !(old.closing || old.reset)
        {
            // Another port, chosen at random: the tests' world has no such case.
            return None;
        }
        fresh.view = View::Wires(key);
        self.flows.insert(other, fresh);
        fresh.view = View::Pods(other);
        self.flows.insert(key, fresh);
        Some(Expected::Pass(Some(end)))
    }
}

fn remote_of(out: bool, seen: &Seen) -> IpAddr {
    if out { seen.to } else { seen.from }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The transport header in `bytes`, of which the packet claims `left`.
fn transport(bytes: &[u8], left: usize, protocol: u8, v6: bool, seen: &mut Seen) -> Option<()> {
    let icmp = if v6 { 58 } else { 1 };
    let needs = match protocol {
        TCP => 20,
        SCTP => 12,
        UDP => 8,
        p if p == icmp => 8,
        _ => return Some(()),
    };
    let header = bytes.get(..needs).filter(|_| left >= needs)?;
    if protocol == icmp {
        seen.message = be16(header, 0);
        let identifier = be16(header, 4);
        seen.what = match (v6, header[0]) {
            (false, 8) | (true, 128) => {
                seen.ports = (identifier, identifier.wrapping_add(1));
                What::Flow
            }
            (false, 0) | (true, 129) => {
                seen.ports = (identifier.wrapping_add(1), identifier);
                What::Flow
            }
            (false, 3 | 4 | 11 | 12) => quoted4(&bytes[8..])?,
            (true, 1..=4) => quoted6(&bytes[8..])?,
            (true, 136) => What::Neighbours(
                bytes.get(8..24).map(|a| Ipv6Addr::from(<[u8; 16]>::try_from(a).unwrap())),
            ),
            (true, 130..=137 | 143) => What::Neighbours(None),
            _ => What::Message,
        };
        return Some(());
    }
    seen.ports = (be16(header, 0), be16(header, 2));
    if protocol == TCP {
        let length = usize::from(header[12] >> 4) * 4;
        if length < 20 || length > left {
            return None;
        }
        seen.flags = header[13];
    }
    Some(())
}

fn blank(from: IpAddr, to: IpAddr, protocol: u8) -> Seen {
    Seen {
        from,
        to,
        protocol,
        ports: (0, 0),
        flags: 0,
        message: 0,
        what: What::Flow,
        first_of_more: false,
        id: 0,
    }
}

fn later_is_sane(protocol: u8, offset: u16) -> bool {
    !(protocol == TCP && offset < 20 || protocol == SCTP && offset < 12)
}

fn v4(bytes: &[u8], at: usize) -> IpAddr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]).into()
}

fn v6(bytes: &[u8], at: usize) -> IpAddr {
    Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap()).into()
}

fn ipv4(packet: &[u8]) -> Option<Seen> {
    let header = usize::from(packet[0] & 15) * 4;
    let total = match be16(packet, 2) {
        0 => packet.len(),
        total => usize::from(total),
    };
    if packet[0] >> 4 != 4 || header < 20 || total < header {
        return None;
    }
    if packet.get(20..header)?.iter().any(|byte| matches!(byte, 131 | 137)) {
        return None;
    }
    let mut seen = blank(v4(packet, 12), v4(packet, 16), packet[9]);
    seen.id = be16(packet, 4).into();
    let field = be16(packet, 6);
    let offset = (field & 0x1fff) * 8;
    if field & 0x1fff != 0 {
        seen.what = What::Later;
        return later_is_sane(packet[9], if field & 0x1fff > 100 { 1000 } else { offset })
            .then_some(seen);
    }
    seen.first_of_more = field & 0x2000 != 0;
    transport(&packet[header..], total - header, packet[9], false, &mut seen)?;
    // Only flows are remembered for their fragments.
    Some(seen)
}

/// What is behind the extension headers: protocol, its place, what is left, fragment (offset, more, id).
type Walked = (u8, usize, usize, Option<(u16, bool, u32)>);

fn walk(packet: &[u8], next: u8, mut at: usize, mut left: usize) -> Option<Walked> {
    let mut protocol = next;
    let mut fragment = None;
    for step in 0..7 {
        if !matches!(protocol, 0 | 43 | 44 | 51 | 60) {
            return Some((protocol, at, left, fragment));
        }
        if step == 6 || (protocol == 0 && step > 0) {
            return None;
        }
        let header = packet.get(at..at + 8)?;
        let length = match protocol {
            44 => 8,
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if left < length
            || (protocol == 43 && header[3] != 0)
            || (protocol == 44 && fragment.is_some())
        {
            return None;
        }
        let was = protocol;
        (protocol, at, left) = (header[0], at + length, left - length);
        if was == 44 {
            let offset = be16(header, 2) & 0xfff8;
            let id = u32::from_be_bytes(header[4..8].try_into().unwrap());
            let more = header[3] & 1 != 0;
            if (more || offset != 0) && matches!(protocol, 0 | 43 | 44 | 51 | 60) {
                return None;
            }
            fragment = Some((offset, more, id));
            if offset != 0 {
                return later_is_sane(protocol, offset).then_some((protocol, at, left, fragment));
            }
        }
    }
    None
}

fn ipv6(packet: &[u8]) -> Option<Seen> {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return None;
    }
    let payload = match be16(packet, 4) {
        0 => packet.len() - 40,
        payload => usize::from(payload),
    };
    let (protocol, at, left, fragment) = walk(packet, packet[6], 40, payload)?;
    let mut seen = blank(v6(packet, 8), v6(packet, 24), protocol);
    if let Some((offset, more, id)) = fragment {
        seen.id = id;
        if offset != 0 {
            seen.what = What::Later;
            return Some(seen);
        }
        seen.first_of_more = more;
    }
    transport(packet.get(at..).unwrap_or_default(), left, protocol, true, &mut seen)?;
    Some(seen)
}

fn quoted_ports(packet: &[u8], at: usize, protocol: u8, v6: bool) -> Option<(u16, u16)> {
    let icmp = if v6 { 58 } else { 1 };
    if !matches!(protocol, TCP | UDP | SCTP) && protocol != icmp {
        return Some((0, 0));
    }
    let header = packet.get(at..at + 8)?;
    match (protocol == icmp, v6, header[0]) {
        (false, ..) => Some((be16(header, 0), be16(header, 2))),
        (true, false, 8) | (true, true, 128) => {
            Some((be16(header, 4), be16(header, 4).wrapping_add(1)))
        }
        (true, false, 0) | (true, true, 129) => {
            Some((be16(header, 4).wrapping_add(1), be16(header, 4)))
        }
        _ => None,
    }
}

fn quoted4(packet: &[u8]) -> Option<What> {
    let fixed = packet.get(..20)?;
    let header = usize::from(fixed[0] & 15) * 4;
    if fixed[0] >> 4 != 4 || header < 20 || be16(fixed, 6) & 0x1fff != 0 {
        return None;
    }
    let ports = quoted_ports(packet, header, fixed[9], false)?;
    Some(What::Error(v4(fixed, 12), v4(fixed, 16), fixed[9], ports))
}

fn quoted6(packet: &[u8]) -> Option<What> {
    let fixed = packet.get(..40)?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    let (protocol, at, _, fragment) = walk(packet, fixed[6], 40, 0xffff)?;
    if fragment.is_some_and(|(offset, ..)| offset != 0) {
        return None;
    }
    let ports = quoted_ports(packet, at, protocol, true)?;
    Some(What::Error(v6(fixed, 8), v6(fixed, 24), protocol, ports))
}
