//! Building and looking at a region from outside of EC2's API: VPCs, subnets, instances, other tenants' addresses.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use serde::{Deserialize, Serialize};
use veni_core::{
    id::{EniId, InstanceId, InstanceType, SecurityGroupId, SubnetId, VpcId},
    limits::InstanceLimits,
    net::Ipv4Prefix,
};

use super::{
    Sim,
    event::EventKind,
    history::History,
    millis,
    space::Space,
    state::{InstanceState, NewInterface, SubnetState},
};
use crate::{
    CreateInterface, Interface, InterfaceAttachment, InterfaceStatus, Subnet, call::Failure,
};

/// A VPC.
#[derive(Debug, Clone)]
pub(super) struct Vpc {
    pub(super) cidrs: Vec<Ipv4Prefix>,
    pub(super) default_group: SecurityGroupId,
}

/// A subnet to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetSpec {
    /// Its id.
    pub id: SubnetId,
    /// Its VPC.
    pub vpc_id: VpcId,
    /// Its zone.
    pub availability_zone: String,
    /// Its CIDR, /16 to /28, inside the VPC's and apart from other subnets'.
    pub cidr: Ipv4Prefix,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// An instance to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Its id.
    pub id: InstanceId,
    /// Its type: a registered one, or one of the public table.
    pub instance_type: InstanceType,
    /// Where its primary ENI is.
    pub subnet_id: SubnetId,
    /// The primary ENI's groups; the VPC's default group for none.
    pub security_groups: Vec<SecurityGroupId>,
}

/// Why a region cannot be built so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorldError {
    /// The id is in use.
    #[error("{0} exists already")]
    Exists(String),
    /// The id is not known.
    #[error("{0} does not exist: add it first")]
    Missing(String),
    /// The CIDR is not one that a subnet may have.
    #[error("subnet {subnet} cannot be {cidr}: {expected}")]
    Cidr {
        /// The subnet.
        subnet: SubnetId,
        /// Its CIDR.
        cidr: Ipv4Prefix,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// EC2 refuses.
    #[error("{action} failed: {code} ({message})")]
    Refused {
        /// The action.
        action: &'static str,
        /// EC2's code.
        code: String,
        /// EC2's words.
        message: String,
    },
}

/// An instance as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Its id.
    pub id: InstanceId,
    /// Its type.
    pub instance_type: InstanceType,
    /// Its zone.
    pub availability_zone: String,
    /// Its primary ENI.
    pub primary: EniId,
}

/// The whole region as it really is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimState {
    /// When, milliseconds from the simulator's start.
    pub now_millis: u64,
    /// All ENIs.
    pub interfaces: Vec<Interface>,
    /// All subnets.
    pub subnets: Vec<Subnet>,
    /// All instances.
    pub instances: Vec<InstanceView>,
}

impl Sim {
    /// Adds a VPC with a default security group (`sg-` and the rest of the VPC's id).
    ///
    /// # Errors
    /// When it exists.
    pub fn add_vpc(
        &mut self,
        id: VpcId,
        cidrs: Vec<Ipv4Prefix>,
    ) -> Result<SecurityGroupId, WorldError> {
        if self.vpcs.contains_key(&id) {
            return Err(WorldError::Exists(id.to_string()));
        }
        let group = id.as_str().replacen("vpc-", "sg-", 1);
        let default_group: SecurityGroupId =
            group.parse().expect("the rest of a VPC's id is the rest of a group's");
        self.vpcs.insert(id.clone(), Vpc { cidrs, default_group: default_group.clone() });
        self.put_new_group(default_group.clone(), id, true);
        Ok(default_group)
    }

    /// Adds a security group.
    ///
    /// # Errors
    /// When it exists, or its VPC does not.
    pub fn add_security_group(
        &mut self,
        id: SecurityGroupId,
        vpc_id: VpcId,
    ) -> Result<(), WorldError> {
        if !self.vpcs.contains_key(&vpc_id) {
            return Err(WorldError::Missing(vpc_id.to_string()));
        }
        if self.security_groups.contains_key(&id) {
            return Err(WorldError::Exists(id.to_string()));
        }
        self.put_new_group(id, vpc_id, false);
        Ok(())
    }

