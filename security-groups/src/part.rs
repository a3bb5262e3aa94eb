//! What is known of one thing: the rules of a group, its members, the entries of a prefix list.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use tokio::time::Instant;
use veni_core::id::{PrefixListId, SecurityGroupId};
use veni_provider::SecurityGroupRule;

/// All that the cloud was asked for.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) rules: BTreeMap<SecurityGroupId, Part<Vec<SecurityGroupRule>>>,
    pub(crate) members: BTreeMap<SecurityGroupId, Part<Members>>,
    pub(crate) lists: BTreeMap<PrefixListId, Part<Entries>>,
}

/// What is known of one thing, and what went wrong since.
#[derive(Debug)]
pub(crate) struct Part<T> {
    pub(crate) known: Option<Known<T>>,
    pub(crate) failure: Option<Failure>,
    /// It was there, and one answer said that it is not: asked for once more before that counts.
    doubtful: bool,
    /// Known from before it was wanted, and too old: to be asked for now.
    old: bool,
    /// Asking for it spoils the answer for others: asked for alone.
    pub(crate) alone: bool,
    /// What is known is doubtful in part: to be asked for again then.
    recheck: Option<Instant>,
    /// It did exist.
    existed: bool,
    /// Two answers have said that it does not exist.
    missing: bool,
}

/// What the cloud said.
#[derive(Debug)]
pub(crate) struct Known<T> {
    /// `None`: it does not exist.
    pub(crate) value: Option<Arc<T>>,
    /// When.
    pub(crate) at: Instant,
}

/// Why the last attempt brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For a user.
    pub(crate) words: String,
    /// When to ask again; `None`: with the next refresh.
    pub(crate) retry: Option<Instant>,
    /// It may be over at the next attempt; else somebody has to mend something.
    pub(crate) passing: bool,
}

/// Who carries a group.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    /// Addresses, those of delegated IPv4 prefixes one by one.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Delegated prefixes that are too large to be counted out (IPv6: a /80).
    pub(crate) ranges: BTreeSet<IpNet>,
    /// Those among them that the last answer lacked, for the first time.
    pub(crate) doubted: BTreeSet<IpNet>,
}

/// A prefix list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entries {
    /// AWS's own lists have none.
    pub(crate) version: Option<u64>,
    pub(crate) cidrs: Vec<IpNet>,
}

// === impl Part ===

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self {
            known: None,
            failure: None,
            doubtful: false,
            old: false,
            alone: false,
            recheck: None,
            existed: false,
            missing: false,
        }
    }
}

impl<T> Part<T> {
    /// As it was when it was wanted before.
    pub(crate) fn remembered(value: Arc<T>, at: Instant, old: bool) -> Self {
        let known = Some(Known { value: Some(value), at });
        Self { known, old, existed: true, ..Self::default() }
    }

    /// What is known and exists.
    pub(crate) fn value(&self) -> Option<&Arc<T>> {
        self.known.as_ref()?.value.as_ref()
    }

    /// Whether to ask now: nothing fresh is known, a retry is due, or everything is asked for anew.
    pub(crate) fn is_due(&self, now: Instant, everything: bool) -> bool {
        everything
            || match &self.failure {
                Some(failure) => failure.retry.is_some_and(|retry| retry <= now),
                None => {
                    let doubtful = self.recheck.is_some_and(|recheck| recheck <= now);
                    self.old || self.known.is_none() || doubtful
                }
            }
    }

    pub(crate) fn found(&mut self, value: Arc<T>, now: Instant) {
        let known = Some(Known { value: Some(value), at: now });
        *self = Self { known, existed: true, ..Self::default() };
    }

    /// Part of what was found is to be asked for again then.
    pub(crate) fn doubt(&mut self, recheck: Instant) {
        self.recheck = Some(recheck);
    }

