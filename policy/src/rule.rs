//! Rule numbers: what a [`Decision`](veni_ebpf_common::table::Decision) names, readable.
//!
//! A rule keeps its number for as long as an index knows it, and numbers are never given to another rule, so an
//! event that arrives late still names the right one. Number 0 is the default: no rule decided.

use std::{collections::HashMap, fmt};

use serde::Serialize;

use crate::change::Direction;

/// The rule that decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RuleRef {
    /// What kind of object it is in.
    pub kind: RuleKind,
    /// The object's namespace; empty for what lives in none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The object's name; a security group's id.
    pub name: String,
    /// The tier that decided.
    pub tier: RuleTier,
    /// The direction.
    pub direction: Direction,
    /// Which rule of the object.
    pub rule: RuleIndex,
    /// Why, where no rule says it, e.g. why a security group is not resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What kind of object a rule is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum RuleKind {
    /// A NetworkPolicy.
    NetworkPolicy,
    /// A ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// A security group (or several, the name then lists them).
    SecurityGroup,
    /// Nothing is known of the pod: [`crate::change::CLOSED_SET`].
    Unknown,
}

/// The tier that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum RuleTier {
    /// ClusterNetworkPolicies of tier Admin.
    Admin,
    /// NetworkPolicies.
    NetworkPolicy,
    /// ClusterNetworkPolicies of tier Baseline.
    Baseline,
    /// Security groups.
    SecurityGroup,
}

/// Which rule of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum RuleIndex {
    /// The place in the manifest's list, from 0.
    Index(u32),
    /// A security group rule, `sgr-…`.
    GroupRule(String),
    /// None: the object isolates (or the groups allow) and no rule of it, nor of its like, matched.
    None,
}

/// Numbers of rules.
#[derive(Debug, Default)]
pub struct RuleRegistry {
    numbers: HashMap<RuleRef, u32>,
    rules: Vec<RuleRef>,
    /// Numbers up to this one are an earlier daemon's.
    before: u32,
}

impl RuleRegistry {
    /// A registry whose numbers come after this one.
    pub(crate) fn after(before: u32) -> Self {
        Self { before, ..Self::default() }
    }

    /// The rule of a number; `None` for 0, the default, and for numbers that were never given, or by an earlier daemon.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&RuleRef> {
        let index = usize::try_from(number.checked_sub(self.before)?).ok()?.checked_sub(1)?;
        self.rules.get(index)
    }

    /// The number of a rule, a new one when it has none.
    pub(crate) fn number(&mut self, rule: &RuleRef) -> u32 {
        if let Some(number) = self.numbers.get(rule) {
            return *number;
        }
        self.rules.push(rule.clone());
        let number = u32::try_from(self.rules.len()).expect("fewer than 2^31 rules fit in memory");
        let number = self.before + number;
        self.numbers.insert(rule.clone(), number);
        number
    }

    /// Every rule with its number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &RuleRef)> {
        (self.before + 1..).zip(&self.rules)
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RuleKind::NetworkPolicy => "NetworkPolicy ",
            RuleKind::ClusterNetworkPolicy => "ClusterNetworkPolicy ",
            RuleKind::SecurityGroup => "security group ",
            RuleKind::Unknown => "unknown pod",
        };
        write!(f, "{kind}")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{} {}", self.name, self.direction)?;
        match &self.rule {
            RuleIndex::Index(index) => write!(f, " rule {index}")?,
            RuleIndex::GroupRule(id) => write!(f, " rule {id}")?,
            RuleIndex::None => write!(f, ", no rule matches")?,
        }
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}
