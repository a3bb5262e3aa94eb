//! The calls that only look: `Describe…` and instance metadata, each as late as the settings have it.

use std::time::Duration;

use veni_core::id::{EniId, InstanceId, SubnetId};

use super::{
    Sim,
    fault::{Distortion, DistortionKind},
    refusal,
    state::SubnetState,
};
use crate::{
    InstanceIdentity, Interface, InterfaceFilter, InterfaceStatus, MetadataInterface, Subnet,
    SubnetFilter, call::Failure,
};

impl Sim {
    pub(super) fn identity(&self, caller: &InstanceId) -> Result<InstanceIdentity, Failure> {
        let instance = self.instances.get(caller).ok_or_else(|| refusal::no_instance(caller))?;
        let primary =
            self.interface(&instance.primary).ok_or_else(|| refusal::no_eni(&instance.primary))?;
        Ok(InstanceIdentity {
            instance_id: caller.clone(),
            instance_type: instance.kind.clone(),
            region: self.config.region.clone(),
            availability_zone: instance.zone.clone(),
            primary_mac: primary.mac,
            local_ipv4: primary.primary_address,
        })
    }

    pub(super) fn describe(&mut self, filter: &InterfaceFilter) -> Result<Vec<Interface>, Failure> {
        let at = self.describe_time();
        let seen = self.enis.values().filter_map(|eni| eni.at(at));
        Ok(match filter {
            InterfaceFilter::AttachedTo(instance) => seen
                .filter(|i| i.attachment.as_ref().is_some_and(|a| a.instance_id == *instance))
                .cloned()
                .collect(),
            InterfaceFilter::AvailableWithTag { key, value } => {
                let available = seen.filter(|i| i.status == InterfaceStatus::Available);
                available.filter(|i| i.tags.get(key) == Some(value)).cloned().collect()
            }
            InterfaceFilter::Ids(ids) => {
                let find = |id| {
                    self.enis
                        .get(id)
                        .and_then(|eni| eni.at(at))
                        .cloned()
                        .ok_or_else(|| refusal::no_eni(id))
                };
                ids.iter().map(find).collect::<Result<_, _>>()?
            }
        })
    }

    pub(super) fn describe_subnets(
        &mut self,
        filter: &SubnetFilter,
    ) -> Result<Vec<Subnet>, Failure> {
        let at = self.describe_time();
        match filter {
            SubnetFilter::Ids(ids) => {
                let find = |id| {
                    self.subnets
                        .get(id)
                        .map(|s| seen(id, s, at))
                        .ok_or_else(|| refusal::no_subnet(id))
                };
                ids.iter().map(find).collect()
            }
            SubnetFilter::InZone { vpc_id, availability_zone } => {
                let matching = self
                    .subnets
                    .iter()
                    .filter(|(_, s)| s.vpc_id == *vpc_id && s.zone == *availability_zone);
                Ok(matching.map(|(id, s)| seen(id, s, at)).collect())
            }
        }
    }

    pub(super) fn metadata(
        &mut self,
        caller: &InstanceId,
    ) -> Result<Vec<MetadataInterface>, Failure> {
        if !self.instances.contains_key(caller) {
            return Err(refusal::no_instance(caller));
        }
        let now = self.now;
        self.distortions.retain(|(until, _)| *until > now);
        let delay = Duration::from_millis(self.config.consistency.metadata_delay_millis);
        let at = now.saturating_sub(delay);
        // What an instance is born with, its metadata shows from the first moment.
        let primary = self.instances.get(caller).map(|instance| &instance.primary);
        let seen = self.enis.iter().filter_map(|(id, eni)| {
            let born = || eni.current().filter(|_| primary == Some(id));
            eni.at(at).or_else(born)
        });
        let mut interfaces: Vec<_> =
            seen.filter_map(|interface| self.metadata_of(interface, caller)).collect();
        interfaces.sort_by_key(|i| (i.network_card, i.device_index));
        for (_, distortion) in self.distortions.iter().filter(|(_, d)| d.instance == *caller) {
            distort(&mut interfaces, distortion);
        }
        Ok(interfaces)
    }

    fn metadata_of(
        &self,
        interface: &Interface,
        instance: &InstanceId,
    ) -> Option<MetadataInterface> {
        let attachment = interface.attachment.as_ref().filter(|a| a.instance_id == *instance)?;
        // The guest sees the device from the attachment's end to the detachment's start.
        if interface.status != InterfaceStatus::InUse {
            return None;
        }
        let subnet = self.subnets.get(&interface.subnet_id)?;
        let mut addresses = vec![interface.primary_address];
        addresses.extend(&interface.secondary_addresses);
        Some(MetadataInterface {
            mac: interface.mac,
            id: interface.id.clone(),
            device_index: attachment.device_index,
            network_card: attachment.network_card,
            subnet_id: interface.subnet_id.clone(),
            subnet_cidr: subnet.cidr,
            vpc_id: interface.vpc_id.clone(),
            vpc_cidrs: self
                .vpcs
                .get(&interface.vpc_id)
                .map(|vpc| vpc.cidrs.clone())
                .unwrap_or_default(),
            security_groups: interface.security_groups.clone(),
            addresses,
            prefixes: interface.prefixes.clone(),
        })
    }

    /// The moment that this `Describe…` answers for.
    pub(super) fn describe_time(&mut self) -> Duration {
        let consistency = &self.config.consistency;
        let delay = Duration::from_millis(consistency.describe_delay_millis);
        let stale = !delay.is_zero() && self.rng.percent(consistency.describe_stale_percent);
        if stale { self.now.saturating_sub(delay) } else { self.now }
    }
}

fn seen(id: &SubnetId, subnet: &SubnetState, at: Duration) -> Subnet {
    Subnet {
        id: id.clone(),
        vpc_id: subnet.vpc_id.clone(),
        availability_zone: subnet.zone.clone(),
        cidr: subnet.cidr,
        available_addresses: subnet.free.at(at).copied().unwrap_or_else(|| subnet.space.free()),
        tags: subnet.tags.clone(),
    }
}

fn distort(interfaces: &mut Vec<MetadataInterface>, distortion: &Distortion) {
    let meant = |id: &EniId| distortion.eni.as_ref().is_none_or(|eni| eni == id);
    match distortion.kind {
        DistortionKind::Omit => interfaces.retain(|interface| !meant(&interface.id)),
        DistortionKind::Short { addresses } => {
            let matching = interfaces.iter_mut().filter(|interface| meant(&interface.id));
            matching.for_each(|interface| interface.addresses.truncate(addresses as usize));
        }
    }
}
