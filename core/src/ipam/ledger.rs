//! The ledger: a fold of [`Record`]s.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use super::{Allocation, BootTime, EniFacts, Record, placement::EniPlace};
use crate::{id::AttachmentId, marks::EniSlot, wire::Attachment};

/// The first interface index that ipamd chooses: far above what the kernel counts up to by itself.
pub const FIRST_HOST_IFINDEX: u32 = 0x0010_0000;
/// How long a stale cloud answer may show an address that was given back.
pub const TOMBSTONE: Duration = Duration::from_secs(120);

/// Who has which address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    enis: BTreeMap<EniSlot, Eni>,
    addresses: BTreeMap<Ipv4Addr, AddressEntry>,
    allocations: BTreeMap<Attachment, Allocation>,
    cooling: BTreeSet<(BootTime, Ipv4Addr)>,
    /// What was given back, of which ENI and when.
    tombstones: BTreeMap<Ipv4Addr, (EniSlot, BootTime)>,
    last_ifindex: u32,
    unconfirmed: bool,
}

/// An ENI in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eni {
    /// Its place.
    pub slot: EniSlot,
    /// Whether it is the instance's first.
    pub primary: bool,
    /// Where it is in its life.
    pub phase: Phase,
    /// What it is, once it exists.
    pub facts: Option<EniFacts>,
    /// Its attachment, once it has one.
    pub attachment: Option<AttachmentId>,
    /// Whether it goes when the instance goes.
    pub protected: bool,
    /// Since when it is in this phase.
    pub since: BootTime,
    /// Addresses that can be handed out, least recently used first.
    free: BTreeSet<(BootTime, Ipv4Addr)>,
    counts: Counts,
}

/// An ENI's life. The order is the order of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It is being created.
    Creating {
        /// The idempotency token.
        token: String,
        /// Secondary addresses that it will come with.
        addresses: u32,
        /// Where; `None`: where the primary ENI is.
        place: Option<EniPlace>,
    },
    /// It exists, unattached.
    Created,
    /// EC2 attaches it, or its link is not on the node yet.
    Attaching,
    /// Its addresses can be used.
    InUse,
    /// It will be detached.
    Draining,
    /// EC2 detaches it.
    Detaching,
    /// It is detached and will be deleted.
    Detached,
}

/// An address's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressState {
    /// It can be handed out once its ENI is in use.
    Free {
        /// When a pod last had it, or when it came.
        last_used: BootTime,
    },
    /// A pod has it.
    Assigned(Attachment),
    /// A pod had it until `since`.
    Cooling {
        /// When it was released.
        since: BootTime,
    },
    /// It goes back to the cloud.
    Releasing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct AddressEntry {
    slot: EniSlot,
    gained: BootTime,
    state: AddressState,
}

/// How many addresses are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Can be handed out (once the ENI is in use).
    pub free: u32,
    /// On pods.
    pub assigned: u32,
    /// Released, not to be reused yet.
    pub cooling: u32,
    /// On their way back to the cloud.
    pub releasing: u32,
}

/// A record that does not fit the ledger: the journal is damaged, or there is a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// An ENI is not there, or not in the phase that the record needs.
    #[error("record {record} does not fit the ENI in slot {slot}")]
    Eni {
        /// The record's kind.
        record: &'static str,
        /// The slot.
        slot: u8,
    },
    /// An address is not there, or not in the state that the record needs.
    #[error("record {record} does not fit address {address}")]
    Address {
        /// The record's kind.
        record: &'static str,
        /// The address.
        address: Ipv4Addr,
    },
    /// An attachment has an address already, or has none.
    #[error("record {record} does not fit the attachment of container {container}")]
    Attachment {
        /// The record's kind.
        record: &'static str,
        /// The container.
        container: String,
    },
}

// === impl Counts ===

impl Counts {
    /// All that the ENI or pool holds, those on their way back included.
    #[must_use]
    pub fn held(self) -> u32 {
        self.free + self.assigned + self.cooling + self.releasing
    }

    /// All that the targets count: those on their way back are gone already.
    #[must_use]
    pub fn total(self) -> u32 {
        self.free + self.assigned + self.cooling
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.free += other.free;
        self.assigned += other.assigned;
        self.cooling += other.cooling;
        self.releasing += other.releasing;
    }
}

// === impl Eni ===

impl Eni {
    fn new(slot: EniSlot, phase: Phase, at: BootTime) -> Self {
        Self {
            slot,
            primary: false,
            phase,
            facts: None,
            attachment: None,
            protected: false,
            since: at,
            free: BTreeSet::new(),
            counts: Counts::default(),
        }
    }