    /// When it is to be asked for before the next refresh.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        match &self.failure {
            Some(failure) => failure.retry,
            None => self.recheck,
        }
    }

    /// Two answers have said that it does not exist.
    pub(crate) const fn is_missing(&self) -> bool {
        self.missing
    }

    /// It did exist, and two answers have said that it does not.
    pub(crate) const fn is_gone(&self) -> bool {
        self.existed && self.missing
    }

    /// The answer says that it does not exist, with `words`. Asked for once more after `confirm`; what did exist is
    /// believed until then. True when it counts as gone.
    pub(crate) fn missing(&mut self, now: Instant, words: String, confirm: Duration) -> bool {
        let sure = std::mem::replace(&mut self.doubtful, true);
        if self.value().is_none() || sure {
            self.known = Some(Known { value: None, at: now });
        }
        self.old = false;
        let retry = (!sure).then(|| now + confirm);
        self.missing = sure;
        self.failure = Some(Failure { words, retry, passing: !sure });
        self.value().is_none()
    }

    pub(crate) fn failed(&mut self, failure: Failure) {
        self.old = false;
        self.failure = Some(failure);
    }
}

// === impl Members ===

impl Members {
    pub(crate) fn len(&self) -> usize {
        self.addresses.len() + self.ranges.len()
    }

    /// What is believed after `answer`: what it lacks stays until the next one lacks it too.
    pub(crate) fn corrected_by(&self, answer: Self) -> Self {
        let mut believed = answer;
        let lacking: Vec<IpAddr> =
            self.addresses.difference(&believed.addresses).copied().collect();
        for address in lacking {
            if !self.doubted.contains(&address.into()) {
                believed.addresses.insert(address);
                believed.doubted.insert(address.into());
            }
        }
        let lacking: Vec<IpNet> = self.ranges.difference(&believed.ranges).copied().collect();
        for range in lacking {
            if !self.doubted.contains(&range) {
                believed.ranges.insert(range);
                believed.doubted.insert(range);
            }
        }
        believed
    }

    /// Whether some of them may be gone.
    pub(crate) fn is_doubtful(&self) -> bool {
        !self.doubted.is_empty()
    }

    pub(crate) fn add_prefix(&mut self, prefix: IpNet) {
        match prefix {
            IpNet::V4(net) if net.prefix_len() >= 24 => {
                let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
                self.addresses.extend((first..=last).map(|a| IpAddr::from(a.to_be_bytes())));
            }
            wide => {
                self.ranges.insert(wide.trunc());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_goes_when_a_second_answer_lacks_it_too() {
        let members = |list: &[&str]| {
            let addresses = list.iter().map(|address| address.parse().unwrap()).collect();
            Members { addresses, ..Members::default() }
        };
        let first = members(&["10.0.0.1", "10.0.0.2"]);
        let second = first.corrected_by(members(&["10.0.0.2", "10.0.0.3"]));
        assert_eq!(second.addresses, members(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]).addresses);
        assert!(second.is_doubtful() && !first.is_doubtful());
        // Another one is missing now: it is doubted in its turn.
        let third = second.corrected_by(members(&["10.0.0.3"]));
        assert_eq!(third.addresses, members(&["10.0.0.2", "10.0.0.3"]).addresses);
        let back = third.corrected_by(members(&["10.0.0.2", "10.0.0.3"]));
        assert_eq!(back, members(&["10.0.0.2", "10.0.0.3"]));
    }

    #[test]
    fn a_delegated_ipv4_prefix_is_its_addresses_and_an_ipv6_one_a_range() {
        let mut members = Members::default();
        members.add_prefix("10.0.0.16/28".parse().unwrap());
        members.add_prefix("2001:db8::/80".parse().unwrap());
        assert_eq!(members.addresses.len(), 16);
        assert!(members.addresses.contains(&"10.0.0.16".parse().unwrap()));
        assert!(members.addresses.contains(&"10.0.0.31".parse().unwrap()));
        assert_eq!(members.ranges, ["2001:db8::/80".parse().unwrap()].into());
    }
}
