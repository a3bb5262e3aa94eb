//! The cluster as policies see it, and the tables that follow from it.
//!
//! Objects come and go through [`Index::apply`], [`Index::delete`] and [`Index::reset`]; [`Index::change`] then gives
//! the ordered steps that bring the programs' tables from the last change's state to the present one. Work is in
//! proportion to what is affected: selectors are matched against identities (pods that are alike), rules are compiled
//! for the node's own pods only, and a class keeps its number where it can.
//!
//! Invariants: the caller carries out every step of a change before it asks for the next; what the index holds after
//! [`Index::change`] is what the tables then hold. Deliberately absent: Services (`service`), time, the maps themselves.

pub(crate) mod atom;
pub(crate) mod class;
pub(crate) mod cluster;
mod commit;
mod explain;
mod objects;
mod plan;
mod refusal;
mod region;
mod resume;
mod target;
mod vectors;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use veni_core::{config::Enforcing, id::SecurityGroupId};
use veni_ebpf_common::table::Decision;

pub use resume::Found;

pub use explain::{
    ClassEntry, Explanation, GroupHalf, Half, Party, PodExplanation, PodGroup, PortEntry,
    ProfileEntry, Selecting, SetExplanation,
};

use crate::{
    change::{CLOSED_SET, Direction, PodKey, PodSets, Step, Write},
    compile::{
        AtomId,
        content::Content,
        flatten,
        profile::{Body, Profiles},
        set::{Lists, Set},
    },
    intern::{FastMap, FastSet},
    object::{ClusterNetworkPolicy, Key, Kind, Node, Object},
    rule::{RuleIndex, RuleKind, RuleRef, RuleRegistry, RuleTier},
    security_group::SecurityGroups,
};
use class::{Classes, Numbers};
use cluster::{Chosen, Cluster, IdentityId, PodId};
use refusal::Refused;
use region::Regions;

/// Pods that a refusal names for people.
const NAMED: usize = 5;

/// Which pods get rule sets. Every pod gets a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Those of this node. What is not known of security groups yet will be: until then the pods that choose them
    /// keep what they have.
    Node(String),
    /// All: for `venictl` and tests. What is not known of security groups is not going to be, and denies.
    All,
}

/// A batch of steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// In order; empty when nothing changes.
    pub steps: Vec<Step>,
    /// What did not fit.
    pub refused: Vec<Refusal>,
}

/// Something that was refused because a map is full. Every change says so until it fits: it is tried again when its content
/// is another or something was freed. A rule set: the pods keep what they had ([`PodSets::CLOSED`] where that is nothing, or
/// open to what the set was to close, be it by denying one port, or without room for addresses that are new to it). A namespace's sets take at most
/// seven times what they leave free of a map, so that another's find room. Addresses: rules know them only by the blocks that they lie in, and
/// those of ClusterNetworkPolicies that deny or pass on pods or nodes deny every address of which nothing is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The pods; none for addresses of something else.
    pub pods: Vec<PodKey>,
    /// The direction of a rule set; `None`: addresses.
    pub direction: Option<Direction>,
    /// The map that is full, e.g. `VERDICTS`.
    pub map: &'static str,
    /// How many entries it has room for.
    pub capacity: u32,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pods, direction, map, capacity } = self;
        let named: Vec<_> = pods.iter().take(NAMED).map(ToString::to_string).collect();
        let mut pods = match (named.join(", "), pods.len().saturating_sub(NAMED)) {
            (named, _) if named.is_empty() => "nodes and security groups' members".to_owned(),
            (named, 0) => named,
            (named, more) => format!("{named} and {more} more"),
        };
        if let Some(direction) = direction {
            pods = format!("the {direction} rules of {pods}");
            return write!(
                f,
                "{pods} do not fit: {map} has room for {capacity} entries; use fewer or shorter rules (a namespace has at most 7 times what it leaves free); the pods keep what they had, and nothing passes where that did not isolate them, or does not deny what a ClusterNetworkPolicy denies"
            );
        }
        write!(
            f,
            "addresses of {pods} do not fit: {map} has room for {capacity} entries; rules know these addresses by blocks (ipBlock, networks) only, not by selectors, and where a ClusterNetworkPolicy denies or passes on pods, namespaces or nodes, every address of which nothing is known is denied meanwhile"
        )
    }
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Pods known.
    pub pods: usize,
    /// Pods with rule sets.
    pub local_pods: usize,
    /// Places for namespaces, those that are free included.
    pub namespaces: usize,
    /// Pods that are alike counted once.
    pub identities: usize,
    /// Addresses with an entry.
    pub addresses: usize,
    /// Prefixes with an entry.
    pub prefixes: usize,
    /// Classes.
    pub classes: usize,
    /// Rule sets.
    pub sets: usize,
    /// (set, class) entries.
    pub verdicts: usize,
}

