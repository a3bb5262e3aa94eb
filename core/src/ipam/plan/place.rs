//! Custom networking: which ENIs give pods addresses, where new ones are made, and how those leave that are elsewhere.

use super::{Block, Blocked, MIN_ENI_AGE, Plan, Snapshot, Step};
use crate::{
    id::{EniId, SubnetId},
    ipam::{
        Eni,
        placement::{EniPlace, Standing},
    },
};

/// An ENI that goes when its last pod has gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving {
    /// Which.
    pub eni: EniId,
    /// Where it is.
    pub subnet: SubnetId,
    /// How many pods have addresses of it.
    pub pods: u32,
    /// Why.
    pub why: String,
}

impl Snapshot<'_> {
    /// Whether the ENI's addresses are for pods.
    pub(super) fn serves(&self, eni: &Eni) -> bool {
        self.settings.networking.standing(eni) == Standing::Serves
    }

    /// The block on one of several subnets, when it is full.
    #[must_use]
    pub fn full(&self, subnet: &SubnetId) -> Option<&Block> {
        self.activity.full.get(subnet).filter(|block| block.until > self.now)
    }

    /// Whether its subnet has no room.
    pub(super) fn in_full_subnet(&self, eni: &Eni) -> bool {
        eni.facts.as_ref().is_some_and(|facts| self.full(&facts.subnet).is_some())
    }

    /// Where the next ENI is made: the first subnet that is not full.
    pub(super) fn new_place(&self) -> Option<EniPlace> {
        self.settings.networking.places().find(|place| self.full(&place.subnet).is_none())
    }

    /// Whether an ENI in use takes more addresses, as far as is known.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.ledger.enis().any(|eni| eni.in_use() && self.room(eni) > 0)
    }

    /// ENIs in use that go when their last pod has gone.
    pub fn leaving(&self) -> impl Iterator<Item = Leaving> + '_ {
        let networking = &self.settings.networking;
        let enis = self.ledger.enis().filter(|eni| eni.in_use());
        enis.filter(|eni| networking.standing(eni) == Standing::Leaves).filter_map(|eni| {
            let facts = eni.facts.as_ref()?;
            let why = match networking.placement() {
                Some(placement) => format!("which {} does not name", placement.source),
                None => "which is not the primary ENI's".to_owned(),
            };
            let (eni, pods) = (facts.id.clone(), eni.counts().assigned);
            Some(Leaving { eni, subnet: facts.subnet.clone(), pods, why })
        })
    }
}

impl std::fmt::Display for Leaving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { eni, subnet, pods, why } = self;
        write!(f, "{eni} is in {subnet}, {why}: it gives no pod an address, and goes")?;
        match pods {
            0 => Ok(()),
            1 => write!(f, " when its last pod has gone"),
            pods => write!(f, " when its {pods} pods have gone"),
        }
    }
}

/// Says what custom networking waits for, and which ENIs leave.
pub(super) fn tell(plan: &mut Plan, snapshot: &Snapshot<'_>) {
    if let Some(what) = snapshot.settings.networking.waits_for() {
        plan.waiting_for.push(format!("no ENI is made: {what}"));
    }
    plan.reasons.extend(snapshot.leaving().map(|leaving| leaving.to_string()));
}

/// Says which subnets are full, while addresses are missing.
pub(super) fn tell_full(plan: &mut Plan, snapshot: &Snapshot<'_>) {
    let full = snapshot.activity.full.values().filter(|block| block.until > snapshot.now);
    for block in full {
        plan.wait(block.until, block.reason.clone());
    }
}

/// Frees what is for pods no more: whole ENIs once no pod has an address of them, and the addresses of a primary ENI that gives
/// none. Whatever the targets say: they do not count these.
pub(super) fn retire(plan: &mut Plan, snapshot: &Snapshot<'_>) {
    let networking = &snapshot.settings.networking;
    let leaving = |eni: &&Eni| {
        let useless = eni.primary && eni.counts().free > 0;
        eni.in_use()
            && (networking.standing(eni) == Standing::Leaves || (useless && !snapshot.serves(eni)))
            && eni.counts().cooling + eni.counts().releasing == 0
            && (eni.primary || eni.counts().assigned == 0)
            && snapshot.idle(eni)
            && !plan.steps.iter().any(|step| step.slot() == eni.slot)
    };
    // Which pods' addresses are where is not known: shrinking says so.
    let leaving: Vec<_> = match snapshot.activity.unclaimed {
        0 => snapshot.ledger.enis().filter(leaving).collect(),
        _ => Vec::new(),
    };
    for eni in leaving {
        if let Some(block) = snapshot.blocked(Blocked::Shrink) {
            plan.wait(block.until, block.reason.clone());
            return;
        }
        if eni.primary { empty(plan, snapshot, eni) } else { free(plan, snapshot, eni) }
    }
}

/// Frees an ENI that no pod has an address of.
fn free(plan: &mut Plan, snapshot: &Snapshot<'_>, eni: &Eni) {
    let Some((facts, attachment)) = eni.facts.as_ref().zip(eni.attachment.clone()) else { return };
    if eni.free().any(|address| snapshot.quarantined(address)) {
        return;
    }
    let old_enough = eni.since.after(MIN_ENI_AGE);
    if old_enough > snapshot.now {
        plan.wait(old_enough, format!("{} leaves and is too young to be freed", facts.id));
        return;
    }
    plan.steps.push(Step::DetachEni { slot: eni.slot, attachment, draining: false });
}

/// Gives back what the primary ENI has for pods.
fn empty(plan: &mut Plan, snapshot: &Snapshot<'_>, eni: &Eni) {
    let addresses: Vec<_> = eni.free().filter(|address| !snapshot.quarantined(*address)).collect();
    let Some(facts) = eni.facts.as_ref().filter(|_| !addresses.is_empty()) else { return };
    plan.reasons.push(format!(
        "{} is the primary ENI, which gives no pod an address with custom networking: what is free of it goes back",
        facts.id
    ));
    let (slot, eni) = (eni.slot, facts.id.clone());
    plan.steps.push(Step::Unassign { slot, eni, addresses, announced: false });
}
