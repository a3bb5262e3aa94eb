//! Where pods send to, where it goes, and both as keys and values of the tables.

use std::net::IpAddr;

use veni_ebpf_common::table::{BackendValue, ServiceKeyV4, ServiceKeyV6, ServiceValue};

use crate::{
    change::{Remove, Write},
    object::{Key, Protocol},
};

/// What a pod sends to and the programs translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontEnd {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// Where a packet goes instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackEnd {
    /// Its address, of the front end's family.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// One port of one owner, across changes of its front ends and back ends: what session affinity holds on to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    /// The Service, or the pod of a hostPort.
    pub owner: Key,
    /// The Service port's name, empty when it has none; of a hostPort its number.
    pub port: String,
    /// Its protocol.
    pub protocol: Protocol,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl FrontEnd {
    pub(super) fn write(self, value: ServiceValue) -> Write {
        let (port, protocol, reserved) = self.rest();
        match self.address {
            IpAddr::V4(address) => Write::ServiceV4 {
                key: ServiceKeyV4 { address: address.octets(), port, protocol, reserved },
                value,
            },
            IpAddr::V6(address) => Write::ServiceV6 {
                key: ServiceKeyV6 { address: address.octets(), port, protocol, reserved },
                value,
            },
        }
    }

    pub(super) fn remove(self) -> Remove {
        let (port, protocol, reserved) = self.rest();
        match self.address {
            IpAddr::V4(address) => Remove::ServiceV4(ServiceKeyV4 {
                address: address.octets(),
                port,
                protocol,
                reserved,
            }),
            IpAddr::V6(address) => Remove::ServiceV6(ServiceKeyV6 {
                address: address.octets(),
                port,
                protocol,
                reserved,
            }),
        }
    }

    /// The front end of a key; `None` when no key of ours has that protocol.
    #[must_use]
    pub fn of_v4(key: &ServiceKeyV4) -> Option<Self> {
        Self::of(IpAddr::from(key.address), key.port, key.protocol)
    }

    /// As [`FrontEnd::of_v4`].
    #[must_use]
    pub fn of_v6(key: &ServiceKeyV6) -> Option<Self> {
        Self::of(IpAddr::from(key.address), key.port, key.protocol)
    }

    fn of(address: IpAddr, port: [u8; 2], protocol: u8) -> Option<Self> {
        let protocol = Protocol::from_number(protocol)?;
        Some(Self { address, port: u16::from_be_bytes(port), protocol })
    }

    const fn rest(self) -> ([u8; 2], u8, u8) {
        (self.port.to_be_bytes(), self.protocol.number(), 0)
    }
}

impl BackEnd {
    pub(super) fn value(self) -> BackendValue {
        let mut address = [0; 16];
        match self.address {
            IpAddr::V4(v4) => address[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => address = v6.octets(),
        }
        BackendValue { address, port: self.port.to_be_bytes(), reserved: [0; 2] }
    }

    /// The value does not say its family: it is the front end's.
    pub(super) fn of(value: &BackendValue, family: Family) -> Self {
        let [a, b, c, d, ..] = value.address;
        let address = match family {
            Family::V4 => IpAddr::from([a, b, c, d]),
            Family::V6 => IpAddr::from(value.address),
        };
        Self { address, port: u16::from_be_bytes(value.port) }
    }
}

/// Addresses that lead to no other machine (validation.go `ValidateNonSpecialIP`, which the API server applies to
/// externalIPs and endpoints; a manifest may not have passed it).
pub(super) fn is_special(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast()
}
