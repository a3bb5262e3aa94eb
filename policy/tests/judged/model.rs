//! The programs' maps as plain collections: carries out a change step by step and judges as the programs do.
//!
//! Written from the tables' contract alone; it knows nothing of how the compiler works.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use veni_ebpf_common::table::{
    ANY_CLASS, Decision, NO_CLASS, OPEN_SET, PortKey, Profile, Tables, VerdictKey, in_ranges,
    judge, profile_of,
};
use veni_policy::change::{Direction, PodKey, PodSets, Remove, Step, Write};

/// The maps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    addresses: HashMap<IpAddr, u32>,
    nets: HashMap<IpNet, u32>,
    verdicts: HashMap<VerdictKey, u32>,
    profiles: HashMap<u32, Profile>,
    ports: HashMap<(u32, PortKey), Decision>,
    pub(crate) endpoints: BTreeMap<PodKey, PodSets>,
    graces: u32,
    /// How many graces were waited for when a look-up was last led to a profile that it is not led to any more.
    left_profiles: HashMap<u32, u32>,
    /// As `left_profiles`, of classes.
    left_classes: HashMap<u32, u32>,
}

/// Which verdicts a step can have touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Touched {
    Nothing,
    /// Verdicts on this address.
    Peer(IpAddr),
    /// Verdicts on addresses in this net.
    Peers(IpNet),
    /// Verdicts of pods with this set.
    Set(u32),
    /// Verdicts of this pod.
    Pod(PodKey),
    Everything,
}

impl Tables for Model {
    fn verdict(&self, key: &VerdictKey) -> Option<u32> {
        self.verdicts.get(key).copied()
    }

    fn profile(&self, number: u32, protocol: u8, port: u16) -> Option<Decision> {
        let profile = self.profiles.get(&number)?;
        if profile.count != Profile::IN_PORTS {
            return Some(in_ranges(profile, protocol, port));
        }
        let longest = (0..=64_u32).rev().find_map(|bits| {
            let key = masked(
                PortKey { profile: number, protocol, reserved: 0, port: port.to_be_bytes() },
                bits,
            );
            self.ports.get(&(bits, key)).copied()
        });
        Some(longest.unwrap_or(profile.otherwise))
    }
}

impl Model {
    /// Carries out one step. An error: a verdict leads to a profile that was never written.
    pub(crate) fn step(&mut self, step: &Step) -> Result<Touched, String> {
        if let Step::Write(Write::Verdict { profile, .. }) = step
            && !self.profiles.contains_key(profile)
        {
            return Err(format!("{step:?}: no such profile"));
        }
        self.check_grace(step)?;
        self.leave(step);
        Ok(match step {
            Step::Grace => {
                self.graces += 1;
                Touched::Nothing
            }
            Step::Write(write) => self.write(write),
            Step::Endpoint { pod, sets } => {
                self.endpoints.insert(pod.clone(), *sets);
                Touched::Pod(pod.clone())
            }
            Step::Epoch | Step::NodeAddresses(_) => Touched::Nothing,
            Step::Delete(remove) => self.remove(remove),
        })
    }

    /// An error: a number stands for something else while a program that began before may still hold it.
    fn check_grace(&self, step: &Step) -> Result<(), String> {
        let held = |left: &HashMap<u32, u32>, number| left.get(&number) == Some(&self.graces);
        match step {
            Step::Write(Write::Profile { number, profile })
                if held(&self.left_profiles, *number)
                    && self.profiles.get(number) != Some(profile) =>
            {
                Err(format!("{step:?}: no grace since the profile was in use"))
            }
            Step::Write(Write::Verdict { key, profile })
                if held(&self.left_classes, key.class)
                    && self.judges(key.set)
                    && !self.has_slots(key.class)
                    && self.verdict(key) != Some(*profile) =>
            {
                Err(format!("{step:?}: no grace since the class was in use"))
            }
            _ => Ok(()),
        }
    }

    /// Remembers what a step leads look-ups away from.
    fn leave(&mut self, step: &Step) {
        let (verdict, class) = match step {
            Step::Write(Write::Verdict { key, .. }) | Step::Delete(Remove::Verdict(key)) => {
                (Some(*key), None)
            }
            Step::Write(Write::ClassV4 { address, .. })
            | Step::Delete(Remove::ClassV4(address)) => {
                (None, Some(self.class_of((*address).into())))
            }
            Step::Write(Write::ClassV6 { address, .. })
            | Step::Delete(Remove::ClassV6(address)) => {
                (None, Some(self.class_of((*address).into())))
            }
            Step::Write(Write::CidrV4 { net, .. }) | Step::Delete(Remove::CidrV4(net)) => {
                (None, self.nets.get(&IpNet::V4(*net)).copied())
            }
            Step::Write(Write::CidrV6 { net, .. }) | Step::Delete(Remove::CidrV6(net)) => {
                (None, self.nets.get(&IpNet::V6(*net)).copied())
            }
            _ => (None, None),
        };
        self.left_classes.extend(class.map(|class| (class, self.graces)));
        let reached = |key: &VerdictKey| {
            self.judges(key.set) && (key.class == ANY_CLASS || self.has_slots(key.class))
        };
        let profile = verdict.filter(reached).and_then(|key| self.verdict(&key));
        self.left_profiles.extend(profile.map(|profile| (profile, self.graces)));
    }

    fn judges(&self, set: u32) -> bool {
        self.endpoints.values().any(|sets| sets.ingress == set || sets.egress == set)
    }

