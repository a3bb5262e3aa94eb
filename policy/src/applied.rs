//! A model of the programs' tables: plain maps that steps are applied to, and look-ups as the programs do them.
//!
//! Tests check every intermediate state with it; `venictl` and the lab read it. It knows nothing of policies.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use veni_ebpf_common::table::{
    self, BackendKey, BackendValue, Decision, NO_CLASS, PortKey, Profile, ServiceKeyV4,
    ServiceKeyV6, ServiceValue, Tables, VerdictKey,
};

use crate::change::{Direction, PodKey, PodSets, Remove, Step, Write};

/// The tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// `CLASS_V4`.
    pub class_v4: BTreeMap<Ipv4Addr, u32>,
    /// `CLASS_V6`.
    pub class_v6: BTreeMap<Ipv6Addr, u32>,
    /// `CIDR_V4`.
    pub cidr_v4: BTreeMap<Ipv4Net, u32>,
    /// `CIDR_V6`.
    pub cidr_v6: BTreeMap<Ipv6Net, u32>,
    /// `VERDICTS`.
    pub verdicts: BTreeMap<VerdictKey, u32>,
    /// `PROFILES`.
    pub profiles: BTreeMap<u32, Profile>,
    /// `PORTS`: bits and key, cut to them.
    pub ports: BTreeMap<(u32, PortKey), Decision>,
    /// `SERVICE_V4`.
    pub service_v4: BTreeMap<ServiceKeyV4, ServiceValue>,
    /// `SERVICE_V6`.
    pub service_v6: BTreeMap<ServiceKeyV6, ServiceValue>,
    /// `BACKENDS`.
    pub backends: BTreeMap<BackendKey, BackendValue>,
    /// The pods' entries.
    pub endpoints: BTreeMap<PodKey, PodSets>,
    /// The node's own addresses.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The policy epoch.
    pub epoch: u32,
    /// Graces waited for.
    pub graces: u32,
}

impl Applied {
    /// Carries out one step.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Write(write) => self.write(write),
            Step::Endpoint { pod, sets } => {
                self.endpoints.insert(pod.clone(), *sets);
            }
            Step::Epoch => self.epoch = self.epoch.wrapping_add(1),
            Step::NodeAddresses(addresses) => self.node_addresses.clone_from(addresses),
            Step::Grace => self.graces += 1,
            Step::Delete(remove) => self.remove(remove),
        }
    }

    fn write(&mut self, write: &Write) {
        match write {
            Write::ClassV4 { address, class } => {
                self.class_v4.insert(*address, *class);
            }
            Write::ClassV6 { address, class } => {
                self.class_v6.insert(*address, *class);
            }
            Write::CidrV4 { net, class } => {
                self.cidr_v4.insert(*net, *class);
            }
            Write::CidrV6 { net, class } => {
                self.cidr_v6.insert(*net, *class);
            }
            Write::Verdict { key, profile } => {
                self.verdicts.insert(*key, *profile);
            }
            Write::Profile { number, profile } => {
                self.profiles.insert(*number, *profile);
            }
            Write::Port { bits, key, decision } => {
                self.ports.insert((*bits, *key), *decision);
            }
            Write::ServiceV4 { key, value } => {
                self.service_v4.insert(*key, *value);
            }
            Write::ServiceV6 { key, value } => {
                self.service_v6.insert(*key, *value);
            }
            Write::Backend { key, value } => {
                self.backends.insert(*key, *value);
            }
        }
    }

    fn remove(&mut self, remove: &Remove) {
        match remove {
            Remove::ClassV4(address) => {
                self.class_v4.remove(address);
            }
            Remove::ClassV6(address) => {
                self.class_v6.remove(address);
            }
            Remove::CidrV4(net) => {
                self.cidr_v4.remove(net);
            }
            Remove::CidrV6(net) => {
                self.cidr_v6.remove(net);
            }
            Remove::Verdict(key) => {
                self.verdicts.remove(key);
            }
            Remove::Port { bits, key } => {
                self.ports.remove(&(*bits, *key));
            }
            Remove::ServiceV4(key) => {
                self.service_v4.remove(key);
            }
            Remove::ServiceV6(key) => {
                self.service_v6.remove(key);
            }
            Remove::Backend(key) => {
                self.backends.remove(key);
            }
        }
    }

    /// The class of an address: its own entry, else the longest prefix'.
    #[must_use]
    pub fn class(&self, address: IpAddr) -> u32 {
        let own = match address {
            IpAddr::V4(address) => self.class_v4.get(&address),
            IpAddr::V6(address) => self.class_v6.get(&address),
        };
        if let Some(class) = own {
            return *class;
        }
        let host = IpNet::from(address);
        (0..=host.max_prefix_len())
            .rev()
            .find_map(|length| match IpNet::new(address, length).ok()?.trunc() {
                IpNet::V4(net) => self.cidr_v4.get(&net).copied(),
                IpNet::V6(net) => self.cidr_v6.get(&net).copied(),
            })
            .unwrap_or(NO_CLASS)
    }

    /// What a pod's rules say about a peer. `None`: the pod has no entry, or the tables are incomplete.
    #[must_use]
    pub fn decide(
        &self,
        pod: &PodKey,
        direction: Direction,
        peer: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Option<Decision> {
        let set = self.endpoints.get(pod)?.of(direction);
        table::judge(self, set, self.class(peer), protocol, port)
    }
}

impl Tables for Applied {
    fn verdict(&self, key: &VerdictKey) -> Option<u32> {
        self.verdicts.get(key).copied()
    }

    fn profile(&self, number: u32, protocol: u8, port: u16) -> Option<Decision> {
        let profile = self.profiles.get(&number)?;
        if profile.count != Profile::IN_PORTS {
            return Some(table::in_ranges(profile, protocol, port));
        }
        let longest = (48..=64).rev().find_map(|bits| {
            let kept = u32::from(port) >> (64 - bits) << (64 - bits);
            let port = u16::try_from(kept).ok()?.to_be_bytes();
            let key = PortKey { profile: number, protocol, reserved: 0, port };
            self.ports.get(&(bits, key)).copied()
        });
        Some(longest.unwrap_or(profile.otherwise))
    }
}
