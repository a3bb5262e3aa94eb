//! The conformance suite's timer, by the wall clock.

use std::time::{Duration, Instant};

use veni_provider::sim::Timer;

/// Real time since it was made.
#[derive(Debug)]
pub struct WallClock(Instant);

impl WallClock {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Timer for WallClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}
