//! How many cloud calls a node may make: a token bucket, so that a fault of ours never drains the account's.
//!
//! EC2 throttles per account and region ("Request throttling for the Amazon EC2 API": mutating actions have buckets of
//! 50 to 200 tokens that refill at 5 to 10 a second, shared by all nodes). A node keeps well below that: enough at once
//! to fill the largest instance, little for ever.

use std::time::Duration;

use super::BootTime;

/// The largest type has 24 ENIs for pods: three calls each, and some to spare.
const CAPACITY: u32 = 80;
/// One call comes back after this time.
const REFILL: Duration = Duration::from_millis(500);

/// A node's call budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    tokens: u32,
    /// Up to when refills have been counted.
    counted: BootTime,
}

impl Budget {
    /// A full budget.
    #[must_use]
    pub fn new(now: BootTime) -> Self {
        Self { tokens: CAPACITY, counted: now }
    }

    /// Takes one call.
    ///
    /// # Errors
    /// When none is left: the time at which the next one comes back.
    pub fn take(&mut self, now: BootTime) -> Result<(), BootTime> {
        let refill = REFILL.as_millis();
        let refills = now.since(self.counted).as_millis() / refill;
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(refills).min(CAPACITY);
        self.counted = if self.tokens == CAPACITY {
            now
        } else {
            self.counted.after(REFILL.saturating_mul(refills))
        };
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err(self.counted.after(REFILL)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_calls_come_back_two_a_second() {
        let mut budget = Budget::new(BootTime(0));
        for _ in 0..CAPACITY {
            assert_eq!(budget.take(BootTime(10)), Ok(()));
        }
        assert_eq!(budget.take(BootTime(10)), Err(BootTime(510)));
        assert_eq!(budget.take(BootTime(509)), Err(BootTime(510)));
        assert_eq!(budget.take(BootTime(1_100)), Ok(()));
        assert_eq!(budget.take(BootTime(1_100)), Ok(()));
        assert_eq!(budget.take(BootTime(1_100)), Err(BootTime(1_510)));
    }

    #[test]
    fn it_never_holds_more_than_its_capacity() {
        let mut budget = Budget::new(BootTime(0));
        budget.take(BootTime(0)).unwrap();
        for _ in 0..CAPACITY {
            assert_eq!(budget.take(BootTime(10_000_000)), Ok(()));
        }
        assert!(budget.take(BootTime(10_000_000)).is_err());
    }
}
