//! Real time for a simulator.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use veni_provider::sim::{Event, Sim, Timer};

/// The time since its making: tokio's, so that tests can pause it.
#[derive(Debug)]
pub struct RealTime {
    start: Instant,
}

// === impl RealTime ===

impl RealTime {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }
}

impl Timer for RealTime {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// Lets `sim` live in the time of `timer` and sends its events as they happen, until their receiver is gone. It
/// sleeps until the simulator's next event: an idle one costs nothing. One of these a simulator.
pub async fn drive<T: Timer>(
    sim: Arc<Mutex<Sim>>,
    timer: Arc<T>,
    events: mpsc::UnboundedSender<Event>,
) {
    let changed = Arc::new(Notify::new());
    let notify = Arc::clone(&changed);
    lock(&sim).on_change(move || notify.notify_one());
    loop {
        let (happened, next) = {
            let mut sim = lock(&sim);
            sim.advance(timer.now());
            (sim.drain_events(), sim.next_event_at())
        };
        for event in happened {
            if events.send(event).is_err() {
                return;
            }
        }
        let due = async {
            match next {
                Some(at) => timer.sleep(at.saturating_sub(timer.now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = changed.notified() => {}
            () = events.closed() => return,
        }
    }
}

fn lock(sim: &Mutex<Sim>) -> MutexGuard<'_, Sim> {
    sim.lock().unwrap_or_else(PoisonError::into_inner)
}
