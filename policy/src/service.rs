//! Services as a pod's packet meets them: front ends and their back ends, for the tables `SERVICE_V4`, `SERVICE_V6`
//! and `BACKENDS`.
//!
//! Front ends: cluster, external and load-balancer addresses; NodePorts and hostPorts on the node's own addresses.
//! Which back ends each has is what kube-proxy (1.34) would choose for a packet of a pod on this node; the sources are
//! cited where they are followed. Back ends are a Service's EndpointSlices, or, where it has none, worked out from its
//! selector. Traffic that is not a pod's is kube-proxy's.
//!
//! Invariants: a front end leads to one complete list of back ends at every moment, the old one or the new one; a list
//! that a program may still read is not touched. What is invalid is a [`Diagnostic`] and makes no front end. Every pod
//! may reach what is the node's own and no front end: so an address that is new since an earlier daemon is told as the
//! node's own only once every object was applied and its front ends are there.
//!
//! Load-balancer addresses with `loadBalancerSourceRanges` are kube-proxy's, which looks at the source: packets to them are
//! left to it, but refused from pods that are isolated, since no policy would see where they go.
//!
//! Deliberately absent: load-balancer addresses with `ipMode: Proxy`, and Services of another proxy
//! (`service.kubernetes.io/service-proxy-name`): packets to them are left alone. The program's choice among the back ends, and session affinity's memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use veni_ebpf_common::table::{BackendKey, BackendValue, ServiceValue};

use crate::{
    change::{PodKey, Step},
    object::{Diagnostic, Key, Object},
};

mod choice;
mod claims;
mod endpoints;
mod expand;
mod front_end;
mod lists;
mod names;
mod sources;
mod tables;

pub use front_end::{BackEnd, FrontEnd, PortName};

use claims::Claims;
use sources::{Dirty, Sources};
use tables::Tables;

/// The node that the tables are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnNode {
    /// Its name in the cluster.
    pub name: String,
    /// Its zone, where the cluster's Node object has no label that says it.
    pub zone: Option<String>,
    /// The addresses that are its own: NodePorts and hostPorts are on each, but for loopback ones.
    pub addresses: BTreeSet<IpAddr>,
}

/// What an earlier daemon left in the maps.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// `SERVICE_V4` and `SERVICE_V6` ([`FrontEnd::of_v4`], [`FrontEnd::of_v6`]).
    pub front_ends: Vec<(FrontEnd, ServiceValue)>,
    /// `BACKENDS`.
    pub back_ends: Vec<(BackendKey, BackendValue)>,
}

/// Where a front end leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation<'a> {
    /// Whose it is.
    pub port: &'a PortName,
    /// Session affinity by client address: seconds it holds, 0 for none.
    pub affinity_secs: u32,
    /// Sorted, each once. None: the packet is refused.
    pub back_ends: &'a [BackEnd],
    /// kube-proxy's: refused only from an isolated pod.
    pub of_proxy: bool,
}

/// The objects, and the tables that they make.
///
/// Each change returns the steps that bring the maps to it. They have to be carried out in order, and before those of
/// the next change: numbers that they give up may be in those again.
#[derive(Debug)]
pub struct ServiceTables {
    sources: Sources,
    claims: Claims,
    tables: Tables,
    /// The node's own addresses, as far as they have been told; the others wait for the objects.
    told: BTreeSet<IpAddr>,
    /// Those that an earlier daemon told: one that goes and comes back does not wait.
    found: BTreeSet<IpAddr>,
    /// Whether new addresses of the node are told at once.
    telling: bool,
    diagnostics: BTreeMap<Key, Vec<Diagnostic>>,
}

impl ServiceTables {
    /// Without objects, over maps as they were found. What was found and is nobody's stays until
    /// [`ServiceTables::complete`] or [`ServiceTables::reset`]; so long addresses that are new since then are not told as
    /// the node's own. Where none was told (the kernel is fresh) they are at once: without them no pod would take
    /// anything from its own node, probes among it.
    #[must_use]
    pub fn new(own: OwnNode, found: &Found) -> Self {
        Self {
            told: own.addresses.clone(),
            found: own.addresses.clone(),
            telling: own.addresses.is_empty(),
            sources: Sources::new(own),
            claims: Claims::default(),
            tables: Tables::adopt(found),
            diagnostics: BTreeMap::new(),
        }
    }

    /// Adds or replaces an object. Kinds that have no part in Services change nothing.
    pub fn apply(&mut self, object: &Object) -> Vec<Step> {
        self.update([object], [])
    }

    /// Removes an object.
    pub fn delete(&mut self, key: &Key) -> Vec<Step> {
        self.update([], [key])
    }

