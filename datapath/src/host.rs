//! The node's own networking: rules, routes, ENI links and sysctls, as a desired state that is compared with the
//! kernel's and repaired.
//!
//! Invariants: [`desired()`] is pure; [`reconcile()`] is idempotent and touches only what is ours (rules and routes with
//! protocol [`PROTOCOL`], the addresses and links of the ENIs handed in, the qdiscs of the pods handed in) and what
//! demonstrably breaks it (routes of the main table out of a secondary ENI, a pod's address on a link of the node).
//! Anything else that is suspicious is reported as a [`Conflict`], not changed.
//!
//! Everything acts in the calling thread's network namespace.
//!
//! Deliberately absent: removing routes of pods that are not in the list. They go with their veth, and a pod that is
//! being wired at this moment is not in a list made a moment ago.

use std::{net::Ipv4Addr, path::PathBuf};

use veni_core::{
    marks::{EniMarkMask, EniSlot},
    net::{Ipv4Prefix, Mac},
    wire::FilterBlocks,
};

pub mod desired;
pub mod link;
pub mod qdisc;
mod reconcile;
pub mod route;
pub mod rule;

pub use desired::{Desired, desired};
pub use link::{Link, addresses, links};
pub use reconcile::reconcile;
pub use route::{on_links as routes_on_links, pods as pod_routes};

/// `protocol` of every rule and route that is ours (`FRA_PROTOCOL`, `rtm_protocol`): unassigned in
/// `include/uapi/linux/rtnetlink.h` and in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = crate::netlink::OWN_PROTOCOL;

/// What the node's network has to look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// The primary ENI.
    pub primary: EniLink,
    /// The secondary ENIs whose link is there.
    pub secondary: Vec<EniLink>,
    /// Which bits of a packet's mark name the ENI.
    pub mask: EniMarkMask,
    /// `VENI_TABLE_BASE`.
    pub table_base: u32,
    /// The connection mark of what belongs to the primary ENI (`AWS_VPC_K8S_CNI_CONNMARK`).
    pub connmark: u32,
    /// `AWS_VPC_CNI_NODE_PORT_SUPPORT`.
    pub node_port_support: bool,
    /// `AWS_VPC_K8S_CNI_EXTERNALSNAT`.
    pub external_snat: bool,
    /// `AWS_EXTERNAL_SERVICE_CIDRS`.
    pub external_service_cidrs: Vec<Ipv4Prefix>,
    /// The filter's blocks; `None` when the daemon runs without it.
    pub blocks: Option<FilterBlocks>,
    /// The node's `/proc/sys/net`.
    pub sysctl_dir: PathBuf,
}

/// An ENI and its link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniLink {
    /// Its number on the node.
    pub slot: EniSlot,
    /// Its MAC.
    pub mac: Mac,
    /// The link's index.
    pub ifindex: u32,
    /// The link's name.
    pub ifname: String,
    /// Its primary address.
    pub address: Ipv4Addr,
    /// Its subnet.
    pub subnet: Ipv4Prefix,
    /// The link's MTU (secondary ENIs only; the primary's is left alone).
    pub mtu: u32,
}

/// A pod whose wiring is complete: its route and its qdisc are kept in place.
///
/// A pod whose ADD is still under way must not be handed in: the plugin creates the same objects and takes an
/// existing one for a leftover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLink {
    /// Its address.
    pub address: Ipv4Addr,
    /// The index of its veth on the node.
    pub ifindex: u32,
    /// The veth's name.
    pub ifname: String,
}

/// What [`reconcile`] found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// What was not as it should be and is now.
    pub repaired: Vec<Repair>,
    /// What is in the way and was left alone.
    pub conflicts: Vec<Conflict>,
    /// What could not be repaired of the node and its ENIs, as error chains in one line each.
    pub failed: Vec<String>,
    /// The same of single pods: no ENI waits for them.
    pub failed_pods: Vec<String>,
}

/// One repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// Of what kind.
    pub kind: RepairKind,
    /// Which one, for people: `rule 1536: fwmark 0x20000/0xff0000 lookup 7602`.
    pub what: String,
}

/// Kinds of repairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RepairKind {
    /// An ip rule.
    Rule,
    /// A route of an ENI's table.
    Route,
    /// A pod's route.
    PodRoute,
    /// An ENI's address.
    Address,
    /// An ENI's link state or MTU.
    Link,
    /// A sysctl.
    Sysctl,
    /// A clsact qdisc.
    Qdisc,
    /// The filter on a block, or the links that keep the block.
    Filter,
    /// The nftables table.
    Nft,
    /// Something of another program that broke ours and was removed.
    Foreign,
}

/// Something of another program that may break pods' traffic and was left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// A rule that is looked at before ours.
    Rule {
        /// The rule.
        rule: String,
    },
    /// A route of the main table out of a secondary ENI, made by hand.
    Route {
        /// The route.
        route: String,
    },
    /// An address on a secondary ENI that is not its primary one.
    Address {
        /// The link.
        ifname: String,
        /// The address.
        address: Ipv4Addr,
    },
}

// === impl RepairKind ===

impl RepairKind {
    /// The name in metrics and views.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Route => "route",
            Self::PodRoute => "pod_route",
            Self::Address => "address",
            Self::Link => "link",
            Self::Sysctl => "sysctl",
            Self::Qdisc => "qdisc",
            Self::Filter => "filter",
            Self::Nft => "nft",
            Self::Foreign => "foreign",
        }
    }
}

// === impl Conflict ===

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rule { rule } => write!(
                f,
                "{rule} is looked at before veni's rules: pods' packets that it matches leave by the wrong table; \
                 remove it or give it a priority above 1536"
            ),
            Self::Route { route } => write!(
                f,
                "{route} leads the node's own traffic out of a secondary ENI, where EC2 drops it unless the source \
                 is that ENI's; remove it"
            ),
            Self::Address { ifname, address } => write!(
                f,
                "{address} on {ifname} was not put there by veni: no pod can use it while the node answers for it; \
                 stop the program that configures {ifname} (networkd, ec2-net-utils)"
            ),
        }
    }
}

// === impl EniLink ===

impl EniLink {
    /// The VPC router: its address is the subnet's second.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet.vpc_router()
    }
}
