//! Security groups as the cloud has them, resolved: what the resolver hands to the index.
//!
//! A group is stateful and allow-only: a pod's packet passes when a rule of any of its groups allows it. Prefix lists
//! arrive expanded to CIDRs. Deliberately absent: where the rules come from, and how old they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use veni_core::id::SecurityGroupId;

/// All groups that a pod or a rule names, and who is in them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SecurityGroups {
    /// The groups. One that a pod names and that is not here denies, as an unresolved one does.
    pub groups: BTreeMap<SecurityGroupId, ResolvedGroup>,
    /// Addresses of ENIs in groups that rules refer to. The index adds veni's own pods.
    pub members: BTreeMap<SecurityGroupId, BTreeSet<IpAddr>>,
}

/// A group's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedGroup {
    /// The group.
    pub id: SecurityGroupId,
    /// Whether the rules are known.
    pub state: GroupState,
    /// What it allows in.
    pub ingress: Vec<GroupRule>,
    /// What it allows out.
    pub egress: Vec<GroupRule>,
}

/// Whether a group's rules are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupState {
    /// They are, possibly as they were some time ago.
    Resolved,
    /// They never were: the group denies everything, and this says why.
    Unresolved {
        /// For a user, e.g. `sg-1 does not exist in vpc-2`.
        reason: String,
    },
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupRule {
    /// Its id, `sgr-…`. A rule expanded from a prefix list is there once for each CIDR, under one id.
    pub id: String,
    /// Which protocol.
    pub protocol: GroupProtocol,
    /// First port; for ICMP and ICMPv6 type << 8 | code. 0 for protocols without ports.
    pub first: u16,
    /// Last port, included. 65535 for protocols without ports.
    pub last: u16,
    /// With whom.
    pub peer: GroupPeer,
}

/// Which protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupProtocol {
    /// Every one (EC2's `-1`).
    Any,
    /// The IP protocol of that number.
    Number(u8),
}

/// With whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupPeer {
    /// Addresses in a block.
    Cidr(IpNet),
    /// Members of a group.
    Group(SecurityGroupId),
}
