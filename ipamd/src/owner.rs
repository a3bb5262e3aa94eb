//! The task that owns the pool.
//!
//! Invariants: it never waits for the cloud or a client; what is done for one attachment is done one after the other;
//! an ADD that finds no address waits, bounded, and the refill that it triggers starts within [`COALESCE`].

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use veni_core::{
    config::Config,
    ipam::{
        Allocation, BootTime,
        plan::{Plan, Step},
    },
    marks::EniSlot,
    wire::{AddRequest, Attachment, DelReason, GcRequest, ReplyBody, inspect},
};
use veni_provider::{Cloud, CloudResult, Interface, InterfaceFilter, MetadataInterface};

use crate::{
    clock::Clock,
    evidence::Evidence,
    executor::{self, Naming},
    following,
    host::{Host, HostEvent, Strays, Wanted},
    journal::Store,
    metrics::Metrics,
    placement,
    pool::{Adoption, Outcome, Pool},
    whereabouts::{VpcCidrs, Whereabouts},
};

mod follow;
mod orphans;
mod place;
mod quarantine;
mod readiness;
mod report;
mod resume;
mod serve;
mod view;

/// How long a refill for waiting ADDs is held back, so that those that come together are served together.
/// Timers round up to a whole millisecond and more: the refill has left within 5 ms.
pub const COALESCE: Duration = Duration::from_millis(3);
/// The same for a refill that nobody waits for: a burst of ADDs asks once.
const QUIET: Duration = Duration::from_millis(60);
/// How often instance metadata is compared.
const METADATA_PERIOD: Duration = Duration::from_secs(60);
/// The same while an attached ENI waits for its subnet's CIDR.
const PREFIX_PERIOD: Duration = Duration::from_secs(10);
/// How long a plugin that a former daemon answered may be at work still: it keeps to that itself once its connection has closed.
const HOLD: Duration = veni_core::wire::ADD_PATIENCE;
/// How often a disk that took nothing is tried again.
const STORAGE_RETRY: Duration = Duration::from_secs(1);
/// How often a filter that is not in force is.
const FILTER_RETRY: Duration = Duration::from_secs(10);
/// An allocation without a link is not dropped before this age: its plugin may be at work still.
pub(crate) const WIRING_GRACE: Duration = Duration::from_secs(120);

/// The connection of an ADD: who holds the attachment while its plugin works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

/// What the owner is asked.
#[derive(Debug)]
pub enum Command {
    /// ADD. The answer comes when there is an address, or when the wait is over.
    Add(ConnectionId, AddRequest, oneshot::Sender<ReplyBody>),
    /// The connection of an ADD has closed: the attachment is wired, or its plugin is dead.
    AddClosed(ConnectionId, Attachment),
    /// DEL.
    Del(Attachment, DelReason, oneshot::Sender<ReplyBody>),
    /// CHECK.
    Check(Attachment, oneshot::Sender<ReplyBody>),
    /// GC.
    Gc(GcRequest, oneshot::Sender<ReplyBody>),
    /// STATUS.
    Status(oneshot::Sender<ReplyBody>),
    /// A view.
    Inspect(inspect::Query, oneshot::Sender<ReplyBody>),
}

/// All that the owner is made of.
#[derive(Debug)]
pub struct Parts<C, H, S> {
    /// The cloud.
    pub cloud: Arc<C>,
    /// The kernel.
    pub host: H,
    /// The pool.
    pub pool: Pool<S>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The settings.
    pub config: Arc<Config>,
    /// The instance, as known at start.
    pub whereabouts: Whereabouts,
    /// What tells a live pod from a dead one.
    pub evidence: Evidence,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Addresses per ENI and ENIs, for people.
    pub provider_name: &'static str,
    /// Whether EC2 has been asked for all ENIs already.
    pub surveyed: bool,
}

