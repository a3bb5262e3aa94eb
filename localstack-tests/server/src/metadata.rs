//! Instance metadata's tree below `/latest/meta-data/`, of an instance as EC2 has it.

use std::collections::BTreeMap;

use veni_core::{
    id::{InstanceId, InstanceType, SubnetId},
    net::Ipv4Prefix,
};
use veni_provider::Interface;

/// An instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its type.
    pub kind: InstanceType,
    /// Its region.
    pub region: String,
    /// Its availability zone.
    pub zone: String,
    /// Its VPC's.
    pub vpc_cidrs: Vec<Ipv4Prefix>,
}

/// What is attached to it.
#[derive(Debug, Clone, Default)]
pub struct Attached {
    /// The ENIs that are attached, in any order.
    pub interfaces: Vec<Interface>,
    /// Their subnets'.
    pub cidrs: BTreeMap<SubnetId, Ipv4Prefix>,
}

// === impl Instance ===

impl Instance {
    /// What is at `path`, `None` when there is nothing.
    #[must_use]
    pub fn value(&self, path: &str, attached: &Attached) -> Option<String> {
        let primary = attached.interfaces.iter().find(|i| place(i) == (0, 0));
        match path {
            "instance-id" => return Some(self.id.to_string()),
            "instance-type" => return Some(self.kind.to_string()),
            "placement/availability-zone" => return Some(self.zone.clone()),
            "placement/region" => return Some(self.region.clone()),
            "mac" => return primary.map(|i| i.mac.to_string()),
            "local-ipv4" => return primary.map(|i| i.primary_address.to_string()),
            _ => {}
        }
        let rest = path.strip_prefix("network/interfaces/macs/")?;
        if rest.is_empty() {
            return Some(lines(attached.interfaces.iter().map(|i| format!("{}/", i.mac))));
        }
        let (mac, key) = rest.split_once('/')?;
        let interface = attached.interfaces.iter().find(|i| i.mac.to_string() == mac)?;
        self.interface_value(key, interface, attached)
    }

    fn interface_value(
        &self,
        key: &str,
        interface: &Interface,
        attached: &Attached,
    ) -> Option<String> {
        let (card, index) = place(interface);
        match key {
            "interface-id" => Some(interface.id.to_string()),
            "device-number" => Some(index.to_string()),
            // Instances with one card do not have the key.
            "network-card" => (card != 0).then(|| card.to_string()),
            "subnet-id" => Some(interface.subnet_id.to_string()),
            "subnet-ipv4-cidr-block" => {
                attached.cidrs.get(&interface.subnet_id).map(ToString::to_string)
            }
            "vpc-id" => Some(interface.vpc_id.to_string()),
            "vpc-ipv4-cidr-blocks" => Some(lines(self.vpc_cidrs.iter())),
            "security-group-ids" => Some(lines(interface.security_groups.iter())),
            "local-ipv4s" => {
                let own = std::iter::once(&interface.primary_address);
                Some(lines(own.chain(&interface.secondary_addresses)))
            }
            "ipv4-prefix" => {
                (!interface.prefixes.is_empty()).then(|| lines(interface.prefixes.iter()))
            }
            _ => None,
        }
    }
}

/// Card and device index.
fn place(interface: &Interface) -> (u8, u8) {
    interface.attachment.as_ref().map_or((0, 0), |a| (a.network_card, a.device_index))
}

fn lines(values: impl Iterator<Item = impl ToString>) -> String {
    values.map(|value| value.to_string()).collect::<Vec<_>>().join("\n")
}
