//! A rule set: its content, and what it says to each class.

use std::sync::Arc;

use veni_ebpf_common::table::Decision;

use super::{
    AtomId, Shape,
    content::{Content, FlatPort, FlatRule, Groups, NamedPort},
    paint,
    profile::{Body, Full, Owner, Profiles},
};
use crate::intern::{FastMap, Interner};

/// A set and its table.
#[derive(Debug)]
pub(crate) struct Set {
    /// `None`: a set that is only a table (the closed one, or one left by an earlier daemon).
    pub(crate) rules: Option<Rules>,
    pub(crate) owner: Owner,
    /// Class → profile, where it is not `any`.
    pub(crate) table: FastMap<u32, u32>,
    /// The profile of every other class.
    pub(crate) any: u32,
    /// Pods that have it.
    pub(crate) users: u32,
}

/// A content, prepared for being asked about many classes.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) content: Arc<Content>,
    /// For each atom which of `lists` has the rules that name it: the blocks of one rule share one.
    by_atom: FastMap<AtomId, u32>,
    lists: Vec<Vec<u32>>,
    /// Rules for everyone.
    everyone: Vec<u32>,
    /// Some rule asks for the peer's named ports.
    named: bool,
    /// Some rule for everyone does.
    everyone_named: bool,
}

/// In a list of rules: the rule is reached by what it says of the node itself. Comes after every plain one.
const OWN_NODE: u32 = 1 << 31;

/// The rules that match a class.
#[derive(Debug)]
struct Matching {
    /// In order.
    rules: Vec<u32>,
    /// The class is the node itself, and some rule names it.
    own_node: bool,
}

/// The lists that shapes refer to.
#[derive(Debug)]
pub(crate) struct Lists {
    pub(crate) atoms: Interner<AtomId>,
    pub(crate) ports: Interner<NamedPort>,
}

/// Classes by atom.
#[derive(Debug)]
pub(crate) struct Postings<'a> {
    classes: &'a [(u32, Shape)],
    by_atom: Vec<Vec<u32>>,
}

impl Lists {
    pub(crate) fn new() -> Self {
        Self { atoms: Interner::new(), ports: Interner::new() }
    }

    /// Every atom of a shape; one may come twice.
    pub(crate) fn atoms_of(&self, shape: Shape) -> impl Iterator<Item = AtomId> {
        let Shape { pod, blocks, extra, .. } = shape;
        [pod, blocks, extra].into_iter().flat_map(|list| self.atoms.get(list)).copied()
    }
}

impl<'a> Postings<'a> {
    pub(crate) fn new(classes: &'a [(u32, Shape)], lists: &Lists) -> Self {
        let mut by_atom: Vec<Vec<u32>> = Vec::new();
        for (index, (_, shape)) in (0_u32..).zip(classes) {
            for atom in lists.atoms_of(*shape) {
                let atom = atom as usize;
                if by_atom.len() <= atom {
                    by_atom.resize_with(atom + 1, Vec::new);
                }
                by_atom[atom].push(index);
            }
        }
        Self { classes, by_atom }
    }
}

impl Rules {
    pub(crate) fn new(content: Arc<Content>) -> Self {
        let mut naming: FastMap<AtomId, Vec<u32>> = FastMap::default();
        let mut everyone = Vec::new();
        let (mut named, mut everyone_named) = (false, false);
        for (index, rule) in (0_u32..).zip(&content.rules) {
            let asks =
                rule.ports.iter().flatten().any(|port| matches!(port, FlatPort::Named { .. }));
            named |= asks;
            for atom in &rule.own_node {
                naming.entry(*atom).or_default().push(index | OWN_NODE);
            }
            match &rule.peers {
                None => {
                    everyone.push(index);
                    everyone_named |= asks;
                }
                Some(atoms) => {
                    for atom in atoms {
                        naming.entry(*atom).or_default().push(index);
                    }
                }
            }
        }
        let mut numbers: FastMap<Vec<u32>, u32> = FastMap::default();
        let mut by_atom: FastMap<AtomId, u32> = FastMap::default();
        for (atom, rules) in naming {
            let next = u32::try_from(numbers.len()).expect("fewer lists than rules fit in memory");
            by_atom.insert(atom, *numbers.entry(rules).or_insert(next));
        }
        let mut lists = vec![Vec::new(); numbers.len()];
        for (rules, number) in numbers {
            lists[number as usize] = rules;
        }
        Self { content, by_atom, lists, everyone, named, everyone_named }
    }

