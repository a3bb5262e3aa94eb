//! The naive evaluator: one verdict at a time, straight from the specifications, over the plain objects.
//!
//! It judges the compiler, so it shares nothing with it: no classes, no sets, no index, no cleverness. Every verdict
//! walks every policy. NetworkPolicy v1, ClusterNetworkPolicy v1alpha2 and EC2's security groups are each one function
//! below, in the order of their specification's text.
//!
//! Where several rules allow alike, any of them may be named: [`Half::rules`] is the list.
//!
//! Deliberately absent: the exemption of what the node makes itself (the programs do it, on what a packet is rather than
//! on addresses), and of the node as a destination unless [`Oracle::at_node`] says which it is; Services (policy sees back ends), established flows.

mod group;
pub mod manifest;
mod own_node;
pub mod systematic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use veni_core::{config::Enforcing, id::SecurityGroupId};

use crate::change::{Direction, PodKey};
use crate::object::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule, Labels, Namespace,
    NetworkPolicy, Node, Object, Peer, Pod, PolicyPort, PolicyRule, PortMatch, SecurityGroupPolicy,
    Selector, Subject, Tier,
};
use crate::security_group::SecurityGroups;

pub use group::Chosen;

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A pod, by its address of the asked family.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An address; a live pod that has it stands for it.
    Address(IpAddr),
}

/// The family in which two pods talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What decided.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// Nothing did.
    Default,
    /// The pod talks to itself.
    Itself,
    /// A rule of a NetworkPolicy.
    NetworkPolicy {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The rule's index; `None` when the policy isolates and no rule allows.
        rule: Option<usize>,
    },
    /// A rule of a ClusterNetworkPolicy.
    ClusterNetworkPolicy {
        /// Its name.
        name: String,
        /// The rule's index.
        rule: usize,
    },
    /// A security group's rule.
    SecurityGroup {
        /// The group.
        group: SecurityGroupId,
        /// The rule's id; `None` when no rule of the pod's groups allows.
        rule: Option<String>,
    },
    /// No NetworkPolicy selects the pod, on a strict node.
    Strict,
    /// Groups were asked for that are no ids, or by a policy of which it is not known whom it selects.
    InvalidGroups,
    /// What EC2's security groups do not filter.
    Unfiltered,
    /// The pod's groups are not known yet, and it never had any: it is closed.
    Unknown,
}

/// The verdict of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// Whether it passes.
    pub allowed: bool,
    /// Every rule that may be named for it; never empty.
    pub rules: BTreeSet<By>,
}

/// The verdict on a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// At its source.
    pub egress: Half,
    /// At its destination.
    pub ingress: Half,
}

/// The evaluator.
#[derive(Debug)]
pub struct Oracle<'a> {
    namespaces: Vec<&'a Namespace>,
    nodes: Vec<&'a Node>,
    pods: Vec<&'a Pod>,
    policies: Vec<&'a NetworkPolicy>,
    cluster_policies: Vec<&'a ClusterNetworkPolicy>,
    group_policies: Vec<&'a SecurityGroupPolicy>,
    groups: &'a SecurityGroups,
    enforcing: Enforcing,
    /// See [`Oracle::attached`].
    attached: Option<&'a BTreeMap<PodKey, Vec<IpAddr>>>,
    /// See [`Oracle::holding`].
    held: Option<&'a BTreeMap<PodKey, Chosen>>,
    /// See [`Oracle::at_node`].
    own_node: Option<own_node::OwnNode<'a>>,
}

/// An end with what is known about it.
#[derive(Debug, Clone, Copy)]
struct Party<'a> {
    address: Option<IpAddr>,
    /// The pod, unless it is on its node's network.
    pod: Option<&'a Pod>,
}

/// A connection, seen from one of its ends.
#[derive(Debug, Clone, Copy)]
struct Flow<'a> {
    direction: Direction,
    peer: Party<'a>,
    destination: Party<'a>,
    protocol: u8,
    /// For ICMP and ICMPv6 type << 8 | code.
    port: u16,
}

impl Verdict {
    /// Whether the connection comes about.
    #[must_use]
    pub const fn allowed(&self) -> bool {
        self.egress.allowed && self.ingress.allowed
    }
}

