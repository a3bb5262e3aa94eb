//! The calls that change something: EC2's checks in EC2's order, then the effect, all or nothing.

use std::{net::Ipv4Addr, time::Duration};

use veni_core::id::{AttachmentId, EniId, InstanceId, SecurityGroupId};

use super::{
    Sim, Transition,
    event::EventKind,
    refusal,
    state::{NewInterface, Token, prefix_slots},
};
use crate::{
    AttachInterface, CreateInterface, Interface, InterfaceAttachment, InterfaceStatus,
    call::{Answer, Call, Failure},
};

/// Addresses that an unattached ENI may hold: no instance type takes more.
const UNATTACHED_ADDRESSES: u32 = 64;
/// Security groups of an ENI (VPC quotas).
const GROUPS_PER_ENI: usize = 5;
/// Tags of a resource (EC2 user guide, "Tag restrictions").
const TAGS_PER_RESOURCE: usize = 50;

impl Sim {
    /// Makes `call` happen now.
    pub(super) fn apply(&mut self, caller: &InstanceId, call: Call) -> Result<Answer, Failure> {
        match call {
            Call::Identity => self.identity(caller).map(|id| Answer::Identity(Box::new(id))),
            Call::MetadataInterfaces => self.metadata(caller).map(Answer::MetadataInterfaces),
            Call::DescribeInterfaces(filter) => self.describe(&filter).map(Answer::Interfaces),
            Call::DescribeSubnets(filter) => self.describe_subnets(&filter).map(Answer::Subnets),
            Call::DescribeInstanceType(kind) => self
                .limits_of(&kind)
                .map(Answer::InstanceType)
                .ok_or_else(|| refusal::no_type(&kind)),
            Call::CreateInterface(request) => {
                self.create(request).map(|interface| Answer::Interface(Box::new(interface)))
            }
            Call::AttachInterface(request) => self.attach(&request).map(Answer::Attachment),
            Call::SetDeleteOnTermination { eni, attachment } => {
                self.keep_no_longer(&eni, &attachment).map(|()| Answer::Done)
            }
            Call::SetSecurityGroups { eni, groups } => {
                self.set_groups(&eni, groups).map(|()| Answer::Done)
            }
            Call::DetachInterface(attachment) => self.detach(&attachment).map(|()| Answer::Done),
            Call::DeleteInterface(eni) => self.delete(&eni).map(|()| Answer::Done),
            Call::AssignAddresses { eni, count } => self.assign(&eni, count).map(Answer::Addresses),
            Call::UnassignAddresses { eni, addresses } => {
                self.unassign(&eni, &addresses).map(|()| Answer::Done)
            }
            Call::CreateTags { eni, tags } => {
                let mut interface = self.named(&eni)?;
                interface.tags.extend(tags);
                check_tags(&interface)?;
                self.put(interface);
                Ok(Answer::Done)
            }
            Call::DescribeSecurityGroupRules(groups) => {
                self.group_rules(&groups).map(Answer::SecurityGroupRules)
            }
            Call::DescribeSecurityGroups(groups) => {
                self.existing_groups(&groups).map(Answer::SecurityGroups)
            }
            Call::FindSecurityGroups { vpc_id, tags } => {
                Ok(Answer::SecurityGroups(self.tagged_groups(&vpc_id, &tags)))
            }
            Call::DescribeGroupMembers(groups) => {
                self.group_members(&groups).map(Answer::GroupMembers)
            }
            Call::DescribePrefixLists(lists) => self.prefix_lists(&lists).map(Answer::PrefixLists),
            Call::PrefixListEntries { list, version } => {
                self.list_entries(&list, version).map(Answer::PrefixListEntries)
            }
        }
    }

    fn create(&mut self, request: CreateInterface) -> Result<Interface, Failure> {
        if let Some(token) = self.tokens.get(&request.client_token) {
            if token.request != request {
                return Err(refusal::token_reused());
            }
            return self.interface(&token.eni).cloned().ok_or_else(|| refusal::no_eni(&token.eni));
        }
        check_request(&request)?;
        let vpc_id = match self.subnets.get(&request.subnet_id) {
            Some(subnet) => subnet.vpc_id.clone(),
            None => return Err(refusal::no_subnet(&request.subnet_id)),
        };
        let groups = self.checked_groups(&request.security_groups, &vpc_id)?;
        let held = u64::from(request.secondary_addresses) + u64::from(request.prefixes) + 1;
        if held > u64::from(UNATTACHED_ADDRESSES) {
            return Err(refusal::too_many_addresses(None));
        }
        if self.interface_count() >= self.config.max_enis as usize {
            return Err(refusal::quota());
        }
        let interface = self.make(NewInterface { request: &request, vpc_id, groups })?;
        if !request.client_token.is_empty() {
            let token = request.client_token.clone();
            self.tokens.insert(token, Token { request, eni: interface.id.clone() });
        }
        Ok(interface)
    }

