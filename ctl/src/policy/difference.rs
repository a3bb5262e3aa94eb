//! Which connections differ between two states.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use veni_core::wire::inspect::policy::{DecidedBy, Decision, Diagnostic, Family, Flow, Flows};
use veni_policy::object::Pod;

use super::cluster::ELSEWHERE;

/// What differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    /// Connections whose verdict is another one, or that are possible in one state only.
    pub(super) changes: Vec<Change>,
    /// Those of both states.
    pub(super) diagnostics: Vec<Diagnostic>,
    /// With `--live`: what of the two was compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) compared: Option<Compared>,
}

/// What of two states was compared, where one is a node's.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Compared {
    /// Connections of which this node judges an end or both.
    pub(super) connections: usize,
    /// Pods of which other nodes judge the end: it is not compared.
    pub(super) elsewhere: Vec<String>,
    /// Connections that are left out, because security groups judge them and the groups' rules are not given.
    pub(super) of_groups: usize,
}

/// A connection whose verdict is another one.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) protocol: String,
    pub(super) port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) family: Option<Family>,
    /// `None`: one of the pods or the port did not exist.
    pub(super) before: Option<Judged>,
    /// `None`: one of the pods or the port does not exist any more.
    pub(super) after: Option<Judged>,
}

/// A verdict.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Judged {
    pub(super) allowed: bool,
    pub(super) decided_by: DecidedBy,
}

type Key = (String, String, String, u16, Option<Family>);

/// What differs between two matrices.
pub(super) fn between(old: Flows, new: Flows) -> Difference {
    let mut before = by_key(old.flows);
    let mut changes = Vec::new();
    for (key, after) in by_key(new.flows) {
        let old = before.remove(&key);
        if old.as_ref().map(|old| old.allowed) != Some(after.allowed) {
            changes.push(Change::of(key, old, Some(after)));
        }
    }
    changes.extend(before.into_iter().map(|(key, old)| Change::of(key, Some(old), None)));
    changes.sort_by(|a, b| a.key().cmp(&b.key()));
    let mut diagnostics = old.diagnostics;
    // What is wrong in both is told once.
    diagnostics.extend(new.diagnostics);
    diagnostics.sort();
    diagnostics.dedup();
    Difference { changes, diagnostics, compared: None }
}

/// Which pods' ends other nodes judge: as the daemon says, and of pods that it does not know, by their node.
pub(super) fn elsewhere<'a>(
    live: &Flows,
    pods: impl Iterator<Item = &'a Pod> + Clone,
) -> BTreeSet<String> {
    let (mut elsewhere, mut known) = (BTreeSet::new(), BTreeSet::new());
    for flow in &live.flows {
        for (end, decision) in
            [(&flow.from, &flow.decided_by.egress), (&flow.to, &flow.decided_by.ingress)]
        {
            known.insert(end.clone());
            if is_elsewhere(decision) {
                elsewhere.insert(end.clone());
            }
        }
    }
    let name = |pod: &Pod| format!("{}/{}", pod.namespace, pod.name);
    let is_here = |pod: &&Pod| known.contains(&name(pod)) && !elsewhere.contains(&name(pod));
    let here: BTreeSet<_> =
        pods.clone().filter(is_here).filter_map(|pod| pod.node.clone()).collect();
    let is_new_elsewhere = |pod: &&Pod| {
        let node = pod.node.as_ref().filter(|_| !here.is_empty() && !known.contains(&name(pod)));
        node.is_some_and(|node| !here.contains(node))
    };
    let new: Vec<_> = pods.filter(is_new_elsewhere).map(name).collect();
    elsewhere.extend(new);
    elsewhere
}

/// Whether another node's daemon judges that end.
pub(super) fn is_elsewhere(decision: &Decision) -> bool {
    matches!(decision, Decision::Default { because: Some(because), .. } if because == ELSEWHERE)
}

/// As [`between`], without connections of which neither end is judged here, and without those of security groups, where
/// these are not known of the new state.
pub(super) fn between_here(
    mut old: Flows,
    mut new: Flows,
    elsewhere: &BTreeSet<String>,
    without_groups: bool,
) -> Difference {
    let is_here = |flow: &Flow| !(elsewhere.contains(&flow.from) && elsewhere.contains(&flow.to));
    old.flows.retain(is_here);
    new.flows.retain(is_here);
    let key = |flow: &Flow| {
        (flow.from.clone(), flow.to.clone(), flow.protocol.clone(), flow.port, flow.family)
    };
    let of_groups = |flow: &&Flow| without_groups && flow.security_groups.is_some();
    let left_out: BTreeSet<Key> = old.flows.iter().filter(of_groups).map(key).collect();
    old.flows.retain(|flow| !left_out.contains(&key(flow)));
    new.flows.retain(|flow| !left_out.contains(&key(flow)));
    let all: BTreeSet<Key> = old.flows.iter().chain(&new.flows).map(key).collect();
    let compared = Compared {
        connections: all.len(),
        elsewhere: elsewhere.iter().cloned().collect(),
        of_groups: left_out.len(),
    };
    Difference { compared: Some(compared), ..between(old, new) }
}

fn by_key(flows: Vec<Flow>) -> BTreeMap<Key, Judged> {
    flows
        .into_iter()
        .map(|Flow { from, to, protocol, port, family, allowed, decided_by, .. }| {
            ((from, to, protocol, port, family), Judged { allowed, decided_by })
        })
        .collect()
}

impl Change {
    fn of(key: Key, before: Option<Judged>, after: Option<Judged>) -> Self {
        let (from, to, protocol, port, family) = key;
        Self { from, to, protocol, port, family, before, after }
    }

    fn key(&self) -> (&str, &str, &str, u16, Option<Family>) {
        (&self.from, &self.to, &self.protocol, self.port, self.family)
    }
}