/// What the node and what the pod's status say.
#[derive(Debug)]
struct Attached {
    given: Vec<IpAddr>,
    status: Vec<IpAddr>,
}

/// An address with an entry of its own.
#[derive(Debug)]
struct Entry {
    pod: Option<PodId>,
    /// What the regions know of it.
    blocks: u32,
    /// What is known of the address itself.
    extra: u32,
    class: u32,
    /// See [`crate::compile::Shape::origin`].
    origin: u32,
}

/// A pod with rule sets.
#[derive(Debug)]
struct Local {
    /// `None`: it is gone, and gets [`PodSets::CLOSED`] with the next change.
    pod: Option<PodId>,
    /// The sets in force.
    sets: Option<PodSets>,
    /// An earlier daemon gave it its sets; it keeps them until its object comes, or [`Index::complete`].
    held: bool,
    /// The security groups of its sets; `None`: an earlier daemon knew them.
    chosen: Option<Arc<Chosen>>,
}

/// What has to be looked at by the next change.
#[derive(Debug, Default)]
struct Dirty {
    /// Identities whose rules may be others.
    rules: FastSet<IdentityId>,
    /// All of them.
    all_rules: bool,
    /// Identities whose atoms have to be matched anew.
    atoms: FastSet<IdentityId>,
    /// Identities whose atoms changed, so that their pods' addresses may be of another class.
    moved: FastSet<IdentityId>,
    addresses: BTreeSet<IpAddr>,
    locals: BTreeSet<PodKey>,
    /// Names of ports that rules ask for changed.
    port_names: bool,
    /// Regions have to be looked at.
    regions: bool,
}

/// The index.
#[derive(Debug)]
pub struct Index {
    scope: Scope,
    enforcing: Enforcing,
    cluster: Cluster,
    cluster_policies: BTreeMap<String, Arc<ClusterNetworkPolicy>>,
    nodes: BTreeMap<String, Node>,
    nodes_by_address: FastMap<IpAddr, BTreeSet<String>>,
    /// Those of the node that the scope names, as the programs know them.
    own_addresses: BTreeSet<IpAddr>,
    groups: SecurityGroups,
    groups_by_address: FastMap<IpAddr, BTreeSet<SecurityGroupId>>,
    /// Addresses that the node gave its pods, before the API says so.
    attached: BTreeMap<PodKey, Attached>,
    /// Which of those pods has an address.
    given_to: FastMap<IpAddr, PodKey>,
    /// Pods that have an address in their status which is not theirs: an object that stays after its pod, or that is
    /// behind.
    contested: FastMap<IpAddr, Vec<PodId>>,
    entries: FastMap<IpAddr, Entry>,
    /// Whether addresses have found no room in their map, of IPv4 and of IPv6.
    left_out: [bool; 2],
    locals: BTreeMap<PodKey, Local>,
    atoms: atom::Atoms,
    /// Those that ask about addresses themselves.
    extra_atoms: Vec<(AtomId, Arc<atom::Question>)>,
    port_names: FastMap<Arc<str>, u32>,
    lists: Lists,
    regions: Regions,
    classes: Classes,
    registry: RuleRegistry,
    profiles: Profiles,
    sets: BTreeMap<u32, Set>,
    set_ids: FastMap<Arc<Content>, u32>,
    set_numbers: Numbers,
    /// Sets of an earlier daemon.
    inherited: BTreeSet<u32>,
    /// Whether every object was seen once.
    complete: bool,
    dirty: Dirty,
    refused: Refused,
    /// Maps of prefixes that one has left since the last change.
    freed_prefixes: BTreeSet<&'static str>,
    /// Steps that the first change starts with.
    first: Vec<Step>,
}

