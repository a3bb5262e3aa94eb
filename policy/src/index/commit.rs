//! Carrying out a plan: the steps, in their order, and the index as it is after them.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use veni_ebpf_common::table::{ANY_CLASS, NO_CLASS, OPEN_SET, VerdictKey};

use super::{
    Change, Index,
    class::{Class, Move, Route, Slot},
    plan::{Copies, Patch, Plan, Targets},
    region::ABSENT,
    target::prefixes_of,
};
use crate::{
    change::{CLOSED_SET, Direction, PodSets, Remove, Step, Write},
    intern::FastSet,
};

impl Index {
    /// The steps from the last change's state to the present one. The caller carries out all of them, in order.
    #[must_use]
    pub fn change(&mut self) -> Change {
        self.look_for_room();
        let mut left_out_of = Vec::new();
        let (mut targets, mut moves) = self.wanted(false);
        let left_out = self.withhold(&mut moves, &mut left_out_of);
        if left_out != self.left_out {
            // Rules that deny or pass on pods say otherwise now: all is asked once more, with the moves of before.
            self.left_out = left_out;
            self.dirty.all_rules = true;
            self.dirty.addresses.extend(moves.iter().filter_map(|step| match step.slot {
                Slot::Address(address) => Some(address),
                Slot::Prefix(_) => None,
            }));
            left_out_of.clear();
            (targets, moves) = self.wanted(true);
            self.withhold(&mut moves, &mut left_out_of);
        }
        let mut copies = Copies::default();
        let plan = loop {
            let mut numbers = self.classes.numbers.clone();
            match self.plan(&targets, &moves, &mut copies, &mut numbers) {
                Ok(plan) => {
                    self.classes.numbers = numbers;
                    break plan;
                }
                Err(unfit) => {
                    for unfit in unfit {
                        match copies.iter_mut().find(|(_, copy)| **copy == unfit.set) {
                            // No room for a copy: the pods stay with the original, and who leaves it is closed first.
                            Some((original, copy)) => {
                                self.refused.uncopied.insert(*original);
                                *copy = *original;
                            }
                            None if self.sets[&unfit.set].users > 0 => {
                                self.evict(&mut targets, &unfit);
                            }
                            None => self.withdraw(&mut targets, unfit),
                        }
                    }
                }
            }
        };
        self.refused.classes.clone_from(&plan.closed);
        self.rename_copies(&copies);
        let steps = self.execute(&plan, &moves);
        self.sweep();
        Change { steps, refused: self.all_refused(left_out_of) }
    }

    /// The sets that pods are to have, and every slot whose shape changes.
    fn wanted(&mut self, again: bool) -> (Targets, Vec<Move>) {
        let targets = self.targets();
        let regions = self.refresh_vectors() | std::mem::take(&mut self.dirty.regions);
        let moves = self.moves(regions || again);
        (targets, moves)
    }

    pub(super) fn users_of(&self, set: u32) -> Vec<crate::change::PodKey> {
        let has = |sets: PodSets| sets.ingress == set || sets.egress == set;
        let users = self.locals.iter().filter(|(_, local)| local.sets.is_some_and(has));
        users.map(|(key, _)| key.clone()).collect()
    }

    fn rename_copies(&mut self, copies: &Copies) {
        for copy in copies.values() {
            if let Some(rules) = &self.sets[copy].rules {
                self.set_ids.insert(Arc::clone(&rules.content), *copy);
            }
        }
    }

