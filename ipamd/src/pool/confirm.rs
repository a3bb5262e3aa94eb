//! A ledger of which part was lost: it counts as whole again when two of EC2's answers, [`CONFIRM`] apart, leave nothing open.
//!
//! Invariant: until then every daemon that starts asks EC2 before it hands out or gives back an address. What the answers do not show
//! is known to this daemon only, and one that is killed takes that along.

use veni_core::ipam::{
    AddressState, BootTime, Record,
    plan::{Blocked, CONFIRM},
};

use super::Pool;
use crate::journal::Store;

impl<S: Store> Pool<S> {
    /// Part of what happened is lost.
    pub fn note_unconfirmed(&mut self) {
        if !self.ledger.unconfirmed() {
            self.note(vec![Record::Unconfirmed]);
        }
    }

    /// After an answer about all ENIs.
    pub(super) fn confirm(&mut self, now: BootTime) {
        self.surveyed_at = Some(now);
        self.activity.unheard = false;
        let first = *self.first_surveyed_at.get_or_insert(now);
        if self.ledger.unconfirmed() && now.since(first) >= CONFIRM && !self.leaves_open() {
            tracing::info!("EC2 agrees with the ledger again: a start serves from the journal");
            self.note(vec![Record::Confirmed]);
            // An older ipamd takes the records that it does not know for damage: they go.
            self.store.rewrite(&self.ledger);
        }
    }

    /// Part of the journal was lost, EC2 has not been heard of since, and does not answer.
    #[must_use]
    pub fn unheard(&self, now: BootTime) -> bool {
        self.activity.unheard && self.snapshot(now).blocked(Blocked::Survey).is_some()
    }

    /// What is gained is there, and what is gone is not missing: an entry that outlived its address would keep the next
    /// one of that number from being handed out.
    pub(super) fn settle_missing(&mut self, records: &[Record]) {
        for record in records {
            if let Record::Gained { addresses, .. } = record {
                self.activity.missing.retain(|address, _| !addresses.contains(address));
            }
        }
        self.activity.missing.retain(|address, _| self.ledger.address(*address).is_some());
    }

    /// When EC2 is to be asked again for that; not while something is open, which is asked for by itself.
    #[must_use]
    pub fn confirmation_due(&self) -> Option<BootTime> {
        let asked =
            self.surveyed_at.filter(|_| self.ledger.unconfirmed() && !self.leaves_open())?;
        Some(asked.after(CONFIRM))
    }

    /// Whether an answer has not shown what the ledger has, has shown it elsewhere, or was not the last word.
    fn leaves_open(&self) -> bool {
        let releasing = |address| {
            self.ledger.address(address).is_some_and(|(_, s, _)| *s == AddressState::Releasing)
        };
        !self.activity.missing.keys().all(|address| releasing(*address))
            || !self.absent.is_empty()
            || !self.activity.doubts.is_empty()
            || !self.activity.in_flight.is_empty()
            || !self.all_claimed()
    }
}
