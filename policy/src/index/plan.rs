//! Planning a change: which pods get which sets, which slots move where, what the tables get.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use veni_ebpf_common::table::capacity;

use super::{
    Entry, Index, Refusal,
    class::{Move, NewClass, Numbering, Numbers, Slot, Taken},
    refusal::{Lacking, Need, Unfit},
    region::ABSENT,
    target::kept,
};
use crate::{
    change::{CLOSED_SET, Direction, PodKey, PodSets},
    compile::{
        Shape,
        content::Content,
        profile::{Full, Owner, fits},
        set::{Delta, Postings, Rules, Set},
    },
    intern::{FastMap, FastSet},
};

const VERDICTS_FULL: Full = Full { map: "VERDICTS", capacity: capacity::VERDICTS };

/// Sets that pods are to have; `None`: the pod is gone.
pub(super) type Targets = BTreeMap<PodKey, Option<PodSets>>;

/// A pod that gets other sets.
#[derive(Debug)]
pub(super) struct Flip {
    pub(super) pod: PodKey,
    pub(super) old: Option<PodSets>,
    /// `None`: it is gone.
    pub(super) new: Option<PodSets>,
}

/// An entry of a set that stays.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patch {
    pub(super) set: u32,
    pub(super) class: u32,
    pub(super) profile: u32,
}

/// A set's whole table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) set: u32,
    pub(super) any: u32,
    pub(super) table: FastMap<u32, u32>,
}

/// A change, planned.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) flips: Vec<Flip>,
    pub(super) numbering: Numbering,
    pub(super) tables: Vec<Table>,
    /// For new classes: before anything moves.
    pub(super) before: Vec<Patch>,
    /// For classes that are another shape's now: when those who leave have left.
    pub(super) in_place: Vec<Patch>,
    pub(super) strict: bool,
    /// Some pod's set may judge an address otherwise now.
    pub(super) rejudged: bool,
    /// (set, class) that found no room, in this change or an earlier one; the classes are denied there.
    pub(super) closed: BTreeMap<(u32, u32), Full>,
}

/// What becomes of classes, and what that may change.
#[derive(Debug)]
struct Told {
    new: Vec<(NewClass, Delta)>,
    taken: Vec<(Taken, Delta)>,
}

/// What one set gets.
#[derive(Debug, Default)]
struct Patches {
    before: Vec<Patch>,
    in_place: Vec<Patch>,
    closed: BTreeMap<(u32, u32), Full>,
    /// Some class that was denied is not any more.
    regained: bool,
}

/// Sets that are copied because some of their pods leave while their meaning changes for others.
pub(super) type Copies = FastMap<u32, u32>;

impl Index {
    pub(super) fn new_set(&mut self, content: &Arc<Content>, owner: Owner) -> u32 {
        self.atoms.acquire(content.atoms());
        for name in content.port_names() {
            let users = self.port_names.entry(Arc::clone(name)).or_default();
            *users += 1;
            self.dirty.port_names |= *users == 1;
        }
        let number = self.set_numbers.take();
        let rules = Some(Rules::new(Arc::clone(content)));
        self.sets.insert(number, Set { rules, owner, ..Set::uniform(0) });
        number
    }

    /// Every slot whose shape changes.
    pub(super) fn moves(&mut self, regions_changed: bool) -> Vec<Move> {
        let moved = std::mem::take(&mut self.dirty.moved);
        if !moved.is_empty() || regions_changed {
            let cluster = &self.cluster;
            for (address, entry) in &mut self.entries {
                let of_moved =
                    entry.pod.is_some_and(|pod| moved.contains(&cluster.pod(pod).identity));
                if regions_changed {
                    let blocks = self.regions.blocks_at(*address);
                    if blocks == entry.blocks && !of_moved {
                        continue;
                    }
                } else if !of_moved {
                    continue;
                }
                self.dirty.addresses.insert(*address);
            }
        }
        let mut moves = Vec::new();
        for address in std::mem::take(&mut self.dirty.addresses) {
            self.refresh_address(address);
            let Some(entry) = self.entries.get(&address) else { continue };
            let identity =
                entry.pod.map(|pod| self.cluster.identity(self.cluster.pod(pod).identity));
            let goes = identity.is_none() && entry.extra == 0 && entry.origin == 0;
            let in_map = entry.class != ABSENT;
            if goes && !in_map {
                self.entries.remove(&address);
                continue;
            }
            let new = Shape {
                pod: identity.map_or(0, |identity| identity.atoms),
                ports: identity.map_or(0, |identity| identity.ports),
                blocks: if goes { self.regions.blocks_around(address) } else { entry.blocks },
                extra: entry.extra,
                origin: entry.origin,
            };
            if in_map && !goes && self.classes.shape(entry.class) == Some(new) {
                continue;
            }
            let old = if in_map { entry.class } else { self.regions.class_at(address) };
            let like = self.likeness(address, old, new);
            moves.push(Move { slot: Slot::Address(address), old, like, new, in_map, goes });
        }
        if regions_changed {
            self.region_moves(&mut moves);
        }
        moves
    }

