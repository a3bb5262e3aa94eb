//! Flattening: which rules hold for a pod in a direction, in the order in which they are asked.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use veni_core::{config::Enforcing, id::SecurityGroupId};

use super::{
    AtomId,
    content::{Content, FlatPort, FlatRule, Groups, Stage, Verb},
};
use crate::{
    change::Direction,
    index::{
        atom::{Atoms, Namespaces, Question},
        cluster::{Chosen, Identity, Invalid, NamespaceState},
    },
    object::{
        Action, ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule, NetworkPolicy,
        Peer, PolicyPort, PolicyRule, PortMatch, Tier,
    },
    rule::{RuleIndex, RuleKind, RuleRef, RuleRegistry, RuleTier},
    security_group::{GroupPeer, GroupProtocol, GroupRule, GroupState, SecurityGroups},
};

/// Amazon DNS, Time Sync and instance metadata: EC2's security groups filter nothing to or from them
/// (docs.aws.amazon.com/vpc/latest/userguide/vpc-security-groups.html, "Security group basics"). So is the VPC's
/// resolver at its base address plus two, which nothing here tells.
const UNFILTERED: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 253)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 123)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x123)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// What flattening reads and numbers.
#[derive(Debug)]
pub(crate) struct Flattener<'a> {
    pub(crate) atoms: &'a mut Atoms,
    pub(crate) registry: &'a mut RuleRegistry,
    pub(crate) groups: &'a SecurityGroups,
    /// All, by tier, priority and name.
    pub(crate) cluster_policies: &'a [Arc<ClusterNetworkPolicy>],
    pub(crate) enforcing: Enforcing,
    /// Whether addresses have found no room in their map, of IPv4 and of IPv6.
    pub(crate) left_out: [bool; 2],
}

/// The pod that rules are flattened for, and the direction.
#[derive(Debug, Clone, Copy)]
struct Case<'a> {
    direction: Direction,
    namespace: &'a NamespaceState,
    identity: &'a Identity,
    chosen: &'a Chosen,
}

