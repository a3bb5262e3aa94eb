//! The packet as the kernel hands it over.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
};
use veni_ebpf_common::packet::Bytes;

/// See the module.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

/// `BPF_F_MARK_MANGLED_0`: a UDP checksum of zero is none, and stays none.
const MARK_MANGLED_0: u64 = 1 << 5;
/// `BPF_F_PSEUDO_HDR`: what changed is in the pseudo header.
const PSEUDO_HDR: u64 = 1 << 4;
/// `BPF_F_IPV6` (Linux 6.16): no header checksum makes up for the change.
const IPV6: u64 = 1 << 7;

/// Where a transport checksum is, and how it is to be kept.
#[derive(Clone, Copy)]
pub(crate) struct Checksum {
    /// 0: there is none (SCTP's covers no addresses).
    pub(crate) at: u32,
    pub(crate) udp: bool,
    /// The kernel has `BPF_F_IPV6`.
    pub(crate) ipv6_flag: bool,
}

impl Skb {
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: the kernel hands a valid `__sk_buff`; the verifier checks the access.
        unsafe { (*self.0).ifindex }
    }

    /// The interface it came in by; 0 when it was made here.
    #[inline(always)]
    pub(crate) fn ingress_ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    pub(crate) fn has_vlan(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).vlan_present != 0 }
    }

    #[inline(always)]
    pub(crate) fn remark(self, mark: u32, mask: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).mark = ((*self.0).mark & !mask) | mark }
    }

    #[inline(always)]
    pub(crate) fn store<T>(self, at: u32, value: &T) -> bool {
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: the value lives on the stack, and its whole size is given.
        unsafe { bpf_skb_store_bytes(self.0.cast(), at, from, size_of::<T>() as u32, 0) == 0 }
    }

    /// Replaces an IPv4 address at `at`, and keeps the header's checksum (at `header` + 10) and the transport's.
    #[inline(always)]
    pub(crate) fn set_v4(self, header: u32, at: u32, old: [u8; 4], new: [u8; 4], sum: Checksum) {
        let (from, to) = (u64::from(u32::from_ne_bytes(old)), u64::from(u32::from_ne_bytes(new)));
        if sum.at != 0 {
            let flags = PSEUDO_HDR | 4 | if sum.udp { MARK_MANGLED_0 } else { 0 };
            // SAFETY: the kernel checks the offset; a failure leaves the packet to be dropped by its receiver.
            unsafe { bpf_l4_csum_replace(self.0, sum.at, from, to, flags) };
        }
        // SAFETY: as above.
        unsafe { bpf_l3_csum_replace(self.0, header + 10, from, to, 4) };
        self.store(at, &new);
    }

    /// Replaces an IPv6 address, and keeps the transport checksum.
    #[inline(always)]
    pub(crate) fn set_v6(
        self,
        at: u32,
        old: &[u8; 16],
        new: &[u8; 16],
        pseudo: bool,
        sum: Checksum,
    ) {
        if sum.at != 0 {
            // SAFETY: both addresses live on the stack or in the packet's description, 16 bytes each.
            let diff = unsafe {
                bpf_csum_diff(
                    old.as_ptr().cast_mut().cast(),
                    16,
                    new.as_ptr().cast_mut().cast(),
                    16,
                    0,
                )
            };
            let mut flags = if sum.udp { MARK_MANGLED_0 } else { 0 };
            if pseudo {
                flags |= PSEUDO_HDR;
                if sum.ipv6_flag {
                    flags |= IPV6;
                }
            }
            // SAFETY: as for IPv4.
            unsafe { bpf_l4_csum_replace(self.0, sum.at, 0, diff.cast_unsigned(), flags) };
        }
        self.store(at, new);
    }

    /// Replaces a port, and keeps the transport checksum.
    #[inline(always)]
    pub(crate) fn set_port(self, at: u32, old: u16, new: u16, sum: Checksum) {
        if old == new {
            return;
        }
        if sum.at != 0 {
            let flags = 2 | if sum.udp { MARK_MANGLED_0 } else { 0 };
            let (from, to) = (u64::from(old.to_be()), u64::from(new.to_be()));
            // SAFETY: as for addresses.
            unsafe { bpf_l4_csum_replace(self.0, sum.at, from, to, flags) };
        }
        self.store(at, &new.to_be());
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn words<const W: usize>(&self, at: usize) -> Option<[u32; W]> {
        let mut words = core::mem::MaybeUninit::<[u32; W]>::uninit();
        let length = (W * 4) as u32;
        // SAFETY: the buffer is `length` bytes; the kernel fills all of it or fails.
        let failed = unsafe {
            bpf_skb_load_bytes(self.0.cast(), at as u32, words.as_mut_ptr().cast(), length)
        };
        // SAFETY: filled.
        (failed == 0).then(|| unsafe { words.assume_init() })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: the kernel hands a valid `__sk_buff`; the verifier checks the access.
        unsafe { (*self.0).len as usize }
    }
}