impl Half {
    fn new(allowed: bool, by: By) -> Self {
        Self { allowed, rules: [by].into() }
    }
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl End {
    /// A pod.
    pub fn pod(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self::Pod { namespace: namespace.into(), name: name.into() }
    }
}

impl<'a> Oracle<'a> {
    /// An evaluator of these objects and resolved groups.
    #[must_use]
    pub fn new(objects: &'a [Object], groups: &'a SecurityGroups) -> Self {
        let mut oracle = Self {
            namespaces: Vec::new(),
            nodes: Vec::new(),
            pods: Vec::new(),
            policies: Vec::new(),
            cluster_policies: Vec::new(),
            group_policies: Vec::new(),
            groups,
            enforcing: Enforcing::default(),
            attached: None,
            held: None,
            own_node: None,
        };
        for object in objects {
            match object {
                Object::Namespace(object) => oracle.namespaces.push(object),
                Object::Node(object) => oracle.nodes.push(object),
                Object::Pod(object) => oracle.pods.push(object),
                Object::NetworkPolicy(object) => oracle.policies.push(object),
                Object::ClusterNetworkPolicy(object) => oracle.cluster_policies.push(object),
                Object::SecurityGroupPolicy(object) => oracle.group_policies.push(object),
                Object::Service(_) | Object::EndpointSlice(_) => {}
            }
        }
        // Ties of priority are undefined; by name is ours.
        oracle.cluster_policies.sort_by_key(|policy| (policy.priority, &policy.name));
        oracle
    }

    /// On a node that enforces policy in this way.
    #[must_use]
    pub fn enforcing(mut self, enforcing: Enforcing) -> Self {
        self.enforcing = enforcing;
        self
    }

    /// As the node judges that gave its pods these addresses: whatever other pods' objects say, they are theirs.
    #[must_use]
    pub fn attached(self, attached: &'a BTreeMap<PodKey, Vec<IpAddr>>) -> Self {
        Self { attached: Some(attached), ..self }
    }

    /// As a node judges that goes on asking for groups that are not known: until they are, a pod has those that it
    /// had, which `held` says; one that had none is closed. Without it such a group denies.
    #[must_use]
    pub fn holding(self, held: &'a BTreeMap<PodKey, Chosen>) -> Self {
        Self { held: Some(held), ..self }
    }

    /// The verdict on a new connection. `port` is the destination's; for ICMP and ICMPv6 it is type << 8 | code. The
    /// family matters for ends that are pods.
    #[must_use]
    pub fn verdict(
        &self,
        from: &End,
        to: &End,
        protocol: u8,
        port: u16,
        family: Family,
    ) -> Verdict {
        let source = self.party(from, family);
        let destination = self.party(to, family);
        Verdict {
            egress: self.half(Direction::Egress, source, destination, protocol, port),
            ingress: self.half(Direction::Ingress, destination, source, protocol, port),
        }
    }

    /// One direction's verdict alone: of a pod on an address that it talks to or that talks to it.
    #[must_use]
    pub fn judge(
        &self,
        direction: Direction,
        pod: &Pod,
        peer: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Half {
        let family = Family::of(peer);
        let subject = self.party(&End::pod(&pod.namespace, &pod.name), family);
        self.half(direction, subject, self.party(&End::Address(peer), family), protocol, port)
    }

    fn party(&self, end: &End, family: Family) -> Party<'a> {
        match end {
            End::Pod { namespace, name } => {
                let pod = self
                    .pods
                    .iter()
                    .find(|pod| pod.namespace == *namespace && pod.name == *name)
                    .copied();
                let of_family = |pod: &Pod| {
                    pod.addresses.iter().find(|address| Family::of(**address) == family).copied()
                };
                Party { address: pod.and_then(of_family), pod: pod.filter(|pod| is_subject(pod)) }
            }
            End::Address(address) => Party { address: Some(*address), pod: self.owner(*address) },
        }
    }

    /// Who has an address. The object of a pod that is gone may still name it, where the pod is stuck in its deletion.
    fn owner(&self, address: IpAddr) -> Option<&'a Pod> {
        let mut given = self.attached.into_iter().flatten();
        let given = given.find(|(_, addresses)| addresses.contains(&address)).map(|(pod, _)| pod);
        let mut owner: Option<&Pod> = None;
        for pod in self.pods.iter().filter(|pod| is_subject(pod)) {
            if !pod.addresses.contains(&address) {
                continue;
            }
            if let Some(given) = given {
                if (&given.namespace, &given.name) == (&pod.namespace, &pod.name) {
                    return Some(pod);
                }
                continue;
            }
            let better = owner.is_none_or(|owner| {
                if pod.deleting != owner.deleting {
                    return owner.deleting;
                }
                let order = pod.created.cmp(&owner.created).then(pod.uid.cmp(&owner.uid));
                let name = |pod: &'a Pod| (&pod.namespace, &pod.name);
                order.then(name(pod).cmp(&name(owner))).is_gt()
            });
            if better {
                owner = Some(pod);
            }
        }
        owner
    }

