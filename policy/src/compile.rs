//! From policies to the programs' tables: flattened rules, what they say to a class, port profiles, sets.

pub(crate) mod content;
pub(crate) mod flatten;
pub(crate) mod paint;
pub(crate) mod profile;
pub(crate) mod set;

/// An atom's number: one question that rules ask about a peer (matches this selector, lies in this block, …).
pub(crate) type AtomId = u32;

/// What rules can know of an address: every question of every set in force, answered. Two addresses with equal shapes
/// cannot be told apart, and share a class. The fields are lists of atoms in the index's interner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Shape {
    /// Selectors and groups that match the pod.
    pub(crate) pod: u32,
    /// Blocks that hold the address.
    pub(crate) blocks: u32,
    /// Node selectors and groups that match the address itself.
    pub(crate) extra: u32,
    /// The pod's named ports, as far as rules ask for them (in the interner of ports).
    pub(crate) ports: u32,
    /// The class that an earlier daemon gave it, plus 1, while sets of that one are in force: they may tell it from
    /// others. 0: none.
    pub(crate) origin: u32,
}
