//! Security groups: allow-only, any rule of any of a pod's groups allows.

use std::{collections::BTreeSet, net::IpAddr};

use veni_core::id::SecurityGroupId;

use super::{By, Flow, Half, Oracle, Party, matches, within};
use crate::change::{Direction, PodKey};
use crate::object::Pod;
use crate::security_group::{GroupPeer, GroupProtocol, GroupRule, GroupState, ResolvedGroup};

/// The groups that a pod's annotation and the SecurityGroupPolicies of its namespace choose.
#[derive(Debug, Clone, Default)]
pub struct Chosen {
    ids: BTreeSet<SecurityGroupId>,
    /// Something was asked for that is no id.
    invalid: bool,
    any: bool,
}

impl Oracle<'_> {
    /// `None` for a pod without groups. A group that is not resolved denies everything.
    pub(super) fn security_groups(&self, pod: &Pod, flow: &Flow<'_>) -> Option<Half> {
        let chosen = match self.held {
            Some(held) if self.awaited(&self.chosen(pod)) => held.get(&name(pod))?.clone(),
            _ => self.chosen(pod),
        };
        if !chosen.any {
            return None;
        }
        if chosen.invalid {
            return Some(Half::new(false, By::InvalidGroups));
        }
        let resolved: Vec<Option<&ResolvedGroup>> =
            chosen.ids.iter().map(|id| self.resolved(id)).collect();
        let unresolved = chosen.ids.iter().zip(&resolved).filter(|(_, group)| group.is_none());
        let unresolved: BTreeSet<By> = unresolved.map(|(id, _)| by(id, None)).collect();
        if !unresolved.is_empty() {
            return Some(Half { allowed: false, rules: unresolved });
        }
        if flow.peer.address.is_some_and(is_unfiltered) {
            return Some(Half::new(true, By::Unfiltered));
        }
        let mut allowing = BTreeSet::new();
        for group in resolved.into_iter().flatten() {
            let rules = match flow.direction {
                Direction::Ingress => &group.ingress,
                Direction::Egress => &group.egress,
            };
            let matching = rules.iter().filter(|rule| self.group_rule(rule, flow));
            allowing.extend(matching.map(|rule| by(&group.id, Some(rule.id.clone()))));
        }
        if allowing.is_empty() {
            let rules = chosen.ids.iter().map(|id| by(id, None)).collect();
            return Some(Half { allowed: false, rules });
        }
        Some(Half { allowed: true, rules: allowing })
    }

    /// Whether the pod is closed: its groups are not known yet, and it had no others.
    pub(super) fn is_new(&self, pod: &Pod) -> bool {
        let held = self.held.filter(|_| self.awaited(&self.chosen(pod)));
        held.is_some_and(|held| !held.contains_key(&name(pod)))
    }

    /// The groups that hold for a pod from now on; `None`: not all of them are known, it keeps those that it had.
    #[must_use]
    pub fn settled(&self, pod: &Pod) -> Option<Chosen> {
        let chosen = self.chosen(pod);
        (!self.awaited(&chosen)).then_some(chosen)
    }

    /// Whether it depends on groups that are not known yet what these say.
    fn awaited(&self, chosen: &Chosen) -> bool {
        let states: Vec<_> = chosen.ids.iter().map(|id| self.groups.state(id)).collect();
        let denied =
            |state: &Option<&GroupState>| matches!(state, Some(GroupState::Unresolved { .. }));
        let unknown =
            |state: &Option<&GroupState>| matches!(state, None | Some(GroupState::Pending { .. }));
        !chosen.invalid && !states.iter().any(denied) && states.iter().any(unknown)
    }

    /// Both an annotation and policies may choose, and several policies may.
    fn chosen(&self, pod: &Pod) -> Chosen {
        let mut chosen = Chosen::default();
        if let Some(groups) = &pod.security_groups {
            chosen.any = true;
            chosen.ids.extend(groups.ids.iter().cloned());
            chosen.invalid |= !groups.invalid.is_empty();
        }
        for policy in &self.group_policies {
            if policy.namespace == pod.namespace && matches(&policy.pods, &pod.labels) {
                chosen.any = true;
                chosen.ids.extend(policy.groups.iter().cloned());
                // One that may select the pod or not gives nothing and denies.
                chosen.invalid |= !policy.invalid_groups.is_empty() || policy.undecided.is_some();
            }
        }
        chosen
    }

    fn resolved(&self, id: &SecurityGroupId) -> Option<&ResolvedGroup> {
        self.groups.groups.get(id).filter(|group| matches!(group.state, GroupState::Resolved))
    }

    fn group_rule(&self, rule: &GroupRule, flow: &Flow<'_>) -> bool {
        let protocol = match rule.protocol {
            GroupProtocol::Any => true,
            GroupProtocol::Number(number) => {
                number == flow.protocol && (rule.first..=rule.last).contains(&flow.port)
            }
        };
        protocol && self.group_peer(&rule.peer, flow.peer)
    }

    /// Members of a group are the pods that were given it, and the ENIs that have it: but not with the addresses of pods
    /// that were given others.
    fn group_peer(&self, peer: &GroupPeer, party: Party<'_>) -> bool {
        match peer {
            GroupPeer::Cidr(net) => party.address.is_some_and(|address| within(net, address)),
            GroupPeer::Group(id) => {
                let has_address = |address| {
                    self.groups.members.get(id).is_some_and(|members| members.contains(&address))
                };
                let chosen = party.pod.map(|pod| self.chosen(pod)).filter(|chosen| chosen.any);
                match chosen {
                    Some(chosen) => chosen.ids.contains(id),
                    None => party.address.is_some_and(has_address),
                }
            }
        }
    }
}

/// "Security groups do not filter traffic destined to and from": the VPC user guide's list, as far as it has addresses
/// that are the same everywhere.
fn is_unfiltered(address: IpAddr) -> bool {
    let names = [
        "169.254.169.253", // Amazon DNS
        "fd00:ec2::253",
        "169.254.169.254", // instance metadata
        "fd00:ec2::254",
        "169.254.169.123", // Time Sync
        "fd00:ec2::123",
    ];
    names.contains(&address.to_string().as_str())
}

fn name(pod: &Pod) -> PodKey {
    PodKey::new(&pod.namespace, &pod.name)
}

fn by(group: &SecurityGroupId, rule: Option<String>) -> By {
    By::SecurityGroup { group: group.clone(), rule }
}