    /// To the sets of an earlier daemon an address whose pod is another one now is as one that they never knew.
    fn likeness(&self, address: IpAddr, old: u32, new: Shape) -> u32 {
        let known = self.classes.shape(old).is_some_and(|shape| shape.origin != 0);
        let forgotten = known && new.origin == 0 && !self.inherited.is_empty();
        if forgotten { self.regions.class_at(address) } else { old }
    }

    /// Leaves out addresses that no map has room for: they keep the class of the block that they lie in, and every
    /// later change tries again. Returns whether there are any, of IPv4 and of IPv6.
    pub(super) fn withhold(
        &mut self,
        moves: &mut Vec<Move>,
        refused: &mut Vec<Refusal>,
    ) -> [bool; 2] {
        let mut any = [false; 2];
        for (v6, map) in [(false, "CLASS_V4"), (true, "CLASS_V6")] {
            let new = |step: &Move| match step.slot {
                Slot::Address(address) => address.is_ipv6() == v6 && !step.in_map && !step.goes,
                Slot::Prefix(_) => false,
            };
            let wanted = moves.iter().filter(|step| new(step)).count();
            if wanted == 0 {
                continue;
            }
            let mut room = (capacity::CLASS as usize).saturating_sub(self.addresses_in_map(v6));
            if wanted <= room {
                continue;
            }
            let mut left_out = Vec::new();
            moves.retain(|step| {
                let keep = !new(step) || room > 0;
                room -= usize::from(keep && new(step));
                if let Slot::Address(address) = step.slot
                    && !keep
                {
                    left_out.push(address);
                }
                keep
            });
            let mut pods: Vec<PodKey> =
                left_out.iter().filter_map(|address| self.pod_at(*address)).collect();
            pods.dedup();
            refused.push(Refusal { pods, direction: None, map, capacity: capacity::CLASS });
            self.dirty.addresses.extend(left_out);
            any[usize::from(v6)] = true;
        }
        any
    }

    pub(super) fn addresses_in_map(&self, v6: bool) -> usize {
        let in_map =
            |(address, entry): &(&IpAddr, &Entry)| address.is_ipv6() == v6 && entry.class != ABSENT;
        self.entries.iter().filter(in_map).count()
    }

    fn region_moves(&self, moves: &mut Vec<Move>) {
        let from = moves.len();
        for (net, region) in &self.regions.by_net {
            let in_map = region.class != ABSENT;
            let goes = !region.wanted();
            let new = if goes { self.regions.shape_around(*net) } else { region.shape() };
            if in_map && !goes && self.classes.shape(region.class) == Some(new) {
                continue;
            }
            let old = if in_map { region.class } else { self.regions.class_around(*net) };
            moves.push(Move { slot: Slot::Prefix(*net), old, like: old, new, in_map, goes });
        }
        // Longest first: nothing is looked up in a prefix whose more specific one is still missing.
        moves[from..].sort_by_key(|step| match step.slot {
            Slot::Prefix(net) => (std::cmp::Reverse(net.prefix_len()), step.slot),
            Slot::Address(_) => (std::cmp::Reverse(0), step.slot),
        });
    }