impl Flattener<'_> {
    /// The rules of a pod of `identity` whose security groups are `chosen`.
    pub(crate) fn content(
        &mut self,
        direction: Direction,
        namespace: &NamespaceState,
        identity: &Identity,
        chosen: &Chosen,
    ) -> Content {
        let case = Case { direction, namespace, identity, chosen };
        let mut rules = Vec::new();
        let mut isolated = None;
        if self.enforcing != Enforcing::None {
            self.cluster_tier(Tier::Admin, case, &mut rules);
            isolated = self.network_policies(case, &mut rules);
            if isolated.is_none() {
                self.cluster_tier(Tier::Baseline, case, &mut rules);
            }
        }
        let unselected = self.unselected(case);
        let groups = self.security_groups(case, &mut rules);
        rules.retain(|rule| !matches_nothing(rule));
        Content { direction, rules, isolated, unselected, groups }
    }

    /// On a strict node a pod is closed until a NetworkPolicy selects it, in whichever direction that is.
    fn unselected(&mut self, case: Case<'_>) -> Option<u32> {
        let selected =
            || case.namespace.policies.values().any(|policy| case.identity.matches(&policy.pods));
        (self.enforcing == Enforcing::Strict && !selected()).then(|| {
            self.registry.number(&RuleRef {
                kind: RuleKind::Unselected,
                namespace: String::new(),
                name: String::new(),
                tier: RuleTier::NetworkPolicy,
                direction: case.direction,
                rule: RuleIndex::None,
                reason: Some(
                    "no NetworkPolicy selects the pod, and this node is strict".to_owned(),
                ),
            })
        })
    }

    fn cluster_tier(&mut self, tier: Tier, case: Case<'_>, rules: &mut Vec<FlatRule>) {
        for policy in self.cluster_policies.iter().filter(|policy| policy.tier == tier) {
            if !case.namespace.matches(&policy.subject.namespaces)
                || !case.identity.matches(&policy.subject.pods)
            {
                continue;
            }
            let list = match case.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            for (index, rule) in (0..).zip(list) {
                let (stage, rule_tier) = match tier {
                    Tier::Admin => (Stage::Admin, RuleTier::Admin),
                    Tier::Baseline => (Stage::Baseline, RuleTier::Baseline),
                };
                let number = self.registry.number(&RuleRef {
                    kind: RuleKind::ClusterNetworkPolicy,
                    namespace: String::new(),
                    name: policy.name.clone(),
                    tier: rule_tier,
                    direction: case.direction,
                    rule: RuleIndex::Index(index),
                    reason: None,
                });
                let flat = cluster_rule(self.atoms, stage, number, rule, case);
                let suspects = self.suspects(rule, &flat);
                rules.extend([Some(flat), suspects].into_iter().flatten());
            }
        }
    }

    /// A rule that denies or passes on who somebody is misses those whose addresses found no room. It then denies all of
    /// whom nothing is known: those would be let through, by a later rule or by none.
    fn suspects(&mut self, rule: &ClusterRule, flat: &FlatRule) -> Option<FlatRule> {
        let asks =
            |peer: &ClusterPeer| matches!(peer, ClusterPeer::Pods(_) | ClusterPeer::Nodes(_));
        if self.left_out == [false; 2]
            || rule.action == Action::Accept
            || flat.peers.is_none()
            || !rule.peers.iter().any(asks)
        {
            return None;
        }
        let families = [false, true].into_iter().filter(|v6| self.left_out[usize::from(*v6)]);
        let atoms = families.map(|v6| self.atoms.number(Question::Unlisted { v6 })).collect();
        // Which port a name stands for is not known of them either.
        let named = |port: &FlatPort| matches!(port, FlatPort::Named { .. });
        let ports = flat.ports.clone().filter(|ports| !ports.iter().any(named));
        let (peers, own_node) = (Some(unique(atoms)), Box::default());
        Some(FlatRule { verb: Verb::Deny, peers, own_node, ports, ..flat.clone() })
    }

    /// The number of "isolated and no rule matched"; `None` when nothing isolates.
    fn network_policies(&mut self, case: Case<'_>, rules: &mut Vec<FlatRule>) -> Option<u32> {
        let mut isolated = None;
        for policy in case.namespace.policies.values() {
            let list = match case.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let Some(list) = list else { continue };
            if !case.identity.matches(&policy.pods) {
                continue;
            }
            let reference = |rule| policy_reference(policy, case.direction, rule);
            if isolated.is_none() {
                isolated = Some(self.registry.number(&reference(RuleIndex::None)));
            }
            for (index, rule) in (0..).zip(list) {
                let number = self.registry.number(&reference(RuleIndex::Index(index)));
                rules.push(policy_rule(self.atoms, number, policy, rule, case));
            }
        }
        isolated
    }

    fn security_groups(&mut self, case: Case<'_>, rules: &mut Vec<FlatRule>) -> Groups {
        let Chosen { any, ids, invalid } = case.chosen;
        if !any {
            return Groups::Absent;
        }
        let names =
            ids.iter().map(SecurityGroupId::as_str).chain(invalid.iter().map(Invalid::name));
        let names: Vec<&str> = names.collect();
        if let Some(reason) = denial(self.groups, case.chosen) {
            return Groups::Deny(self.no_group_rule(case.direction, &names, Some(reason)));
        }
        for id in ids.iter() {
            let Some(group) = self.groups.groups.get(id) else { continue };
            let list = match case.direction {
                Direction::Ingress => &group.ingress,
                Direction::Egress => &group.egress,
            };
            self.group_rules(case.direction, id, list, rules);
        }
        // After the groups' own rules: those name better why.
        rules.push(self.unfiltered(case.direction));
        Groups::Rules(self.no_group_rule(case.direction, &names, None))
    }

    /// What passes whatever the groups say.
    fn unfiltered(&mut self, direction: Direction) -> FlatRule {
        let atoms = UNFILTERED.map(|address| {
            let cidr = IpNet::from(address);
            self.atoms.number(Question::Block { cidr, except: Vec::new() })
        });
        let number = self.registry.number(&RuleRef {
            kind: RuleKind::SecurityGroup,
            namespace: String::new(),
            name: "EC2".to_owned(),
            tier: RuleTier::SecurityGroup,
            direction,
            rule: RuleIndex::GroupRule("not filtered".to_owned()),
            reason: Some(
                "security groups do not filter Amazon DNS, Time Sync and instance metadata"
                    .to_owned(),
            ),
        });
        let peers = Some(unique(atoms.to_vec()));
        let (stage, verb, own_node) = (Stage::Group, Verb::Allow, Box::default());
        FlatRule { stage, verb, number, peers, own_node, ports: None }
    }

    fn no_group_rule(
        &mut self,
        direction: Direction,
        names: &[&str],
        reason: Option<String>,
    ) -> u32 {
        self.registry.number(&RuleRef {
            kind: RuleKind::SecurityGroup,
            namespace: String::new(),
            name: names.join(","),
            tier: RuleTier::SecurityGroup,
            direction,
            rule: RuleIndex::None,
            reason,
        })
    }

    /// Rules with one id and the same ports (a prefix list's) become one.
    fn group_rules(
        &mut self,
        direction: Direction,
        id: &SecurityGroupId,
        list: &[GroupRule],
        rules: &mut Vec<FlatRule>,
    ) {
        let mut joined: BTreeMap<(&str, GroupProtocol, u16, u16), Vec<AtomId>> = BTreeMap::new();
        for rule in list {
            let atom = self.atoms.number(match &rule.peer {
                GroupPeer::Cidr(net) => Question::Block { cidr: net.trunc(), except: Vec::new() },
                GroupPeer::Group(id) => Question::Group(id.clone()),
            });
            joined
                .entry((rule.id.as_str(), rule.protocol, rule.first, rule.last))
                .or_default()
                .push(atom);
        }
        for ((rule, protocol, first, last), mut atoms) in joined {
            atoms.sort_unstable();
            atoms.dedup();
            let number = self.registry.number(&RuleRef {
                kind: RuleKind::SecurityGroup,
                namespace: String::new(),
                name: id.to_string(),
                tier: RuleTier::SecurityGroup,
                direction,
                rule: RuleIndex::GroupRule(rule.to_owned()),
                reason: None,
            });
            let ports = match protocol {
                GroupProtocol::Any => None,
                GroupProtocol::Number(protocol) => {
                    Some([FlatPort::Range { protocol, first, last }].into())
                }
            };
            let (stage, verb, peers) = (Stage::Group, Verb::Allow, Some(atoms.into()));
            rules.push(FlatRule { stage, verb, number, peers, own_node: Box::default(), ports });
        }
    }
}

