//! What is in the maps, and the ordered writes that change it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use veni_ebpf_common::table::{ServiceValue, capacity};

use super::{
    Found,
    claims::{Claims, Target},
    front_end::{Family, FrontEnd, PortName},
    lists::{EMPTY, Lists},
    names::Names,
};
use crate::{
    change::{Remove, Step, Write},
    object::Diagnostic,
};

/// A mirror of the maps.
#[derive(Debug, Default)]
pub(super) struct Tables {
    entries: BTreeMap<FrontEnd, Entry>,
    lists: Lists,
    names: Names,
    /// Front ends whose change found no room; tried again with every batch.
    refused: BTreeSet<FrontEnd>,
}

#[derive(Debug)]
struct Entry {
    value: ServiceValue,
    /// `None`: an earlier daemon's.
    name: Option<Arc<PortName>>,
}

/// A batch in the making; the parts in the order in which they are carried out.
#[derive(Debug, Default)]
struct Batch {
    back_ends: Vec<Write>,
    gone: Vec<Remove>,
    flips: Vec<Write>,
    /// Whether an address and port that were none are a front end now.
    appeared: bool,
}

impl Tables {
    /// Takes in what an earlier daemon wrote.
    pub(super) fn adopt(found: &Found) -> Self {
        let mut tables = Self::default();
        for (key, value) in &found.back_ends {
            tables.lists.adopt(*key, *value);
        }
        for (front_end, value) in &found.front_ends {
            tables.lists.adopt_user(value.backends, value.count, Family::of(front_end.address));
            tables.names.adopt(value.service);
            tables.entries.insert(*front_end, Entry { value: *value, name: None });
        }
        tables
    }

    pub(super) fn front_ends(&self) -> impl Iterator<Item = FrontEnd> {
        self.entries.keys().copied()
    }

    /// Makes these front ends lead where the claims say.
    pub(super) fn change(&mut self, front_ends: BTreeSet<FrontEnd>, claims: &Claims) -> Vec<Step> {
        let batch = self.batch(front_ends, claims);
        batch.into_steps(self.lists.retire(), None)
    }

    fn batch(&mut self, mut front_ends: BTreeSet<FrontEnd>, claims: &Claims) -> Batch {
        front_ends.append(&mut self.refused);
        let mut batch = Batch::default();
        // Those that go make room for those that come.
        for front_end in front_ends.iter().filter(|at| claims.target(**at).is_none()) {
            self.remove(*front_end, &mut batch);
        }
        for front_end in front_ends {
            if let Some(target) = claims.target(front_end) {
                self.point(front_end, target, &mut batch);
            }
        }
        batch
    }

    /// As [`Tables::change`], when the node's own addresses were `old` and are `new`. What leads to one of them is
    /// allowed to every pod unless it is a front end: an address is the node's only while its front ends are there.
    pub(super) fn change_addresses(
        &mut self,
        front_ends: BTreeSet<FrontEnd>,
        claims: &Claims,
        old: &BTreeSet<IpAddr>,
        new: &BTreeSet<IpAddr>,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        if !old.is_subset(new) {
            steps.push(Step::NodeAddresses(old & new));
        }
        let batch = self.batch(front_ends, claims);
        steps.extend(batch.into_steps(self.lists.retire(), Some(new.clone())));
        steps
    }

    /// What found no room.
    pub(super) fn diagnostics(&self, claims: &Claims) -> Vec<Diagnostic> {
        let refused = self.refused.iter().filter_map(|at| Some((at, claims.target(*at)?)));
        refused.map(|(at, target)| full(*at, target)).collect()
    }

    fn remove(&mut self, front_end: FrontEnd, batch: &mut Batch) {
        if let Some(entry) = self.entries.remove(&front_end) {
            batch.gone.push(front_end.remove());
            self.lists.release(entry.value.backends);
            self.names.release(entry.value.service);
        }
    }

    fn point(&mut self, front_end: FrontEnd, target: &Target, batch: &mut Batch) {
        let old = self.entries.get(&front_end);
        let (old_value, inherited) = match old {
            Some(entry) => (Some(entry.value), entry.name.is_none().then_some(entry.value.service)),
            None => (None, None),
        };
        if old.is_none() && !self.has_room(front_end) {
            self.refused.insert(front_end);
            return;
        }
        let backends = match old_value.filter(|value| self.leads_to(value, target)) {
            Some(value) => value.backends,
            None => {
                let Some(number) = self.lists.take(&target.back_ends, &mut batch.back_ends) else {
                    self.refused.insert(front_end);
                    return;
                };
                if let Some(value) = old_value {
                    self.lists.release(value.backends);
                }
                number
            }
        };
        batch.appeared |= old_value.is_none();
        let value = ServiceValue {
            backends,
            count: count(target),
            affinity_secs: target.affinity_secs,
            service: self.names.take(&target.name, inherited),
        };
        if let Some(old) = old_value {
            self.names.release(old.service);
        }
        if old_value != Some(value) {
            batch.flips.push(front_end.write(value));
        }
        self.entries.insert(front_end, Entry { value, name: Some(Arc::clone(&target.name)) });
    }

    fn leads_to(&self, value: &ServiceValue, target: &Target) -> bool {
        if target.back_ends.is_empty() {
            return value.backends == EMPTY && value.count == count(target);
        }
        self.lists.get(value.backends) == Some(&*target.back_ends)
    }

    fn has_room(&self, front_end: FrontEnd) -> bool {
        let limit = capacity::SERVICE as usize;
        // Counting a family is for the rare case that both together could be too many.
        let family = Family::of(front_end.address);
        let of_family = |at: &&FrontEnd| Family::of(at.address) == family;
        self.entries.len() < limit || self.entries.keys().filter(of_family).count() < limit
    }
}

impl Batch {
    /// The back ends before what refers to them; the old ones after no program can refer to them any more. A flow that
    /// began when its destination was no front end, or the node's own, is judged again once that has changed.
    fn into_steps(self, retired: Vec<Remove>, own: Option<BTreeSet<IpAddr>>) -> Vec<Step> {
        let mut steps: Vec<Step> = self.back_ends.into_iter().map(Step::Write).collect();
        steps.extend(self.gone.into_iter().map(Step::Delete));
        steps.extend(self.flips.into_iter().map(Step::Write));
        let rejudged = self.appeared || own.is_some();
        steps.extend(own.map(Step::NodeAddresses));
        if rejudged {
            steps.push(Step::Epoch);
        }
        if !retired.is_empty() {
            steps.push(Step::Grace);
            steps.extend(retired.into_iter().map(Step::Delete));
        }
        steps
    }
}

fn count(target: &Target) -> u32 {
    if target.of_proxy {
        return ServiceValue::OF_PROXY;
    }
    u32::try_from(target.back_ends.len()).expect("the map has fewer entries")
}

fn full(front_end: FrontEnd, target: &Target) -> Diagnostic {
    Diagnostic {
        key: target.name.owner.clone(),
        field: String::new(),
        message: format!(
            "no room in the tables for {} port {}/{} with {} back ends (at most {} front ends a family and {} back \
             ends in all); it stays as it was",
            front_end.address,
            front_end.port,
            front_end.protocol.as_str(),
            target.back_ends.len(),
            capacity::SERVICE,
            capacity::BACKENDS
        ),
    }
}
