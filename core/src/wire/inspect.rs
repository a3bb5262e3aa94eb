//! Views of the daemon's state, for `venictl` and the introspection endpoint. Fields are only ever added.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{Attachment, PodRef};
use crate::{
    id::{EniId, IfName, InstanceId, InstanceType, SubnetId},
    net::{Ipv4Prefix, Mac},
};

pub mod policy;

/// What to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct Query {
    /// With every address, not only the sums.
    #[serde(default)]
    pub addresses: bool,
}

/// The whole view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The daemon.
    pub daemon: Daemon,
    /// The node.
    pub node: Node,
    /// Sums over the pool.
    pub pool: Pool,
    /// The ENIs, primary first.
    pub enis: Vec<Eni>,
    /// Every address, when asked for.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// The last plan: what is wanted, what is waited for, and why.
    pub plan: PlanView,
    /// What is wrong now, newest first: each with its next step.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Settings in force, by variable name.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// The object that some of them are of, where one is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<Overrides>,
    /// Packets dropped by the filter on this node, by reason.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// What was repaired since the start (rule, route, nft table…), by kind.
    #[serde(default)]
    pub repairs: BTreeMap<String, u64>,
}

/// The daemon itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_secs: u64,
    /// Whether an ADD can be served now.
    pub ready: bool,
    /// Which cloud provider: `aws` or `sim`.
    pub provider: String,
}

/// The node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The EC2 instance.
    pub instance_id: InstanceId,
    /// Its type.
    pub instance_type: InstanceType,
    /// The primary ENI's address.
    pub address: Ipv4Addr,
    /// ENIs that the type allows (or `MAX_ENI`).
    pub max_enis: u32,
    /// Addresses that an ENI of the type can hold, its primary included.
    pub addresses_per_eni: u32,
    /// The VPC's IPv4 CIDRs.
    pub vpc_cidrs: Vec<Ipv4Prefix>,
}

/// Sums over the pool. ENIs' primary addresses are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pool {
    /// All secondary addresses held.
    pub total: u32,
    /// Assigned to pods.
    pub assigned: u32,
    /// Free to be assigned now.
    pub available: u32,
    /// Released, not to be reused yet.
    pub cooling: u32,
    /// On their way back to the cloud.
    pub releasing: u32,
    /// Asked of the cloud, not here yet.
    pub pending: u32,
    /// ADDs that wait for an address.
    pub waiting: u32,
}

/// An ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    /// Its id; absent while it is being created.
    pub id: Option<EniId>,
    /// Whether it is the instance's first.
    pub primary: bool,
    /// Its place on the instance.
    pub device_index: u8,
    /// Its state: `creating`, `attaching`, `in_use`, `draining`, `detaching`, `deleting`.
    pub phase: String,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// The link on the node.
    pub ifname: Option<IfName>,
    /// Its subnet.
    pub subnet: Option<SubnetId>,
    /// Its own address.
    pub primary_address: Option<Ipv4Addr>,
    /// Its routing table and packet mark.
    pub table: u32,
    /// See `table`.
    pub mark: u32,
    /// Sums over its addresses.
    pub pool: Pool,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub address: Ipv4Addr,
    /// Its ENI.
    pub eni: EniId,
    /// `available`, `assigned`, `cooling` or `releasing`.
    pub state: String,
    /// For a cooling one: milliseconds left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooling_millis: Option<u64>,
    /// For an assigned one: its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// For an assigned one: its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// For an assigned one: its veth on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ifname: Option<IfName>,
}

/// The planner's last answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlanView {
    /// How many addresses the targets ask for beyond the assigned ones and the waiting ADDs.
    pub wanted: u32,
    /// Steps that run now.
    pub running: Vec<String>,
    /// Why each step was planned, and why others were not.
    pub reasons: Vec<String>,
    /// What is waited for, with the remaining milliseconds where known.
    pub waiting_for: Vec<String>,
}

/// Settings that are an object's, and not the daemon's variables'.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Overrides {
    /// The object, e.g. `NodeNetworkConfig large`.
    pub object: String,
    /// Its generation that is in force.
    pub generation: i64,
    /// The variables that it takes the place of.
    pub variables: Vec<String>,
}

/// Something wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable word: `subnet_full`, `throttled`, `denied`, `limit_reached`, `address_lost`, …
    pub kind: String,
    /// What it is about and what to do next.
    pub message: String,
    /// Seconds since it was first seen.
    pub age_secs: u64,
}
