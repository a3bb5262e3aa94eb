//! Kubernetes objects from an API server: listed, watched, resumed, trimmed on arrival, as policy's objects.
//!
//! A thread of its own reads, so that a large cluster never holds up the pool. What comes out is what `veni-manifests`
//! gives of a folder: batches of objects that are new or gone ([`Batch`]), and beside them what is about this node's own network
//! ([`Configuration`]). Objects are read as they are written, JSON, and not through k8s-openapi's types, which drop fields
//! that they do not know (ADR 0016).
//!
//! Written is only what [`Reports`] says.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime,
    sync::{Notify, Semaphore, mpsc, watch},
    task::AbortHandle,
    time::{sleep, sleep_until},
};
use veni_core::chain::chain;

mod api;
mod ask;
mod backoff;
mod collection;
mod configuration;
mod connect;
mod follow;
mod hold;
mod hub;
mod published;
mod report;
mod resource;
mod served;
mod store;
mod trim;

pub use ask::Asking;
pub use collection::{Collection, News};
pub use configuration::{Configuration, Known, NodeMetadata};
pub use connect::{Access, ConnectError};
pub use follow::Counters;
pub use hub::{Batch, ServiceCidrs};
pub use published::{GroupNews, follow_published};
pub use report::{About, Followed, Happening, Network, ReportCounters, Reports, Standing, WRITTEN};
pub use resource::Resource;

use api::Api;
use ask::Question;
use backoff::Backoff;
use follow::{Follower, Told};
use hold::{Part, Questions};
use hub::Hub;

/// Batches that may wait for their reader; after that the API server keeps the events.
const BATCHES: usize = 16;
/// What may be heard before it is put together.
const HEARD: usize = 1024;
/// A permission that lacks must not keep policy from beginning for ever.
const HELD_MOST: Duration = Duration::from_secs(10);

/// Times.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// After a first failure; doubled from then on.
    pub retry: Duration,
    /// The longest that grows to.
    pub retry_most: Duration,
    /// A connection that lasted longer counts as one that worked.
    pub settled: Duration,
    /// How long the beginning of an answer is waited for.
    pub patience: Duration,
    /// A list that says nothing for so long is given up.
    pub stalled: Duration,
    /// So is a watch; bookmarks come every minute.
    pub idle: Duration,
    /// How long the API server is to keep a watch.
    pub watch: Duration,
    /// When a resource that there is in other versions only is tried again, about.
    pub unread: Duration,
    /// When one that there is not is looked for again, about.
    pub missing: Duration,
    /// When a pod that there is not yet is asked for again.
    pub ask_again: Duration,
    /// A new pod that is held back for longer is told, with what it waits for; a failure that lasts twice as long is logged.
    pub explain: Duration,
    /// How long the first batch waits for pods that are held back.
    pub held_most: Duration,
    /// Over how long nodes begin to look at, and write, the same.
    pub spread: Duration,
    /// How often a node looks after the one behind it in a status.
    pub tidy: Duration,
}

/// What is watched.
#[derive(Debug)]
pub struct Watch {
    /// Policy's objects.
    pub batches: mpsc::Receiver<Batch>,
    /// This node's configuration, as far as it is known.
    pub configuration: watch::Receiver<Arc<Configuration>>,
    /// The Services' ranges; `None` before they were read.
    pub service_cidrs: watch::Receiver<Option<ServiceCidrs>>,
    /// Asks for pods that were not heard of yet.
    pub asking: Asking,
    /// Tells the API server.
    pub reports: Reports,
    /// What each resource has cost.
    pub costs: Vec<(Resource, Arc<Counters>)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retry: Duration::from_millis(800),
            retry_most: Duration::from_secs(30),
            settled: Duration::from_secs(10),
            patience: Duration::from_secs(10),
            stalled: Duration::from_secs(30),
            idle: Duration::from_secs(150),
            watch: Duration::from_secs(580),
            unread: Duration::from_secs(30),
            missing: Duration::from_secs(120),
            ask_again: Duration::from_millis(200),
            explain: Duration::from_secs(1),
            held_most: HELD_MOST,
            spread: Duration::from_secs(180),
            tidy: Duration::from_secs(600),
        }
    }
}

/// Follows the objects of the cluster that concern the node of this name, until the batches' receiver is dropped.
///
/// # Errors
/// When no thread can be made.
pub fn start(access: Access, node: &str, settings: Settings) -> io::Result<Watch> {
    let (batches, taken) = mpsc::channel(BATCHES);
    let (configured, configuration) = watch::channel(Arc::default());
    let (cidrs, service_cidrs) = watch::channel(None);
    let (asking, questions) = Asking::new();
    let (reports, told) = Reports::new();
    let costs: Vec<_> = Resource::ALL.map(|resource| (resource, Arc::default())).into();
    let counted = costs.clone();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let node: Arc<str> = node.into();
    std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
        let hub = Hub::new(node.clone(), settings);
        let reader = Reader { node, settings, batches, configured, cidrs, hub, costs: counted };
        runtime.block_on(reader.run(access, questions, told));
    })?;
    Ok(Watch { batches: taken, configuration, service_cidrs, asking, reports, costs })
}