    fn attach(&mut self, request: &AttachInterface) -> Result<AttachmentId, Failure> {
        let mut interface = self.named(&request.eni)?;
        self.check_attach(request, &interface)?;
        let attachment = self.new_attachment_id();
        interface.status = InterfaceStatus::Attaching;
        interface.attachment = Some(InterfaceAttachment {
            id: attachment.clone(),
            instance_id: request.instance.clone(),
            device_index: request.device_index,
            network_card: request.network_card,
            delete_on_termination: false,
        });
        self.put(interface);
        let takes = self.jittered(Duration::from_millis(self.config.latency.attach_millis));
        self.schedule(takes, Transition::Attached(request.eni.clone(), attachment.clone()));
        Ok(attachment)
    }

    fn check_attach(
        &self,
        request: &AttachInterface,
        interface: &Interface,
    ) -> Result<(), Failure> {
        let AttachInterface { instance, device_index, network_card, .. } = request;
        let Some(host) = self.instances.get(instance) else {
            return Err(refusal::no_instance(instance));
        };
        if interface.attachment.is_some() {
            return Err(refusal::in_use(&interface.id));
        }
        let zone = self.subnets.get(&interface.subnet_id).map(|subnet| subnet.zone.as_str());
        if zone != Some(host.zone.as_str()) {
            let message =
                "The network interface and the instance are not in the same availability zone.";
            return Err(refusal::invalid("InvalidParameterCombination", message));
        }
        let card = host.limits.network_cards.iter().find(|card| card.index == *network_card);
        let Some(card) = card else {
            let message =
                format!("Network card index {network_card} is not valid for {}", host.kind);
            return Err(refusal::invalid("InvalidParameterValue", message));
        };
        let attached: Vec<_> = self.attachments_of(instance).collect();
        let on_card = attached.iter().filter(|a| a.network_card == *network_card);
        if on_card.clone().any(|a| a.device_index == *device_index) {
            return Err(refusal::index_taken(instance, *device_index));
        }
        if on_card.count() >= card.max_enis as usize
            || attached.len() >= host.limits.max_enis as usize
        {
            return Err(refusal::too_many_attachments(host.limits.max_enis, &host.kind));
        }
        if held(interface) > host.limits.addresses_per_eni {
            return Err(refusal::too_many_addresses(Some(&interface.id)));
        }
        Ok(())
    }

    fn keep_no_longer(&mut self, eni: &EniId, attachment: &AttachmentId) -> Result<(), Failure> {
        let mut interface = self.named(eni)?;
        let attached = interface.attachment.as_mut().filter(|a| a.id == *attachment);
        attached.ok_or_else(|| refusal::no_attachment(attachment))?.delete_on_termination = true;
        self.put(interface);
        Ok(())
    }

    fn set_groups(&mut self, eni: &EniId, groups: Vec<SecurityGroupId>) -> Result<(), Failure> {
        let mut interface = self.named(eni)?;
        if groups.is_empty() {
            return Err(refusal::invalid(
                "InvalidParameterValue",
                "At least one security group is required.",
            ));
        }
        interface.security_groups = self.checked_groups(&groups, &interface.vpc_id)?;
        self.put(interface);
        Ok(())
    }

    fn detach(&mut self, id: &AttachmentId) -> Result<(), Failure> {
        let found = self
            .attached()
            .find(|(_, a)| a.id == *id)
            .map(|(interface, a)| (interface.clone(), a.clone()));
        let (mut interface, attachment) = found.ok_or_else(|| refusal::no_attachment(id))?;
        let host = self.instances.get(&attachment.instance_id);
        if host.is_some_and(|host| host.primary == interface.id) {
            let message = "The network interface at device index 0 cannot be detached.";
            return Err(refusal::invalid("OperationNotPermitted", message));
        }
        match interface.status {
            InterfaceStatus::InUse => {}
            // Asking twice is no error: it is on its way.
            InterfaceStatus::Detaching => return Ok(()),
            _ => {
                let message = format!("Attachment '{id}' is not in a state to be detached.");
                return Err(refusal::invalid("IncorrectState", message));
            }
        }
        interface.status = InterfaceStatus::Detaching;
        self.put(interface.clone());
        let eni = interface.id.clone();
        self.emit(EventKind::Detaching {
            instance: attachment.instance_id,
            interface: Box::new(interface),
        });
        let takes = self.jittered(Duration::from_millis(self.config.latency.detach_millis));
        self.schedule(takes, Transition::Detached(eni, id.clone()));
        Ok(())
    }

