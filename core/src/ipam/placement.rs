//! Where ENIs are made: where the primary is, or where an ENIConfig says (custom networking).
//!
//! Invariants: a pod gets a new address only in a subnet that is meant for it now; what is in another one rests or leaves, and a
//! pod that has an address there keeps it.

use serde::{Deserialize, Serialize};

use super::{Eni, Phase, plan::PoolLimits};
use crate::{
    id::{SecurityGroupId, SubnetId},
    net::Ipv4Prefix,
};

/// Where one ENI is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniPlace {
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
}

/// Where the ENIs of a node with custom networking are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// What says so, for people: `ENIConfig eu-central-1a`.
    pub source: String,
    /// The subnets, at least one, in the order in which they are taken.
    pub subnets: Vec<PlacedSubnet>,
    /// The security groups of new ENIs; none: those of the primary ENI.
    pub security_groups: Vec<SecurityGroupId>,
}

/// A subnet of a [`Placement`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedSubnet {
    /// Its id.
    pub id: SubnetId,
    /// Its CIDR, where known.
    pub prefix: Option<Ipv4Prefix>,
}

/// Custom networking, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custom {
    /// What was in force last; `None`: nothing was known yet.
    pub placement: Option<Placement>,
    /// Why no ENI is made, and which object is waited for; `None`: `placement` is in force.
    pub waits_for: Option<String>,
}

/// Where this node's ENIs are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networking {
    /// Where the primary ENI is.
    pub primary: EniPlace,
    /// With custom networking: what is known of it.
    pub custom: Option<Custom>,
}

/// What an ENI is to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It gives pods addresses.
    Serves,
    /// It gives none, and stays.
    Rests,
    /// It gives none, and goes when its last pod has gone.
    Leaves,
}

// === impl Custom ===

impl Default for Custom {
    fn default() -> Self {
        let waits_for = Some("the ENIConfig of this node, which is not known yet".to_owned());
        Self { placement: None, waits_for }
    }
}

// === impl Placement ===

impl Placement {
    /// Whether `subnet` is one of its.
    #[must_use]
    pub fn names(&self, subnet: &SubnetId) -> bool {
        self.subnets.iter().any(|placed| placed.id == *subnet)
    }
}

// === impl Networking ===

impl Networking {
    /// As the primary ENI.
    #[must_use]
    pub fn of_primary(primary: EniPlace) -> Self {
        Self { primary, custom: None }
    }

    /// Why no ENI is made, and which object is waited for.
    #[must_use]
    pub fn waits_for(&self) -> Option<&str> {
        self.custom.as_ref()?.waits_for.as_deref()
    }

    /// What was last known of custom networking.
    #[must_use]
    pub fn placement(&self) -> Option<&Placement> {
        self.custom.as_ref()?.placement.as_ref()
    }

