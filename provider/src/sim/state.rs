//! What exists: ENIs with their past, subnets, instances; and the few ways in which they change.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use veni_core::{
    id::{AttachmentId, EniId, InstanceId, InstanceType, SecurityGroupId, SubnetId, VpcId},
    limits::InstanceLimits,
    net::{Ipv4Prefix, Mac},
};

use super::{
    Sim, Transition, effect,
    event::{Event, EventKind},
    history::History,
    millis, refusal,
    space::Space,
};
use crate::{CreateInterface, Interface, InterfaceAttachment, InterfaceStatus, call::Failure};

/// A subnet.
#[derive(Debug, Clone)]
pub(super) struct SubnetState {
    pub(super) vpc_id: VpcId,
    pub(super) zone: String,
    pub(super) cidr: Ipv4Prefix,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) space: Space,
    /// Free addresses as stale answers show them.
    pub(super) free: History<u32>,
}

/// An instance.
#[derive(Debug, Clone)]
pub(super) struct InstanceState {
    pub(super) kind: InstanceType,
    pub(super) limits: InstanceLimits,
    pub(super) zone: String,
    pub(super) primary: EniId,
}

/// A client token that was used.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) request: CreateInterface,
    pub(super) eni: EniId,
}

/// An ENI to make, with what was checked about it.
#[derive(Debug)]
pub(super) struct NewInterface<'a> {
    pub(super) request: &'a CreateInterface,
    pub(super) vpc_id: VpcId,
    pub(super) groups: Vec<SecurityGroupId>,
}

impl Sim {
    /// The ENI that a call names, as calls see it: a very young one may be hidden.
    pub(super) fn named(&self, eni: &EniId) -> Result<Interface, Failure> {
        let hidden = Duration::from_millis(self.config.consistency.new_interface_hidden_millis);
        let born = self.born.get(eni).copied().unwrap_or(Duration::ZERO);
        let visible = hidden.is_zero() || born + hidden <= self.now;
        self.interface(eni).filter(|_| visible).cloned().ok_or_else(|| refusal::no_eni(eni))
    }

    pub(super) fn interface_count(&self) -> usize {
        self.enis.values().filter(|eni| eni.current().is_some()).count()
    }

    /// The ENIs that are attached, or on their way to or from an instance.
    pub(super) fn attached(&self) -> impl Iterator<Item = (&Interface, &InterfaceAttachment)> {
        let current = self.enis.values().filter_map(History::current);
        current.filter_map(|interface| Some((interface, interface.attachment.as_ref()?)))
    }

    pub(super) fn attachments_of(
        &self,
        instance: &InstanceId,
    ) -> impl Iterator<Item = &InterfaceAttachment> {
        self.attached()
            .map(|(_, attachment)| attachment)
            .filter(move |a| a.instance_id == *instance)
    }

    /// The groups of a request: all of this VPC; the VPC's default group for none.
    pub(super) fn checked_groups(
        &self,
        groups: &[SecurityGroupId],
        vpc_id: &VpcId,
    ) -> Result<Vec<SecurityGroupId>, Failure> {
        effect::check_group_count(groups)?;
        if let Some(unknown) =
            groups.iter().find(|group| self.security_groups.get(group) != Some(vpc_id))
        {
            return Err(refusal::no_group(unknown));
        }
        let default =
            || self.vpcs.get(vpc_id).map(|vpc| vpc.default_group.clone()).into_iter().collect();
        Ok(if groups.is_empty() { default() } else { groups.to_vec() })
    }

    /// Makes an unattached ENI; takes nothing from the subnet when something is missing.
    pub(super) fn make(&mut self, new: NewInterface<'_>) -> Result<Interface, Failure> {
        let request = new.request;
        let subnet_id = &request.subnet_id;
        let mut addresses =
            self.take_addresses(subnet_id, request.secondary_addresses.saturating_add(1))?;
        let prefixes = match self.take_prefixes(subnet_id, request.prefixes) {
            Ok(prefixes) => prefixes,
            Err(failure) => {
                self.give_back(subnet_id, &addresses);
                return Err(failure);
            }
        };
        let interface = Interface {
            id: self.new_eni_id(),
            mac: self.new_mac(),
            subnet_id: subnet_id.clone(),
            vpc_id: new.vpc_id,
            primary_address: addresses.remove(0),
            secondary_addresses: addresses,
            prefixes,
            security_groups: new.groups,
            status: InterfaceStatus::Available,
            attachment: None,
            interface_type: "interface".into(),
            description: request.description.clone(),
            tags: request.tags.clone(),
        };
        self.born.insert(interface.id.clone(), self.now);
        self.put(interface.clone());
        self.emit(EventKind::Created { interface: Box::new(interface.clone()) });
        Ok(interface)
    }

