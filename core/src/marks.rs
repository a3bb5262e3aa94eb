//! Which bits of a packet's mark are ours, and the numbers derived from an ENI's place on the instance.
//!
//! Clear of kube-proxy's `0x4000` and `0x8000` and, by default, of the connection mark `0x80`
//! (`AWS_VPC_K8S_CNI_CONNMARK`).

use serde::{Deserialize, Serialize};

/// The bits of a packet's mark that hold its pod's ENI slot (`VENI_ENI_MARK_MASK`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniMarkMask(u32);

/// An ENI's number on this node, 1 to 255: device index + 1 on network card 0. It names the ENI in packet marks
/// and routing tables, and depends on nothing that a restart could change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EniSlot(u8);

/// The routing table of pod routes (`VENI_TABLE_BASE`); ENI tables are `base + slot`.
pub const DEFAULT_TABLE_BASE: u32 = 7600;

// === impl EniMarkMask ===

impl Default for EniMarkMask {
    fn default() -> Self {
        Self(0x00ff_0000)
    }
}

impl EniMarkMask {
    /// A mask of at least 8 adjacent bits that avoids kube-proxy's `0xc000` and `connmark`.
    #[must_use]
    pub fn new(mask: u32, connmark: u32) -> Option<Self> {
        let shifted = mask.checked_shr(mask.trailing_zeros()).unwrap_or(0);
        let adjacent = shifted & shifted.wrapping_add(1) == 0;
        (mask.count_ones() >= 8 && adjacent && mask & (0xc000 | connmark) == 0)
            .then_some(Self(mask))
    }

    /// The raw mask.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The mark of `slot` under this mask.
    #[must_use]
    pub fn mark(self, slot: EniSlot) -> u32 {
        u32::from(slot.0) << self.0.trailing_zeros()
    }
}

// === impl EniSlot ===

impl EniSlot {
    /// The slot of the ENI at `device_index` of `network_card`: 16 slots a card.
    /// `None` past 255 (no instance type of the public table with one card comes near).
    #[must_use]
    pub fn new(network_card: u8, device_index: u8) -> Option<Self> {
        if device_index >= 16 && network_card > 0 {
            return None;
        }
        let slot = u16::from(network_card) * 16 + u16::from(device_index) + 1;
        u8::try_from(slot).ok().map(Self)
    }

    /// The device index on its card.
    #[must_use]
    pub fn device_index(self) -> u8 {
        (self.0 - 1) % 16
    }

    /// The number itself, 1 to 255.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }

    /// The routing table of this ENI above `table_base`.
    #[must_use]
    pub fn table(self, table_base: u32) -> u32 {
        table_base + u32::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_that_touch_foreign_bits_are_refused() {
        assert!(EniMarkMask::new(0x00ff_0000, 0x80).is_some());
        for bad in [0, 0x7f, 0x0000_ff00, 0x0001_fe80, 0x0f0f_0000] {
            assert!(EniMarkMask::new(bad, 0x80).is_none(), "{bad:#x} was accepted");
        }
    }

    #[test]
    fn slots_are_distinct_per_device_and_never_zero() {
        let primary = EniSlot::new(0, 0).unwrap();
        assert_eq!((primary.get(), primary.table(7600)), (1, 7601));
        assert_eq!(EniMarkMask::default().mark(EniSlot::new(0, 3).unwrap()), 0x0004_0000);
        assert_eq!(EniSlot::new(16, 0), None);
    }
}