    /// Where ENIs can be made now, best first. None while it is not known where.
    pub fn places(&self) -> impl Iterator<Item = EniPlace> + '_ {
        let primary = self.custom.is_none().then(|| self.primary.clone());
        let placement = self.placement().filter(|_| self.waits_for().is_none());
        let placed = placement.into_iter().flat_map(|placement| {
            let security_groups = match placement.security_groups.is_empty() {
                true => &self.primary.security_groups,
                false => &placement.security_groups,
            };
            placement.subnets.iter().map(|subnet| EniPlace {
                subnet: subnet.id.clone(),
                security_groups: security_groups.clone(),
            })
        });
        primary.into_iter().chain(placed)
    }

    /// What `eni` is to the pool. As long as nothing is known of custom networking, what is not in the primary's subnet is taken
    /// for rightly placed.
    #[must_use]
    pub fn standing(&self, eni: &Eni) -> Standing {
        let subnet = self.subnet_of(eni);
        match (&self.custom, self.placement()) {
            (None, _) if eni.primary || *subnet == self.primary.subnet => Standing::Serves,
            (None, _) => Standing::Leaves,
            (Some(_), _) if eni.primary => Standing::Rests,
            (Some(_), Some(placement)) if placement.names(subnet) => Standing::Serves,
            (Some(_), Some(_)) => Standing::Leaves,
            (Some(_), None) if *subnet == self.primary.subnet => Standing::Rests,
            (Some(_), None) => Standing::Serves,
        }
    }

    /// How many addresses the instance can hold for pods.
    #[must_use]
    pub fn capacity(&self, limits: PoolLimits) -> u32 {
        let enis = limits.max_enis.saturating_sub(u32::from(self.custom.is_some()));
        enis * limits.per_eni
    }

    /// Where an ENI is, or will be.
    fn subnet_of<'a>(&'a self, eni: &'a Eni) -> &'a SubnetId {
        match (&eni.facts, &eni.phase) {
            (Some(facts), _) => &facts.subnet,
            (None, Phase::Creating { place: Some(place), .. }) => &place.subnet,
            // A plan of an ipamd that made ENIs nowhere else.
            (None, _) => &self.primary.subnet,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ipam::{BootTime, EniFacts, Ledger, Record},
        marks::EniSlot,
    };

    fn networking(custom: Option<Custom>) -> Networking {
        let subnet: SubnetId = "subnet-node".parse().unwrap();
        let security_groups = vec!["sg-node".parse().unwrap()];
        Networking { primary: EniPlace { subnet, security_groups }, custom }
    }

    fn placement(subnets: &[&str], groups: &[&str]) -> Placement {
        let placed = |id: &&str| PlacedSubnet { id: id.parse().unwrap(), prefix: None };
        Placement {
            source: "ENIConfig x".into(),
            subnets: subnets.iter().map(placed).collect(),
            security_groups: groups.iter().map(|id| id.parse().unwrap()).collect(),
        }
    }

    fn in_force(placement: Placement) -> Option<Custom> {
        Some(Custom { placement: Some(placement), waits_for: None })
    }

    fn lost(placement: Placement) -> Option<Custom> {
        Some(Custom { placement: Some(placement), waits_for: Some("ENIConfig x".into()) })
    }

    #[test]
    fn enis_are_made_where_the_primary_is_or_where_the_placement_says_and_nowhere_before_it_is_known()
     {
        let check = |custom: Option<Custom>, expect: &[(&str, &str)]| {
            let places: Vec<_> = networking(custom).places().collect();
            let places: Vec<_> =
                places.iter().map(|p| (p.subnet.as_str(), p.security_groups[0].as_str())).collect();
            assert_eq!(places, expect);
        };
        check(None, &[("subnet-node", "sg-node")]);
        check(Some(Custom::default()), &[]);
        check(
            in_force(placement(&["subnet-a", "subnet-b"], &["sg-x"])),
            &[("subnet-a", "sg-x"), ("subnet-b", "sg-x")],
        );
        check(in_force(placement(&["subnet-a"], &[])), &[("subnet-a", "sg-node")]);
        check(lost(placement(&["subnet-a"], &[])), &[]);
    }

    #[test]
    fn an_eni_serves_rests_or_leaves_by_its_subnet() {
        use Standing::{Leaves, Rests, Serves};
        let standing = |custom: Option<Custom>, subnet: &str, primary: bool| {
            let mut ledger = Ledger::default();
            let slot = EniSlot::new(0, u8::from(!primary)).unwrap();
            let facts = EniFacts {
                id: "eni-1".parse().unwrap(),
                mac: crate::net::Mac::local(1),
                subnet: subnet.parse().unwrap(),
                subnet_prefix: None,
                primary_address: std::net::Ipv4Addr::new(10, 0, 0, 4),
            };
            let record = Record::EniAdopted {
                slot,
                primary,
                eni: facts,
                addresses: Vec::new(),
                attachment: Some("eni-attach-1".parse().unwrap()),
                protected: true,
                at: BootTime(0),
            };
            ledger.apply(&record).unwrap();
            networking(custom).standing(ledger.eni(slot).unwrap())
        };
        for (custom, expect) in [
            (None, [Serves, Serves, Leaves, Leaves]),
            (Some(Custom::default()), [Rests, Rests, Serves, Serves]),
            (in_force(placement(&["subnet-a"], &[])), [Rests, Leaves, Serves, Leaves]),
            (lost(placement(&["subnet-a"], &[])), [Rests, Leaves, Serves, Leaves]),
            (in_force(placement(&["subnet-node"], &[])), [Rests, Serves, Leaves, Leaves]),
        ] {
            let got = [
                ("subnet-node", true),
                ("subnet-node", false),
                ("subnet-a", false),
                ("subnet-b", false),
            ]
            .map(|(subnet, primary)| standing(custom.clone(), subnet, primary));
            assert_eq!(got, expect, "{custom:?}");
        }
    }
}