    fn execute(&mut self, plan: &Plan, moves: &[Move]) -> Vec<Step> {
        let mut steps = std::mem::take(&mut self.first);
        for flip in plan.flips.iter().filter(|flip| flip.new.is_none()) {
            if flip.old.is_some() {
                steps.push(Step::Endpoint { pod: flip.pod.clone(), sets: PodSets::CLOSED });
            }
        }
        let closed_first = steps.len();
        for flip in &plan.flips {
            if let (Some(old), Some(new)) = (flip.old, flip.new)
                && self.meanwhile(old, new) != old
            {
                let (pod, sets) = (flip.pod.clone(), self.meanwhile(old, new));
                steps.push(Step::Endpoint { pod, sets });
            }
        }
        if steps.len() > closed_first {
            // A program that began before it was closed finds no class that the set does not know.
            steps.push(Step::Grace);
        }
        self.write_tables(plan, &mut steps);
        self.move_slots(plan, moves, &mut steps);
        for patch in &plan.in_place {
            self.put(*patch, &mut steps);
        }
        let mut late = Vec::new();
        self.leave_slots(plan, moves, &mut steps, &mut late);
        self.flip(plan, &mut steps);
        // Flows go on being judged by what they were, unless some set may say otherwise: pods come and go all the time.
        if plan.rejudged || !plan.flips.is_empty() || !plan.in_place.is_empty() {
            steps.push(Step::Epoch);
        }
        let mut deletes = Vec::new();
        let freed = self.settle_classes(plan, moves, &mut deletes);
        self.drop_sets(&mut deletes);
        let (writes, profile_deletes) = self.profiles.settle();
        deletes.extend(profile_deletes);
        self.classes.rest(freed);
        steps.splice(0..0, writes);
        if !late.is_empty() {
            steps.push(Step::Grace);
            steps.extend(late);
        }
        if !deletes.is_empty() || self.profiles.want_grace() {
            // What the deletes take is out of use already, so this follows the last use of every number.
            steps.push(Step::Grace);
            steps.extend(deletes);
            self.profiles.rested();
            self.classes.rested();
        }
        steps
    }

    /// New classes into the sets that are there, then the new sets.
    fn write_tables(&mut self, plan: &Plan, steps: &mut Vec<Step>) {
        for patch in &plan.before {
            self.put(*patch, steps);
        }
        for new in &plan.tables {
            let set = self.sets.get_mut(&new.set).expect("the plan is of sets that exist");
            set.any = new.any;
            set.table.clone_from(&new.table);
            self.profiles.acquire(new.any);
            let key = VerdictKey { set: new.set, class: ANY_CLASS };
            steps.push(Step::Write(Write::Verdict { key, profile: new.any }));
            for (class, profile) in &new.table {
                self.profiles.acquire(*profile);
                let key = VerdictKey { set: new.set, class: *class };
                steps.push(Step::Write(Write::Verdict { key, profile: *profile }));
            }
        }
    }

    /// One entry of a set that stays, in one step.
    fn put(&mut self, patch: Patch, steps: &mut Vec<Step>) {
        let Patch { set, class, profile } = patch;
        let key = VerdictKey { set, class };
        let set = self.sets.get_mut(&set).expect("the plan is of sets that exist");
        let before = if profile == set.any {
            steps.push(Step::Delete(Remove::Verdict(key)));
            set.table.remove(&class)
        } else {
            steps.push(Step::Write(Write::Verdict { key, profile }));
            self.profiles.acquire(profile);
            set.table.insert(class, profile)
        };
        if let Some(before) = before {
            self.profiles.release(before);
        }
    }

    /// Addresses before prefixes: an address that gets an entry never sees its prefix' change.
    fn move_slots(&self, plan: &Plan, moves: &[Move], steps: &mut Vec<Step>) {
        let taken: FastSet<u32> = plan.numbering.taken.iter().map(|taken| taken.number).collect();
        for (step, route) in moves.iter().zip(&plan.numbering.routes) {
            let stays_as_it_is = step.in_map && route.via == step.old;
            // What goes leaves first a class that is about to mean something else.
            let goes_at_once =
                step.goes && !plan.strict && route.via == route.last && !taken.contains(&step.old);
            if !stays_as_it_is && !goes_at_once {
                steps.push(Step::Write(write_class(step.slot, route.via)));
            }
        }
    }

