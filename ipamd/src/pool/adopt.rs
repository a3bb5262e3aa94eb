//! The ledger against what EC2, instance metadata and the kernel show.
//!
//! Invariants: an address that a pod has is never dropped because an answer does not show it; a free one only after
//! two EC2 answers, [`CONFIRM`] apart, do not; one that was given back a short while ago is not taken in again.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use veni_core::{
    id::AttachmentId,
    ipam::{
        AddressState, Allocation, BootTime, Eni, EniFacts, Phase, Record,
        plan::{Blocked, CONFIRM},
    },
    marks::EniSlot,
    net::Mac,
};
use veni_provider::{
    Interface, InterfaceStatus, MetadataInterface, TAG_CREATED_AT, TAG_INSTANCE_ID, TAG_NO_MANAGE,
};

use super::Pool;
use crate::journal::Store;

/// What was changed a shorter while ago is not compared: EC2 and metadata are eventually consistent.
const SETTLE: Duration = Duration::from_secs(30);

/// Rules of adoption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adoption {
    /// `MANAGE_UNTAGGED_ENI`.
    pub manage_untagged: bool,
}

impl<S: Store> Pool<S> {
    /// Takes in EC2's list of this instance's ENIs.
    pub fn survey(&mut self, interfaces: &[Interface], adoption: Adoption, now: BootTime) {
        self.survey_wanted = false;
        self.unblock(Blocked::Survey);
        self.calls_work_since(self.survey_began);
        self.activity.foreign.clear();
        self.groups_shown(interfaces);
        let mut replaced = false;
        for interface in interfaces {
            let Some((slot, primary)) = self.slot_of(interface) else { continue };
            match self
                .ledger
                .eni(slot)
                .map(|eni| eni.facts.as_ref().is_some_and(|f| f.id == interface.id))
            {
                Some(true) => self.observed(slot, Some(interface.clone()), now),
                Some(false) if self.is_planned_as(slot, interface) => {
                    self.catch_up(slot, interface, now);
                }
                Some(false)
                    if self.outlived(slot, now)
                        && managed(interface, adoption)
                        && self.is_ours(interface) =>
                {
                    self.succeed(slot, interface, now);
                    replaced = true;
                }
                Some(false) => {
                    tracing::warn!(eni = %interface.id, slot = slot.get(), "place is taken by another ENI");
                    self.activity.doubts.insert(slot);
                }
                None if primary || (managed(interface, adoption) && self.is_ours(interface)) => {
                    self.adopt(slot, primary, interface, now);
                }
                None => {
                    self.activity.foreign.insert(slot);
                }
            }
        }
        let absent: Vec<_> = self
            .ledger
            .enis()
            .filter(|eni| {
                matches!(
                    eni.phase,
                    Phase::Attaching | Phase::InUse | Phase::Draining | Phase::Detaching
                )
            })
            .filter(|eni| {
                !interfaces.iter().any(|i| eni.facts.as_ref().is_some_and(|f| f.id == i.id))
            })
            .map(|eni| eni.slot)
            .collect();
        self.activity.doubts.extend(absent);
        if replaced {
            self.look_again(interfaces, now);
        }
        self.claim(now);
        self.confirm(now);
    }

    /// An address that the ledger had on an ENI which has just gone from it is taken in where the answer shows it.
    fn look_again(&mut self, interfaces: &[Interface], now: BootTime) {
        for interface in interfaces {
            let Some((slot, _)) = self.slot_of(interface) else { continue };
            let its = |eni: &Eni| eni.facts.as_ref().is_some_and(|f| f.id == interface.id);
            if self.ledger.eni(slot).is_some_and(its) {
                self.merge_addresses(slot, interface, now);
            }
        }
    }

