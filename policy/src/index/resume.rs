//! Taking over the tables of an earlier daemon.
//!
//! Its sets are tables without rules: pods keep them until their objects are known, and meanwhile every address and
//! prefix remembers the class that it was found in, so that those sets can go on telling them apart. With the last of
//! those sets the memory goes too. A batch that the earlier daemon did not finish needs no care: what it left is only a
//! table as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use veni_ebpf_common::table::{
    ANY_CLASS, Decision, NO_CLASS, OPEN_SET, PortKey, Profile, VerdictKey,
};

use super::{
    Entry, Index, Local, Scope,
    class::{Class, Numbers},
};
use crate::{
    applied::Applied,
    change::{CLOSED_SET, Direction, PodKey, PodSets, Remove, Step},
    compile::{
        Shape,
        profile::{Body, Profiles},
        set::Set,
    },
    intern::FastMap,
    rule::RuleRegistry,
};

/// What is in the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// `CLASS_V4` and `CLASS_V6`.
    pub addresses: Vec<(IpAddr, u32)>,
    /// `CIDR_V4` and `CIDR_V6`.
    pub prefixes: Vec<(IpNet, u32)>,
    /// `VERDICTS`.
    pub verdicts: Vec<(VerdictKey, u32)>,
    /// `PROFILES`, at least those that `verdicts` lead to.
    pub profiles: BTreeMap<u32, Profile>,
    /// `PORTS`: bits and key.
    pub ports: Vec<(u32, PortKey, Decision)>,
    /// The sets in the entries of pods that run.
    pub endpoints: BTreeMap<PodKey, PodSets>,
}

impl Applied {
    /// What a daemon that starts now would find.
    #[must_use]
    pub fn found(&self) -> Found {
        let v4 = self.class_v4.iter().map(|(address, class)| (IpAddr::V4(*address), *class));
        let v6 = self.class_v6.iter().map(|(address, class)| (IpAddr::V6(*address), *class));
        let nets_v4 = self.cidr_v4.iter().map(|(net, class)| (IpNet::V4(*net), *class));
        let nets_v6 = self.cidr_v6.iter().map(|(net, class)| (IpNet::V6(*net), *class));
        let ports = self.ports.iter();
        Found {
            addresses: v4.chain(v6).collect(),
            prefixes: nets_v4.chain(nets_v6).collect(),
            verdicts: self.verdicts.iter().map(|(key, profile)| (*key, *profile)).collect(),
            profiles: self.profiles.clone(),
            ports: ports.map(|((bits, key), decision)| (*bits, *key, *decision)).collect(),
            endpoints: self.endpoints.clone(),
        }
    }
}

impl Index {
    /// An index that takes over what an earlier daemon left. Running pods keep its sets until their objects are applied;
    /// [`Index::complete`] ends that for those that have none.
    #[must_use]
    pub fn resume(scope: Scope, found: &Found) -> Self {
        let bodies = bodies(found);
        let mut index = Self::with(scope, registry(found), Profiles::resume(&bodies));
        index.complete = false;
        for (bits, key, _) in &found.ports {
            if !bodies.contains_key(&key.profile) {
                index.first.push(Step::Delete(Remove::Port { bits: *bits, key: *key }));
            }
        }
        index.resume_sets(found);
        index.resume_classes(found);
        for (pod, sets) in &found.endpoints {
            for direction in Direction::BOTH {
                if let Some(set) = index.sets.get_mut(&sets.of(direction)) {
                    set.users += 1;
                }
            }
            let local = Local { pod: None, sets: Some(*sets), held: true, chosen: None };
            index.locals.insert(pod.clone(), local);
        }
        index
    }

    /// Every object was applied once: pods that run and have none get [`PodSets::CLOSED`], and what only the earlier
    /// daemon knew goes with the last of its sets.
    pub fn complete(&mut self) {
        self.complete_but(|_| false);
    }

    /// The same, but that the objects of these pods come later: they keep what they have until then, or until
    /// [`Index::let_go`].
    pub fn complete_but(&mut self, comes_later: impl Fn(&PodKey) -> bool) {
        if std::mem::replace(&mut self.complete, true) {
            return;
        }
        self.locals.iter_mut().for_each(|(pod, local)| local.held &= comes_later(pod));
        self.forget_origins();
    }

    /// No object of the pod is to come any more: without one it keeps nothing. Until every object was seen the sets of an
    /// earlier daemon are all that is known of a pod: it may be made anew in between.
    pub fn let_go(&mut self, pod: &PodKey) {
        if self.complete
            && let Some(local) = self.locals.get_mut(pod)
        {
            local.held = false;
        }
    }

    /// When no set of the earlier daemon is left (a pod keeps one while its security groups are awaited, or its own
    /// does not fit), its classes mean nothing any more.
    pub(super) fn forget_origins(&mut self) {
        if !self.complete || !self.inherited.is_empty() {
            return;
        }
        for (address, entry) in &mut self.entries {
            if std::mem::take(&mut entry.origin) != 0 {
                self.dirty.addresses.insert(*address);
            }
        }
        self.regions.release();
        self.dirty.regions |= self.regions.forget_origins();
        self.registry.release_earlier();
    }

