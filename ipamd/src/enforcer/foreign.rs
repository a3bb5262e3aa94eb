//! Who else is where pods' packets are judged, without looking again for everyone who asks.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, task::spawn_blocking, time::Instant};
use veni_core::wire::inspect::policy::ForeignView;

/// How long what was found is told again: a scrape and a doctor look once.
const FRESH: Duration = Duration::from_secs(5);

/// Looks for others' programs: each interface costs calls.
pub type Look = Arc<dyn Fn() -> Vec<ForeignView> + Send + Sync>;

/// Others' programs, looked for by one at a time. Clones share what was found.
#[derive(Clone)]
pub(super) struct ForeignPrograms {
    look: Look,
    last: Arc<Mutex<Option<Found>>>,
}

/// What was found, and when it was looked for.
type Found = (Instant, Vec<ForeignView>);

impl ForeignPrograms {
    pub(super) fn new(look: Look) -> Self {
        Self { look, last: Arc::default() }
    }

    /// What is there, or was [`FRESH`] ago at most.
    pub(super) async fn found(&self) -> Vec<ForeignView> {
        let mut last = self.last.clone().lock_owned().await;
        let now = Instant::now();
        if let Some((at, found)) = &*last
            && now.duration_since(*at) < FRESH
        {
            return found.clone();
        }
        let look = self.look.clone();
        // It holds the lock itself: who asked may go away, and what was begun for them goes on.
        let looking = spawn_blocking(move || {
            let found = look();
            *last = Some((now, found.clone()));
            found
        });
        looking.await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::time::advance;

    use super::*;

    fn programs(looks: &Arc<AtomicUsize>) -> ForeignPrograms {
        let looks = looks.clone();
        ForeignPrograms::new(Arc::new(move || {
            let look = looks.fetch_add(1, Ordering::SeqCst) + 1;
            vec![ForeignView { what: format!("look {look}"), bypasses: false }]
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_at_once_or_soon_after_is_told_of_one_look() {
        let looks = Arc::default();
        let programs = programs(&looks);
        let asked = (0..8).map(|_| {
            let programs = programs.clone();
            tokio::spawn(async move { programs.found().await })
        });
        for told in asked.collect::<Vec<_>>() {
            assert_eq!(told.await.unwrap()[0].what, "look 1");
        }
        let check = async |passed: Duration, expected: &str| {
            advance(passed).await;
            assert_eq!(programs.found().await[0].what, expected, "after {passed:?}");
        };
        check(FRESH.checked_sub(Duration::from_millis(1)).unwrap(), "look 1").await;
        check(Duration::from_millis(1), "look 2").await;
        check(Duration::ZERO, "look 2").await;
        assert_eq!(looks.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_look_that_nobody_waits_for_any_more_is_not_begun_again() {
        let (looks, gate) = (Arc::<AtomicUsize>::default(), Arc::new(Barrier::new(2)));
        let (counted, opened) = (looks.clone(), gate.clone());
        let programs = ForeignPrograms::new(Arc::new(move || {
            if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                opened.wait();
            }
            Vec::new()
        }));
        let first = programs.clone();
        let gone = tokio::spawn(async move { first.found().await });
        while looks.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        gone.abort();
        gone.await.unwrap_err();
        let second = tokio::spawn(async move { programs.found().await });
        tokio::task::yield_now().await;
        gate.wait();
        second.await.unwrap();
        assert_eq!(looks.load(Ordering::SeqCst), 1);
    }
}
