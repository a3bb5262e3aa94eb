//! Seeded variation of waits.

use std::time::Duration;

/// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators"): any seed will do.
#[derive(Debug)]
pub(crate) struct Jitter {
    state: u64,
    percent: u64,
}

impl Jitter {
    pub(crate) fn new(seed: u64, percent: u8) -> Self {
        Self { state: seed, percent: u64::from(percent.min(100)) }
    }

    /// `base`, up to `percent` shorter or longer.
    pub(crate) fn around(&mut self, base: Duration) -> Duration {
        self.of(base, 100 - self.percent, 2 * self.percent)
    }

    /// `base`, up to `percent` longer.
    pub(crate) fn above(&mut self, base: Duration) -> Duration {
        self.of(base, 100, self.percent)
    }

    fn of(&mut self, base: Duration, least: u64, spread: u64) -> Duration {
        let share = least + self.next() % (spread + 1);
        base.saturating_mul(u32::try_from(share).unwrap_or(100)) / 100
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_varies_within_its_share_and_by_its_seed() {
        let minute = Duration::from_secs(60);
        let waits = |seed| {
            let mut jitter = Jitter::new(seed, 25);
            (0..100).map(|_| jitter.around(minute)).collect::<Vec<_>>()
        };
        let (a, b) = (waits(1), waits(2));
        assert!(a.iter().all(|wait| (45..=75).contains(&wait.as_secs())), "{a:?}");
        assert!(a.iter().any(|w| *w < minute) && a.iter().any(|w| *w > minute));
        assert_ne!(a, b);
        assert_eq!(a, waits(1));
        let mut jitter = Jitter::new(1, 25);
        assert!((0..100).all(|_| jitter.above(minute) >= minute));
    }
}
