//! A token bucket that counts in whole nanoseconds' worth of tokens, so that no rounding drifts.

use std::time::Duration;

use super::config::BucketSize;

/// One action's bucket.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// Tokens × 1e9.
    nano_tokens: u128,
    at: Duration,
}

const NANO: u128 = 1_000_000_000;

impl Bucket {
    pub(super) fn full(size: BucketSize, now: Duration) -> Self {
        Self { nano_tokens: u128::from(size.capacity) * NANO, at: now }
    }

    /// Takes one token, if there is one.
    pub(super) fn take(&mut self, size: BucketSize, now: Duration) -> bool {
        let gained = now.saturating_sub(self.at).as_nanos() * u128::from(size.refill_per_sec);
        self.nano_tokens = (self.nano_tokens + gained).min(u128::from(size.capacity) * NANO);
        self.at = self.at.max(now);
        let left = self.nano_tokens.checked_sub(NANO);
        self.nano_tokens = left.unwrap_or(self.nano_tokens);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_capacity_and_then_its_rate() {
        let size = BucketSize { capacity: 3, refill_per_sec: 2 };
        let mut bucket = Bucket::full(size, Duration::ZERO);
        let mut taken =
            |millis| (0..10).filter(|_| bucket.take(size, Duration::from_millis(millis))).count();
        assert_eq!(taken(0), 3);
        assert_eq!(taken(499), 0);
        assert_eq!(taken(500), 1);
        assert_eq!(taken(1_500), 2);
        assert_eq!(taken(60_000), 3);
    }
}