    /// Makes `interface` the truth from now on.
    pub(super) fn put(&mut self, interface: Interface) {
        let (now, horizon) = (self.now, self.config.consistency.horizon());
        match self.enis.get_mut(&interface.id) {
            Some(history) => history.set(now, Some(interface), horizon),
            None => {
                self.enis.insert(interface.id.clone(), History::new(now, interface));
            }
        }
    }

    /// Deletes an ENI and gives its addresses back.
    pub(super) fn remove(&mut self, interface: &Interface) {
        let (now, horizon) = (self.now, self.config.consistency.horizon());
        if let Some(subnet) = self.subnets.get_mut(&interface.subnet_id) {
            interface.prefixes.iter().for_each(|prefix| subnet.space.give_back_prefix(*prefix));
        }
        let mut addresses = interface.secondary_addresses.clone();
        addresses.push(interface.primary_address);
        self.give_back(&interface.subnet_id, &addresses);
        if let Some(history) = self.enis.get_mut(&interface.id) {
            history.set(now, None, horizon);
        }
        self.enis.retain(|_, history| !history.prune(now, horizon));
        self.born.remove(&interface.id);
        self.emit(EventKind::Deleted { eni: interface.id.clone() });
    }

    pub(super) fn take_addresses(
        &mut self,
        id: &SubnetId,
        count: u32,
    ) -> Result<Vec<Ipv4Addr>, Failure> {
        let choice = self.config.address_choice;
        let subnet = self.subnets.get_mut(id).ok_or_else(|| refusal::no_subnet(id))?;
        let taken = subnet.space.take(count, choice, &mut self.rng);
        self.note_free(id);
        taken.ok_or_else(|| refusal::subnet_full(id))
    }

    fn take_prefixes(&mut self, id: &SubnetId, count: u32) -> Result<Vec<Ipv4Prefix>, Failure> {
        let choice = self.config.address_choice;
        let subnet = self.subnets.get_mut(id).ok_or_else(|| refusal::no_subnet(id))?;
        let taken = subnet.space.take_prefixes(count, choice, &mut self.rng);
        self.note_free(id);
        taken.ok_or_else(|| refusal::no_prefix(id))
    }

    pub(super) fn give_back(&mut self, id: &SubnetId, addresses: &[Ipv4Addr]) {
        if let Some(subnet) = self.subnets.get_mut(id) {
            addresses.iter().for_each(|address| subnet.space.give_back(*address));
        }
        self.note_free(id);
    }

    /// Remembers a subnet's number of free addresses, for stale answers.
    pub(super) fn note_free(&mut self, id: &SubnetId) {
        let (now, horizon) = (self.now, self.config.consistency.horizon());
        if let Some(subnet) = self.subnets.get_mut(id) {
            subnet.free.set(now, Some(subnet.space.free()), horizon);
        }
    }

    pub(super) fn schedule(&mut self, after: Duration, transition: Transition) {
        self.sequence += 1;
        self.transitions.insert((self.now + after, self.sequence), transition);
        let now = self.now;
        self.advance(now);
    }

    /// An attachment's or detachment's end.
    pub(super) fn complete(&mut self, transition: &Transition) {
        let (Transition::Attached(eni, id) | Transition::Detached(eni, id)) = transition;
        let current =
            self.interface(eni).filter(|i| i.attachment.as_ref().is_some_and(|a| a.id == *id));
        let Some(mut interface) = current.cloned() else {
            return;
        };
        let Some(attachment) = interface.attachment.clone() else {
            return;
        };
        let instance = attachment.instance_id;
        let kind = match transition {
            Transition::Attached(..) => {
                interface.status = InterfaceStatus::InUse;
                EventKind::Attached { instance, interface: Box::new(interface.clone()) }
            }
            Transition::Detached(..) => {
                interface.status = InterfaceStatus::Available;
                interface.attachment = None;
                EventKind::Detached { instance, interface: Box::new(interface.clone()) }
            }
        };
        self.put(interface);
        self.emit(kind);
    }

    pub(super) fn emit(&mut self, kind: EventKind) {
        self.events.push(Event { at_millis: millis(self.now), kind });
    }

    fn new_eni_id(&mut self) -> EniId {
        let id = format!("eni-{:017x}", self.rng.next());
        id.parse().expect("17 hexadecimal digits make an ENI id")
    }

    pub(super) fn new_attachment_id(&mut self) -> AttachmentId {
        let id = format!("eni-attach-{:017x}", self.rng.next());
        id.parse().expect("17 hexadecimal digits make an attachment id")
    }

    /// A new MAC: 24 bits that count and 16 by chance, so that none comes twice.
    fn new_mac(&mut self) -> Mac {
        self.macs += 1;
        Mac::local((self.macs << 16) | (self.rng.next() & 0xffff))
    }
}

/// Places that prefixes take of the per-ENI limit (EC2 user guide, "Prefix delegation": one each).
pub(super) fn prefix_slots(interface: &Interface) -> u32 {
    u32::try_from(interface.prefixes.len()).unwrap_or(u32::MAX)
}
