//! From what is known of the parts to what is published: pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::time::Instant;
use veni_core::id::SecurityGroupId;
use veni_policy::security_group::{
    self as resolved, GroupPeer, GroupProtocol, GroupRule, GroupState, ResolvedGroup,
};
use veni_provider::{GroupReference, RuleDirection, RulePeer, RuleTraffic, SecurityGroupRule};

use crate::{
    part::{Members, Part, Parts},
    settings::Limits,
    status::{GroupHealth, Standing},
    whole::{Whole, Wholes},
};

/// What is published, and how each wanted group stands.
#[derive(Debug, Default)]
pub(crate) struct Assembled {
    pub(crate) groups: resolved::SecurityGroups,
    pub(crate) standings: Vec<Standing>,
}

/// Why a group is not whole.
#[derive(Debug)]
enum Lack {
    /// Something was not read yet; the words say why, where it was tried.
    Pending(Option<String>),
    /// Somebody has to mend something.
    Unresolved(String),
    /// It is gone, or something that it consisted of.
    Gone(String),
}

/// A group under assembly.
#[derive(Debug)]
struct Draft<'a> {
    parts: &'a Parts,
    limits: &'a Limits,
    ingress: Vec<GroupRule>,
    egress: Vec<GroupRule>,
    /// The groups that its rules refer to.
    referenced: BTreeMap<SecurityGroupId, &'a Arc<Members>>,
    notes: Vec<String>,
    /// The age of its oldest part.
    since: Instant,
    last_error: Option<String>,
}

/// The wanted groups that are looked after, and those beyond the limit; first those that were in force.
pub(crate) fn within_limit(
    wanted: &BTreeSet<SecurityGroupId>,
    wholes: &Wholes,
    limits: &Limits,
) -> (BTreeSet<SecurityGroupId>, BTreeSet<SecurityGroupId>) {
    let (whole, new): (Vec<_>, Vec<_>) =
        wanted.iter().cloned().partition(|id| wholes.get(id).is_some());
    let mut inside: Vec<_> = whole.into_iter().chain(new).collect();
    let beyond = inside.split_off(limits.groups.min(inside.len()));
    (inside.into_iter().collect(), beyond.into_iter().collect())
}

/// Puts together what is known of `wanted`. What is not whole now stays as it was in `wholes`, which learns what is.
pub(crate) fn assemble(
    wanted: &BTreeSet<SecurityGroupId>,
    parts: &Parts,
    wholes: &mut Wholes,
    limits: &Limits,
) -> Assembled {
    let mut assembled = Assembled::default();
    let mut held: usize = 0;
    let (inside, beyond) = within_limit(wanted, wholes, limits);
    let mut lacking: Vec<(SecurityGroupId, Lack)> = Vec::new();
    for id in inside {
        let outcome = resolve(&id, parts, limits).and_then(|draft| {
            let known = &assembled.groups.members;
            let new = draft.referenced.iter().filter(|(group, _)| !known.contains_key(*group));
            let sum = held + new.map(|(_, members)| members.addresses.len()).sum::<usize>();
            within("addresses of members of all groups together", sum, limits.members)?;
            held = sum;
            Ok(draft)
        });
        match outcome {
            Ok(draft) => draft.publish(id, wholes, &mut assembled),
            Err(lack) => lacking.push((id, lack)),
        }
    }
    lacking.extend(beyond.into_iter().map(|id| {
        let reason = format!("{id} is one of more than {} groups on this node", limits.groups);
        (id, Lack::Unresolved(reason))
    }));
    // Only now: members that are known to others anew count for these too.
    for (id, lack) in lacking {
        fall_back(id, lack, parts, wholes, &mut assembled);
    }
    assembled.standings.sort_by(|a, b| a.status.id.cmp(&b.status.id));
    assembled
}

/// A group that is not whole: as it was, else as much as is known of why.
fn fall_back(
    id: SecurityGroupId,
    lack: Lack,
    parts: &Parts,
    wholes: &mut Wholes,
    assembled: &mut Assembled,
) {
    let failure = parts.rules.get(&id).and_then(|part| part.failure.as_ref());
    let last_error = failure.map(|failure| failure.words.clone());
    let gone = matches!(lack, Lack::Gone(_));
    if gone {
        wholes.forget(&id);
    }
    if let Some(whole) = wholes.get(&id) {
        let mut standing = of_whole(&id, whole, lack);
        standing.status.last_error = last_error;
        assembled.standings.push(standing);
        whole.publish(&mut assembled.groups);
        return;
    }
    let (health, state, reason) = match lack {
        Lack::Pending(None) => {
            assembled.standings.push(Standing::new(id, GroupHealth::Pending));
            return;
        }
        Lack::Pending(Some(reason)) => {
            (GroupHealth::Pending, GroupState::Pending { reason: reason.clone() }, reason)
        }
        Lack::Unresolved(reason) | Lack::Gone(reason) => {
            (GroupHealth::Unresolved, GroupState::Unresolved { reason: reason.clone() }, reason)
        }
    };
    let mut standing = Standing::new(id.clone(), health);
    (standing.status.reason, standing.status.last_error) = (Some(reason), last_error);
    standing.status.gone = gone;
    assembled.standings.push(standing);
    let group = ResolvedGroup { id: id.clone(), state, ingress: Vec::new(), egress: Vec::new() };
    assembled.groups.groups.insert(id, group);
}