/// The owner.
#[derive(Debug)]
pub struct Owner<C, H, S> {
    parts: Parts<C, H, S>,
    naming: Arc<Naming>,
    waiters: VecDeque<Waiter>,
    /// Attachments that a plugin works on, with what waits behind it.
    held: BTreeMap<Attachment, Held>,
    calls: JoinSet<Done>,
    surveying: bool,
    /// Whether EC2 is being asked what was left behind.
    looking: bool,
    /// Why the filter is not attached over a map that holds the pods; `None` when it is.
    unfiltered: Option<String>,
    /// When that is tried again, and when the disk is that took nothing.
    filter_at: Option<Instant>,
    storage_at: Option<Instant>,
    /// Whether EC2 was asked once how things stand: a former daemon's last calls may have had effects that no
    /// journal knows. Nothing is asked for before.
    oriented: bool,
    comparing: bool,
    compare_at: Instant,
    vpc_cidrs: VpcCidrs,
    /// Not to plan before this.
    plan_at: Option<Instant>,
    last_plan: Plan,
    started: Instant,
    /// The same as the ledger's time.
    began: BootTime,
    repairs: BTreeMap<String, u64>,
    host_problems: Vec<String>,
    links: BTreeMap<EniSlot, String>,
    wanted: Wanted,
    problem_since: HashMap<(String, String), BootTime>,
    /// What was asked during the start and not answered.
    early: VecDeque<Command>,
    /// Tells where ENIs are made, with custom networking.
    placement: Option<placement::Source>,
    /// The pool's settings in force.
    settings: follow::Settings,
    /// What the cluster was told.
    told: report::Told,
    /// Who waits for the node to be able to take pods.
    able: Option<oneshot::Sender<()>>,
    /// What the kernel leads elsewhere than to the ledger's pods, as it was last told.
    strays: Strays,
    /// Pods that were released while their link was there.
    left: Vec<Allocation>,
    /// ADDs that the former daemon answered and whose plugin may be at work still, until it cannot be any more.
    resuming: BTreeMap<Attachment, Instant>,
}

#[derive(Debug)]
struct Waiter {
    connection: ConnectionId,
    request: AddRequest,
    reply: oneshot::Sender<ReplyBody>,
    since: Instant,
    deadline: Instant,
}

#[derive(Debug)]
struct Held {
    by: ConnectionId,
    queue: VecDeque<Command>,
}

/// A call that has ended.
#[derive(Debug)]
enum Done {
    Step(Box<(Step, Outcome, Duration)>),
    Survey(CloudResult<Vec<Interface>>),
    Orphans(CloudResult<Vec<Interface>>),
    Metadata(CloudResult<Vec<MetadataInterface>>),
}

impl ConnectionId {
    /// One that no other connection of this process has.
    #[must_use]
    pub fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }
}

impl<C: Cloud, H: Host, S: Store> Owner<C, H, S> {
    /// An owner that has not begun.
    pub fn new(parts: Parts<C, H, S>) -> Self {
        let instance = parts.whereabouts.identity.instance_id.clone();
        let naming = Arc::new(Naming::new(instance, &parts.config));
        let vpc_cidrs = VpcCidrs::new(parts.whereabouts.primary.vpc_cidrs.clone());
        let now = Instant::now();
        Self {
            naming,
            waiters: VecDeque::new(),
            held: BTreeMap::new(),
            calls: JoinSet::new(),
            surveying: false,
            looking: false,
            unfiltered: Some("it was not looked at yet".to_owned()),
            filter_at: None,
            storage_at: None,
            oriented: parts.surveyed,
            comparing: false,
            // What was kept may be older than this daemon.
            compare_at: now,
            vpc_cidrs,
            plan_at: Some(now),
            last_plan: Plan::default(),
            started: now,
            began: parts.clock.now(),
            repairs: BTreeMap::new(),
            host_problems: Vec::new(),
            links: BTreeMap::new(),
            wanted: Wanted::default(),
            problem_since: HashMap::new(),
            early: VecDeque::new(),
            placement: None,
            settings: follow::Settings::new(parts.config.clone()),
            told: report::Told::default(),
            able: None,
            strays: Strays::new(),
            left: Vec::new(),
            resuming: BTreeMap::new(),
            parts,
        }
    }

