//! Port profiles: numbered, shared by every (set, class) that has the same, in the form of the programs' maps.

use std::collections::{BTreeMap, BTreeSet};

use veni_ebpf_common::table::{Decision, INLINE_RANGES, PortKey, PortRange, Profile, capacity};

use crate::{
    change::{Remove, Step, Write},
    intern::FastMap,
};

/// What protocols and ports get.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Body {
    /// Where no range matches.
    pub(crate) otherwise: Decision,
    /// Protocol, first and last port; sorted, not overlapping.
    pub(crate) ranges: Vec<(u8, u16, u16, Decision)>,
    /// See [`Profile::judges_node`].
    pub(crate) of_node: bool,
}

#[derive(Debug)]
struct Numbered {
    body: Body,
    /// The namespace whose set brought it.
    owner: Owner,
    /// Prefixes in `PORTS`.
    prefixes: usize,
    /// Entries of sets that lead here.
    users: u32,
    /// Something led here since it is numbered, so that it has to be in the map.
    used: bool,
    written: bool,
}

/// Profiles by number. Numbers from 1.
#[derive(Debug, Default)]
pub(crate) struct Profiles {
    numbers: FastMap<Body, u32>,
    profiles: Vec<Option<Numbered>>,
    free: Vec<u32>,
    /// Numbers that were in the map until a change of late: a program that began before may still ask for them.
    resting: Vec<u32>,
    /// A number was wanted, and only resting ones were left.
    starved: bool,
    /// Numbers given since the last [`Profiles::settle`].
    fresh: Vec<u32>,
    /// Numbers whose last user left since then.
    idle: Vec<u32>,
    /// Prefixes in `PORTS`, all profiles together.
    prefixes: usize,
    /// How many profiles there are.
    live: usize,
    /// Maps that something in use has left since [`Profiles::freed`].
    freed: BTreeSet<&'static str>,
}

/// The namespace whose NetworkPolicies a table's entry is for; `None`: what was written for the whole cluster.
pub(crate) type Owner = Option<u32>;

/// A namespace takes at most so many times what it leaves free of a table: seven eighths alone, and whoever else comes
/// finds room, with the same bound to what is left.
const SHARE: usize = 7;

/// Numbers that rest before a grace is asked for them alone.
const RESTING: usize = 1024;

/// A map is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) map: &'static str,
    pub(crate) capacity: u32,
}

/// Whether so many more entries of an owner are to be taken into a table. `own` counts what it has, and is asked only when
/// that matters.
pub(crate) fn fits(
    capacity: usize,
    used: usize,
    more: usize,
    owner: Owner,
    own: impl FnOnce(u32) -> usize,
) -> bool {
    let Some(free) = capacity.checked_sub(used + more) else { return more == 0 };
    // Nobody has more than all have.
    more == 0
        || used + more <= SHARE * free
        || owner.is_none_or(|owner| own(owner) + more <= SHARE * free)
}

const PROFILES_FULL: Full = Full { map: "PROFILES", capacity: capacity::PROFILES };
const PORTS_FULL: Full = Full { map: "PORTS", capacity: capacity::PORTS };

impl Body {
    pub(crate) fn decide(&self, protocol: u8, port: u16) -> Decision {
        self.ranges
            .iter()
            .find(|(p, first, last, _)| *p == protocol && (*first..=*last).contains(&port))
            .map_or(self.otherwise, |range| range.3)
    }

    fn is_inline(&self) -> bool {
        self.ranges.len() <= INLINE_RANGES
    }

    fn profile(&self) -> Profile {
        let none = PortRange {
            protocol: 0,
            of_node: 0,
            first: 0,
            last: 0,
            reserved2: 0,
            decision: Decision(0),
        };
        let mut ranges = [none; INLINE_RANGES];
        ranges[0].of_node = u8::from(self.of_node);
        if !self.is_inline() {
            return Profile { otherwise: self.otherwise, count: Profile::IN_PORTS, ranges };
        }
        for (slot, (protocol, first, last, decision)) in ranges.iter_mut().zip(&self.ranges) {
            let (protocol, first, last, decision) = (*protocol, *first, *last, *decision);
            *slot = PortRange { protocol, first, last, decision, ..*slot };
        }
        let count = u32::try_from(self.ranges.len()).expect("at most INLINE_RANGES");
        Profile { otherwise: self.otherwise, count, ranges }
    }

    /// Keys in `PORTS` for a profile of this number; none when inline.
    fn prefixes(&self, profile: u32) -> Vec<(u32, PortKey, Decision)> {
        if self.is_inline() {
            return Vec::new();
        }
        let mut prefixes = Vec::new();
        for (protocol, first, last, decision) in &self.ranges {
            for (port, bits) in port_prefixes(*first, *last) {
                let key =
                    PortKey { profile, protocol: *protocol, reserved: 0, port: port.to_be_bytes() };
                prefixes.push((48 + bits, key, *decision));
            }
        }
        prefixes
    }
}

