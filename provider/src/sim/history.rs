//! A value with its past, for answers that lag.

use std::{collections::VecDeque, time::Duration};

/// The versions of one thing; `None` is a version too: it did not exist.
#[derive(Debug, Clone)]
pub(super) struct History<T> {
    versions: VecDeque<(Duration, Option<T>)>,
    /// Something older was there and is forgotten.
    truncated: bool,
}

impl<T> History<T> {
    pub(super) fn new(now: Duration, value: T) -> Self {
        Self { versions: VecDeque::from([(now, Some(value))]), truncated: false }
    }

    /// As it is.
    pub(super) fn current(&self) -> Option<&T> {
        self.versions.back().and_then(|(_, value)| value.as_ref())
    }

    /// As it was at `at`; as far back as is remembered.
    pub(super) fn at(&self, at: Duration) -> Option<&T> {
        let version = self.versions.iter().rev().find(|(since, _)| *since <= at);
        let oldest = self.versions.front().filter(|_| self.truncated);
        version.or(oldest).and_then(|(_, value)| value.as_ref())
    }

    /// Makes `value` current; forgets what nobody can see any more, which is older than `horizon`.
    pub(super) fn set(&mut self, now: Duration, value: Option<T>, horizon: Duration) {
        self.versions.push_back((now, value));
        self.prune(now, horizon);
    }

    /// Forgets old versions. True when nothing is left to see: the thing is gone for everyone.
    pub(super) fn prune(&mut self, now: Duration, horizon: Duration) -> bool {
        let seen_from = now.saturating_sub(horizon);
        while self.versions.get(1).is_some_and(|(since, _)| *since <= seen_from) {
            self.versions.pop_front();
            self.truncated = true;
        }
        self.versions.len() == 1 && self.current().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_stays_visible_up_to_the_horizon() {
        let at = Duration::from_secs;
        let mut history = History::new(at(10), 'a');
        history.set(at(20), Some('b'), at(30));
        history.set(at(30), None, at(30));
        let seen = [9, 10, 19, 20, 29, 30].map(|secs| history.at(at(secs)).copied());
        assert_eq!(seen, [None, Some('a'), Some('a'), Some('b'), Some('b'), None]);
        assert!(!history.prune(at(59), at(30)));
        assert!(history.prune(at(60), at(30)), "nothing but the end is left");
    }

    #[test]
    fn what_was_there_before_memory_begins_does_not_vanish() {
        let at = Duration::from_secs;
        let mut history = History::new(at(10), 'a');
        history.set(at(100), Some('b'), at(0));
        assert_eq!(history.at(at(95)), Some(&'b'), "a longer delay set afterwards");
    }
}
