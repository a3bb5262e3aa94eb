//! Class numbers: which shape has which, who moves, and by way of which number.
//!
//! A class keeps its number through changes where it can: an address is written only when it parts from its class.

use std::net::IpAddr;

use ipnet::IpNet;
use veni_ebpf_common::table::{ANY_CLASS, NO_CLASS};

use crate::{compile::Shape, intern::FastMap};

/// An entry of the maps from addresses to classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Slot {
    Address(IpAddr),
    Prefix(IpNet),
}

/// A slot whose shape changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Move {
    pub(crate) slot: Slot,
    /// The class that a look-up finds now.
    pub(crate) old: u32,
    /// The class whose verdicts go on where no rules say what the new shape gets: `old`, but for an address whose pod
    /// is another one than an earlier daemon's sets know.
    pub(crate) like: u32,
    pub(crate) new: Shape,
    /// Whether it is the slot's own entry that is found.
    pub(crate) in_map: bool,
    /// Whether the slot goes. `new` is then what is found without it.
    pub(crate) goes: bool,
}

/// Where a move leads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    /// The number it has until the grace is over.
    pub(crate) via: u32,
    /// The number it has in the end.
    pub(crate) last: u32,
}

/// A number that is new in this batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewClass {
    pub(crate) number: u32,
    pub(crate) shape: Shape,
    /// The class whose verdicts it has in sets that go.
    pub(crate) old: u32,
    /// The class whose verdicts it has in sets that stay and do not tell the two apart, or are only tables.
    pub(crate) parent: u32,
    /// Whether it only lasts until the grace is over.
    pub(crate) temporary: bool,
}

/// A class that is another shape's from now on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) number: u32,
    pub(crate) old: Shape,
    pub(crate) new: Shape,
}

/// What becomes of the classes.
#[derive(Debug, Default)]
pub(crate) struct Numbering {
    pub(crate) routes: Vec<Route>,
    pub(crate) new: Vec<NewClass>,
    pub(crate) taken: Vec<Taken>,
}

#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) shape: Shape,
    /// Slots that have it.
    pub(crate) slots: u32,
}

/// Numbers that are free, and those never used.
#[derive(Debug, Clone)]
pub(crate) struct Numbers {
    next: u32,
    free: Vec<u32>,
}

/// All classes.
#[derive(Debug)]
pub(crate) struct Classes {
    pub(crate) by_number: FastMap<u32, Class>,
    pub(crate) by_shape: FastMap<Shape, u32>,
    pub(crate) numbers: Numbers,
    /// Numbers that slots had until a change of late: a program that began before may still ask for them.
    resting: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Canonical {
    Existing(u32),
    Taken(u32),
    Fresh { number: u32, parent: u32 },
}

impl Numbers {
    pub(crate) const fn from(next: u32) -> Self {
        Self { next, free: Vec::new() }
    }

    pub(crate) fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            let number = self.next;
            self.next += 1;
            debug_assert!(number != ANY_CLASS, "2^32 numbers are never in use at once");
            number
        })
    }

    pub(crate) fn give_back(&mut self, number: u32) {
        self.free.push(number);
    }
}

impl Classes {
    pub(crate) fn new() -> Self {
        let empty = Class { shape: Shape::default(), slots: 0 };
        Self {
            by_number: [(NO_CLASS, empty)].into_iter().collect(),
            by_shape: [(Shape::default(), NO_CLASS)].into_iter().collect(),
            numbers: Numbers::from(NO_CLASS + 1),
            resting: Vec::new(),
        }
    }

    pub(crate) fn rest(&mut self, numbers: Vec<u32>) {
        self.resting.extend(numbers);
    }

    /// A grace followed the last use of every number.
    pub(crate) fn rested(&mut self) {
        for number in self.resting.drain(..) {
            self.numbers.give_back(number);
        }
    }

    pub(crate) fn shape(&self, number: u32) -> Option<Shape> {
        self.by_number.get(&number).map(|class| class.shape)
    }

    /// Finds numbers for these moves. With `strict`, sets that go are still asked until the grace is over: a slot then
    /// gets only numbers that have its old class' verdicts in them.
    pub(crate) fn number(&self, moves: &[Move], strict: bool, numbers: &mut Numbers) -> Numbering {
        let mut numbering = Numbering::default();
        let mut canonical = self.canonical(moves, numbers, &mut numbering);
        let mut temporary: FastMap<(u32, u32, u32), u32> = FastMap::default();
        for step in moves {
            let target = canonical.get_mut(&step.new).expect("every shape has a number");
            let (last, direct) = match *target {
                Canonical::Existing(last) => (last, !strict || step.old == last),
                Canonical::Taken(last) => (last, step.in_map && step.old == last),
                Canonical::Fresh { number, parent } => (number, !strict || step.old == parent),
            };
            let via = if direct {
                last
            } else {
                *temporary.entry((step.old, step.like, last)).or_insert_with(|| {
                    let (number, shape, temporary) = (numbers.take(), step.new, true);
                    let (old, parent) = (step.old, step.like);
                    numbering.new.push(NewClass { number, shape, old, parent, temporary });
                    number
                })
            };
            numbering.routes.push(Route { via, last });
        }
        numbering
    }

    fn canonical(
        &self,
        moves: &[Move],
        numbers: &mut Numbers,
        numbering: &mut Numbering,
    ) -> FastMap<Shape, Canonical> {
        let mut canonical: FastMap<Shape, Canonical> = FastMap::default();
        let mut flows: FastMap<(u32, Shape), u32> = FastMap::default();
        let mut leaving: FastMap<u32, u32> = FastMap::default();
        for step in moves {
            if let Some(number) = self.by_shape.get(&step.new) {
                canonical.insert(step.new, Canonical::Existing(*number));
            }
            let stays = step.in_map && !step.goes && step.like == step.old;
            *flows.entry((step.like, step.new)).or_default() += u32::from(stays);
            *leaving.entry(step.old).or_default() += u32::from(step.in_map);
        }
        let mut flows: Vec<((u32, Shape), u32)> = flows.into_iter().collect();
        flows.sort_unstable_by_key(|(flow, slots)| (std::cmp::Reverse(*slots), *flow));
        let mut taken_numbers: FastMap<u32, ()> = FastMap::default();
        for ((old, new), slots) in flows {
            if canonical.contains_key(&new) {
                continue;
            }
            let class = self.by_number.get(&old);
            let free = class.filter(|class| {
                slots > 0
                    && old != NO_CLASS
                    && class.slots == leaving[&old]
                    && !canonical.contains_key(&class.shape)
                    && !taken_numbers.contains_key(&old)
            });
            let target = if let Some(class) = free {
                taken_numbers.insert(old, ());
                numbering.taken.push(Taken { number: old, old: class.shape, new });
                Canonical::Taken(old)
            } else {
                let (number, shape, temporary) = (numbers.take(), new, false);
                numbering.new.push(NewClass { number, shape, old, parent: old, temporary });
                Canonical::Fresh { number, parent: old }
            };
            canonical.insert(new, target);
        }
        canonical
    }
}
