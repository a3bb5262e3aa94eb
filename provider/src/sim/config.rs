//! How a simulated region behaves: latencies, throttling, consistency. Everything can be changed while it runs.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::call::ActionClass;

/// A simulated region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimConfig {
    /// Every choice (addresses, ids, jitter, faults' dice) follows from it.
    pub seed: u64,
    /// The region's name, e.g. `eu-central-1`.
    pub region: String,
    /// How long things take.
    pub latency: Latency,
    /// How many calls are allowed, `None`: any number.
    pub throttling: Option<Throttling>,
    /// How late changes show.
    pub consistency: Consistency,
    /// Which free address is taken.
    pub address_choice: AddressChoice,
    /// ENIs that the region gives the account (EC2's default quota: 5,000).
    pub max_enis: u32,
}

/// How long calls and attachments take, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Latency {
    /// A read of instance metadata.
    pub metadata_millis: u64,
    /// A `Describe…` call.
    pub describe_millis: u64,
    /// Any other call.
    pub mutate_millis: u64,
    /// From the effect of `AttachNetworkInterface` to `in-use`.
    pub attach_millis: u64,
    /// From the effect of `DetachNetworkInterface` to `available`.
    pub detach_millis: u64,
    /// Each of these varies by up to this share in both directions.
    pub jitter_percent: u8,
    /// Calls of these actions take so long instead.
    pub by_action: BTreeMap<String, u64>,
}

/// Token buckets, one an action, their size by class (EC2 API developer guide, "Request throttling": "each API is
/// evaluated individually").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Throttling {
    /// For each `Describe…` action.
    pub describe: BucketSize,
    /// For each other action.
    pub mutating: BucketSize,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketSize {
    /// Tokens in a full bucket.
    pub capacity: u32,
    /// Tokens that come back each second.
    pub refill_per_sec: u32,
}

/// How late changes show in answers. All zero: at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Consistency {
    /// A stale `Describe…` answers as it was this long ago.
    pub describe_delay_millis: u64,
    /// How many of 100 `Describe…` calls are stale.
    pub describe_stale_percent: u8,
    /// Calls that name an ENI younger than this say `NotFound`.
    pub new_interface_hidden_millis: u64,
    /// Instance metadata answers as it was this long ago.
    pub metadata_delay_millis: u64,
}

/// Which free address of a subnet is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressChoice {
    /// Any, by the seed. That fragments the subnet, as EC2 does.
    #[default]
    Scattered,
    /// The lowest.
    Lowest,
}

// === impl SimConfig ===

impl Default for SimConfig {
    /// About as EC2 is seen from a node, with consistent answers.
    fn default() -> Self {
        Self {
            seed: 0,
            region: "eu-central-1".into(),
            latency: Latency::default(),
            throttling: Some(Throttling::default()),
            consistency: Consistency::default(),
            address_choice: AddressChoice::default(),
            max_enis: 5_000,
        }
    }
}

impl SimConfig {
    /// No latency, no throttling: every effect at once.
    #[must_use]
    pub fn instant() -> Self {
        Self { latency: Latency::none(), throttling: None, ..Self::default() }
    }

    /// The same with another seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
}

// === impl Latency ===

impl Default for Latency {
    fn default() -> Self {
        Self {
            metadata_millis: 1,
            describe_millis: 80,
            mutate_millis: 200,
            attach_millis: 2_000,
            detach_millis: 3_000,
            jitter_percent: 10,
            by_action: BTreeMap::new(),
        }
    }
}

impl Latency {
    /// No time at all.
    #[must_use]
    pub fn none() -> Self {
        Self {
            metadata_millis: 0,
            describe_millis: 0,
            mutate_millis: 0,
            attach_millis: 0,
            detach_millis: 0,
            jitter_percent: 0,
            by_action: BTreeMap::new(),
        }
    }

    /// `call` for each EC2 call, `attachment` for attaching and detaching, no jitter, metadata at once.
    #[must_use]
    pub fn fixed(call_millis: u64, attachment_millis: u64) -> Self {
        Self {
            describe_millis: call_millis,
            mutate_millis: call_millis,
            attach_millis: attachment_millis,
            detach_millis: attachment_millis,
            ..Self::none()
        }
    }

    pub(super) fn of_call(&self, action: &str, class: ActionClass) -> Duration {
        let millis = self.by_action.get(action).copied().unwrap_or(match class {
            ActionClass::Metadata => self.metadata_millis,
            ActionClass::Describe => self.describe_millis,
            ActionClass::Mutating => self.mutate_millis,
        });
        Duration::from_millis(millis)
    }
}

// === impl Throttling ===

impl Default for Throttling {
    /// EC2 API developer guide, "Request token bucket sizes and refill rates": non-mutating filtered 100 and 20 a second, mutating
    /// 50 and 5 a second.
    fn default() -> Self {
        Self {
            describe: BucketSize { capacity: 100, refill_per_sec: 20 },
            mutating: BucketSize { capacity: 50, refill_per_sec: 5 },
        }
    }
}

impl Throttling {
    pub(super) fn of(&self, class: ActionClass) -> Option<BucketSize> {
        match class {
            ActionClass::Metadata => None,
            ActionClass::Describe => Some(self.describe),
            ActionClass::Mutating => Some(self.mutating),
        }
    }
}

// === impl Consistency ===

impl Default for Consistency {
    fn default() -> Self {
        Self {
            describe_delay_millis: 0,
            describe_stale_percent: 100,
            new_interface_hidden_millis: 0,
            metadata_delay_millis: 0,
        }
    }
}

impl Consistency {
    /// The oldest state that an answer may still show.
    pub(super) fn horizon(&self) -> Duration {
        Duration::from_millis(self.describe_delay_millis.max(self.metadata_delay_millis))
    }
}