impl Index {
    /// An empty index. Its first change writes [`CLOSED_SET`].
    ///
    /// # Panics
    ///
    /// Never: an empty map has room for one profile.
    #[must_use]
    pub fn new(scope: Scope) -> Self {
        Self::with(scope, RuleRegistry::default(), Profiles::default())
    }

    fn with(scope: Scope, mut registry: RuleRegistry, mut profiles: Profiles) -> Self {
        let number = registry.number(&RuleRef {
            kind: RuleKind::Unknown,
            namespace: String::new(),
            name: String::new(),
            tier: RuleTier::NetworkPolicy,
            direction: Direction::Ingress,
            rule: RuleIndex::None,
            reason: Some("nothing is known of the pod".to_owned()),
        });
        let body = Body { otherwise: Decision::deny(number), ranges: Vec::new(), of_node: false };
        let any = profiles.number(body, None).expect("an empty map has room");
        profiles.acquire(any);
        let mut closed = Set::uniform(any);
        closed.users = 1;
        let key = veni_ebpf_common::table::VerdictKey {
            set: CLOSED_SET,
            class: veni_ebpf_common::table::ANY_CLASS,
        };
        Self {
            scope,
            enforcing: Enforcing::default(),
            cluster: Cluster::default(),
            cluster_policies: BTreeMap::new(),
            nodes: BTreeMap::new(),
            nodes_by_address: FastMap::default(),
            own_addresses: BTreeSet::new(),
            groups: SecurityGroups::default(),
            groups_by_address: FastMap::default(),
            attached: BTreeMap::new(),
            given_to: FastMap::default(),
            contested: FastMap::default(),
            entries: FastMap::default(),
            left_out: [false; 2],
            locals: BTreeMap::new(),
            atoms: atom::Atoms::default(),
            extra_atoms: Vec::new(),
            port_names: FastMap::default(),
            lists: Lists::new(),
            regions: Regions::default(),
            classes: Classes::new(),
            registry,
            profiles,
            sets: [(CLOSED_SET, closed)].into(),
            set_ids: FastMap::default(),
            set_numbers: Numbers::from(CLOSED_SET + 1),
            inherited: BTreeSet::new(),
            complete: true,
            dirty: Dirty::default(),
            refused: Refused::default(),
            freed_prefixes: BTreeSet::new(),
            first: vec![Step::Write(Write::Verdict { key, profile: any })],
        }
    }

    /// What holds for pods that no policy selects; [`Enforcing::Standard`] unless told otherwise.
    #[must_use]
    pub fn enforcing(mut self, enforcing: Enforcing) -> Self {
        self.enforcing = enforcing;
        self.dirty.all_rules = true;
        self
    }

    /// Takes an object over its predecessor of the same key. Services and slices are not ours.
    pub fn apply(&mut self, object: Object) {
        match object {
            Object::Namespace(namespace) => self.apply_namespace(namespace),
            Object::Node(node) => self.apply_node(node),
            Object::Pod(pod) => self.apply_pod(&pod),
            Object::NetworkPolicy(policy) => {
                let namespace = self.cluster.namespace(&policy.namespace);
                let state = &mut self.cluster.namespaces[namespace as usize];
                state.policies.insert(policy.name.clone(), Arc::new(policy));
                self.dirty.rules.extend(state.identities.iter().copied());
            }
            Object::ClusterNetworkPolicy(policy) => {
                self.cluster_policies.insert(policy.name.clone(), Arc::new(policy));
                self.dirty.all_rules = true;
            }
            Object::SecurityGroupPolicy(policy) => {
                let namespace = self.cluster.namespace(&policy.namespace);
                let state = &mut self.cluster.namespaces[namespace as usize];
                state.group_policies.insert(policy.name.clone(), Arc::new(policy));
                self.choose_groups(namespace);
            }
            Object::Service(_) | Object::EndpointSlice(_) => {}
        }
    }

