//! The eBPF filters on pods' veths: loaded, fed and attached by the daemon; alive in the kernel without it.
//!
//! Invariants: maps are pinned by name, so that a daemon's end (normal, by a panic, by a signal) leaves filters and
//! maps at work; the next daemon adopts them and replaces the programs in place, atomically, never detaching first.
//! Pins live in a directory named after the layout's version, so maps of another layout are never adopted: the old
//! filters go on with the old maps until the new ones, fed by the caller, take their place ([`layout`]).
//!
//! Order for the caller: [`Filter::open`], [`Filter::sync`] with every pod of the ledger, the tables and settings, then
//! [`Filter::ensure_attached`].
//!
//! Deliberately absent: detaching, and TCX (an attach waits for RCU: docs/adr/0003); what the tables mean (the policy
//! crate's).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::AtomicU32},
};

use veni_core::{marks::EniMarkMask, wire::FilterBlocks};
pub use veni_ebpf_common::{
    Counter, Direction, DropReason, Event, FlowFlags, PodFlags, PodState, Remove, SettingFlags,
    Settings, Write, event, flow, table,
};

use crate::{
    error::{Error, Result},
    host::Repair,
};

mod attach;
pub mod bare;
mod bpffs;
mod earlier;
mod events;
mod foreign;
mod layout;
mod load;
mod map;
mod occupancy;
mod off;
mod pods;
mod run;
mod syscall;
mod tables;

pub use events::Events;
pub use foreign::{Foreign, ForeignProgram};
pub use load::{EGRESS_PROGRAM, INGRESS_PROGRAM, OBJECT};
pub use occupancy::Occupancy;
pub use pods::{Pod, PodEntry, PodIdentity, PodPolicy};
pub use run::{Action, Outcome, Skb};
pub use tables::Tables;

/// The filters' blocks unless the configuration says otherwise ("ve", 0x65 and 0x66): any number will do that no
/// other program of the node uses.
pub const DEFAULT_BLOCKS: FilterBlocks = FilterBlocks { ingress: 0x7665, egress: 0x7666 };

/// The loaded filters and their maps.
#[derive(Debug)]
pub struct Filter {
    egress: load::Program,
    ingress: load::Program,
    followers: load::Followers,
    maps: load::Maps,
    mask: EniMarkMask,
    /// Serialises changes of pods' entries and of the settings, which are read, changed and written.
    lock: Mutex<()>,
    /// The number of the next write of a pod's entry; it begins anywhere, so that an earlier daemon's were others.
    writes: AtomicU32,
    blocks: FilterBlocks,
    bpf_dir: PathBuf,
    adopted: bool,
    cpus: usize,
    takeover: Mutex<layout::Takeover>,
}

/// Takes the filters off a node that has no pods left: the anchor links with their blocks, and the pinned maps.
///
/// # Errors
/// When the kernel refuses, or the pins cannot be removed.
pub fn remove(bpf_dir: &Path) -> Result<()> {
    attach::remove_anchor()?;
    layout::remove_pins(bpf_dir, |_| true)
}

// === impl Filter ===

impl Filter {
    /// Loads the filters with their maps pinned under `bpf_dir` (made, and a BPF file system mounted, where missing);
    /// maps that are there already are adopted. Nothing is attached yet.
    ///
    /// # Errors
    /// Without `CAP_BPF`/`CAP_SYS_ADMIN`, without a BPF file system, or when the verifier refuses.
    pub fn open(bpf_dir: &Path, mask: EniMarkMask) -> Result<Self> {
        Self::open_with_blocks(bpf_dir, mask, DEFAULT_BLOCKS)
    }

    /// As [`Filter::open`], with other block indexes.
    ///
    /// # Errors
    /// As [`Filter::open`].
    pub fn open_with_blocks(
        bpf_dir: &Path,
        mask: EniMarkMask,
        blocks: FilterBlocks,
    ) -> Result<Self> {
        layout::discard_idle(bpf_dir, blocks)?;
        let load::Loaded { egress, ingress, followers, maps, adopted } = load::load(bpf_dir)?;
        let filter = Self {
            egress,
            ingress,
            followers,
            maps,
            mask,
            lock: Mutex::default(),
            writes: AtomicU32::new(pods::random()?),
            blocks,
            bpf_dir: bpf_dir.to_owned(),
            adopted,
            cpus: layout::possible_cpus()?,
            takeover: Mutex::default(),
        };
        filter.begin_takeover()?;
        Ok(filter)
    }

