//! Atoms: the questions that rules in force ask about a peer, numbered and counted.

use std::sync::Arc;

use ipnet::IpNet;
use veni_core::id::SecurityGroupId;

use crate::{compile::AtomId, intern::FastMap, object::Selector};

/// A question about a peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    /// Is it a pod of these namespaces with these labels?
    Pods { namespaces: Namespaces, pods: Selector },
    /// Is its address in the block and in none of its exceptions?
    Block { cidr: IpNet, except: Vec<IpNet> },
    /// Is its address that of a node with these labels?
    Nodes(Selector),
    /// Is its address the own node's, and does that have these labels? Of every address that the node has, those that its
    /// object does not name too.
    OwnNode(Selector),
    /// Is it a member of the security group?
    Group(SecurityGroupId),
    /// Is it an address of the family of which nothing is known? Asked while known ones have found no room in the map
    /// of addresses, which makes them such.
    Unlisted { v6: bool },
}

/// Which namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Namespaces {
    Named(String),
    Selected(Selector),
}

#[derive(Debug)]
struct Slot {
    question: Arc<Question>,
    /// Sets that ask it.
    users: u32,
    /// Whether vectors answer it.
    answered: bool,
}

/// Questions with their numbers.
pub(crate) type Numbered = Vec<(AtomId, Arc<Question>)>;

/// All atoms.
#[derive(Debug, Default)]
pub(crate) struct Atoms {
    numbers: FastMap<Arc<Question>, AtomId>,
    slots: Vec<Option<Slot>>,
    free: Vec<AtomId>,
    /// Atoms whose users changed from or to none.
    touched: Vec<AtomId>,
}

impl Atoms {
    /// The number of a question. It lasts until [`Atoms::settle`] unless a set asks it then.
    pub(crate) fn number(&mut self, question: Question) -> AtomId {
        if let Some(number) = self.numbers.get(&question) {
            return *number;
        }
        let question = Arc::new(question);
        let slot = Slot { question: Arc::clone(&question), users: 0, answered: false };
        let number = if let Some(number) = self.free.pop() {
            self.slots[number as usize] = Some(slot);
            number
        } else {
            self.slots.push(Some(slot));
            AtomId::try_from(self.slots.len() - 1).expect("fewer than 2^32 questions fit in memory")
        };
        self.numbers.insert(question, number);
        self.touched.push(number);
        number
    }

    /// What a number asks.
    pub(crate) fn question(&self, atom: AtomId) -> Option<&Question> {
        self.slots.get(atom as usize)?.as_ref().map(|slot| &*slot.question)
    }

    /// Whether nothing is asked more or less than [`Atoms::settle`] knows.
    pub(crate) fn is_settled(&self) -> bool {
        self.touched.is_empty()
    }

    /// How often sets ask it.
    pub(crate) fn users(&self, atom: AtomId) -> u32 {
        let slot = self.slots.get(atom as usize).and_then(Option::as_ref);
        slot.map_or(0, |slot| slot.users)
    }

    pub(crate) fn acquire(&mut self, atoms: impl Iterator<Item = AtomId>) {
        for atom in atoms {
            self.slots[atom as usize].as_mut().expect("just numbered").users += 1;
        }
    }

    pub(crate) fn release(&mut self, atoms: impl Iterator<Item = AtomId>) {
        for atom in atoms {
            let slot = self.slots[atom as usize].as_mut().expect("a set asks it");
            slot.users -= 1;
            if slot.users == 0 {
                self.touched.push(atom);
            }
        }
    }

    /// Questions that vectors must answer from now on, and those that nobody asks any more. The latter's numbers are
    /// free at once: callers take them out of every vector before they number another.
    pub(crate) fn settle(&mut self) -> (Numbered, Numbered) {
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for atom in std::mem::take(&mut self.touched) {
            let Some(slot) = &mut self.slots[atom as usize] else { continue };
            if slot.users > 0 {
                if !slot.answered {
                    slot.answered = true;
                    added.push((atom, Arc::clone(&slot.question)));
                }
                continue;
            }
            let question = Arc::clone(&slot.question);
            let answered = slot.answered;
            self.slots[atom as usize] = None;
            self.numbers.remove(&question);
            self.free.push(atom);
            if answered {
                removed.push((atom, question));
            }
        }
        (added, removed)
    }

    /// Every question that vectors answer.
    pub(crate) fn answered(&self) -> impl Iterator<Item = (AtomId, &Question)> {
        (0..).zip(&self.slots).filter_map(|(atom, slot)| {
            let slot = slot.as_ref().filter(|slot| slot.answered)?;
            Some((atom, &*slot.question))
        })
    }
}
