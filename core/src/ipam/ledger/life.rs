//! ENI records: the part of the fold that moves an ENI through its life, and its reverse for snapshots.

use std::net::Ipv4Addr;

use super::{AddressState, Eni, Ledger, LedgerError, Phase};
use crate::{
    ipam::{BootTime, EniFacts, Record},
    marks::EniSlot,
};

impl Ledger {
    pub(super) fn apply_eni(&mut self, record: &Record) -> Result<(), LedgerError> {
        match record {
            Record::EniPlanned { slot, token, addresses, place, at } => {
                let (token, place) = (token.clone(), place.clone());
                let phase = Phase::Creating { token, addresses: *addresses, place };
                self.insert_eni("eni_planned", Eni::new(*slot, phase, *at))
            }
            Record::EniCreated { slot, eni, addresses, at } => {
                self.eni_created(*slot, eni, addresses, *at)
            }
            Record::EniAttaching { slot, attachment, at } => {
                // One that was thought to be detached is attached after all.
                let fits = |p: &Phase| matches!(p, Phase::Created | Phase::Detached);
                let eni = self.in_phase("eni_attaching", *slot, fits)?;
                // `DeleteOnTermination` is the attachment's, not the ENI's.
                eni.protected &= eni.attachment.as_ref() == Some(attachment);
                eni.attachment = Some(attachment.clone());
                eni.enter(Phase::Attaching, *at);
                Ok(())
            }
            Record::EniReady { slot, at } => {
                self.in_phase("eni_ready", *slot, |p| *p == Phase::Attaching)?
                    .enter(Phase::InUse, *at);
                Ok(())
            }
            Record::EniProtected { slot } => {
                self.in_phase("eni_protected", *slot, |_| true)?.protected = true;
                Ok(())
            }
            Record::EniAdopted { .. } => self.eni_adopted(record),
            Record::EniDraining { slot, at } => self.eni_draining(*slot, *at),
            Record::EniDetaching { slot, at } => {
                self.in_phase("eni_detaching", *slot, |p| *p == Phase::Draining)?
                    .enter(Phase::Detaching, *at);
                Ok(())
            }
            Record::EniDetached { slot, at } => {
                let fits =
                    |p: &Phase| matches!(p, Phase::Draining | Phase::Detaching | Phase::Created);
                self.in_phase("eni_detached", *slot, fits)?.enter(Phase::Detached, *at);
                Ok(())
            }
            Record::EniGone { slot, at } => self.eni_gone(*slot, *at),
            _ => unreachable!("address records are applied elsewhere"),
        }
    }

    fn insert_eni(&mut self, record: &'static str, eni: Eni) -> Result<(), LedgerError> {
        if self.enis.contains_key(&eni.slot) {
            return Err(LedgerError::Eni { record, slot: eni.slot.get() });
        }
        self.enis.insert(eni.slot, eni);
        Ok(())
    }

    fn in_phase(
        &mut self,
        record: &'static str,
        slot: EniSlot,
        fits: impl Fn(&Phase) -> bool,
    ) -> Result<&mut Eni, LedgerError> {
        let eni = self.enis.get_mut(&slot).filter(|eni| fits(&eni.phase));
        eni.ok_or(LedgerError::Eni { record, slot: slot.get() })
    }

    fn eni_created(
        &mut self,
        slot: EniSlot,
        facts: &EniFacts,
        addresses: &[Ipv4Addr],
        at: BootTime,
    ) -> Result<(), LedgerError> {
        if let Some(known) = addresses.iter().find(|a| self.addresses.contains_key(*a)) {
            return Err(LedgerError::Address { record: "eni_created", address: *known });
        }
        let eni = self.in_phase("eni_created", slot, |p| matches!(p, Phase::Creating { .. }))?;
        eni.facts = Some(facts.clone());
        eni.enter(Phase::Created, at);
        self.gained(slot, addresses, at)
    }

    fn eni_adopted(&mut self, record: &Record) -> Result<(), LedgerError> {
        let Record::EniAdopted { slot, primary, eni: facts, addresses, attachment, protected, at } =
            record
        else {
            unreachable!("called for this record only")
        };
        if let Some(known) = addresses.iter().find(|a| self.addresses.contains_key(*a)) {
            return Err(LedgerError::Address { record: "eni_adopted", address: *known });
        }
        let phase = if *primary {
            Phase::InUse
        } else if attachment.is_some() {
            Phase::Attaching
        } else {
            Phase::Detached
        };
        let mut eni = Eni::new(*slot, phase, *at);
        eni.primary = *primary;
        eni.facts = Some(facts.clone());
        eni.attachment.clone_from(attachment);
        eni.protected = *protected || *primary;
        self.insert_eni("eni_adopted", eni)?;
        self.gained(*slot, addresses, *at)
    }

    fn eni_draining(&mut self, slot: EniSlot, at: BootTime) -> Result<(), LedgerError> {
        let misfit = LedgerError::Eni { record: "eni_draining", slot: slot.get() };
        let eni =
            self.in_phase("eni_draining", slot, |p| matches!(p, Phase::InUse | Phase::Attaching))?;
        if eni.primary || eni.counts.assigned + eni.counts.cooling > 0 {
            return Err(misfit);
        }
        eni.enter(Phase::Draining, at);
        Ok(())
    }