    fn has_slots(&self, class: u32) -> bool {
        class == NO_CLASS || self.addresses.values().chain(self.nets.values()).any(|c| *c == class)
    }

    fn write(&mut self, write: &Write) -> Touched {
        match write {
            Write::ClassV4 { address, class } => self.class((*address).into(), *class),
            Write::ClassV6 { address, class } => self.class((*address).into(), *class),
            Write::CidrV4 { net, class } => self.net((*net).into(), *class),
            Write::CidrV6 { net, class } => self.net((*net).into(), *class),
            Write::Verdict { key, profile } => {
                self.verdicts.insert(*key, *profile);
                Touched::Set(key.set)
            }
            Write::Profile { number, profile } => {
                let before = self.profiles.insert(*number, *profile);
                if before == Some(*profile) { Touched::Nothing } else { self.users_of(*number) }
            }
            Write::Port { bits, key, decision } => {
                self.ports.insert((*bits, masked(*key, *bits)), *decision);
                self.users_of(key.profile)
            }
            Write::ServiceV4 { .. } | Write::ServiceV6 { .. } | Write::Backend { .. } => {
                Touched::Nothing
            }
        }
    }

    fn remove(&mut self, remove: &Remove) -> Touched {
        match remove {
            Remove::ClassV4(address) => self.no_class((*address).into()),
            Remove::ClassV6(address) => self.no_class((*address).into()),
            Remove::CidrV4(net) => self.no_net((*net).into()),
            Remove::CidrV6(net) => self.no_net((*net).into()),
            Remove::Verdict(key) => {
                self.verdicts.remove(key);
                Touched::Set(key.set)
            }
            Remove::Port { bits, key } => {
                self.ports.remove(&(*bits, masked(*key, *bits)));
                self.users_of(key.profile)
            }
            Remove::ServiceV4(_) | Remove::ServiceV6(_) | Remove::Backend(_) => Touched::Nothing,
        }
    }

    fn class(&mut self, address: IpAddr, class: u32) -> Touched {
        self.addresses.insert(address, class);
        Touched::Peer(address)
    }

    fn no_class(&mut self, address: IpAddr) -> Touched {
        self.addresses.remove(&address);
        Touched::Peer(address)
    }

    fn net(&mut self, net: IpNet, class: u32) -> Touched {
        assert_eq!(net, net.trunc(), "a prefix without host bits");
        self.nets.insert(net, class);
        Touched::Peers(net)
    }

    fn no_net(&mut self, net: IpNet) -> Touched {
        self.nets.remove(&net);
        Touched::Peers(net)
    }

    /// A profile that no verdict leads to touches nothing.
    fn users_of(&self, profile: u32) -> Touched {
        if self.verdicts.values().any(|used| *used == profile) {
            Touched::Everything
        } else {
            Touched::Nothing
        }
    }

    /// The class of an address: its own, else its longest prefix's.
    pub(crate) fn class_of(&self, address: IpAddr) -> u32 {
        if let Some(class) = self.addresses.get(&address) {
            return *class;
        }
        let holding = self.nets.iter().filter(|(net, _)| net.contains(&address));
        let longest = holding.max_by_key(|(net, _)| net.prefix_len());
        longest.map_or(NO_CLASS, |(_, class)| *class)
    }

    /// The verdict of a pod's set on a peer. What is said of the node itself (`at_node`) counts there and nowhere else:
    /// without it the node is exempt, and another address that it is said of is refused.
    pub(crate) fn judge(
        &self,
        sets: PodSets,
        direction: Direction,
        (class, at_node): (u32, bool),
        protocol: u8,
        port: u16,
    ) -> Decision {
        let set = sets.of(direction);
        let profile = profile_of(self, set, class).filter(|_| set != OPEN_SET);
        let of_node = profile.is_some_and(|profile| self.profiles[&profile].judges_node());
        match (at_node, of_node) {
            (true, false) => return Decision::allow(0),
            (false, true) => return Decision::deny(0),
            _ => {}
        }
        judge(self, set, class, protocol, port)
            .unwrap_or_else(|| panic!("the tables of {sets:?} are incomplete for class {class}"))
    }

    /// What no pod's set leads to any more, and what capacity it takes.
    pub(crate) fn unused(&self, live: &[PodSets]) -> Vec<VerdictKey> {
        // Of a pod that nothing is known of: always there.
        let closed = std::iter::once(&PodSets::CLOSED);
        let used = |set| {
            live.iter().chain(closed.clone()).any(|sets| sets.ingress == set || sets.egress == set)
        };
        self.verdicts.keys().filter(|key| !used(key.set)).copied().collect()
    }

    /// Whether the set has an entry for any class.
    pub(crate) fn is_complete(&self, set: u32) -> bool {
        set == OPEN_SET || self.verdicts.contains_key(&VerdictKey { set, class: ANY_CLASS })
    }
}

/// The key with the bits beyond its prefix cleared.
fn masked(key: PortKey, bits: u32) -> PortKey {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&key.profile.to_be_bytes());
    bytes[4] = key.protocol;
    bytes[5] = key.reserved;
    bytes[6..].copy_from_slice(&key.port);
    let mask = if bits == 0 { 0 } else { u64::MAX << (64 - bits) };
    let bytes = (u64::from_be_bytes(bytes) & mask).to_be_bytes();
    PortKey {
        profile: u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        protocol: bytes[4],
        reserved: bytes[5],
        port: [bytes[6], bytes[7]],
    }
}
