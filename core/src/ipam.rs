//! The address pool of a node.
//!
//! * [`record`]: what is written to the journal. The ledger is a fold of records, nothing else changes it.
//! * [`ledger`]: who has which address, and where each ENI is in its life.
//! * [`placement`]: where ENIs are made, and which of them are for pods.
//! * [`plan`]: snapshot → steps with their reasons. Pure, deterministic.
//! * [`budget`]: how many calls a node may make.
//! * [`check`]: the invariants that must hold for any ledger.
//!
//! Invariants: an address is in exactly one state on exactly one ENI; an attachment has at most one address; an
//! address on its way back to the cloud is never handed out; a cooling one is neither handed out nor given back.
//!
//! Deliberately absent: calls, clocks, files. Time is [`BootTime`], which the journal is bound to.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

pub mod budget;
pub mod check;
pub mod ledger;
pub mod placement;
pub mod plan;
pub mod record;
pub mod targets;

pub use ledger::{AddressState, Counts, Eni, Ledger, LedgerError, Phase};
pub use record::{Allocation, EniFacts, Record};

/// Milliseconds since the machine booted (`CLOCK_BOOTTIME`: goes on during suspend, never jumps).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct BootTime(pub u64);

impl BootTime {
    /// This time and `duration`.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for BootTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}
