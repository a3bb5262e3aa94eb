//! Numbers of Service ports: what session affinity is kept under, across changes of back ends and restarts.

use std::{collections::BTreeMap, sync::Arc};

use super::{front_end::PortName, lists::next};

/// Numbers in use.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_name: BTreeMap<Arc<PortName>, u32>,
    numbers: BTreeMap<u32, Number>,
    last: u32,
}

#[derive(Debug, Default)]
struct Number {
    /// `None`: an earlier daemon's, not yet claimed.
    name: Option<Arc<PortName>>,
    users: usize,
}

impl Names {
    /// A front end that an earlier daemon wrote has the number.
    pub(super) fn adopt(&mut self, number: u32) {
        self.numbers.entry(number).or_default().users += 1;
        self.last = self.last.max(number);
    }

    /// The name's number, for one more front end. A name without one inherits `found`, which an earlier daemon gave
    /// the front end, unless another name did before.
    pub(super) fn take(&mut self, name: &Arc<PortName>, found: Option<u32>) -> u32 {
        let number = match self.by_name.get(name) {
            Some(number) => *number,
            None => self.give(name, found),
        };
        self.numbers.entry(number).or_default().users += 1;
        number
    }

    /// One front end less.
    pub(super) fn release(&mut self, number: u32) {
        let Some(entry) = self.numbers.get_mut(&number) else { return };
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0
            && let Some(Number { name: Some(name), .. }) = self.numbers.remove(&number)
        {
            self.by_name.remove(&name);
        }
    }

    fn give(&mut self, name: &Arc<PortName>, found: Option<u32>) -> u32 {
        let unclaimed =
            |number: &u32| self.numbers.get(number).is_some_and(|entry| entry.name.is_none());
        let number = found
            .filter(unclaimed)
            .unwrap_or_else(|| next(&mut self.last, |n| self.numbers.contains_key(&n)));
        self.by_name.insert(Arc::clone(name), number);
        self.numbers.entry(number).or_default().name = Some(Arc::clone(name));
        number
    }
}
