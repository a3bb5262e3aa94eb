//! A change of the programs' tables: ordered steps, each one write.
//!
//! Whoever carries them out does so in this order, one after the other, and stops at a failure. What the order
//! promises: after each single step, every (pod, direction, peer, protocol, port) has the verdict of the state before
//! or of the state after, and changes once; a pod whose rule set is another one afterwards changes all at once, at its
//! [`Step::Endpoint`]. Numbers of sets, classes and profiles are used again only after a [`Step::Grace`] that follows
//! their last use.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;
use veni_ebpf_common::table::{
    BackendKey, BackendValue, Decision, PortKey, Profile, ServiceKeyV4, ServiceKeyV6, ServiceValue,
    VerdictKey,
};

/// The set that denies everything: for a pod that is wired and of which nothing is known.
pub const CLOSED_SET: u32 = 1;

/// Which way a packet goes, seen from the pod that the rule set belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// A pod's identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct PodKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The rule sets of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct PodSets {
    /// Judges what comes to it.
    pub ingress: u32,
    /// Judges what leaves it.
    pub egress: u32,
    /// [`PodSets::INGRESS_ISOLATED`] and the like.
    pub flags: u32,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Put this into its map, over what is there.
    Write(Write),
    /// Put these sets into the pod's entry, in one write. Nothing to do when the pod is not wired.
    Endpoint {
        /// The pod.
        pod: PodKey,
        /// Its sets.
        sets: PodSets,
    },
    /// Every established flow is judged again: raise the epoch.
    Epoch,
    /// The node's own addresses are exactly these: what leads to them, and is no front end, is the node's.
    NodeAddresses(BTreeSet<IpAddr>),
    /// Wait until no program that started before is running any more.
    Grace,
    /// Take this out of its map; nothing to do when it is not there.
    Delete(Remove),
}

/// An entry to write, one variant a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// `CLASS_V4`.
    ClassV4 {
        /// The pod's (or node's, or group member's) address.
        address: Ipv4Addr,
        /// Its class.
        class: u32,
    },
    /// `CLASS_V6`.
    ClassV6 {
        /// As in `ClassV4`.
        address: Ipv6Addr,
        /// Its class.
        class: u32,
    },
    /// `CIDR_V4`.
    CidrV4 {
        /// The prefix.
        net: Ipv4Net,
        /// Its class.
        class: u32,
    },
    /// `CIDR_V6`.
    CidrV6 {
        /// The prefix.
        net: Ipv6Net,
        /// Its class.
        class: u32,
    },
    /// `VERDICTS`.
    Verdict {
        /// Set and class.
        key: VerdictKey,
        /// The profile's number.
        profile: u32,
    },
    /// `PROFILES`.
    Profile {
        /// Its number.
        number: u32,
        /// What it says.
        profile: Profile,
    },
    /// `PORTS`.
    Port {
        /// Bits of the key that count: 48 (a whole protocol) to 64 (one port).
        bits: u32,
        /// Profile, protocol, port.
        key: PortKey,
        /// What happens to it.
        decision: Decision,
    },
    /// `SERVICE_V4`.
    ServiceV4 {
        /// The front end.
        key: ServiceKeyV4,
        /// Its back ends.
        value: ServiceValue,
    },
    /// `SERVICE_V6`.
    ServiceV6 {
        /// The front end.
        key: ServiceKeyV6,
        /// Its back ends.
        value: ServiceValue,
    },
    /// `BACKENDS`.
    Backend {
        /// List and slot.
        key: BackendKey,
        /// Address and port.
        value: BackendValue,
    },
}

/// An entry to take out, one variant a map (`PROFILES` is an array: nothing is ever taken out).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remove {
    /// `CLASS_V4`.
    ClassV4(Ipv4Addr),
    /// `CLASS_V6`.
    ClassV6(Ipv6Addr),
    /// `CIDR_V4`.
    CidrV4(Ipv4Net),
    /// `CIDR_V6`.
    CidrV6(Ipv6Net),
    /// `VERDICTS`.
    Verdict(VerdictKey),
    /// `PORTS`.
    Port {
        /// Bits of the key that count.
        bits: u32,
        /// Profile, protocol, port.
        key: PortKey,
    },
    /// `SERVICE_V4`.
    ServiceV4(ServiceKeyV4),
    /// `SERVICE_V6`.
    ServiceV6(ServiceKeyV6),
    /// `BACKENDS`.
    Backend(BackendKey),
}

impl PodSets {
    /// Some policy or security group judges what comes to it.
    pub const INGRESS_ISOLATED: u32 = 1;
    /// Some policy or security group judges what leaves it.
    pub const EGRESS_ISOLATED: u32 = 2;

    /// Of a pod of which nothing is known: nothing passes but its own node's traffic.
    pub const CLOSED: Self = Self::new(CLOSED_SET, CLOSED_SET);

    /// The sets, with the flags that follow from them.
    #[must_use]
    pub const fn new(ingress: u32, egress: u32) -> Self {
        use veni_ebpf_common::table::OPEN_SET;
        let mut flags = 0;
        if ingress != OPEN_SET {
            flags |= Self::INGRESS_ISOLATED;
        }
        if egress != OPEN_SET {
            flags |= Self::EGRESS_ISOLATED;
        }
        Self { ingress, egress, flags }
    }

    /// The set of a direction.
    #[must_use]
    pub const fn of(&self, direction: Direction) -> u32 {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

impl PodKey {
    /// A pod's identity.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As it is written: lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