    /// Pods that still hold addresses of an ENI that has vanished keep them in the ledger: only evidence of their
    /// own end removes them, so such an ENI cannot be recorded as gone.
    fn eni_gone(&mut self, slot: EniSlot, at: BootTime) -> Result<(), LedgerError> {
        let misfit = LedgerError::Eni { record: "eni_gone", slot: slot.get() };
        let eni = self.in_phase("eni_gone", slot, |_| true)?;
        if eni.primary || eni.counts.assigned > 0 {
            return Err(misfit);
        }
        let addresses: Vec<_> = self
            .addresses
            .iter()
            .filter(|(_, e)| e.slot == slot)
            .map(|(address, _)| *address)
            .collect();
        for address in addresses {
            self.forget(address, at);
        }
        self.enis.remove(&slot);
        Ok(())
    }

    /// An ENI as the records that lead to its phase, its addresses free.
    pub(super) fn eni_records(&self, eni: &Eni, records: &mut Vec<Record>) {
        let (slot, at) = (eni.slot, eni.since);
        if let Phase::Creating { token, addresses, place } = &eni.phase {
            let (token, place) = (token.clone(), place.clone());
            records.push(Record::EniPlanned { slot, token, addresses: *addresses, place, at });
            return;
        }
        let facts = eni.facts.clone().expect("an ENI past creation has facts");
        let unattached = matches!(eni.phase, Phase::Created);
        if unattached {
            let (token, place) = (String::new(), None);
            records.push(Record::EniPlanned { slot, token, addresses: 0, place, at });
            records.push(Record::EniCreated { slot, eni: facts, addresses: Vec::new(), at });
        } else {
            records.push(Record::EniAdopted {
                slot,
                primary: eni.primary,
                eni: facts,
                addresses: Vec::new(),
                attachment: eni.attachment.clone(),
                protected: eni.protected,
                at,
            });
        }
        records.extend(self.free_at(slot));
        match eni.phase {
            Phase::InUse if !eni.primary => records.push(Record::EniReady { slot, at }),
            Phase::Draining => records.push(Record::EniDraining { slot, at }),
            Phase::Detaching => {
                records
                    .extend([Record::EniDraining { slot, at }, Record::EniDetaching { slot, at }]);
            }
            Phase::Detached if eni.attachment.is_some() => {
                records
                    .extend([Record::EniDraining { slot, at }, Record::EniDetached { slot, at }]);
            }
            _ => {}
        }
    }

    /// A slot's addresses, grouped by the time at which each was last used or came, as gains.
    fn free_at(&self, slot: EniSlot) -> Vec<Record> {
        let mut gains: std::collections::BTreeMap<BootTime, Vec<Ipv4Addr>> =
            std::collections::BTreeMap::new();
        for (address, entry) in self.addresses.iter().filter(|(_, e)| e.slot == slot) {
            let at = match entry.state {
                AddressState::Free { last_used } => last_used,
                _ => entry.gained,
            };
            gains.entry(at).or_default().push(*address);
        }
        gains
            .into_iter()
            .map(|(at, mut addresses)| {
                addresses.sort_unstable();
                Record::Gained { slot, addresses, at }
            })
            .collect()
    }

    /// What is neither an ENI, nor free, nor allocated: cooling, releasing, tombstones.
    pub(super) fn leftover_records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        let mut sorted: Vec<_> = self.addresses.iter().collect();
        sorted.sort_by_key(|(address, _)| **address);
        for (address, entry) in sorted {
            match &entry.state {
                AddressState::Cooling { since } => {
                    records.extend(cooling_records(*address, entry.slot, *since))
                }
                AddressState::Releasing => records.push(Record::Unassigning {
                    slot: entry.slot,
                    addresses: vec![*address],
                    at: entry.gained,
                }),
                _ => {}
            }
        }
        let known = |slot: &EniSlot| self.enis.get(slot).is_some_and(|eni| eni.facts.is_some());
        let mut tombstones: Vec<_> = self.tombstones.iter().collect();
        tombstones.sort();
        for (address, (of, at)) in tombstones {
            // Of an ENI that has gone: another one has to stand for it, which is at most too careful.
            let Some(slot) =
                Some(*of).filter(known).or_else(|| self.enis.keys().copied().find(known))
            else {
                continue;
            };
            let addresses = vec![*address];
            records.push(Record::Gained { slot, addresses: addresses.clone(), at: *at });
            records.push(Record::Unassigned { slot, addresses, at: *at });
        }
        records
    }
}

/// A cooling address is one that a placeholder attachment had and released.
fn cooling_records(address: Ipv4Addr, slot: EniSlot, since: BootTime) -> [Record; 2] {
    let attachment = crate::wire::Attachment {
        network: "snapshot".parse().expect("a valid name"),
        container_id: format!("cooling-{address}").parse().expect("a valid id"),
        ifname: "eth0".parse().expect("a valid name"),
    };
    let allocation = crate::ipam::Allocation {
        attachment: attachment.clone(),
        pod: crate::wire::PodRef::default(),
        netns: std::path::PathBuf::new(),
        address,
        slot,
        host_ifname: "none".parse().expect("a valid name"),
        host_ifindex: 0,
        at: since,
    };
    [Record::Assigned(allocation), Record::Released { attachment, at: since }]
}
