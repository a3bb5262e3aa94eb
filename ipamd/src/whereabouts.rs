//! Who and where this instance is: kept beside the journal, so that a restart serves before instance metadata answers.
//!
//! Invariants: the VPC's CIDRs never shrink on the word of a few answers: what leaves by a CIDR that is missing would be
//! translated in the middle of running connections. What was kept is of this boot: the instance cannot have changed.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use veni_core::{
    ipam::{
        BootTime,
        placement::{Custom, EniPlace},
    },
    limits::InstanceLimits,
    net::Ipv4Prefix,
};
use veni_provider::{InstanceIdentity, MetadataInterface};

use crate::{following::Following, pool::Place};

/// How long every answer must lack a CIDR before it is believed that the VPC has lost it.
const AGREEMENT: Duration = Duration::from_secs(600);

/// What the cloud says of this instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// The instance.
    pub identity: InstanceIdentity,
    /// Its primary ENI.
    pub primary: MetadataInterface,
    /// What its type can hold.
    pub limits: InstanceLimits,
    /// Whether `limits` are a makeshift, because nobody knows the type: asked again at the next start.
    pub makeshift: bool,
    /// With custom networking: where its ENIs are made, as last told.
    #[serde(default)]
    pub custom: Option<Custom>,
    /// The NodeNetworkConfig that was in force last.
    #[serde(default)]
    pub following: Option<Following>,
}

/// The VPC's CIDRs, as far as instance metadata agrees with itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VpcCidrs {
    held: Vec<Ipv4Prefix>,
    /// Since when no answer has shown these.
    missing: BTreeMap<Ipv4Prefix, BootTime>,
}

impl Whereabouts {
    /// Where this node is.
    #[must_use]
    pub fn place(&self) -> Place {
        let instance_id = self.identity.instance_id.clone();
        Place { instance_id, subnet_prefix: self.primary.subnet_cidr }
    }

    /// Where the primary ENI is.
    #[must_use]
    pub fn primary_place(&self) -> EniPlace {
        let MetadataInterface { subnet_id, security_groups, .. } = &self.primary;
        EniPlace { subnet: subnet_id.clone(), security_groups: security_groups.clone() }
    }
}

impl VpcCidrs {
    /// Those that were known at start.
    #[must_use]
    pub fn new(held: Vec<Ipv4Prefix>) -> Self {
        Self { held, missing: BTreeMap::new() }
    }

    /// All that are believed in.
    #[must_use]
    pub fn held(&self) -> &[Ipv4Prefix] {
        &self.held
    }

    /// Takes in an answer: new ones at once, an absence only after [`AGREEMENT`]. Whether anything has changed.
    pub fn observe(&mut self, shown: &[Ipv4Prefix], now: BootTime) -> bool {
        if shown.is_empty() {
            return false;
        }
        let before = self.held.clone();
        self.held.extend(shown.iter().filter(|cidr| !before.contains(*cidr)));
        self.missing.retain(|cidr, _| !shown.contains(cidr));
        for cidr in self.held.iter().filter(|cidr| !shown.contains(*cidr)) {
            self.missing.entry(*cidr).or_insert(now);
        }
        let missing = &mut self.missing;
        self.held.retain(|cidr| missing.get(cidr).is_none_or(|at| now.since(*at) < AGREEMENT));
        missing.retain(|_, at| now.since(*at) < AGREEMENT);
        self.held != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vpc_cidrs_grow_at_once_and_shrink_after_a_long_agreement() {
        let cidrs = |text: &str| -> Vec<Ipv4Prefix> {
            text.split_whitespace().map(|cidr| cidr.parse().unwrap()).collect()
        };
        let mut vpc = VpcCidrs::new(cidrs("10.0.0.0/16"));
        for (secs, shown, expect) in [
            (0, "10.0.0.0/16 10.1.0.0/16", "10.0.0.0/16 10.1.0.0/16"),
            (60, "", "10.0.0.0/16 10.1.0.0/16"),
            (120, "10.0.0.0/16", "10.0.0.0/16 10.1.0.0/16"),
            (660, "10.0.0.0/16 10.1.0.0/16", "10.0.0.0/16 10.1.0.0/16"),
            (720, "10.0.0.0/16", "10.0.0.0/16 10.1.0.0/16"),
            (1_319, "10.0.0.0/16", "10.0.0.0/16 10.1.0.0/16"),
            (1_320, "10.0.0.0/16", "10.0.0.0/16"),
        ] {
            vpc.observe(&cidrs(shown), BootTime(secs * 1000));
            assert_eq!(vpc.held(), cidrs(expect), "at {secs} s, shown {shown:?}");
        }
    }
}