    /// Plans the change to these targets and by these moves. Sets that do not fit are an error; the caller withdraws
    /// them and asks again.
    pub(super) fn plan(
        &mut self,
        targets: &Targets,
        moves: &[Move],
        copies: &mut Copies,
        numbers: &mut Numbers,
    ) -> Result<Plan, Vec<Unfit>> {
        let deltas = self.deltas(moves);
        let flips = self.flips(targets, &deltas, copies);
        let frozen = self.frozen(&flips, &deltas);
        let strict = !frozen.is_empty();
        let numbering = self.classes.number(moves, strict, numbers);
        let rejudged = self.rejudges(&deltas);
        let mut plan = Plan { flips, numbering, strict, rejudged, ..Plan::default() };
        self.patch(&mut plan, &frozen)?;
        self.compile(&mut plan)?;
        Ok(plan)
    }

    fn deltas(&self, moves: &[Move]) -> Vec<Delta> {
        let pairs: FastSet<(Shape, Shape)> = moves
            .iter()
            .map(|step| (self.classes.shape(step.old).unwrap_or_default(), step.new))
            .collect();
        pairs.into_iter().map(|(old, new)| Delta::between(old, new, &self.lists)).collect()
    }

    fn distinguishes(&self, set: u32, deltas: &[Delta]) -> bool {
        let rules = self.sets.get(&set).and_then(|set| set.rules.as_ref());
        rules.is_some_and(|rules| deltas.iter().any(|delta| rules.distinguishes(delta)))
    }

    /// Whether a set that some pod has tells one of these apart; a set of an earlier daemon may.
    fn rejudges(&self, deltas: &[Delta]) -> bool {
        let live = self.sets.iter().filter(|(set, state)| **set != CLOSED_SET && state.users > 0);
        let mut tells =
            live.map(|(set, state)| state.rules.is_none() || self.distinguishes(*set, deltas));
        !deltas.is_empty() && tells.any(|tells| tells)
    }

    /// The flips, with those that copies of sets bring.
    fn flips(&mut self, targets: &Targets, deltas: &[Delta], copies: &mut Copies) -> Vec<Flip> {
        let mut left: BTreeMap<u32, u32> = BTreeMap::new();
        for (key, target) in targets {
            let (Some(old), Some(new)) = (self.locals[key].sets, target) else { continue };
            for direction in Direction::BOTH {
                if old.of(direction) != new.of(direction) {
                    *left.entry(old.of(direction)).or_default() += 1;
                }
            }
        }
        let joined: BTreeSet<u32> =
            targets.values().flatten().flat_map(|sets| [sets.ingress, sets.egress]).collect();
        for (set, leavers) in left {
            let Some(state) = self.sets.get(&set).filter(|_| set != CLOSED_SET) else { continue };
            let stays = state.users > leavers || joined.contains(&set);
            if stays && !copies.contains_key(&set) && self.distinguishes(set, deltas) {
                let rules = self.sets[&set].rules.as_ref().expect("it distinguishes");
                let (content, owner) = (Arc::clone(&rules.content), self.sets[&set].owner);
                let copy = self.new_set(&content, owner);
                copies.insert(set, copy);
            }
        }
        let copied = |sets: PodSets| {
            let of = |set: u32| copies.get(&set).copied().unwrap_or(set);
            PodSets::new(of(sets.ingress), of(sets.egress))
        };
        let mut flips = Vec::new();
        for (key, local) in &self.locals {
            let target = targets.get(key);
            let wanted = match target {
                Some(target) => *target,
                None if copies.is_empty() => continue,
                None => local.sets,
            };
            let new = wanted.map(copied);
            if new != local.sets || (new.is_none() && target.is_some()) {
                flips.push(Flip { pod: key.clone(), old: local.sets, new });
            }
        }
        flips
    }

    /// Sets that all their pods leave and that would tell the old state from the new one: they keep the old verdicts.
    fn frozen(&self, flips: &[Flip], deltas: &[Delta]) -> FastSet<u32> {
        let mut users: FastMap<u32, i64> = FastMap::default();
        let mut left: FastSet<u32> = FastSet::default();
        for flip in flips {
            for direction in Direction::BOTH {
                let old = flip.old.map(|sets| sets.of(direction));
                let new = flip.new.map(|sets| sets.of(direction));
                if let Some(old) = old {
                    *users.entry(old).or_default() -= 1;
                    if new.is_some() && new != Some(old) {
                        left.insert(old);
                    }
                }
                if let Some(new) = new {
                    *users.entry(new).or_default() += 1;
                }
            }
        }
        left.retain(|set| {
            self.sets.get(set).is_some_and(|state| {
                *set != CLOSED_SET
                    && i64::from(state.users) + users.get(set).copied().unwrap_or(0) == 0
                    && (state.rules.is_none() || self.distinguishes(*set, deltas))
            })
        });
        left
    }

