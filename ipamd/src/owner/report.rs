//! What the owner has the cluster told: see [`crate::report`].

use std::collections::{BTreeMap, HashMap};

use veni_core::{
    ipam::Allocation,
    wire::{ErrorCode, PodRef, ReplyBody, WireError},
};
use veni_provider::Cloud;

use super::Owner;
use crate::{
    host::Host,
    journal::Store,
    report::{Followed, Happening, Network, Teller},
};

/// Pods of whose missing address was told, at most: they are remembered until they have one. Those that never get one are gone, and
/// nobody says so here: the oldest gives way.
const MOST: usize = 1024;

const STARTING: &str = "Starting";

/// What was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) teller: Teller,
    /// The node has been seen able to take pods.
    pub(super) able: bool,
    network: Option<Network>,
    /// Pods that have no address, by namespace and name, with the number of the last ADD that told so.
    starving: HashMap<(String, String), u64>,
    /// How many ADDs have ended without an address.
    starved: u64,
    /// Troubles of the node: of each kind, what was said last.
    troubles: BTreeMap<&'static str, String>,
}

impl<C: Cloud, H: Host, S: Store> Owner<C, H, S> {
    /// Who tells the cluster.
    #[must_use]
    pub fn told_by(mut self, teller: Teller) -> Self {
        self.told.teller = teller;
        self
    }

    /// An ADD has ended without an address.
    pub(super) fn tell_starved(&mut self, pod: &PodRef, why: &str) {
        let Some(teller) = &self.told.teller else { return };
        if pod.name.is_empty() {
            return;
        }
        self.told.starved += 1;
        self.told.starving.insert(key(pod), self.told.starved);
        if self.told.starving.len() > MOST {
            let oldest = self.told.starving.iter().min_by_key(|(_, at)| **at);
            let oldest = oldest.map(|(pod, _)| pod.clone());
            self.told.starving.retain(|pod, _| Some(pod) != oldest.as_ref());
        }
        let note = format!("no address for the pod: {why}");
        teller.happened(happening(Some(pod), true, "NoPodAddress", note));
    }

    /// An ADD has its address.
    pub(super) fn tell_assigned(&mut self, allocation: &Allocation) {
        let Some(teller) = &self.told.teller else { return };
        let Allocation { pod, address, .. } = allocation;
        if pod.name.is_empty() {
            return;
        }
        if self.told.starving.remove(&key(pod)).is_some() {
            let note = format!("the pod has its address, {address}");
            teller.happened(happening(Some(pod), false, "PodAddressAssigned", note));
        }
        if self.parts.config.annotate_pod_ip {
            teller.annotate(pod, address.to_string());
        }
    }

    /// The first address is there.
    pub(super) fn tell_able(&self) {
        if let Some(teller) = &self.told.teller {
            teller.able(self.parts.config.startup_taint.as_deref());
        }
    }

    /// Which settings are in force, and why they are not the object's present ones.
    pub(super) fn tell_following(&self) {
        let Some(teller) = &self.told.teller else { return };
        let refused = |name: &String| {
            self.settings.refused.iter().find(|(of, _)| of == name).map(|(_, why)| why.clone())
        };
        let following = self.settings.following.as_ref();
        teller.following(following.map(|following| Followed {
            name: following.name.clone(),
            generation: following.generation,
            message: refused(&following.name),
        }));
    }

    /// How the node stands, where that is not what was told.
    pub(super) fn tell(&mut self) {
        if self.told.teller.is_none() {
            return;
        }
        self.tell_network();
        self.tell_troubles();
    }

    fn tell_network(&mut self) {
        let away = self.told.network.as_ref().is_some_and(|told| !told.available);
        let network = match self.hindrance() {
            // An attempt that is under way is no news of a node that has none.
            Some((STARTING, _)) if away => return,
            Some((reason, message)) => Network { available: false, reason, message },
            // Nor is it an address.
            None if away && !self.ready() && self.parts.pool.ledger.counts().assigned == 0 => {
                return;
            }
            None => Network {
                available: true,
                reason: "PodAddresses",
                message: "veni gives pods their addresses".to_owned(),
            },
        };
        // A message alone is news once: it may count something down.
        let told = self.told.network.as_ref();
        if told.is_some_and(|told| {
            (told.available, told.reason) == (network.available, network.reason)
        }) {
            return;
        }
        if let Some(teller) = &self.told.teller {
            teller.network(network.clone());
        }
        self.told.network = Some(network);
    }

    /// Why no pod can be wired.
    fn hindrance(&self) -> Option<(&'static str, String)> {
        if self.unfiltered().is_some() && !self.told.able {
            return Some((STARTING, "veni prepares the node's network".to_owned()));
        }
        if let ReplyBody::Error(WireError { code, message }) = self.status() {
            let reason = match code {
                ErrorCode::Storage => "JournalNotWritable",
                _ if self.unfiltered().is_some() => "FilterNotInForce",
                _ => "NoPodAddresses",
            };
            return Some((reason, message));
        }
        let starting = || (STARTING, "veni has no address for pods yet".to_owned());
        (!self.told.able).then(starting)
    }

    /// What EC2 refuses: a warning when it begins, good news when it has come to an end. A block that is over counts until
    /// the call has succeeded, or was not tried for so long that nobody knows: then there is no news.
    fn tell_troubles(&mut self) {
        let ended = self.parts.pool.take_ended();
        let activity = &self.parts.pool.activity;
        let blocks = activity.blocks.values().chain(activity.full.values());
        let mut now = BTreeMap::new();
        for block in blocks {
            if let Some(reason) = reason(block.kind) {
                now.entry(reason).or_insert_with(|| block.reason.clone());
            }
        }
        if now == self.told.troubles {
            return;
        }
        let Some(teller) = &self.told.teller else { return };
        for (reason, note) in &now {
            if self.told.troubles.get(reason) != Some(note) {
                teller.happened(happening(None, true, reason, note.clone()));
            }
        }
        for (reason, note) in &self.told.troubles {
            let resolved = ended.iter().any(|kind| self::reason(kind) == Some(*reason));
            if resolved && !now.contains_key(reason) {
                teller.happened(happening(
                    None,
                    false,
                    "Resolved",
                    format!("{reason} is over: {note}"),
                ));
            }
        }
        self.told.troubles = now;
    }
}

/// The event's word for a kind of block that people can do something about.
fn reason(kind: &str) -> Option<&'static str> {
    match kind {
        "subnet_full" => Some("SubnetFull"),
        "throttled" => Some("CloudThrottled"),
        "denied" => Some("CloudPermissionMissing"),
        "limit_reached" => Some("CloudLimitReached"),
        _ => None,
    }
}

fn happening(pod: Option<&PodRef>, warning: bool, reason: &'static str, note: String) -> Happening {
    let action = if pod.is_some() { "AssignAddress" } else { "ManagePool" };
    Happening { pod: pod.cloned(), warning, reason, action, note }
}

fn key(pod: &PodRef) -> (String, String) {
    (pod.namespace.clone(), pod.name.clone())
}