    /// Forgets an object; nothing to do when there is none.
    pub fn delete(&mut self, key: &Key) {
        let Some(namespace) = self.cluster.namespace_id(&key.namespace) else {
            return self.delete_cluster_wide(key);
        };
        let state = &mut self.cluster.namespaces[namespace as usize];
        match key.kind {
            Kind::Pod => {
                if let Some(pod) = state.pods.get(key.name.as_str()).copied() {
                    self.remove_pod(pod);
                }
            }
            Kind::NetworkPolicy => {
                if state.policies.remove(&key.name).is_some() {
                    self.dirty.rules.extend(state.identities.iter().copied());
                    self.cluster.release_namespace(namespace);
                }
            }
            Kind::SecurityGroupPolicy => {
                if state.group_policies.remove(&key.name).is_some() {
                    self.choose_groups(namespace);
                    self.cluster.release_namespace(namespace);
                }
            }
            _ => self.delete_cluster_wide(key),
        }
    }

    fn delete_cluster_wide(&mut self, key: &Key) {
        match key.kind {
            Kind::Namespace => self.remove_namespace(&key.name),
            Kind::Node => self.remove_node(&key.name),
            Kind::ClusterNetworkPolicy => {
                self.dirty.all_rules |= self.cluster_policies.remove(&key.name).is_some();
            }
            _ => {}
        }
    }

    /// Takes exactly these objects, as after a new list from the API. Pods that stay keep what they have meanwhile.
    pub fn reset(&mut self, objects: Vec<Object>) {
        let kept: BTreeSet<Key> = objects.iter().map(Object::key).collect();
        for key in self.keys() {
            if !kept.contains(&key) {
                self.delete(&key);
            }
        }
        objects.into_iter().for_each(|object| self.apply(object));
    }

    fn keys(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        for state in &self.cluster.namespaces {
            if state.known {
                keys.push(Key::new(Kind::Namespace, "", &*state.name));
            }
            let mut add = |kind, name: &str| keys.push(Key::new(kind, &*state.name, name));
            state.pods.keys().for_each(|name| add(Kind::Pod, name));
            state.policies.keys().for_each(|name| add(Kind::NetworkPolicy, name));
            state.group_policies.keys().for_each(|name| add(Kind::SecurityGroupPolicy, name));
        }
        let cluster_wide = self.nodes.keys().map(|name| (Kind::Node, name));
        let policies = self.cluster_policies.keys().map(|n| (Kind::ClusterNetworkPolicy, n));
        keys.extend(cluster_wide.chain(policies).map(|(kind, name)| Key::new(kind, "", name)));
        keys
    }

    /// Takes the security groups as they are resolved now.
    pub fn set_security_groups(&mut self, groups: SecurityGroups) {
        let old = std::mem::replace(&mut self.groups, groups);
        let changed = self.groups.members.keys().chain(old.members.keys());
        for id in changed.collect::<BTreeSet<_>>() {
            let (before, after) = (old.members.get(id), self.groups.members.get(id));
            if before == after {
                continue;
            }
            let none = BTreeSet::new();
            let (before, after) = (before.unwrap_or(&none), after.unwrap_or(&none));
            for address in before.symmetric_difference(after) {
                let groups = self.groups_by_address.entry(*address).or_default();
                if after.contains(address) {
                    groups.insert(id.clone());
                } else {
                    groups.remove(id);
                }
                if groups.is_empty() {
                    self.groups_by_address.remove(address);
                }
                self.dirty.addresses.insert(*address);
            }
        }
        if old.groups != self.groups.groups {
            let live = self.cluster.live_identities();
            let with_groups = live.filter(|(_, identity)| identity.chosen.any).map(|(id, _)| id);
            self.dirty.rules.extend(with_groups.collect::<Vec<_>>());
        }
    }

    /// The node gave this pod these addresses: they count from now on, whatever the pod's status says or does not say
    /// yet.
    pub fn attach(&mut self, pod: PodKey, addresses: Vec<IpAddr>) {
        let id = self.cluster.pod_id(&pod.namespace, &pod.name);
        let (status, before) = match (self.attached.remove(&pod), id) {
            (Some(before), _) => (before.status, before.given),
            (None, Some(id)) => (self.cluster.pod(id).addresses.to_vec(), Vec::new()),
            (None, None) => (Vec::new(), Vec::new()),
        };
        for address in &addresses {
            self.given_to.insert(*address, pod.clone());
        }
        let left: Vec<IpAddr> = before.into_iter().filter(|a| !addresses.contains(a)).collect();
        self.take_back(&pod, &left);
        self.attached.insert(pod, Attached { given: addresses.clone(), status });
        if let Some(id) = id {
            self.set_addresses(id, addresses.clone().into());
        }
        addresses.iter().chain(&left).for_each(|address| self.settle_owner(*address));
    }

