//! Rule numbers: what a [`Decision`](veni_ebpf_common::table::Decision) names, readable.
//!
//! A rule keeps its number for as long as a set names it, and for a while after that: a number is another rule's only
//! after two sweeps have found it unused, so an event that arrives late still names the right one, and memory does not
//! grow with the policies that come and go. Number 0 is the default: no rule decided.

use std::{borrow::Cow, fmt, ops::Range};

use serde::Serialize;

use crate::{
    change::Direction,
    intern::{FastMap, FastSet},
};

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
    /// No NetworkPolicy selects the pod, on a node where that closes it.
    Unselected,
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
    numbers: FastMap<RuleRef, u32>,
    rules: FastMap<u32, RuleRef>,
    /// The last number that was never given before.
    last: u32,
    /// Numbers up to this one are an earlier daemon's, while its tables are in force.
    before: u32,
    /// Numbers of an earlier daemon that nothing names any more.
    spare: Range<u32>,
    free: Vec<u32>,
    /// Unused at the last sweep. Still readable.
    condemned: FastSet<u32>,
    /// Rules in use at the last sweep.
    used: usize,
    /// Numbers given since then.
    given: usize,
}

impl RuleRegistry {
    /// A registry whose numbers come after this one.
    pub(crate) fn after(before: u32) -> Self {
        Self { before, last: before, ..Self::default() }
    }

    /// The rule of a number; `None` for 0, the default, and for numbers that are not given, or by an earlier daemon.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&RuleRef> {
        self.rules.get(&number)
    }

    /// How many rules have a number.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether no rule has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The number of a rule, a new one when it has none.
    pub(crate) fn number(&mut self, rule: &RuleRef) -> u32 {
        let key = rule.key();
        if let Some(number) = self.numbers.get(&*key) {
            // In use again.
            self.condemned.remove(number);
            if rule.reason.is_some() {
                self.rules.insert(*number, rule.clone());
            }
            return *number;
        }
        let number = self.free.pop().or_else(|| self.spare.next()).unwrap_or_else(|| {
            self.last += 1;
            self.last
        });
        // Decisions have 31 bits for it, and numbers come back: far more rules than fit in memory.
        debug_assert!(number < 1 << 31, "fewer than 2^31 rules fit in memory");
        self.given += 1;
        self.rules.insert(number, rule.clone());
        self.numbers.insert(key.into_owned(), number);
        number
    }

    /// Nothing of the earlier daemon's names a rule any more.
    pub(crate) fn release_earlier(&mut self) {
        if self.before > 0 {
            self.spare = 1..self.before + 1;
            self.before = 0;
        }
    }

    /// Whether many numbers were given since the last sweep.
    pub(crate) const fn wants_sweep(&self) -> bool {
        self.given > self.used + 1024
    }

    /// Forgets rules that are not in use now and were not at the last sweep. At most once a change: between the two
    /// lie at least one whole change with its graces, and a thousand new rules.
    pub(crate) fn sweep(&mut self, used: &FastSet<u32>) {
        let condemned = std::mem::take(&mut self.condemned);
        for number in self.rules.keys().copied().collect::<Vec<_>>() {
            if used.contains(&number) {
                continue;
            }
            if condemned.contains(&number) {
                let rule = self.rules.remove(&number).expect("just seen");
                self.numbers.remove(&*rule.key());
                self.free.push(number);
            } else {
                self.condemned.insert(number);
            }
        }
        self.used = self.rules.len() - self.condemned.len();
        self.given = 0;
    }
}

impl RuleRef {
    /// What has a number of its own. The words of a reason do not: those of a call that fails again and again differ
    /// each time, and a number is part of what sets are told apart by.
    fn key(&self) -> Cow<'_, Self> {
        if self.reason.is_none() {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Self { reason: Some(String::new()), ..self.clone() })
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RuleKind::NetworkPolicy => "NetworkPolicy ",
            RuleKind::ClusterNetworkPolicy => "ClusterNetworkPolicy ",
            RuleKind::SecurityGroup => "security group ",
            RuleKind::Unknown => "unknown pod",
            RuleKind::Unselected => "unselected pod",
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
