//! The two families of addresses, so that the rest is written once.

use aya_ebpf::maps::{HashMap, LruHashMap, lpm_trie::Key as Prefix};
use veni_ebpf_common::{
    DropReason, Flow, FlowKeyV4, FlowKeyV6, PodValue, Settings,
    packet::{self, Quoted},
    table::{NO_CLASS, ServiceKeyV4, ServiceKeyV6, ServiceValue},
};

use crate::{
    maps,
    skb::{Checksum, Skb},
    work::{End, FOLLOW_V4, FOLLOW_V6, Work},
};

/// A family.
pub(crate) trait Family: Sized + 'static {
    type Address: Copy + 'static;
    type Key: Copy + 'static;
    const VERSION: u8;
    /// Bytes before the source address in the frame, where no options move it (they do not).
    const SOURCE_AT: u32;
    const DESTINATION_AT: u32;
    /// Its ICMP's number.
    const ICMP: u8;
    /// Says that the packet has to be followed.
    const FOLLOW: End;
    /// The echo request's type, as rules see it.
    const ECHO: u16;

    fn key(
        slot: u32,
        remote: Self::Address,
        local_port: [u8; 2],
        remote_port: [u8; 2],
        protocol: u8,
    ) -> Self::Key;
    fn flows() -> &'static LruHashMap<Self::Key, Flow>;
    fn half_open() -> &'static LruHashMap<Self::Key, Flow>;
    fn overflow() -> &'static LruHashMap<Self::Key, Flow>;
    /// Where the slow path keeps what it knows.
    fn scratch() -> Option<*mut Work<Self>>;
    /// The address's class.
    fn class(address: &Self::Address) -> u32;
    fn same(one: &Self::Address, other: &Self::Address) -> bool;
    fn is_node(address: &Self::Address) -> bool;
    fn service(address: &Self::Address, port: u16, protocol: u8) -> Option<&'static ServiceValue>;
    fn in_service_range(settings: &Settings, address: &Self::Address) -> bool;
    fn is_metadata(address: &Self::Address) -> bool;
    fn of_pod(pod: &PodValue) -> Self::Address;
    fn hairpin(settings: &Settings) -> Self::Address;
    fn wide(address: &Self::Address) -> [u8; 16];
    fn narrow(address: &[u8; 16]) -> Self::Address;
    fn quoted(skb: Skb, at: usize) -> Result<Quoted<Self::Address>, DropReason>;
    /// Replaces an address of the packet's own header.
    fn set_address(skb: Skb, at: u32, old: &Self::Address, new: &Self::Address, sum: Checksum);
    /// Replaces an address of a quoted header that starts at `header`; `sum` is the quoting message's.
    fn set_quoted(
        skb: Skb,
        header: u32,
        source: bool,
        old: &Self::Address,
        new: &Self::Address,
        sum: Checksum,
    );
}

/// IPv4.
pub(crate) struct V4;
/// IPv6.
pub(crate) struct V6;

/// Two numbers of 128 bits, not sixteen comparisons: each is a branch that the verifier walks.
#[inline(always)]
pub(crate) fn same16(one: &[u8; 16], other: &[u8; 16]) -> bool {
    u128::from_ne_bytes(*one) == u128::from_ne_bytes(*other)
}

#[inline(always)]
pub(crate) fn is_unspecified(address: &[u8; 16]) -> bool {
    u128::from_ne_bytes(*address) == 0
}

#[inline(always)]
fn class_of<A: Copy + 'static>(
    pods: &HashMap<A, u32>,
    prefixes: &aya_ebpf::maps::LpmTrie<A, u32>,
    address: &A,
    bits: u32,
) -> u32 {
    // SAFETY: a class is one word; a replaced one is the old or the new.
    if let Some(class) = unsafe { pods.get(address) } {
        return *class;
    }
    prefixes.get(Prefix::new(bits, *address)).copied().unwrap_or(NO_CLASS)
}

impl Family for V4 {
    type Address = [u8; 4];
    type Key = FlowKeyV4;
    const VERSION: u8 = 4;
    const SOURCE_AT: u32 = 26;
    const DESTINATION_AT: u32 = 30;
    const ICMP: u8 = packet::ICMP;
    const FOLLOW: End = FOLLOW_V4;
    const ECHO: u16 = 8 << 8;

    #[inline(always)]
    fn key(
        slot: u32,
        remote: [u8; 4],
        local_port: [u8; 2],
        remote_port: [u8; 2],
        protocol: u8,
    ) -> FlowKeyV4 {
        FlowKeyV4 { slot, remote, local_port, remote_port, protocol, reserved: [0; 3] }
    }

    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKeyV4, Flow> {
        &maps::FLOWS_V4
    }

