//! A call on its way: refused, spoiled or neither, and when what happens.

use std::time::Duration;

use veni_core::id::InstanceId;

use super::{
    Sim,
    bucket::Bucket,
    fault::FaultEffect,
    log::{CallRecord, Outcome},
    millis, refusal,
};
use crate::{
    CloudResult, ErrorClass,
    call::{ActionClass, Answer, Call, Failure},
};

/// A call that [`Sim::begin`] admitted or refused; [`Sim::finish`] makes it happen.
#[derive(Debug)]
#[must_use = "a call takes effect in Sim::finish"]
pub struct Ticket {
    caller: InstanceId,
    call: Call,
    number: u64,
    refused: Option<Failure>,
    lost: Option<Failure>,
    effect_at: Duration,
    answer_at: Duration,
}

impl Ticket {
    /// When the call takes effect: halfway through its latency, when the request has reached EC2.
    #[must_use]
    pub fn effect_at(&self) -> Duration {
        self.effect_at
    }

    /// When its caller has the answer.
    #[must_use]
    pub fn answer_at(&self) -> Duration {
        self.answer_at
    }
}

impl Sim {
    /// A call of `caller` arrives: it is counted, throttled and met by faults.
    pub fn begin(&mut self, now: Duration, caller: &InstanceId, call: Call) -> Ticket {
        self.advance(now);
        let now = self.now;
        let (action, class) = (call.action(), call.class());
        let number = self.log.begin(CallRecord {
            at_millis: millis(now),
            instance: caller.clone(),
            action: action.into(),
            outcome: Outcome::Pending,
        });
        let latency = self.jittered(self.config.latency.of_call(action, class));
        let mut ticket = Ticket {
            caller: caller.clone(),
            call,
            number,
            refused: self.throttle(action, class),
            lost: None,
            effect_at: now + latency / 2,
            answer_at: now + latency,
        };
        self.strike(&mut ticket, action);
        ticket
    }

    /// The call takes effect, and answers.
    ///
    /// # Errors
    /// As EC2 refuses, or as a fault has it.
    pub fn finish(&mut self, now: Duration, ticket: Ticket) -> CloudResult<Answer> {
        self.advance(now);
        let action = ticket.call.action();
        let outcome = match ticket.refused {
            Some(failure) => Err(failure),
            None => self.apply(&ticket.caller, ticket.call),
        };
        let outcome = match ticket.lost {
            Some(failure) => Err(failure),
            None => outcome,
        };
        let failed = outcome.as_ref().err();
        let failed =
            failed.map(|f| (f.code.as_str(), matches!(f.class, ErrorClass::Throttled { .. })));
        self.log.end(ticket.number, &ticket.caller, action, failed);
        self.wake();
        outcome.map_err(|failure| failure.of(action))
    }

    /// A whole call at once, for whoever has no time to pass: latencies and delays do not apply.
    ///
    /// # Errors
    /// As [`Sim::finish`].
    pub fn call(&mut self, now: Duration, caller: &InstanceId, call: Call) -> CloudResult<Answer> {
        let ticket = self.begin(now, caller, call);
        self.finish(now, ticket)
    }

    fn throttle(&mut self, action: &'static str, class: ActionClass) -> Option<Failure> {
        let size = self.config.throttling.as_ref()?.of(class)?;
        let bucket = self.buckets.entry(action).or_insert_with(|| Bucket::full(size, self.now));
        (!bucket.take(size, self.now)).then(|| refusal::throttled(None))
    }

    /// What the faults in force do to a call.
    fn strike(&mut self, ticket: &mut Ticket, action: &str) {
        let Self { faults, rng, .. } = self;
        for armed in faults.iter_mut() {
            if !armed.strikes(&ticket.caller, action, |percent| rng.percent(percent)) {
                continue;
            }
            let (refused, lost) = match &armed.fault.effect {
                FaultEffect::ErrorBefore(failure) => (Some(failure.clone()), None),
                FaultEffect::ErrorAfter(failure) => (None, Some(failure.clone())),
                FaultEffect::Throttle { retry_after_millis } => {
                    (Some(refusal::throttled(*retry_after_millis)), None)
                }
                FaultEffect::Deny => (Some(refusal::denied(action)), None),
                FaultEffect::Delay { millis } => {
                    ticket.answer_at += Duration::from_millis(*millis);
                    continue;
                }
            };
            ticket.refused = ticket.refused.take().or(refused);
            ticket.lost = ticket.lost.take().or(lost);
        }
        faults.retain(|armed| !armed.is_spent());
    }

    /// `base` varied by the configured jitter.
    pub(super) fn jittered(&mut self, base: Duration) -> Duration {
        let percent = u64::from(self.config.latency.jitter_percent.min(100));
        if percent == 0 || base.is_zero() {
            return base;
        }
        let share = 100 - percent + self.rng.below(2 * percent + 1);
        base * u32::try_from(share).unwrap_or(100) / 100
    }
}