    /// Whether these two shapes may get different answers.
    pub(crate) fn distinguishes(&self, delta: &Delta) -> bool {
        (self.named && delta.ports)
            || delta.atoms.iter().any(|atom| self.by_atom.contains_key(atom))
    }

    fn rule(&self, index: u32) -> &FlatRule {
        &self.content.rules[index as usize]
    }

    fn matching(&self, shape: Shape, lists: &Lists) -> Matching {
        let found = lists.atoms_of(shape).filter_map(|atom| self.by_atom.get(&atom).copied());
        let mut found: Vec<u32> = found.collect();
        found.sort_unstable();
        found.dedup();
        self.merged(&found)
    }

    /// The rules of these lists and those for everyone. Where one names the node itself, the others stay that reach it.
    fn merged(&self, lists: &[u32]) -> Matching {
        let mut rules = self.everyone.clone();
        lists.iter().for_each(|list| rules.extend(&self.lists[*list as usize]));
        rules.sort_unstable();
        rules.dedup();
        let mut naming = rules.split_off(rules.partition_point(|index| *index < OWN_NODE));
        let own_node = !naming.is_empty();
        if own_node {
            rules.retain(|index| self.rule(*index).reaches_own_node());
            naming.iter_mut().for_each(|index| *index &= !OWN_NODE);
            rules.append(&mut naming);
            rules.sort_unstable();
            rules.dedup();
        }
        Matching { rules, own_node }
    }

    fn paint(&self, matching: &Matching, ports: &[NamedPort]) -> Body {
        let rules = matching.rules.iter().map(|index| self.rule(*index));
        if matching.own_node {
            return paint::paint_own_node(&self.content, rules, ports);
        }
        paint::paint(&self.content, rules, ports)
    }

    /// What a class gets.
    pub(crate) fn evaluate(&self, shape: Shape, lists: &Lists) -> Body {
        self.paint(&self.matching(shape, lists), lists.ports.get(shape.ports))
    }

    /// What a class gets from the security groups alone; `None` without groups, and where they are not asked.
    pub(crate) fn evaluate_groups(&self, shape: Shape, lists: &Lists) -> Option<Body> {
        let Matching { rules, own_node } = self.matching(shape, lists);
        if own_node {
            return None;
        }
        paint::paint_groups_only(&self.content, rules.iter().map(|index| self.rule(*index)))
    }

    /// The table over all classes: the profile that most of them get, and where it is another one.
    pub(crate) fn compile(
        &self,
        postings: &Postings<'_>,
        lists: &Lists,
        profiles: &mut Profiles,
        owner: Owner,
    ) -> Result<(u32, FastMap<u32, u32>), Full> {
        let mut painted: FastMap<(Vec<u32>, u32), u32> = FastMap::default();
        let mut profile_of = |found: Vec<u32>, ports: u32, profiles: &mut Profiles| {
            let ports = if self.named { ports } else { 0 };
            let key = (found, ports);
            if let Some(profile) = painted.get(&key) {
                return Ok(*profile);
            }
            let body = self.paint(&self.merged(&key.0), lists.ports.get(ports));
            let profile = profiles.number(body, owner)?;
            painted.insert(key, profile);
            Ok(profile)
        };
        let base = profile_of(Vec::new(), 0, profiles)?;
        let pairs = self.pairs(postings);
        let mut answers: Vec<(u32, u32)> = Vec::new();
        for of_class in pairs.chunk_by(|one, other| one.0 == other.0) {
            let found = of_class.iter().map(|pair| pair.1).filter(|list| *list != u32::MAX);
            let (number, shape) = postings.classes[of_class[0].0 as usize];
            answers.push((number, profile_of(found.collect(), shape.ports, profiles)?));
        }
        Ok(around_majority(base, &answers, postings.classes))
    }

