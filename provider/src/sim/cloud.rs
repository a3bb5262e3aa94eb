//! One instance's [`Cloud`](crate::Cloud) over a shared simulator.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use veni_core::id::InstanceId;

use super::Sim;
use crate::{
    CloudResult,
    call::{Answer, Call, Transport},
};

/// The time that a simulator lives in: real in the lab, virtual in tests.
pub trait Timer: Send + Sync + 'static {
    /// The time since the simulator's start.
    fn now(&self) -> Duration;
    /// Waits.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send;
}

/// What one instance sees of a simulated region.
///
/// A call arrives (is counted, throttled, met by faults) when its future is first polled, takes effect halfway
/// through its latency and answers at its end; a [`FaultEffect::Delay`](super::FaultEffect::Delay) comes after the effect.
/// A future dropped before the effect is a request that never arrived, one dropped after it is a lost answer.
#[derive(Debug)]
pub struct SimCloud<T> {
    sim: Arc<Mutex<Sim>>,
    timer: Arc<T>,
    instance: InstanceId,
}

impl<T: Timer> SimCloud<T> {
    /// The view of `instance`, which need not be running yet.
    #[must_use]
    pub fn new(sim: Arc<Mutex<Sim>>, timer: Arc<T>, instance: InstanceId) -> Self {
        Self { sim, timer, instance }
    }

    /// Waits until `at`; a virtual clock that is already past it does not wait.
    async fn until(&self, at: Duration) {
        let left = at.saturating_sub(self.timer.now());
        if !left.is_zero() {
            self.timer.sleep(left).await;
        }
    }

    fn sim(&self) -> MutexGuard<'_, Sim> {
        self.sim.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for SimCloud<T> {
    fn clone(&self) -> Self {
        Self {
            sim: Arc::clone(&self.sim),
            timer: Arc::clone(&self.timer),
            instance: self.instance.clone(),
        }
    }
}

impl<T: Timer> Transport for SimCloud<T> {
    async fn carry(&self, call: Call) -> CloudResult<Answer> {
        let ticket = self.sim().begin(self.timer.now(), &self.instance, call);
        let answer_at = ticket.answer_at();
        self.until(ticket.effect_at()).await;
        let outcome = self.sim().finish(self.timer.now(), ticket);
        self.until(answer_at).await;
        outcome
    }
}
