//! What earlier layouts have in another shape, in today's.

use std::path::Path;

use veni_ebpf_common::PodValue;

use super::{
    Filter,
    map::{Map, Plain},
};
use crate::error::Result;

/// [`PodValue`] until layout 4: without the number of the write, and without the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct PodValueV4 {
    address: [u8; 4],
    mac: [u8; 6],
    reserved: [u8; 2],
    mark: u32,
    mask: u32,
    address_v6: [u8; 16],
    slot: u32,
    incarnation: u32,
    ingress_set: u32,
    egress_set: u32,
    flags: u32,
}

const _: () = assert!(size_of::<PodValueV4>() == 56);

#[expect(unsafe_code, reason = "what the kernel copies has no padding")]
// SAFETY: `repr(C)` of fixed-width fields, 56 bytes of them.
unsafe impl Plain for PodValueV4 {}

impl Filter {
    /// The pods of an earlier layout, in today's shape: they keep slot and incarnation, and so their flows.
    pub(super) fn pods_of(&self, old: &Path) -> Result<Vec<(u32, PodValue)>> {
        if let Some(from) = self.maps.pods.same_in(old)? {
            return from.entries();
        }
        let Some(from): Option<Map<u32, PodValueV4>> = self.maps.pods.earlier_in(old)? else {
            return Ok(Vec::new());
        };
        let entries = from.entries()?.into_iter();
        Ok(entries.map(|(ifindex, had)| (ifindex, self.numbered(ifindex, had))).collect())
    }

    fn numbered(&self, ifindex: u32, had: PodValueV4) -> PodValue {
        let number = self.next_write();
        PodValue {
            first: number,
            ifindex,
            address: had.address,
            mac: had.mac,
            reserved: had.reserved,
            mark: had.mark,
            mask: had.mask,
            address_v6: had.address_v6,
            slot: had.slot,
            incarnation: had.incarnation,
            ingress_set: had.ingress_set,
            egress_set: had.egress_set,
            flags: had.flags,
            last: number,
        }
    }
}
