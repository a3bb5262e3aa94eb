//! The maps. Of the kind without BTF: with it they could only be made by a loader that parses the kernel's own.
//!
//! Sizes here are upper bounds; the loader may make the tracking maps smaller. Tables that are mostly empty take
//! memory by use (`BPF_F_NO_PREALLOC`).

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use veni_ebpf_common::{
    COUNTER_SLOTS, Counter, DROP_SLOTS, DropReason, Flow, FlowKeyV4, FlowKeyV6, MAX_PODS, PodState,
    PodValue, Settings,
    flow::{AffinityKey, AffinityValue, FragmentKey, FragmentValue, SLOTS},
    table::{
        BackendKey, BackendValue, Decision, MemberKey, PortKey, Profile, ServiceKeyV4,
        ServiceKeyV6, ServiceValue, VerdictKey, capacity,
    },
};

use crate::{
    family::{V4, V6},
    work::Work,
};

/// Pods by the interface index of their host-side veth.
#[map]
pub(crate) static PODS: HashMap<u32, PodValue> = HashMap::with_max_entries(MAX_PODS, 0);
/// The node's settings: one entry.
#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
/// What the programs keep about pods, by slot.
#[map]
pub(crate) static POD_STATES: Array<PodState> = Array::with_max_entries(SLOTS, 0);
/// Packets dropped, by [`DropReason::slot`].
#[map]
pub(crate) static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROP_SLOTS, 0);
/// See [`Counter`].
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_SLOTS, 0);
/// Flow events.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// The programs of [`crate::slow`]: IPv4, IPv6.
#[map]
pub(crate) static FOLLOWERS: ProgramArray = ProgramArray::with_max_entries(2, 0);
/// A packet at work.
#[map]
pub(crate) static SCRATCH_V4: PerCpuArray<Work<V4>> = PerCpuArray::with_max_entries(1, 0);
/// A packet at work.
#[map]
pub(crate) static SCRATCH_V6: PerCpuArray<Work<V6>> = PerCpuArray::with_max_entries(1, 0);
/// Its pod, as the hook found it: a copy costs less than to look it up again.
#[map]
pub(crate) static SCRATCH_POD: PerCpuArray<PodValue> = PerCpuArray::with_max_entries(1, 0);

/// Established flows.
#[map]
pub(crate) static FLOWS_V4: LruHashMap<FlowKeyV4, Flow> = LruHashMap::with_max_entries(131_072, 0);
/// Established flows.
#[map]
pub(crate) static FLOWS_V6: LruHashMap<FlowKeyV6, Flow> = LruHashMap::with_max_entries(65_536, 0);
/// Half-open flows.
#[map]
pub(crate) static HALF_OPEN_V4: LruHashMap<FlowKeyV4, Flow> =
    LruHashMap::with_max_entries(32_768, 0);
/// Half-open flows.
#[map]
pub(crate) static HALF_OPEN_V6: LruHashMap<FlowKeyV6, Flow> =
    LruHashMap::with_max_entries(32_768, 0);
/// Half-open flows of pods that have more than their share.
#[map]
pub(crate) static OVERFLOW_V4: LruHashMap<FlowKeyV4, Flow> =
    LruHashMap::with_max_entries(16_384, 0);
/// Half-open flows of pods that have more than their share.
#[map]
pub(crate) static OVERFLOW_V6: LruHashMap<FlowKeyV6, Flow> =
    LruHashMap::with_max_entries(16_384, 0);
/// Datagrams in fragments whose first was let through.
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue> =
    LruHashMap::with_max_entries(8192, 0);
/// Back ends of clients with session affinity.
#[map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityValue> =
    LruHashMap::with_max_entries(16_384, 0);

/// The node's own addresses.
#[map]
pub(crate) static NODE_V4: HashMap<[u8; 4], u32> =
    HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
/// The node's own addresses.
#[map]
pub(crate) static NODE_V6: HashMap<[u8; 16], u32> =
    HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
/// Pods' classes.
#[map]
pub(crate) static CLASS_V4: HashMap<[u8; 4], u32> =
    HashMap::with_max_entries(capacity::CLASS, BPF_F_NO_PREALLOC);
/// Pods' classes.
#[map]
pub(crate) static CLASS_V6: HashMap<[u8; 16], u32> =
    HashMap::with_max_entries(capacity::CLASS, BPF_F_NO_PREALLOC);
/// Prefixes' classes.
#[map]
pub(crate) static CIDR_V4: LpmTrie<[u8; 4], u32> =
    LpmTrie::with_max_entries(capacity::CIDR, BPF_F_NO_PREALLOC);
/// Prefixes' classes.
#[map]
pub(crate) static CIDR_V6: LpmTrie<[u8; 16], u32> =
    LpmTrie::with_max_entries(capacity::CIDR, BPF_F_NO_PREALLOC);
/// (set, class) → profile.
#[map]
pub(crate) static VERDICTS: HashMap<VerdictKey, u32> =
    HashMap::with_max_entries(capacity::VERDICTS, BPF_F_NO_PREALLOC);
/// Port profiles.
#[map]
pub(crate) static PROFILES: Array<Profile> = Array::with_max_entries(capacity::PROFILES, 0);
/// Ports of big profiles.
#[map]
pub(crate) static PORTS: LpmTrie<PortKey, Decision> =
    LpmTrie::with_max_entries(capacity::PORTS, BPF_F_NO_PREALLOC);
/// Front ends.
#[map]
pub(crate) static SERVICE_V4: HashMap<ServiceKeyV4, ServiceValue> =
    HashMap::with_max_entries(capacity::SERVICE, BPF_F_NO_PREALLOC);
/// Front ends.
#[map]
pub(crate) static SERVICE_V6: HashMap<ServiceKeyV6, ServiceValue> =
    HashMap::with_max_entries(capacity::SERVICE, BPF_F_NO_PREALLOC);
/// Back ends.
#[map]
pub(crate) static BACKENDS: HashMap<BackendKey, BackendValue> =
    HashMap::with_max_entries(capacity::BACKENDS, BPF_F_NO_PREALLOC);
/// Back ends by their addresses.
#[map]
pub(crate) static MEMBERS: HashMap<MemberKey, u32> =
    HashMap::with_max_entries(capacity::BACKENDS, BPF_F_NO_PREALLOC);

/// The policy's epoch, as it is now: `SETTINGS` is written while programs run.
#[inline(always)]
pub(crate) fn epoch(settings: &Settings) -> u32 {
    // SAFETY: a valid, aligned field. Volatile, so that it is read here, and not where it is used.
    unsafe { core::ptr::read_volatile(&raw const settings.epoch) }
}

/// Counts a dropped packet.
#[inline(always)]
pub(crate) fn count_drop(reason: DropReason) {
    count_at(&DROPS, reason.slot());
}

/// Counts what is no drop.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    count_at(&COUNTERS, counter.slot());
}

#[inline(always)]
fn count_at(counters: &PerCpuArray<u64>, slot: u32) {
    if let Some(slot) = counters.get_ptr_mut(slot) {
        // SAFETY: this CPU's own counter, and a filter is not preempted by another on its CPU.
        unsafe { *slot += 1 }
    }
}
