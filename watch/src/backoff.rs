//! How long to wait before the next try: longer each time, and never in step with other nodes.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
    random: RandomState,
    drawn: u64,
}

impl Backoff {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        // Random by the kernel's word, once.
        Self { first, most, failures: 0, random: RandomState::new(), drawn: 0 }
    }

    /// It went well.
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// It failed: from half of a time that doubles up to all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        self.between(doubled.min(self.most))
    }

    /// Anything below this time.
    pub(crate) fn below(&mut self, time: Duration) -> Duration {
        self.between(time * 2) - time
    }

    /// From half of this time up to all of it.
    pub(crate) fn between(&mut self, time: Duration) -> Duration {
        self.drawn += 1;
        let share = self.random.hash_one(self.drawn) % 1024;
        time / 2 + time / 2 * u32::try_from(share).unwrap_or(0) / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most_and_vary() {
        let mut backoff = Backoff::new(Duration::from_millis(800), Duration::from_secs(30));
        for expected in [800u64, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
            let waited = backoff.next();
            let most = Duration::from_millis(expected);
            assert!((most / 2..=most).contains(&waited), "{waited:?} of {most:?}");
        }
        backoff.reset();
        let drawn: std::collections::BTreeSet<_> =
            (0..8).map(|_| backoff.between(Duration::from_secs(60))).collect();
        assert!(drawn.len() > 1, "{drawn:?}");
        let below: Vec<_> = (0..64).map(|_| backoff.below(Duration::from_secs(64))).collect();
        let all = Duration::ZERO..=Duration::from_secs(64);
        assert!(below.iter().all(|wait| all.contains(wait)), "{below:?}");
        let short = below.iter().filter(|wait| **wait < Duration::from_secs(32)).count();
        assert!(short > 8 && short < 56, "{below:?}");
    }
}