    /// What one end's policies and security groups say: both must allow.
    fn half(
        &self,
        direction: Direction,
        subject: Party<'a>,
        peer: Party<'a>,
        protocol: u8,
        port: u16,
    ) -> Half {
        if subject.address.is_some() && subject.address == peer.address {
            // A pod cannot be denied access to itself.
            return Half::new(true, By::Itself);
        }
        let Some(pod) = subject.pod else { return Half::new(true, By::Default) };
        let at_node = self.is_own_node(direction, pod, peer.address);
        if self.is_new(pod) {
            return Half::new(at_node, if at_node { By::Default } else { By::Unknown });
        }
        let destination = match direction {
            Direction::Ingress => subject,
            Direction::Egress => peer,
        };
        let flow = Flow { direction, peer, destination, protocol, port };
        if at_node {
            return self.own_node_half(pod, &flow);
        }
        let policy = self.policy(pod, &flow);
        let Some(group) = self.security_groups(pod, &flow) else { return policy };
        match (policy.allowed, group.allowed) {
            (true, false) => group,
            (false, true) => policy,
            _ => {
                let rules = policy.rules.into_iter().chain(group.rules).collect();
                Half { allowed: policy.allowed, rules }
            }
        }
    }

    /// Admin tier, then NetworkPolicies, final for the pods that they select, then Baseline tier, then allowed.
    fn policy(&self, pod: &Pod, flow: &Flow<'a>) -> Half {
        if self.enforcing == Enforcing::None {
            return Half::new(true, By::Default);
        }
        self.tier(Tier::Admin, pod, flow)
            .or_else(|| self.network_policies(pod, flow))
            .or_else(|| self.tier(Tier::Baseline, pod, flow))
            .or_else(|| self.strictness(pod))
            .unwrap_or_else(|| Half::new(true, By::Default))
    }

    /// A strict node denies a pod that no NetworkPolicy is about.
    fn strictness(&self, pod: &Pod) -> Option<Half> {
        let about = |policy: &&NetworkPolicy| {
            policy.namespace == pod.namespace && matches(&policy.pods, &pod.labels)
        };
        let denied = self.enforcing == Enforcing::Strict && !self.policies.iter().any(about);
        denied.then(|| Half::new(false, By::Strict))
    }

    /// The first rule that matches, by priority and then by place in the list. `Pass` leaves the tier.
    fn tier(&self, tier: Tier, pod: &Pod, flow: &Flow<'a>) -> Option<Half> {
        for policy in &self.cluster_policies {
            if policy.tier != tier || !self.subject(&policy.subject, pod) {
                continue;
            }
            let rules = match flow.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            for (rule, cluster_rule) in rules.iter().enumerate() {
                if self.cluster_rule(cluster_rule, flow) {
                    let by = By::ClusterNetworkPolicy { name: policy.name.clone(), rule };
                    return match cluster_rule.action {
                        Action::Accept => Some(Half::new(true, by)),
                        Action::Deny => Some(Half::new(false, by)),
                        Action::Pass => None,
                    };
                }
            }
        }
        None
    }

    /// Any peer and any protocol.
    fn cluster_rule(&self, rule: &ClusterRule, flow: &Flow<'a>) -> bool {
        let protocols = |protocols: &Vec<ClusterProtocol>| {
            protocols.iter().any(|protocol| cluster_protocol(protocol, flow))
        };
        rule.peers.iter().any(|peer| self.cluster_peer(peer, flow.peer))
            && rule.protocols.as_ref().is_none_or(protocols)
    }

    fn cluster_peer(&self, peer: &ClusterPeer, party: Party<'_>) -> bool {
        match peer {
            ClusterPeer::Everything => true,
            ClusterPeer::Pods(subject) => party.pod.is_some_and(|pod| self.subject(subject, pod)),
            ClusterPeer::Nodes(selector) => party.address.is_some_and(|address| {
                self.nodes.iter().any(|node| {
                    node.addresses.contains(&address) && matches(selector, &node.labels)
                })
            }),
            ClusterPeer::Networks(networks) => {
                party.address.is_some_and(|address| networks.iter().any(|net| within(net, address)))
            }
        }
    }

    fn subject(&self, subject: &Subject, pod: &Pod) -> bool {
        self.namespace_matches(&subject.namespaces, &pod.namespace)
            && matches(&subject.pods, &pod.labels)
    }

    /// `None` when no policy isolates the pod in this direction; else what any rule of any of them allows.
    fn network_policies(&self, pod: &Pod, flow: &Flow<'a>) -> Option<Half> {
        let mut isolating = BTreeSet::new();
        let mut allowing = BTreeSet::new();
        for policy in &self.policies {
            let rules = match flow.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let selects = policy.namespace == pod.namespace && matches(&policy.pods, &pod.labels);
            let Some(rules) = rules.as_ref().filter(|_| selects) else { continue };
            let by = |rule| By::NetworkPolicy {
                namespace: policy.namespace.clone(),
                name: policy.name.clone(),
                rule,
            };
            isolating.insert(by(None));
            for (index, rule) in rules.iter().enumerate() {
                if self.policy_rule(policy, rule, flow) {
                    allowing.insert(by(Some(index)));
                }
            }
        }
        if isolating.is_empty() {
            None
        } else if allowing.is_empty() {
            Some(Half { allowed: false, rules: isolating })
        } else {
            Some(Half { allowed: true, rules: allowing })
        }
    }

