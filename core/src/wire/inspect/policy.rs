//! Views of policy: who may talk to whom and which rule says so, what is compiled for a pod, flows as they happen.
//!
//! `venictl` prints these documents from files, and the daemon serves them of what is in force:
//!
//! | path | parameters | answer |
//! |---|---|---|
//! | `/v1/policy` | | [`Standing`] |
//! | `/v1/policy/applied` | `generation` (default: the present one), `wait_millis` (default 10 s) | [`Applied`] once it is in force, 504 if it is not in time |
//! | `/v1/policy/check` | `from`, `to`: `namespace/name` or an address; `protocol`, `port` | [`Flows`], one a family |
//! | `/v1/policy/matrix` | `from`, `to` (optional): `namespace/name` or `namespace` | [`Flows`] |
//! | `/v1/policy/explain` | `pod`: `namespace/name` | [`Explanation`] |
//! | `/v1/flows` | `pod`, `namespace`, `verdict`, `port` (all optional) | [`FlowEvent`]s, a line each, without end |
//!
//! What is asked for and does not exist is answered with 404, what cannot be understood with 400, and the reason as
//! text. Fields are only ever added.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// Verdicts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Flows {
    /// By source, destination, protocol, port, family.
    pub flows: Vec<Flow>,
    /// What was wrong with the objects, and which were left out.
    pub diagnostics: Vec<Diagnostic>,
    /// Not all of it is in the programs' tables yet: packets are judged by what was before, for as long as it is so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

/// How policy stands on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// `NETWORK_POLICY_ENFORCING_MODE`: `none`, `standard` or `strict`.
    pub mode: String,
    /// Whether all objects that exist were read once.
    pub complete: bool,
    /// Whether nothing says where the Services' addresses are: one that is not known is judged as any other.
    #[serde(default)]
    pub ranges_unknown: bool,
    /// How full the tables of established flows are.
    #[serde(default)]
    pub flow_tables: Vec<FlowTable>,
    /// Counts changes of objects, groups and the node's addresses.
    pub generation: u64,
    /// The last generation that is in force.
    pub applied: u64,
    /// Steps that could not be carried out yet.
    pub pending: usize,
    /// When the tables were changed last, milliseconds since 1970 by the node's clock.
    pub changed_millis: Option<u64>,
    /// How often all established flows were to be judged again.
    pub epochs: u64,
    /// How often writing a table failed; each is tried again.
    pub write_failures: u64,
    /// Why it did, while it does.
    pub write_failure: Option<String>,
    /// The node's own addresses that wait for the objects: meanwhile isolated pods take them for strangers'.
    pub waiting_addresses: BTreeSet<IpAddr>,
    /// Pods that are not judged by labels of their own.
    pub unlabelled: Vec<Unlabelled>,
    /// ADDs that labels did not come in time for, by what was done.
    pub unlabelled_adds: BTreeMap<JudgedBy, u64>,
    /// What does not fit the tables, for people.
    pub refused: Vec<String>,
    /// How many things are wrong with objects.
    pub diagnostics: usize,
    /// Pods of this node that are judged.
    pub pods: usize,
    /// Rule sets, classes of addresses, (set, class) entries, rules with a number.
    pub sets: usize,
    /// See `sets`.
    pub classes: usize,
    /// See `sets`.
    pub verdicts: usize,
    /// See `sets`.
    pub rules: usize,
    /// Packets dropped by the programs, by reason.
    pub drops: BTreeMap<String, u64>,
    /// What the programs counted beside them: flows allowed, denied, not tracked, events lost…
    pub counters: BTreeMap<String, u64>,
    /// Flow events that readers were too slow for.
    pub events_missed: u64,
    /// The security groups of this node's pods.
    pub security_groups: Vec<GroupStanding>,
    /// What is not veni's, or is missing of veni's, where pods' packets are judged.
    pub foreign: Vec<ForeignView>,
}

/// A table of established flows. From a full one those are forgotten that were idle longest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTable {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Its entries, within the last minute: a flow by a Service has two.
    pub flows: u64,
    /// How many there can be.
    pub room: u64,
}

/// Something that is not veni's where pods' packets are judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignView {
    /// What, and what to do about it.
    pub what: String,
    /// Whether packets may pass that were not judged.
    pub bypasses: bool,
}

/// A pod that is not judged by labels of its own, because they were not known in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlabelled {
    /// `namespace/name`.
    pub pod: String,
    /// By what instead.
    pub judged_by: JudgedBy,
    /// Why its own are not known.
    pub reason: String,
    /// For how long, seconds.
    pub age_secs: u64,
}