    /// The pod has these addresses no more.
    fn take_back(&mut self, pod: &PodKey, addresses: &[IpAddr]) {
        for address in addresses {
            if self.given_to.get(address) == Some(pod) {
                self.given_to.remove(address);
            }
        }
    }

    /// The node's pod is gone; its status counts again.
    pub fn detach(&mut self, pod: &PodKey) {
        // Until every object was seen the sets of an earlier daemon are all that is known of a pod: it may be made anew
        // in between.
        if self.complete
            && let Some(local) = self.locals.get_mut(pod)
        {
            local.held = false;
        }
        let Some(attached) = self.attached.remove(pod) else { return };
        self.take_back(pod, &attached.given);
        if let Some(id) = self.cluster.pod_id(&pod.namespace, &pod.name) {
            self.set_addresses(id, attached.status.into());
        }
        attached.given.iter().for_each(|address| self.settle_owner(*address));
    }

    /// The rule numbers that decisions name.
    #[must_use]
    pub const fn rules(&self) -> &RuleRegistry {
        &self.registry
    }

    /// The sets in force for a pod; `None`: not a pod of ours, or nothing is known of it yet.
    #[must_use]
    pub fn pod_sets(&self, pod: &PodKey) -> Option<PodSets> {
        self.locals.get(pod)?.sets
    }

    /// The `metadata.uid` of a pod of ours that is known; `Some(None)`: it is known without one.
    #[must_use]
    pub fn pod_uid(&self, pod: &PodKey) -> Option<Option<&str>> {
        let id = self.cluster.pod_id(&pod.namespace, &pod.name)?;
        let pod = self.cluster.pod(id);
        Some(pod.uid.as_deref().filter(|_| pod.local))
    }

    /// The security groups that pods choose, and those that they had and keep until these are known: what a resolver
    /// has to resolve.
    #[must_use]
    pub fn wanted_groups(&self) -> BTreeSet<SecurityGroupId> {
        let live = self.cluster.live_identities();
        let ours = live.filter(|(_, identity)| identity.local > 0);
        let chosen = ours.flat_map(|(_, identity)| &identity.chosen.ids);
        let held = self.locals.values().filter(|local| local.pod.is_some());
        let held = held.filter_map(|local| local.chosen.as_deref()).flat_map(|held| &held.ids);
        chosen.chain(held).cloned().collect()
    }

    /// The security groups of a pod of ours that are not known yet, each with what delays it. Until they are, the pod
    /// keeps its sets and its former groups; without sets it has none ([`Index::pod_sets`]).
    #[must_use]
    pub fn awaited_groups(&self, pod: &PodKey) -> Vec<(SecurityGroupId, Option<String>)> {
        let Some(id) = self.locals.get(pod).and_then(|local| local.pod) else { return Vec::new() };
        let chosen = &self.cluster.identity(self.cluster.pod(id).identity).chosen;
        let awaited = self.awaited(chosen);
        awaited.map(|(id, reason)| (id.clone(), reason.map(str::to_owned))).collect()
    }

    /// Nobody is waited for where every pod is in scope: there nobody resolves.
    fn awaited<'a>(
        &'a self,
        chosen: &'a Chosen,
    ) -> impl Iterator<Item = (&'a SecurityGroupId, Option<&'a str>)> {
        let resolves = matches!(self.scope, Scope::Node(_));
        flatten::awaited(&self.groups, chosen).filter(move |_| resolves)
    }

    fn awaits(&self, chosen: &Chosen) -> bool {
        self.awaited(chosen).next().is_some()
    }

    /// How much there is.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes {
            pods: self.cluster.pods.iter().flatten().count(),
            local_pods: self.locals.len(),
            namespaces: self.cluster.namespaces.len(),
            identities: self.cluster.live_identities().count(),
            addresses: self.entries.len(),
            prefixes: self.regions.by_net.len(),
            classes: self.classes.by_number.len(),
            sets: self.sets.len(),
            verdicts: self.sets.values().map(|set| set.table.len() + 1).sum(),
        }
    }
}