    /// Instance metadata differs from the ledger: those ENIs are looked at in EC2. Metadata alone changes nothing.
    pub fn compare_metadata(&mut self, interfaces: &[MetadataInterface], now: BootTime) -> bool {
        let mut differs = false;
        let in_use = self.ledger.enis().filter(|eni| eni.in_use()).map(|eni| eni.slot);
        let slots: Vec<_> = in_use.filter(|slot| self.settled(*slot, now, SETTLE)).collect();
        for slot in slots {
            let Some(facts) = self.ledger.eni(slot).and_then(|eni| eni.facts.as_ref()) else {
                continue;
            };
            let seen = interfaces.iter().find(|i| i.id == facts.id);
            if seen.is_none_or(|i| {
                !self.same_addresses(slot, i.addresses.get(1..).unwrap_or_default())
            }) {
                self.activity.doubts.insert(slot);
                differs = true;
            }
        }
        let known =
            |id| self.ledger.enis().any(|eni| eni.facts.as_ref().is_some_and(|f| f.id == id));
        if interfaces.iter().any(|i| !known(i.id.clone()) && !self.is_foreign(i)) {
            self.survey_wanted = true;
            differs = true;
        }
        differs
    }

    /// A pod that the kernel shows and the ledger does not have: it keeps its address. Whoever has the address, or the
    /// pod's key, in the ledger and is `gone` from the kernel has lost it: the records that said so are missing.
    ///
    /// Returns whether the ledger has room for it, i.e. no living pod has the address, and knows the address: a pod whose
    /// address it does not know is taken over once an answer shows it.
    pub fn adopt_pod(
        &mut self,
        mut allocation: Allocation,
        now: BootTime,
        gone: impl Fn(&Allocation) -> bool,
    ) -> bool {
        let address = allocation.address;
        let Some((slot, ..)) = self.ledger.address(address) else {
            self.leave_unclaimed(allocation);
            return false;
        };
        let former =
            |a: &&Allocation| a.address == address || a.attachment == allocation.attachment;
        let formers: Vec<_> = self.ledger.allocations().filter(former).cloned().collect();
        if !formers.iter().all(gone) {
            return false;
        }
        for former in formers {
            self.note(vec![Record::Released { attachment: former.attachment, at: now }]);
        }
        match self.ledger.address(address).map(|(_, state, _)| state) {
            Some(AddressState::Cooling { .. }) => {
                self.note(vec![Record::ThawedAlone { address }]);
            }
            Some(AddressState::Releasing) => {
                let addresses = vec![address];
                self.note(vec![Record::UnassignRefused { slot, addresses, at: now }]);
            }
            _ => {}
        }
        allocation.slot = slot;
        allocation.at = now;
        tracing::warn!(%address, container = %allocation.attachment.container_id, "pod taken over from the kernel");
        self.note(vec![Record::Assigned(allocation)]);
        true
    }

    /// At a start: of the ENIs in use those whose links the node has, until it is told which are configured
    /// ([`Pool::links_ready`]). One may have gone while no daemon ran, or a damaged journal may have lost how it went.
    pub fn links_found(&mut self, macs: &BTreeSet<Mac>) {
        if self.activity.links_known {
            return;
        }
        for eni in self.ledger.enis().filter(|eni| eni.in_use()) {
            if eni.facts.as_ref().is_some_and(|facts| macs.contains(&facts.mac)) {
                self.activity.links.insert(eni.slot);
            } else {
                tracing::warn!(
                    slot = eni.slot.get(),
                    "the node has no link of an ENI in use, EC2 is asked"
                );
                self.activity.doubts.insert(eni.slot);
            }
        }
        self.activity.links_known = true;
    }

    /// Links that are on the node, configured or not.
    pub fn links_there(&mut self, present: Vec<EniSlot>) {
        self.activity.present = present.into_iter().collect();
    }

    /// Links that are on the node and configured: their ENIs can be used.
    pub fn links_ready(&mut self, ready: &[EniSlot], now: BootTime) {
        self.activity.links = ready.iter().copied().collect();
        self.activity.links_known = true;
        let arrived: Vec<_> = ready
            .iter()
            .copied()
            .filter(|slot| self.ledger.eni(*slot).is_some_and(|eni| eni.phase == Phase::Attaching))
            .collect();
        for slot in arrived {
            self.drop_block(Blocked::Slot(slot));
            self.activity.doubts.remove(&slot);
            self.note(vec![Record::EniReady { slot, at: now }]);
            self.enis_come(true);
        }
    }

