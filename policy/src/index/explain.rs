//! Explanations: a walk along the compiled tables, in words.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Serialize;
use veni_core::config::Enforcing;
use veni_ebpf_common::table::{self, Decision, NO_CLASS, OPEN_SET, Tables, VerdictKey};

use super::{Index, cluster::Identity};
use crate::{
    change::{Direction, PodKey, PodSets},
    compile::{profile::Body, set::Set},
    object::Tier,
    rule::{RuleKind, RuleRef, RuleTier},
    security_group::GroupState,
};

/// The verdict on a new connection, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Its source.
    pub from: Party,
    /// Its destination.
    pub to: Party,
    /// IP protocol number.
    pub protocol: u8,
    /// The destination's port; for ICMP and ICMPv6 type << 8 | code.
    pub port: u16,
    /// Whether it comes about.
    pub allowed: bool,
    /// Source and destination are one: always allowed, nothing is asked.
    pub itself: bool,
    /// What the source's rules say.
    pub egress: Half,
    /// What the destination's rules say.
    pub ingress: Half,
}

/// An end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Party {
    /// The pod that has the address.
    pub pod: Option<PodKey>,
    /// The address.
    pub address: IpAddr,
    /// Its class.
    pub class: u32,
}

/// What one side says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Half {
    /// Whether it passes.
    pub allowed: bool,
    /// The rule that decided; `None`: no rule, the default.
    pub rule: Option<RuleRef>,
    /// The set that was asked; [`OPEN_SET`] for what is no pod of ours.
    pub set: u32,
    /// The profile that it gave.
    pub profile: Option<u32>,
    /// What the side's security groups alone say; `None`: the pod has none.
    pub group: Option<GroupHalf>,
}

/// What security groups say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupHalf {
    /// Whether they let it pass.
    pub allowed: bool,
    /// The group's rule, or that none matches, or why they deny everything.
    pub rule: Option<RuleRef>,
}

/// What applies to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodExplanation {
    /// The pod.
    pub pod: PodKey,
    /// Its addresses, without those in its status that are another pod's.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Those of its namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// Its security groups.
    pub security_groups: Vec<PodGroup>,
    /// The policies that select it and say something of what comes to it, in the order in which they are asked.
    pub ingress_policies: Vec<Selecting>,
    /// As `ingress_policies`, of what leaves it.
    pub egress_policies: Vec<Selecting>,
    /// `None`: it is not ours, or no change was made since it came.
    pub sets: Option<PodSets>,
    /// What judges what comes to it.
    pub ingress: SetExplanation,
    /// What judges what leaves it.
    pub egress: SetExplanation,
}

/// A security group of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodGroup {
    /// Its id, or the item that is none, or the SecurityGroupPolicy of which it is not known whether it selects the pod.
    pub id: String,
    /// Why its rules are not known: it denies everything, or, on a node, keeps a new pod closed.
    pub unresolved: Option<String>,
}

/// A policy that selects a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Selecting {
    /// What kind of object it is.
    pub kind: RuleKind,
    /// Its namespace; empty for what lives in none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its tier.
    pub tier: RuleTier,
    /// Of a ClusterNetworkPolicy.
    pub priority: Option<u16>,
    /// How many rules it has in this direction.
    pub rules: usize,
}

/// A rule set, readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetExplanation {
    /// Its number; [`OPEN_SET`]: nothing applies, everything passes.
    pub set: u32,
    /// The rules that apply, in the order in which they are asked.
    pub rules: Vec<RuleRef>,
    /// Pods that share the set.
    pub pods: u32,
    /// What classes get that are not listed.
    pub otherwise: Option<ProfileEntry>,
    /// Who is in those, but for addresses that no rule names.
    pub others: Vec<String>,
    /// What each other class gets.
    pub classes: Vec<ClassEntry>,
}

/// A class in a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassEntry {
    /// Its number.
    pub class: u32,
    /// Who is in it: `namespace/name` of pods, addresses and prefixes of others.
    pub members: Vec<String>,
    /// What it gets.
    pub profile: ProfileEntry,
}

/// A port profile, readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProfileEntry {
    /// Its number.
    pub profile: u32,
    /// Ports that are named.
    pub ports: Vec<PortEntry>,
    /// Whether other ports and protocols pass.
    pub allowed: bool,
    /// The rule that says so.
    pub rule: Option<RuleRef>,
}

