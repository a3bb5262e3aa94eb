//! How often to ask, how long to keep, how much is too much.

use std::time::Duration;

/// Settings of a [`Resolver`](crate::Resolver).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How old what is known gets before it is asked for again, seconds.
    pub refresh_secs: u64,
    /// Each interval varies by up to this share in both directions, so that a cluster's nodes do not ask in step.
    pub jitter_percent: u8,
    /// How long what is not wanted any more stays at hand for the next pod that wants it, seconds.
    pub cache_secs: u64,
    /// The first wait after a failed call, milliseconds; it doubles up to `refresh_secs`. The cloud's own word, where
    /// there is one, is a lower bound.
    pub backoff_millis: u64,
    /// How soon to ask again for a group, list or member that is not there, or not there any more, seconds.
    pub confirm_secs: u64,
    /// How long a call may take, seconds.
    pub call_secs: u64,
    /// New wants that come within this time are asked for together, milliseconds.
    pub gather_millis: u64,
    /// What the jitter follows from; nodes have different ones.
    pub seed: u64,
    /// What is too much.
    pub limits: Limits,
}

/// What is too much. Beyond a limit a group stays as it was before, and one that is new is unresolved, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Groups wanted on a node; first those that were in force, then by id.
    pub groups: usize,
    /// Rules of a group, prefix lists expanded. EC2's own highest quota is 1,000 rules a group.
    pub rules_per_group: usize,
    /// Addresses of the members of one group.
    pub members_per_group: usize,
    /// Addresses of the members of all groups that rules refer to.
    pub members: usize,
    /// Rules, members and entries that the cache keeps of what is not wanted any more.
    pub cached: u64,
}

impl Default for Settings {
    /// One node makes about four calls a minute; EC2 gives an account 20 a second of each of these actions.
    fn default() -> Self {
        Self {
            refresh_secs: 60,
            jitter_percent: 25,
            cache_secs: 600,
            backoff_millis: 1_000,
            confirm_secs: 5,
            call_secs: 30,
            gather_millis: 10,
            seed: 0,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            groups: 1_000,
            rules_per_group: 10_000,
            members_per_group: 131_072,
            members: 262_144,
            cached: 262_144,
        }
    }
}

impl Settings {
    pub(crate) fn refresh(&self) -> Duration {
        Duration::from_secs(self.refresh_secs)
    }

    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        let doubled = Duration::from_millis(self.backoff_millis)
            .saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(self.refresh())
    }

    pub(crate) fn confirm(&self) -> Duration {
        Duration::from_secs(self.confirm_secs)
    }

    pub(crate) fn call(&self) -> Duration {
        Duration::from_secs(self.call_secs)
    }

    pub(crate) fn gather(&self) -> Duration {
        Duration::from_millis(self.gather_millis)
    }
}