    /// What sets that exist get for classes that are new, another shape's, or were refused. Those of whoever has most
    /// entries come last: they are refused first. A namespace's share is no bound here, the map's size is.
    fn patch(&mut self, plan: &mut Plan, frozen: &FastSet<u32>) -> Result<(), Vec<Unfit>> {
        let told = self.told(&plan.numbering);
        if told.new.is_empty() && told.taken.is_empty() && self.refused.classes.is_empty() {
            return Ok(());
        }
        let entries = self.entries_by_owner();
        let mut room = (capacity::VERDICTS as usize).saturating_sub(entries.values().sum());
        let asked = self
            .sets
            .iter()
            .filter(|(number, set)| set.users > 0 && !self.refused.evicted.contains(number));
        let mut asked: Vec<_> = asked
            .map(|(number, set)| (set.owner.map_or(0, |owner| entries[&Some(owner)]), *number))
            .collect();
        asked.sort_unstable();
        let mut unfit = Vec::new();
        for (_, number) in asked {
            let patches = self.patches(number, &told, frozen.contains(&number));
            let set = &self.sets[&number];
            let both = patches.before.iter().chain(&patches.in_place);
            let more = both.filter(|patch| set.gains(patch.class, patch.profile)).count();
            if more > room {
                let wanted = patches.before.iter().chain(&patches.in_place);
                let wanted = wanted.filter(|patch| patch.profile != set.any);
                let wanted = wanted.map(|patch| patch.class).chain(set.table.keys().copied());
                let need = Some(Need::of(wanted, &plan.numbering));
                unfit.push(Unfit { set: number, full: VERDICTS_FULL, need });
                continue;
            }
            room -= more;
            plan.before.extend(patches.before);
            plan.in_place.extend(patches.in_place);
            plan.closed.extend(patches.closed);
            plan.rejudged |= patches.regained;
        }
        if unfit.is_empty() { Ok(()) } else { Err(unfit) }
    }

    fn told(&self, numbering: &Numbering) -> Told {
        let new = numbering.new.iter().map(|class| {
            let parent = self.classes.shape(class.parent).unwrap_or_default();
            (*class, Delta::between(parent, class.shape, &self.lists))
        });
        let taken = numbering
            .taken
            .iter()
            .map(|taken| (*taken, Delta::between(taken.old, taken.new, &self.lists)));
        Told { new: new.collect(), taken: taken.collect() }
    }

    /// What one set gets. A class that finds no room is denied, and so is one that it is parted from, until there is.
    fn patches(&mut self, number: u32, told: &Told, frozen: bool) -> Patches {
        let Self { sets, profiles, lists, classes, refused, .. } = self;
        let (set, closed) = (&sets[&number], sets[&CLOSED_SET].any);
        let rules = set.rules.as_ref().filter(|_| !frozen);
        let mut patches = Patches::default();
        let mut retaken: FastSet<u32> = FastSet::default();
        for (taken, delta) in &told.taken {
            let Some(rules) = rules.filter(|rules| rules.distinguishes(delta)) else { continue };
            let (class, body) = (taken.number, rules.evaluate(taken.new, lists));
            retaken.insert(class);
            let profile = profiles.number(body, set.owner).unwrap_or_else(|full| {
                patches.closed.insert((number, class), full);
                closed
            });
            if profile != set.profile(class) {
                patches.in_place.push(Patch { set: number, class, profile });
            }
        }
        let mut regained: FastMap<u32, u32> = FastMap::default();
        for (key, full) in refused.classes.range((number, 0)..=(number, u32::MAX)) {
            let class = key.1;
            if retaken.contains(&class) {
                continue;
            }
            let shape = classes.shape(class).filter(|_| refused.room.contains(full.map));
            let found = rules.zip(shape).map_or(Err(*full), |(rules, shape)| {
                profiles.number(rules.evaluate(shape, lists), set.owner)
            });
            match found {
                Err(full) => {
                    patches.closed.insert(*key, full);
                }
                Ok(profile) => {
                    regained.insert(class, profile);
                    if profile != set.profile(class) {
                        patches.regained = true;
                        patches.before.push(Patch { set: number, class, profile });
                    }
                }
            }
        }
        for (class, delta) in &told.new {
            let key = (number, class.number);
            let profile = if let Some(rules) = rules.filter(|rules| rules.distinguishes(delta)) {
                let body = rules.evaluate(class.shape, lists);
                profiles.number(body, set.owner).unwrap_or_else(|full| {
                    patches.closed.insert(key, full);
                    closed
                })
            } else {
                let like = if frozen { class.old } else { class.parent };
                regained.get(&like).copied().unwrap_or_else(|| {
                    let full = refused.classes.get(&(number, like));
                    patches.closed.extend(full.map(|full| (key, *full)));
                    set.profile(like)
                })
            };
            if profile != set.any {
                patches.before.push(Patch { set: number, class: class.number, profile });
            }
        }
        patches
    }

