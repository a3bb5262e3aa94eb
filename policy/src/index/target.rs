//! Which sets pods are to have.
//!
//! A pod whose set finds no room keeps the one that it has, but never one that is open to what the new one is there to
//! close: by isolating it, by security groups, or by a ClusterNetworkPolicy that denies or passes. A pod whose security
//! groups are not known yet keeps its sets, or, where its policies change, gets the sets of the groups that it had; without
//! sets it stays without.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use veni_ebpf_common::table::{OPEN_SET, capacity};

use super::{
    Index,
    atom::Question,
    cluster::{Chosen, IdentityId},
    plan::Targets,
    region,
};
use crate::{
    change::{CLOSED_SET, Direction, PodKey, PodSets},
    compile::{
        AtomId,
        content::{Content, FlatRule, Groups, Stage, Verb},
        flatten::Flattener,
        profile::{Full, Owner, Profiles, fits},
        set::Set,
    },
    intern::{FastMap, FastSet},
    object::ClusterNetworkPolicy,
};

/// The sets of both directions, or what found no room.
type Found = [Result<u32, Refused>; 2];

/// A set that found no room.
#[derive(Debug)]
struct Refused {
    full: Full,
    content: Arc<Content>,
}

/// What pods are to have, as far as they are to be looked at.
#[derive(Debug, Default)]
struct Wanted {
    /// Pods of these identities, and the security groups that it is for.
    of_identities: FastMap<IdentityId, (Found, Arc<Chosen>)>,
    /// Pods that keep the groups that they had.
    of_pods: BTreeMap<PodKey, Found>,
}

/// What sets are made of in one batch.
#[derive(Debug)]
struct Batch {
    /// By tier, priority and name.
    policies: Vec<Arc<ClusterNetworkPolicy>>,
    /// Prefixes that sets made in this batch bring.
    fresh: FastSet<IpNet>,
}

/// The map of a family's prefixes.
pub(super) const fn prefixes_of(v6: bool) -> &'static str {
    if v6 { "CIDR_V6" } else { "CIDR_V4" }
}

/// What a pod has when its new set, with this content, finds no room.
pub(super) fn kept(
    had: Option<PodSets>,
    wanted: &Content,
    sets: &BTreeMap<u32, Set>,
    profiles: &Profiles,
) -> u32 {
    let had = had.map(|had| had.of(wanted.direction));
    let closed_enough = |set: &Set| {
        (!wanted.isolates() || set.isolates(profiles))
            && !(wanted.groups != Groups::Absent && set.lacks_groups())
            && denies_as(set, wanted)
    };
    // OPEN_SET has no table.
    had.filter(|had| sets.get(had).is_some_and(closed_enough)).unwrap_or(CLOSED_SET)
}

/// Whether what the ClusterNetworkPolicies deny or pass in this content the set denies or passes, too, with no exception
/// before it that they do not have. Of a table alone nobody knows.
fn denies_as(set: &Set, wanted: &Content) -> bool {
    let wanted = wanted.rules.iter().filter(|rule| is_cluster_wide(rule));
    let wanted: Vec<FlatRule> = wanted.map(unnumbered).collect();
    if wanted.iter().all(|rule| rule.verb == Verb::Allow) {
        return true;
    }
    let Some(rules) = &set.rules else { return false };
    let mut places: FastMap<&FlatRule, usize> = FastMap::default();
    for (place, rule) in wanted.iter().enumerate() {
        places.entry(rule).or_insert(place);
    }
    // For each rule of the set the place in `wanted` that follows all exceptions before it.
    let mut found: FastMap<FlatRule, usize> = FastMap::default();
    let mut after = 0;
    for rule in rules.content.rules.iter().filter(|rule| is_cluster_wide(rule)) {
        let rule = unnumbered(rule);
        let before = after;
        if rule.verb != Verb::Deny {
            after = after.max(places.get(&rule).map_or(usize::MAX, |place| place + 1));
        }
        found.entry(rule).or_insert(before);
    }
    let mut closing = wanted.iter().enumerate().filter(|(_, rule)| rule.verb != Verb::Allow);
    closing.all(|(place, rule)| found.get(rule).is_some_and(|after| *after <= place))
}