/// The fewest prefixes (port, bits) that cover the range and nothing else.
fn port_prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut prefixes = Vec::new();
    let (mut next, end) = (u32::from(first), u32::from(last));
    while next <= end {
        let mut size = if next == 0 { 1 << 16 } else { 1 << next.trailing_zeros().min(16) };
        while next + size - 1 > end {
            size >>= 1;
        }
        let port = u16::try_from(next).expect("at most `last`");
        prefixes.push((port, 16 - size.trailing_zeros()));
        next += size;
    }
    prefixes
}

impl Profiles {
    /// The profiles that an earlier daemon wrote; each needs a user before [`Profiles::settle`].
    pub(crate) fn resume(found: &BTreeMap<u32, Body>) -> Self {
        let mut profiles = Self::default();
        for number in 1..=found.keys().next_back().copied().unwrap_or(0) {
            let numbered = found.get(&number).map(|body| {
                let prefixes = body.prefixes(number).len();
                profiles.prefixes += prefixes;
                profiles.live += 1;
                profiles.numbers.entry(body.clone()).or_insert(number);
                let body = body.clone();
                Numbered { body, owner: None, prefixes, users: 0, used: true, written: true }
            });
            if numbered.is_none() {
                profiles.free.push(number);
            }
            profiles.profiles.push(numbered);
        }
        profiles
    }

    /// The number of a body. It lasts until [`Profiles::settle`] unless something uses it then.
    pub(crate) fn number(&mut self, body: Body, owner: Owner) -> Result<u32, Full> {
        if let Some(number) = self.numbers.get(&body) {
            return Ok(*number);
        }
        // Number 0 is none.
        let room = capacity::PROFILES as usize - 1;
        if !fits(room, self.live, 1, owner, |owner| self.owned(owner).count()) {
            return Err(PROFILES_FULL);
        }
        let next = u32::try_from(self.profiles.len()).unwrap_or(u32::MAX) + 1;
        if self.free.is_empty() && next >= capacity::PROFILES {
            self.starved = !self.resting.is_empty();
            return Err(PROFILES_FULL);
        }
        let prefixes = body.prefixes(next).len();
        let own = |owner| self.owned(owner).map(|numbered| numbered.prefixes).sum();
        if !fits(capacity::PORTS as usize, self.prefixes, prefixes, owner, own) {
            return Err(PORTS_FULL);
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.profiles.push(None);
            next
        });
        self.prefixes += prefixes;
        self.live += 1;
        self.numbers.insert(body.clone(), number);
        self.profiles[number as usize - 1] =
            Some(Numbered { body, owner, prefixes, users: 0, used: false, written: false });
        self.fresh.push(number);
        Ok(number)
    }

    fn owned(&self, owner: u32) -> impl Iterator<Item = &Numbered> {
        self.profiles.iter().flatten().filter(move |numbered| numbered.owner == Some(owner))
    }

    /// How much of one of the maps is taken, by all and by the owner; `None`: it is not profiles'. More than anybody takes
    /// where numbers rest that are wanted: these are free soon.
    pub(crate) fn taken(&self, map: &str, owner: Owner) -> Option<[usize; 2]> {
        let own = |entries: fn(&Numbered) -> usize| {
            owner.map_or(0, |owner| self.owned(owner).map(entries).sum())
        };
        if map == PORTS_FULL.map {
            return Some([self.prefixes, own(|numbered| numbered.prefixes)]);
        }
        let all = if self.starved { usize::MAX } else { self.live };
        (map == PROFILES_FULL.map).then(|| [all, own(|_| 1)])
    }

    /// What [`Profiles::withdraw`] goes back to.
    pub(crate) fn mark(&self) -> usize {
        self.fresh.len()
    }

    /// Forgets the numbers given since, which nothing uses: what a set that found no room brought takes none of others.
    pub(crate) fn withdraw(&mut self, mark: usize) {
        for number in self.fresh.split_off(mark) {
            let numbered = self.take(number);
            debug_assert!(!numbered.used, "only what nothing uses is withdrawn");
            self.free.push(number);
        }
    }

    fn take(&mut self, number: u32) -> Numbered {
        let numbered = self.profiles[number as usize - 1].take().expect("it is numbered");
        self.prefixes -= numbered.prefixes;
        self.live -= 1;
        if self.numbers.get(&numbered.body) == Some(&number) {
            self.numbers.remove(&numbered.body);
        }
        numbered
    }

    pub(crate) fn body(&self, number: u32) -> Option<&Body> {
        let index = (number as usize).checked_sub(1)?;
        self.profiles.get(index)?.as_ref().map(|numbered| &numbered.body)
    }

    fn numbered(&mut self, number: u32) -> &mut Numbered {
        self.profiles[number as usize - 1].as_mut().expect("entries lead to profiles that exist")
    }

    pub(crate) fn acquire(&mut self, number: u32) {
        let numbered = self.numbered(number);
        numbered.users += 1;
        numbered.used = true;
    }

    pub(crate) fn release(&mut self, number: u32) {
        let numbered = self.numbered(number);
        numbered.users -= 1;
        if numbered.users == 0 {
            self.idle.push(number);
        }
    }

    /// Whether numbers rest that are wanted, or many: a grace is due.
    pub(crate) fn want_grace(&self) -> bool {
        self.starved || self.resting.len() >= RESTING
    }

    /// A grace followed the last use of every number.
    pub(crate) fn rested(&mut self) {
        if std::mem::take(&mut self.starved) {
            self.freed.insert(PROFILES_FULL.map);
        }
        self.free.append(&mut self.resting);
    }

    /// Whether something in use has left this map since [`Profiles::freed`].
    pub(crate) fn has_freed(&self, map: &str) -> bool {
        self.freed.contains(map)
    }

    /// The maps that something in use has left since this was asked last.
    pub(crate) fn freed(&mut self) -> BTreeSet<&'static str> {
        std::mem::take(&mut self.freed)
    }

    /// Writes of profiles that came into use, and what to delete after the last grace. The idle ones' numbers rest until
    /// [`Profiles::rested`].
    pub(crate) fn settle(&mut self) -> (Vec<Step>, Vec<Step>) {
        let (mut writes, mut deletes) = (Vec::new(), Vec::new());
        let fresh = std::mem::take(&mut self.fresh);
        for number in &fresh {
            let numbered = self.numbered(*number);
            if numbered.used && !numbered.written {
                numbered.written = true;
                write(&numbered.body, *number, &mut writes);
            }
        }
        let mut idle = std::mem::take(&mut self.idle);
        idle.extend(fresh);
        idle.sort_unstable();
        idle.dedup();
        for number in idle {
            if self.numbered(number).users > 0 {
                continue;
            }
            let Numbered { body, used, written, prefixes, .. } = self.take(number);
            if used {
                self.freed.insert(PROFILES_FULL.map);
                self.freed.extend((prefixes > 0).then_some(PORTS_FULL.map));
            }
            if written {
                let prefixes = body.prefixes(number).into_iter();
                deletes.extend(
                    prefixes.map(|(bits, key, _)| Step::Delete(Remove::Port { bits, key })),
                );
            }
            if used { self.resting.push(number) } else { self.free.push(number) }
        }
        (writes, deletes)
    }
}