    /// Any peer and any port; an absent list is any.
    fn policy_rule(&self, policy: &NetworkPolicy, rule: &PolicyRule, flow: &Flow<'a>) -> bool {
        let peers =
            |peers: &Vec<Peer>| peers.iter().any(|peer| self.policy_peer(policy, peer, flow.peer));
        let ports = |ports: &Vec<PolicyPort>| ports.iter().any(|port| policy_port(port, flow));
        rule.peers.as_ref().is_none_or(peers) && rule.ports.as_ref().is_none_or(ports)
    }

    fn policy_peer(&self, policy: &NetworkPolicy, peer: &Peer, party: Party<'_>) -> bool {
        match peer {
            Peer::Pods { namespaces, pods } => {
                let Some(pod) = party.pod else { return false };
                let in_namespace = match namespaces {
                    None => pod.namespace == policy.namespace,
                    Some(selector) => self.namespace_matches(selector, &pod.namespace),
                };
                in_namespace && pods.as_ref().is_none_or(|selector| matches(selector, &pod.labels))
            }
            Peer::Block { cidr, except } => party.address.is_some_and(|address| {
                within(cidr, address) && !except.iter().any(|net| within(net, address))
            }),
        }
    }

    /// A namespace that is not among the objects has only the label that all have.
    fn namespace_matches(&self, selector: &Selector, name: &str) -> bool {
        match self.namespaces.iter().find(|namespace| namespace.name == name) {
            Some(namespace) => matches(selector, &namespace.labels),
            None => matches(selector, &Namespace::named(name).labels),
        }
    }
}

/// Whether policies hold for it: neither finished nor on its node's network. Its address may still be to come.
fn is_subject(pod: &Pod) -> bool {
    !pod.finished && !pod.host_network
}

fn matches(selector: &Selector, labels: &Labels) -> bool {
    use crate::object::Operator::{DoesNotExist, Exists, In, NotIn};
    selector.requirements.iter().all(|requirement| {
        let value = labels.get(&requirement.key);
        match requirement.operator {
            In => value.is_some_and(|value| requirement.values.contains(value)),
            NotIn => value.is_none_or(|value| !requirement.values.contains(value)),
            Exists => value.is_some(),
            DoesNotExist => value.is_none(),
        }
    })
}

/// Bit by bit, so that not even the library's idea of containment is shared.
fn within(net: &IpNet, address: IpAddr) -> bool {
    let same_prefix = |net: u128, address: u128, bits: u32, prefix: u32| {
        (0..prefix).all(|bit| (net >> (bits - 1 - bit)) & 1 == (address >> (bits - 1 - bit)) & 1)
    };
    let prefix = u32::from(net.prefix_len());
    match (net.addr(), address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => {
            same_prefix(u32::from(net).into(), u32::from(address).into(), 32, prefix)
        }
        (IpAddr::V6(net), IpAddr::V6(address)) => {
            same_prefix(net.into(), address.into(), 128, prefix)
        }
        _ => false,
    }
}

/// A port entry names one of TCP, UDP and SCTP: nothing else matches one. A name is looked up, with the protocol, on
/// the destination pod.
fn policy_port(entry: &PolicyPort, flow: &Flow<'_>) -> bool {
    entry.protocol.number() == flow.protocol
        && match &entry.port {
            PortMatch::Any => true,
            PortMatch::Range(first, last) => (*first..=*last).contains(&flow.port),
            PortMatch::Name(name) => flow.destination.pod.is_some_and(|pod| {
                pod.ports.iter().any(|port| {
                    port.name.as_ref() == Some(name)
                        && port.protocol == entry.protocol
                        && port.port == flow.port
                })
            }),
        }
}

/// A named port brings its own protocol.
fn cluster_protocol(entry: &ClusterProtocol, flow: &Flow<'_>) -> bool {
    match entry {
        ClusterProtocol::Ports(port) => policy_port(port, flow),
        ClusterProtocol::Named(name) => flow.destination.pod.is_some_and(|pod| {
            pod.ports.iter().any(|port| {
                port.name.as_ref() == Some(name)
                    && port.protocol.number() == flow.protocol
                    && port.port == flow.port
            })
        }),
    }
}
