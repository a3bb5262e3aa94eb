//! ENIs that a former daemon of this instance made and that are attached to nothing: they are deleted.
//!
//! Invariant: EC2 is asked until it has told, and what it told is kept until it has found a place to be deleted from.
//! What EC2 shows while an ENI is being made may be that one: it is not looked at then.

use veni_core::{
    ipam::{BootTime, Record, plan::Blocked},
    marks::EniSlot,
};
use veni_provider::{CloudError, Interface};

use super::{Pool, settle};
use crate::journal::Store;

impl<S: Store> Pool<S> {
    /// Begins to ask EC2 for what was left behind, out of the same budget as every call.
    ///
    /// # Errors
    /// When that must wait: until when; `None` until something has changed.
    pub fn begin_orphans(&mut self, now: BootTime) -> Result<(), Option<BootTime>> {
        if self.being_made() {
            return Err(None);
        }
        match self.snapshot(now).blocked(Blocked::Orphans) {
            Some(block) => Err(Some(block.until)),
            None => self.budget.take(now).map_err(Some),
        }
    }

    /// What EC2 told of them. `Err`: it is asked again, after a wait that follows from the error's class.
    pub fn settle_orphans(&mut self, answer: Result<Vec<Interface>, CloudError>, now: BootTime) {
        match answer {
            Ok(_) if self.being_made() => self.orphans_wanted = true,
            Ok(orphans) => {
                self.orphans_wanted = false;
                self.unblock(Blocked::Orphans);
                self.orphans = orphans;
                self.place_orphans(now);
            }
            Err(error) => {
                tracing::warn!(%error, "left-over ENIs not looked for yet");
                self.orphans_wanted = true;
                let retry = error.retry_after();
                let (kind, base, reason) =
                    settle::unanswered("ENIs that were left behind not listed", &error);
                self.block(Blocked::Orphans, kind, now, retry.unwrap_or(base), reason);
            }
        }
    }

    /// Gives those that are known a place, as far as there are any.
    pub(super) fn place_orphans(&mut self, now: BootTime) {
        for orphan in std::mem::take(&mut self.orphans) {
            let known =
                self.ledger.enis().any(|eni| eni.facts.as_ref().is_some_and(|f| f.id == orphan.id));
            if known {
                continue;
            }
            let free = (0..self.limits.device_indexes)
                .rev()
                .filter_map(|index| EniSlot::new(0, index))
                .find(|slot| {
                    self.ledger.eni(*slot).is_none() && !self.activity.foreign.contains(slot)
                });
            match free {
                Some(slot) => self.place_orphan(slot, &orphan, now),
                None => self.orphans.push(orphan),
            }
        }
    }

    fn place_orphan(&mut self, slot: EniSlot, orphan: &Interface, now: BootTime) {
        tracing::info!(eni = %orphan.id, "left-over ENI found, it will be deleted");
        let record = Record::EniAdopted {
            slot,
            primary: false,
            eni: self.facts(orphan),
            addresses: Vec::new(),
            attachment: None,
            protected: false,
            at: now,
        };
        self.note(vec![record]);
    }

    /// Whether there is an ENI of which the ledger does not know yet what it is.
    fn being_made(&self) -> bool {
        self.ledger.enis().any(|eni| eni.facts.is_none())
    }
}