/// Ports of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortEntry {
    /// IP protocol number.
    pub protocol: u8,
    /// First port.
    pub first: u16,
    /// Last port, included.
    pub last: u16,
    /// Whether they pass.
    pub allowed: bool,
    /// The rule that says so.
    pub rule: Option<RuleRef>,
}

impl Tables for Index {
    fn verdict(&self, key: &VerdictKey) -> Option<u32> {
        let set = self.sets.get(&key.set)?;
        if key.class == table::ANY_CLASS {
            Some(set.any)
        } else {
            set.table.get(&key.class).copied()
        }
    }

    fn profile(&self, profile: u32, protocol: u8, port: u16) -> Option<Decision> {
        self.profiles.body(profile).map(|body| body.decide(protocol, port))
    }
}

impl Index {
    /// The verdict on a new connection, from the compiled tables. Right after [`Index::change`]; objects applied since
    /// then do not count yet.
    #[must_use]
    pub fn judge(&self, from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> Explanation {
        let (from, to) = (self.party(from), self.party(to));
        let itself = from.address == to.address || (from.pod.is_some() && from.pod == to.pod);
        let (egress, ingress) = if itself {
            (Half::open(), Half::open())
        } else {
            (
                self.half(&from, Direction::Egress, &to, protocol, port),
                self.half(&to, Direction::Ingress, &from, protocol, port),
            )
        };
        let allowed = egress.allowed && ingress.allowed;
        Explanation { from, to, protocol, port, allowed, itself, egress, ingress }
    }

    /// Addresses of a pod that is known, neither finished nor on its node's network.
    #[must_use]
    pub fn pod_addresses(&self, pod: &PodKey) -> Option<&[IpAddr]> {
        let id = self.cluster.pod_id(&pod.namespace, &pod.name)?;
        Some(&self.cluster.pod(id).addresses)
    }

    /// The pod that has an address.
    #[must_use]
    pub fn pod_at(&self, address: IpAddr) -> Option<PodKey> {
        let pod = self.cluster.pod(self.entries.get(&address)?.pod?);
        let namespace = &self.cluster.namespace_state(pod.namespace).name;
        Some(PodKey::new(&**namespace, &*pod.name))
    }

    /// As [`Index::pod_at`], also where nothing is known of the pod but that this node gave it the address.
    #[must_use]
    pub fn name_at(&self, address: IpAddr) -> Option<PodKey> {
        self.pod_at(address).or_else(|| self.given_to.get(&address).cloned())
    }

    /// The class of an address in the compiled tables.
    #[must_use]
    pub fn class_at(&self, address: IpAddr) -> u32 {
        match self.entries.get(&address) {
            Some(entry) if entry.class != super::region::ABSENT => entry.class,
            _ => self.regions.class_at(address),
        }
    }

    /// What applies to a pod, with its compiled tables; `None`: no such pod.
    #[must_use]
    pub fn explain(&self, pod: &PodKey) -> Option<PodExplanation> {
        let id = self.cluster.pod_id(&pod.namespace, &pod.name)?;
        let state = self.cluster.pod(id);
        let identity = self.cluster.identity(state.identity);
        let sets = self.pod_sets(pod);
        let members = self.members();
        let of = |direction| self.explain_set(self.set_in_force(pod, direction), &members);
        let has = |address: &&IpAddr| {
            self.entries.get(*address).is_some_and(|entry| entry.pod == Some(id))
        };
        Some(PodExplanation {
            pod: pod.clone(),
            addresses: state.addresses.iter().filter(|address| has(address)).copied().collect(),
            labels: identity
                .key
                .labels
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            namespace_labels: self.cluster.namespace_state(state.namespace).labels.clone(),
            security_groups: self.pod_groups(identity),
            ingress_policies: self.selecting(identity, Direction::Ingress),
            egress_policies: self.selecting(identity, Direction::Egress),
            sets,
            ingress: of(Direction::Ingress),
            egress: of(Direction::Egress),
        })
    }

    fn pod_groups(&self, identity: &Identity) -> Vec<PodGroup> {
        let known = identity.chosen.ids.iter().map(|id| PodGroup {
            id: id.to_string(),
            unresolved: match self.groups.groups.get(id).map(|group| &group.state) {
                Some(GroupState::Resolved) => None,
                Some(GroupState::Unresolved { reason } | GroupState::Pending { reason }) => {
                    Some(reason.clone())
                }
                None => Some("not looked up yet".to_owned()),
            },
        });
        let invalid = identity.chosen.invalid.iter().map(|item| PodGroup {
            id: item.name().to_owned(),
            unresolved: Some(item.why().to_owned()),
        });
        known.chain(invalid).collect()
    }

    /// Policies that select the pod and say something of the direction, in the order in which they are asked.
    fn selecting(&self, identity: &Identity, direction: Direction) -> Vec<Selecting> {
        if self.enforcing == Enforcing::None {
            return Vec::new();
        }
        let namespace = self.cluster.namespace_state(identity.key.namespace);
        let cluster_wide = self.cluster_policies.values().filter_map(|policy| {
            let rules = match direction {
                Direction::Ingress => policy.ingress.len(),
                Direction::Egress => policy.egress.len(),
            };
            let selects = namespace.matches(&policy.subject.namespaces)
                && identity.matches(&policy.subject.pods);
            (selects && rules > 0).then(|| Selecting {
                kind: RuleKind::ClusterNetworkPolicy,
                namespace: String::new(),
                name: policy.name.clone(),
                tier: match policy.tier {
                    Tier::Admin => RuleTier::Admin,
                    Tier::Baseline => RuleTier::Baseline,
                },
                priority: Some(policy.priority),
                rules,
            })
        });
        let own = namespace.policies.values().filter_map(|policy| {
            let rules = match direction {
                Direction::Ingress => policy.ingress.as_ref(),
                Direction::Egress => policy.egress.as_ref(),
            }?;
            identity.matches(&policy.pods).then(|| Selecting {
                kind: RuleKind::NetworkPolicy,
                namespace: policy.namespace.clone(),
                name: policy.name.clone(),
                tier: RuleTier::NetworkPolicy,
                priority: None,
                rules: rules.len(),
            })
        });
        let mut all: Vec<Selecting> = cluster_wide.chain(own).collect();
        all.sort_by(|a, b| (a.tier, a.priority, &a.name).cmp(&(b.tier, b.priority, &b.name)));
        all
    }

    /// Others' pods are not judged here; one of ours that has no sets yet is closed.
    fn set_in_force(&self, pod: &PodKey, direction: Direction) -> u32 {
        let Some(local) = self.locals.get(pod) else { return OPEN_SET };
        local.sets.unwrap_or(PodSets::CLOSED).of(direction)
    }

    fn party(&self, address: IpAddr) -> Party {
        Party { pod: self.pod_at(address), address, class: self.class_at(address) }
    }

    fn half(
        &self,
        subject: &Party,
        direction: Direction,
        peer: &Party,
        protocol: u8,
        port: u16,
    ) -> Half {
        let set = subject.pod.as_ref().map_or(OPEN_SET, |pod| self.set_in_force(pod, direction));
        // Incomplete tables are refused, as the programs do.
        let decision = table::judge(self, set, peer.class, protocol, port);
        let decision = decision.unwrap_or(Decision::deny(0));
        let state = self.sets.get(&set);
        let body = state.and_then(|state| self.profiles.body(state.profile(peer.class)));
        let at_node = direction == Direction::Egress && self.own_addresses.contains(&peer.address);
        if at_node && !body.is_some_and(|body| body.of_node) {
            return Half { set, ..Half::open() };
        }
        let group = state.and_then(|state| self.group_half(state, peer.class, protocol, port));
        let rule = self.registry.get(decision.rule()).cloned();
        // Where policies have only their default to say, the tables do not name the group's rule.
        let by_group = group.as_ref().filter(|_| decision.allowed() && rule.is_none());
        Half {
            allowed: decision.allowed(),
            rule: by_group.and_then(|group| group.rule.clone()).or(rule),
            set,
            profile: state.map(|state| state.profile(peer.class)),
            group,
        }
    }

    fn group_half(&self, set: &Set, class: u32, protocol: u8, port: u16) -> Option<GroupHalf> {
        let decision = self.groups_of(set, class)?.decide(protocol, port);
        let rule = self.registry.get(decision.rule()).cloned();
        Some(GroupHalf { allowed: decision.allowed(), rule })
    }

    /// What the security groups alone say to a class; `None` without groups.
    fn groups_of(&self, set: &Set, class: u32) -> Option<Body> {
        set.rules.as_ref()?.evaluate_groups(self.classes.shape(class)?, &self.lists)
    }

    /// Names the groups' rules where policies have only their default to say.
    fn with_groups(&self, profile: ProfileEntry, groups: &Body) -> ProfileEntry {
        let rule = |decision: Decision| {
            self.registry.get(decision.rule()).filter(|_| decision.allowed()).cloned()
        };
        let mut ports = Vec::new();
        for entry in profile.ports {
            if !entry.allowed || entry.rule.is_some() {
                ports.push(entry);
                continue;
            }
            let mut next = Some(entry.first);
            let mut ranges: Vec<_> = groups.ranges.iter().collect();
            ranges.sort_by_key(|(_, first, ..)| *first);
            for (protocol, first, last, decision) in ranges {
                let Some(from) = next.filter(|from| *protocol == entry.protocol && from <= last)
                else {
                    continue;
                };
                if *first > entry.last {
                    break;
                }
                if from < *first {
                    let rule = rule(groups.otherwise);
                    ports.push(PortEntry { first: from, last: *first - 1, rule, ..entry.clone() });
                }
                let last = (*last).min(entry.last);
                let first = from.max(*first);
                ports.push(PortEntry { first, last, rule: rule(*decision), ..entry.clone() });
                next = last.checked_add(1).filter(|next| *next <= entry.last);
            }
            if let Some(first) = next {
                ports.push(PortEntry { first, rule: rule(groups.otherwise), ..entry });
            }
        }
        let own = profile.rule.or_else(|| rule(groups.otherwise).filter(|_| profile.allowed));
        ProfileEntry { ports, rule: own, ..profile }
    }

    fn members(&self) -> BTreeMap<u32, Vec<String>> {
        let mut members: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (address, entry) in &self.entries {
            let bare = || match self.own_addresses.contains(address) {
                true => format!("{address} (this node)"),
                false => address.to_string(),
            };
            let name = self.pod_at(*address).map_or_else(bare, |pod| pod.to_string());
            members.entry(entry.class).or_default().push(name);
        }
        let within = self.regions.within();
        for (net, region) in &self.regions.by_net {
            let except = within.get(net).map(|nets| {
                let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
                format!(" (except {})", nets.join(", "))
            });
            let name = format!("{net}{}", except.unwrap_or_default());
            members.entry(region.class).or_default().push(name);
        }
        for names in members.values_mut() {
            names.sort();
            names.dedup();
        }
        members
    }

    fn explain_set(&self, number: u32, members: &BTreeMap<u32, Vec<String>>) -> SetExplanation {
        let Some(set) = self.sets.get(&number) else { return SetExplanation::open() };
        let numbers = set.rules.iter().flat_map(|rules| {
            let content = &rules.content;
            content.rules.iter().map(|rule| rule.number).chain(content.isolated)
        });
        let has_groups = self.groups_of(set, NO_CLASS).is_some();
        // What groups open is in the tables without its rule, and may be by another rule for each class.
        let named: BTreeSet<u32> = if has_groups {
            set.table.keys().chain(members.keys()).copied().chain([NO_CLASS]).collect()
        } else {
            set.table.keys().copied().collect()
        };
        let classes = named.iter().filter_map(|class| {
            let profile = self.explain_profile(set.profile(*class))?;
            Some(ClassEntry {
                class: *class,
                members: members.get(class).cloned().unwrap_or_default(),
                profile: match self.groups_of(set, *class) {
                    Some(groups) => self.with_groups(profile, &groups),
                    None => profile,
                },
            })
        });
        SetExplanation {
            set: number,
            rules: numbers.filter_map(|number| self.registry.get(number).cloned()).collect(),
            pods: set.users,
            otherwise: self.explain_profile(set.any),
            others: members
                .iter()
                .filter(|(class, _)| **class != NO_CLASS && !named.contains(class))
                .flat_map(|(_, names)| names.iter().cloned())
                .collect(),
            classes: classes.collect(),
        }
    }

    fn explain_profile(&self, number: u32) -> Option<ProfileEntry> {
        let Body { otherwise, ranges, .. } = self.profiles.body(number)?;
        let ports = ranges.iter().map(|(protocol, first, last, decision)| PortEntry {
            protocol: *protocol,
            first: *first,
            last: *last,
            allowed: decision.allowed(),
            rule: self.registry.get(decision.rule()).cloned(),
        });
        Some(ProfileEntry {
            profile: number,
            ports: ports.collect(),
            allowed: otherwise.allowed(),
            rule: self.registry.get(otherwise.rule()).cloned(),
        })
    }
}

impl Half {
    const fn open() -> Self {
        Self { allowed: true, rule: None, set: OPEN_SET, profile: None, group: None }
    }
}

impl SetExplanation {
    const fn open() -> Self {
        Self {
            set: OPEN_SET,
            rules: Vec::new(),
            pods: 0,
            otherwise: None,
            others: Vec::new(),
            classes: Vec::new(),
        }
    }
}
