//! Virtual time for the tests.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use veni_provider::sim::{Sim, SimCloud, Timer};

use crate::region::instance;

/// tokio's clock, which the tests pause.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Arc<Self> {
        Arc::new(Self(Instant::now()))
    }
}

impl Timer for Clock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

pub(crate) fn cloud(sim: Sim, clock: Arc<Clock>) -> SimCloud<Clock> {
    SimCloud::new(Arc::new(Mutex::new(sim)), clock, instance())
}