    /// An ENI's link has gone: if it was being detached, it is now.
    pub fn link_gone(&mut self, mac: Mac, now: BootTime) {
        let Some(eni) = self.ledger.enis().find(|e| e.facts.as_ref().is_some_and(|f| f.mac == mac))
        else {
            return;
        };
        let slot = eni.slot;
        let phase = eni.phase.clone();
        self.activity.links.remove(&slot);
        self.activity.present.remove(&slot);
        match phase {
            Phase::Detaching => {
                self.unblock(Blocked::Slot(slot));
                self.note(vec![Record::EniDetached { slot, at: now }]);
            }
            // While the answer to Detach is under way the link may go first: settle() sees to it.
            Phase::Draining if self.activity.in_flight.contains_key(&slot) => {}
            Phase::InUse | Phase::Attaching | Phase::Draining => {
                tracing::warn!(slot = slot.get(), "link of an ENI has gone, EC2 is asked");
                self.activity.doubts.insert(slot);
            }
            _ => {}
        }
    }

    /// What EC2 says of one ENI.
    pub(super) fn observed(&mut self, slot: EniSlot, seen: Option<Interface>, now: BootTime) {
        let Some(eni) = self.ledger.eni(slot) else { return };
        let phase = eni.phase.clone();
        let held = eni.counts().held();
        let Some(interface) = seen else {
            return self.absent(slot, now);
        };
        self.absent.remove(&slot);
        self.activity.doubts.remove(&slot);
        if phase == Phase::Detached && self.moved(slot, &interface, now) {
            return;
        }
        self.merge_addresses(slot, &interface, now);
        let held_back = self.merge_phase(slot, &phase, &interface, now);
        let now_is = self.ledger.eni(slot).map(|eni| (eni.phase.clone(), eni.counts().held()));
        if now_is != Some((phase, held)) {
            // A call whose answer was lost has had its effect.
            self.forget_failures(slot);
        }
        // A look that was not asked for it does not shorten a failed call's wait.
        let fails = self.failing.iter().any(|((at, _), f)| *at == slot && f.until > now);
        if !held_back && !fails {
            self.drop_block(Blocked::Slot(slot));
        }
    }

    /// An ENI that EC2's answer does not show. One in use is believed to be gone only by a second answer, [`CONFIRM`] after
    /// the first.
    fn absent(&mut self, slot: EniSlot, now: BootTime) {
        let Some(eni) = self.ledger.eni(slot) else { return };
        let young = now.since(eni.since) < CONFIRM;
        if !young {
            self.move_strayed_from(slot, now);
        }
        let first = *self.absent.entry(slot).or_insert(now);
        let Some(eni) = self.ledger.eni(slot) else { return };
        let needed =
            eni.primary || eni.counts().assigned > 0 || (!self.all_claimed() && eni.in_use());
        let confirmed = !eni.in_use() || now.since(first) >= CONFIRM;
        if young || needed || !confirmed {
            let reason = format!(
                "EC2 does not show the ENI of device {}: it is asked again",
                slot.device_index()
            );
            self.activity.doubts.insert(slot);
            self.block(Blocked::Slot(slot), "not_found", now, Duration::from_secs(2), reason);
        } else {
            self.gone(slot, now);
        }
    }

