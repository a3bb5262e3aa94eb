//! Equal lists share one number, and one place in memory.

use std::{collections::HashMap, hash::Hash, sync::Arc};

/// A hash map of this crate: its keys come from the cluster's own objects, so speed counts and seeds are random.
pub(crate) type FastMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
/// As [`FastMap`].
pub(crate) type FastSet<K> = std::collections::HashSet<K, foldhash::fast::RandomState>;

/// Lists by number; 0 is the empty one.
#[derive(Debug)]
pub(crate) struct Interner<T> {
    lists: Vec<Arc<[T]>>,
    numbers: FastMap<Arc<[T]>, u32>,
    free: Vec<u32>,
    /// Lists left by the last sweep.
    swept: usize,
}

/// Shared text.
#[derive(Debug, Default)]
pub(crate) struct Strings {
    known: FastSet<Arc<str>>,
    swept: usize,
}

impl<T: Clone + Eq + Hash> Interner<T> {
    pub(crate) fn new() -> Self {
        let empty: Arc<[T]> = Arc::from(Vec::new());
        let numbers = FastMap::from_iter([(Arc::clone(&empty), 0)]);
        Self { lists: vec![empty], numbers, free: Vec::new(), swept: 0 }
    }

    pub(crate) fn number(&mut self, list: &[T]) -> u32 {
        if let Some(number) = self.numbers.get(list) {
            return *number;
        }
        let shared: Arc<[T]> = Arc::from(list);
        let number = if let Some(number) = self.free.pop() {
            self.lists[number as usize] = Arc::clone(&shared);
            number
        } else {
            self.lists.push(Arc::clone(&shared));
            u32::try_from(self.lists.len() - 1).expect("fewer than 2^32 lists fit in memory")
        };
        self.numbers.insert(shared, number);
        number
    }

    pub(crate) fn get(&self, number: u32) -> &[T] {
        &self.lists[number as usize]
    }

    /// Whether there are many more lists than after the last sweep.
    pub(crate) fn wants_sweep(&self) -> bool {
        self.numbers.len() > 2 * self.swept + 1024
    }

    /// Forgets lists that are not in use.
    pub(crate) fn sweep(&mut self, used: &FastSet<u32>) {
        let free = &mut self.free;
        self.numbers.retain(|_, number| {
            let keep = *number == 0 || used.contains(number);
            if !keep {
                free.push(*number);
            }
            keep
        });
        let empty = Arc::clone(&self.lists[0]);
        for number in &self.free {
            self.lists[*number as usize] = Arc::clone(&empty);
        }
        self.swept = self.numbers.len();
    }
}

impl Strings {
    pub(crate) fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() > 2 * self.swept + 4096 {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.swept = self.known.len();
        }
        let shared: Arc<str> = Arc::from(text);
        self.known.insert(Arc::clone(&shared));
        shared
    }
}