    /// Adds a subnet.
    ///
    /// # Errors
    /// When it exists, its VPC does not, or its CIDR does not fit.
    pub fn add_subnet(&mut self, spec: SubnetSpec) -> Result<(), WorldError> {
        let vpc = self
            .vpcs
            .get(&spec.vpc_id)
            .ok_or_else(|| WorldError::Missing(spec.vpc_id.to_string()))?;
        if self.subnets.contains_key(&spec.id) {
            return Err(WorldError::Exists(spec.id.to_string()));
        }
        let wrong =
            |expected| WorldError::Cidr { subnet: spec.id.clone(), cidr: spec.cidr, expected };
        if !(16..=28).contains(&spec.cidr.len()) {
            return Err(wrong("a /16 to a /28"));
        }
        let inside = |outer: Ipv4Prefix| {
            outer.len() <= spec.cidr.len() && outer.contains(spec.cidr.network())
        };
        if !vpc.cidrs.iter().any(|cidr| inside(*cidr)) {
            return Err(wrong("inside one of the VPC's CIDRs"));
        }
        let mut others = self.subnets.values().filter(|other| other.vpc_id == spec.vpc_id);
        let overlaps = |other: Ipv4Prefix| inside(other) || spec.cidr.contains(other.network());
        if others.any(|other| overlaps(other.cidr)) {
            return Err(wrong("apart from the VPC's other subnets"));
        }
        let space = Space::new(spec.cidr);
        let free = History::new(self.now, space.free());
        let SubnetSpec { id, vpc_id, availability_zone: zone, cidr, tags } = spec;
        self.subnets.insert(id, SubnetState { vpc_id, zone, cidr, tags, space, free });
        Ok(())
    }

