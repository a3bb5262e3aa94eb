//! What an instance type can hold: ENIs, addresses per ENI, network cards.
//!
//! The public table (`core/data/instance_limits.tsv`, made by `hack/instance-limits.py`) is carried as text and
//! scanned on demand: 55 KiB of read-only pages that the kernel can drop, instead of a map in the heap.
//! Deliberately absent: asking EC2 about a type that is not in the table (`provider::Cloud` does).

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

/// A type that the table does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "instance type {instance_type} is not among the {known} types of this build's table: check the spelling, or for \
     a type newer than this build make the table again (`hack/instance-limits.py`); ipamd itself asks EC2 \
     DescribeInstanceTypes"
)]
pub struct UnknownInstanceType {
    /// The type.
    pub instance_type: InstanceType,
    /// How many types the table has.
    pub known: usize,
}

static TABLE: &str = include_str!("../data/instance_limits.tsv");

/// The limits of `instance_type` in the table that this build carries, `None` for a type that is not in it
/// (ask `DescribeInstanceTypes`).
#[must_use]
pub fn lookup(instance_type: &InstanceType) -> Option<InstanceLimits> {
    rows().find(|row| row.split('\t').next() == Some(instance_type.as_str())).and_then(parse)
}

/// [`lookup`] for callers who cannot ask EC2.
///
/// # Errors
/// [`UnknownInstanceType`] when the type is not in the table.
pub fn require(instance_type: &InstanceType) -> Result<InstanceLimits, UnknownInstanceType> {
    lookup(instance_type).ok_or_else(|| UnknownInstanceType {
        instance_type: instance_type.clone(),
        known: rows().count(),
    })
}

/// Every type of the table with its limits, sorted by type.
pub fn all() -> impl Iterator<Item = (InstanceType, InstanceLimits)> {
    rows().filter_map(|row| Some((row.split('\t').next()?.parse().ok()?, parse(row)?)))
}

/// The pods that a node of this type can have in secondary-IP mode: ENIs × (addresses − 1) + 2.
///
/// The two are pods on the host's network (`aws-node`, `kube-proxy`), as in EKS's `eni-max-pods.txt`. As there,
/// only the default network card counts.
#[must_use]
pub fn max_pods(limits: &InstanceLimits) -> u32 {
    limits.enis_for_pods() * limits.pod_addresses_per_eni() + 2
}

/// Whether the type takes a trunk ENI: Nitro or bare metal, and not burstable (EKS user guide, "Security groups for
/// Pods": "the t family is not supported").
#[must_use]
pub fn takes_trunk(instance_type: &InstanceType, limits: &InstanceLimits) -> bool {
    let burstable = instance_type
        .as_str()
        .strip_prefix('t')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    limits.supports_prefixes() && !burstable
}

fn rows() -> impl Iterator<Item = &'static str> {
    TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// One row of the table; `None` when a column is missing or malformed (a test proves that none is).
fn parse(row: &str) -> Option<InstanceLimits> {
    let mut columns = row.split('\t').skip(1);
    Some(InstanceLimits {
        max_enis: columns.next()?.parse().ok()?,
        addresses_per_eni: columns.next()?.parse().ok()?,
        default_network_card: columns.next()?.parse().ok()?,
        network_cards: columns.next()?.split(',').map(parse_card).collect::<Option<_>>()?,
        hypervisor: match columns.next()? {
            "nitro" => Hypervisor::Nitro,
            "xen" => Hypervisor::Xen,
            "unknown" => Hypervisor::Unknown,
            _ => return None,
        },
        bare_metal: columns.next()?.parse().ok()?,
    })
}

fn parse_card(column: &str) -> Option<NetworkCard> {
    let (index, max_enis) = column.split_once(':')?;
    Some(NetworkCard { index: index.parse().ok()?, max_enis: max_enis.parse().ok()? })
}

// === impl InstanceLimits ===