fn is_cluster_wide(rule: &FlatRule) -> bool {
    matches!(rule.stage, Stage::Admin | Stage::Baseline)
}

/// What it says, whatever it is called: a rule before it moves its number.
fn unnumbered(rule: &FlatRule) -> FlatRule {
    FlatRule { number: 0, ..rule.clone() }
}

impl Index {
    /// The sets that local pods are to have, as far as they are to be looked at. Makes the sets that are new.
    pub(super) fn targets(&mut self) -> Targets {
        let identities: Vec<IdentityId> = if std::mem::take(&mut self.dirty.all_rules) {
            self.cluster.live_identities().map(|(id, _)| id).collect()
        } else {
            self.dirty.rules.iter().copied().collect()
        };
        self.dirty.rules.clear();
        let mut policies: Vec<_> = self.cluster_policies.values().cloned().collect();
        policies.sort_by(|a, b| (a.tier, a.priority, &a.name).cmp(&(b.tier, b.priority, &b.name)));
        let mut batch = Batch { policies, fresh: FastSet::default() };
        let mut wanted = Wanted::default();
        let mut waiting: FastSet<IdentityId> = FastSet::default();
        for id in identities {
            let identity = self.cluster.identity(id);
            if identity.local == 0 {
                continue;
            }
            if self.awaits(&identity.chosen) {
                waiting.insert(id);
            } else {
                let chosen = Arc::new(identity.chosen.clone());
                let found = self.sets_of(id, &chosen, &mut batch);
                wanted.of_identities.insert(id, (found, chosen));
            }
        }
        for (key, id, held) in self.holding(&waiting) {
            let found = self.sets_of(id, &held, &mut batch);
            wanted.of_pods.insert(key, found);
        }
        self.dirty.locals.clear();
        self.choose(&wanted)
    }

    /// Pods of these identities that are judged by groups of which all is known. An earlier daemon did not say which
    /// groups its sets are of: they stay what they are.
    fn holding(&self, waiting: &FastSet<IdentityId>) -> Vec<(PodKey, IdentityId, Arc<Chosen>)> {
        if waiting.is_empty() {
            return Vec::new();
        }
        let holding = self.locals.iter().filter_map(|(key, local)| {
            let identity = self.cluster.pod(local.pod?).identity;
            let held = local.chosen.as_ref().filter(|_| local.sets.is_some())?;
            let holds = waiting.contains(&identity) && !self.awaits(held);
            holds.then(|| (key.clone(), identity, Arc::clone(held)))
        });
        holding.collect()
    }

    /// The targets; where a set was refused, what the pods have.
    fn choose(&mut self, wanted: &Wanted) -> Targets {
        let mut looked_at = BTreeSet::new();
        let mut without: FastMap<Arc<Content>, (Full, Vec<PodKey>)> = FastMap::default();
        let mut targets = Targets::new();
        for (key, local) in &mut self.locals {
            let Some(pod) = local.pod else {
                if !local.held {
                    targets.insert(key.clone(), None);
                }
                continue;
            };
            let of_identity = wanted.of_identities.get(&self.cluster.pod(pod).identity);
            if let Some((_, chosen)) = of_identity {
                local.chosen = Some(Arc::clone(chosen));
            }
            let found = of_identity.map(|(found, _)| found).or_else(|| wanted.of_pods.get(key));
            let Some(found) = found else { continue };
            looked_at.insert(key.clone());
            let mut of = |direction: Direction| match &found[direction as usize] {
                Ok(set) => *set,
                Err(Refused { full, content }) => {
                    let entry = without.entry(Arc::clone(content));
                    entry.or_insert((*full, Vec::new())).1.push(key.clone());
                    kept(local.sets, content, &self.sets, &self.profiles)
                }
            };
            let target = PodSets::new(of(Direction::Ingress), of(Direction::Egress));
            if Some(target) != local.sets {
                targets.insert(key.clone(), Some(target));
            }
        }
        self.forget_refused(&looked_at);
        for (content, (full, pods)) in without {
            let direction = content.direction;
            self.refuse(pods, (direction, Some(&content)), None, (full, None));
        }
        targets
    }

