//! The Kubernetes objects that decide who may talk to whom, trimmed to what decides it.
//!
//! [`parse`] takes any format that deserialises to a [`Value`]. Own structs rather than k8s-openapi's: those drop
//! unknown fields, and a ClusterNetworkPolicy has to fail closed on a peer that it does not know.
//!
//! Invariants: an object that cannot be read is a [`Diagnostic`] and never opens anything. What is invalid inside a
//! policy is replaced at parsing by what closes most (see [`NetworkPolicy`], [`ClusterNetworkPolicy`]), so that every
//! consumer of the structs (index, oracle) gets the same fail-closed object. Deliberately absent: fields that no
//! verdict and no Service translation depends on.

mod cluster_policy;
mod network_policy;
mod node;
mod pod;
mod reader;
mod security_group_policy;
mod selector;
mod service;
mod slice;

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use serde_json::Value;

pub use cluster_policy::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule, Subject, Tier,
};
pub use network_policy::{NetworkPolicy, Peer, PolicyPort, PolicyRule, PortMatch};
pub use node::{Namespace, Node};
pub use pod::{ContainerPort, Pod, PodGroups};
pub use security_group_policy::SecurityGroupPolicy;
pub use selector::{Operator, Requirement, Selector};
pub use service::{Service, ServicePort, ServiceType, TargetPort, TrafficPolicy};
pub use slice::{Endpoint, EndpointPort, EndpointSlice};

use reader::{Reader, Sink};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The label that every namespace has, with its name as the value.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The pod annotation that chooses security groups: ids, separated by commas.
pub const SECURITY_GROUPS_ANNOTATION: &str = "vpc.amazonaws.com/security-groups";
/// The label of a node that names its zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// `vpcresources.k8s.aws/v1beta1` SecurityGroupPolicy.
    SecurityGroupPolicy,
}

/// An object's identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Its namespace; empty for what lives in none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What is wrong with an object, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    /// The object. Its name is empty when it has none that can be read.
    pub key: Key,
    /// The field's path, e.g. `spec.ingress[0].from[1].ipBlock.cidr`; empty when it is the whole object.
    pub field: String,
    /// What is wrong with which value, what was done about it.
    pub message: String,
}

/// Transport protocols that policies and Services can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Any object, trimmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A pod.
    Pod(Pod),
    /// A Service.
    Service(Service),
    /// A slice of a Service's back ends.
    EndpointSlice(EndpointSlice),
    /// A NetworkPolicy.
    NetworkPolicy(NetworkPolicy),
    /// A ClusterNetworkPolicy.
    ClusterNetworkPolicy(ClusterNetworkPolicy),
    /// A SecurityGroupPolicy.
    SecurityGroupPolicy(SecurityGroupPolicy),
}

impl Kind {
    /// The kind's name in manifests.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::SecurityGroupPolicy => "SecurityGroupPolicy",
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
            Self::SecurityGroupPolicy => "vpcresources.k8s.aws/v1beta1",
        }
    }

    const fn is_policy(self) -> bool {
        matches!(self, Self::NetworkPolicy | Self::ClusterNetworkPolicy | Self::SecurityGroupPolicy)
    }

    const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::ClusterNetworkPolicy)
    }

    fn parse(name: &str) -> Option<Self> {
        [
            Self::Namespace,
            Self::Node,
            Self::Pod,
            Self::Service,
            Self::EndpointSlice,
            Self::NetworkPolicy,
            Self::ClusterNetworkPolicy,
            Self::SecurityGroupPolicy,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Key {
    /// The identity of an object.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.key, self.message)
        } else {
            write!(f, "{}: {}: {}", self.key, self.field, self.message)
        }
    }
}

impl Protocol {
    /// The IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The name in manifests: upper case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The protocol of an IP protocol number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The protocol of a manifest's name, upper case as the API demands.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl Object {
    /// Its identity.
    #[must_use]
    pub fn key(&self) -> Key {
        let (kind, namespace, name) = match self {
            Self::Namespace(o) => (Kind::Namespace, "", &o.name),
            Self::Node(o) => (Kind::Node, "", &o.name),
            Self::Pod(o) => (Kind::Pod, o.namespace.as_str(), &o.name),
            Self::Service(o) => (Kind::Service, o.namespace.as_str(), &o.name),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, o.namespace.as_str(), &o.name),
            Self::NetworkPolicy(o) => (Kind::NetworkPolicy, o.namespace.as_str(), &o.name),
            Self::ClusterNetworkPolicy(o) => (Kind::ClusterNetworkPolicy, "", &o.name),
            Self::SecurityGroupPolicy(o) => {
                (Kind::SecurityGroupPolicy, o.namespace.as_str(), &o.name)
            }
        };
        Key::new(kind, namespace, name)
    }

    /// Whether labels were left out that could not be read: an earlier version of it says better what it is.
    #[must_use]
    pub fn lacks_labels(&self) -> bool {
        self.diagnostics().iter().any(|wrong| wrong.field.starts_with("metadata.labels"))
    }

    /// What was wrong inside an object that is in force nevertheless, closed where it was wrong.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            Self::Node(_) => &[],
            Self::Namespace(o) => &o.diagnostics,
            Self::Pod(o) => &o.diagnostics,
            Self::Service(o) => &o.diagnostics,
            Self::EndpointSlice(o) => &o.diagnostics,
            Self::NetworkPolicy(o) => &o.diagnostics,
            Self::ClusterNetworkPolicy(o) => &o.diagnostics,
            Self::SecurityGroupPolicy(o) => &o.diagnostics,
        }
    }
}

