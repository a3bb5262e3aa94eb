//! What is looked for when somebody asks (who else is where pods' packets are judged, how full a table is), without looking again for
//! everyone who does.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, task::spawn_blocking, time::Instant};

/// How long others' programs that were found are told again: a scrape and a doctor look once.
pub(super) const FRESH: Duration = Duration::from_secs(5);

/// Looks: each look costs calls.
pub type Look<T> = Arc<dyn Fn() -> Vec<T> + Send + Sync>;

/// What there is, looked for by one at a time. Clones share what was found.
pub(super) struct Looked<T> {
    look: Look<T>,
    fresh: Duration,
    last: Arc<Mutex<Option<Found<T>>>>,
}

/// What was found, and when it was looked for.
type Found<T> = (Instant, Vec<T>);

impl<T> Clone for Looked<T> {
    fn clone(&self) -> Self {
        Self { look: self.look.clone(), fresh: self.fresh, last: self.last.clone() }
    }
}

impl<T: Clone + Send + 'static> Looked<T> {
    pub(super) fn new(look: Look<T>, fresh: Duration) -> Self {
        Self { look, fresh, last: Arc::default() }
    }

    /// What is there, or was `fresh` ago at most.
    pub(super) async fn found(&self) -> Vec<T> {
        let mut last = self.last.clone().lock_owned().await;
        let now = Instant::now();
        if let Some((at, found)) = &*last
            && now.duration_since(*at) < self.fresh
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
    use veni_core::wire::inspect::policy::ForeignView;

    use super::*;

    fn programs(looks: &Arc<AtomicUsize>) -> Looked<ForeignView> {
        let looks = looks.clone();
        let look = move || {
            let look = looks.fetch_add(1, Ordering::SeqCst) + 1;
            vec![ForeignView { what: format!("look {look}"), bypasses: false }]
        };
        Looked::new(Arc::new(look), FRESH)
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
        let look = move || {
            if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                opened.wait();
            }
            Vec::<ForeignView>::new()
        };
        let programs = Looked::new(Arc::new(look), FRESH);
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
