//! Where ENIs are made, as that changes: placements, subnets that are full, what leaves.
//!
//! Invariants: the word of a placement that is gone or wrong takes nothing away ([`Custom::placement`] stays); one of several
//! subnets that is full keeps nothing from being done in the others.

use std::{collections::BTreeMap, time::Duration};

use veni_core::{
    id::SubnetId,
    ipam::{
        BootTime, Eni,
        placement::{Custom, Placement},
        plan::{Block, Blocked, SUBNET_FULL, Step},
    },
    net::Ipv4Prefix,
};
use veni_provider::MetadataInterface;

use super::{FORGET, LONGEST, Pool};
use crate::{journal::Store, placement::News};

/// How long a subnet that was full is left alone at first.
const FULL: Duration = Duration::from_secs(10);
/// Why no ENI was made, where another place may help.
const OF_THE_PLACE: [&str; 3] = [SUBNET_FULL, "invalid", "limit_reached"];

impl<S: Store> Pool<S> {
    /// Takes in where ENIs are to be made from now on. Returns whether that is news.
    pub fn take_placement(&mut self, news: News) -> bool {
        let Some(custom) = &mut self.settings.networking.custom else { return false };
        let next = match news {
            News::Unheard => return false,
            News::Awaits(what) => {
                Custom { placement: custom.placement.clone(), waits_for: Some(what) }
            }
            News::Found(placement) => Custom {
                placement: Some(with_prefixes(placement, custom.placement.as_ref())),
                waits_for: None,
            },
        };
        if *custom == next {
            return false;
        }
        match &next.waits_for {
            Some(what) => tracing::warn!(what, "no ENI is made"),
            None => tracing::info!(placement = ?next.placement, "where ENIs are made has changed"),
        }
        *custom = next;
        // What was found elsewhere says nothing of this place, and an ENI that was nobody's may be ours by it.
        self.activity.full.clear();
        self.activity.fit = None;
        for what in [Blocked::NewEni, Blocked::Assign] {
            let block = self.activity.blocks.get(&what);
            if block.is_some_and(|block| OF_THE_PLACE.contains(&block.kind)) {
                self.drop_block(what);
            }
        }
        self.survey_wanted = true;
        true
    }

    /// A subnet's CIDR, where known: it does not change as long as the subnet exists.
    pub fn prefix_of(&self, subnet: &SubnetId) -> Option<Ipv4Prefix> {
        let networking = &self.settings.networking;
        let of_primary = (*subnet == networking.primary.subnet).then_some(self.place.subnet_prefix);
        let placed = || networking.placement()?.subnets.iter().find(|placed| placed.id == *subnet);
        of_primary.or_else(|| placed()?.prefix).or_else(|| self.seen_prefixes.get(subnet).copied())
    }

    /// Takes in the CIDRs of the attached ENIs' subnets.
    pub fn see_prefixes(&mut self, interfaces: &[MetadataInterface]) {
        let seen = interfaces.iter().map(|i| (i.subnet_id.clone(), i.subnet_cidr));
        self.seen_prefixes = seen.collect::<BTreeMap<_, _>>();
    }

    /// Whether an ENI that is attached waits for its subnet's CIDR.
    pub fn lacks_prefix(&self) -> bool {
        let facts = self.ledger.enis().filter(|eni| eni.attachment.is_some());
        let mut facts = facts.filter_map(|eni| eni.facts.as_ref());
        facts.any(|f| f.subnet_prefix.is_none() && self.prefix_of(&f.subnet).is_none())
    }

    /// How many addresses the instance can hold for pods.
    pub fn capacity(&self) -> u32 {
        self.settings.networking.capacity(self.limits)
    }

    /// What is not as it should be: a word, what it is about, a sentence.
    pub fn placing_problems(&self, now: BootTime) -> Vec<(&'static str, String, String)> {
        let waits = self.settings.networking.waits_for();
        let told = |what| ("eni_config", String::new(), format!("no ENI is made: {what}"));
        let snapshot = self.snapshot(now);
        let leaving = snapshot.leaving();
        let leaving = leaving.map(|l| ("eni_leaves", l.eni.to_string(), l.to_string()));
        waits.map(told).into_iter().chain(leaving).chain(self.late_problems(now)).collect()
    }

