//! What the programs have to do with a packet, said again: another parser, another conntrack, another `judge`.
//!
//! Written for clearness, from the rules, not from the programs: one map of flows in place of four, no times.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use veni_datapath::bpf::Direction;

use parse::{SCTP, Seen, TCP, UDP, What, ipv4, ipv6};

#[path = "model/parse.rs"]
mod parse;

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
    /// The node's own addresses.
    pub(crate) nodes: BTreeSet<IpAddr>,
    /// What may be sent to the pod, and what it may send; `None`: everything.
    pub(crate) sets: (Option<u32>, Option<u32>),
    pub(crate) classes: HashMap<IpAddr, u32>,
    /// What a set allows a class.
    pub(crate) allowed: HashMap<(u32, u32), Vec<Allowed>>,
    /// What a set allows the node itself, by the class of its address. Said of nobody else, and where nothing is said the
    /// node is exempt.
    pub(crate) of_node: HashMap<(u32, u32), Vec<Allowed>>,
    pub(crate) services: HashMap<(IpAddr, u16, u8), Service>,
    pub(crate) service_range: fn(IpAddr) -> bool,
    pub(crate) epoch: u32,
    flows: HashMap<Key, Flow>,
    fragments: HashMap<(bool, u32, IpAddr, u8), Option<IpAddr>>,
    /// A flow by a Service that gets another port of the pod's on the wire: its two keys, but for that port.
    moved: Option<(Key, Key, Flow)>,
}

/// A protocol (255: any), and its ports from the first to the last.
pub(crate) type Allowed = (u8, u16, u16);

/// What a front end leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Its only back end.
    To(IpAddr, u16),
    /// It has none.
    Empty,
    /// kube-proxy alone can serve it.
    Proxys,
}

