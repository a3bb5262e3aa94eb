//! One collection, listed in pages and then watched through kube's client: for who needs whole objects of a kind, or their
//! metadata, and nothing of the rest that a node follows.

use std::{fmt, pin::Pin, time::Duration};

use futures_util::{Stream, TryStreamExt as _};
use kube::{
    Api, ResourceExt,
    api::{ListParams, ObjectList, PartialObjectMeta, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::time::sleep;
use veni_core::chain::chain;

use crate::backoff::Backoff;

/// Objects of a page.
const PAGE: u32 = 500;
/// How long a watch is kept.
const WATCH_SECS: u32 = 290;
/// Between two watches.
const PAUSE: Duration = Duration::from_millis(500);
/// After a first failure, and the longest that grows to.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// When a definition that there is not is looked for again.
const MISSING: Duration = Duration::from_secs(60);

/// What is heard of a collection.
#[derive(Debug)]
pub enum News<K> {
    /// All that there is.
    Listed(Vec<K>),
    /// An object as it is now.
    Changed(K),
    /// An object as it was when it went.
    Gone(K),
}

type Answer<T> = Pin<Box<dyn Future<Output = kube::Result<T>> + Send>>;
type Events<K> = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<K>>> + Send>>;

/// A collection.
pub struct Collection<K: Clone> {
    what: &'static str,
    list: Box<dyn Fn(ListParams) -> Answer<ObjectList<K>> + Send + Sync>,
    watch: Box<dyn Fn(String) -> Answer<Events<K>> + Send + Sync>,
}

impl<K: Clone> fmt::Debug for Collection<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collection").field("what", &self.what).finish_non_exhaustive()
    }
}

impl<K> Collection<K>
where
    K: Clone + DeserializeOwned + fmt::Debug + Send + 'static,
{
    /// Whole objects.
    #[must_use]
    pub fn whole(what: &'static str, api: Api<K>) -> Self {
        let lists = api.clone();
        Self {
            what,
            list: Box::new(move |params| {
                let api = lists.clone();
                Box::pin(async move { api.list(&params).await })
            }),
            watch: Box::new(move |at| {
                let api = api.clone();
                Box::pin(
                    async move { Ok(Box::pin(api.watch(&watching(), &at).await?) as Events<K>) },
                )
            }),
        }
    }
}

impl<K> Collection<PartialObjectMeta<K>>
where
    K: Clone + DeserializeOwned + fmt::Debug + Send + 'static,
{
    /// Metadata only.
    #[must_use]
    pub fn metadata(what: &'static str, api: Api<K>) -> Self {
        let lists = api.clone();
        Self {
            what,
            list: Box::new(move |params| {
                let api = lists.clone();
                Box::pin(async move { api.list_metadata(&params).await })
            }),
            watch: Box::new(move |at| {
                let api = api.clone();
                Box::pin(async move {
                    Ok(Box::pin(api.watch_metadata(&watching(), &at).await?) as Events<_>)
                })
            }),
        }
    }
}

fn watching() -> WatchParams {
    WatchParams::default().timeout(WATCH_SECS)
}

impl<K: ResourceExt + Clone> Collection<K> {
    /// Tells what there is and what becomes of it, until `tell` says that nobody listens (`false`). What was told stays true
    /// while nothing can be read.
    pub async fn follow(self, mut tell: impl FnMut(News<K>) -> bool) {
        let what = self.what;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let mut listed = false;
            let round = self.round(|news| {
                listed = true;
                tell(news)
            });
            let ended = round.await;
            if listed {
                backoff.reset();
            }
            let wait = match ended {
                Ok(true) => backoff.next(),
                Ok(false) => return,
                // No definition: no objects.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    if !tell(News::Listed(Vec::new())) {
                        return;
                    }
                    backoff.between(MISSING)
                }
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        what,
                        "not read: what was read of it stays"
                    );
                    backoff.next()
                }
            };
            sleep(wait).await;
        }
    }

    /// Lists, and watches until that fails. `false`: nobody listens.
    async fn round(&self, mut tell: impl FnMut(News<K>) -> bool) -> kube::Result<bool> {
        let (mut all, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
        let mut at = loop {
            let page = (self.list)(params.clone()).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        if !tell(News::Listed(all)) {
            return Ok(false);
        }
        loop {
            let mut events = (self.watch)(at.clone()).await?;
            while let Some(event) = events.try_next().await? {
                let news = match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        at = object.resource_version().unwrap_or_default();
                        News::Changed(object)
                    }
                    WatchEvent::Deleted(object) => {
                        at = object.resource_version().unwrap_or_default();
                        News::Gone(object)
                    }
                    WatchEvent::Bookmark(mark) => {
                        at = mark.metadata.resource_version;
                        continue;
                    }
                    // Too old: all is listed anew.
                    WatchEvent::Error(status) => {
                        tracing::debug!(?status, what = self.what, "a watch ended");
                        return Ok(true);
                    }
                };
                if !tell(news) {
                    return Ok(false);
                }
            }
            // It ends after minutes; one that ends at once is no reason to hurry.
            sleep(PAUSE).await;
        }
    }
}
