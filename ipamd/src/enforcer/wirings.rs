//! Which interfaces the node's pods have, and whose rule sets each of them gets.
//!
//! Sets are counted by pod, but it is an interface's entry that names them. Invariant: every entry in the programs' map
//! belongs to exactly one pod here, so that no set is given up while an entry names it. An entry that has no pod of its
//! own (one that was deleted by force and made anew under its name on another interface, one that nobody knows by name) counts as a pod
//! without an object: [`stranger`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use veni_core::ipam::Allocation;
use veni_datapath::bpf::PodIdentity;
use veni_policy::change::PodKey;

use super::Wired;
use crate::start::is_stranger;

/// The pods' interfaces.
#[derive(Debug, Default)]
pub(super) struct Wirings {
    wired: BTreeMap<u32, Wired>,
    /// The interfaces that get a pod's sets.
    judged: BTreeMap<PodKey, BTreeSet<u32>>,
    /// How events name an interface.
    slots: BTreeMap<u32, (u32, u32)>,
}

/// No namespace is called like this.
const NAMELESS: &str = "?";

/// The pod of an interface of which no pod is known.
#[must_use]
pub fn stranger(ifindex: u32) -> PodKey {
    PodKey::new(NAMELESS, format!("ifindex-{ifindex}"))
}

/// The pod that has this address. One of which only the kernel knows shares no sets with others, and is not taken for a
/// sandbox that is no pod: it may well be one.
#[must_use]
pub fn pod_of(allocation: &Allocation) -> PodKey {
    if is_stranger(&allocation.attachment) {
        return stranger(allocation.host_ifindex);
    }
    PodKey::new(&allocation.pod.namespace, &allocation.pod.name)
}

/// Whose each of these interfaces is, where `pods` are those that the ledger has. Of several with one name only the
/// latest is that pod's (indexes are handed out in ascending order); which pod the others were is seen when they are adopted.
/// Sandboxes that are no pods (no name) have sets that are never given up, and are nobody's.
#[must_use]
pub fn keyed(interfaces: &[u32], pods: &[(PodKey, u32)]) -> BTreeMap<u32, PodKey> {
    let mut latest: BTreeMap<&PodKey, u32> = BTreeMap::new();
    let mut keyed: BTreeMap<u32, PodKey> =
        interfaces.iter().map(|ifindex| (*ifindex, stranger(*ifindex))).collect();
    for (pod, ifindex) in pods.iter().filter(|(_, ifindex)| interfaces.contains(ifindex)) {
        if pod.name.is_empty() {
            keyed.remove(ifindex);
        } else {
            let last = latest.entry(pod).or_default();
            *last = (*last).max(*ifindex);
        }
    }
    keyed.extend(latest.into_iter().map(|(pod, ifindex)| (ifindex, pod.clone())));
    keyed
}

impl Wirings {
    pub(super) fn found(interfaces: &BTreeMap<u32, PodKey>) -> Self {
        let mut wirings = Self::default();
        for (ifindex, pod) in interfaces {
            wirings.judged.entry(pod.clone()).or_default().insert(*ifindex);
        }
        wirings
    }

    /// Takes an interface in. Those that lose their pod by it: of two with one name that are not the same pod (by its
    /// UID) the later one has the name.
    pub(super) fn add(&mut self, wired: &Wired, identity: Option<PodIdentity>) -> BTreeSet<u32> {
        let ifindex = wired.ifindex;
        self.forget(ifindex);
        if let Some(identity) = identity {
            self.slots.insert(identity.slot, (identity.incarnation, ifindex));
        }
        self.wired.insert(ifindex, wired.clone());
        self.judged.entry(wired.pod.clone()).or_default().insert(ifindex);
        let same = |other: &Wired| {
            other.ifindex == ifindex || (wired.uid.is_some() && wired.uid == other.uid)
        };
        let others = self.wired(&wired.pod);
        let older: BTreeSet<u32> =
            others.filter(|other| !same(other)).map(|other| other.ifindex.min(ifindex)).collect();
        for older in &older {
            self.release(*older);
            self.judged.entry(stranger(*older)).or_default().insert(*older);
        }
        older
    }

    /// Takes an interface out. `None`: it was not in.
    pub(super) fn remove(&mut self, ifindex: u32) -> Option<Wired> {
        self.forget(ifindex);
        self.wired.remove(&ifindex)
    }

    fn forget(&mut self, ifindex: u32) {
        self.slots.retain(|_, (_, of)| *of != ifindex);
        self.release(ifindex);
    }

    /// No steps reach this interface any more: it has sets that are never given up, or none.
    pub(super) fn release(&mut self, ifindex: u32) {
        self.judged.retain(|_, interfaces| {
            interfaces.remove(&ifindex);
            !interfaces.is_empty()
        });
    }

    /// The interfaces that get this pod's sets.
    pub(super) fn of(&self, pod: &PodKey) -> impl Iterator<Item = u32> {
        self.judged.get(pod).into_iter().flatten().copied()
    }

    /// The interfaces of this pod that the pool told of.
    pub(super) fn wired(&self, pod: &PodKey) -> impl Iterator<Item = &Wired> {
        self.of(pod).filter_map(|ifindex| self.wired.get(&ifindex))
    }

    /// Interfaces of pods that nobody knows by name.
    pub(super) fn strangers(&self) -> impl Iterator<Item = u32> {
        let nameless = self.judged.iter().filter(|(pod, _)| pod.namespace == NAMELESS);
        nameless.flat_map(|(_, interfaces)| interfaces.iter().copied())
    }

    /// Every interface that the pool told of.
    pub(super) fn all(&self) -> impl Iterator<Item = &Wired> {
        self.wired.values()
    }

    /// How many interfaces there are.
    pub(super) fn len(&self) -> usize {
        self.wired.len()
    }

    /// Whether this interface gets the sets of the pod that it was wired for.
    pub(super) fn has_its_name(&self, wired: &Wired) -> bool {
        self.of(&wired.pod).any(|ifindex| ifindex == wired.ifindex)
    }

    /// The addresses of a pod.
    pub(super) fn addresses(&self, pod: &PodKey) -> Vec<IpAddr> {
        self.wired(pod).flat_map(|wired| wired.addresses.iter().copied()).collect()
    }

    /// Whose event it is; `None` for one of a pod that is gone.
    pub(super) fn by_slot(&self, slot: u32, incarnation: u32) -> Option<&Wired> {
        let (current, ifindex) = self.slots.get(&slot)?;
        self.wired.get(ifindex).filter(|_| *current == incarnation)
    }
}
