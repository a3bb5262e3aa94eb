//! What was refused: said for as long as it is so, and tried again when there may be room or its content is another.
//!
//! To try costs as much as to compile a set, so nobody's rules that do not fit keep those of others waiting: a content that
//! found no room is remembered with how full the map was, and is tried once the map is less full than that, or `VERDICTS`
//! has room for what it wanted. What it brings itself while it is tried, and what goes with it, is no reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState},
    sync::Arc,
};

use veni_ebpf_common::table::capacity;

use super::{
    Index, Refusal,
    class::Numbering,
    cluster::IdentityId,
    plan::{Plan, Targets},
};
use crate::{
    change::{CLOSED_SET, Direction, PodKey, PodSets},
    compile::{
        AtomId,
        content::Content,
        profile::{Full, Owner, fits},
    },
    intern::{FastMap, FastSet},
};

/// A set that finds no room.
#[derive(Debug)]
pub(super) struct Unfit {
    pub(super) set: u32,
    pub(super) full: Full,
    /// If it is `VERDICTS` that is full.
    pub(super) need: Option<Need>,
}

/// What a set wants in `VERDICTS`.
#[derive(Debug, Clone, Default)]
pub(super) struct Need {
    /// How many entries, those included that others get for what it alone tells apart.
    pub(super) entries: usize,
    /// The classes of entries that it does without when these go.
    pub(super) classes: FastSet<u32>,
}

/// A set that found no room, what was full, and its table where that is `VERDICTS`.
pub(super) type Lacking = (u32, Full, Option<FastMap<u32, u32>>);

/// Pods whose set found no room.
#[derive(Debug)]
struct Standing {
    refusal: Refusal,
    owner: Owner,
    /// Which content it was; `None`: one that an earlier daemon left.
    said: Option<u64>,
    need: Option<Need>,
    /// How much of the map was taken, by all and by the owner, where profiles have it.
    taken: Option<[usize; 2]>,
    /// Addresses that there were when it was tried: with fewer it may need less.
    addresses: usize,
}

/// What was refused and still is, addresses aside: these are tried by every change.
#[derive(Debug, Default)]
pub(super) struct Refused {
    sets: Vec<Standing>,
    /// Those of `sets` that this change does not try, by their contents.
    untried: FastMap<u64, usize>,
    /// (set, class) that are denied because what the rules say found no room.
    pub(super) classes: BTreeMap<(u32, u32), Full>,
    /// Maps of which something was freed since the last change.
    pub(super) room: BTreeSet<&'static str>,
    /// Sets in force that this change takes from all their pods: they have no room for their new classes.
    pub(super) evicted: BTreeSet<u32>,
    /// Sets that change while some of their pods leave: those found no room for a copy.
    pub(super) uncopied: BTreeSet<u32>,
    random: RandomState,
}

/// Entries in `VERDICTS`.
#[derive(Debug)]
struct Verdicts {
    by_owner: FastMap<Owner, usize>,
    used: usize,
}

impl Need {
    /// One entry for each of these classes, and for all others.
    pub(super) fn of(classes: impl Iterator<Item = u32>, numbering: &Numbering) -> Self {
        let of_a_while = numbering.new.iter().filter(|class| class.temporary);
        let of_a_while: FastSet<u32> = of_a_while.map(|class| class.number).collect();
        let classes: FastSet<u32> = classes.filter(|class| !of_a_while.contains(class)).collect();
        Self { entries: classes.len() + 1, classes }
    }
}

impl Verdicts {
    fn fit(&self, more: usize, owner: Owner) -> bool {
        let own = |owner| self.by_owner.get(&Some(owner)).copied().unwrap_or(0);
        fits(capacity::VERDICTS as usize, self.used, more, owner, own)
    }
}

impl Index {
    /// Whether something was freed since the last change that may be room for what was refused, or for addresses that were
    /// left out: another change is worth its time, though nothing else happened.
    #[must_use]
    pub fn may_fit(&self) -> bool {
        let freed = |map| self.freed_prefixes.contains(map) || self.profiles.has_freed(map);
        if self.refused.classes.values().any(|full| freed(full.map)) || self.takes_left_out() {
            return true;
        }
        if self.refused.sets.is_empty() {
            return false;
        }
        // With sets that went the next change takes away their blocks and classes.
        if !self.atoms.is_settled() {
            return true;
        }
        let verdicts = self.verdicts();
        let mut worth =
            self.refused.sets.iter().filter(|found| self.may_find_room(found, freed, &verdicts));
        worth.any(|found| {
            let mut identities = self.identities_of(&found.refusal.pods);
            identities.any(|id| !self.awaits(&self.cluster.identity(id).chosen))
        })
    }