    /// Tags a subnet.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn tag_subnet(&mut self, id: &SubnetId, key: &str, value: &str) -> Result<(), WorldError> {
        let subnet = self.subnets.get_mut(id).ok_or_else(|| WorldError::Missing(id.to_string()))?;
        subnet.tags.insert(key.into(), value.into());
        Ok(())
    }

    /// Makes a type known, or gives it other limits than the public table's, for instances run from now on.
    pub fn register_type(&mut self, kind: InstanceType, limits: InstanceLimits) {
        self.types.insert(kind, limits);
    }

    /// Runs an instance with a primary ENI, at once.
    ///
    /// # Errors
    /// When it exists, its type is unknown, or the subnet has no address for it.
    pub fn run_instance(
        &mut self,
        now: Duration,
        spec: InstanceSpec,
    ) -> Result<Interface, WorldError> {
        self.advance(now);
        if self.instances.contains_key(&spec.id) {
            return Err(WorldError::Exists(spec.id.to_string()));
        }
        let limits = self.limits_of(&spec.instance_type);
        let limits = limits.ok_or_else(|| WorldError::Missing(spec.instance_type.to_string()))?;
        let subnet = self.subnets.get(&spec.subnet_id);
        let subnet = subnet.ok_or_else(|| WorldError::Missing(spec.subnet_id.to_string()))?;
        let (vpc_id, zone) = (subnet.vpc_id.clone(), subnet.zone.clone());
        let primary =
            self.make_primary(&spec, vpc_id, limits.default_network_card).map_err(refused)?;
        let state =
            InstanceState { kind: spec.instance_type, limits, zone, primary: primary.id.clone() };
        self.instances.insert(spec.id, state);
        self.wake();
        Ok(primary)
    }

    fn make_primary(
        &mut self,
        spec: &InstanceSpec,
        vpc_id: VpcId,
        card: u8,
    ) -> Result<Interface, Failure> {
        let groups = self.checked_groups(&spec.security_groups, &vpc_id)?;
        let request = CreateInterface {
            subnet_id: spec.subnet_id.clone(),
            security_groups: spec.security_groups.clone(),
            secondary_addresses: 0,
            prefixes: 0,
            description: String::new(),
            tags: BTreeMap::new(),
            client_token: String::new(),
        };
        let mut primary = self.make(NewInterface { request: &request, vpc_id, groups })?;
        primary.status = InterfaceStatus::InUse;
        primary.attachment = Some(InterfaceAttachment {
            id: self.new_attachment_id(),
            instance_id: spec.id.clone(),
            device_index: 0,
            network_card: card,
            delete_on_termination: true,
        });
        self.put(primary.clone());
        self.emit(EventKind::Attached {
            instance: spec.id.clone(),
            interface: Box::new(primary.clone()),
        });
        Ok(primary)
    }

    /// Ends an instance: its ENIs go, or become available where they do not go with it.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn terminate_instance(&mut self, now: Duration, id: &InstanceId) -> Result<(), WorldError> {
        self.advance(now);
        self.instances.remove(id).ok_or_else(|| WorldError::Missing(id.to_string()))?;
        let attached = self.attached().filter(|(_, a)| a.instance_id == *id);
        let attached: Vec<_> =
            attached.map(|(interface, a)| (interface.clone(), a.delete_on_termination)).collect();
        for (mut interface, goes) in attached {
            interface.attachment = None;
            interface.status = InterfaceStatus::Available;
            self.put(interface.clone());
            self.emit(EventKind::Detached {
                instance: id.clone(),
                interface: Box::new(interface.clone()),
            });
            if goes {
                self.remove(&interface);
            }
        }
        self.wake();
        Ok(())
    }

    /// Takes `count` addresses of a subnet for others (instances, load balancers), as EC2 would choose them.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn occupy(&mut self, id: &SubnetId, count: u32) -> Result<Vec<Ipv4Addr>, WorldError> {
        self.take_addresses(id, count).map_err(refused)
    }

    /// Takes exactly this address for others. False when it is not free.
    pub fn occupy_exactly(&mut self, id: &SubnetId, address: Ipv4Addr) -> bool {
        let taken =
            self.subnets.get_mut(id).is_some_and(|subnet| subnet.space.take_exactly(address));
        self.note_free(id);
        taken
    }

    /// Gives addresses that were occupied back. The caller sees to it that no ENI holds them.
    pub fn vacate(&mut self, id: &SubnetId, addresses: &[Ipv4Addr]) {
        self.give_back(id, addresses);
    }

    /// Free addresses of a subnet, as they really are.
    #[must_use]
    pub fn free_addresses(&self, id: &SubnetId) -> Option<u32> {
        self.subnets.get(id).map(|subnet| subnet.space.free())
    }

    /// Wholly free /28 blocks of a subnet.
    #[must_use]
    pub fn free_prefixes(&self, id: &SubnetId) -> Option<usize> {
        self.subnets.get(id).map(|subnet| subnet.space.free_blocks().len())
    }

    /// The whole region as it really is.
    #[must_use]
    pub fn state(&self) -> SimState {
        let subnets = self.subnets.iter().map(|(id, subnet)| Subnet {
            id: id.clone(),
            vpc_id: subnet.vpc_id.clone(),
            availability_zone: subnet.zone.clone(),
            cidr: subnet.cidr,
            available_addresses: subnet.space.free(),
            tags: subnet.tags.clone(),
        });
        let instances = self.instances.iter().map(|(id, instance)| InstanceView {
            id: id.clone(),
            instance_type: instance.kind.clone(),
            availability_zone: instance.zone.clone(),
            primary: instance.primary.clone(),
        });
        SimState {
            now_millis: millis(self.now),
            interfaces: self.interfaces().cloned().collect(),
            subnets: subnets.collect(),
            instances: instances.collect(),
        }
    }
}

fn refused(failure: Failure) -> WorldError {
    WorldError::Refused { action: "RunInstances", code: failure.code, message: failure.message }
}

pub(super) fn refused_by(action: &'static str, code: &str, message: &str) -> WorldError {
    WorldError::Refused { action, code: code.into(), message: message.into() }
}
