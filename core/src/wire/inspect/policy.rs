//! Views of policy: who may talk to whom and which rule says so, what is compiled for a pod, flows as they happen.
//!
//! `venictl` prints these documents from files, and the daemon serves them of what is in force:
//!
//! | path | parameters | answer |
//! |---|---|---|
//! | `/v1/policy/check` | `from`, `to`: `namespace/name` or an address; `protocol`, `port` | [`Flows`], one a family |
//! | `/v1/policy/matrix` | `from`, `to` (optional): `namespace/name` or `namespace` | [`Flows`] |
//! | `/v1/policy/explain` | `pod`: `namespace/name` | [`Explanation`] |
//! | `/v1/flows` | `pod`, `namespace`, `verdict`, `port` (all optional) | [`FlowEvent`]s, a line each, without end |
//!
//! What is asked for and does not exist is answered with 404, what cannot be understood with 400, and the reason as
//! text. Fields are only ever added.

use std::{
    collections::BTreeMap,
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
