//! The index as judge, and its explanations as documents.

use veni_core::wire::inspect::policy::{
    self as wire, DecidedBy, Decision, DefaultVerdict, GroupVerdicts, GroupView, PolicyRef,
    RuleName, Side, TableEntry,
};

use veni_ebpf_common::table::NO_CLASS;

use super::{Judge, Judgement, Party, protocol_name};
use crate::{
    index::{Half, Index, PodExplanation, ProfileEntry, Selecting, SetExplanation},
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
        Some(rule) if rule.kind == RuleKind::Unselected => Decision::because(default, "strict"),
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
        RuleKind::Unselected => "Unselected",
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

/// What applies to a pod, as a document. What was wrong and notes are the caller's to add.
#[must_use]
pub fn explanation(found: &PodExplanation) -> wire::Explanation {
    wire::Explanation {
        pod: found.pod.to_string(),
        addresses: found.addresses.clone(),
        labels: found.labels.clone(),
        namespace_labels: found.namespace_labels.clone(),
        host_network: false,
        security_groups: found
            .security_groups
            .iter()
            .map(|group| GroupView { id: group.id.clone(), unresolved: group.unresolved.clone() })
            .collect(),
        egress: side(&found.egress_policies, &found.egress),
        ingress: side(&found.ingress_policies, &found.ingress),
        notes: Vec::new(),
        diagnostics: Vec::new(),
        pending: false,
    }
}

fn side(policies: &[Selecting], set: &SetExplanation) -> Side {
    Side {
        isolated: policies.iter().any(|policy| policy.kind == RuleKind::NetworkPolicy),
        policies: policies.iter().map(policy).collect(),
        table: table(set),
    }
}

fn policy(found: &Selecting) -> PolicyRef {
    PolicyRef {
        kind: kind(found.kind).to_owned(),
        namespace: Some(found.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: found.name.clone(),
        tier: tier(found.tier).map(str::to_owned),
        priority: found.priority,
        rules: u32::try_from(found.rules).unwrap_or(u32::MAX),
    }
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