    /// Slots that go: at once where nothing old is asked any more, else late, as the second moves of those that stay.
    fn leave_slots(
        &self,
        plan: &Plan,
        moves: &[Move],
        steps: &mut Vec<Step>,
        late: &mut Vec<Step>,
    ) {
        // Prefixes first: an address that loses its entry finds what it will keep.
        for (step, route) in moves.iter().zip(&plan.numbering.routes).rev() {
            if step.goes {
                let delete = Step::Delete(remove_class(step.slot));
                let at_once = !plan.strict && route.via == route.last;
                if at_once { steps.push(delete) } else { late.push(delete) }
            } else if route.via != route.last {
                late.push(Step::Write(write_class(step.slot, route.last)));
            }
        }
    }

    fn flip(&mut self, plan: &Plan, steps: &mut Vec<Step>) {
        for flip in &plan.flips {
            for direction in Direction::BOTH {
                let old = flip.old.map(|sets| sets.of(direction));
                let new = flip.new.map(|sets| sets.of(direction));
                if let Some(set) = new.and_then(|set| self.sets.get_mut(&set)) {
                    set.users += 1;
                }
                if let Some(set) = old.and_then(|set| self.sets.get_mut(&set)) {
                    set.users -= 1;
                }
            }
            match flip.new {
                None => {
                    self.locals.remove(&flip.pod);
                }
                Some(sets) => {
                    steps.push(Step::Endpoint { pod: flip.pod.clone(), sets });
                    if let Some(local) = self.locals.get_mut(&flip.pod) {
                        local.sets = Some(sets);
                    }
                }
            }
        }
    }

    /// Brings classes and slots to the state after the change. Returns the numbers that are free after it.
    fn settle_classes(&mut self, plan: &Plan, moves: &[Move], deletes: &mut Vec<Step>) -> Vec<u32> {
        for taken in &plan.numbering.taken {
            self.classes.by_shape.remove(&taken.old);
            self.classes.by_shape.insert(taken.new, taken.number);
            if let Some(class) = self.classes.by_number.get_mut(&taken.number) {
                class.shape = taken.new;
            }
        }
        for new in plan.numbering.new.iter().filter(|new| !new.temporary) {
            self.classes.by_shape.insert(new.shape, new.number);
            self.classes.by_number.insert(new.number, Class { shape: new.shape, slots: 0 });
        }
        let mut touched: FastSet<u32> = FastSet::default();
        for (step, route) in moves.iter().zip(&plan.numbering.routes) {
            if step.in_map {
                touched.insert(step.old);
                self.count(step.old, |slots| *slots -= 1);
            }
            touched.insert(route.last);
            if !step.goes {
                self.count(route.last, |slots| *slots += 1);
            }
            self.settle_slot(step, *route);
        }
        let mut freed: Vec<u32> =
            plan.numbering.new.iter().filter(|new| new.temporary).map(|new| new.number).collect();
        for number in touched {
            let idle = self.classes.by_number.get(&number).filter(|class| class.slots == 0);
            let Some(class) = idle.filter(|_| number != NO_CLASS) else { continue };
            if self.classes.by_shape.get(&class.shape) == Some(&number) {
                self.classes.by_shape.remove(&class.shape);
            }
            self.classes.by_number.remove(&number);
            freed.push(number);
        }
        freed.sort_unstable();
        self.need_less(&freed);
        for (number, set) in &mut self.sets {
            for class in &freed {
                if let Some(profile) = set.table.remove(class) {
                    self.profiles.release(profile);
                    let key = VerdictKey { set: *number, class: *class };
                    deletes.push(Step::Delete(Remove::Verdict(key)));
                }
            }
        }
        freed
    }

    fn count(&mut self, class: u32, change: impl FnOnce(&mut u32)) {
        if let Some(class) = self.classes.by_number.get_mut(&class) {
            change(&mut class.slots);
        }
    }

