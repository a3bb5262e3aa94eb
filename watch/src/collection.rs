//! One collection, listed in pages and then watched through kube's client: for who needs something of whole objects of a kind,
//! or of their metadata, and nothing of the rest that a node follows.
//!
//! Invariants: a page is reduced to what is wanted of it before the next is asked for; a watch that is cut goes on from where it
//! was, and only one that is too old (410) is listed anew, at a time of each follower's own.

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
/// Over how long followers list anew what was too old: all of them learn it when the API server was restarted.
const SPREAD: Duration = Duration::from_secs(30);
/// A version is too old to go on from, or none that this API server understands.
const EXPIRED: [u16; 2] = [410, 400];

/// What is heard of a collection: objects' names, with what was read of them.
#[derive(Debug, PartialEq, Eq)]
pub enum News<T> {
    /// All that there is.
    Listed(Vec<(String, T)>),
    /// An object as it is now.
    Changed(String, T),
    /// An object that went, or of which there is nothing to read any more.
    Gone(String),
}

/// How a round ended.
enum Ended {
    /// Nobody listens.
    Unheard,
    /// Where it was is too old.
    Expired,
}

type Answer<T> = Pin<Box<dyn Future<Output = kube::Result<T>> + Send>>;
type Events<K> = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<K>>> + Send>>;

/// A collection.
pub struct Collection<K: Clone> {
    what: &'static str,
    spread: Duration,
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
            spread: SPREAD,
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
            spread: SPREAD,
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
    /// Over how long those that follow it list anew what was too old.
    #[must_use]
    pub fn spread_over(self, spread: Duration) -> Self {
        Self { spread, ..self }
    }

    /// Tells what there is and what becomes of it, as `read` reads it (`None`: it is nothing to anybody), until `tell` says
    /// that nobody listens (`false`). What was told stays true while nothing can be read.
    pub async fn follow<T>(
        self,
        read: impl Fn(K) -> Option<T>,
        mut tell: impl FnMut(News<T>) -> bool,
    ) {
        let what = self.what;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut at = None;
        loop {
            let mut heard = false;
            let round = self.round(&mut at, &read, |news| {
                heard = true;
                tell(news)
            });
            let ended = round.await;
            if heard {
                backoff.reset();
            }
            let wait = match ended {
                Ok(Ended::Unheard) => return,
                Ok(Ended::Expired) => {
                    at = None;
                    backoff.below(self.spread)
                }
                // No definition: no objects.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    at = None;
                    if !tell(News::Listed(Vec::new())) {
                        return;
                    }
                    backoff.between(MISSING)
                }
                Err(kube::Error::Api(status)) if EXPIRED.contains(&status.code) => {
                    at = None;
                    backoff.below(self.spread)
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

    /// Lists unless it is known where to go on, and watches until that fails.
    async fn round<T>(
        &self,
        at: &mut Option<String>,
        read: &impl Fn(K) -> Option<T>,
        mut tell: impl FnMut(News<T>) -> bool,
    ) -> kube::Result<Ended> {
        if at.is_none() {
            let (all, version) = self.listed(read).await?;
            *at = Some(version);
            if !tell(News::Listed(all)) {
                return Ok(Ended::Unheard);
            }
        }
        loop {
            let from = at.clone().unwrap_or_default();
            let mut events = (self.watch)(from).await?;
            while let Some(event) = events.try_next().await? {
                let (object, is_gone) = match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                    WatchEvent::Deleted(object) => (object, true),
                    WatchEvent::Bookmark(mark) => {
                        *at = Some(mark.metadata.resource_version);
                        continue;
                    }
                    WatchEvent::Error(status) => {
                        tracing::debug!(?status, what = self.what, "a watch ended");
                        if EXPIRED.contains(&status.code) {
                            return Ok(Ended::Expired);
                        }
                        return Err(kube::Error::Api(status));
                    }
                };
                *at = object.resource_version();
                let name = key(&object);
                let news = match read(object).filter(|_| !is_gone) {
                    Some(read) => News::Changed(name, read),
                    None => News::Gone(name),
                };
                if !tell(news) {
                    return Ok(Ended::Unheard);
                }
            }
            // It ends after minutes; one that ends at once is no reason to hurry.
            sleep(PAUSE).await;
        }
    }

    /// What there is to read, page by page, and as of which version.
    async fn listed<T>(
        &self,
        read: &impl Fn(K) -> Option<T>,
    ) -> kube::Result<(Vec<(String, T)>, String)> {
        let (mut all, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
        loop {
            let page = (self.list)(params.clone()).await?;
            let objects = page.items.into_iter();
            all.extend(objects.filter_map(|object| {
                let name = key(&object);
                Some((name, read(object)?))
            }));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok((all, page.metadata.resource_version.unwrap_or_default())),
            }
        }
    }
}

/// `namespace/name`, or the name of what is in none.
fn key(object: &impl ResourceExt) -> String {
    let name = object.name_any();
    object.namespace().map_or(name.clone(), |namespace| format!("{namespace}/{name}"))
}