    /// Returns whether the ENI must be left alone for a while.
    fn merge_phase(
        &mut self,
        slot: EniSlot,
        phase: &Phase,
        interface: &Interface,
        now: BootTime,
    ) -> bool {
        let ours =
            interface.attachment.as_ref().filter(|a| a.instance_id == self.place.instance_id);
        match (phase, ours, interface.status) {
            (Phase::Created, Some(attachment), _) => {
                let attachment = attachment.id.clone();
                self.note(vec![Record::EniAttaching { slot, attachment, at: now }]);
            }
            (Phase::Attaching, Some(_), _) => {
                let link = match self.activity.present.contains(&slot) {
                    true => "its link is not configured",
                    false => "its link is not on the node yet",
                };
                let reason = format!("{} is attached in EC2, {link}", interface.id);
                self.block(Blocked::Slot(slot), "attaching", now, Duration::from_secs(5), reason);
                return true;
            }
            // Somebody has detached it by hand.
            (Phase::InUse, None, InterfaceStatus::Available) => return self.taken_away(slot, now),
            (
                Phase::Detached,
                Some(attachment),
                InterfaceStatus::InUse | InterfaceStatus::Attaching,
            ) => {
                let attachment = attachment.id.clone();
                self.attached_after_all(slot, attachment, now);
            }
            (Phase::Attaching, None, InterfaceStatus::Available) => {
                self.note(vec![
                    Record::EniDraining { slot, at: now },
                    Record::EniDetached { slot, at: now },
                ]);
            }
            (Phase::Draining | Phase::Detaching, None, InterfaceStatus::Available) => {
                self.note(vec![Record::EniDetached { slot, at: now }]);
            }
            (Phase::Draining, Some(_), InterfaceStatus::Detaching) => {
                self.note(vec![Record::EniDetaching { slot, at: now }]);
            }
            (Phase::Detaching, ..) => {
                let reason = format!("{} is still being detached", interface.id);
                self.block(Blocked::Slot(slot), "detaching", now, Duration::from_secs(2), reason);
                return true;
            }
            (Phase::Attaching, None, _) => {
                let reason = format!("{} is not attached to this instance yet", interface.id);
                self.block(Blocked::Slot(slot), "attaching", now, Duration::from_secs(5), reason);
                return true;
            }
            _ => {}
        }
        false
    }

    /// What was thought to be detached: it is put to use again where pods have its addresses or where nobody had decided
    /// that it goes, else detached again. It is not forgotten: a stale answer must not make a leak of it.
    fn attached_after_all(&mut self, slot: EniSlot, attachment: AttachmentId, now: BootTime) {
        let Some(eni) = self.ledger.eni(slot) else { return };
        let leaving = eni.attachment.is_some();
        tracing::warn!(
            slot = slot.get(),
            leaving,
            "an ENI is attached that was thought to be detached"
        );
        self.note(vec![Record::EniAttaching { slot, attachment, at: now }]);
        let held = |eni: &Eni| eni.counts().assigned + eni.counts().cooling > 0;
        if leaving && self.all_claimed() && !self.ledger.eni(slot).is_some_and(held) {
            self.note(vec![Record::EniDraining { slot, at: now }]);
        }
    }

    /// A left-over ENI has its place in the ledger by chance. Whether it turns out to be attached at another one, where it
    /// is taken in then.
    fn moved(&mut self, slot: EniSlot, interface: &Interface, now: BootTime) -> bool {
        let Some((place, primary)) = self.slot_of(interface).filter(|(place, _)| *place != slot)
        else {
            return false;
        };
        if primary || self.ledger.eni(place).is_some() {
            return false;
        }
        self.gone(slot, now);
        if self.ledger.eni(slot).is_some() {
            return false;
        }
        self.activity.foreign.remove(&place);
        self.adopt(place, false, interface, now);
        true
    }

    /// An ENI in use that EC2 shows as attached to nothing: deleted once no pod has an address of it.
    /// Returns whether it is looked at again.
    fn taken_away(&mut self, slot: EniSlot, now: BootTime) -> bool {
        let idle = self
            .ledger
            .eni(slot)
            .is_some_and(|eni| !eni.primary && eni.counts().assigned + eni.counts().cooling == 0);
        let idle = idle && self.all_claimed();
        if idle {
            self.note(vec![
                Record::EniDraining { slot, at: now },
                Record::EniDetached { slot, at: now },
            ]);
        } else {
            let reason = format!(
                "the ENI of device {} was detached by somebody else: delete the pods that have its addresses",
                slot.device_index()
            );
            self.block(Blocked::Slot(slot), "eni_detached", now, CONFIRM, reason);
            self.activity.doubts.insert(slot);
        }
        !idle
    }

