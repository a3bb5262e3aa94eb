//! Which actions may be called now: after a failure not before a wait is over.

use std::collections::BTreeMap;

use tokio::time::Instant;
use veni_provider::{CloudError, ErrorClass};

use crate::{jitter::Jitter, settings::Settings};

/// What holds calls back, by action.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    closed: BTreeMap<&'static str, Closed>,
}

#[derive(Debug)]
struct Closed {
    until: Instant,
    failures: u32,
    error: CloudError,
}

/// An action is not to be called before `until`.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) until: Instant,
    pub(crate) error: CloudError,
}

impl Gates {
    /// Whether `action` may be called now.
    pub(crate) fn check(&self, action: &str, now: Instant) -> Result<(), Held> {
        match self.closed.get(action) {
            Some(gate) if gate.until > now => {
                Err(Held { until: gate.until, error: gate.error.clone() })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn open(&mut self, action: &str) {
        self.closed.remove(action);
    }

    /// Holds `error.action` back for a while.
    pub(crate) fn close(
        &mut self,
        error: CloudError,
        now: Instant,
        settings: &Settings,
        jitter: &mut Jitter,
    ) -> Held {
        let failures =
            self.closed.get(error.action).map_or(1, |gate| gate.failures.saturating_add(1));
        let least = match error.class {
            // Somebody has to change the policy first.
            ErrorClass::Denied { .. } => settings.refresh(),
            _ => settings.backoff(failures),
        };
        let wait = jitter.above(least.max(error.retry_after().unwrap_or_default()));
        let held = Held { until: now + wait, error: error.clone() };
        self.closed.insert(error.action, Closed { until: held.until, failures, error });
        held
    }
}
