//! What is known of one resource: enough to tell what is new, and what has gone when all was listed anew. Pure.
//!
//! Invariants: an object is gone only when the API server said so, or when a list that was read to its end lacks it; what
//! is older than what is known changes nothing. That matters because one object can also be asked for by its name, which
//! overtakes the watch. Resource versions are compared as the numbers that they are; one that is none is older than
//! any.

use std::collections::{BTreeSet, HashMap};

/// An object, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Hash of its UID: another object of the same name has another.
    pub(crate) uid: u64,
    /// Its resource version.
    pub(crate) version: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    known: HashMap<Box<str>, Known>,
    /// Counts lists.
    round: u64,
    /// Whether one is being read: what is told is not in the order of its versions then.
    listing: bool,
    /// How far the watch has come.
    version: u64,
}

#[derive(Debug)]
struct Known {
    seen: Seen,
    /// Of what is in force of it; `None` while nothing of it could be read.
    fingerprint: Option<u64>,
    /// The list that it was last seen in, or since.
    round: u64,
    /// It was asked for, and the watch has not come there yet. Only then are versions compared: those of a cluster that was
    /// restored from a backup begin anew.
    ahead: bool,
}

impl Store {
    /// Takes an object that the watch told of; `fingerprint` of what could be read. Whether it is to be applied.
    pub(crate) fn apply(&mut self, name: &str, seen: Seen, fingerprint: Option<u64>) -> bool {
        if !self.listing {
            self.version = seen.version;
        }
        if let Some(known) = self.known.get_mut(name) {
            known.round = self.round;
            if known.ahead && known.seen.version > seen.version {
                return false;
            }
        }
        self.take(name, seen, fingerprint, false)
    }

    /// Takes an object that was asked for by name. What the watch has left behind is not taken: it may be gone since.
    pub(crate) fn answer(&mut self, name: &str, seen: Seen, fingerprint: Option<u64>) -> bool {
        let newest = self.known.get(name).map_or(self.version, |known| known.seen.version);
        seen.version > newest && self.take(name, seen, fingerprint, true)
    }

    fn take(&mut self, name: &str, seen: Seen, fingerprint: Option<u64>, ahead: bool) -> bool {
        let round = self.round;
        let Some(known) = self.known.get_mut(name) else {
            self.known.insert(name.into(), Known { seen, fingerprint, round, ahead });
            return fingerprint.is_some();
        };
        known.seen = seen;
        known.ahead = ahead;
        // What has become unreadable stays in force as it was.
        let is_new = fingerprint.is_some() && fingerprint != known.fingerprint;
        known.fingerprint = fingerprint.or(known.fingerprint);
        is_new
    }

    /// What was asked for at this version is all that there is of what `part` holds, but for `there`. What of that which was
    /// in force is gone. The watch may still tell of it as it was before: that is not believed.
    pub(crate) fn gone_from(
        &mut self,
        part: impl Fn(&str) -> bool,
        there: &BTreeSet<String>,
        version: u64,
    ) -> Vec<Box<str>> {
        let mut gone = Vec::new();
        for (name, known) in &mut self.known {
            let is_gone = part(name) && !there.contains(&**name) && known.seen.version <= version;
            if is_gone && known.fingerprint.take().is_some() {
                gone.push(name.clone());
                known.seen.version = version;
                known.ahead = true;
            }
        }
        gone.sort();
        gone
    }