/// What judges a pod whose labels did not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JudgedBy {
    /// The rule sets that the last pod of its name had.
    Predecessor,
    /// The labels that a pod of its name had here, as this node remembers them.
    Remembered,
    /// Nothing: it is closed to all but its own node.
    Closed,
}

/// How a security group stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupStanding {
    /// Its id.
    pub id: String,
    /// `pending` (it denies until it is answered for), `fresh`, `stale` (the last refresh failed, what was known is in
    /// force), `unresolved` (it denies).
    pub state: String,
    /// Why it is unresolved.
    pub reason: Option<String>,
    /// How old the oldest part of what is in force is, seconds.
    pub age_secs: Option<u64>,
    /// What the last refresh failed with.
    pub last_error: Option<String>,
    /// Rules in force.
    pub rules: usize,
    /// What of it admits nobody, and why.
    pub notes: Vec<String>,
}

/// A generation that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Applied {
    /// The last one that is.
    pub applied: u64,
}

/// The verdict on a new connection to a pod's own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `namespace/name` of a pod, or an address.
    pub from: String,
    /// As `from`.
    pub to: String,
    /// In upper case.
    pub protocol: String,
    /// The destination's; for ICMP and ICMPv6 type × 256 + code.
    pub port: u16,
    /// When one of the two has both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The Service (`namespace/name`, or the pod of a hostPort) whose address was asked for; `to` and `port` are those of
    /// one of its back ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// By both sides.
    pub allowed: bool,
    /// What says so.
    pub decided_by: DecidedBy,
    /// What the security groups of the two say by themselves, where they have some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_groups: Option<GroupVerdicts>,
}

/// What security groups say, whatever policies do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupVerdicts {
    /// Those of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Decision>,
    /// Those of the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Decision>,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

/// What decided at each end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecidedBy {
    /// At the source.
    pub egress: Decision,
    /// At the destination.
    pub ingress: Decision,
}

/// What decided at one end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Decision {
    /// An object.
    Rule(RuleRef),
    /// No object.
    Default {
        /// What happens.
        default: DefaultVerdict,
        /// Why, where it is not for want of policies: `self`, `unknown_pod`, `invalid_groups`, …
        #[serde(default, skip_serializing_if = "Option::is_none")]
        because: Option<String>,
    },
}

/// What happens without a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultVerdict {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
}

/// A rule of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleRef {
    /// `NetworkPolicy`, `ClusterNetworkPolicy`, `SecurityGroup`.
    pub kind: String,
    /// For what lives in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The object's; of a security group its id.
    pub name: String,
    /// For a ClusterNetworkPolicy: `Admin` or `Baseline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Its place in the object's list for the direction, from 0, or its id (`sgr-…`). `None`: the object isolates, and
    /// no rule of it or of another allows.
    pub rule: Option<RuleName>,
    /// Why, where no rule says it (a security group that cannot be resolved).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Which rule of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RuleName {
    /// From 0.
    Index(u32),
    /// `sgr-…`.
    Id(String),
}

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Diagnostic {
    /// E.g. `Pod x/a`; empty when it cannot be told.
    pub object: String,
    /// E.g. `spec.ingress[0].from[1]`; empty when it is the whole object.
    pub field: String,
    /// What is wrong with which value, and what follows.
    pub message: String,
    /// Where the object is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Which of the file's documents, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<u64>,
    /// Which line of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
}

/// What holds for a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Explanation {
    /// `namespace/name`.
    pub pod: String,
    /// Its own addresses, or its node's.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Those of its namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// Whether it is on its node's network, where no policy holds.
    #[serde(default)]
    pub host_network: bool,
    /// The security groups that it has.
    #[serde(default)]
    pub security_groups: Vec<GroupView>,
    /// What leaves it.
    pub egress: Side,
    /// What comes to it.
    pub ingress: Side,
    /// Anything else that has to be known, as sentences (labels not known yet; the last persisted set is in force).
    #[serde(default)]
    pub notes: Vec<String>,
    /// What is wrong with the objects that apply to it.
    #[serde(default)]
    pub diagnostics: Vec<Diagnostic>,
    /// See [`Flows::pending`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

/// A security group of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its id.
    pub id: String,
    /// Why its rules are not known, so that it denies everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unresolved: Option<String>,
}

