//! An ENI's life: the step that moves it on, and what is seen to while it is in use.

use std::collections::BTreeSet;

use super::{Blocked, DETACH_SETTLE, Networking, Plan, Snapshot, Step, TRANSITION_PATIENCE};
use crate::{
    id::EniId,
    ipam::{AddressState, Eni, Phase},
};

impl Plan {
    /// Moves every ENI on that is between two phases, and settles doubts.
    pub(super) fn lifecycle(&mut self, snapshot: &Snapshot<'_>) {
        for eni in snapshot.ledger.enis() {
            if snapshot.activity.in_flight.contains_key(&eni.slot) {
                continue;
            }
            if let Some(step) = self.late(snapshot, eni) {
                self.steps.push(step);
                continue;
            }
            if let Some(block) = snapshot.blocked(Blocked::Slot(eni.slot)) {
                self.wait(block.until, block.reason.clone());
                continue;
            }
            if let Some(step) = self.next_step(snapshot, eni) {
                self.steps.push(step);
            }
        }
    }

    fn next_step(&mut self, snapshot: &Snapshot<'_>, eni: &Eni) -> Option<Step> {
        let slot = eni.slot;
        if let Phase::Creating { token, addresses, place } = &eni.phase {
            let (token, addresses) = (token.clone(), *addresses);
            let primary = || snapshot.settings.networking.primary.clone();
            let place = place.clone().unwrap_or_else(primary);
            return self.unless_blocked(snapshot, Blocked::NewEni).then_some(Step::CreateEni {
                slot,
                token,
                addresses,
                place,
                planned: true,
            });
        }
        let id = eni.facts.as_ref()?.id.clone();
        if snapshot.activity.doubts.contains(&slot) {
            self.reasons
                .push(format!("{id}: the outcome of a call is unknown, EC2 is asked first"));
            return Some(Step::Observe { slot, eni: id });
        }
        let attachment = eni.attachment.clone();
        match eni.phase {
            Phase::Created => Some(Step::AttachEni { slot, eni: id }),
            // As early as EC2 takes it: what ends the instance while its link is awaited must not leave the ENI behind.
            Phase::Attaching => self
                .protect(snapshot, eni, &id)
                .or_else(|| self.await_transition(snapshot, eni, id, "attached")),
            Phase::InUse => self.tend(snapshot, eni, id),
            Phase::Draining if eni.counts().assigned > 0 => {
                self.reasons.push(format!("{id} is not detached: pods have its addresses"));
                None
            }
            Phase::Draining => {
                attachment.map(|attachment| Step::DetachEni { slot, attachment, draining: true })
            }
            Phase::Detaching => self.await_transition(snapshot, eni, id, "detached"),
            Phase::Detached => self.delete(snapshot, eni, id),
            Phase::Creating { .. } => None,
        }
    }

    fn unless_blocked(&mut self, snapshot: &Snapshot<'_>, what: Blocked) -> bool {
        match snapshot.blocked(what) {
            Some(block) => {
                self.wait(block.until, block.reason.clone());
                false
            }
            None => true,
        }
    }

    fn await_transition(
        &mut self,
        snapshot: &Snapshot<'_>,
        eni: &Eni,
        id: EniId,
        what: &str,
    ) -> Option<Step> {
        let patience = eni.since.after(TRANSITION_PATIENCE);
        if patience <= snapshot.now {
            self.reasons
                .push(format!("{id}: not {what} after {TRANSITION_PATIENCE:?}, EC2 is asked"));
            return Some(Step::Observe { slot: eni.slot, eni: id });
        }
        self.wait(patience, format!("{id} is being {what}"));
        None
    }

    fn delete(&mut self, snapshot: &Snapshot<'_>, eni: &Eni, id: EniId) -> Option<Step> {
        let settled = eni.since.after(DETACH_SETTLE);
        if eni.attachment.is_some() && settled > snapshot.now {
            self.wait(settled, format!("{id} is being detached"));
            return None;
        }
        Some(Step::DeleteEni { slot: eni.slot, eni: id })
    }

    /// An ENI in use: finishes an announced return of addresses, then protects it from outliving the instance, then sees to its
    /// security groups.
    fn tend(&mut self, snapshot: &Snapshot<'_>, eni: &Eni, id: EniId) -> Option<Step> {
        let slot = eni.slot;
        if eni.counts().releasing > 0 && snapshot.blocked(Blocked::Shrink).is_none() {
            let mut addresses: Vec<_> = snapshot
                .ledger
                .addresses()
                .filter(|(_, s, state)| *s == slot && **state == AddressState::Releasing)
                .map(|(address, ..)| address)
                .filter(|address| !snapshot.quarantined(*address))
                .collect();
            addresses.sort_unstable();
            if !addresses.is_empty() {
                return Some(Step::Unassign { slot, eni: id, addresses, announced: true });
            }
        }
        self.protect(snapshot, eni, &id).or_else(|| self.set_groups(snapshot, eni, &id))
    }

    /// Lets an attached ENI go when the instance goes.
    fn protect(&mut self, snapshot: &Snapshot<'_>, eni: &Eni, id: &EniId) -> Option<Step> {
        let attachment = eni.attachment.clone().filter(|_| !eni.protected)?;
        let free = self.unless_blocked(snapshot, Blocked::Protect);
        free.then(|| Step::ProtectEni { slot: eni.slot, eni: id.clone(), attachment })
    }

    /// Gives an ENI the primary's security groups where EC2 shows others. With custom networking it keeps those that it was made
    /// with (ADR 0017). Only where EC2 shows for the primary what instance metadata tells of it: somebody who changes the groups of
    /// all ENIs would have theirs taken back on the word of the one that is behind.
    fn set_groups(&mut self, snapshot: &Snapshot<'_>, eni: &Eni, id: &EniId) -> Option<Step> {
        let Networking { primary, custom: None } = &snapshot.settings.networking else {
            return None;
        };
        let groups = &snapshot.activity.groups;
        let told: BTreeSet<_> = primary.security_groups.iter().collect();
        let of_primary = snapshot.ledger.enis().find(|eni| eni.primary)?.facts.as_ref()?;
        let agreed = !told.is_empty() && groups.get(&of_primary.id)?.iter().eq(told);
        let differ = groups.get(id)? != groups.get(&of_primary.id)?;
        let due = agreed && differ && !eni.primary && snapshot.serves(eni);
        (due && self.unless_blocked(snapshot, Blocked::Groups)).then(|| Step::SetGroups {
            slot: eni.slot,
            eni: id.clone(),
            groups: primary.security_groups.clone(),
        })
    }
}