    /// What was asked before there was an owner: answered first.
    #[must_use]
    pub fn with_early(self, early: VecDeque<Command>) -> Self {
        Self { early, ..self }
    }

    /// Whom to tell once the node can take pods.
    #[must_use]
    pub fn when_able(self, able: oneshot::Sender<()>) -> Self {
        Self { able: Some(able), ..self }
    }

    /// Runs until the commands' senders are gone.
    pub async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut host_events: mpsc::UnboundedReceiver<HostEvent>,
    ) {
        self.parts.pool.survey_wanted |= !self.parts.surveyed;
        let mut placement = self.placement.take();
        if let Some(source) = &mut placement {
            let news = source.borrow_and_update().clone();
            self.parts.pool.take_placement(news);
        }
        let mut settings = self.settings.source.take();
        if let Some(source) = &mut settings {
            let heard = source.borrow_and_update().clone();
            self.hear(heard);
        }
        self.keep_whereabouts();
        self.resume();
        self.flush_cooling();
        // A DEL that found no daemon has removed link and result: both told that the pod is gone.
        self.sweep();
        self.configure_host();
        for command in std::mem::take(&mut self.early) {
            self.handle(command);
        }
        loop {
            self.work();
            let wake = self.wake_at();
            tokio::select! {
                biased;
                // Rare, and what is asked now is to be answered by it.
                news = placement::next(&mut placement) => self.place(news),
                heard = following::next(&mut settings) => self.hear(heard),
                command = commands.recv() => match command {
                    Some(command) => {
                        self.handle(command);
                        // Those that came with it, before anything slower.
                        for _ in 0..64 {
                            let Ok(command) = commands.try_recv() else { break };
                            self.handle(command);
                        }
                        // Requests that never end starve neither the cloud's answers nor the kernel's news.
                        while let Ok(event) = host_events.try_recv() {
                            self.host_event(event);
                        }
                        while let Some(ended) = self.calls.try_join_next() {
                            self.ended(ended);
                        }
                    }
                    None => return,
                },
                Some(event) = host_events.recv() => self.host_event(event),
                Some(ended) = self.calls.join_next() => self.ended(ended),
                () = sleep_until(wake) => {}
            }
        }
    }

    fn now(&self) -> BootTime {
        self.parts.clock.now()
    }

    fn ended(&mut self, ended: Result<Done, tokio::task::JoinError>) {
        match ended {
            Ok(done) => self.done(done),
            Err(error) => tracing::error!(%error, "cloud call task failed"),
        }
    }

    /// Those whose plugin has gone are no demand.
    fn drop_dead_waiters(&mut self) {
        if !self.waiters.iter().any(|waiter| waiter.reply.is_closed()) {
            return;
        }
        let waiters = std::mem::take(&mut self.waiters);
        let (dead, living): (VecDeque<_>, VecDeque<_>) =
            waiters.into_iter().partition(|waiter| waiter.reply.is_closed());
        self.waiters = living;
        for waiter in dead {
            self.let_go_of(waiter.connection, &waiter.request.attachment);
        }
    }

    /// Everything that follows from the state as it is now.
    fn work(&mut self) {
        self.drop_dead_waiters();
        self.take_over();
        self.serve_waiters();
        self.expire();
        let now = Instant::now();
        self.retry(now);
        if self.plan_at.is_some_and(|at| at <= now) {
            self.plan_at = None;
            self.plan();
        }
        if now >= self.compare_at && !self.comparing {
            self.compare();
        }
        self.configure_host();
        self.parts.pool.compact();
        self.publish();
        self.announce();
        self.tell();
    }

    /// What keeps every ADD from being served is tried again, whether one comes or not: a node that is not ready gets
    /// none.
    fn retry(&mut self, now: Instant) {
        if self.unfiltered.is_none() {
            self.filter_at = None;
        } else if self.filter_at.is_some_and(|at| at <= now) {
            self.resume();
            self.filter_at = Some(now + FILTER_RETRY);
        } else {
            self.filter_at.get_or_insert(now + FILTER_RETRY);
        }
        if self.storage_at.is_some_and(|at| at <= now) {
            self.storage_at = None;
            self.parts.pool.flush();
            self.plan_soon();
        }
        if self.parts.pool.storage_trouble().is_some() {
            self.storage_at.get_or_insert(now + STORAGE_RETRY);
        }
    }

    /// Plans soon: at once for waiting ADDs, after a short quiet otherwise.
    fn plan_soon(&mut self) {
        let delay = if self.waiters.is_empty() { QUIET } else { COALESCE };
        let at = Instant::now() + delay;
        self.plan_at = Some(self.plan_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn plan_now(&mut self) {
        self.plan_at = Some(Instant::now());
    }

    fn plan(&mut self) {
        let now = self.now();
        self.parts.pool.flush();
        self.parts.pool.waiting = u32::try_from(self.waiters.len()).unwrap_or(u32::MAX);
        match self.parts.pool.confirmation_due() {
            Some(at) if at <= now => self.parts.pool.survey_wanted = true,
            Some(at) => self.plan_by(at, now),
            None => {}
        }
        if self.parts.pool.survey_wanted && !self.surveying {
            self.survey_when_due(now);
        }
        self.look_for_orphans(now);
        if !self.oriented {
            return;
        }
        let (plan, steps) = self.parts.pool.next_steps(now);
        for step in steps {
            self.start(step);
        }
        if let Some(at) = plan.wake_at {
            self.plan_by(at, now);
        }
        self.last_plan = plan;
    }

    fn start(&mut self, step: Step) {
        tracing::info!(%step, "cloud call started");
        let (cloud, naming) = (self.parts.cloud.clone(), self.naming.clone());
        self.parts.metrics.call_started(&step);
        self.calls.spawn(async move {
            let began = Instant::now();
            let outcome = executor::execute(cloud, naming, &step).await;
            Done::Step(Box::new((step, outcome, began.elapsed())))
        });
    }

    fn survey_when_due(&mut self, now: BootTime) {
        match self.parts.pool.begin_survey(now) {
            Ok(()) => self.start_survey(),
            Err(at) => self.plan_by(at, now),
        }
    }

    fn plan_by(&mut self, at: BootTime, now: BootTime) {
        let wake = Instant::now() + at.since(now).max(Duration::from_millis(1));
        self.plan_at = Some(self.plan_at.map_or(wake, |earlier| earlier.min(wake)));
    }

    fn start_survey(&mut self) {
        self.surveying = true;
        let cloud = self.parts.cloud.clone();
        let instance = self.parts.whereabouts.identity.instance_id.clone();
        self.parts.metrics.survey_started();
        self.calls.spawn(async move {
            let call = cloud.describe_interfaces(InterfaceFilter::AttachedTo(instance));
            Done::Survey(executor::bounded("DescribeNetworkInterfaces", call).await)
        });
    }

    fn compare(&mut self) {
        self.comparing = true;
        let cloud = self.parts.cloud.clone();
        self.calls.spawn(async move {
            Done::Metadata(executor::bounded("metadata", cloud.metadata_interfaces()).await)
        });
    }

    fn done(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Step(ended) => {
                let (step, outcome, took) = *ended;
                self.parts.metrics.call_ended(&step, &outcome, took);
                self.parts.pool.settle(&step, outcome, now);
            }
            Done::Survey(Ok(interfaces)) => {
                self.surveying = false;
                self.oriented = true;
                let adoption = Adoption { manage_untagged: self.parts.config.manage_untagged_eni };
                self.parts.pool.survey(&interfaces, adoption, now);
            }
            Done::Survey(Err(error)) => {
                self.surveying = false;
                tracing::warn!(%error, "ENIs of the instance not listed");
                self.parts.pool.survey_failed(&error, now);
                self.oriented = !self.parts.pool.activity.unheard;
            }
            Done::Orphans(answer) => {
                self.looking = false;
                self.parts.pool.settle_orphans(answer, now);
            }
            Done::Metadata(answer) => {
                self.comparing = false;
                let lacking = self.parts.pool.lacks_prefix();
                let period = if lacking { PREFIX_PERIOD } else { METADATA_PERIOD };
                self.compare_at = Instant::now() + period;
                match answer {
                    Ok(interfaces) => self.metadata(&interfaces, now),
                    Err(error) => tracing::warn!(%error, "instance metadata not read"),
                }
                self.sweep();
            }
        }
        self.plan_now();
    }

    fn host_event(&mut self, event: HostEvent) {
        let now = self.now();
        match event {
            HostEvent::Configured { ready, present, problems } => {
                self.parts.pool.links_there(present);
                let slots: Vec<_> = ready.iter().map(|(slot, _)| *slot).collect();
                self.parts.pool.links_ready(&slots, now);
                self.links = ready.into_iter().collect();
                self.parts.pool.link_problems.clone_from(&problems);
                self.host_problems = problems;
            }
            HostEvent::EniUnplugged(mac) => self.parts.pool.link_gone(mac, now),
            HostEvent::PodLinkGone { name } => {
                tracing::debug!(name, "link of a pod has gone");
                self.quarantine();
            }
            HostEvent::Strays(strays) => {
                self.strays = strays;
                self.quarantine();
            }
            // Shown by the metrics, nothing to plan.
            HostEvent::Flushed => return,
            HostEvent::Repaired { kind, what } => {
                tracing::warn!(kind, what, "repaired");
                self.parts.metrics.repaired(&kind);
                *self.repairs.entry(kind).or_default() += 1;
                return;
            }
        }
        self.plan_now();
    }

    /// Releases what both the kernel and the runtime say is gone.
    fn sweep(&mut self) {
        let now = self.now();
        let gone: Vec<_> = self
            .parts
            .pool
            .ledger
            .allocations()
            .filter(|a| !self.held.contains_key(&a.attachment))
            .filter(|a| !self.parts.host.has_link(&a.host_ifname, a.host_ifindex))
            // Where its namespace has gone no plugin can make a pod of it any more.
            .filter(|a| now.since(a.at) >= WIRING_GRACE || netns_gone(a))
            .filter(|a| !self.parts.evidence.runtime_has(&a.attachment))
            .map(|a| a.attachment.clone())
            .collect();
        self.forget_unclaimed();
        for attachment in gone {
            tracing::warn!(container = %attachment.container_id, "pod is gone in kernel and runtime, its address is released");
            self.release(&attachment);
        }
    }

    fn release(&mut self, attachment: &Attachment) -> Option<Allocation> {
        let now = self.now();
        let allocation = self.parts.pool.release(attachment, now)?;
        self.parts.host.forget(&allocation);
        self.resuming.remove(attachment);
        self.leave(&allocation);
        Some(allocation)
    }

    fn wake_at(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(600);
        let deadlines = self.waiters.iter().map(|w| w.deadline);
        let comparison = (!self.comparing).then_some(self.compare_at);
        [self.plan_at, self.storage_at, self.filter_at, comparison]
            .into_iter()
            .flatten()
            .chain(deadlines)
            .chain(self.resuming.values().copied())
            .fold(far, Instant::min)
    }
}

/// Whether the pod's network namespace is gone, and not only out of this daemon's sight.
fn netns_gone(allocation: &Allocation) -> bool {
    let path = &allocation.netns;
    let absent = std::fs::symlink_metadata(path)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    absent && path.parent().is_some_and(std::path::Path::is_dir)
}

#[cfg(test)]
mod tests;
