//! What a pod may do at its own node.
//!
//! ADR 0023: the node and its own pods may always talk; the exemption ends, for what a pod begins, where an
//! administrator names nodes and this one is among them. Then the tiers are asked, and only what names nodes denies.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{By, Flow, Half, Oracle};
use crate::change::Direction;
use crate::object::{Action, ClusterPeer, ClusterRule, Node, Pod, Tier};

/// The node that judges.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnNode<'a> {
    name: &'a str,
    addresses: &'a BTreeSet<IpAddr>,
}

impl<'a> Oracle<'a> {
    /// As the node of this name judges, which has these addresses: to its own pods it is exempt.
    #[must_use]
    pub fn at_node(self, name: &'a str, addresses: &'a BTreeSet<IpAddr>) -> Self {
        Self { own_node: Some(OwnNode { name, addresses }), ..self }
    }

    /// Whether it is the pod's own node that the pod would talk to.
    pub(super) fn is_own_node(
        &self,
        direction: Direction,
        pod: &Pod,
        address: Option<IpAddr>,
    ) -> bool {
        let (Some(own), Some(address)) = (self.own_node, address) else { return false };
        direction == Direction::Egress
            && pod.node.as_deref() == Some(own.name)
            && own.addresses.contains(&address)
    }

    /// The verdict there. Security groups have no say in it.
    pub(super) fn own_node_half(&self, pod: &Pod, flow: &Flow<'a>) -> Half {
        let exempt = || Half::new(true, By::Default);
        if self.enforcing == veni_core::config::Enforcing::None {
            return exempt();
        }
        let network_policies = self.network_policies(pod, flow);
        // For a pod that NetworkPolicies isolate the Baseline tier is not asked.
        let mut tiers = vec![Tier::Admin];
        if network_policies.is_none() {
            tiers.push(Tier::Baseline);
        }
        let named = tiers
            .into_iter()
            .any(|tier| self.rules_of(tier, pod).any(|(_, _, rule)| self.names_own_node(rule)));
        if !named {
            return exempt();
        }
        if let Some(decided) = self.own_node_tier(Tier::Admin, pod, flow) {
            return decided;
        }
        match network_policies {
            Some(allowed) if allowed.allowed => allowed,
            Some(_) => exempt(),
            None => self.own_node_tier(Tier::Baseline, pod, flow).unwrap_or_else(exempt),
        }
    }

    /// Egress rules of the tier that hold for the pod, in their order.
    fn rules_of(
        &self,
        tier: Tier,
        pod: &'a Pod,
    ) -> impl Iterator<Item = (&'a str, usize, &'a ClusterRule)> {
        self.cluster_policies
            .iter()
            .filter(move |policy| policy.tier == tier && self.subject(&policy.subject, pod))
            .flat_map(|policy| {
                policy
                    .egress
                    .iter()
                    .enumerate()
                    .map(|(index, rule)| (policy.name.as_str(), index, rule))
            })
    }

    fn own_node_tier(&self, tier: Tier, pod: &Pod, flow: &Flow<'a>) -> Option<Half> {
        for (name, rule, cluster_rule) in self.rules_of(tier, pod) {
            let ports = cluster_rule.protocols.as_ref();
            if ports.is_some_and(|list| !list.iter().any(|one| super::cluster_protocol(one, flow)))
            {
                continue;
            }
            let by_node = self.names_own_node(cluster_rule);
            let by_any = cluster_rule.peers.iter().any(|peer| self.cluster_peer(peer, flow.peer));
            let by = By::ClusterNetworkPolicy { name: name.to_owned(), rule };
            match cluster_rule.action {
                Action::Deny if by_node => return Some(Half::new(false, by)),
                Action::Accept if by_node || by_any => return Some(Half::new(true, by)),
                Action::Pass if by_node || by_any => return None,
                _ => {}
            }
        }
        None
    }

    /// Whether one of the rule's `nodes` peers selects the own node. (A rule whose every protocol was invalid says nothing.)
    fn names_own_node(&self, rule: &ClusterRule) -> bool {
        let own = self.own_node.map(|own| own.name);
        let own: Option<&&Node> = self.nodes.iter().find(|node| Some(node.name.as_str()) == own);
        let selects = |peer: &ClusterPeer| match (peer, own) {
            (ClusterPeer::Nodes(selector), Some(node)) => super::matches(selector, &node.labels),
            _ => false,
        };
        rule.protocols.as_ref().is_none_or(|list| !list.is_empty())
            && rule.peers.iter().any(selects)
    }
}