/// Why the groups deny everything, if they do.
fn denial(groups: &SecurityGroups, chosen: &Chosen) -> Option<String> {
    if let Some(denial) = certain_denial(groups, chosen) {
        return Some(denial);
    }
    chosen.ids.iter().find_map(|id| match groups.state(id) {
        Some(GroupState::Resolved) => None,
        Some(GroupState::Unresolved { reason } | GroupState::Pending { reason }) => {
            Some(format!("{id}: {reason}"))
        }
        None => Some(format!("{id}: not looked up yet")),
    })
}

/// Why the groups deny everything whatever the others among them turn out to be.
fn certain_denial(groups: &SecurityGroups, chosen: &Chosen) -> Option<String> {
    if let Some(item) = chosen.invalid.first() {
        return Some(item.to_string());
    }
    chosen.ids.iter().find_map(|id| match groups.state(id) {
        Some(GroupState::Unresolved { reason }) => Some(format!("{id}: {reason}")),
        _ => None,
    })
}

/// The groups that have to be answered for before it is known what these say, each with what is known of the delay.
pub(crate) fn awaited<'a>(
    groups: &'a SecurityGroups,
    chosen: &'a Chosen,
) -> impl Iterator<Item = (&'a SecurityGroupId, Option<&'a str>)> {
    let open = certain_denial(groups, chosen).is_none();
    chosen.ids.iter().filter(move |_| open).filter_map(|id| match groups.state(id) {
        None => Some((id, None)),
        Some(GroupState::Pending { reason }) => Some((id, Some(reason.as_str()))),
        Some(GroupState::Resolved | GroupState::Unresolved { .. }) => None,
    })
}

/// An empty list of peers or ports; both are `Some` where the manifest had only invalid ones.
fn matches_nothing(rule: &FlatRule) -> bool {
    rule.peers.as_ref().is_some_and(|peers| peers.is_empty())
        || rule.ports.as_ref().is_some_and(|ports| ports.is_empty())
}

fn policy_reference(policy: &NetworkPolicy, direction: Direction, rule: RuleIndex) -> RuleRef {
    RuleRef {
        kind: RuleKind::NetworkPolicy,
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        tier: RuleTier::NetworkPolicy,
        direction,
        rule,
        reason: None,
    }
}

