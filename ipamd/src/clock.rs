//! Boot time: the clock that the journal is bound to.

use std::fmt;

use nix::time::{ClockId, clock_gettime};
use veni_core::ipam::BootTime;

/// Where the time comes from.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Milliseconds since the machine booted.
    fn now(&self) -> BootTime;
}

/// The kernel's `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

/// Tokio's clock, which tests pause and advance.
#[derive(Debug, Clone, Copy)]
pub struct TokioClock {
    epoch: tokio::time::Instant,
}

impl Clock for BootClock {
    fn now(&self) -> BootTime {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
        let (secs, nanos) = (time.tv_sec().unsigned_abs(), time.tv_nsec().unsigned_abs());
        BootTime(secs * 1000 + nanos / 1_000_000)
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self { epoch: tokio::time::Instant::now() }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> BootTime {
        BootTime(u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
