//! One resource, listed and watched for as long as somebody listens.
//!
//! The list comes as a stream where the API server has it (WatchList, KEP-3157), so that neither side has it whole in memory, and
//! in pages where not. A watch that ends goes on from the version that it has come to, which bookmarks keep young; only
//! one that is too old (410) is listed anew. Invariants: what is told is what the API server said, and nothing is told to be
//! gone because it did not answer; a list counts only from its beginning to its end.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, timeout},
};

use crate::{
    Settings,
    api::{Api, Failure},
    backoff::Backoff,
    hold::Part,
    resource::Resource,
    served::{self, Served},
    trim::Trim,
};

/// Objects of a page.
const PAGE: u32 = 500;
const LIST_END: &str = "/metadata/annotations/k8s.io~1initial-events-end";

/// What is heard of a resource.
#[derive(Debug)]
pub(crate) enum Told {
    /// What comes now is all that there is.
    Begun(Resource),
    /// An object as it is now.
    Object(Resource, Value),
    /// An object as it was when it went.
    Gone(Resource, Value),
    /// The watch has come to this version.
    Reached(Resource, u64),
    /// All that there is has been told, as of this version.
    Listed(Resource, u64),
    /// There is no such resource: no CustomResourceDefinition.
    Absent(Resource),
    /// A part of a resource that was asked for, all of it, as of this version.
    Part(Part, u64, Vec<Value>),
    /// It could not be read, for now, and why.
    NoPart(Part, String),
    /// An object that was asked for by its name.
    Answer(Resource, Value),
    /// It cannot be read at the moment, and why. What was told stays.
    Trouble(Resource, String),
    /// It is there in other versions only, and which. What was told stays.
    Otherwise(Resource, String),
    /// It can be read again.
    Well(Resource),
}

/// What a resource has cost.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of events and lists.
    pub bytes: AtomicU64,
    /// Objects, added, changed or gone.
    pub objects: AtomicU64,
    /// How often all was listed.
    pub lists: AtomicU64,
    /// How often a request failed, or an answer broke off.
    pub failures: AtomicU64,
    /// Seconds since 1970 when the API server was heard last: its events, or the bookmarks between them.
    pub heard_secs: AtomicU64,
}

pub(crate) struct Follower {
    pub(crate) api: Api,
    pub(crate) resource: Resource,
    /// The node's name, where it is part of what is asked for.
    pub(crate) node: Arc<str>,
    pub(crate) settings: Settings,
    pub(crate) told: mpsc::Sender<Told>,
    pub(crate) counters: Arc<Counters>,
    /// The API server answers again: told by whoever noticed first.
    pub(crate) back: Arc<Notify>,
}

/// Where a follower is.
struct Place {
    /// The version to go on from; `None`: all has to be listed.
    at: Option<String>,
    /// Whether the API server streams lists.
    streams: bool,
    /// This connection was answered.
    heard: bool,
    /// What was told last of it is trouble.
    troubled: bool,
    /// A version was too old, and no connection has lasted since.
    expired: bool,
}

/// Nobody listens any more.
struct Unheard;