    /// How many addresses are in which state.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether its addresses can be handed out.
    #[must_use]
    pub fn in_use(&self) -> bool {
        self.phase == Phase::InUse
    }

    /// Whether it is on its way in: its addresses will be there soon.
    #[must_use]
    pub fn arriving(&self) -> bool {
        matches!(self.phase, Phase::Creating { .. } | Phase::Created | Phase::Attaching)
    }

    /// Secondary addresses that it will have once it is in use.
    #[must_use]
    pub fn promised(&self) -> u32 {
        match self.phase {
            Phase::Creating { addresses, .. } => addresses,
            Phase::Created | Phase::Attaching => self.counts.free,
            _ => 0,
        }
    }

    /// Its free addresses, least recently used first.
    pub fn free(&self) -> impl DoubleEndedIterator<Item = Ipv4Addr> + '_ {
        self.free.iter().map(|(_, address)| *address)
    }

    fn enter(&mut self, phase: Phase, at: BootTime) {
        self.phase = phase;
        self.since = at;
    }
}

// === impl Ledger ===

impl Ledger {
    /// The ENIs by place.
    pub fn enis(&self) -> impl Iterator<Item = &Eni> {
        self.enis.values()
    }

    /// The ENI in `slot`.
    #[must_use]
    pub fn eni(&self, slot: EniSlot) -> Option<&Eni> {
        self.enis.get(&slot)
    }

    /// The allocation of `attachment`.
    #[must_use]
    pub fn allocation(&self, attachment: &Attachment) -> Option<&Allocation> {
        self.allocations.get(attachment)
    }

    /// All allocations, by attachment: whoever goes through them does so in the same order each time.
    pub fn allocations(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.values()
    }

    /// All addresses with their ENI's slot and state, in their order.
    pub fn addresses(&self) -> impl Iterator<Item = (Ipv4Addr, EniSlot, &AddressState)> {
        self.addresses.iter().map(|(address, entry)| (*address, entry.slot, &entry.state))
    }

    /// An address's ENI, state and the time it came.
    #[must_use]
    pub fn address(&self, address: Ipv4Addr) -> Option<(EniSlot, &AddressState, BootTime)> {
        self.addresses.get(&address).map(|e| (e.slot, &e.state, e.gained))
    }