    /// One of the placement's subnets, or its only one, has no address left.
    pub(super) fn subnet_full(&mut self, subnet: &SubnetId, asked: u32, now: BootTime) {
        let placement = self.settings.networking.placement().cloned();
        let several = placement.filter(|p| p.subnets.len() > 1 && p.names(subnet));
        if let Some(placement) = &several {
            self.block_subnet(subnet, placement, now);
            let full = |id: &SubnetId| self.activity.full.get(id).is_some_and(|b| b.until > now);
            if !placement.subnets.iter().all(|placed| full(&placed.id)) {
                return;
            }
            // None has room for so many: each may have room for few, or the block of all of them follows.
            self.activity.full.clear();
        }
        if asked > 1 {
            self.fits_less(asked, now);
            return;
        }
        self.activity.fit = None;
        let reason = match &several {
            Some(placement) => {
                let ids = placement.subnets.iter().map(|placed| self.shown(&placed.id));
                format!(
                    "every subnet of {} is full: {}; free addresses in one of them, or name another one",
                    placement.source,
                    ids.collect::<Vec<_>>().join(", ")
                )
            }
            None => format!(
                "subnet {} is full: free addresses in it, or give the node group a larger subnet",
                self.shown(subnet)
            ),
        };
        self.block(Blocked::NewEni, SUBNET_FULL, now, FULL, reason);
        // For as long: a new ENI takes one address more, and attempts to make one would renew a longer block for ever.
        let block = self.activity.blocks.get(&Blocked::NewEni).cloned();
        self.activity.blocks.extend(block.map(|block| (Blocked::Assign, block)));
    }

    /// A call has shown that there is room in a subnet.
    pub(super) fn subnet_works(&mut self, subnet: Option<&SubnetId>) {
        let full = subnet.and_then(|subnet| self.activity.full.remove(subnet));
        self.ended.extend(full.map(|block| block.kind));
    }

    /// Forgets how often a subnet was full a long time ago.
    pub(super) fn forget_full(&mut self, now: BootTime) {
        self.activity.full.retain(|_, block| block.until.after(FORGET) > now);
    }

    /// The subnet that a step is about.
    pub(super) fn subnet_of(&self, step: &Step) -> Option<SubnetId> {
        if let Step::CreateEni { place, .. } = step {
            return Some(place.subnet.clone());
        }
        self.ledger.eni(step.slot()).and_then(subnet).cloned()
    }

    /// The others are used meanwhile.
    fn block_subnet(&mut self, subnet: &SubnetId, placement: &Placement, now: BootTime) {
        let former = self.activity.full.get(subnet);
        if former.is_some_and(|block| block.until > now) {
            return;
        }
        let attempts = former.map_or(0, |block| block.attempts + 1);
        let since = former.map_or(now, |block| block.since);
        let until = now.after(self.backoff(FULL, attempts, LONGEST, now));
        let reason = format!(
            "subnet {} is full, the other subnets of {} are used: free addresses in it",
            self.shown(subnet),
            placement.source
        );
        tracing::warn!(reason, "subnet full");
        let block = Block { until, attempts, kind: SUBNET_FULL, reason, since };
        self.activity.full.insert(subnet.clone(), block);
    }

    /// The id, with the CIDR where known.
    fn shown(&self, subnet: &SubnetId) -> String {
        match self.prefix_of(subnet) {
            Some(prefix) => format!("{subnet} ({prefix})"),
            None => subnet.to_string(),
        }
    }
}

fn subnet(eni: &Eni) -> Option<&SubnetId> {
    eni.facts.as_ref().map(|facts| &facts.subnet)
}

/// What is known of a subnet is not forgotten because EC2 did not tell it this time.
fn with_prefixes(mut placement: Placement, former: Option<&Placement>) -> Placement {
    for placed in placement.subnets.iter_mut().filter(|placed| placed.prefix.is_none()) {
        let known = former.and_then(|f| f.subnets.iter().find(|known| known.id == placed.id));
        placed.prefix = known.and_then(|known| known.prefix);
    }
    placement
}