fn of_whole(id: &SecurityGroupId, whole: &Whole, lack: Lack) -> Standing {
    let (health, reason) = match lack {
        // In the middle of a refresh.
        Lack::Pending(None) if !whole.former => (GroupHealth::Fresh, None),
        Lack::Pending(None) => {
            (GroupHealth::Stale, Some("as an earlier daemon left it, not read yet".to_owned()))
        }
        Lack::Pending(Some(reason)) | Lack::Unresolved(reason) | Lack::Gone(reason) => {
            (GroupHealth::Stale, Some(reason))
        }
    };
    let mut standing = Standing::new(id.clone(), health);
    standing.since = Some(whole.since);
    standing.status.reason = reason;
    standing.status.rules = whole.rules();
    standing.status.members = whole.members.values().map(|members| members.len()).sum();
    standing
}

fn resolve<'a>(
    id: &SecurityGroupId,
    parts: &'a Parts,
    limits: &'a Limits,
) -> Result<Draft<'a>, Lack> {
    let part = parts.rules.get(id).ok_or(Lack::Pending(None))?;
    if part.is_missing() {
        let failure = part.failure.as_ref();
        return Err(Lack::Gone(failure.map(|gone| gone.words.clone()).unwrap_or_default()));
    }
    let (rules, at) = known(part, || format!("the rules of {id}"))?;
    let mut draft = Draft {
        parts,
        limits,
        ingress: Vec::new(),
        egress: Vec::new(),
        referenced: BTreeMap::new(),
        notes: Vec::new(),
        since: at,
        last_error: None,
    };
    draft.depends_on(part, at);
    for rule in rules.iter() {
        draft.add(rule)?;
        within(&format!("rules of {id}"), draft.rules(), limits.rules_per_group)?;
    }
    Ok(draft)
}

/// What a part says and since when, or why it says nothing.
fn known<T>(part: &Part<T>, what: impl Fn() -> String) -> Result<(&Arc<T>, Instant), Lack> {
    if let (Some(value), Some(known)) = (part.value(), &part.known) {
        return Ok((value, known.at));
    }
    let Some(failure) = &part.failure else { return Err(Lack::Pending(None)) };
    let words = failure.words.clone();
    Err(if part.is_gone() {
        Lack::Gone(words)
    } else if part.known.is_some() {
        // It never existed, as far as is known: it may be too new to show.
        Lack::Unresolved(words)
    } else if failure.passing {
        Lack::Pending(Some(format!("{} could not be read: {words}", what())))
    } else {
        Lack::Unresolved(format!("{} could not be read: {words}", what()))
    })
}

fn within(what: &str, count: usize, limit: usize) -> Result<(), Lack> {
    if count > limit {
        return Err(Lack::Unresolved(format!("too large: more than {limit} {what}")));
    }
    Ok(())
}

// === impl Draft ===

impl<'a> Draft<'a> {
    fn rules(&self) -> usize {
        self.ingress.len() + self.egress.len()
    }

    fn depends_on<T>(&mut self, part: &Part<T>, at: Instant) {
        self.since = self.since.min(at);
        if let Some(failure) = &part.failure {
            self.last_error.get_or_insert_with(|| failure.words.clone());
        }
    }

    fn add(&mut self, rule: &SecurityGroupRule) -> Result<(), Lack> {
        let Some((protocol, first, last)) = traffic(&rule.traffic) else {
            self.note(rule, &format!("not understood: {:?}", rule.traffic));
            return Ok(());
        };
        for peer in self.peers(rule)? {
            let id = rule.id.to_string();
            let rule_for = GroupRule { id, protocol, first, last, peer };
            match rule.direction {
                RuleDirection::Ingress => self.ingress.push(rule_for),
                RuleDirection::Egress => self.egress.push(rule_for),
            }
        }
        Ok(())
    }