    /// How far the watch has come.
    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    /// Whether something of this name is in force.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(|known| known.fingerprint.is_some())
    }

    /// The watch told that it is gone. Whether something in force is.
    pub(crate) fn delete(&mut self, name: &str, seen: Seen) -> bool {
        self.version = seen.version;
        let successor = |known: &Known| {
            known.ahead && known.seen.uid != seen.uid && known.seen.version > seen.version
        };
        if self.known.get(name).is_none_or(successor) {
            return false;
        }
        self.known.remove(name).is_some_and(|known| known.fingerprint.is_some())
    }

    /// The watch has come so far.
    pub(crate) const fn reach(&mut self, version: u64) {
        self.version = version;
    }

    /// What is told from now on is a list of all that there is.
    pub(crate) const fn begin(&mut self) {
        self.round += 1;
        self.listing = true;
    }

    /// All was told, as of this version. What of that which was in force is gone.
    pub(crate) fn end(&mut self, version: u64) -> Vec<Box<str>> {
        self.listing = false;
        self.version = version;
        let round = self.round;
        let mut gone = Vec::new();
        self.known.retain(|name, known| {
            let stays = known.round == round || (known.ahead && known.seen.version > version);
            if !stays && known.fingerprint.is_some() {
                gone.push(name.clone());
            }
            stays
        });
        gone.sort();
        gone
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(uid: u64, version: u64) -> Seen {
        Seen { uid, version }
    }

    #[test]
    fn only_what_differs_is_new() {
        let mut store = Store::default();
        assert!(store.apply("a", at(1, 5), Some(10)));
        assert!(!store.apply("a", at(1, 6), Some(10)), "a status that nothing depends on");
        assert!(store.apply("a", at(1, 7), Some(11)));
        assert!(!store.apply("a", at(1, 8), None), "what became unreadable stays as it was");
        assert!(store.has("a"));
        assert!(!store.apply("b", at(2, 9), None), "what never could be read is not in force");
        assert!(!store.has("b"));
        assert!(!store.delete("b", at(2, 10)));
        assert!(store.delete("a", at(1, 11)));
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn a_list_read_to_its_end_says_what_has_gone_and_one_that_broke_off_does_not() {
        let mut store = Store::default();
        store.begin();
        for name in ["a", "b", "c"] {
            store.apply(name, at(1, 1), Some(1));
        }
        assert!(store.end(3).is_empty());
        store.begin();
        store.apply("a", at(1, 1), Some(1));
        // The connection is cut, and the list begins anew.
        store.begin();
        store.apply("b", at(1, 1), Some(1));
        assert!(store.has("a") && store.has("c"));
        assert_eq!(store.end(9), ["a".into(), "c".into()]);
        assert!(store.has("b"));
    }

    #[test]
    fn an_answer_overtakes_the_watch_and_is_not_undone_by_what_comes_late() {
        let mut store = Store::default();
        store.apply("old", at(1, 10), Some(1));
        assert!(store.answer("pod", at(2, 20), Some(2)));
        assert!(!store.apply("pod", at(2, 18), Some(3)), "an older state of it");
        assert!(!store.delete("pod", at(9, 19)), "its predecessor's end");
        assert!(store.has("pod"));
        assert!(!store.apply("pod", at(2, 20), Some(2)));
        assert!(store.delete("pod", at(2, 21)));
        assert!(!store.answer("pod", at(2, 20), Some(2)), "the watch has seen its end");
        assert!(!store.answer("old", at(1, 10), Some(4)), "no younger than what is known");
    }

    #[test]
    fn a_cluster_restored_from_a_backup_is_believed() {
        let mut store = Store::default();
        store.begin();
        store.apply("a", at(1, 900), Some(1));
        store.apply("b", at(1, 901), Some(1));
        assert!(store.end(905).is_empty());
        store.begin();
        assert!(store.apply("a", at(1, 40), Some(7)));
        assert_eq!(store.end(45), ["b".into()]);
        assert!(store.answer("pod", at(2, 46), Some(2)));
    }

    #[test]
    fn what_an_answer_lacks_is_gone_and_is_not_brought_back_by_what_comes_late() {
        let mut store = Store::default();
        for name in ["x/a", "x/b", "y/c"] {
            store.apply(name, at(1, 10), Some(1));
        }
        store.apply("x/late", at(4, 30), Some(1));
        let there = BTreeSet::from(["x/a".to_owned()]);
        let gone = store.gone_from(|name| name.starts_with("x/"), &there, 20);
        assert_eq!(gone, ["x/b".into()]);
        assert!(store.has("x/a") && store.has("y/c") && store.has("x/late"));
        assert!(!store.apply("x/b", at(1, 15), Some(2)), "as it was before it went");
        assert!(!store.delete("x/b", at(1, 18)), "told already");
        assert!(store.apply("x/b", at(3, 25), Some(1)), "another of its name");
        store.gone_from(|name| name == "x/a", &BTreeSet::new(), 40);
        assert!(store.answer("x/a", at(5, 41), Some(1)), "asked for before its end was told");
        assert!(!store.delete("x/a", at(1, 39)), "its predecessor's end");
        assert!(store.has("x/a"));
    }

    #[test]
    fn a_list_from_before_an_answer_does_not_take_it_away() {
        let mut store = Store::default();
        store.begin();
        assert!(store.end(10).is_empty());
        assert!(store.answer("pod", at(2, 20), Some(2)));
        store.begin();
        assert!(store.end(15).is_empty());
        store.begin();
        assert_eq!(store.end(25), ["pod".into()]);
    }
}