    /// (class, list of rules) for every class that more than the rules for everyone match.
    fn pairs(&self, postings: &Postings<'_>) -> Vec<(u32, u32)> {
        let mut pairs = Vec::new();
        for (atom, list) in &self.by_atom {
            let classes = postings.by_atom.get(*atom as usize).into_iter().flatten();
            pairs.extend(classes.map(|class| (*class, *list)));
        }
        if self.everyone_named {
            let with_ports = (0_u32..).zip(postings.classes);
            let with_ports = with_ports.filter(|(_, (_, shape))| shape.ports != 0);
            pairs.extend(with_ports.map(|(class, _)| (class, u32::MAX)));
        }
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }
}

/// `answers` are those of classes that may differ from `base`; every other of `classes` gets `base`.
fn around_majority(
    base: u32,
    answers: &[(u32, u32)],
    classes: &[(u32, Shape)],
) -> (u32, FastMap<u32, u32>) {
    let mut votes: FastMap<u32, usize> = FastMap::default();
    *votes.entry(base).or_default() += classes.len() - answers.len();
    for (_, profile) in answers {
        *votes.entry(*profile).or_default() += 1;
    }
    let winner = votes.into_iter().max_by_key(|(profile, votes)| (*votes, *profile));
    let any = winner.map_or(base, |(profile, _)| profile);
    let mut table: FastMap<u32, u32> = answers.iter().copied().collect();
    if any != base {
        for (class, _) in classes {
            table.entry(*class).or_insert(base);
        }
    }
    table.retain(|_, profile| *profile != any);
    (any, table)
}

/// What two shapes do not have in common.
#[derive(Debug)]
pub(crate) struct Delta {
    pub(crate) atoms: Vec<AtomId>,
    pub(crate) ports: bool,
}

impl Delta {
    pub(crate) fn between(old: Shape, new: Shape, lists: &Lists) -> Self {
        let sorted = |shape| {
            let mut atoms: Vec<AtomId> = lists.atoms_of(shape).collect();
            atoms.sort_unstable();
            atoms.dedup();
            atoms
        };
        let (old_atoms, new_atoms) = (sorted(old), sorted(new));
        let lacks = |list: &[AtomId], atom: &AtomId| list.binary_search(atom).is_err();
        let mut atoms: Vec<AtomId> =
            old_atoms.iter().filter(|atom| lacks(&new_atoms, atom)).copied().collect();
        atoms.extend(new_atoms.iter().filter(|atom| lacks(&old_atoms, atom)));
        Self { atoms, ports: old.ports != new.ports }
    }
}

impl Set {
    /// A set that gives every class the same.
    pub(crate) fn uniform(any: u32) -> Self {
        Self { rules: None, owner: None, table: FastMap::default(), any, users: 0 }
    }

    /// Entries in `VERDICTS`.
    pub(crate) fn entries(&self) -> usize {
        self.table.len() + 1
    }

    /// Whether what no rule of it allows is denied. A table alone tells by what it allows without a rule.
    pub(crate) fn isolates(&self, profiles: &Profiles) -> bool {
        if let Some(rules) = &self.rules {
            return rules.content.isolates();
        }
        let numbers = self.table.values().chain([&self.any]);
        let bodies = numbers.filter_map(|number| profiles.body(*number));
        // The node is allowed by default where no other is.
        let bodies = bodies.filter(|body| !body.of_node);
        let by_default = Decision::allow(0);
        let mut decisions =
            bodies.flat_map(|body| body.ranges.iter().map(|range| range.3).chain([body.otherwise]));
        !decisions.any(|decision| decision == by_default)
    }

    /// Whether security groups are known to have no part in it.
    pub(crate) fn lacks_groups(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.content.groups == Groups::Absent)
    }

    /// Whether such an entry is one more.
    pub(crate) fn gains(&self, class: u32, profile: u32) -> bool {
        profile != self.any && !self.table.contains_key(&class)
    }

    /// What a class has now.
    pub(crate) fn profile(&self, class: u32) -> u32 {
        self.table.get(&class).copied().unwrap_or(self.any)
    }
}
