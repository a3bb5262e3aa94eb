//! Who holds a Lease, and who may take it: pure.
//!
//! As in client-go's leader election, nobody's clock is compared with anybody else's: a candidate counts from when it
//! first saw the Lease as it is now, by its own clock. A holder that does not renew in time stops by itself
//! ([`Terms::deadline`]) before anybody else may begin ([`Terms::duration`]).

use std::time::Duration;

use tokio::time::Instant;

/// Times, such that what a holder began has ended before another begins: an effect begins within `call` or `fresh` of a
/// renewal, whichever is longer, and takes [`Pace::call`](crate::sweeper::Pace::call).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long a Lease that is not renewed is its holder's.
    pub duration: Duration,
    /// A holder that has not renewed for so long holds it no more.
    pub deadline: Duration,
    /// How often it is renewed, and looked at by the others.
    pub retry: Duration,
    /// A renewal that is no older is taken as a look at the Lease.
    pub fresh: Duration,
    /// How long a request may take.
    pub call: Duration,
}

/// A Lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty: nobody.
    pub holder: String,
    /// For how long after each renewal.
    pub duration: Duration,
    /// Its resource version: another one means that it was written.
    pub version: String,
}

/// A Lease, watched from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    record: Record,
    since: Instant,
}

impl Default for Terms {
    /// Nothing that waits for a leader is urgent: nodes do without one.
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(30),
            deadline: Duration::from_secs(20),
            retry: Duration::from_secs(5),
            fresh: Duration::from_secs(5),
            call: Duration::from_secs(5),
        }
    }
}

impl Watched {
    /// What is known after `record` was read now.
    #[must_use]
    pub fn seen(before: Option<Self>, record: Record, now: Instant) -> Self {
        match before {
            Some(before) if before.record == record => before,
            _ => Self { record, since: now },
        }
    }

    /// Whether somebody else may take it.
    #[must_use]
    pub fn is_free(&self, now: Instant) -> bool {
        self.record.holder.is_empty() || now.duration_since(self.since) >= self.record.duration
    }

    /// Who holds it.
    #[must_use]
    pub fn holder(&self) -> &str {
        &self.record.holder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, version: &str) -> Record {
        let duration = Duration::from_secs(30);
        Record { holder: holder.to_owned(), duration, version: version.to_owned() }
    }

    #[test]
    fn a_lease_is_free_when_nobody_has_it_or_it_was_not_written_for_its_duration() {
        let begun = Instant::now();
        let after = |secs| begun + Duration::from_secs(secs);
        let first = Watched::seen(None, record("a", "1"), begun);
        assert!(!first.is_free(after(29)));
        assert!(first.is_free(after(30)));
        let same = Watched::seen(Some(first.clone()), record("a", "1"), after(20));
        assert!(same.is_free(after(30)), "seen again is not renewed");
        let renewed = Watched::seen(Some(first.clone()), record("a", "2"), after(20));
        assert!(!renewed.is_free(after(49)));
        assert!(Watched::seen(Some(first), record("", "3"), after(1)).is_free(after(1)));
    }

    #[test]
    fn what_a_holder_began_has_ended_before_another_begins() {
        let Terms { duration, deadline, fresh, call, .. } = Terms::default();
        let effect = crate::sweeper::Pace::default().call;
        assert!(call.max(fresh) + effect < deadline && deadline < duration);
    }
}
