//! A subnet's addresses: which are taken. No address is ever given twice, and the five reserved ones never
//! (VPC user guide, "Subnet CIDR blocks": the first four and the last).

use std::net::Ipv4Addr;

use veni_core::net::Ipv4Prefix;

use super::{config::AddressChoice, rng::Rng};

/// Addresses in a delegated prefix (/28).
pub(super) const PREFIX_ADDRESSES: u32 = 16;
/// Addresses that AWS keeps in every subnet.
pub(super) const RESERVED_ADDRESSES: u32 = 5;

/// The addresses of one subnet.
#[derive(Debug, Clone)]
pub(super) struct Space {
    base: u32,
    size: u32,
    /// One bit an address.
    taken: Vec<u64>,
    free: u32,
}

impl Space {
    /// An empty subnet; AWS allows /16 to /28.
    pub(super) fn new(cidr: Ipv4Prefix) -> Self {
        let size = 1_u32 << (32 - u32::from(cidr.len()));
        let words = size.div_ceil(64) as usize;
        let mut space =
            Self { base: cidr.network().into(), size, taken: vec![0; words], free: size };
        for reserved in [0, 1, 2, 3, size - 1] {
            space.mark(reserved);
        }
        space
    }

    pub(super) fn free(&self) -> u32 {
        self.free
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// `count` free addresses, all or none.
    pub(super) fn take(
        &mut self,
        count: u32,
        choice: AddressChoice,
        rng: &mut Rng,
    ) -> Option<Vec<Ipv4Addr>> {
        (count <= self.free).then(|| (0..count).map(|_| self.take_one(choice, rng)).collect())
    }

    fn take_one(&mut self, choice: AddressChoice, rng: &mut Rng) -> Ipv4Addr {
        let start = match choice {
            AddressChoice::Scattered => u32::try_from(rng.below(self.size.into())).unwrap_or(0),
            AddressChoice::Lowest => 0,
        };
        let mut offset = start;
        while self.is_taken(offset) {
            offset = (offset + 1) % self.size;
        }
        self.mark(offset);
        Ipv4Addr::from(self.base + offset)
    }

    /// `count` wholly free /28 blocks, all or none.
    pub(super) fn take_prefixes(
        &mut self,
        count: u32,
        choice: AddressChoice,
        rng: &mut Rng,
    ) -> Option<Vec<Ipv4Prefix>> {
        let mut blocks = self.free_blocks();
        if count as usize > blocks.len() {
            return None;
        }
        let mut prefixes = Vec::new();
        for _ in 0..count {
            let at = match choice {
                AddressChoice::Scattered => rng.below(blocks.len() as u64),
                AddressChoice::Lowest => 0,
            };
            let block = blocks.remove(usize::try_from(at).unwrap_or(0));
            (block..block + PREFIX_ADDRESSES).for_each(|offset| self.mark(offset));
            prefixes.push(Ipv4Prefix::new(Ipv4Addr::from(self.base + block), 28).ok()?);
        }
        Some(prefixes)
    }

    /// The offsets of the wholly free /28 blocks.
    pub(super) fn free_blocks(&self) -> Vec<u32> {
        let blocks = (0..self.size / PREFIX_ADDRESSES).map(|block| block * PREFIX_ADDRESSES);
        blocks
            .filter(|block| (*block..block + PREFIX_ADDRESSES).all(|offset| !self.is_taken(offset)))
            .collect()
    }

    /// Takes exactly this address. False when it is not free or not of this subnet.
    pub(super) fn take_exactly(&mut self, address: Ipv4Addr) -> bool {
        let free = self.offset(address).filter(|offset| !self.is_taken(*offset));
        free.map(|offset| self.mark(offset)).is_some()
    }

    /// Gives an address back. A reserved one stays reserved.
    pub(super) fn give_back(&mut self, address: Ipv4Addr) {
        let Some(offset) = self.offset(address).filter(|o| (4..self.size - 1).contains(o)) else {
            return;
        };
        if self.is_taken(offset) {
            self.taken[offset as usize / 64] &= !(1 << (offset % 64));
            self.free += 1;
        }
    }

    /// Gives a delegated prefix back.
    pub(super) fn give_back_prefix(&mut self, prefix: Ipv4Prefix) {
        let first = u32::from(prefix.network());
        (first..first + PREFIX_ADDRESSES).for_each(|address| self.give_back(address.into()));
    }

    fn offset(&self, address: Ipv4Addr) -> Option<u32> {
        u32::from(address).checked_sub(self.base).filter(|offset| *offset < self.size)
    }

    fn is_taken(&self, offset: u32) -> bool {
        self.taken[offset as usize / 64] & (1 << (offset % 64)) != 0
    }

    fn mark(&mut self, offset: u32) {
        self.taken[offset as usize / 64] |= 1 << (offset % 64);
        self.free -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn space(cidr: &str) -> Space {
        Space::new(cidr.parse().unwrap())
    }

    #[test]
    fn a_subnet_gives_each_address_once_and_no_reserved_one() {
        let mut rng = Rng::new(1);
        let mut space = space("10.0.0.0/28");
        assert!(space.take(12, AddressChoice::Scattered, &mut rng).is_none(), "all or none");
        let taken = space.take(11, AddressChoice::Scattered, &mut rng).unwrap();
        let expected: BTreeSet<Ipv4Addr> =
            (4..15).map(|host| Ipv4Addr::new(10, 0, 0, host)).collect();
        assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), expected);
        assert_eq!(space.free(), 0);
    }

    #[test]
    fn one_address_in_each_block_leaves_no_prefix() {
        let mut rng = Rng::new(1);
        let mut space = space("10.0.0.0/26");
        assert_eq!(
            space.free_blocks(),
            [16, 32],
            "the first and the last block hold reserved addresses"
        );
        assert!(space.take_exactly(Ipv4Addr::new(10, 0, 0, 20)));
        assert!(!space.take_exactly(Ipv4Addr::new(10, 0, 0, 20)));
        assert!(space.take_prefixes(2, AddressChoice::Lowest, &mut rng).is_none());
        let prefixes = space.take_prefixes(1, AddressChoice::Lowest, &mut rng).unwrap();
        assert_eq!(prefixes, ["10.0.0.32/28".parse().unwrap()]);
        assert_eq!(space.free(), 64 - 5 - 1 - 16);
        space.give_back_prefix(prefixes[0]);
        assert_eq!(space.free(), 64 - 5 - 1);
    }
}