    /// Several changes in one batch: first those applied, then those deleted.
    pub fn update<'a>(
        &mut self,
        applied: impl IntoIterator<Item = &'a Object>,
        deleted: impl IntoIterator<Item = &'a Key>,
    ) -> Vec<Step> {
        let mut dirty = Dirty::new();
        for object in applied {
            self.sources.apply(object, &mut dirty);
        }
        for key in deleted {
            self.sources.delete(key, &mut dirty);
        }
        let touched = self.expand(dirty);
        self.tables.change(touched, &self.claims)
    }

    /// Makes the objects exactly these; what is in the maps and is nobody's goes.
    pub fn reset<'a>(&mut self, objects: impl IntoIterator<Item = &'a Object>) -> Vec<Step> {
        let mut dirty: Dirty =
            self.claims.owners().chain(self.diagnostics.keys()).cloned().collect();
        self.sources = self.sources.without_objects();
        for object in objects {
            self.sources.apply(object, &mut dirty);
        }
        let mut touched = self.expand(dirty);
        touched.extend(self.tables.front_ends());
        self.telling = true;
        self.readdress(touched)
    }

    /// The node gave this pod these addresses: they count from now on, whatever its status says or does not say yet. None:
    /// it is gone from the node.
    pub fn attach(&mut self, pod: &PodKey, addresses: &[IpAddr]) -> Vec<Step> {
        let mut dirty = Dirty::new();
        let name = (pod.namespace.clone(), pod.name.clone());
        self.sources.attach(name, addresses, &mut dirty);
        if dirty.is_empty() {
            return Vec::new();
        }
        let touched = self.expand(dirty);
        self.tables.change(touched, &self.claims)
    }

    /// Every object was applied once: what was found in the maps and is nobody's goes, and addresses that waited for it
    /// become the node's own.
    pub fn complete(&mut self) -> Vec<Step> {
        let touched = self.tables.front_ends().collect();
        self.telling = true;
        self.readdress(touched)
    }

    /// The node's own addresses, as they were told.
    #[must_use]
    pub const fn own_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.told
    }

    /// The node's own addresses that wait for the objects: meanwhile isolated pods take them for strangers'.
    #[must_use]
    pub fn waiting_addresses(&self) -> BTreeSet<IpAddr> {
        &self.sources.own.addresses - &self.told
    }

    /// The node's own addresses are these now.
    pub fn set_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> Vec<Step> {
        if self.sources.own.addresses == addresses {
            return Vec::new();
        }
        self.sources.own.addresses = addresses;
        let touched = self.expand(self.sources.owners());
        self.readdress(touched)
    }

    /// Makes these front ends lead where the claims say, and tells the node's own addresses that may be told now.
    fn readdress(&mut self, touched: BTreeSet<FrontEnd>) -> Vec<Step> {
        let wanted = &self.sources.own.addresses;
        let own = if self.telling { wanted.clone() } else { &self.found & wanted };
        if own == self.told {
            return self.tables.change(touched, &self.claims);
        }
        let old = std::mem::replace(&mut self.told, own);
        self.tables.change_addresses(touched, &self.claims, &old, &self.told)
    }

    /// Where a front end leads; `None` when it is none.
    #[must_use]
    pub fn translate(&self, front_end: FrontEnd) -> Option<Translation<'_>> {
        self.claims.target(front_end).map(Translation::of)
    }

    /// All front ends, sorted.
    pub fn front_ends(&self) -> impl Iterator<Item = (FrontEnd, Translation<'_>)> {
        self.claims.targets().map(|(at, target)| (at, Translation::of(target)))
    }

    /// What is wrong now: addresses that cannot be had, front ends that another owner has, tables that are full.
    #[must_use]
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut all: Vec<Diagnostic> = self.diagnostics.values().flatten().cloned().collect();
        all.extend(self.claims.diagnostics());
        all.extend(self.tables.diagnostics(&self.claims));
        all.sort();
        all.dedup();
        all
    }

    fn expand(&mut self, dirty: Dirty) -> BTreeSet<FrontEnd> {
        let mut touched = BTreeSet::new();
        for owner in dirty {
            let expansion = expand::of(&self.sources, &owner);
            touched.extend(self.claims.replace(&owner, expansion.claims));
            self.diagnostics.remove(&owner);
            if !expansion.diagnostics.is_empty() {
                self.diagnostics.insert(owner, expansion.diagnostics);
            }
        }
        touched
    }
}

impl<'a> Translation<'a> {
    fn of(target: &'a claims::Target) -> Self {
        Self {
            port: &target.name,
            affinity_secs: target.affinity_secs,
            back_ends: &target.back_ends,
            of_proxy: target.of_proxy,
        }
    }
}