    fn merge_addresses(&mut self, slot: EniSlot, interface: &Interface, now: BootTime) {
        if self.activity.in_flight.contains_key(&slot) {
            return;
        }
        let shown = &interface.secondary_addresses;
        let fresh: Vec<_> = self
            .unknown(shown)
            .into_iter()
            .filter(|address| !self.returned(slot, *address, now))
            .collect();
        if !fresh.is_empty() {
            tracing::info!(eni = %interface.id, addresses = ?fresh, "addresses found in EC2");
            self.note(vec![Record::Gained { slot, addresses: fresh, at: now }]);
            self.claim(now);
        }
        let hidden: Vec<(Ipv4Addr, AddressState, BootTime)> = self
            .ledger
            .addresses()
            .filter(|(address, s, _)| *s == slot && !shown.contains(address))
            .filter_map(|(address, ..)| {
                self.ledger.address(address).map(|(_, st, at)| (address, st.clone(), at))
            })
            .collect();
        self.activity.missing.retain(|address, _| !shown.contains(address));
        self.lost.retain(|address| !shown.contains(address));
        for (address, state, gained) in hidden {
            self.hidden(slot, address, &state, gained, now);
        }
        self.find_strayed(slot, interface, now);
    }

    /// An address that EC2's answer does not show.
    fn hidden(
        &mut self,
        slot: EniSlot,
        address: Ipv4Addr,
        state: &AddressState,
        gained: BootTime,
        now: BootTime,
    ) {
        let first = *self.activity.missing.entry(address).or_insert(now);
        let confirmed = now.since(first) >= CONFIRM && now.since(gained) >= CONFIRM;
        match state {
            AddressState::Releasing => {
                self.note(vec![Record::Unassigned { slot, addresses: vec![address], at: now }]);
            }
            AddressState::Free { .. } if confirmed => {
                tracing::warn!(%address, "address is gone in EC2, dropped from the pool");
                self.activity.missing.remove(&address);
                self.note(vec![Record::Unassigned { slot, addresses: vec![address], at: now }]);
            }
            AddressState::Assigned(attachment) if confirmed && !self.lost.contains(&address) => {
                tracing::error!(%address, container = %attachment.container_id, "address of a pod is gone in EC2");
                self.lost.push(address);
            }
            _ => {}
        }
    }

    /// Whether an answer that shows `address` there is stale: it was given back. A pod that has it is the better
    /// witness.
    pub(super) fn returned(&self, slot: EniSlot, address: Ipv4Addr, now: BootTime) -> bool {
        let on_pod = self.on_pods.contains(&address) || self.unclaimed.contains_key(&address);
        self.ledger.entombed(slot, address, now) && !on_pod
    }

    /// What happened to a planned ENI, in the records that were lost.
    fn catch_up(&mut self, slot: EniSlot, interface: &Interface, now: BootTime) {
        let Some(attachment) = interface.attachment.as_ref().map(|a| a.id.clone()) else { return };
        let addresses = self.unknown(&interface.secondary_addresses);
        let eni = self.facts(interface);
        self.note(vec![
            Record::EniCreated { slot, eni, addresses, at: now },
            Record::EniAttaching { slot, attachment, at: now },
        ]);
    }

    fn adopt(&mut self, slot: EniSlot, primary: bool, interface: &Interface, now: BootTime) {
        let attachment = interface.attachment.as_ref();
        let addresses: Vec<_> = self
            .unknown(&interface.secondary_addresses)
            .into_iter()
            .filter(|address| !self.returned(slot, *address, now))
            .collect();
        let record = Record::EniAdopted {
            slot,
            primary,
            eni: self.facts(interface),
            addresses,
            attachment: attachment.map(|a| a.id.clone()),
            protected: attachment.is_some_and(|a| a.delete_on_termination),
            at: now,
        };
        self.note(vec![record]);
        self.claim(now);
        self.find_strayed(slot, interface, now);
    }

    pub(super) fn facts(&self, interface: &Interface) -> EniFacts {
        EniFacts {
            id: interface.id.clone(),
            mac: interface.mac,
            subnet: interface.subnet_id.clone(),
            subnet_prefix: self.prefix_of(&interface.subnet_id),
            primary_address: interface.primary_address,
        }
    }