/// What holds in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Side {
    /// Whether a NetworkPolicy isolates it.
    pub isolated: bool,
    /// The policies that select the pod, in the order in which they are asked.
    pub policies: Vec<PolicyRef>,
    /// The compiled table; the last entry is for everyone else.
    pub table: Vec<TableEntry>,
}

/// A policy that selects a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRef {
    /// `NetworkPolicy` or `ClusterNetworkPolicy`.
    pub kind: String,
    /// For what lives in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// For a ClusterNetworkPolicy: `Admin` or `Baseline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// For a ClusterNetworkPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// How many rules it has in this direction.
    pub rules: u32,
}

/// Peers that no rule can tell apart, and what they may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEntry {
    /// Pods (`namespace/name`) and CIDRs; empty: everyone who is in no other entry.
    pub peers: Vec<String>,
    /// What they may, range by range; what is in none has the last.
    pub ports: Vec<PortEntry>,
}

/// Ports with one decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortEntry {
    /// In upper case; `*`: every protocol.
    pub protocol: String,
    /// First port.
    pub first: u16,
    /// Last port, included.
    pub last: u16,
    /// Whether they pass.
    pub allowed: bool,
    /// What says so.
    pub decided_by: Decision,
}

/// Something that happened to a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEvent {
    /// Milliseconds since 1970, by the node's clock.
    pub time_millis: u64,
    /// What happened.
    pub verdict: Verdict,
    /// Whose program it was: `namespace/name`.
    pub pod: String,
    /// Seen from `pod`.
    pub direction: Direction,
    /// The other end, when it is a pod that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it goes, after Service translation.
    pub destination: SocketAddr,
    /// In upper case, or the number.
    pub protocol: String,
    /// What decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<Decision>,
    /// Why a packet was dropped that no rule was asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Events that were lost or held back by the rate limit before this one.
    #[serde(default)]
    pub lost: u64,
}

/// What happened to a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is new and passes.
    Allowed,
    /// A policy or a security group refuses it.
    Denied,
    /// It was dropped for another reason.
    Dropped,
}

/// Into or out of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Out of it.
    Egress,
    /// Into it.
    Ingress,
}

// === impl Family ===

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Its name, as Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Decision ===

impl Decision {
    /// No object decided.
    #[must_use]
    pub const fn default_of(default: DefaultVerdict) -> Self {
        Self::Default { default, because: None }
    }

    /// No object decided, for a reason.
    #[must_use]
    pub fn because(default: DefaultVerdict, because: &str) -> Self {
        Self::Default { default, because: Some(because.to_owned()) }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => rule.fmt(f),
            Self::Default { default, because } => {
                f.write_str(match default {
                    DefaultVerdict::Allow => "allowed by default",
                    DefaultVerdict::Deny => "denied by default",
                })?;
                because.as_ref().map_or(Ok(()), |because| write!(f, " ({because})"))
            }
        }
    }
}

// === impl JudgedBy ===

impl JudgedBy {
    /// Its name in documents and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Predecessor => "predecessor",
            Self::Remembered => "remembered",
            Self::Closed => "closed",
        }
    }

    /// What holds for the pod, as a sentence's end.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Predecessor => "judged by the rule sets of the last pod of its name",
            Self::Remembered => "judged by the labels that a pod of its name had here before",
            Self::Closed => "closed to all but its own node",
        }
    }
}

// === impl RuleRef ===

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)?;
        if let Some(tier) = &self.tier {
            write!(f, " ({tier})")?;
        }
        match &self.rule {
            Some(RuleName::Index(index)) => write!(f, " rule {index}"),
            Some(RuleName::Id(id)) => write!(f, " rule {id}"),
            None => f.write_str(", no rule of which allows it"),
        }?;
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

// === impl Diagnostic ===

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match (&self.file, self.line, self.document) {
            (Some(file), Some(line), _) => format!("{file}:{line}"),
            (Some(file), None, Some(document)) => format!("{file}, document {document}"),
            (Some(file), None, None) => file.clone(),
            (None, ..) => String::new(),
        };
        for part in [&place, &self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

// === impl Verdict ===

impl Verdict {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Dropped => "dropped",
        }
    }
}

// === impl FlowEvent ===

impl FlowEvent {
    /// Source and destination as names where they are pods.
    #[must_use]
    pub fn ends(&self) -> (Option<&str>, Option<&str>) {
        let (pod, peer) = (Some(self.pod.as_str()), self.peer.as_deref());
        match self.direction {
            Direction::Egress => (pod, peer),
            Direction::Ingress => (peer, pod),
        }
    }
}