impl InstanceLimits {
    /// ENIs that can carry pods' addresses: those of the default network card. The AWS VPC CNI's `ENILimit` counts
    /// the same; the other cards are for multi-NIC pods.
    #[must_use]
    pub fn enis_for_pods(&self) -> u32 {
        self.network_cards
            .iter()
            .find(|card| card.index == self.default_network_card)
            .map_or(self.max_enis, |card| card.max_enis)
    }

    /// Addresses (or /28 prefixes) that an ENI holds beside its own primary address.
    #[must_use]
    pub fn pod_addresses_per_eni(&self) -> u32 {
        self.addresses_per_eni.saturating_sub(1)
    }

    /// Whether EC2 delegates prefixes to this type: Nitro or bare metal.
    #[must_use]
    pub fn supports_prefixes(&self) -> bool {
        self.hypervisor == Hypervisor::Nitro || self.bare_metal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(instance_type: &str) -> InstanceLimits {
        lookup(&instance_type.parse().unwrap()).expect(instance_type)
    }

    #[test]
    fn every_row_of_the_table_parses_and_finds_itself() {
        assert!(rows().count() >= 1391, "the public table has 1391 types");
        for row in rows() {
            let name = row.split('\t').next().unwrap();
            let limits = parse(row).unwrap_or_else(|| panic!("malformed row: {row}"));
            assert_eq!(lookup(&name.parse().unwrap()), Some(limits.clone()), "{name}");
            assert_eq!(
                limits.max_enis,
                limits.network_cards.iter().map(|c| c.max_enis).sum::<u32>(),
                "{name}: the cards do not add up"
            );
            assert!(limits.pod_addresses_per_eni() > 0 && limits.enis_for_pods() > 0, "{name}");
        }
        assert_eq!(all().count(), rows().count());
    }

    #[test]
    fn max_pods_agrees_with_the_published_list() {
        for (instance_type, shape, pods) in [
            ("m5.large", (3, 10), 29),
            ("t3.small", (3, 4), 11),
            ("m4.4xlarge", (8, 30), 234),
            ("m5.xlarge", (4, 15), 58),
            ("m5.24xlarge", (15, 50), 737),
        ] {
            let limits = of(instance_type);
            assert_eq!((limits.max_enis, limits.addresses_per_eni), shape, "{instance_type}");
            assert_eq!(max_pods(&limits), pods, "{instance_type}");
        }
    }

    #[test]
    fn only_the_default_card_of_several_carries_pods() {
        let limits = of("p4d.24xlarge");
        assert_eq!(
            (limits.max_enis, limits.network_cards.len(), limits.enis_for_pods()),
            (60, 4, 15)
        );
        assert_eq!(max_pods(&limits), 737);
    }

    #[test]
    fn the_commonest_shapes_are_as_common_as_published() {
        let count = |shape: (u32, u32)| {
            all().filter(|(_, l)| (l.enis_for_pods(), l.addresses_per_eni) == shape).count()
        };
        assert!(count((8, 30)) >= 283 && count((15, 50)) >= 263 && count((4, 15)) >= 216);
    }

    #[test]
    fn prefixes_need_nitro_or_bare_metal() {
        for (instance_type, expected) in [
            ("m5.large", true),
            ("u-6tb1.metal", true),
            ("m4.4xlarge", false),
            ("cr1.8xlarge", false),
        ] {
            assert_eq!(of(instance_type).supports_prefixes(), expected, "{instance_type}");
        }
    }

    #[test]
    fn a_trunk_needs_nitro_and_no_burstable_family() {
        for (name, expected) in [
            ("m5.large", true),
            ("t3.small", false),
            ("t4g.large", false),
            ("trn1.32xlarge", true),
            ("m4.large", false),
        ] {
            assert_eq!(takes_trunk(&name.parse().unwrap(), &of(name)), expected, "{name}");
        }
    }

    #[test]
    fn an_unknown_type_is_an_error_with_a_next_step() {
        let error = require(&"m99.huge".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("m99.huge") && error.contains("check the spelling"), "{error}");
        assert_eq!(lookup(&"m5.larg".parse().unwrap()), None, "a prefix of a name is not the name");
    }
}