struct Reader {
    node: Arc<str>,
    settings: Settings,
    batches: mpsc::Sender<Batch>,
    configured: watch::Sender<Arc<Configuration>>,
    cidrs: watch::Sender<Option<ServiceCidrs>>,
    hub: Hub,
    costs: Vec<(Resource, Arc<Counters>)>,
}

/// What the followers share.
struct Followers {
    api: Api,
    node: Arc<str>,
    settings: Settings,
    told: mpsc::Sender<Told>,
    back: Arc<Notify>,
    costs: Vec<(Resource, Arc<Counters>)>,
    /// Bounds what is asked for at once beside the watches.
    places: Arc<Semaphore>,
}

impl Reader {
    async fn run(
        mut self,
        access: Access,
        questions: mpsc::UnboundedReceiver<Question>,
        reported: report::Told,
    ) {
        let Some(api) = self.connect(access).await else { return };
        let (told, mut heard) = mpsc::channel(HEARD);
        let followers = Followers {
            api,
            node: self.node.clone(),
            settings: self.settings,
            told,
            back: Arc::default(),
            costs: std::mem::take(&mut self.costs),
            places: Arc::new(Semaphore::new(ask::AT_ONCE)),
        };
        let (node, configuration) = (self.node.clone(), self.configured.subscribe());
        report::start(followers.api.clone(), node, self.settings, reported, configuration);
        let own = [
            Resource::OwnNode,
            Resource::EniConfigs,
            Resource::NodeNetworkConfigs,
            Resource::ServiceCidrs,
        ];
        for resource in own.into_iter().chain(Resource::OF_POLICY) {
            followers.follow(resource);
        }
        tokio::spawn(ask::answer(
            followers.api.clone(),
            self.settings,
            questions,
            followers.told.clone(),
        ));
        let (mut nodes, mut taken, mut parts) = (false, Vec::new(), BTreeMap::new());
        loop {
            let wake_at = self.hub.wake_at();
            tokio::select! {
                () = self.batches.closed() => return,
                _ = heard.recv_many(&mut taken, HEARD) => {}
                () = sleep_until(wake_at.unwrap_or_else(Instant::now).into()), if wake_at.is_some() => {}
            }
            let now = Instant::now();
            for told in taken.drain(..) {
                self.hub.take(told, now);
            }
            followers.turn(&mut parts, self.hub.questions());
            if self.hub.wants_nodes() && !std::mem::replace(&mut nodes, true) {
                followers.follow(Resource::OtherNodes);
            }
            if !self.publish().await {
                return;
            }
        }
    }

    /// Sets the client up, for as long as it takes: tokens are mounted late, files are mended.
    async fn connect(&mut self, access: Access) -> Option<Api> {
        let mut backoff = Backoff::new(self.settings.retry, self.settings.retry_most);
        loop {
            match access.connect().await {
                Ok(client) => {
                    return Some(Api::new(client, self.settings.patience));
                }
                Err(error) => {
                    let trouble = format!(
                        "cannot be read: there is no way to the API server ({})",
                        chain(&error)
                    );
                    for resource in Resource::OF_POLICY {
                        self.hub.take(Told::Trouble(resource, trouble.clone()), Instant::now());
                    }
                }
            }
            if !self.publish().await {
                return None;
            }
            tokio::select! {
                () = self.batches.closed() => return None,
                () = sleep(backoff.next()) => {}
            }
        }
    }

    /// Tells what is new. `false`: nobody listens.
    async fn publish(&mut self) -> bool {
        if let Some(configuration) = self.hub.configuration() {
            self.configured.send_replace(Arc::new(configuration));
        }
        if let Some(cidrs) = self.hub.service_cidrs() {
            self.cidrs.send_replace(Some(cidrs));
        }
        let Some(batch) = self.hub.batch(Instant::now()) else { return true };
        if batch.complete && batch.apply.len() > HEARD {
            let objects: usize = self.hub.counts().map(|(_, count)| count).sum();
            tracing::info!(objects, new = batch.apply.len(), "objects of the cluster read");
        }
        self.batches.send(batch).await.is_ok()
    }
}

impl Followers {
    /// Begins to ask for parts, and leaves others.
    fn turn(&self, parts: &mut BTreeMap<Part, AbortHandle>, questions: Questions) {
        for part in questions.leave {
            parts.remove(&part).iter().for_each(AbortHandle::abort);
        }
        for part in questions.ask {
            let (api, told, places) = (self.api.clone(), self.told.clone(), self.places.clone());
            let asking = ask::part(api, self.settings, part.clone(), places, told);
            parts.insert(part, tokio::spawn(asking).abort_handle());
        }
    }

    fn follow(&self, resource: Resource) {
        let counters = self.costs.iter().find(|(of, _)| *of == resource);
        let follower = Follower {
            api: self.api.clone(),
            resource,
            node: self.node.clone(),
            settings: self.settings,
            told: self.told.clone(),
            counters: counters.map(|(_, counters)| counters.clone()).unwrap_or_default(),
            back: self.back.clone(),
        };
        tokio::spawn(follower.run());
    }
}
