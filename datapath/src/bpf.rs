//! The eBPF filter on pods' veths: loaded, fed and attached by the daemon; alive in the kernel without it.
//!
//! Invariants: maps are pinned by name, so that a daemon's end (normal, by a panic, by a signal) leaves filter and
//! maps at work; the next daemon adopts them and replaces the program in place, atomically, never detaching first.
//! Pins live in a directory named after the layout's version, so maps of another layout are never adopted: the old
//! filter goes on with the old maps until the new one, fed by the caller, takes its place.
//!
//! Order for the caller: [`Filter::open`], [`Filter::sync`] with every pod of the ledger, then
//! [`Filter::ensure_attached`].
//!
//! Deliberately absent: detaching, and TCX (an attach waits for RCU: docs/adr/0003).

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::Path,
    sync::{Mutex, PoisonError},
};

use aya::maps::{HashMap, MapData, MapError, PerCpuArray};
use veni_core::{marks::EniMarkMask, net::Mac, wire::FilterBlocks};
pub use veni_ebpf_common::DropReason;

use crate::{
    error::{Error, Result},
    host::Repair,
};

mod attach;
mod bpffs;
mod load;
mod syscall;

pub use load::{OBJECT, PROGRAM};

/// The filter's blocks unless the configuration says otherwise ("ve", 0x65 and 0x66): any number will do that no
/// other program of the node uses.
pub const DEFAULT_BLOCKS: FilterBlocks = FilterBlocks { ingress: 0x7665, egress: 0x7666 };

/// What the filter knows about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodEntry {
    /// Its address.
    pub address: Ipv4Addr,
    /// The MAC of its interface.
    pub mac: Mac,
    /// Its ENI's mark (`EniMarkMask::mark`).
    pub mark: u32,
}

/// The loaded filter and its maps.
pub struct Filter {
    program: OwnedFd,
    mask: EniMarkMask,
    pods: Mutex<HashMap<MapData, u32, Value>>,
    drops: PerCpuArray<MapData, u64>,
    program_id: u32,
    blocks: FilterBlocks,
    adopted: bool,
}

/// The shared type with the marker that aya asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
struct Value(veni_ebpf_common::PodValue);

#[expect(unsafe_code, reason = "aya's marker for plain bytes")]
// SAFETY: `repr(C)` of fixed-width fields without padding (asserted where it is defined).
unsafe impl aya::Pod for Value {}

/// Takes the filter off a node that has no pods left: the anchor links with their blocks, and the pinned maps.
///
/// # Errors
/// When the kernel refuses, or the pins cannot be removed.
pub fn remove(bpf_dir: &Path) -> Result<()> {
    attach::remove_anchor()?;
    match std::fs::remove_dir_all(load::pins(bpf_dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("removing the pinned maps")(error))
        }
        _ => Ok(()),
    }
}

// === impl Filter ===

impl Filter {
    /// Loads the filter with its maps pinned under `bpf_dir` (made, and a BPF file system mounted, where missing);
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
        let load::Loaded { program, program_id, pods, drops, adopted } = load::load(bpf_dir)?;
        Ok(Self { program, program_id, mask, pods: Mutex::new(pods), drops, blocks, adopted })
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

    /// Puts the filter on the blocks of the current network namespace: makes what keeps the blocks alive (the anchor
    /// links and their qdisc) and replaces the program in place.
    ///
    /// # Errors
    /// When the kernel refuses one of them.
    pub fn ensure_attached(&self) -> Result<FilterBlocks> {
        attach::ensure(&self.program, self.program_id, self.blocks)?;
        Ok(self.blocks)
    }

    /// Looks whether the filter is still on its block, and puts back what is missing. What it had to repair.
    ///
    /// # Errors
    /// When the kernel cannot be asked or refuses a repair.
    pub fn check_attached(&self) -> Result<Vec<Repair>> {
        attach::ensure(&self.program, self.program_id, self.blocks)
    }

    /// Adds or replaces a pod's entry. The next packet is judged by it.
    ///
    /// # Errors
    /// When the map is full.
    pub fn pod_insert(&self, ifindex: u32, pod: PodEntry) -> Result<()> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.insert(ifindex, self.value(pod), 0)
            .map_err(|source| bpf(format!("adding the entry of interface {ifindex}"), source))
    }

    /// Removes a pod's entry: everything from its veth is dropped from now on. Nothing happens when there is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod_remove(&self, ifindex: u32) -> Result<()> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        match pods.remove(&ifindex) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(source) if is_absent(&source) => Ok(()),
            Err(source) => Err(bpf(format!("removing the entry of interface {ifindex}"), source)),
        }
    }

    /// All entries.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn pods(&self) -> Result<BTreeMap<u32, PodEntry>> {
        let pods = self.values()?;
        Ok(pods.into_iter().map(|(ifindex, value)| (ifindex, PodEntry::from(value))).collect())
    }

    /// Makes the entries exactly these, with this daemon's mark mask. How many were added, replaced or removed.
    ///
    /// # Errors
    /// When the map is full or the kernel refuses.
    pub fn sync(&self, pods: &BTreeMap<u32, PodEntry>) -> Result<usize> {
        let have = self.values()?;
        let differs = |ifindex, pod: &PodEntry| have.get(ifindex) != Some(&self.value(*pod));
        let mut changed = 0;
        for (ifindex, pod) in pods.iter().filter(|(ifindex, pod)| differs(ifindex, pod)) {
            self.pod_insert(*ifindex, *pod)?;
            changed += 1;
        }
        for ifindex in have.keys().filter(|ifindex| !pods.contains_key(ifindex)) {
            self.pod_remove(*ifindex)?;
            changed += 1;
        }
        Ok(changed)
    }

    /// Packets dropped since the maps were made, by reason; all reasons are there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn drops(&self) -> Result<BTreeMap<DropReason, u64>> {
        let count = |reason: DropReason| {
            let values = self.drops.get(&reason.slot(), 0)?;
            Ok((reason, values.iter().sum()))
        };
        DropReason::ALL
            .into_iter()
            .map(count)
            .collect::<std::result::Result<_, MapError>>()
            .map_err(|source| bpf("reading the drop counters".to_owned(), source))
    }

    /// The kernel's id of the loaded program (`bpftool prog show id …`).
    #[must_use]
    pub fn program_id(&self) -> u32 {
        self.program_id
    }

    fn values(&self) -> Result<BTreeMap<u32, Value>> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.iter()
            .collect::<std::result::Result<_, _>>()
            .map_err(|source| bpf("listing the entries".to_owned(), source))
    }

    fn value(&self, pod: PodEntry) -> Value {
        Value(veni_ebpf_common::PodValue {
            address: pod.address.octets(),
            mac: pod.mac.0,
            reserved: [0; 2],
            mark: pod.mark,
            mask: self.mask.bits(),
        })
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("program_id", &self.program_id)
            .field("blocks", &self.blocks)
            .finish_non_exhaustive()
    }
}

impl From<Value> for PodEntry {
    fn from(Value(value): Value) -> Self {
        Self { address: value.address.into(), mac: Mac(value.mac), mark: value.mark }
    }
}

fn bpf(operation: String, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Bpf { operation, source: Box::new(source) }
}

fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::ENOENT))
}
