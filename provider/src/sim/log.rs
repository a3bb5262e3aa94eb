//! What was called: counts for budgets, and the last calls one by one.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use veni_core::id::InstanceId;

use crate::call::{ACTION_IDENTITY, ACTION_METADATA_INTERFACES};

/// How many single calls are remembered; counts know of all.
const REMEMBERED: usize = 4_096;

/// How often each action was called, by whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CallCounts {
    /// By instance and action.
    pub by_instance: BTreeMap<InstanceId, BTreeMap<String, CallCount>>,
}

/// How often one action was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CallCount {
    /// Calls that arrived, failed ones included.
    pub calls: u64,
    /// Those answered with an error.
    pub errors: u64,
    /// Those among the errors that were throttled.
    pub throttled: u64,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRecord {
    /// When it arrived, milliseconds from the simulator's start.
    pub at_millis: u64,
    /// Who called.
    pub instance: InstanceId,
    /// What.
    pub action: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not yet, or its caller went away before it took effect.
    Pending,
    /// Well.
    Done,
    /// With an error of this code.
    Failed(String),
}

/// Counts and the last calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    counts: CallCounts,
    records: VecDeque<CallRecord>,
    /// The number of the oldest remembered call.
    first: u64,
}

impl CallCounts {
    /// Calls of `action` by all instances.
    #[must_use]
    pub fn of(&self, action: &str) -> CallCount {
        let each = self.by_instance.values().filter_map(|actions| actions.get(action));
        each.fold(CallCount::default(), |sum, count| sum.plus(*count))
    }

    /// All EC2 calls by all instances. Instance metadata does not count: EC2 does not see it.
    #[must_use]
    pub fn ec2(&self) -> u64 {
        self.by_instance.keys().map(|instance| self.ec2_of(instance)).sum()
    }

    /// All EC2 calls of one instance.
    #[must_use]
    pub fn ec2_of(&self, instance: &InstanceId) -> u64 {
        let actions = self.by_instance.get(instance).into_iter().flatten();
        actions.filter(|(action, _)| !is_metadata(action)).map(|(_, count)| count.calls).sum()
    }

    fn entry(&mut self, instance: &InstanceId, action: &str) -> &mut CallCount {
        self.by_instance.entry(instance.clone()).or_default().entry(action.into()).or_default()
    }
}

impl CallCount {
    fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            errors: self.errors + other.errors,
            throttled: self.throttled + other.throttled,
        }
    }
}

impl Log {
    pub(super) fn counts(&self) -> &CallCounts {
        &self.counts
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &CallRecord> {
        self.records.iter()
    }

    /// Notes a call that arrived; returns its number.
    pub(super) fn begin(&mut self, record: CallRecord) -> u64 {
        self.counts.entry(&record.instance, &record.action).calls += 1;
        if self.records.len() == REMEMBERED {
            self.records.pop_front();
            self.first += 1;
        }
        self.records.push_back(record);
        self.first + self.records.len() as u64 - 1
    }

    /// Notes how call `number` ended. `failed`: its code and whether it was throttled.
    pub(super) fn end(
        &mut self,
        number: u64,
        instance: &InstanceId,
        action: &str,
        failed: Option<(&str, bool)>,
    ) {
        if let Some((_, throttled)) = failed {
            let count = self.counts.entry(instance, action);
            count.errors += 1;
            count.throttled += u64::from(throttled);
        }
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(record) = index.and_then(|index| self.records.get_mut(index)) {
            record.outcome = failed.map_or(Outcome::Done, |(code, _)| Outcome::Failed(code.into()));
        }
    }

    pub(super) fn reset(&mut self) {
        self.first += self.records.len() as u64;
        self.records.clear();
        self.counts = CallCounts::default();
    }
}

fn is_metadata(action: &str) -> bool {
    [ACTION_IDENTITY, ACTION_METADATA_INTERFACES].contains(&action)
}
