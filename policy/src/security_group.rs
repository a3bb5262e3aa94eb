//! Security groups as the cloud has them, resolved: what the resolver hands to the index.
//!
//! A group is stateful and allow-only: a pod's packet passes when a rule of any of its groups allows it. Prefix lists
//! arrive expanded to CIDRs. Deliberately absent: where the rules come from, and how old they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use veni_core::id::SecurityGroupId;

/// All groups that a pod or a rule names, and who is in them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SecurityGroups {
    /// The groups. One that a pod names and that is not here has not been looked up yet: as [`GroupState::Pending`].
    pub groups: BTreeMap<SecurityGroupId, ResolvedGroup>,
    /// Addresses of ENIs in groups that rules refer to. The index adds the pods that choose a group, and takes those
    /// that choose others out.
    pub members: BTreeMap<SecurityGroupId, BTreeSet<IpAddr>>,
}

/// A group's rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupState {
    /// They are, possibly as they were some time ago.
    Resolved,
    /// They cannot be known: the group denies everything, and this says why.
    Unresolved {
        /// For a user, e.g. `sg-1 does not exist in vpc-2`.
        reason: String,
    },
    /// They are not known yet, and whoever resolves goes on asking. On a node a pod that is judged keeps what it has,
    /// with the groups that it had; a new one stays closed.
    Pending {
        /// For a user, e.g. that the cloud does not answer.
        reason: String,
    },
}

impl SecurityGroups {
    /// The state of a group; `None`: it has not been looked up yet.
    #[must_use]
    pub fn state(&self, id: &SecurityGroupId) -> Option<&GroupState> {
        self.groups.get(id).map(|group| &group.state)
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupProtocol {
    /// Every one (EC2's `-1`).
    Any,
    /// The IP protocol of that number.
    Number(u8),
}

/// With whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupPeer {
    /// Addresses in a block.
    Cidr(IpNet),
    /// Members of a group.
    Group(SecurityGroupId),
}
