//! Addresses that EC2 shows on another ENI than the ledger: a damaged journal has lost how they went from one to the
//! other.
//!
//! Invariants: one moves only when an answer shows it on the one ENI, and an answer does not show it on the other, or not
//! the other ENI at all; no ENI is given back as long as there is one, for it may carry a pod that the ledger has elsewhere.

use std::net::Ipv4Addr;

use veni_core::{
    ipam::{AddressState, Allocation, BootTime, Record, plan::CONFIRM},
    marks::EniSlot,
};
use veni_provider::Interface;

use super::Pool;
use crate::journal::Store;

impl<S: Store> Pool<S> {
    /// Looks for such addresses in an answer about the ENI in `slot`, and moves those that are certain.
    pub(super) fn find_strayed(&mut self, slot: EniSlot, interface: &Interface, now: BootTime) {
        let shown = &interface.secondary_addresses;
        // Whatever was thought of this ENI's addresses is told anew.
        self.strayed.retain(|address, to| *to != slot || shown.contains(address));
        for address in shown {
            let Some((from, _, gained)) = self.ledger.address(*address) else { continue };
            if from == slot {
                self.strayed.remove(address);
            } else if now.since(gained) >= CONFIRM && !self.returned(slot, *address, now) {
                let first = self.strayed.insert(*address, slot).is_none();
                if first && !self.activity.missing.contains_key(address) {
                    self.activity.doubts.insert(from);
                }
            }
        }
        self.move_strayed(now);
    }

    /// Moves those that the answer about the ENI where the ledger has them did not show.
    fn move_strayed(&mut self, now: BootTime) {
        let missing = |address: &Ipv4Addr| self.activity.missing.contains_key(address);
        let certain: Vec<_> = self
            .strayed
            .iter()
            .filter(|(address, _)| missing(address))
            .map(|(a, s)| (*a, *s))
            .collect();
        for (address, to) in certain {
            self.move_to(to, address, now);
        }
        self.count_unclaimed();
    }

    /// Moves those of an ENI that EC2 does not show at all.
    pub(super) fn move_strayed_from(&mut self, absent: EniSlot, now: BootTime) {
        let strayed = self.strayed.iter().map(|(address, to)| (*address, *to));
        let its = |address| self.ledger.address(address).is_some_and(|(slot, ..)| slot == absent);
        let certain: Vec<_> = strayed.filter(|(address, _)| its(*address)).collect();
        for (address, to) in certain {
            self.move_to(to, address, now);
        }
        self.count_unclaimed();
    }

    fn move_to(&mut self, to: EniSlot, address: Ipv4Addr, now: BootTime) {
        let Some((from, state, _)) = self.ledger.address(address) else {
            self.strayed.remove(&address);
            return;
        };
        let pod = match state {
            // It is free soon, and looked at again.
            AddressState::Cooling { .. } => return,
            AddressState::Assigned(attachment) => self.ledger.allocation(attachment).cloned(),
            AddressState::Free { .. } | AddressState::Releasing => None,
        };
        tracing::warn!(%address, from = from.get(), to = to.get(), "address is on another ENI than the journal says: moved");
        self.strayed.remove(&address);
        self.activity.missing.remove(&address);
        let addresses = vec![address];
        if let Some(pod) = &pod {
            let attachment = pod.attachment.clone();
            self.note(vec![
                Record::Released { attachment, at: now },
                Record::ThawedAlone { address },
            ]);
        }
        self.note(vec![
            Record::Unassigned { slot: from, addresses: addresses.clone(), at: now },
            Record::Gained { slot: to, addresses, at: now },
        ]);
        if let Some(pod) = pod {
            self.note(vec![Record::Assigned(Allocation { slot: to, ..pod })]);
            // Its packets have to leave by that ENI.
            self.took_over = true;
        }
    }

    /// Whether it is known of every pod's address on which ENI it is.
    pub(super) fn all_claimed(&self) -> bool {
        self.unclaimed.is_empty() && self.strayed.is_empty()
    }

    /// How many addresses there are of which it is not known on which ENI they are.
    pub(super) fn count_unclaimed(&mut self) {
        self.activity.unclaimed = self.unclaimed.len() + self.strayed.len();
    }
}