    fn delete(&mut self, eni: &EniId) -> Result<(), Failure> {
        let interface = self.named(eni)?;
        if interface.attachment.is_some() {
            return Err(refusal::in_use(eni));
        }
        self.remove(&interface);
        Ok(())
    }

    fn assign(&mut self, eni: &EniId, count: u32) -> Result<Vec<Ipv4Addr>, Failure> {
        let mut interface = self.named(eni)?;
        if count == 0 {
            return Err(refusal::invalid(
                "InvalidParameterValue",
                "secondaryPrivateIpAddressCount must be positive",
            ));
        }
        if u64::from(held(&interface)) + u64::from(count)
            > u64::from(self.address_limit(&interface))
        {
            return Err(refusal::too_many_addresses(Some(eni)));
        }
        let addresses = self.take_addresses(&interface.subnet_id, count)?;
        interface.secondary_addresses.extend(&addresses);
        let instance = interface.attachment.as_ref().map(|a| a.instance_id.clone());
        self.put(interface);
        let (eni, new) = (eni.clone(), addresses.clone());
        self.emit(EventKind::Assigned { eni, instance, addresses: new, prefixes: Vec::new() });
        Ok(addresses)
    }

    fn unassign(&mut self, eni: &EniId, addresses: &[Ipv4Addr]) -> Result<(), Failure> {
        let mut interface = self.named(eni)?;
        if addresses.is_empty() {
            return Err(refusal::invalid(
                "MissingParameter",
                "The request must contain privateIpAddress",
            ));
        }
        if let Some(foreign) = addresses.iter().find(|a| !interface.secondary_addresses.contains(a))
        {
            return Err(refusal::not_assigned(eni, *foreign));
        }
        interface.secondary_addresses.retain(|address| !addresses.contains(address));
        self.give_back(&interface.subnet_id, addresses);
        let instance = interface.attachment.as_ref().map(|a| a.instance_id.clone());
        self.put(interface);
        self.emit(EventKind::Unassigned {
            eni: eni.clone(),
            instance,
            addresses: addresses.to_vec(),
        });
        Ok(())
    }

    fn address_limit(&self, interface: &Interface) -> u32 {
        let instance =
            interface.attachment.as_ref().and_then(|a| self.instances.get(&a.instance_id));
        instance.map_or(UNATTACHED_ADDRESSES, |instance| instance.limits.addresses_per_eni)
    }
}

/// Places that `interface` takes of its per-ENI limit: addresses, the primary included, and prefixes, which count
/// as one each.
pub(super) fn held(interface: &Interface) -> u32 {
    let addresses = u32::try_from(interface.secondary_addresses.len()).unwrap_or(u32::MAX);
    addresses.saturating_add(prefix_slots(interface)).saturating_add(1)
}

fn check_request(request: &CreateInterface) -> Result<(), Failure> {
    if request.secondary_addresses > 0 && request.prefixes > 0 {
        let message =
            "You may not specify both SecondaryPrivateIpAddressCount and Ipv4PrefixCount.";
        return Err(refusal::invalid("InvalidParameterCombination", message));
    }
    if request.client_token.len() > 64 || !request.client_token.is_ascii() {
        return Err(refusal::invalid(
            "InvalidParameterValue",
            "ClientToken exceeds 64 ASCII characters.",
        ));
    }
    Ok(())
}

/// EC2 user guide, "Tag restrictions".
fn check_tags(interface: &Interface) -> Result<(), Failure> {
    if interface.tags.keys().any(|key| key.starts_with("aws:")) {
        return Err(refusal::invalid(
            "InvalidParameterValue",
            "Tag keys starting with 'aws:' are reserved.",
        ));
    }
    if interface.tags.len() > TAGS_PER_RESOURCE {
        return Err(refusal::invalid(
            "TagLimitExceeded",
            "You have reached the maximum amount of tags.",
        ));
    }
    Ok(())
}

/// The rule on an ENI's number of groups.
pub(super) fn check_group_count(groups: &[SecurityGroupId]) -> Result<(), Failure> {
    if groups.len() > GROUPS_PER_ENI {
        let message = "The maximum number of security groups per interface has been reached.";
        return Err(refusal::invalid("SecurityGroupsPerInterfaceLimitExceeded", message));
    }
    Ok(())
}
