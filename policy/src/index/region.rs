//! CIDR regions: the prefixes that blocks and their exceptions name. They are laminar, so an address belongs to the
//! longest that holds it, and that one knows every block that holds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    compile::{AtomId, Shape},
    intern::{FastMap, FastSet, Interner},
};

/// Not in its map.
pub(crate) const ABSENT: u32 = u32::MAX;

/// A prefix.
#[derive(Debug)]
pub(crate) struct Region {
    /// Blocks and exceptions that name it; 0: about to go.
    users: u32,
    /// Blocks that hold it, and [`Regions::unlisted`].
    pub(crate) blocks: u32,
    /// Blocks alone: what an address with an entry of its own is in.
    known: u32,
    /// Its class in the map, or [`ABSENT`].
    pub(crate) class: u32,
    /// See [`Shape::origin`].
    pub(crate) origin: u32,
}

/// How many prefixes of each length there are, by family.
#[derive(Debug, Default)]
struct Lengths([BTreeMap<u8, u32>; 2]);

#[derive(Debug)]
struct Block {
    atom: AtomId,
    except: Disjoint,
}

/// Prefixes of which none lies in another, by address: the last that starts at or before an address is the only one that
/// can hold it.
#[derive(Debug)]
struct Disjoint(Vec<IpNet>);

/// All regions.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    pub(crate) by_net: FastMap<IpNet, Region>,
    lengths: Lengths,
    blocks: FastMap<IpNet, Vec<Block>>,
    block_lengths: Lengths,
    /// Atoms that every prefix of their family matches, and no address with an entry of its own.
    unlisted: FastSet<AtomId>,
    /// Blocks that came or went since [`Regions::refresh`].
    changed: FastSet<IpNet>,
}

/// All addresses of a family.
pub(crate) fn whole(v6: bool) -> IpNet {
    if v6 { Ipv6Net::default().into() } else { Ipv4Net::default().into() }
}

impl Region {
    pub(crate) const fn wanted(&self) -> bool {
        self.users > 0
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape { blocks: self.blocks, origin: self.origin, ..Shape::default() }
    }
}

impl Disjoint {
    fn new(nets: &[IpNet]) -> Self {
        let mut sorted = nets.to_vec();
        // An address' widest prefix first.
        sorted.sort_unstable();
        let mut outermost: Vec<IpNet> = Vec::with_capacity(sorted.len());
        for net in sorted {
            if !outermost.last().is_some_and(|last| last.contains(&net)) {
                outermost.push(net);
            }
        }
        Self(outermost)
    }

    fn hold(&self, net: &IpNet) -> bool {
        let after = self.0.partition_point(|one| one.network() <= net.network());
        self.0[..after].last().is_some_and(|last| last.contains(net))
    }
}

impl Lengths {
    fn of(&self, net: IpNet) -> &BTreeMap<u8, u32> {
        &self.0[usize::from(net.addr().is_ipv6())]
    }

    fn add(&mut self, net: IpNet) {
        let lengths = &mut self.0[usize::from(net.addr().is_ipv6())];
        *lengths.entry(net.prefix_len()).or_default() += 1;
    }

    fn remove(&mut self, net: IpNet) {
        let lengths = &mut self.0[usize::from(net.addr().is_ipv6())];
        if let Some(count) = lengths.get_mut(&net.prefix_len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&net.prefix_len());
            }
        }
    }

    /// The net cut to every length there is, up to `longest`, longest first.
    fn ancestors(&self, net: IpNet, longest: u8) -> impl Iterator<Item = IpNet> {
        self.of(net)
            .range(..=longest)
            .rev()
            .filter_map(move |(length, _)| Some(IpNet::new(net.addr(), *length).ok()?.trunc()))
    }
}

impl Regions {
    /// How many prefixes of a family there are.
    pub(crate) fn count(&self, v6: bool) -> usize {
        self.lengths.0[usize::from(v6)].values().map(|count| *count as usize).sum()
    }

    pub(crate) fn add_block(&mut self, atom: AtomId, cidr: IpNet, except: &[IpNet]) {
        let block = Block { atom, except: Disjoint::new(except) };
        self.blocks.entry(cidr).or_default().push(block);
        self.block_lengths.add(cidr);
        self.changed.insert(cidr);
        for net in std::iter::once(&cidr).chain(except) {
            if let Some(region) = self.by_net.get_mut(net) {
                region.users += 1;
            } else {
                let region = Region { users: 1, blocks: 0, known: 0, class: ABSENT, origin: 0 };
                self.by_net.insert(*net, region);
                self.lengths.add(*net);
            }
        }
    }

    pub(crate) fn remove_block(&mut self, atom: AtomId, cidr: IpNet, except: &[IpNet]) {
        if let Some(blocks) = self.blocks.get_mut(&cidr) {
            blocks.retain(|block| block.atom != atom);
            if blocks.is_empty() {
                self.blocks.remove(&cidr);
            }
        }
        self.block_lengths.remove(cidr);
        self.changed.insert(cidr);
        for net in std::iter::once(&cidr).chain(except) {
            if let Some(region) = self.by_net.get_mut(net) {
                region.users -= 1;
            }
        }
    }

    /// An atom that every address of the family matches, but those with an entry of their own.
    pub(crate) fn add_unlisted(&mut self, atom: AtomId, v6: bool) {
        self.unlisted.insert(atom);
        self.add_block(atom, whole(v6), &[]);
    }