    /// Whether the maps were there already, with the pods of an earlier daemon.
    #[must_use]
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The blocks, for the clsact qdisc of each pod's veth.
    #[must_use]
    pub fn blocks(&self) -> FilterBlocks {
        self.blocks
    }

    /// Puts the filters on the blocks of the current network namespace: makes what keeps the blocks alive (the anchor
    /// links and their qdisc) and replaces the programs in place.
    ///
    /// # Errors
    /// When the kernel refuses one of them.
    pub fn ensure_attached(&self) -> Result<FilterBlocks> {
        self.check_attached()?;
        Ok(self.blocks)
    }

    /// Looks whether the filters are still on their blocks, and puts back what is missing. What it had to repair.
    ///
    /// # Errors
    /// When the kernel cannot be asked or refuses a repair.
    pub fn check_attached(&self) -> Result<Vec<Repair>> {
        self.carry_over()?;
        self.followers.keep()?;
        let repairs = attach::ensure(&self.egress, &self.ingress, self.blocks)?;
        if repairs.is_empty() {
            self.followers.release_others()?;
        }
        self.end_takeover()?;
        Ok(repairs)
    }

    /// The tables that judge.
    #[must_use]
    pub fn tables(&self) -> Tables<'_> {
        Tables::new(&self.maps)
    }

    /// The settings in force.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn settings(&self) -> Result<Settings> {
        Ok(self.maps.settings.get(&0)?.unwrap_or_default())
    }

    /// Changes the settings, all at once. What the daemon alone knows stays: the flag about the kernel's checksums. When a
    /// verdict may be another by them, every flow is judged again by its next packet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn configure(&self, change: impl FnOnce(&mut Settings)) -> Result<Settings> {
        let _lock = self.locked();
        let before = self.settings()?;
        let mut settings = before;
        change(&mut settings);
        if layout::kernel_has_ipv6_checksums() {
            settings.flags |= SettingFlags::CHECKSUM_IPV6;
        }
        let rejudges = settings.epoch == before.epoch && decisive(&settings) != decisive(&before);
        // Now, lest a daemon that dies here leaves flows by the former settings for good…
        settings.epoch = settings.epoch.wrapping_add(rejudges.into());
        self.maps.settings.set(&0, &settings)?;
        if rejudges {
            // …and once more, for flows that a program has taken in by the former settings and the new epoch.
            off::grace();
            settings.epoch = settings.epoch.wrapping_add(1);
            self.maps.settings.set(&0, &settings)?;
        }
        Ok(settings)
    }

    /// Raises the policy's epoch: every flow is judged again by its next packet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn raise_epoch(&self) -> Result<u32> {
        let settings =
            self.configure(|settings| settings.epoch = settings.epoch.wrapping_add(1))?;
        Ok(settings.epoch)
    }

    /// Makes the node's own addresses exactly these; where they do not all fit, as many as do. Whether anything changed.
    ///
    /// # Errors
    /// How many did not fit; all others are in force. When the kernel refuses.
    pub fn set_node_addresses(&self, wanted: &BTreeSet<IpAddr>) -> Result<bool> {
        let have: BTreeSet<IpAddr> = self.node_addresses()?;
        // First, so that what is the node's no more is gone whatever finds no room, and leaves its own to others.
        for address in have.difference(wanted) {
            match address {
                IpAddr::V4(address) => self.maps.node_v4.remove(&address.octets())?,
                IpAddr::V6(address) => self.maps.node_v6.remove(&address.octets())?,
            };
        }
        let (mut left_out, mut full) = (0, 0);
        for address in wanted.difference(&have) {
            let told = match address {
                IpAddr::V4(address) => self.maps.node_v4.set(&address.octets(), &1),
                IpAddr::V6(address) => self.maps.node_v6.set(&address.octets(), &1),
            };
            match told {
                Err(Error::TableFull { limit, .. }) => (left_out, full) = (left_out + 1, limit),
                told => told?,
            }
        }
        if left_out > 0 {
            return Err(Error::NodeAddressesLeftOut { left_out, limit: full });
        }
        Ok(have != *wanted)
    }

    /// The node's own addresses, as the programs know them.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn node_addresses(&self) -> Result<BTreeSet<IpAddr>> {
        let v4 = self.maps.node_v4.entries()?.into_iter().map(|(a, _)| IpAddr::from(a));
        let v6 = self.maps.node_v6.entries()?.into_iter().map(|(a, _)| IpAddr::from(a));
        Ok(v4.chain(v6).collect())
    }

    /// Packets dropped since the maps were made, by reason; all reasons are there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn drops(&self) -> Result<BTreeMap<DropReason, u64>> {
        let count = |reason: DropReason| {
            let values = self.maps.drops.per_cpu(reason.slot(), self.cpus)?;
            Ok((reason, values.into_iter().sum()))
        };
        DropReason::ALL.into_iter().map(count).collect()
    }

    /// What the programs counted beside drops, since the maps were made; all counters are there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn counters(&self) -> Result<BTreeMap<Counter, u64>> {
        let count = |counter: Counter| {
            let values = self.maps.counters.per_cpu(counter.slot(), self.cpus)?;
            Ok((counter, values.into_iter().sum()))
        };
        Counter::ALL.into_iter().map(count).collect()
    }

    /// What the programs keep about a pod.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn pod_state(&self, slot: u32) -> Result<PodState> {
        Ok(self.maps.pod_states.get(&slot)?.unwrap_or_default())
    }

    /// How many half-open flows are in the table of pods that have more than their share. As [`Self::flow_counts`].
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn overflow_count(&self) -> Result<usize> {
        Ok(self.maps.overflow_v4.entries()?.len() + self.maps.overflow_v6.entries()?.len())
    }

    /// How many flows are tracked: established and half open, both families; both views of a translated flow count.
    /// Reads the whole tables: for a person who asks, not for a timer.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn flow_counts(&self) -> Result<(usize, usize)> {
        let established = self.maps.flows_v4.entries()?.len() + self.maps.flows_v6.entries()?.len();
        let half_open =
            self.maps.half_open_v4.entries()?.len() + self.maps.half_open_v6.entries()?.len();
        Ok((established, half_open))
    }

    /// A reader of flow events.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn events(&self) -> Result<Events> {
        let fd = self.maps.events.as_fd().try_clone_to_owned();
        Events::new(fd.map_err(Error::io("duplicating the events' descriptor"))?)
    }

    /// Runs a program on a frame, without any interface: `repeat` times, of which the last counts.
    ///
    /// # Errors
    /// When the kernel refuses to run it (a frame shorter than an Ethernet header).
    pub fn run(
        &self,
        direction: Direction,
        frame: &[u8],
        skb: Skb,
        repeat: u32,
    ) -> Result<Outcome> {
        let program = match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        };
        run::run(program.fd.as_fd(), frame, skb, repeat)
    }

    /// The kernel's id of the program for what leaves a pod (`bpftool prog show id …`).
    #[must_use]
    pub fn program_id(&self) -> u32 {
        self.egress.id
    }

    /// The same of the program for what enters a pod.
    #[must_use]
    pub fn ingress_program_id(&self) -> u32 {
        self.ingress.id
    }

    /// The kernel's ids of all programs of this load.
    #[must_use]
    pub fn program_ids(&self) -> Vec<u32> {
        [self.egress.id, self.ingress.id].into_iter().chain(self.followers.ids()).collect()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of the settings a verdict on an established flow depends on.
fn decisive(settings: &Settings) -> Settings {
    let flags = SettingFlags::METADATA_CLOSED | SettingFlags::KEEP_ESTABLISHED;
    Settings {
        flags: settings.flags & flags,
        service_v4: settings.service_v4,
        service_mask_v4: settings.service_mask_v4,
        service_v6: settings.service_v6,
        service_mask_v6: settings.service_mask_v6,
        node_port_first: settings.node_port_first,
        node_port_last: settings.node_port_last,
        ..Settings::default()
    }
}