/// What becomes of a known flow's packet after a change.
enum Still {
    Goes,
    Revoked,
    /// It is not of that flow.
    Foreign,
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

impl Model {
    pub(crate) fn new(
        pod: (Ipv4Addr, Ipv6Addr, [u8; 6]),
        nodes: BTreeSet<IpAddr>,
        service_range: fn(IpAddr) -> bool,
    ) -> Self {
        Self {
            pod,
            nodes,
            sets: (None, None),
            classes: HashMap::new(),
            allowed: HashMap::new(),
            of_node: HashMap::new(),
            services: HashMap::new(),
            service_range,
            epoch: 0,
            flows: HashMap::new(),
            fragments: HashMap::new(),
            moved: None,
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
        self.moved = None;
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
                let Some(first) = self.fragments.get(&fragment) else {
                    let unknown = self.set(out).is_some() || (out && (self.service_range)(remote));
                    return (!unknown).then_some(Expected::Pass(None));
                };
                return Some(Expected::Pass(first.map(|to| (to, 0))));
            }
            What::Flow => self.flow(out, seen, key, came_in),
            What::Error(None) => self.message(out, seen, remote, came_in),
            What::Error(Some((from, to, protocol, ports))) => {
                let own = if out { *to } else { *from };
                let (end, local_port, remote_port) =
                    if out { (*from, ports.1, ports.0) } else { (*to, ports.0, ports.1) };
                let key = Key { remote: end, local_port, remote_port, protocol: *protocol };
                let is_own = own == IpAddr::from(self.pod.0) || own == IpAddr::from(self.pod.1);
                // The pod complains to whom it heard from, or says nothing about a flow.
                let aside = out && seen.to != *from;
                if !is_own || aside || !self.flows.contains_key(&key) {
                    return self.message(out, seen, remote, came_in);
                }
                // What becomes of the quotation is not modelled here. It says nothing about the flow itself.
                let before = self.flows[&key];
                if matches!(self.still(key, false), Still::Revoked) {
                    return None;
                }
                self.flows.insert(key, before);
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
        let restricted = out && self.set(true).is_some();
        let exempt = if out {
            restricted && self.nodes.contains(&remote)
        } else {
            self.is_from_node(seen, came_in)
        };
        if !exempt {
            if restricted && (self.service_range)(remote) {
                return None;
            }
            self.judge(out, remote, seen.protocol, seen.message)?;
        } else if out && !matches!(seen.what, What::Neighbours(_)) {
            self.at_node(remote, seen.protocol, seen.message)?;
        }
        Some(Expected::Pass(None))
    }

    fn is_from_node(&self, seen: &Seen, came_in: u32) -> bool {
        (came_in == 0 && self.nodes.contains(&seen.from))
            || (came_in == super::world::IFINDEX && seen.from == seen.to)
    }

    /// What the pod may send, or be sent; `None`: everything.
    fn set(&self, out: bool) -> Option<u32> {
        if out { self.sets.1 } else { self.sets.0 }
    }

    fn judge(&self, out: bool, remote: IpAddr, protocol: u8, port: u16) -> Option<()> {
        let Some(set) = self.set(out) else { return Some(()) };
        let class = *self.classes.get(&remote)?;
        if out && self.of_node.contains_key(&(set, class)) {
            return None;
        }
        fits(self.allowed.get(&(set, class))?, protocol, port)
    }

    /// What the pod may send to the node itself.
    fn at_node(&self, remote: IpAddr, protocol: u8, port: u16) -> Option<()> {
        let of_class = |class: &u32| self.of_node.get(&(self.set(true)?, *class));
        match self.classes.get(&remote).and_then(of_class) {
            Some(allowed) => fits(allowed, protocol, port),
            None => Some(()),
        }
    }

    fn is_front_end(&self, end: Key) -> bool {
        has_ports(end.protocol)
            && self.services.contains_key(&(end.remote, end.remote_port, end.protocol))
    }

    /// Whether what goes to an own address ends here: it leads to no pod, as far as is known.
    fn ends_here(&self, end: Key, direct: bool) -> bool {
        let node_port = (30_000..=32_767).contains(&end.remote_port);
        !has_ports(end.protocol) || !(self.is_front_end(end) || (direct && node_port))
    }

    /// Judges a known flow again, if it has to be; forgets it when it is not allowed any more. `came_in`: the packet
    /// was not made here, nor by the pod.
    fn still(&mut self, key: Key, came_in: bool) -> Still {
        let mut flow = self.flows[&key];
        if flow.epoch == self.epoch {
            return Still::Goes;
        }
        let (end, direct) = match flow.view {
            View::Pods(other) => (other, false),
            View::Wires(_) => (key, false),
            View::Direct => (key, true),
        };
        let own = end.remote == IpAddr::from(self.pod.0) || end.remote == IpAddr::from(self.pod.1);
        let of_node = self.nodes.contains(&end.remote);
        let restricted = flow.out && self.set(true).is_some();
        let stays = flow.exempt && (own || (of_node && (!flow.out || !self.is_front_end(end))));
        let port = match end.protocol {
            1 if end.remote.is_ipv4() => 8 << 8,
            58 if end.remote.is_ipv6() => 128 << 8,
            _ if flow.out => end.remote_port,
            _ => end.local_port,
        };
        let at_node = self.at_node(end.remote, end.protocol, port).is_some();
        let mut may = stays && (own || !flow.out || at_node);
        if !stays {
            // Through kube-proxy, then.
            let behind = direct
                && restricted
                && ((self.service_range)(end.remote) || self.is_front_end(end));
            flow.exempt = restricted && of_node && self.ends_here(end, direct);
            if flow.exempt && came_in {
                return Still::Foreign;
            }
            may = if flow.exempt {
                at_node
            } else {
                !(behind || (restricted && of_node))
                    && self.judge(flow.out, end.remote, end.protocol, port).is_some()
            };
        }
        if !may {
            self.forget(key);
            return Still::Revoked;
        }
        flow.epoch = self.epoch;
        self.flows.insert(key, flow);
        Still::Goes
    }

    /// Both views.
    fn forget(&mut self, key: Key) {
        if let Some(Flow { view: View::Pods(other) | View::Wires(other), .. }) =
            self.flows.remove(&key)
        {
            self.flows.remove(&other);
        }
    }

    fn flow(&mut self, out: bool, seen: &Seen, key: Key, came_in: u32) -> Option<Expected> {
        let syn = seen.protocol == TCP && seen.flags & 0x12 == 0x02;
        if !syn && let Some(flow) = self.flows.get(&key).copied() {
            let own = came_in == super::world::IFINDEX && seen.from == seen.to;
            let came_in = !out && came_in != 0 && !own;
            // By a Service's own address comes no answer of it.
            let foreign = !out && matches!(flow.view, View::Pods(_)) || flow.exempt && came_in;
            if foreign {
                // It only looks like the flow's.
            } else if out && matches!(flow.view, View::Wires(_)) {
                // The pod goes straight where a translated flow goes, by the same ports.
                if seen.protocol == TCP && !(flow.closing || flow.reset) {
                    return None;
                }
            } else if out && self.left(key, flow) {
                self.forget(key);
            } else {
                match self.still(key, came_in) {
                    Still::Goes => return Some(self.advance(out, seen, key)),
                    Still::Revoked => return None,
                    Still::Foreign => {}
                }
            }
        }
        self.begin(out, seen, key, came_in, syn)
    }

    /// Whether datagrams go where the Service does not lead any more.
    fn left(&self, key: Key, flow: Flow) -> bool {
        let View::Pods(other) = flow.view else { return false };
        let service = self.services.get(&(key.remote, key.remote_port, UDP));
        key.protocol == UDP
            && flow.epoch != self.epoch
            && service != Some(&Service::To(other.remote, other.remote_port))
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
            self.forget(key);
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
        let restricted = self.set(out).is_some();
        let service = self.services.get(&(key.remote, key.remote_port, key.protocol));
        let mut end = (key.remote, key.remote_port);
        let mut translated = false;
        let middle = seen.protocol == TCP && seen.flags & 0x02 == 0;
        if let Some(service) = service.copied().filter(|_| out && has_ports(seen.protocol)) {
            if restricted && (middle || service == Service::Proxys) {
                return None;
            }
            if let Some(flow) = self.flows.get(&key)
                && !(middle || service == Service::Proxys)
                && matches!(flow.view, View::Pods(_))
                && !flow.established
                && flow.epoch == self.epoch
                && !(flow.reset || flow.closing)
            {
                return Some(self.advance(out, seen, key));
            }
            match service {
                Service::To(address, port) if !middle => {
                    (end, translated) = ((address, port), true)
                }
                // kube-proxy rejects it, and nothing is remembered.
                Service::Empty if !middle => return (!restricted).then_some(Expected::Pass(None)),
                _ => {}
            }
        }
        let at_end = Key { remote: end.0, remote_port: end.1, ..key };
        let exempt = if !out {
            self.is_from_node(seen, came_in)
        } else if !restricted {
            false
        } else if self.nodes.contains(&end.0) {
            if !self.ends_here(at_end, !translated) {
                return None;
            }
            true
        } else if !translated && (self.service_range)(end.0) {
            return None;
        } else {
            false
        };
        let is_icmp = seen.protocol == if end.0.is_ipv4() { 1 } else { 58 };
        let port = if is_icmp {
            seen.message
        } else if out {
            end.1
        } else {
            key.local_port
        };
        if !exempt {
            self.judge(out, end.0, seen.protocol, port)?;
        } else if out {
            self.at_node(end.0, seen.protocol, port)?;
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
        let fresh = Flow {
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
            match old.view {
                // Only the pod ends what the pod began.
                View::Pods(_) if !out => return Some(Expected::Pass(None)),
                // A client of TCP can take another port.
                View::Wires(_) if !over && (!out || seen.protocol == TCP) => return None,
                View::Direct
                    if old.out == out && !old.established && !over && syn && !translated =>
                {
                    (old.epoch, old.exempt) = (self.epoch, exempt);
                    return Some(Expected::Pass(None));
                }
                _ => self.forget(key),
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
            // Another port, chosen at random.
            self.moved = Some((key, other, fresh));
            return (seen.protocol != SCTP).then_some(Expected::Pass(Some(end)));
        }
        self.keep(key, other, fresh);
        Some(Expected::Pass(Some(end)))
    }

    fn keep(&mut self, key: Key, other: Key, mut flow: Flow) {
        flow.view = View::Wires(key);
        self.flows.insert(other, flow);
        flow.view = View::Pods(other);
        self.flows.insert(key, flow);
    }

    /// What the programs made of the frame that was expected last: the port of a flow that got another one.
    pub(crate) fn see(&mut self, frame: &[u8]) {
        let Some((key, other, flow)) = self.moved.take() else { return };
        let seen = if frame[12..14] == [8, 0] { ipv4(&frame[14..]) } else { ipv6(&frame[14..]) };
        let local_port = seen.expect("it was followed before").ports.0;
        assert_ne!(local_port, other.local_port, "it is taken");
        self.keep(key, Key { local_port, ..other }, flow);
    }
}

fn fits(allowed: &[Allowed], protocol: u8, port: u16) -> Option<()> {
    let fits = |r: &Allowed| (r.0 == protocol || r.0 == 255) && (r.1..=r.2).contains(&port);
    allowed.iter().any(fits).then_some(())
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}