    /// Sums over all ENIs.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for eni in self.enis.values() {
            sum += eni.counts;
        }
        sum
    }

    /// Addresses that can be handed out now.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.enis.values().filter(|e| e.in_use()).map(|e| e.counts.free).sum()
    }

    /// The address that the next pod gets: of the first ENI that has one (so that later ENIs empty and can be
    /// freed), the least recently used.
    #[must_use]
    pub fn pick(&self) -> Option<(EniSlot, Ipv4Addr)> {
        self.pick_among(|_, _| true)
    }

    /// As [`Ledger::pick`], among addresses that are `usable`.
    pub fn pick_among(
        &self,
        usable: impl Fn(EniSlot, Ipv4Addr) -> bool,
    ) -> Option<(EniSlot, Ipv4Addr)> {
        let in_use = self.enis.values().filter(|e| e.in_use());
        in_use.flat_map(|e| e.free().map(|a| (e.slot, a))).find(|(slot, a)| usable(*slot, *a))
    }

    /// The interface index of the next host veth.
    #[must_use]
    pub fn next_ifindex(&self) -> u32 {
        match self.last_ifindex {
            0 | 0x7fff_fff0.. => FIRST_HOST_IFINDEX,
            last => last + 1,
        }
    }

    /// Whether a cloud answer that shows `address` on the ENI in `slot` may be stale: that ENI gave it back a short
    /// while ago. On another ENI it is new: a stale answer shows an address where it was.
    #[must_use]
    pub fn entombed(&self, slot: EniSlot, address: Ipv4Addr, now: BootTime) -> bool {
        self.tombstones
            .get(&address)
            .is_some_and(|(of, at)| *of == slot && now.since(*at) < TOMBSTONE)
    }

    /// The record that ends the cooldowns which are over at `now`; `None` when none is.
    #[must_use]
    pub fn thaw(&self, now: BootTime, cooldown: Duration) -> Option<Record> {
        let over = |since: BootTime| since.after(cooldown) <= now;
        let last =
            self.cooling.iter().map(|(since, _)| *since).take_while(|since| over(*since)).last();
        last.map(|released_until| Record::Thawed { released_until })
    }

    /// When the next cooldown ends.
    #[must_use]
    pub fn next_thaw(&self, cooldown: Duration) -> Option<BootTime> {
        self.cooling.first().map(|(since, _)| since.after(cooldown))
    }

    /// Whether part of the journal was lost and EC2's answers have not shown yet that all is there again.
    #[must_use]
    pub fn unconfirmed(&self) -> bool {
        self.unconfirmed
    }

    /// Applies one record.
    ///
    /// # Errors
    /// When the record does not fit; the ledger is unchanged then.
    pub fn apply(&mut self, record: &Record) -> Result<(), LedgerError> {
        match record {
            Record::Assigned(allocation) => self.assigned(allocation),
            Record::Released { attachment, at } => self.released(attachment, *at),
            Record::Thawed { released_until } => {
                self.thawed(*released_until);
                Ok(())
            }
            Record::ThawedAlone { address } => self.thawed_alone(*address),
            Record::IfindexUsed { last } => {
                self.last_ifindex = self.last_ifindex.max(*last);
                Ok(())
            }
            Record::Unconfirmed | Record::Confirmed => {
                self.unconfirmed = *record == Record::Unconfirmed;
                Ok(())
            }
            Record::Gained { slot, addresses, at } => self.gained(*slot, addresses, *at),
            Record::Unassigning { slot, addresses, .. } => self.unassigning(*slot, addresses),
            Record::Unassigned { slot, addresses, at } => self.unassigned(*slot, addresses, *at),
            Record::UnassignRefused { slot, addresses, at } => {
                self.unassign_refused(*slot, addresses, *at)
            }
            _ => self.apply_eni(record),
        }
    }

    /// The records that make this ledger again, for the journal's snapshot.
    #[must_use]
    pub fn to_records(&self) -> Vec<Record> {
        let mut records = vec![Record::IfindexUsed { last: self.last_ifindex }];
        records.extend(self.unconfirmed.then_some(Record::Unconfirmed));
        for eni in self.enis.values() {
            self.eni_records(eni, &mut records);
        }
        let mut allocations: Vec<_> = self.allocations.values().collect();
        allocations.sort_by_key(|a| (a.at, a.host_ifindex));
        records.extend(allocations.into_iter().cloned().map(Record::Assigned));
        records.extend(self.leftover_records());
        records
    }

    fn assigned(&mut self, allocation: &Allocation) -> Result<(), LedgerError> {
        const RECORD: &str = "assigned";
        let address = allocation.address;
        if self.allocations.contains_key(&allocation.attachment) {
            return Err(self.attachment_error(RECORD, &allocation.attachment));
        }
        let misfit = LedgerError::Address { record: RECORD, address };
        let entry = self.addresses.get_mut(&address).ok_or_else(|| misfit.clone())?;
        let AddressState::Free { last_used } = entry.state else {
            return Err(misfit);
        };
        if entry.slot != allocation.slot {
            return Err(misfit);
        }
        let eni = self.enis.get_mut(&entry.slot).ok_or(misfit)?;
        eni.free.remove(&(last_used, address));
        eni.counts.free -= 1;
        eni.counts.assigned += 1;
        entry.state = AddressState::Assigned(allocation.attachment.clone());
        self.last_ifindex = self.last_ifindex.max(allocation.host_ifindex);
        self.allocations.insert(allocation.attachment.clone(), allocation.clone());
        Ok(())
    }

    fn released(&mut self, attachment: &Attachment, at: BootTime) -> Result<(), LedgerError> {
        let Some(allocation) = self.allocations.remove(attachment) else {
            return Err(self.attachment_error("released", attachment));
        };
        let address = allocation.address;
        let entry =
            self.addresses.get_mut(&address).expect("an allocation's address is in the ledger");
        let eni = self.enis.get_mut(&entry.slot).expect("an address's ENI is in the ledger");
        entry.state = AddressState::Cooling { since: at };
        self.cooling.insert((at, address));
        eni.counts.assigned -= 1;
        eni.counts.cooling += 1;
        Ok(())
    }

    fn thawed(&mut self, released_until: BootTime) {
        while let Some((since, address)) = self.cooling.first().copied() {
            if since > released_until {
                break;
            }
            self.warm_up(since, address);
        }
        self.tombstones.retain(|_, (_, at)| released_until.since(*at) < TOMBSTONE);
    }

    fn thawed_alone(&mut self, address: Ipv4Addr) -> Result<(), LedgerError> {
        let Some(AddressState::Cooling { since }) = self.addresses.get(&address).map(|e| &e.state)
        else {
            return Err(LedgerError::Address { record: "thawed", address });
        };
        self.warm_up(*since, address);
        Ok(())
    }

    fn warm_up(&mut self, since: BootTime, address: Ipv4Addr) {
        self.cooling.remove(&(since, address));
        let entry = self.addresses.get_mut(&address).expect("a cooling address is in the ledger");
        let eni = self.enis.get_mut(&entry.slot).expect("an address's ENI is in the ledger");
        entry.state = AddressState::Free { last_used: since };
        eni.free.insert((since, address));
        eni.counts.cooling -= 1;
        eni.counts.free += 1;
    }

    fn gained(
        &mut self,
        slot: EniSlot,
        addresses: &[Ipv4Addr],
        at: BootTime,
    ) -> Result<(), LedgerError> {
        if let Some(known) = addresses.iter().find(|a| self.addresses.contains_key(*a)) {
            return Err(LedgerError::Address { record: "gained", address: *known });
        }
        // An ENI that does not exist yet has no addresses: its creation is missing in a damaged journal.
        let eni = self.enis.get_mut(&slot).filter(|eni| eni.facts.is_some());
        let eni = eni.ok_or(LedgerError::Eni { record: "gained", slot: slot.get() })?;
        for address in addresses {
            let state = AddressState::Free { last_used: at };
            self.addresses.insert(*address, AddressEntry { slot, gained: at, state });
            self.tombstones.remove(address);
            eni.free.insert((at, *address));
            eni.counts.free += 1;
        }
        Ok(())
    }

    fn unassigning(&mut self, slot: EniSlot, addresses: &[Ipv4Addr]) -> Result<(), LedgerError> {
        const RECORD: &str = "unassigning";
        self.all_on(slot, addresses, RECORD, |s| matches!(s, AddressState::Free { .. }))?;
        let eni = self
            .enis
            .get_mut(&slot)
            .ok_or(LedgerError::Eni { record: RECORD, slot: slot.get() })?;
        for address in addresses {
            let entry = self.addresses.get_mut(address).expect("checked above");
            if let AddressState::Free { last_used } = entry.state {
                eni.free.remove(&(last_used, *address));
                eni.counts.free -= 1;
                eni.counts.releasing += 1;
                entry.state = AddressState::Releasing;
            }
        }
        Ok(())
    }

    fn unassigned(
        &mut self,
        slot: EniSlot,
        addresses: &[Ipv4Addr],
        at: BootTime,
    ) -> Result<(), LedgerError> {
        const RECORD: &str = "unassigned";
        self.all_on(slot, addresses, RECORD, |s| {
            matches!(s, AddressState::Free { .. } | AddressState::Releasing)
        })?;
        for address in addresses {
            self.forget(*address, at);
        }
        Ok(())
    }

    fn unassign_refused(
        &mut self,
        slot: EniSlot,
        addresses: &[Ipv4Addr],
        at: BootTime,
    ) -> Result<(), LedgerError> {
        const RECORD: &str = "unassign_refused";
        self.all_on(slot, addresses, RECORD, |s| *s == AddressState::Releasing)?;
        let eni = self
            .enis
            .get_mut(&slot)
            .ok_or(LedgerError::Eni { record: RECORD, slot: slot.get() })?;
        for address in addresses {
            let entry = self.addresses.get_mut(address).expect("checked above");
            entry.state = AddressState::Free { last_used: at };
            eni.free.insert((at, *address));
            eni.counts.releasing -= 1;
            eni.counts.free += 1;
        }
        Ok(())
    }

    fn all_on(
        &self,
        slot: EniSlot,
        addresses: &[Ipv4Addr],
        record: &'static str,
        fits: impl Fn(&AddressState) -> bool,
    ) -> Result<(), LedgerError> {
        for address in addresses {
            let entry = self.addresses.get(address).filter(|e| e.slot == slot && fits(&e.state));
            entry.ok_or(LedgerError::Address { record, address: *address })?;
        }
        Ok(())
    }

    /// Removes an address that no pod has.
    fn forget(&mut self, address: Ipv4Addr, at: BootTime) {
        let Some(entry) = self.addresses.remove(&address) else {
            return;
        };
        self.tombstones.insert(address, (entry.slot, at));
        let Some(eni) = self.enis.get_mut(&entry.slot) else {
            return;
        };
        match entry.state {
            AddressState::Free { last_used } => {
                eni.free.remove(&(last_used, address));
                eni.counts.free -= 1;
            }
            AddressState::Cooling { since } => {
                self.cooling.remove(&(since, address));
                eni.counts.cooling -= 1;
            }
            AddressState::Releasing => eni.counts.releasing -= 1,
            AddressState::Assigned(_) => eni.counts.assigned -= 1,
        }
    }

    #[expect(clippy::unused_self, reason = "reads as a method beside its siblings")]
    fn attachment_error(&self, record: &'static str, attachment: &Attachment) -> LedgerError {
        LedgerError::Attachment { record, container: attachment.container_id.to_string() }
    }
}

mod life;

#[cfg(test)]
mod tests;
