//! Lists of back ends and their numbers in `BACKENDS`.
//!
//! Invariants: a number's entries are never changed, only written before anything refers to the number and removed
//! after a grace period in which nothing did; equal lists share a number; a number is used again only when all others
//! had their turn.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use veni_ebpf_common::table::{BackendKey, BackendValue, capacity};

use super::front_end::{BackEnd, Family};
use crate::change::{Remove, Write};

/// The number of the list that is empty and has no entries.
pub(super) const EMPTY: u32 = 0;

/// All lists that are in the map.
#[derive(Debug, Default)]
pub(super) struct Lists {
    by_number: BTreeMap<u32, List>,
    by_content: HashMap<Arc<[BackEnd]>, u32>,
    /// Lists that nothing refers to.
    idle: BTreeSet<u32>,
    last: u32,
    entries: usize,
}

#[derive(Debug)]
struct List {
    content: Content,
    users: usize,
}

#[derive(Debug)]
enum Content {
    Known(Arc<[BackEnd]>),
    /// Found in the map: what each slot has.
    Found(BTreeMap<u32, BackendValue>),
}

impl Lists {
    /// Takes in an entry that an earlier daemon wrote.
    pub(super) fn adopt(&mut self, key: BackendKey, value: BackendValue) {
        let found = List { content: Content::Found(BTreeMap::new()), users: 0 };
        let list = self.by_number.entry(key.backends).or_insert(found);
        if let Content::Found(slots) = &mut list.content {
            slots.insert(key.slot, value);
            self.entries += 1;
            self.idle.insert(key.backends);
        }
        self.last = self.last.max(key.backends);
    }

    /// A front end that an earlier daemon wrote refers to the number. A list that is not complete stays of unknown
    /// content, so it is replaced.
    pub(super) fn adopt_user(&mut self, number: u32, count: u32, family: Family) {
        let Some(list) = self.by_number.get_mut(&number) else { return };
        list.users += 1;
        self.idle.remove(&number);
        if let Content::Found(slots) = &list.content
            && slots.len() == count as usize
            && slots.keys().copied().eq(0..count)
        {
            let content: Arc<[BackEnd]> =
                slots.values().map(|value| BackEnd::of(value, family)).collect();
            self.by_content.entry(Arc::clone(&content)).or_insert(number);
            list.content = Content::Known(content);
        }
    }

    /// The list of that number; `None` when it is not known what is in it.
    pub(super) fn get(&self, number: u32) -> Option<&[BackEnd]> {
        match &self.by_number.get(&number)?.content {
            Content::Known(content) => Some(content),
            Content::Found(_) => None,
        }
    }

    /// The number of a list, for one more user; what has to be written before is added to `writes`. `None` when the
    /// map has no room for it.
    pub(super) fn take(
        &mut self,
        content: &Arc<[BackEnd]>,
        writes: &mut Vec<Write>,
    ) -> Option<u32> {
        if content.is_empty() {
            return Some(EMPTY);
        }
        let number = match self.by_content.get(content) {
            Some(number) => *number,
            None => self.make(content, writes)?,
        };
        self.idle.remove(&number);
        self.by_number.get_mut(&number).expect("it is there or was just made").users += 1;
        Some(number)
    }

    /// One user less.
    pub(super) fn release(&mut self, number: u32) {
        let Some(list) = self.by_number.get_mut(&number) else { return };
        list.users = list.users.saturating_sub(1);
        if list.users == 0 {
            self.idle.insert(number);
        }
    }

    /// Forgets the lists that nothing refers to: their entries, to be removed after a grace period.
    pub(super) fn retire(&mut self) -> Vec<Remove> {
        let mut removes = Vec::new();
        for number in std::mem::take(&mut self.idle) {
            let Some(list) = self.by_number.remove(&number) else { continue };
            let slots: Vec<u32> = match &list.content {
                Content::Known(content) => {
                    if self.by_content.get(content) == Some(&number) {
                        self.by_content.remove(content);
                    }
                    (0..).take(content.len()).collect()
                }
                Content::Found(slots) => slots.keys().copied().collect(),
            };
            self.entries -= slots.len();
            let keys = slots.into_iter().map(|slot| BackendKey { backends: number, slot });
            removes.extend(keys.map(Remove::Backend));
        }
        removes
    }

    fn make(&mut self, content: &Arc<[BackEnd]>, writes: &mut Vec<Write>) -> Option<u32> {
        if self.entries + content.len() > capacity::BACKENDS as usize {
            return None;
        }
        let number = next(&mut self.last, |number| self.by_number.contains_key(&number));
        for (slot, back_end) in (0..).zip(content.iter()) {
            let key = BackendKey { backends: number, slot };
            writes.push(Write::Backend { key, value: back_end.value() });
        }
        self.entries += content.len();
        self.by_content.insert(Arc::clone(content), number);
        let list = List { content: Content::Known(Arc::clone(content)), users: 0 };
        self.by_number.insert(number, list);
        Some(number)
    }
}

/// The number after the last one given, past those in use; never 0.
pub(super) fn next(last: &mut u32, in_use: impl Fn(u32) -> bool) -> u32 {
    loop {
        *last = last.wrapping_add(1);
        if *last != 0 && !in_use(*last) {
            return *last;
        }
    }
}