fn policy_rule(
    atoms: &mut Atoms,
    number: u32,
    policy: &NetworkPolicy,
    rule: &PolicyRule,
    case: Case<'_>,
) -> FlatRule {
    let peers = rule.peers.as_ref().map(|peers| {
        let numbers = peers.iter().map(|peer| {
            atoms.number(match peer {
                Peer::Block { cidr, except } => {
                    Question::Block { cidr: *cidr, except: except.clone() }
                }
                Peer::Pods { namespaces, pods } => Question::Pods {
                    namespaces: namespaces.clone().map_or_else(
                        || Namespaces::Named(policy.namespace.clone()),
                        Namespaces::Selected,
                    ),
                    pods: pods.clone().unwrap_or_default(),
                },
            })
        });
        unique(numbers.collect())
    });
    let ports = rule.ports.as_ref().map(|ports| {
        let mut flat = Vec::new();
        for port in ports {
            policy_port(port, case, &mut flat);
        }
        flat.into()
    });
    let (stage, verb, own_node) = (Stage::NetworkPolicy, Verb::Allow, Box::default());
    FlatRule { stage, verb, number, peers, own_node, ports }
}

fn unique(mut atoms: Vec<AtomId>) -> Box<[AtomId]> {
    atoms.sort_unstable();
    atoms.dedup();
    atoms.into()
}

fn policy_port(port: &PolicyPort, case: Case<'_>, flat: &mut Vec<FlatPort>) {
    let protocol = port.protocol.number();
    match &port.port {
        PortMatch::Any => flat.push(FlatPort::Range { protocol, first: 0, last: u16::MAX }),
        PortMatch::Range(first, last) => {
            flat.push(FlatPort::Range { protocol, first: *first, last: *last });
        }
        PortMatch::Name(name) => named_port(name, Some(port.protocol), case, flat),
    }
}

/// The destination is the pod itself on ingress, the peer on egress.
fn named_port(
    name: &str,
    protocol: Option<crate::object::Protocol>,
    case: Case<'_>,
    flat: &mut Vec<FlatPort>,
) {
    if case.direction == Direction::Egress {
        flat.push(FlatPort::Named { name: Arc::from(name), protocol });
        return;
    }
    let own = case.identity.key.ports.iter().filter(|port| {
        &*port.name == name && protocol.is_none_or(|wanted| wanted == port.protocol)
    });
    flat.extend(own.map(|port| FlatPort::Range {
        protocol: port.protocol.number(),
        first: port.number,
        last: port.number,
    }));
}

fn cluster_rule(
    atoms: &mut Atoms,
    stage: Stage,
    number: u32,
    rule: &ClusterRule,
    case: Case<'_>,
) -> FlatRule {
    let verb = match rule.action {
        Action::Accept => Verb::Allow,
        Action::Deny => Verb::Deny,
        Action::Pass => Verb::Pass,
    };
    let everyone = rule.peers.iter().any(|peer| matches!(peer, ClusterPeer::Everything));
    let peers =
        (!everyone).then(|| {
            let mut numbers = Vec::new();
            for peer in &rule.peers {
                match peer {
                    ClusterPeer::Everything => {}
                    ClusterPeer::Pods(subject) => numbers.push(atoms.number(Question::Pods {
                        namespaces: Namespaces::Selected(subject.namespaces.clone()),
                        pods: subject.pods.clone(),
                    })),
                    ClusterPeer::Nodes(nodes) => {
                        numbers.push(atoms.number(Question::Nodes(nodes.clone())));
                    }
                    ClusterPeer::Networks(nets) => numbers.extend(nets.iter().map(|net| {
                        atoms.number(Question::Block { cidr: *net, except: Vec::new() })
                    })),
                }
            }
            unique(numbers)
        });
    let ports = rule.protocols.as_ref().map(|protocols| {
        let mut flat = Vec::new();
        for protocol in protocols {
            match protocol {
                ClusterProtocol::Ports(port) => policy_port(port, case, &mut flat),
                ClusterProtocol::Named(name) => named_port(name, None, case, &mut flat),
            }
        }
        flat.into()
    });
    // From the node is what was made there, which no rule is asked about.
    let own_node = rule.peers.iter().filter_map(|peer| match peer {
        ClusterPeer::Nodes(nodes) if case.direction == Direction::Egress => {
            Some(atoms.number(Question::OwnNode(nodes.clone())))
        }
        _ => None,
    });
    let own_node = unique(own_node.collect());
    FlatRule { stage, verb, number, peers, own_node, ports }
}
