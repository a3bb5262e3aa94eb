//! Pods' entries: who may send what from which veth, and which sets judge it.
//!
//! Invariants: no two entries have the same slot; an entry that is replaced for the same pod keeps slot and
//! incarnation (its flows go on), one for another pod gets an incarnation that the slot did not have before;
//! each write has a number of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read as _,
    net::{Ipv4Addr, Ipv6Addr},
    sync::atomic::Ordering,
};

use veni_core::net::Mac;
use veni_ebpf_common::{PodState, PodValue, flow::SLOTS, table::OPEN_SET};

use super::Filter;
use crate::error::{Error, Result};

/// What the filter knows about a pod's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodEntry {
    /// Its address.
    pub address: Ipv4Addr,
    /// The MAC of its interface.
    pub mac: Mac,
    /// Its ENI's mark (`EniMarkMask::mark`).
    pub mark: u32,
}

/// What judges a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodPolicy {
    /// Its IPv6 address.
    pub address_v6: Option<Ipv6Addr>,
    /// The set that judges what is sent to it.
    pub ingress_set: u32,
    /// The set that judges what it sends.
    pub egress_set: u32,
    /// [`PodFlags`](super::PodFlags).
    pub flags: u32,
}

/// How flows and events name a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodIdentity {
    /// Its slot.
    pub slot: u32,
    /// Which of the pods that had the slot.
    pub incarnation: u32,
}

/// An entry, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    /// Its interface.
    pub entry: PodEntry,
    /// What judges it.
    pub policy: PodPolicy,
    /// How flows name it.
    pub identity: PodIdentity,
}

impl Default for PodPolicy {
    /// Not isolated, IPv4 only.
    fn default() -> Self {
        Self { address_v6: None, ingress_set: OPEN_SET, egress_set: OPEN_SET, flags: 0 }
    }
}

impl Filter {
    /// Adds or replaces a pod's entry, all of it at once. The next packet is judged by it.
    ///
    /// # Errors
    /// When the map is full.
    pub fn pod_admit(
        &self,
        ifindex: u32,
        entry: PodEntry,
        policy: PodPolicy,
    ) -> Result<PodIdentity> {
        let _lock = self.locked();
        let had = self.maps.pods.get(&ifindex)?;
        self.write(ifindex, had, entry, policy)
    }

    /// Adds or replaces a pod's interface. The same pod (by its address) keeps what judges it; another is not isolated.
    ///
    /// # Errors
    /// When the map is full.
    pub fn pod_insert(&self, ifindex: u32, entry: PodEntry) -> Result<()> {
        self.pod_insert_judged(ifindex, entry, PodPolicy::default())
    }

    /// As [`Filter::pod_insert`], but another pod is judged by `newcomer`.
    ///
    /// # Errors
    /// When the map is full.
    pub fn pod_insert_judged(
        &self,
        ifindex: u32,
        entry: PodEntry,
        newcomer: PodPolicy,
    ) -> Result<()> {
        let _lock = self.locked();
        let had = self.maps.pods.get(&ifindex)?;
        let policy = match had {
            Some(had) if had.address == entry.address.octets() => pod(had).policy,
            _ => newcomer,
        };
        self.write(ifindex, had, entry, policy).map(drop)
    }