/// Prefixes first: a profile is whole when it appears.
fn write(body: &Body, number: u32, steps: &mut Vec<Step>) {
    let prefixes = body.prefixes(number);
    steps.extend(
        prefixes
            .into_iter()
            .map(|(bits, key, decision)| Step::Write(Write::Port { bits, key, decision })),
    );
    steps.push(Step::Write(Write::Profile { number, profile: body.profile() }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_cover_a_range_and_nothing_else() {
        for (first, last, count) in [
            (80, 80, 1),
            (0, 65535, 1),
            (1, 65535, 16),
            (0, 65534, 16),
            (1, 65534, 30),
            (1024, 65535, 6),
            (8080, 8090, 3),
        ] {
            let prefixes = port_prefixes(first, last);
            assert_eq!(prefixes.len(), count, "{first}-{last}");
            let covers = |port: u16| {
                let holds = |(start, bits): &(u16, u32)| {
                    u32::from(port) >> (16 - bits) == u32::from(*start) >> (16 - bits)
                };
                prefixes.iter().filter(|prefix| holds(prefix)).count()
            };
            for port in 0..=u16::MAX {
                assert_eq!(covers(port), usize::from((first..=last).contains(&port)), "{port}");
            }
        }
    }

    #[test]
    fn a_profile_is_inline_up_to_its_room() {
        for (ranges, inline) in [(8_u16, true), (9, false)] {
            let ranges = (0..ranges).map(|port| (6, 2 * port, 2 * port, Decision::allow(1)));
            let (otherwise, ranges) = (Decision::deny(2), ranges.collect());
            let body = Body { otherwise, ranges, of_node: false };
            assert_eq!(body.profile().count == Profile::IN_PORTS, !inline);
            assert_eq!(body.prefixes(7).is_empty(), inline);
            assert!(!body.profile().judges_node());
            assert!(Body { of_node: true, ..body }.profile().judges_node(), "{inline}");
        }
    }
}
