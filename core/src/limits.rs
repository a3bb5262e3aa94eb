//! What an instance type can hold: ENIs, addresses per ENI, network cards.

use serde::{Deserialize, Serialize};

use crate::id::InstanceType;

/// Limits of an instance type (EC2 `DescribeInstanceTypes`, `NetworkInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceLimits {
    /// ENIs on all network cards together.
    pub max_enis: u32,
    /// IPv4 addresses per ENI, its primary included.
    pub addresses_per_eni: u32,
    /// The card of the primary ENI.
    pub default_network_card: u8,
    /// The cards.
    pub network_cards: Vec<NetworkCard>,
    /// The hypervisor.
    pub hypervisor: Hypervisor,
    /// Whether it is bare metal.
    pub bare_metal: bool,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCard {
    /// Its index.
    pub index: u8,
    /// ENIs that it takes.
    pub max_enis: u32,
}

/// What runs the instance. Prefix delegation needs Nitro.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hypervisor {
    /// Nitro.
    Nitro,
    /// Xen.
    Xen,
    /// Not stated (bare metal mostly).
    Unknown,
}

/// The limits of `instance_type` in the table that this build carries, `None` for a type that is not in it
/// (ask `DescribeInstanceTypes`).
#[must_use]
pub fn lookup(instance_type: &InstanceType) -> Option<InstanceLimits> {
    let (max_enis, addresses_per_eni) = match instance_type.as_str() {
        "t3.small" => (3, 4),
        "m5.large" => (3, 10),
        "m5.xlarge" => (4, 15),
        _ => return None,
    };
    Some(InstanceLimits {
        max_enis,
        addresses_per_eni,
        default_network_card: 0,
        network_cards: vec![NetworkCard { index: 0, max_enis }],
        hypervisor: Hypervisor::Nitro,
        bare_metal: false,
    })
}