    fn settle_slot(&mut self, step: &Move, route: Route) {
        match step.slot {
            Slot::Address(address) if step.goes => {
                self.entries.remove(&address);
            }
            Slot::Address(address) => {
                if let Some(entry) = self.entries.get_mut(&address) {
                    entry.class = route.last;
                }
            }
            Slot::Prefix(net) if step.goes => {
                self.regions.remove(net);
                self.freed_prefixes.insert(prefixes_of(net.addr().is_ipv6()));
            }
            Slot::Prefix(net) => {
                if let Some(region) = self.regions.by_net.get_mut(&net) {
                    debug_assert!(route.last != ABSENT);
                    region.class = route.last;
                }
            }
        }
    }

    /// Sets that no pod has.
    fn drop_sets(&mut self, deletes: &mut Vec<Step>) {
        let idle: Vec<u32> =
            self.sets.iter().filter(|(_, set)| set.users == 0).map(|(number, _)| *number).collect();
        for number in idle {
            debug_assert!(number != OPEN_SET && number != CLOSED_SET);
            let Some(set) = self.sets.remove(&number) else { continue };
            if set.any != 0 {
                for (class, profile) in set.table.iter().chain([(&ANY_CLASS, &set.any)]) {
                    self.profiles.release(*profile);
                    let key = VerdictKey { set: number, class: *class };
                    deletes.push(Step::Delete(Remove::Verdict(key)));
                }
            }
            self.inherited.remove(&number);
            if let Some(rules) = set.rules {
                let content = &rules.content;
                self.atoms.release(content.atoms());
                for name in content.port_names() {
                    if let Some(users) = self.port_names.get_mut(name) {
                        *users -= 1;
                        if *users == 0 {
                            self.port_names.remove(name);
                            self.dirty.port_names = true;
                        }
                    }
                }
                if self.set_ids.get(content) == Some(&number) {
                    self.set_ids.remove(content);
                }
            }
            self.set_numbers.give_back(number);
        }
        self.forget_origins();
    }

    /// Forgets rules that no set names any more.
    fn sweep_rules(&mut self) {
        if !self.registry.wants_sweep() {
            return;
        }
        let mut used = FastSet::default();
        for set in self.sets.values() {
            match &set.rules {
                Some(rules) => used.extend(rules.content.numbers()),
                None => {
                    used.extend(self.profiles.body(set.any).map(|body| body.otherwise.rule()));
                }
            }
        }
        self.registry.sweep(&used);
    }

    /// Forgets lists that nothing refers to any more.
    fn sweep(&mut self) {
        self.sweep_rules();
        if !self.lists.atoms.wants_sweep() && !self.lists.ports.wants_sweep() {
            return;
        }
        let (mut atoms, mut ports) = (FastSet::default(), FastSet::default());
        for (_, identity) in self.cluster.live_identities() {
            atoms.insert(identity.atoms);
            ports.insert(identity.ports);
        }
        for entry in self.entries.values() {
            atoms.extend([entry.blocks, entry.extra]);
        }
        atoms.extend(self.regions.lists());
        for class in self.classes.by_number.values() {
            let shape = class.shape;
            atoms.extend([shape.pod, shape.blocks, shape.extra]);
            ports.insert(shape.ports);
        }
        self.lists.atoms.sweep(&atoms);
        self.lists.ports.sweep(&ports);
    }
}

fn write_class(slot: Slot, class: u32) -> Write {
    match slot {
        Slot::Address(IpAddr::V4(address)) => Write::ClassV4 { address, class },
        Slot::Address(IpAddr::V6(address)) => Write::ClassV6 { address, class },
        Slot::Prefix(IpNet::V4(net)) => Write::CidrV4 { net, class },
        Slot::Prefix(IpNet::V6(net)) => Write::CidrV6 { net, class },
    }
}

const fn remove_class(slot: Slot) -> Remove {
    match slot {
        Slot::Address(IpAddr::V4(address)) => Remove::ClassV4(address),
        Slot::Address(IpAddr::V6(address)) => Remove::ClassV6(address),
        Slot::Prefix(IpNet::V4(net)) => Remove::CidrV4(net),
        Slot::Prefix(IpNet::V6(net)) => Remove::CidrV6(net),
    }
}
