//! A set's content: the rules of one direction of one pod, flattened; equal contents are one set.

use std::sync::Arc;

use super::AtomId;
use crate::{change::Direction, object::Protocol};

/// Everything that decides a set's verdicts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    pub(crate) direction: Direction,
    /// In the order in which they are asked: by tier, then by precedence.
    pub(crate) rules: Vec<FlatRule>,
    /// The number that stands for "isolated, and no rule matched"; `None`: no NetworkPolicy selects the pod.
    pub(crate) isolated: Option<u32>,
    /// The number that stands for "no NetworkPolicy selects the pod, and this node is strict": what no rule decided is
    /// denied. `None`: allowed.
    pub(crate) unselected: Option<u32>,
    pub(crate) groups: Groups,
}

/// What the security groups say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Groups {
    /// The pod has none.
    Absent,
    /// Their rules are among the rules; the number stands for "no rule matched".
    Rules(u32),
    /// They deny everything, for the reason that the number names.
    Deny(u32),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FlatRule {
    pub(crate) stage: Stage,
    pub(crate) verb: Verb,
    pub(crate) number: u32,
    /// Any of these atoms; `None`: everyone.
    pub(crate) peers: Option<Box<[AtomId]>>,
    /// Whether it names the node itself: any of these, which no other address matches.
    pub(crate) own_node: Box<[AtomId]>,
    /// Any of these; `None`: every protocol and port.
    pub(crate) ports: Option<Box<[FlatPort]>>,
}

/// When a rule is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Stage {
    Admin,
    NetworkPolicy,
    Baseline,
    Group,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    Allow,
    Deny,
    Pass,
}

/// Ports of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum FlatPort {
    /// Of a protocol, by number, both ends included.
    Range { protocol: u8, first: u16, last: u16 },
    /// The peer's port of that name (egress only: on ingress the pod's own are resolved already).
    Named { name: Arc<str>, protocol: Option<Protocol> },
}

/// A named port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NamedPort {
    pub(crate) name: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
}

impl FlatRule {
    /// Whether it holds for the node itself although it does not name it. Only a ClusterNetworkPolicy that names nodes
    /// denies it anything, and security groups are not asked.
    pub(crate) const fn reaches_own_node(&self) -> bool {
        !matches!(self.stage, Stage::Group) && !matches!(self.verb, Verb::Deny)
    }

    fn atoms(&self) -> impl Iterator<Item = AtomId> {
        self.peers.iter().flatten().chain(&self.own_node).copied()
    }
}

impl Content {
    /// Whether it judges nothing: allowed by default.
    pub(crate) fn is_open(&self) -> bool {
        self.rules.is_empty()
            && self.isolated.is_none()
            && self.unselected.is_none()
            && self.groups == Groups::Absent
    }

    /// Whether what no policy allows is denied.
    pub(crate) const fn isolates(&self) -> bool {
        self.isolated.is_some() || self.unselected.is_some()
    }

    /// Numbers of everything that may decide, with repetitions.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> {
        let groups = match self.groups {
            Groups::Absent => None,
            Groups::Rules(number) | Groups::Deny(number) => Some(number),
        };
        let rules = self.rules.iter().map(|rule| rule.number);
        rules.chain(self.isolated).chain(self.unselected).chain(groups)
    }

    /// Atoms of all rules, with repetitions.
    pub(crate) fn atoms(&self) -> impl Iterator<Item = AtomId> {
        self.rules.iter().flat_map(FlatRule::atoms)
    }

    /// Names of ports that rules ask for, with repetitions.
    pub(crate) fn port_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.rules.iter().filter_map(|rule| rule.ports.as_deref()).flatten().filter_map(|port| {
            match port {
                FlatPort::Named { name, .. } => Some(name),
                FlatPort::Range { .. } => None,
            }
        })
    }
}