    /// One entry, whole.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn pod(&self, ifindex: u32) -> Result<Option<Pod>> {
        Ok(self.maps.pods.get(&ifindex)?.map(pod))
    }

    /// Changes what judges a pod, at once for both directions. `false` when there is no such entry.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod_policy(&self, ifindex: u32, policy: PodPolicy) -> Result<bool> {
        let _lock = self.locked();
        let Some(had) = self.maps.pods.get(&ifindex)? else { return Ok(false) };
        self.write(ifindex, Some(had), pod(had).entry, policy).map(|_| true)
    }

    /// As [`Filter::pod_policy`], but only the sets: its IPv6 address and flags stay.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod_sets(&self, ifindex: u32, ingress_set: u32, egress_set: u32) -> Result<bool> {
        let _lock = self.locked();
        let Some(had) = self.maps.pods.get(&ifindex)? else { return Ok(false) };
        let Pod { entry, policy, .. } = pod(had);
        let policy = PodPolicy { ingress_set, egress_set, ..policy };
        self.write(ifindex, Some(had), entry, policy).map(|_| true)
    }

    /// Removes a pod's entry: everything to and from its veth is dropped from now on. Nothing happens when there is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod_remove(&self, ifindex: u32) -> Result<()> {
        let _lock = self.locked();
        self.maps.pods.remove(&ifindex).map(drop)
    }

    /// All pods' interfaces.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn pods(&self) -> Result<BTreeMap<u32, PodEntry>> {
        Ok(self.entries()?.into_iter().map(|(ifindex, pod)| (ifindex, pod.entry)).collect())
    }

    /// All entries, whole.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn entries(&self) -> Result<BTreeMap<u32, Pod>> {
        let entries = self.maps.pods.entries()?;
        Ok(entries.into_iter().map(|(ifindex, value)| (ifindex, pod(value))).collect())
    }

    /// Makes the entries exactly these, with this daemon's mark mask. Pods that stay keep what judges them. How many were
    /// added, replaced or removed.
    ///
    /// # Errors
    /// When the map is full or the kernel refuses.
    pub fn sync(&self, pods: &BTreeMap<u32, PodEntry>) -> Result<usize> {
        self.sync_judged(pods, PodPolicy::default())
    }

    /// As [`Filter::sync`], but pods that are added are judged by `newcomers`.
    ///
    /// # Errors
    /// As for [`Filter::sync`].
    pub fn sync_judged(
        &self,
        pods: &BTreeMap<u32, PodEntry>,
        newcomers: PodPolicy,
    ) -> Result<usize> {
        let have: BTreeMap<u32, PodValue> = self.maps.pods.entries()?.into_iter().collect();
        let same = |ifindex, entry: &PodEntry| {
            let mask = self.mask.bits();
            have.get(ifindex).is_some_and(|had| pod(*had).entry == *entry && had.mask == mask)
        };
        let mut changed = 0;
        for (ifindex, entry) in pods.iter().filter(|(ifindex, entry)| !same(ifindex, entry)) {
            self.pod_insert_judged(*ifindex, *entry, newcomers)?;
            changed += 1;
        }
        for ifindex in have.keys().filter(|ifindex| !pods.contains_key(ifindex)) {
            self.pod_remove(*ifindex)?;
            changed += 1;
        }
        Ok(changed)
    }

    fn write(
        &self,
        ifindex: u32,
        had: Option<PodValue>,
        entry: PodEntry,
        policy: PodPolicy,
    ) -> Result<PodIdentity> {
        let same = had.filter(|had| had.address == entry.address.octets());
        let identity = match same {
            Some(had) => pod(had).identity,
            None => self.new_identity()?,
        };
        self.maps.pods.set(&ifindex, &self.value(ifindex, &Pod { entry, policy, identity }))?;
        Ok(identity)
    }

    fn value(&self, ifindex: u32, pod: &Pod) -> PodValue {
        let number = self.next_write();
        PodValue {
            first: number,
            ifindex,
            address: pod.entry.address.octets(),
            mac: pod.entry.mac.0,
            reserved: [0; 2],
            mark: pod.entry.mark,
            mask: self.mask.bits(),
            address_v6: pod.policy.address_v6.map_or([0; 16], |address| address.octets()),
            slot: pod.identity.slot,
            incarnation: pod.identity.incarnation,
            ingress_set: pod.policy.ingress_set,
            egress_set: pod.policy.egress_set,
            flags: pod.policy.flags,
            last: number,
        }
    }

    /// The number of one write of an entry.
    pub(super) fn next_write(&self) -> u32 {
        self.writes.fetch_add(1, Ordering::Relaxed)
    }

    /// A slot that no entry has, its state cleared.
    fn new_identity(&self) -> Result<PodIdentity> {
        let taken: BTreeSet<u32> =
            self.maps.pods.entries()?.into_iter().map(|(_, pod)| pod.slot).collect();
        let slot = (0..SLOTS)
            .find(|slot| !taken.contains(slot))
            .ok_or(Error::TableFull { map: "PODS", limit: SLOTS })?;
        self.maps.pod_states.set(&slot, &PodState::default())?;
        Ok(PodIdentity { slot, incarnation: random()? })
    }
}

/// An incarnation: a number that the slot's earlier pods, whose flows may still be in the tables, are not likely to
/// have had. Nothing has to be remembered for it across restarts.
pub(super) fn random() -> Result<u32> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::io("reading /dev/urandom"))?;
    Ok(u32::from_ne_bytes(bytes))
}

fn pod(value: PodValue) -> Pod {
    let v6 = Ipv6Addr::from(value.address_v6);
    Pod {
        entry: PodEntry { address: value.address.into(), mac: Mac(value.mac), mark: value.mark },
        policy: PodPolicy {
            address_v6: (!v6.is_unspecified()).then_some(v6),
            ingress_set: value.ingress_set,
            egress_set: value.egress_set,
            flags: value.flags,
        },
        identity: PodIdentity { slot: value.slot, incarnation: value.incarnation },
    }
}