    /// Whether it is where ENIs of this node are made, or was made by a daemon of this node, wherever.
    fn is_ours(&self, interface: &Interface) -> bool {
        let networking = &self.settings.networking;
        let in_place = match (&networking.custom, networking.placement()) {
            (None, _) => interface.subnet_id == networking.primary.subnet,
            (Some(_), placement) => placement.is_some_and(|p| p.names(&interface.subnet_id)),
        };
        let instance = interface.tags.get(TAG_INSTANCE_ID).map(String::as_str);
        in_place || instance == Some(self.place.instance_id.as_str())
    }

    /// Whether `interface` is what was planned for `slot` and created and attached since: the journal lost the
    /// records that say so. A stale answer may show the one that was there before.
    fn is_planned_as(&self, slot: EniSlot, interface: &Interface) -> bool {
        let planned = self.ledger.eni(slot).map(|eni| &eni.phase);
        let Some(Phase::Creating { token, .. }) = planned else { return false };
        let tag = |key| interface.tags.get(key).map(String::as_str);
        !self.activity.in_flight.contains_key(&slot)
            && tag(TAG_INSTANCE_ID) == Some(self.place.instance_id.as_str())
            && tag(TAG_CREATED_AT) == Some(&crate::executor::created_at(token))
    }

    /// Whether the ENI that the ledger has in a place which EC2 shows taken by another, managed one can be believed to be
    /// gone: it exists, it is no news that EC2 has not heard of, and no pod has its addresses, or all that have are in the kernel
    /// (a damaged journal has lost how the ENI went): they are taken in again from there.
    fn outlived(&self, slot: EniSlot, now: BootTime) -> bool {
        let mut pods = self.ledger.allocations().filter(|a| a.slot == slot);
        !self.activity.in_flight.contains_key(&slot)
            && self.ledger.eni(slot).is_some_and(|eni| {
                !eni.primary && eni.facts.is_some() && now.since(eni.since) >= CONFIRM
            })
            && pods.all(|a| self.on_pods.contains(&a.address))
    }

    /// Another ENI is where the journal has one that is gone.
    fn succeed(&mut self, slot: EniSlot, interface: &Interface, now: BootTime) {
        tracing::warn!(eni = %interface.id, slot = slot.get(), "another ENI is where the journal has one that is gone");
        let pods = self.ledger.allocations().filter(|a| a.slot == slot);
        let pods: Vec<_> = pods.map(|a| a.attachment.clone()).collect();
        for attachment in pods {
            self.note(vec![Record::Released { attachment, at: now }]);
        }
        self.gone(slot, now);
        self.adopt(slot, false, interface, now);
    }

    pub(super) fn slot_of(&self, interface: &Interface) -> Option<(EniSlot, bool)> {
        let attachment = interface.attachment.as_ref()?;
        if attachment.instance_id != self.place.instance_id {
            return None;
        }
        let slot = EniSlot::new(attachment.network_card, attachment.device_index)?;
        Some((slot, attachment.network_card == 0 && attachment.device_index == 0))
    }

    fn is_foreign(&self, interface: &MetadataInterface) -> bool {
        EniSlot::new(interface.network_card, interface.device_index)
            .is_none_or(|slot| self.activity.foreign.contains(&slot))
    }

    fn same_addresses(&self, slot: EniSlot, shown: &[Ipv4Addr]) -> bool {
        let held = self.ledger.addresses().filter(|(_, s, _)| *s == slot);
        let mut count = 0;
        for (address, _, state) in held {
            if *state != AddressState::Releasing && !shown.contains(&address) {
                return false;
            }
            count += usize::from(shown.contains(&address));
        }
        count == shown.len()
    }
}

/// Whether an ENI that is not the primary is ours to use: `no_manage`, EFA, trunk and branch ENIs are not.
fn managed(interface: &Interface, adoption: Adoption) -> bool {
    interface.interface_type == "interface"
        && interface.tags.get(TAG_NO_MANAGE).is_none_or(|value| value != "true")
        && (adoption.manage_untagged || interface.tags.contains_key(TAG_INSTANCE_ID))
        && interface.attachment.as_ref().is_some_and(|a| a.network_card == 0)
}
