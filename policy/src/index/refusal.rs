//! What was refused: said for as long as it is so, and tried again when there may be room or its content is another.
//!
//! To try costs as much as to compile a set, so what nothing was freed for is not tried: nobody's rules that do not fit
//! keep those of others waiting.

use std::collections::{BTreeMap, BTreeSet};

use veni_ebpf_common::table::capacity;

use super::{Index, Refusal, plan::Targets};
use crate::{
    change::{CLOSED_SET, Direction, PodKey, PodSets},
    compile::profile::{Full, Owner, fits},
    intern::FastMap,
};

/// A set that finds no room.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unfit {
    pub(super) set: u32,
    pub(super) full: Full,
    /// How many entries it wants in `VERDICTS`, if it is that.
    pub(super) entries: Option<usize>,
}

/// Pods whose set found no room.
#[derive(Debug)]
struct Standing {
    refusal: Refusal,
    /// Whose entries, and how many, are to fit into `VERDICTS`.
    need: Option<(Owner, usize)>,
    /// Addresses that there were when it was tried: with fewer it may need less.
    addresses: usize,
}

/// What was refused and still is, addresses aside: these are tried by every change.
#[derive(Debug, Default)]
pub(super) struct Refused {
    sets: Vec<Standing>,
    /// (set, class) that are denied because what the rules say found no room.
    pub(super) classes: BTreeMap<(u32, u32), Full>,
    /// Maps of which something was freed since the last change.
    pub(super) room: BTreeSet<&'static str>,
    /// Sets in force that this change takes from all their pods: they have no room for their new classes.
    pub(super) evicted: BTreeSet<u32>,
}

impl Index {
    /// Looks again at what was refused, where there may be room now.
    pub(super) fn look_for_room(&mut self) {
        self.refused.evicted.clear();
        self.refused.room = self.profiles.freed();
        self.refused.room.append(&mut self.freed_prefixes);
        if self.refused.sets.is_empty() {
            return;
        }
        let entries = self.entries_by_owner();
        let used: usize = entries.values().sum();
        for Standing { refusal, need, addresses } in &self.refused.sets {
            let room = match need {
                None => self.refused.room.contains(refusal.map),
                Some((owner, more)) => {
                    let own = |owner| entries.get(&Some(owner)).copied().unwrap_or(0);
                    fits(capacity::VERDICTS as usize, used, *more, *owner, own)
                }
            };
            // By an eighth at least: pods that come and go one by one are no reason.
            if !room && 8 * self.entries.len() >= 7 * addresses {
                continue;
            }
            for local in refusal.pods.iter().filter_map(|pod| self.locals.get(pod)) {
                let identity = local.pod.map(|pod| self.cluster.pod(pod).identity);
                self.dirty.rules.extend(identity);
            }
        }
    }

    /// Entries in `VERDICTS`.
    pub(super) fn entries_by_owner(&self) -> FastMap<Owner, usize> {
        let mut entries: FastMap<Owner, usize> = FastMap::default();
        for set in self.sets.values() {
            *entries.entry(set.owner).or_default() += set.entries();
        }
        entries
    }

    /// Forgets what was refused of pods that are looked at now, and of those that are gone.
    pub(super) fn forget_refused(&mut self, looked_at: &BTreeSet<PodKey>) {
        let locals = &self.locals;
        self.refused.sets.retain_mut(|standing| {
            standing.refusal.pods.retain(|pod| {
                let there = locals.get(pod).is_some_and(|local| local.pod.is_some() || local.held);
                there && !looked_at.contains(pod)
            });
            !standing.refusal.pods.is_empty()
        });
    }

    pub(super) fn refuse(
        &mut self,
        pods: Vec<PodKey>,
        direction: Direction,
        full: Full,
        need: Option<(Owner, usize)>,
    ) {
        let Full { map, capacity } = full;
        let refusal = Refusal { pods, direction: Some(direction), map, capacity };
        let addresses = self.entries.len();
        self.refused.sets.push(Standing { refusal, need, addresses });
    }

    /// A set in force whose new classes find no room: without their entries they would get what all others get. Its
    /// pods are closed.
    pub(super) fn evict(&mut self, targets: &mut Targets, unfit: Unfit) {
        self.refused.evicted.insert(unfit.set);
        let owner = self.sets[&unfit.set].owner;
        for direction in Direction::BOTH {
            let mut pods = Vec::new();
            for (key, local) in &self.locals {
                let wanted = targets.get(key).copied().unwrap_or(local.sets);
                let Some(wanted) = wanted.filter(|sets| sets.of(direction) == unfit.set) else {
                    continue;
                };
                targets.insert(key.clone(), Some(closed(wanted, direction)));
                pods.push(key.clone());
            }
            if !pods.is_empty() {
                let need = unfit.entries.map(|entries| (owner, entries));
                self.refuse(pods, direction, unfit.full, need);
            }
        }
    }

    /// What a pod has until the change is made: nothing of the sets that go without their new classes.
    pub(super) fn without_evicted(&self, sets: PodSets) -> PodSets {
        let evicted = |direction: &Direction| self.refused.evicted.contains(&sets.of(*direction));
        Direction::BOTH.into_iter().filter(evicted).fold(sets, closed)
    }

    /// Everything that is refused, in order: the same as long as nothing changes.
    pub(super) fn all_refused(&mut self, addresses: Vec<Refusal>) -> Vec<Refusal> {
        let (sets, classes) = (&self.sets, &self.classes.by_number);
        self.refused
            .classes
            .retain(|(set, class), _| sets.contains_key(set) && classes.contains_key(class));
        let mut refused = addresses;
        refused.extend(self.refused.sets.iter().map(|standing| standing.refusal.clone()));
        let by_set: BTreeMap<(u32, &'static str), u32> = self
            .refused
            .classes
            .iter()
            .map(|((set, _), full)| ((*set, full.map), full.capacity))
            .collect();
        for ((set, map), capacity) in by_set {
            refused.push(Refusal {
                pods: self.users_of(set),
                direction: self.sets[&set].rules.as_ref().map(|rules| rules.content.direction),
                map,
                capacity,
            });
        }
        refused.sort_by(|one, other| {
            let key = |refusal: &Refusal| (refusal.direction, refusal.map);
            key(one).cmp(&key(other)).then_with(|| one.pods.cmp(&other.pods))
        });
        refused
    }
}

const fn closed(sets: PodSets, direction: Direction) -> PodSets {
    match direction {
        Direction::Ingress => PodSets::new(CLOSED_SET, sets.egress),
        Direction::Egress => PodSets::new(sets.ingress, CLOSED_SET),
    }
}
