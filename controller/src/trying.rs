//! What is missing at the start is tried for, for as long as it takes.
//!
//! A replica that tries is alive, and ends when it is told to. It is no candidate meanwhile: as a leader it could do nothing,
//! and keep those from leading that can.

use std::time::Duration;

use tokio::{
    select,
    sync::watch,
    time::{sleep, timeout},
};

use crate::metrics::Metrics;

/// Between two attempts.
const RETRY: Duration = Duration::from_secs(10);
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tries until there is something; `None`: told to stop.
pub async fn until_there<T>(
    metrics: &Metrics,
    stopped: &mut watch::Receiver<bool>,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let tries = async {
        loop {
            metrics.tries();
            match timeout(PATIENCE, attempt()).await {
                Ok(Some(there)) => return there,
                Ok(None) => {}
                Err(_) => {
                    let secs = PATIENCE.as_secs();
                    tracing::warn!(secs, "what the start needs does not answer: tried for again");
                }
            }
            sleep(RETRY).await;
        }
    };
    select! {
        there = tries => Some(there),
        _ = stopped.wait_for(|stop| *stop) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::join;

    use super::*;

    /// As where instance metadata answers no pod, and no Region is set.
    #[tokio::test(start_paused = true)]
    async fn who_tries_in_vain_stays_alive_and_ends_when_told_to() {
        for hangs in [false, true] {
            let metrics = Metrics::default();
            let (stop, mut stopped) = watch::channel(false);
            let attempt = async || if hangs { pending().await } else { None::<()> };
            let minutes = async {
                for minute in 0..10 {
                    sleep(Duration::from_secs(61)).await;
                    assert!(metrics.is_alive(), "hangs: {hangs}, minute {minute}");
                }
                stop.send_replace(true);
            };
            let (ended, ()) = join!(until_there(&metrics, &mut stopped, attempt), minutes);
            assert_eq!(ended, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_later_is_found() {
        let (_stop, mut stopped) = watch::channel(false);
        let mut left = 3;
        let attempt = async || {
            left -= 1;
            (left == 0).then_some("it")
        };
        let there = until_there(&Metrics::default(), &mut stopped, attempt).await;
        assert_eq!(there, Some("it"));
    }
}
