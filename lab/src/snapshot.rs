//! What is in a network namespace, as lines that can be compared: to show that nothing is left.
//!
//! Deliberately absent: counters, ages and neighbours, which change by themselves.

use std::{collections::BTreeSet, fmt};

use crate::{error::Result, ns::Namespace};

/// The links, addresses, routes, rules, filters and nftables rules of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    lines: BTreeSet<(Kind, String)>,
}

/// What differs between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Only in the second.
    pub added: Vec<String>,
    /// Only in the first.
    pub removed: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Link,
    Address,
    Route,
    Rule,
    Qdisc,
    Nft,
}

/// What prints each kind. `nft -s` leaves counters out.
const SOURCES: [(Kind, &str, &[&str]); 6] = [
    (Kind::Link, "ip", &["-o", "link", "show"]),
    (Kind::Address, "ip", &["-o", "-4", "address", "show"]),
    (Kind::Route, "ip", &["-4", "route", "show", "table", "all"]),
    (Kind::Rule, "ip", &["-4", "rule", "show"]),
    (Kind::Qdisc, "tc", &["qdisc", "show"]),
    (Kind::Nft, "nft", &["-s", "list", "ruleset"]),
];

// === impl Snapshot ===

impl Snapshot {
    /// What is in `namespace` now.
    ///
    /// # Errors
    /// When one of the tools fails.
    pub fn take(namespace: &Namespace) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for (kind, program, args) in SOURCES {
            let mut context = String::new();
            for line in namespace.tool(program, args, "")?.lines() {
                let text = line.trim();
                if kind == Kind::Nft {
                    // A rule means something in its table and chain only.
                    if text.starts_with("table ")
                        || text.starts_with("chain ")
                        || text.starts_with("set ")
                    {
                        context = text.trim_end_matches(" {").to_owned();
                    }
                    lines.insert((kind, format!("{context}: {text}")));
                } else if !text.is_empty() {
                    lines.insert((kind, text.to_owned()));
                }
            }
        }
        Ok(Self { lines })
    }

    /// How `self` became `later`.
    #[must_use]
    pub fn difference(&self, later: &Self) -> Difference {
        let lines = |a: &Self, b: &Self| {
            a.lines.difference(&b.lines).map(|(kind, l)| format!("{kind:?}: {l}")).collect()
        };
        Difference { added: lines(later, self), removed: lines(self, later) }
    }

    /// How many links, routes, rules and nftables lines there are.
    #[must_use]
    pub fn summary(&self) -> String {
        let count = |kind| self.lines.iter().filter(|(k, _)| *k == kind).count();
        format!(
            "{} links, {} routes, {} rules, {} nft lines",
            count(Kind::Link),
            count(Kind::Route),
            count(Kind::Rule),
            count(Kind::Nft)
        )
    }
}

// === impl Difference ===

impl Difference {
    /// Whether both were the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines =
            self.added.iter().map(|l| ('+', l)).chain(self.removed.iter().map(|l| ('-', l)));
        lines.try_for_each(|(sign, line)| writeln!(f, "{sign} {line}"))
    }
}