    pub(crate) fn remove_unlisted(&mut self, atom: AtomId, v6: bool) {
        self.unlisted.remove(&atom);
        self.remove_block(atom, whole(v6), &[]);
    }

    /// A prefix that an earlier daemon left in the map. It stays until [`Regions::release`].
    pub(crate) fn hold(&mut self, net: IpNet, class: u32) {
        let region = Region { users: 1, blocks: 0, known: 0, class, origin: class + 1 };
        self.by_net.insert(net, region);
        self.lengths.add(net);
    }

    /// Prefixes that were held stay only if a block names them.
    pub(crate) fn release(&mut self) {
        for region in self.by_net.values_mut().filter(|region| region.origin != 0) {
            region.users -= 1;
        }
    }

    /// No prefix remembers its origin any more. Returns whether any did.
    pub(crate) fn forget_origins(&mut self) -> bool {
        let mut any = false;
        for region in self.by_net.values_mut() {
            any |= std::mem::take(&mut region.origin) != 0;
        }
        any
    }

    /// Answers blocks anew where they changed. Returns whether anything did.
    pub(crate) fn refresh(&mut self, lists: &mut Interner<AtomId>) -> bool {
        if self.changed.is_empty() {
            return false;
        }
        let changed = std::mem::take(&mut self.changed);
        // By the lengths that there are: as many prefixes may change as are asked.
        let mut lengths = Lengths::default();
        changed.iter().for_each(|net| lengths.add(*net));
        let within_changed =
            |net: IpNet| lengths.ancestors(net, net.prefix_len()).any(|net| changed.contains(&net));
        let affected: Vec<IpNet> =
            self.by_net.keys().copied().filter(|net| within_changed(*net)).collect();
        for net in affected {
            let atoms = self.blocks_of(net);
            let known: Vec<AtomId> =
                atoms.iter().filter(|atom| !self.unlisted.contains(atom)).copied().collect();
            if let Some(region) = self.by_net.get_mut(&net) {
                region.blocks = lists.number(&atoms);
                region.known = lists.number(&known);
            }
        }
        true
    }

    fn blocks_of(&self, net: IpNet) -> Vec<AtomId> {
        let mut atoms = Vec::new();
        for cidr in self.block_lengths.ancestors(net, net.prefix_len()) {
            let blocks = self.blocks.get(&cidr).into_iter().flatten();
            let holding = blocks.filter(|block| !block.except.hold(&net));
            atoms.extend(holding.map(|block| block.atom));
        }
        atoms.sort_unstable();
        atoms.dedup();
        atoms
    }

    fn longest(&self, net: IpNet, longest: u8, found: impl Fn(&Region) -> bool) -> Option<&Region> {
        self.lengths
            .ancestors(net, longest)
            .filter_map(|net| self.by_net.get(&net))
            .find(|region| found(region))
    }

    /// The blocks that hold an address with an entry of its own.
    pub(crate) fn blocks_at(&self, address: IpAddr) -> u32 {
        let net = IpNet::from(address);
        self.longest(net, net.prefix_len(), Region::wanted).map_or(0, |region| region.known)
    }

    /// What an address without one is in.
    pub(crate) fn blocks_around(&self, address: IpAddr) -> u32 {
        let net = IpNet::from(address);
        self.longest(net, net.prefix_len(), Region::wanted).map_or(0, |region| region.blocks)
    }

    /// The lists that regions refer to.
    pub(crate) fn lists(&self) -> impl Iterator<Item = u32> {
        self.by_net.values().flat_map(|region| [region.blocks, region.known])
    }

    /// The class that the map of prefixes gives an address now.
    pub(crate) fn class_at(&self, address: IpAddr) -> u32 {
        let net = IpNet::from(address);
        let region = self.longest(net, net.prefix_len(), |region| region.class != ABSENT);
        region.map_or(veni_ebpf_common::table::NO_CLASS, |region| region.class)
    }

    /// The prefixes right within each one that are of another class: what is not of its class, for people.
    pub(crate) fn within(&self) -> BTreeMap<IpNet, BTreeSet<IpNet>> {
        let mut within: BTreeMap<IpNet, BTreeSet<IpNet>> = BTreeMap::new();
        for (net, region) in self.by_net.iter().filter(|(_, region)| region.class != ABSENT) {
            let around = (0..net.prefix_len()).rev().find_map(|length| {
                let around = IpNet::new(net.addr(), length).ok()?.trunc();
                let found = self.by_net.get(&around).filter(|found| found.class != ABSENT)?;
                Some((around, found.class))
            });
            if let Some((around, class)) = around
                && class != region.class
            {
                within.entry(around).or_default().insert(*net);
            }
        }
        within
    }

    /// The class around a prefix in the map now.
    pub(crate) fn class_around(&self, net: IpNet) -> u32 {
        let Some(longest) = net.prefix_len().checked_sub(1) else {
            return veni_ebpf_common::table::NO_CLASS;
        };
        let region = self.longest(net, longest, |region| region.class != ABSENT);
        region.map_or(veni_ebpf_common::table::NO_CLASS, |region| region.class)
    }

    /// The shape around a prefix once the ones about to go are gone.
    pub(crate) fn shape_around(&self, net: IpNet) -> Shape {
        let longest = net.prefix_len().checked_sub(1);
        let region = longest.and_then(|longest| self.longest(net, longest, Region::wanted));
        region.map_or(Shape::default(), Region::shape)
    }

    pub(crate) fn remove(&mut self, net: IpNet) {
        if self.by_net.remove(&net).is_some() {
            self.lengths.remove(net);
        }
    }
}
