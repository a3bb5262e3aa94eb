//! What the eBPF programs and user space share: the maps' keys and values, drop reasons, and the packet parser.
//!
//! Invariants: every type that goes into a map is `repr(C)`, has no implicit padding and only fixed-width fields;
//! a change of any of them, or of a map's meaning, raises [`LAYOUT_VERSION`]. Nothing here allocates, panics or
//! indexes with a value that comes from a packet, so that the verifier can follow all of it.
//!
//! Deliberately absent: the aya crates (either side), I/O.

#![cfg_attr(not(test), no_std)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "fields are cut out of words by shifts; a checked conversion is a branch for the verifier"
)]

pub mod drop_reason;
pub mod event;
pub mod flow;
pub mod frame;
pub mod packet;
pub mod settings;
pub mod table;
pub mod write;

pub use drop_reason::DropReason;
pub use event::Event;
pub use flow::{Counter, Direction, Flow, FlowFlags, FlowKeyV4, FlowKeyV6, FlowKind, PodState};
pub use settings::{SettingFlags, Settings};
pub use write::{Remove, Write};

/// The version of everything that is pinned. Maps of another version are not adopted.
pub const LAYOUT_VERSION: u32 = 5;

/// Pods that the map can hold: above the densest instance type (15 ENIs × 49 secondary addresses) with room for
/// entries of veths that are being deleted.
pub const MAX_PODS: u32 = 8192;

/// Slots of the drop counters: more than there are reasons, so that a new reason does not change the layout.
pub const DROP_SLOTS: u32 = 64;
/// Slots of the other counters.
pub const COUNTER_SLOTS: u32 = 64;

/// What the filter knows about a pod. The key is the interface index of its host-side veth (`u32`).
///
/// The kernel may write over a value that a program still reads, with any pod's: over an entry that was replaced. It copies
/// from one end to the other; which is first depends on the CPU (`memcpy` in arch/x86/lib/memcpy_64.S), and where that is one
/// `rep movsb`, Intel promises no order within it. A program that finds one number at both ends before it reads and
/// after it has read what one write wrote, as far as the copy is in order; by [`PodValue::ifindex`] it knows whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PodValue {
    /// The number of this write, another for each.
    pub first: u32,
    /// The key.
    pub ifindex: u32,
    /// Its only IPv4 source address, network order.
    pub address: [u8; 4],
    /// The MAC of the interface inside the pod.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
    /// The mark of its ENI, already shifted into the mask.
    pub mark: u32,
    /// The bits of the mark that are ours. Here rather than in a constant of the program: there is one lookup anyway.
    pub mask: u32,
    /// Its only IPv6 source address; unspecified when it has none.
    pub address_v6: [u8; 16],
    /// Its slot, below [`flow::SLOTS`].
    pub slot: u32,
    /// Tells this pod from others that had the slot.
    pub incarnation: u32,
    /// The set that judges what is sent to it; [`table::OPEN_SET`] when it is not isolated.
    pub ingress_set: u32,
    /// The set that judges what it sends.
    pub egress_set: u32,
    /// [`PodFlags`].
    pub flags: u32,
    /// [`PodValue::first`] once more.
    pub last: u32,
}

/// Bits of [`PodValue::flags`].
#[derive(Debug)]
pub struct PodFlags;

impl PodFlags {
    /// The pod's labels were not known when it was wired (for views; the programs do not look at it).
    pub const LABELS_UNKNOWN: u32 = 1;
}

const _: () = assert!(
    size_of::<PodValue>() == 68
        && DropReason::ALL.len() <= DROP_SLOTS as usize
        && Counter::ALL.len() <= COUNTER_SLOTS as usize
);
