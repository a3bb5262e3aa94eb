//! Faults to inject: which calls, how often, and what happens to them.

use serde::{Deserialize, Serialize};
use veni_core::id::{EniId, InstanceId};

use crate::{ErrorClass, call::Failure};

/// A rule that spoils calls. Several rules can strike one call: delays add up, the first error wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The action, one of [`ACTIONS`](crate::call::ACTIONS); `None`: every one.
    #[serde(default)]
    pub action: Option<String>,
    /// The calling instance; `None`: every one.
    #[serde(default)]
    pub instance: Option<InstanceId>,
    /// So many matching calls pass first.
    #[serde(default)]
    pub skip: u32,
    /// How many calls it strikes before it is spent; `None`: never spent.
    #[serde(default)]
    pub count: Option<u32>,
    /// How many of 100 matching calls it strikes.
    #[serde(default = "always")]
    pub percent: u8,
    /// What happens to them.
    pub effect: FaultEffect,
}

/// What a fault does to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultEffect {
    /// The call fails and nothing has happened.
    ErrorBefore(Failure),
    /// The effect happens, and the caller sees this error: a lost answer.
    ErrorAfter(Failure),
    /// The call takes this much longer; the effect happens before the wait.
    Delay {
        /// How much longer.
        millis: u64,
    },
    /// `RequestLimitExceeded`.
    Throttle {
        /// What the caller is told about when to come back.
        retry_after_millis: Option<u64>,
    },
    /// `UnauthorizedOperation`: the IAM policy lacks the action.
    Deny,
}

/// Instance metadata that forgets or answers short, for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distortion {
    /// Whose metadata.
    pub instance: InstanceId,
    /// Which ENI; `None`: every one.
    #[serde(default)]
    pub eni: Option<EniId>,
    /// What is wrong with it.
    pub kind: DistortionKind,
    /// For how long from now on.
    pub for_millis: u64,
}

/// What is wrong with the metadata of an ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistortionKind {
    /// The ENI is not listed.
    Omit,
    /// Only so many addresses are listed, from the primary on.
    Short {
        /// How many.
        addresses: u32,
    },
}

/// A fault in force.
#[derive(Debug, Clone)]
pub(super) struct ArmedFault {
    pub(super) id: u64,
    pub(super) fault: Fault,
    seen: u32,
    struck: u32,
}

fn always() -> u8 {
    100
}

// === impl Fault ===

impl Fault {
    fn with(action: &str, effect: FaultEffect) -> Self {
        Self {
            action: Some(action.into()),
            instance: None,
            skip: 0,
            count: None,
            percent: 100,
            effect,
        }
    }

    /// Calls of `action` fail without effect.
    #[must_use]
    pub fn error_before(action: &str, failure: Failure) -> Self {
        Self::with(action, FaultEffect::ErrorBefore(failure))
    }

    /// Calls of `action` take effect and fail all the same.
    #[must_use]
    pub fn error_after(action: &str, failure: Failure) -> Self {
        Self::with(action, FaultEffect::ErrorAfter(failure))
    }

    /// Calls of `action` take effect, and their answers are lost.
    #[must_use]
    pub fn lost_answer(action: &str) -> Self {
        Self::error_after(action, Failure::service_unavailable())
    }

    /// Calls of `action` fail in the service, without effect.
    #[must_use]
    pub fn unavailable(action: &str) -> Self {
        Self::error_before(action, Failure::service_unavailable())
    }

    /// Calls of `action` take so much longer.
    #[must_use]
    pub fn delay(action: &str, millis: u64) -> Self {
        Self::with(action, FaultEffect::Delay { millis })
    }

    /// Calls of `action` are throttled.
    #[must_use]
    pub fn throttle(action: &str, retry_after_millis: Option<u64>) -> Self {
        Self::with(action, FaultEffect::Throttle { retry_after_millis })
    }

    /// The IAM policy lacks `action`.
    #[must_use]
    pub fn deny(action: &str) -> Self {
        Self::with(action, FaultEffect::Deny)
    }

    /// Strikes this often only.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        Self { count: Some(count), ..self }
    }

    /// Strikes only after so many matching calls have passed: `nth(1)` is the first one.
    #[must_use]
    pub fn nth(self, nth: u32) -> Self {
        Self { skip: nth.saturating_sub(1), count: Some(1), ..self }
    }

    /// Strikes so many of 100 calls.
    #[must_use]
    pub fn percent(self, percent: u8) -> Self {
        Self { percent, ..self }
    }

    /// Strikes the calls of one instance only.
    #[must_use]
    pub fn by(self, instance: InstanceId) -> Self {
        Self { instance: Some(instance), ..self }
    }
}

impl Failure {
    /// EC2's `Unavailable`: the service failed, the effect is unknown to the caller.
    #[must_use]
    pub fn service_unavailable() -> Self {
        Self::new(
            ErrorClass::Transient,
            "Unavailable",
            "The service is unavailable. Please try again shortly.",
        )
    }
}

// === impl ArmedFault ===

impl ArmedFault {
    pub(super) fn new(id: u64, fault: Fault) -> Self {
        Self { id, fault, seen: 0, struck: 0 }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.fault.count.is_some_and(|count| self.struck >= count)
    }

    /// Whether this call is one of its matches that it strikes; counts it. `dice` answers whether a chance in
    /// percent came true.
    pub(super) fn strikes(
        &mut self,
        caller: &InstanceId,
        action: &str,
        dice: impl FnOnce(u8) -> bool,
    ) -> bool {
        let matches = self.fault.action.as_deref().is_none_or(|a| a == action)
            && self.fault.instance.as_ref().is_none_or(|i| i == caller);
        if !matches || self.is_spent() {
            return false;
        }
        self.seen = self.seen.saturating_add(1);
        let strikes = self.seen > self.fault.skip && dice(self.fault.percent);
        self.struck += u32::from(strikes);
        strikes
    }
}
