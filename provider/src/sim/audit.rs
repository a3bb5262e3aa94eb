//! What must hold in a region at any moment.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{Sim, effect, space};
use crate::Interface;

impl Sim {
    /// Every violation of the simulator's invariants, in words; empty when all hold.
    #[must_use]
    pub fn audit(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut seen = BTreeSet::new();
        for interface in self.interfaces() {
            for address in addresses(interface) {
                if !seen.insert((&interface.vpc_id, address)) {
                    wrong.push(format!("{address} is on two ENIs, one is {}", interface.id));
                }
                let inside = self
                    .subnets
                    .get(&interface.subnet_id)
                    .is_some_and(|s| s.cidr.contains(address));
                if !inside {
                    wrong.push(format!("{address} of {} is outside its subnet", interface.id));
                }
            }
        }
        self.audit_subnets(&mut wrong);
        self.audit_instances(&mut wrong);
        wrong
    }

    /// Free and used addresses are together all of a subnet (occupied ones can only add to the used).
    fn audit_subnets(&self, wrong: &mut Vec<String>) {
        for (id, subnet) in &self.subnets {
            let own = self.interfaces().filter(|interface| interface.subnet_id == *id);
            let used: usize = own.map(|interface| addresses(interface).count()).sum();
            let sum =
                used as u64 + u64::from(subnet.space.free()) + u64::from(space::RESERVED_ADDRESSES);
            if sum > u64::from(subnet.space.size()) {
                wrong.push(format!("{id} counts {sum} addresses of {}", subnet.space.size()));
            }
        }
    }

    fn audit_instances(&self, wrong: &mut Vec<String>) {
        for (id, instance) in &self.instances {
            let mut places = BTreeSet::new();
            let attached: Vec<_> = self.attached().filter(|(_, a)| a.instance_id == *id).collect();
            if attached.len() > instance.limits.max_enis as usize {
                wrong.push(format!("{id} has {} ENIs", attached.len()));
            }
            for (interface, attachment) in attached {
                if !places.insert((attachment.network_card, attachment.device_index)) {
                    wrong.push(format!(
                        "{id} has two ENIs at device index {}",
                        attachment.device_index
                    ));
                }
                if effect::held(interface) > instance.limits.addresses_per_eni {
                    wrong
                        .push(format!("{} holds more than {} allows", interface.id, instance.kind));
                }
            }
        }
    }
}

fn addresses(interface: &Interface) -> impl Iterator<Item = Ipv4Addr> {
    let own = std::iter::once(interface.primary_address)
        .chain(interface.secondary_addresses.iter().copied());
    let delegated = interface.prefixes.iter().flat_map(|prefix| {
        let first = u32::from(prefix.network());
        (first..first + space::PREFIX_ADDRESSES).map(Ipv4Addr::from)
    });
    own.chain(delegated)
}
