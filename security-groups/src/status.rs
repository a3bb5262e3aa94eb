//! How each group stands, for `venictl` and metrics.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use veni_core::id::SecurityGroupId;

/// How a wanted group stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The group.
    pub id: SecurityGroupId,
    /// In a word.
    pub state: GroupHealth,
    /// Why it is pending or unresolved; why what is in force is not what EC2 has now.
    pub reason: Option<String>,
    /// How old the oldest part of what is in force is, seconds.
    pub age_secs: Option<u64>,
    /// What the last attempt to refresh a part of it failed with.
    pub last_error: Option<String>,
    /// Its rules, prefix lists expanded.
    pub rules: usize,
    /// Addresses of the ENIs in the groups that its rules refer to.
    pub members: usize,
    /// What of it admits nobody, and why: a rule for a group of another account, a stale rule, a rule that this
    /// version does not understand.
    pub notes: Vec<String>,
    /// The cloud has said twice that it does not exist.
    #[serde(default)]
    pub gone: bool,
}

/// A group's state in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupHealth {
    /// It was not read yet. Pods keep what they had until it is, new ones stay closed.
    Pending,
    /// In force as the last refresh found it.
    Fresh,
    /// In force as an earlier refresh, or an earlier daemon, found it: the last one failed, or it cannot be put together
    /// from what it found.
    Stale,
    /// Not resolvable: it denies.
    Unresolved,
}

/// A status whose age is still a time.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) status: GroupStatus,
    pub(crate) since: Option<Instant>,
}

impl Standing {
    pub(crate) fn new(id: SecurityGroupId, state: GroupHealth) -> Self {
        let status = GroupStatus {
            id,
            state,
            reason: None,
            age_secs: None,
            last_error: None,
            rules: 0,
            members: 0,
            notes: Vec::new(),
            gone: false,
        };
        Self { status, since: None }
    }

    pub(crate) fn at(&self, now: Instant) -> GroupStatus {
        let age_secs = self.since.map(|since| now.duration_since(since).as_secs());
        GroupStatus { age_secs, ..self.status.clone() }
    }
}
