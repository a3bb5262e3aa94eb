//! Who gets a front end that several claim.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::front_end::{BackEnd, FrontEnd, PortName};
use crate::object::{Diagnostic, Key};

/// Where a front end leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) name: Arc<PortName>,
    pub(super) affinity_secs: u32,
    /// Sorted, each once.
    pub(super) back_ends: Arc<[BackEnd]>,
    /// kube-proxy knows where it leads, and we do not: no back ends.
    pub(super) of_proxy: bool,
}

/// A claim's owner, in the order in which a front end is given: the least gets it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    pub(super) rank: Rank,
    pub(super) owner: Key,
    /// Of the port in its owner's list.
    pub(super) index: usize,
}

/// Services before hostPorts (kube-proxy puts its rules before the portmap plugin's).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// The one made first.
    Service { undated: bool, created: String },
    /// One that stays before one that goes; a named address before any.
    HostPort { deleting: bool, any_address: bool },
}

/// All claims.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_front_end: BTreeMap<FrontEnd, BTreeMap<Claimant, Target>>,
    by_owner: BTreeMap<Key, Vec<(FrontEnd, Claimant)>>,
    contested: BTreeSet<FrontEnd>,
}

impl Claims {
    /// Makes these the owner's claims. The front ends that may lead elsewhere now.
    pub(super) fn replace(
        &mut self,
        owner: &Key,
        claims: Vec<(FrontEnd, Claimant, Target)>,
    ) -> BTreeSet<FrontEnd> {
        let mut touched = BTreeSet::new();
        for (front_end, claimant) in self.by_owner.remove(owner).unwrap_or_default() {
            if let Some(claimants) = self.by_front_end.get_mut(&front_end) {
                claimants.remove(&claimant);
            }
            touched.insert(front_end);
        }
        let mut owned = Vec::with_capacity(claims.len());
        for (front_end, claimant, target) in claims {
            let claimants = self.by_front_end.entry(front_end).or_default();
            claimants.entry(claimant.clone()).or_insert(target);
            touched.insert(front_end);
            owned.push((front_end, claimant));
        }
        if !owned.is_empty() {
            self.by_owner.insert(owner.clone(), owned);
        }
        for front_end in &touched {
            self.settle(*front_end);
        }
        touched
    }

    /// Where the front end leads; `None` when nobody claims it.
    pub(super) fn target(&self, front_end: FrontEnd) -> Option<&Target> {
        self.by_front_end.get(&front_end)?.values().next()
    }

    pub(super) fn owners(&self) -> impl Iterator<Item = &Key> {
        self.by_owner.keys()
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = (FrontEnd, &Target)> {
        self.by_front_end.iter().filter_map(|(at, claims)| Some((*at, claims.values().next()?)))
    }

    /// One for each claim that lost.
    pub(super) fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        for front_end in &self.contested {
            let mut claimants = self.by_front_end[front_end].keys();
            let Some(winner) = claimants.next() else { continue };
            found.extend(claimants.map(|loser| Diagnostic {
                key: loser.owner.clone(),
                field: String::new(),
                message: format!(
                    "{} port {}/{} is {}'s already, which was first; this one does not get it",
                    front_end.address,
                    front_end.port,
                    front_end.protocol.as_str(),
                    winner.owner
                ),
            }));
        }
        found
    }

    fn settle(&mut self, front_end: FrontEnd) {
        let claimants = self.by_front_end.get(&front_end).map_or(0, BTreeMap::len);
        if claimants > 1 {
            self.contested.insert(front_end);
        } else {
            self.contested.remove(&front_end);
        }
        if claimants == 0 {
            self.by_front_end.remove(&front_end);
        }
    }
}
