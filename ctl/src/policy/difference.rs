//! Which connections differ between two states.

use std::collections::BTreeMap;

use serde::Serialize;
use veni_core::wire::inspect::policy::{DecidedBy, Diagnostic, Family, Flow, Flows};

/// What differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    /// Connections whose verdict is another one, or that are possible in one state only.
    pub(super) changes: Vec<Change>,
    /// Those of both states.
    pub(super) diagnostics: Vec<Diagnostic>,
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
    Difference { changes, diagnostics }
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