    /// Whom a rule admits: one peer, or those that stand for it.
    fn peers(&mut self, rule: &SecurityGroupRule) -> Result<Vec<GroupPeer>, Lack> {
        match &rule.peer {
            RulePeer::Cidr(net) => Ok(vec![GroupPeer::Cidr(*net)]),
            RulePeer::Group(group) => self.group(rule, group),
            RulePeer::PrefixList(list) => {
                let part = self.parts.lists.get(list).ok_or(Lack::Pending(None))?;
                let words = || format!("{list}, which rule {} refers to,", rule.id);
                let (entries, at) = known(part, words)?;
                self.depends_on(part, at);
                Ok(entries.cidrs.iter().copied().map(GroupPeer::Cidr).collect())
            }
            RulePeer::Unknown(words) => {
                self.note(rule, &format!("not understood: {words}"));
                Ok(Vec::new())
            }
        }
    }

    fn group(
        &mut self,
        rule: &SecurityGroupRule,
        group: &GroupReference,
    ) -> Result<Vec<GroupPeer>, Lack> {
        if let Some(words) = invisible(group) {
            self.note(rule, &words);
            return Ok(Vec::new());
        }
        let part = self.parts.members.get(&group.id).ok_or(Lack::Pending(None))?;
        let words = || format!("the members of {}, which rule {} refers to,", group.id, rule.id);
        let (members, at) = known(part, words)?;
        let what = format!("addresses of members of {}", group.id);
        within(&what, members.addresses.len(), self.limits.members_per_group)?;
        self.depends_on(part, at);
        self.referenced.insert(group.id.clone(), members);
        let ranges = members.ranges.iter().copied().map(GroupPeer::Cidr);
        Ok(std::iter::once(GroupPeer::Group(group.id.clone())).chain(ranges).collect())
    }

    fn note(&mut self, rule: &SecurityGroupRule, words: &str) {
        self.notes.push(format!("{} admits nobody: {words}", rule.id));
    }

    fn publish(self, id: SecurityGroupId, wholes: &mut Wholes, assembled: &mut Assembled) {
        let stale = self.last_error.is_some();
        let health = if stale { GroupHealth::Stale } else { GroupHealth::Fresh };
        let mut standing = Standing::new(id.clone(), health);
        standing.since = Some(self.since);
        standing.status.rules = self.rules();
        standing.status.members = self.referenced.values().map(|m| m.len()).sum();
        standing.status.last_error = self.last_error;
        standing.status.notes = self.notes;
        assembled.standings.push(standing);
        let members = self.referenced.into_iter().map(|(id, members)| (id, Arc::clone(members)));
        let Self { ingress, egress, since, .. } = self;
        let state = GroupState::Resolved;
        let group = ResolvedGroup { id: id.clone(), state, ingress, egress };
        let members = members.collect();
        let whole = Whole { group, members, since, former: false, wanted_at: Instant::now() };
        whole.publish(&mut assembled.groups);
        wholes.insert(id, whole);
    }
}

/// Why the members of a group that a rule refers to are nobody's that could be seen.
pub(crate) fn invisible(group: &GroupReference) -> Option<String> {
    let GroupReference { id, foreign_account, peering_connection, stale } = group;
    let behind =
        peering_connection.as_deref().map_or(String::new(), |pcx| format!(" behind {pcx}"));
    if *stale {
        return Some(format!("{id}{behind} is not reachable any more, EC2 calls the rule stale"));
    }
    let account = foreign_account.as_ref()?;
    Some(format!("{id}{behind} is of account {account}, whose ENIs this account cannot see"))
}

/// Protocol and range as the policy's tables have them.
fn traffic(traffic: &RuleTraffic) -> Option<(GroupProtocol, u16, u16)> {
    let number = GroupProtocol::Number;
    Some(match traffic {
        RuleTraffic::All => (GroupProtocol::Any, 0, u16::MAX),
        RuleTraffic::Protocol(protocol) => (number(*protocol), 0, u16::MAX),
        RuleTraffic::Ports { protocol, first, last } => (number(*protocol), *first, *last),
        RuleTraffic::Icmp { protocol, kind, code } => {
            let at = |code: u8| u16::from_be_bytes([*kind, code]);
            (number(*protocol), at(code.unwrap_or(0)), at(code.unwrap_or(u8::MAX)))
        }
        RuleTraffic::Unknown(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_becomes_a_protocol_and_a_range() {
        let check = |rule: RuleTraffic, expect| assert_eq!(traffic(&rule), expect, "{rule:?}");
        let number = GroupProtocol::Number;
        check(RuleTraffic::All, Some((GroupProtocol::Any, 0, 65_535)));
        check(RuleTraffic::Protocol(50), Some((number(50), 0, 65_535)));
        let ports = RuleTraffic::Ports { protocol: 6, first: 80, last: 81 };
        check(ports, Some((number(6), 80, 81)));
        let icmp = |code| RuleTraffic::Icmp { protocol: 1, kind: 3, code };
        check(icmp(None), Some((number(1), 0x0300, 0x03ff)));
        check(icmp(Some(4)), Some((number(1), 0x0304, 0x0304)));
        check(RuleTraffic::Unknown("x".into()), None);
    }
}
