//! Percentiles of durations.

use std::time::Duration;

/// Durations, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Percentiles {
    sorted: Vec<Duration>,
}

impl FromIterator<Duration> for Percentiles {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        let mut sorted: Vec<_> = durations.into_iter().collect();
        sorted.sort();
        Self { sorted }
    }
}

impl Percentiles {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The nearest-rank percentile: the smallest one that `percent` of all do not exceed. Zero of none.
    #[must_use]
    pub fn at(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// The longest.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.sorted.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let of = |n: u64| (1..=n).map(Duration::from_micros).collect::<Percentiles>();
        let check = |n, percent, expected| {
            assert_eq!(of(n).at(percent), Duration::from_micros(expected), "{n} {percent}")
        };
        check(1, 50, 1);
        check(2, 50, 1);
        check(100, 50, 50);
        check(100, 99, 99);
        check(200, 99, 198);
        check(30, 99, 30);
        assert_eq!(of(0).at(50), Duration::ZERO);
    }
}