    /// Whether addresses were left out of a map that has room.
    fn takes_left_out(&self) -> bool {
        [false, true].into_iter().any(|v6| {
            self.left_out[usize::from(v6)] && self.addresses_in_map(v6) < capacity::CLASS as usize
        })
    }

    /// Looks again at what was refused, where there may be room now.
    pub(super) fn look_for_room(&mut self) {
        self.refused.evicted.clear();
        self.refused.uncopied.clear();
        self.refused.untried.clear();
        self.refused.room = self.profiles.freed();
        self.refused.room.append(&mut self.freed_prefixes);
        if self.refused.sets.is_empty() {
            return;
        }
        let verdicts = self.verdicts();
        let freed = |map| self.refused.room.contains(map);
        let (mut untried, mut tried) = (FastMap::default(), Vec::new());
        for (place, found) in self.refused.sets.iter().enumerate() {
            if self.may_find_room(found, freed, &verdicts) {
                tried.extend(self.identities_of(&found.refusal.pods));
            } else {
                untried.extend(found.said.map(|said| (said, place)));
            }
        }
        self.refused.untried = untried;
        self.dirty.rules.extend(tried);
    }

    fn identities_of(&self, pods: &[PodKey]) -> impl Iterator<Item = IdentityId> {
        let locals = pods.iter().filter_map(|pod| self.locals.get(pod));
        locals.filter_map(|local| Some(self.cluster.pod(local.pod?).identity))
    }

    fn may_find_room(
        &self,
        found: &Standing,
        freed: impl Fn(&'static str) -> bool,
        verdicts: &Verdicts,
    ) -> bool {
        // By an eighth at least: pods that come and go one by one are no reason.
        if 8 * self.entries.len() < 7 * found.addresses {
            return true;
        }
        if let Some(need) = &found.need {
            return verdicts.fit(need.entries, found.owner);
        }
        let Some(before) = found.taken else { return freed(found.refusal.map) };
        let now = self.profiles.taken(found.refusal.map, found.owner).unwrap_or_default();
        now[0] < before[0] || now[1] < before[1]
    }

    fn verdicts(&self) -> Verdicts {
        let by_owner = self.entries_by_owner();
        Verdicts { used: by_owner.values().sum(), by_owner }
    }

    /// A content, whatever numbers its atoms have now: those of what is refused are soon others'.
    fn said(&self, content: &Content) -> u64 {
        let hash = |value: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = self.refused.random.build_hasher();
            value(&mut hasher);
            hasher.finish()
        };
        hash(&|all| {
            (content.direction, content.isolated, content.unselected, &content.groups).hash(all);
            for rule in &content.rules {
                (rule.stage, rule.verb, rule.number, &rule.ports).hash(all);
                // They are in the order of their numbers.
                let peers = rule.peers.as_ref().map(|peers| {
                    let questions = peers.iter().map(|atom| self.atoms.question(*atom));
                    let questions = questions.map(|question| hash(&|one| question.hash(one)));
                    questions.fold(peers.len() as u64, u64::wrapping_add)
                });
                peers.hash(all);
            }
        })
    }

    /// What keeps a content from being tried by this change.
    pub(super) fn untried(&self, content: &Content) -> Option<Full> {
        if self.refused.untried.is_empty() {
            return None;
        }
        let place = self.refused.untried.get(&self.said(content))?;
        let Refusal { map, capacity, .. } = self.refused.sets[*place].refusal;
        Some(Full { map, capacity })
    }

    /// What sets want that found no room.
    pub(super) fn unfit(&self, plan: &Plan, lacking: Vec<Lacking>) -> Vec<Unfit> {
        let alone = self.told_apart_by_refused(plan);
        let patches = plan.before.iter().chain(&plan.in_place);
        let gained = patches.filter(|patch| {
            alone.contains(&patch.class) && self.sets[&patch.set].gains(patch.class, patch.profile)
        });
        let gained = gained.count();
        let unfit = lacking.into_iter().map(|(set, full, table)| {
            let need = table.map(|table| {
                let mut need = Need::of(table.into_keys(), &plan.numbering);
                need.entries += gained;
                need.classes.retain(|class| !alone.contains(class));
                need
            });
            Unfit { set, full, need }
        });
        unfit.collect()
    }