/// Reads one object. `Ok(None)`: a kind that decides nothing here.
///
/// # Errors
///
/// All that is wrong with an object that cannot be taken: nameless, or a Service, slice or node with a field of the wrong
/// type. Policies are always taken, closed where they are invalid, and so are pods and namespaces, without what is
/// invalid: [`Object::diagnostics`].
pub fn parse(value: &Value) -> Result<Option<Object>, Vec<Diagnostic>> {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let Some(kind) = Kind::parse(text("kind")) else { return Ok(None) };
    if text("apiVersion") != kind.api_version() {
        return wrong_version(kind, value, text("apiVersion")).map_err(|wrong| vec![wrong]);
    }
    let (key, nameless) = identity(kind, value);
    let sink = Sink::new(key);
    let root = Reader::root(value, &sink);
    note_names(&root);
    let object = match kind {
        Kind::Namespace => Ok(Object::Namespace(Namespace::read(&root))),
        Kind::Node => Node::read(&root).map(Object::Node),
        Kind::Pod => Ok(Object::Pod(Pod::read(&root))),
        Kind::Service => Service::read(&root).map(Object::Service),
        Kind::EndpointSlice => EndpointSlice::read(&root).map(Object::EndpointSlice),
        Kind::NetworkPolicy => Ok(Object::NetworkPolicy(NetworkPolicy::read(&root))),
        Kind::ClusterNetworkPolicy => {
            Ok(Object::ClusterNetworkPolicy(ClusterNetworkPolicy::read(&root)))
        }
        Kind::SecurityGroupPolicy => {
            Ok(Object::SecurityGroupPolicy(SecurityGroupPolicy::read(&root)))
        }
    };
    let Some(nameless) = nameless else { return object.map(Some) };
    let others = object.map_or_else(|wrong| wrong, |object| object.diagnostics().to_vec());
    Err([nameless].into_iter().chain(others).collect())
}

/// Notes a name that the API server would refuse (apimachinery `IsDNS1123Label`, `IsDNS1123Subdomain`): in a cluster the
/// object could not be.
fn note_names(root: &Reader<'_>) {
    let Key { kind, namespace, name } = root.key();
    let at = root.get("metadata");
    let is_label = matches!(kind, Kind::Namespace | Kind::Service);
    for (field, text, is_label) in [("name", name, is_label), ("namespace", namespace, true)] {
        if text.is_empty() || is_name(text, is_label) {
            continue;
        }
        let allowed = if is_label {
            "at most 63 of a-z, 0-9 and '-'"
        } else {
            "at most 253 of a-z, 0-9, '-' and '.'"
        };
        let message = format!(
            "{text:?} is no name that the API server takes (RFC 1123): {allowed}, a letter or digit first and last"
        );
        root.note(at.get(field).invalid(message));
    }
}

fn is_name(text: &str, is_label: bool) -> bool {
    let (parts, most): (Vec<&str>, usize) =
        if is_label { (vec![text], 63) } else { (text.split('.').collect(), 253) };
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_sound = |part: &&str| {
        let bytes = part.as_bytes();
        let ends = bytes.first().zip(bytes.last());
        ends.is_some_and(|(first, last)| is_alphanumeric(*first) && is_alphanumeric(*last))
            && bytes.iter().all(|byte| is_alphanumeric(*byte) || *byte == b'-')
    };
    text.len() <= most && parts.iter().all(is_sound)
}

/// A policy of a version that is not known must not vanish in silence; a Service of another API group is no Service.
fn wrong_version(kind: Kind, value: &Value, found: &str) -> Result<Option<Object>, Diagnostic> {
    if !kind.is_policy() {
        return Ok(None);
    }
    let (key, nameless) = identity(kind, value);
    let message = format!(
        "{found:?} is not {:?}: veni does not enforce it, and the object is not in force",
        kind.api_version()
    );
    Err(nameless.unwrap_or(Diagnostic { key, field: "apiVersion".to_owned(), message }))
}

/// Which object it is, and what is wrong where it has no name.
fn identity(kind: Kind, value: &Value) -> (Key, Option<Diagnostic>) {
    let metadata = |field: &str| {
        value.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
    };
    let (mut namespace, name) = (metadata("namespace"), metadata("name"));
    if !kind.is_namespaced() {
        namespace = "";
    } else if namespace.is_empty() {
        namespace = "default";
    }
    let key = Key::new(kind, namespace, name);
    let nameless = name.is_empty().then(|| Diagnostic {
        key: key.clone(),
        field: "metadata.name".to_owned(),
        message: "is missing or no text; the object is not in force".to_owned(),
    });
    (key, nameless)
}

#[cfg(test)]
mod tests;