    fn resume_sets(&mut self, found: &Found) {
        let in_use = found.verdicts.iter().map(|(key, _)| key.set);
        let in_use = in_use.chain(found.endpoints.values().flat_map(|s| [s.ingress, s.egress]));
        let numbers: BTreeSet<u32> =
            in_use.filter(|set| ![OPEN_SET, CLOSED_SET].contains(set)).collect();
        let next = numbers.last().copied().unwrap_or(CLOSED_SET) + 1;
        self.set_numbers = Numbers::from(next);
        let closed = self.sets[&CLOSED_SET].any;
        for number in &numbers {
            self.sets.insert(*number, Set::uniform(0));
        }
        for (key, profile) in &found.verdicts {
            let Some(set) = self.sets.get_mut(&key.set).filter(|_| key.set != CLOSED_SET) else {
                continue;
            };
            self.profiles.acquire(*profile);
            if key.class == ANY_CLASS {
                set.any = *profile;
            } else {
                set.table.insert(key.class, *profile);
            }
        }
        for number in &numbers {
            // A set without it is one that the earlier daemon did not finish: nobody has it.
            if let Some(set) = self.sets.get_mut(number).filter(|set| set.any == 0) {
                set.any = closed;
                self.profiles.acquire(closed);
            }
        }
        self.inherited = numbers;
    }

    fn resume_classes(&mut self, found: &Found) {
        let addresses = found.addresses.iter().map(|(_, class)| *class);
        let classes = addresses.chain(found.prefixes.iter().map(|(_, class)| *class));
        let mut slots: BTreeMap<u32, u32> = BTreeMap::new();
        classes.for_each(|class| *slots.entry(class).or_default() += 1);
        let of_sets = found.verdicts.iter().map(|(key, _)| key.class);
        let of_sets = of_sets.filter(|class| *class != ANY_CLASS);
        let last = of_sets.chain(slots.keys().copied()).max().unwrap_or(NO_CLASS);
        self.classes.numbers = Numbers::from(last + 1);
        for (number, slots) in slots {
            if number == NO_CLASS {
                self.classes.by_number.entry(number).and_modify(|class| class.slots = slots);
                continue;
            }
            let shape = Shape { origin: number + 1, ..Shape::default() };
            self.classes.by_shape.insert(shape, number);
            self.classes.by_number.insert(number, Class { shape, slots });
        }
        for (address, class) in &found.addresses {
            let (class, origin) = (*class, *class + 1);
            let entry = Entry { pod: None, blocks: 0, extra: 0, class, origin };
            self.entries.insert(*address, entry);
            self.dirty.addresses.insert(*address);
        }
        for (net, class) in &found.prefixes {
            self.regions.hold(*net, *class);
        }
        self.dirty.regions = !found.prefixes.is_empty();
    }
}

/// Rule numbers after all that may still be named.
fn registry(found: &Found) -> RuleRegistry {
    let inline = found.profiles.values().flat_map(|profile| {
        let ranges = profile.ranges.iter().map(|range| range.decision);
        ranges.chain([profile.otherwise])
    });
    let decisions = inline.chain(found.ports.iter().map(|(_, _, decision)| *decision));
    RuleRegistry::after(decisions.map(Decision::rule).max().unwrap_or(0))
}

/// The profiles that sets lead to. A range is a prefix where they are in `PORTS`.
fn bodies(found: &Found) -> BTreeMap<u32, Body> {
    let mut ports: FastMap<u32, Vec<(u32, PortKey, Decision)>> = FastMap::default();
    for port in &found.ports {
        ports.entry(port.1.profile).or_default().push(*port);
    }
    let mut bodies = BTreeMap::new();
    for (key, number) in &found.verdicts {
        if key.set == CLOSED_SET || bodies.contains_key(number) {
            continue;
        }
        let profile = found.profiles.get(number);
        let otherwise = profile.map_or(Decision::deny(0), |profile| profile.otherwise);
        let count = profile.map_or(0, |profile| profile.count);
        let mut ranges = Vec::new();
        if count == Profile::IN_PORTS {
            let own = ports.get(number).into_iter().flatten();
            ranges.extend(own.map(|(bits, key, decision)| {
                let first = u16::from_be_bytes(key.port);
                let size = (1_u32 << 64_u32.saturating_sub(*bits).min(16)) - 1;
                let last = u16::try_from(u32::from(first) | size).unwrap_or(u16::MAX);
                (key.protocol, first, last, *decision)
            }));
            ranges.sort_unstable();
        } else if let Some(profile) = profile {
            let inline = profile.ranges.iter().take(count as usize);
            ranges.extend(inline.map(|r| (r.protocol, r.first, r.last, r.decision)));
        }
        let of_node = profile.is_some_and(Profile::judges_node);
        bodies.insert(*number, Body { otherwise, ranges, of_node });
    }
    bodies
}
