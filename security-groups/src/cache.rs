//! What was known of things that are not wanted any more, for the next pod that wants them.
//!
//! How fresh it is, the reader decides by the time that comes with it; the cache's own lifetime only bounds memory.

use std::{fmt, hash::Hash, sync::Arc, time::Duration};

use moka::future::Cache;
use tokio::time::Instant;
use veni_core::id::{PrefixListId, SecurityGroupId};
use veni_provider::SecurityGroupRule;

use crate::{
    part::{Entries, Members, Part},
    settings::Settings,
};

/// Keeps what was found.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) rules: Shelf<SecurityGroupId, Vec<SecurityGroupRule>>,
    pub(crate) members: Shelf<SecurityGroupId, Members>,
    pub(crate) lists: Shelf<PrefixListId, Entries>,
}

/// Keeps one kind of things.
pub(crate) struct Shelf<K, T> {
    found: Cache<K, (Arc<T>, Instant)>,
    keep: Duration,
    fresh: Duration,
}

impl Memory {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            rules: Shelf::new(settings, Vec::len),
            members: Shelf::new(settings, Members::len),
            lists: Shelf::new(settings, |list| list.cidrs.len()),
        }
    }
}

impl<K, T> Shelf<K, T>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
{
    fn new(settings: &Settings, size: fn(&T) -> usize) -> Self {
        let keep = Duration::from_secs(settings.cache_secs);
        let weight =
            move |value: &T| u32::try_from(size(value)).unwrap_or(u32::MAX).saturating_add(1);
        let found = Cache::builder()
            .max_capacity(settings.limits.cached)
            .weigher(move |_: &K, (value, _): &(Arc<T>, Instant)| weight(value))
            .time_to_live(keep)
            .build();
        Self { found, keep, fresh: settings.refresh() }
    }

    pub(crate) async fn put(&self, id: &K, value: Arc<T>, at: Instant) {
        self.found.insert(id.clone(), (value, at)).await;
    }

    /// The cloud says that it does not exist.
    pub(crate) async fn forget(&self, id: &K) {
        self.found.invalidate(id).await;
    }

    /// As it was when it was wanted before, else nothing.
    pub(crate) async fn part(&self, id: &K, now: Instant) -> Part<T> {
        match self.found.get(id).await {
            Some((value, at)) if now.duration_since(at) < self.keep => {
                Part::remembered(value, at, now.duration_since(at) >= self.fresh)
            }
            _ => Part::default(),
        }
    }
}

impl<K, T> fmt::Debug for Shelf<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("kept", &self.found.entry_count()).finish_non_exhaustive()
    }
}

impl<K, T> Clone for Shelf<K, T> {
    fn clone(&self) -> Self {
        Self { found: self.found.clone(), keep: self.keep, fresh: self.fresh }
    }
}