    #[inline(always)]
    fn half_open() -> &'static LruHashMap<FlowKeyV4, Flow> {
        &maps::HALF_OPEN_V4
    }

    #[inline(always)]
    fn overflow() -> &'static LruHashMap<FlowKeyV4, Flow> {
        &maps::OVERFLOW_V4
    }

    #[inline(always)]
    fn scratch() -> Option<*mut Work<Self>> {
        maps::SCRATCH_V4.get_ptr_mut(0)
    }

    #[inline(always)]
    fn class(address: &[u8; 4]) -> u32 {
        class_of(&maps::CLASS_V4, &maps::CIDR_V4, address, 32)
    }

    #[inline(always)]
    fn same(one: &[u8; 4], other: &[u8; 4]) -> bool {
        one == other
    }

    #[inline(always)]
    fn is_node(address: &[u8; 4]) -> bool {
        maps::NODE_V4.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn service(address: &[u8; 4], port: u16, protocol: u8) -> Option<&'static ServiceValue> {
        let key =
            ServiceKeyV4 { address: *address, port: port.to_be_bytes(), protocol, reserved: 0 };
        // SAFETY: an entry is replaced as a whole; at worst the packet meets the entry that follows.
        unsafe { maps::SERVICE_V4.get(key) }
    }

    #[inline(always)]
    fn in_service_range(settings: &Settings, address: &[u8; 4]) -> bool {
        let mask = u32::from_ne_bytes(settings.service_mask_v4);
        mask != 0 && u32::from_ne_bytes(*address) & mask == u32::from_ne_bytes(settings.service_v4)
    }

    #[inline(always)]
    fn is_metadata(address: &[u8; 4]) -> bool {
        *address == [169, 254, 169, 254]
    }

    #[inline(always)]
    fn of_pod(pod: &PodValue) -> [u8; 4] {
        pod.address
    }

    #[inline(always)]
    fn hairpin(settings: &Settings) -> [u8; 4] {
        settings.hairpin_v4
    }

    #[inline(always)]
    fn wide(address: &[u8; 4]) -> [u8; 16] {
        [address[0], address[1], address[2], address[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    #[inline(always)]
    fn narrow(address: &[u8; 16]) -> [u8; 4] {
        [address[0], address[1], address[2], address[3]]
    }

    #[inline(always)]
    fn quoted(skb: Skb, at: usize) -> Result<Quoted<[u8; 4]>, DropReason> {
        packet::quoted_ipv4(&skb, at)
    }

    #[inline(always)]
    fn set_address(skb: Skb, at: u32, old: &[u8; 4], new: &[u8; 4], sum: Checksum) {
        skb.set_v4(14, at, *old, *new, sum);
    }

    /// The sum over a header with its checksum is constant, so that the quoting message's does not change.
    #[inline(always)]
    fn set_quoted(
        skb: Skb,
        header: u32,
        source: bool,
        old: &[u8; 4],
        new: &[u8; 4],
        _sum: Checksum,
    ) {
        let at = header + if source { 12 } else { 16 };
        skb.set_v4(header, at, *old, *new, Checksum { at: 0, udp: false, ipv6_flag: false });
    }
}

impl Family for V6 {
    type Address = [u8; 16];
    type Key = FlowKeyV6;
    const VERSION: u8 = 6;
    const SOURCE_AT: u32 = 22;
    const DESTINATION_AT: u32 = 38;
    const ICMP: u8 = packet::ICMPV6;
    const FOLLOW: End = FOLLOW_V6;
    const ECHO: u16 = 128 << 8;

    #[inline(always)]
    fn key(
        slot: u32,
        remote: [u8; 16],
        local_port: [u8; 2],
        remote_port: [u8; 2],
        protocol: u8,
    ) -> FlowKeyV6 {
        FlowKeyV6 { slot, remote, local_port, remote_port, protocol, reserved: [0; 3] }
    }

    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKeyV6, Flow> {
        &maps::FLOWS_V6
    }

    #[inline(always)]
    fn half_open() -> &'static LruHashMap<FlowKeyV6, Flow> {
        &maps::HALF_OPEN_V6
    }

    #[inline(always)]
    fn overflow() -> &'static LruHashMap<FlowKeyV6, Flow> {
        &maps::OVERFLOW_V6
    }

    #[inline(always)]
    fn scratch() -> Option<*mut Work<Self>> {
        maps::SCRATCH_V6.get_ptr_mut(0)
    }

    #[inline(always)]
    fn class(address: &[u8; 16]) -> u32 {
        class_of(&maps::CLASS_V6, &maps::CIDR_V6, address, 128)
    }

    #[inline(always)]
    fn same(one: &[u8; 16], other: &[u8; 16]) -> bool {
        same16(one, other)
    }

    #[inline(always)]
    fn is_node(address: &[u8; 16]) -> bool {
        maps::NODE_V6.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn service(address: &[u8; 16], port: u16, protocol: u8) -> Option<&'static ServiceValue> {
        let key =
            ServiceKeyV6 { address: *address, port: port.to_be_bytes(), protocol, reserved: 0 };
        // SAFETY: as for IPv4.
        unsafe { maps::SERVICE_V6.get(key) }
    }

    #[inline(always)]
    fn in_service_range(settings: &Settings, address: &[u8; 16]) -> bool {
        let mask = u128::from_ne_bytes(settings.service_mask_v6);
        mask != 0
            && u128::from_ne_bytes(*address) & mask == u128::from_ne_bytes(settings.service_v6)
    }

    #[inline(always)]
    fn is_metadata(address: &[u8; 16]) -> bool {
        // fd00:ec2::254
        same16(address, &[0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54])
    }

    #[inline(always)]
    fn of_pod(pod: &PodValue) -> [u8; 16] {
        pod.address_v6
    }

    #[inline(always)]
    fn hairpin(settings: &Settings) -> [u8; 16] {
        settings.hairpin_v6
    }

    #[inline(always)]
    fn wide(address: &[u8; 16]) -> [u8; 16] {
        *address
    }

    #[inline(always)]
    fn narrow(address: &[u8; 16]) -> [u8; 16] {
        *address
    }

    #[inline(always)]
    fn quoted(skb: Skb, at: usize) -> Result<Quoted<[u8; 16]>, DropReason> {
        packet::quoted_ipv6(&skb, at)
    }

    #[inline(always)]
    fn set_address(skb: Skb, at: u32, old: &[u8; 16], new: &[u8; 16], sum: Checksum) {
        skb.set_v6(at, old, new, true, sum);
    }

    #[inline(always)]
    fn set_quoted(
        skb: Skb,
        header: u32,
        source: bool,
        old: &[u8; 16],
        new: &[u8; 16],
        sum: Checksum,
    ) {
        skb.set_v6(header + if source { 8 } else { 24 }, old, new, false, sum);
    }
}