    /// Tables of the sets that pods get and that have none yet.
    fn compile(&mut self, plan: &mut Plan) -> Result<(), Vec<Unfit>> {
        let wanted: BTreeSet<u32> = plan
            .flips
            .iter()
            .filter_map(|flip| flip.new)
            .flat_map(|sets| [sets.ingress, sets.egress])
            .filter(|set| self.sets.get(set).is_some_and(|set| set.users == 0))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let taken: FastMap<u32, Shape> =
            plan.numbering.taken.iter().map(|taken| (taken.number, taken.new)).collect();
        let mut classes: Vec<(u32, Shape)> = self
            .classes
            .by_number
            .iter()
            .map(|(number, class)| (*number, taken.get(number).copied().unwrap_or(class.shape)))
            .collect();
        classes.extend(plan.numbering.new.iter().map(|class| (class.number, class.shape)));
        classes.sort_unstable();
        let postings = Postings::new(&classes, &self.lists);
        let mut entries = self.entries_by_owner();
        for patch in plan.before.iter().chain(&plan.in_place) {
            let set = &self.sets[&patch.set];
            if set.gains(patch.class, patch.profile) {
                *entries.entry(set.owner).or_default() += 1;
            }
        }
        let mut used: usize = entries.values().sum();
        let mut full: Vec<Lacking> = Vec::new();
        for number in wanted {
            let set = &self.sets[&number];
            let Some(rules) = &set.rules else { continue };
            let (owner, mark) = (set.owner, self.profiles.mark());
            let own = |owner| entries.get(&Some(owner)).copied().unwrap_or(0);
            let found = rules.compile(&postings, &self.lists, &mut self.profiles, owner);
            let has_room = |table: &FastMap<u32, u32>| {
                fits(capacity::VERDICTS as usize, used, table.len() + 1, owner, own)
            };
            match found {
                Err(found) => {
                    self.profiles.withdraw(mark);
                    full.push((number, found, None));
                }
                Ok((_, table)) if !has_room(&table) => {
                    self.profiles.withdraw(mark);
                    full.push((number, VERDICTS_FULL, Some(table)));
                }
                Ok((any, table)) => {
                    used += table.len() + 1;
                    *entries.entry(owner).or_default() += table.len() + 1;
                    plan.tables.push(Table { set: number, any, table });
                }
            }
        }
        if full.is_empty() { Ok(()) } else { Err(self.unfit(plan, full)) }
    }

    /// Pods that were to get this set keep what they have, as far as that closes what this is there to close.
    pub(super) fn withdraw(&mut self, targets: &mut Targets, unfit: Unfit) {
        let Unfit { set, full, need } = unfit;
        let owner = self.sets[&set].owner;
        let rules = self.sets[&set].rules.as_ref().expect("it was compiled");
        let content = Arc::clone(&rules.content);
        let direction = content.direction;
        let mut pods = Vec::new();
        for (key, target) in targets.iter_mut() {
            let Some(wanted) = target.filter(|sets| sets.of(direction) == set) else { continue };
            let local = &self.locals[key];
            let had = local.sets.map(|sets| self.without_evicted(sets));
            let kept = kept(had, &content, &self.sets, &self.profiles);
            *target = Some(match direction {
                Direction::Ingress => PodSets::new(kept, wanted.egress),
                Direction::Egress => PodSets::new(wanted.ingress, kept),
            });
            pods.push(key.clone());
        }
        self.refuse(pods, (direction, Some(&content)), owner, (full, need));
    }
}
