//! The index as judge, and its explanations as documents.

use veni_core::wire::inspect::policy::{
    self as wire, DecidedBy, Decision, DefaultVerdict, GroupVerdicts, GroupView, PolicyRef,
    RuleName, Side, TableEntry,
};

use veni_ebpf_common::table::NO_CLASS;

use super::{Judge, Judgement, Party, protocol_name};
use crate::{
    index::{Half, Index, PodExplanation, ProfileEntry, SetExplanation},
    rule::{RuleIndex, RuleKind, RuleRef, RuleTier},
};

impl Judge for Index {
    fn judge(&self, from: Party<'_>, to: Party<'_>, protocol: u8, port: u16) -> Judgement {
        let found = Self::judge(self, from.address, to.address, protocol, port);
        let group = |half: &Half| {
            half.group.as_ref().map(|group| decision(group.allowed, group.rule.as_ref()))
        };
        let groups = GroupVerdicts { egress: group(&found.egress), ingress: group(&found.ingress) };
        Judgement {
            allowed: found.allowed,
            decided_by: DecidedBy {
                egress: decision(found.egress.allowed, found.egress.rule.as_ref()),
                ingress: decision(found.ingress.allowed, found.ingress.rule.as_ref()),
            },
            security_groups: (groups != GroupVerdicts::default()).then_some(groups),
        }
    }
}

/// A verdict's rule, or the default.
#[must_use]
pub fn decision(allowed: bool, rule: Option<&RuleRef>) -> Decision {
    let default = if allowed { DefaultVerdict::Allow } else { DefaultVerdict::Deny };
    match rule {
        None => Decision::default_of(default),
        Some(rule) if rule.kind == RuleKind::Unknown => Decision::because(default, "unknown_pod"),
        Some(rule) => Decision::Rule(reference(rule)),
    }
}

fn reference(rule: &RuleRef) -> wire::RuleRef {
    wire::RuleRef {
        kind: kind(rule.kind).to_owned(),
        namespace: Some(rule.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: rule.name.clone(),
        tier: tier(rule.tier).map(str::to_owned),
        rule: match &rule.rule {
            RuleIndex::Index(index) => Some(RuleName::Index(*index)),
            RuleIndex::GroupRule(id) => Some(RuleName::Id(id.clone())),
            RuleIndex::None => None,
        },
        reason: rule.reason.clone(),
    }
}

const fn kind(kind: RuleKind) -> &'static str {
    match kind {
        RuleKind::NetworkPolicy => "NetworkPolicy",
        RuleKind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        RuleKind::SecurityGroup => "SecurityGroup",
        RuleKind::Unknown => "Unknown",
    }
}

/// Of a ClusterNetworkPolicy.
const fn tier(tier: RuleTier) -> Option<&'static str> {
    match tier {
        RuleTier::Admin => Some("Admin"),
        RuleTier::Baseline => Some("Baseline"),
        RuleTier::NetworkPolicy | RuleTier::SecurityGroup => None,
    }
}

/// What applies to a pod, as a document. Its namespace's labels, what was wrong and notes are the caller's to add.
#[must_use]
pub fn explanation(found: &PodExplanation) -> wire::Explanation {
    wire::Explanation {
        pod: found.pod.to_string(),
        addresses: found.addresses.clone(),
        labels: found.labels.clone(),
        namespace_labels: std::collections::BTreeMap::new(),
        host_network: false,
        security_groups: found
            .security_groups
            .iter()
            .map(|id| GroupView { id: id.clone(), unresolved: None })
            .collect(),
        egress: side(&found.egress),
        ingress: side(&found.ingress),
        notes: Vec::new(),
        diagnostics: Vec::new(),
    }
}

fn side(set: &SetExplanation) -> Side {
    let isolated = set.rules.iter().any(|rule| rule.kind == RuleKind::NetworkPolicy);
    Side { isolated, policies: policies(&set.rules), table: table(set) }
}

/// The objects of rules, each once, with how many of its rules there are.
fn policies(rules: &[RuleRef]) -> Vec<PolicyRef> {
    let mut policies: Vec<PolicyRef> = Vec::new();
    for rule in rules {
        let named = PolicyRef {
            kind: kind(rule.kind).to_owned(),
            namespace: Some(rule.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: rule.name.clone(),
            tier: tier(rule.tier).map(str::to_owned),
            priority: None,
            rules: 0,
        };
        let known = |policy: &&mut PolicyRef| PolicyRef { rules: 0, ..(**policy).clone() } == named;
        let count = u32::from(rule.rule != RuleIndex::None);
        match policies.iter_mut().find(known) {
            Some(policy) => policy.rules += count,
            None => policies.push(PolicyRef { rules: count, ..named }),
        }
    }
    policies
}

/// Peers with the same verdicts in one entry; addresses that no rule names last.
fn table(set: &SetExplanation) -> Vec<TableEntry> {
    let others = set.otherwise.as_ref().map_or_else(open, ports);
    let mut table: Vec<TableEntry> = Vec::new();
    let mut add = |members: &[String], ports: Vec<wire::PortEntry>| match table
        .iter_mut()
        .find(|entry| entry.ports == ports)
    {
        Some(entry) => entry.peers.extend_from_slice(members),
        None => table.push(TableEntry { peers: members.to_vec(), ports }),
    };
    // The majority's answer need not be that of addresses without a class.
    let unnamed = set.classes.iter().find(|entry| entry.class == NO_CLASS);
    let everyone_else = unnamed.map_or_else(|| others.clone(), |entry| ports(&entry.profile));
    for entry in set.classes.iter().filter(|entry| entry.class != NO_CLASS) {
        add(&entry.members, ports(&entry.profile));
    }
    add(&set.others, others);
    table.retain(|entry| entry.ports != everyone_else && !entry.peers.is_empty());
    for entry in &mut table {
        entry.peers.sort();
        entry.peers.dedup();
    }
    table.sort_by(|a, b| a.peers.cmp(&b.peers));
    table.push(TableEntry { peers: Vec::new(), ports: everyone_else });
    table
}

fn ports(profile: &ProfileEntry) -> Vec<wire::PortEntry> {
    let named = profile.ports.iter().map(|port| wire::PortEntry {
        protocol: name(port.protocol),
        first: port.first,
        last: port.last,
        allowed: port.allowed,
        decided_by: decision(port.allowed, port.rule.as_ref()),
    });
    let rest = every_port(profile.allowed, decision(profile.allowed, profile.rule.as_ref()));
    named.chain([rest]).collect()
}

fn name(protocol: u8) -> String {
    if protocol == veni_ebpf_common::table::ANY_PROTOCOL {
        "*".to_owned()
    } else {
        protocol_name(protocol)
    }
}

fn open() -> Vec<wire::PortEntry> {
    vec![every_port(true, Decision::default_of(DefaultVerdict::Allow))]
}

fn every_port(allowed: bool, decided_by: Decision) -> wire::PortEntry {
    wire::PortEntry { protocol: "*".to_owned(), first: 0, last: u16::MAX, allowed, decided_by }
}