    /// The sets of pods of this identity that have these groups.
    fn sets_of(&mut self, id: IdentityId, chosen: &Chosen, batch: &mut Batch) -> Found {
        let contents = Direction::BOTH.map(|direction| {
            let identity = self.cluster.identity(id);
            let namespace = self.cluster.namespace_state(identity.key.namespace);
            let mut flattener = Flattener {
                atoms: &mut self.atoms,
                registry: &mut self.registry,
                groups: &self.groups,
                cluster_policies: &batch.policies,
                enforcing: self.enforcing,
                left_out: self.left_out,
            };
            flattener.content(direction, namespace, identity, chosen)
        });
        let namespace = self.cluster.identity(id).key.namespace;
        contents.map(|content| {
            let content = Arc::new(content);
            let set = self.set_of(&content, namespace, &mut batch.fresh);
            set.map_err(|full| Refused { full, content })
        })
    }

    fn set_of(
        &mut self,
        content: &Arc<Content>,
        namespace: u32,
        fresh: &mut FastSet<IpNet>,
    ) -> Result<u32, Full> {
        if content.is_open() {
            return Ok(OPEN_SET);
        }
        if let Some(set) = self.set_ids.get(content) {
            return Ok(*set);
        }
        if let Some(full) = self.untried(content) {
            return Err(full);
        }
        // Contents without a NetworkPolicy's rules are the cluster's.
        let owner = content.isolated.map(|_| namespace);
        self.make_room(content, owner, fresh)?;
        let number = self.new_set(content, owner);
        self.set_ids.insert(Arc::clone(content), number);
        Ok(number)
    }

    /// The prefixes that a set brings, if the maps have room for them beside all others: those of sets that go are in
    /// the maps until the new ones are in force.
    fn make_room(
        &self,
        content: &Content,
        owner: Owner,
        fresh: &mut FastSet<IpNet>,
    ) -> Result<(), Full> {
        let named = self.prefixes(content.atoms());
        let more: FastSet<IpNet> = named
            .into_iter()
            .filter(|net| !self.regions.by_net.contains_key(net) && !fresh.contains(net))
            .collect();
        for v6 in [false, true] {
            let of_family = |nets: &FastSet<IpNet>| {
                nets.iter().filter(|net| net.addr().is_ipv6() == v6).count()
            };
            let used = self.regions.count(v6) + of_family(fresh);
            let own = |owner| of_family(&self.prefixes_of(owner));
            if !fits(capacity::CIDR as usize, used, of_family(&more), owner, own) {
                return Err(Full { map: prefixes_of(v6), capacity: capacity::CIDR });
            }
        }
        fresh.extend(more);
        Ok(())
    }

    /// The prefixes that the NetworkPolicies of a namespace have in the maps.
    fn prefixes_of(&self, owner: u32) -> FastSet<IpNet> {
        let own = self.sets.values().filter(|set| set.owner == Some(owner));
        let rules = own.filter_map(|set| set.rules.as_ref()).flat_map(|own| &own.content.rules);
        let rules = rules.filter(|rule| rule.stage == Stage::NetworkPolicy);
        self.prefixes(rules.filter_map(|rule| rule.peers.as_deref()).flatten().copied())
    }

    /// The prefixes that these ask for.
    fn prefixes(&self, atoms: impl Iterator<Item = AtomId>) -> FastSet<IpNet> {
        let mut prefixes = FastSet::default();
        for atom in atoms {
            match self.atoms.question(atom) {
                Some(Question::Block { cidr, except }) => {
                    prefixes.extend(std::iter::once(cidr).chain(except).copied());
                }
                Some(Question::Unlisted { v6 }) => {
                    prefixes.insert(region::whole(*v6));
                }
                _ => {}
            }
        }
        prefixes
    }
}
