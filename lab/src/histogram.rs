//! A Prometheus histogram as the daemon prints it, and what was observed between two of them.
//!
//! Pure. Deliberately absent: everything else of the text format.

use std::time::Duration;

/// How many observations there were up to each bound.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    /// Upper bound, seconds (`f64::INFINITY` for the last), and the count up to it.
    buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// The histogram `name` with the label `label`, e.g. `request="add"`, in what `/metrics` answered. `None` when it is
    /// not there: nothing was observed yet, or the daemon is an older one.
    #[must_use]
    pub fn read(text: &str, name: &str, label: &str) -> Option<Self> {
        let prefix = format!("{name}_bucket{{");
        let bucket = |line: &str| {
            let (labels, count) = line.strip_prefix(&prefix)?.split_once('}')?;
            let mut labels = labels.split(',');
            let bound = labels.clone().find_map(|l| l.strip_prefix("le=\"")?.strip_suffix('"'))?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            labels.any(|l| l == label).then_some((bound, count.trim().parse().ok()?))
        };
        let buckets: Vec<_> = text.lines().filter_map(bucket).collect();
        (!buckets.is_empty()).then_some(Self { buckets })
    }

    /// What was observed after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| {
            earlier.buckets.iter().find(|(b, _)| *b >= bound).map_or(0, |(_, count)| *count)
        };
        let counts = |(bound, count): &(f64, u64)| (*bound, count.saturating_sub(before(*bound)));
        Self { buckets: self.buckets.iter().map(counts).collect() }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.last().map_or(0, |(_, count)| *count)
    }

    /// A bound that `percent` of all observations do not exceed, the smallest that the buckets know. `None` of none, and
    /// when only the last, endless bucket holds so many.
    #[must_use]
    pub fn at_most(&self, percent: u64) -> Option<Duration> {
        let rank = (self.count() * percent).div_ceil(100).max(1);
        let bound = self.buckets.iter().find(|(_, count)| *count >= rank)?.0;
        Duration::try_from_secs_f64(bound).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# TYPE t histogram
t_sum{request=\"add\"} 0.5
t_count{request=\"add\"} 100
t_bucket{le=\"0.00001\",request=\"add\"} 50
t_bucket{le=\"0.00005\",request=\"add\"} 98
t_bucket{le=\"0.001\",request=\"add\"} 99
t_bucket{le=\"+Inf\",request=\"add\"} 100
t_bucket{le=\"0.00001\",request=\"del\"} 7
t_bucket{le=\"+Inf\",request=\"del\"} 7
";

    fn of(label: &str) -> Option<Histogram> {
        Histogram::read(TEXT, "t", label)
    }

    #[test]
    fn percentiles_are_bounds() {
        let add = of("request=\"add\"").unwrap();
        assert_eq!(add.count(), 100);
        for (percent, expect) in [
            (50, Some(Duration::from_micros(10))),
            (51, Some(Duration::from_micros(50))),
            (99, Some(Duration::from_millis(1))),
            (100, None),
        ] {
            assert_eq!(add.at_most(percent), expect, "{percent}");
        }
        assert_eq!(of("request=\"del\"").unwrap().count(), 7);
        assert_eq!(of("request=\"gc\""), None);
        assert_eq!(Histogram::default().at_most(99), None);
    }

    #[test]
    fn what_was_there_before_does_not_count() {
        let add = of("request=\"add\"").unwrap();
        let more = TEXT.replace("} 98", "} 198").replace("} 99", "} 199").replace("} 100", "} 200");
        let later = Histogram::read(&more, "t", "request=\"add\"").unwrap().since(&add);
        assert_eq!((later.count(), later.at_most(99)), (100, Some(Duration::from_micros(50))));
        assert_eq!(add.since(&Histogram::default()), add);
    }
}