    /// New classes that only sets without room tell from others: they go with these.
    fn told_apart_by_refused(&self, plan: &Plan) -> FastSet<u32> {
        let accepted: FastSet<u32> = plan.tables.iter().map(|table| table.set).collect();
        let mut asked: FastMap<AtomId, u32> = FastMap::default();
        for (number, set) in &self.sets {
            let refused = set.users == 0 && !accepted.contains(number);
            let rules = set.rules.as_ref().filter(|_| refused);
            for atom in rules.into_iter().flat_map(|rules| rules.content.atoms()) {
                *asked.entry(atom).or_default() += 1;
            }
        }
        let alone = |atom| asked.get(&atom).is_some_and(|asked| *asked == self.atoms.users(atom));
        let new = plan.numbering.new.iter();
        new.filter(|class| self.lists.atoms_of(class.shape).any(alone))
            .map(|class| class.number)
            .collect()
    }

    /// These classes are gone: who had an entry for one needs it no more.
    pub(super) fn need_less(&mut self, gone: &[u32]) {
        for need in self.refused.sets.iter_mut().filter_map(|found| found.need.as_mut()) {
            let went = gone.iter().filter(|class| need.classes.remove(class)).count();
            need.entries = need.entries.saturating_sub(went);
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
        // Those that are of no pod any more stay till the change is made: they have their places.
        for standing in &mut self.refused.sets {
            standing.refusal.pods.retain(|pod| {
                let there = locals.get(pod).is_some_and(|local| local.pod.is_some() || local.held);
                there && !looked_at.contains(pod)
            });
        }
    }

    /// Pods whose set, with this content, found no room; without one it was an earlier daemon's.
    pub(super) fn refuse(
        &mut self,
        mut pods: Vec<PodKey>,
        (direction, content): (Direction, Option<&Content>),
        owner: Owner,
        (Full { map, capacity }, need): (Full, Option<Need>),
    ) {
        let said = content.map(|content| self.said(content));
        if let Some(place) = said.and_then(|said| self.refused.untried.get(&said)) {
            let before = &mut self.refused.sets[*place].refusal.pods;
            before.append(&mut pods);
            before.sort_unstable();
            before.dedup();
            return;
        }
        let refusal = Refusal { pods, direction: Some(direction), map, capacity };
        let taken = self.profiles.taken(map, owner);
        let addresses = self.entries.len();
        self.refused.sets.push(Standing { refusal, owner, said, need, taken, addresses });
    }

    /// A set in force whose new classes find no room: without their entries they would get what all others get. Its
    /// pods are closed.
    pub(super) fn evict(&mut self, targets: &mut Targets, unfit: &Unfit) {
        self.refused.evicted.insert(unfit.set);
        let owner = self.sets[&unfit.set].owner;
        let rules = self.sets[&unfit.set].rules.as_ref();
        let content = rules.map(|rules| Arc::clone(&rules.content));
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
                let why = (unfit.full, unfit.need.clone());
                self.refuse(pods, (direction, content.as_deref()), owner, why);
            }
        }
    }

    /// What a pod has until the change is made: nothing of the sets that go without their new classes.
    pub(super) fn without_evicted(&self, sets: PodSets) -> PodSets {
        let evicted = |direction: &Direction| self.refused.evicted.contains(&sets.of(*direction));
        Direction::BOTH.into_iter().filter(evicted).fold(sets, closed)
    }

    /// The same of one that gets others, and nothing of a set that it leaves while that changes.
    pub(super) fn meanwhile(&self, old: PodSets, new: PodSets) -> PodSets {
        let leaves = |direction: &Direction| {
            let set = old.of(*direction);
            self.refused.uncopied.contains(&set) && new.of(*direction) != set
        };
        let rest = self.without_evicted(old);
        Direction::BOTH.into_iter().filter(leaves).fold(rest, closed)
    }

    /// Everything that is refused, in order: the same as long as nothing changes.
    pub(super) fn all_refused(&mut self, addresses: Vec<Refusal>) -> Vec<Refusal> {
        let (sets, classes) = (&self.sets, &self.classes.by_number);
        self.refused.sets.retain(|found| !found.refusal.pods.is_empty());
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