enum Ended {
    Failed(Failure),
    Unheard,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Unheard> for Ended {
    fn from(_: Unheard) -> Self {
        Self::Unheard
    }
}

impl Counters {
    fn hear(&self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.heard_secs.store(since.as_secs(), Relaxed);
    }
}

impl Follower {
    /// Follows the resource until nobody listens.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(self.settings.retry, self.settings.retry_most);
        let mut place =
            Place { at: None, streams: true, heard: false, troubled: false, expired: false };
        loop {
            let begun = Instant::now();
            place.heard = false;
            let ended = self.connection(&mut place).await;
            let settled = place.heard && begun.elapsed() >= self.settings.settled;
            if settled {
                backoff.reset();
                place.expired = false;
            }
            let away = matches!(ended, Err(Ended::Failed(Failure::Unreachable(_))));
            let wait = match ended {
                Ok(()) if settled => Duration::ZERO,
                Ok(()) => backoff.next(),
                Err(Ended::Failed(failure)) => {
                    self.counters.failures.fetch_add(1, Relaxed);
                    let wait = backoff.next();
                    tracing::debug!(resource = %self.resource, ?failure, at = ?place.at, "watch ended");
                    match self.consider(&mut place, &mut backoff, failure).await {
                        Ok(other) => other.unwrap_or(wait),
                        Err(Unheard) => return,
                    }
                }
                Err(Ended::Unheard) => return,
            };
            tokio::select! {
                () = self.told.closed() => return,
                () = sleep(wait) => {}
                () = self.back.notified(), if away => {
                    backoff.reset();
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    async fn tell(&self, told: Told) -> Result<(), Unheard> {
        self.told.send(told).await.map_err(|_| Unheard)
    }

    /// A list if there has to be one, and then a watch to its end.
    async fn connection(&self, place: &mut Place) -> Result<(), Ended> {
        if place.at.is_none() && !place.streams {
            self.list(place).await?;
        }
        self.watch(place).await
    }

    fn path(&self, query: &str) -> String {
        let mut path = format!("{}?{query}", self.resource.path());
        if let Some(selector) = self.resource.field_selector(&self.node) {
            let _infallible = write!(path, "&fieldSelector={selector}");
        }
        path
    }

    /// Lists in pages.
    async fn list(&self, place: &mut Place) -> Result<(), Ended> {
        let mut token = String::new();
        loop {
            let mut query = format!("limit={PAGE}");
            if !token.is_empty() {
                let _infallible = write!(query, "&continue={token}");
            }
            let answer = self.api.get(&self.path(&query)).await?;
            if token.is_empty() {
                self.counters.lists.fetch_add(1, Relaxed);
                self.tell(Told::Begun(self.resource)).await?;
            }
            self.counters.bytes.fetch_add(answer.len() as u64, Relaxed);
            let garbled = |error: serde_json::Error| Failure::Garbled(error.to_string());
            let mut page = Trim::list(self.resource, &answer).map_err(garbled)?;
            let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) else {
                return Err(Failure::Garbled("a list without items".to_owned()).into());
            };
            for item in items {
                self.object(Told::Object, item).await?;
            }
            let text = |pointer: &str| {
                page.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
            };
            token = text("/metadata/continue");
            if token.is_empty() {
                let version = text("/metadata/resourceVersion");
                return Ok(self.listed(place, version).await?);
            }
        }
    }

    async fn listed(&self, place: &mut Place, version: String) -> Result<(), Unheard> {
        self.tell(Told::Listed(self.resource, version.parse().unwrap_or_default())).await?;
        place.at = Some(version);
        place.heard = true;
        self.counters.hear();
        self.well(place).await
    }

    async fn well(&self, place: &mut Place) -> Result<(), Unheard> {
        if std::mem::take(&mut place.troubled) {
            self.back.notify_waiters();
            self.tell(Told::Well(self.resource)).await?;
        }
        Ok(())
    }

    async fn object(
        &self,
        told: fn(Resource, Value) -> Told,
        object: Value,
    ) -> Result<(), Unheard> {
        let object = self.resource.named(object);
        self.counters.objects.fetch_add(1, Relaxed);
        self.tell(told(self.resource, object)).await
    }

    /// Watches until the API server ends it, which it does after some minutes.
    async fn watch(&self, place: &mut Place) -> Result<(), Ended> {
        let secs = self.settings.watch.as_secs();
        let mut query = format!("watch=1&allowWatchBookmarks=true&timeoutSeconds={secs}");
        let _infallible = match &place.at {
            Some(version) => write!(query, "&resourceVersion={version}"),
            None => write!(query, "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
        };
        let mut lines = self.api.lines(&self.path(&query)).await?;
        if place.at.is_none() {
            self.counters.lists.fetch_add(1, Relaxed);
            self.tell(Told::Begun(self.resource)).await?;
        } else {
            place.heard = true;
            self.well(place).await?;
        }
        loop {
            let wait = if place.at.is_none() { self.settings.stalled } else { self.settings.idle };
            let line = match timeout(wait, lines.next()).await {
                Ok(line) => line?,
                Err(_) if place.at.is_some() => return Ok(()),
                Err(_) => {
                    let stalled = format!("a list said nothing for {} s", wait.as_secs_f32());
                    return Err(Failure::Unreachable(stalled).into());
                }
            };
            let Some(line) = line else { return Ok(()) };
            self.counters.bytes.fetch_add(line.len() as u64, Relaxed);
            let event = Trim::event(self.resource, line)
                .map_err(|error| Failure::Garbled(error.to_string()))?;
            self.event(place, event).await?;
            self.counters.hear();
            place.heard = true;
        }
    }

    async fn event(&self, place: &mut Place, mut event: Value) -> Result<(), Ended> {
        let object = event.get_mut("object").map(Value::take).unwrap_or_default();
        let kind = event.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind == "ERROR" {
            return Err(Failure::of_status(&object).into());
        }
        let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let version = version.unwrap_or_default().to_owned();
        if place.at.as_ref().is_some_and(|at| is_before(&version, at)) {
            return Err(Failure::Expired.into());
        }
        match kind {
            "ADDED" | "MODIFIED" => self.object(Told::Object, object).await?,
            "DELETED" => self.object(Told::Gone, object).await?,
            "BOOKMARK" if object.pointer(LIST_END).and_then(Value::as_str) == Some("true") => {
                return Ok(self.listed(place, version).await?);
            }
            "BOOKMARK" => {
                let reached = version.parse().unwrap_or_default();
                self.tell(Told::Reached(self.resource, reached)).await?;
            }
            other => return Err(Failure::Garbled(format!("an event of type {other:?}")).into()),
        }
        // Versions of a list that is streamed are in no order: it has to be read to its end.
        if place.at.is_some() {
            place.at = Some(version);
        }
        Ok(())
    }

    /// What follows from a failure. How long to wait, where that is not the longer the more often it failed.
    async fn consider(
        &self,
        place: &mut Place,
        backoff: &mut Backoff,
        failure: Failure,
    ) -> Result<Option<Duration>, Unheard> {
        let verb = if place.at.is_none() && !place.streams { "list" } else { "watch" };
        let starting = place.at.is_none();
        match &failure {
            Failure::Expired | Failure::Garbled(_) => place.at = None,
            // Not every API server streams lists: those before 1.32, and those over an etcd before 3.5 (500).
            Failure::Refused { status: 400 | 422 | 500, .. } if starting && place.streams => {
                place.streams = false;
                return Ok(Some(Duration::ZERO));
            }
            Failure::Refused { status: 400 | 422, .. } => place.at = None,
            Failure::Refused { status: 404, .. } => {
                place.at = None;
                return self.missing(place, backoff).await;
            }
            Failure::Unreachable(_) | Failure::Refused { .. } => {}
        }
        let wait = match &failure {
            Failure::Refused { retry_after: Some(asked), .. } => {
                let asked = (*asked).min(self.settings.retry_most);
                // The API server names one time to everybody.
                Some(asked + backoff.between(asked))
            }
            // It answers, and how long it was away before says nothing.
            Failure::Expired if !std::mem::replace(&mut place.expired, true) => {
                Some(backoff.between(self.settings.retry))
            }
            _ => None,
        };
        // A watch that was cut is no trouble until it cannot be resumed.
        if let Some(trouble) = self.trouble(verb, &failure).filter(|_| !place.heard) {
            place.troubled = true;
            self.tell(Told::Trouble(self.resource, trouble)).await?;
        }
        Ok(wait)
    }

    fn trouble(&self, verb: &str, failure: &Failure) -> Option<String> {
        let resource = self.resource;
        Some(match failure {
            Failure::Expired => return None,
            Failure::Refused { status: 403, message, .. } => format!(
                "may not be read: the daemon's role lacks the verb {verb:?} on {:?} of the API group {:?} ({message})",
                resource.plural(),
                resource.group()
            ),
            Failure::Refused { status: 401, message, .. } => {
                format!(
                    "may not be read: the API server does not take the daemon's credentials ({message})"
                )
            }
            other => format!("cannot be read: {other}"),
        })
    }

    /// 404: is there no such resource?
    async fn missing(
        &self,
        place: &mut Place,
        backoff: &mut Backoff,
    ) -> Result<Option<Duration>, Unheard> {
        let resource = self.resource;
        let trouble = match served::ask(&self.api, resource).await {
            Ok(Served::Not) if resource.may_be_missing() => {
                self.well(place).await?;
                self.tell(Told::Absent(resource)).await?;
                return Ok(Some(backoff.between(self.settings.missing)));
            }
            Ok(Served::Here) => return Ok(None),
            Ok(Served::Not) => "cannot be read: the API server does not have it".to_owned(),
            Ok(Served::Otherwise(versions)) => {
                let (versions, own) = (versions.join(", "), resource.api_version());
                let trouble = format!(
                    "cannot be read: the API server has it as {versions}, and veni reads {own}"
                );
                place.troubled = true;
                self.tell(Told::Otherwise(resource, trouble)).await?;
                return Ok(Some(backoff.between(self.settings.unread)));
            }
            Err(failure) => match self.trouble("get", &failure) {
                Some(trouble) => trouble,
                None => return Ok(None),
            },
        };
        place.troubled = true;
        self.tell(Told::Trouble(resource, trouble)).await?;
        Ok(Some(backoff.between(self.settings.unread)))
    }
}

/// Versions of a watch ascend: one that does not is of another history, as after a restore from a backup.
fn is_before(version: &str, at: &str) -> bool {
    matches!((version.parse::<u64>(), at.parse::<u64>()), (Ok(version), Ok(at)) if version < at)
}
