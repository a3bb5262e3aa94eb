//! The resolver of a node: a handle, and the task that asks the cloud.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    select,
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use veni_core::id::{PrefixListId, SecurityGroupId};
use veni_provider::{Cloud, RulePeer};

use crate::{
    SecurityGroups, Snapshot,
    assemble::{Assembled, assemble, invisible, within_limit},
    cache::Shelf,
    leader::{Covered, Leader},
    load::Loader,
    part::{Part, Parts},
    published::Published,
    settings::Settings,
    status::{GroupHealth, GroupStatus, Standing},
    whole::{Kept, Wholes, unix_secs},
};

/// Resolves groups by asking the cloud. Cheap to clone; its [`Driver`] does the work.
#[derive(Debug, Clone)]
pub struct Resolver {
    wanted: watch::Sender<BTreeSet<SecurityGroupId>>,
    snapshots: watch::Receiver<Snapshot>,
    kept: watch::Receiver<Arc<Kept>>,
    standings: Arc<Mutex<Vec<Standing>>>,
}

/// The task of a [`Resolver`]: whoever makes one spawns [`Driver::run`].
#[derive(Debug)]
pub struct Driver<C> {
    loader: Loader<C>,
    settings: Settings,
    parts: Parts,
    wholes: Wholes,
    wanted: watch::Receiver<BTreeSet<SecurityGroupId>>,
    snapshots: watch::Sender<Snapshot>,
    kept: watch::Sender<Arc<Kept>>,
    standings: Arc<Mutex<Vec<Standing>>>,
    /// When all that is wanted is asked for anew.
    refresh_at: Instant,
    /// How what a leader publishes begins to be followed, with the first group that is wanted.
    begins: Option<Begin>,
    leader: Option<Leader>,
    /// What the leader's word covers.
    covered: Covered,
}

struct Begin(Box<dyn FnOnce() -> watch::Receiver<Arc<Published>> + Send>);

impl fmt::Debug for Begin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Begin")
    }
}

// === impl Resolver ===

impl Resolver {
    /// A resolver over `cloud`, which wants nothing yet. Nothing happens before its driver runs.
    #[must_use]
    pub fn new<C: Cloud>(cloud: Arc<C>, settings: Settings) -> (Self, Driver<C>) {
        Self::resume(cloud, settings, Kept::default())
    }

    /// As [`Resolver::new`], after a daemon that left `kept`: those groups are in force, as stale ones, from the moment
    /// in which they are wanted until they are read.
    #[must_use]
    pub fn resume<C: Cloud>(cloud: Arc<C>, settings: Settings, kept: Kept) -> (Self, Driver<C>) {
        let wholes = Wholes::resume(kept.clone(), Duration::from_secs(settings.cache_secs));
        let (keeper, kept) = watch::channel(Arc::new(kept));
        let (wanted, wants) = watch::channel(BTreeSet::new());
        let (publisher, snapshots) = watch::channel(Snapshot::default());
        let standings = Arc::default();
        let driver = Driver {
            loader: Loader::new(cloud, settings.clone()),
            settings,
            parts: Parts::default(),
            wholes,
            wanted: wants,
            snapshots: publisher,
            kept: keeper,
            standings: Arc::clone(&standings),
            refresh_at: Instant::now(),
            begins: None,
            leader: None,
            covered: Covered::default(),
        };
        (Self { wanted, snapshots, kept, standings }, driver)
    }

    /// What the next daemon is to start from. The receiver sees a change whenever another should be kept.
    #[must_use]
    pub fn kept(&self) -> watch::Receiver<Arc<Kept>> {
        self.kept.clone()
    }
}

impl SecurityGroups for Resolver {
    fn want(&self, groups: BTreeSet<SecurityGroupId>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != groups;
            *wanted = groups;
            changed
        });
    }

    fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.snapshots.clone()
    }

    fn status(&self) -> Vec<GroupStatus> {
        let now = Instant::now();
        lock(&self.standings).iter().map(|standing| standing.at(now)).collect()
    }
}

fn lock(standings: &Mutex<Vec<Standing>>) -> MutexGuard<'_, Vec<Standing>> {
    standings.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Driver ===

impl<C: Cloud> Driver<C> {
    /// From now on the cloud is asked only for what no leader publishes. `follow` is called once, when the first group is
    /// wanted: most nodes want none, and what is published is sent to all that follow it.
    #[must_use]
    pub fn led_by(
        self,
        follow: impl FnOnce() -> watch::Receiver<Arc<Published>> + Send + 'static,
    ) -> Self {
        Self { begins: Some(Begin(Box::new(follow))), ..self }
    }

    /// Works until every [`Resolver`] of it is dropped.
    pub async fn run(mut self) {
        loop {
            let wake = self.next_wake();
            select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // A node that starts wants group after group: one question for all of them.
                    sleep(self.settings.gather()).await;
                }
                () = Leader::changed(&mut self.leader) => {}
                () = wait(wake) => {}
            }
            let wanted = self.wanted.borrow_and_update().clone();
            self.round(&wanted).await;
        }
    }

    /// Asks for what is new or due, and publishes.
    async fn round(&mut self, wanted: &BTreeSet<SecurityGroupId>) {
        let now = Instant::now();
        let everything = now >= self.refresh_at;
        if everything {
            self.refresh_at = now + self.loader.jitter.around(self.settings.refresh());
        }
        self.wholes.wanted(wanted, now);
        if let Some(Begin(follow)) = self.begins.take_if(|_| !wanted.is_empty()) {
            self.leader = Some(Leader::new(follow(), self.settings.seed));
        }
        if let Some(leader) = &mut self.leader {
            self.covered = leader.cover(wanted, &self.wholes, now, unix_secs());
            self.covered.learn(&mut self.wholes, now);
        }
        if self.wholes.has_former(wanted) || !self.covered.groups.is_empty() {
            // Before the cloud is asked: it may not answer.
            self.publish(wanted);
        }
        let own = self.covered.own(wanted);
        let (inside, _) = within_limit(&own, &self.wholes, &self.settings.limits);
        let shelves = self.loader.memory.clone();
        retain(&mut self.parts.rules, inside, &shelves.rules).await;
        self.loader.rules(&mut self.parts.rules, everything).await;
        // What is whole by now does not wait for what others refer to.
        self.publish(wanted);
        let (groups, lists) = referenced(&self.parts);
        retain(&mut self.parts.members, groups, &shelves.members).await;
        self.loader.members(&mut self.parts.members, &self.wholes, everything).await;
        self.publish(wanted);
        retain(&mut self.parts.lists, lists, &shelves.lists).await;
        self.loader.lists(&mut self.parts.lists, everything).await;
        self.publish(wanted);
    }

    fn publish(&mut self, wanted: &BTreeSet<SecurityGroupId>) {
        let Self { parts, wholes, settings, covered, .. } = self;
        let mut assembled = assemble(&covered.rest(wanted), parts, wholes, &settings.limits);
        covered.publish(wholes, &mut assembled);
        let Assembled { groups, standings } = assembled;
        self.tell(&standings);
        *lock(&self.standings) = standings;
        self.snapshots.send_if_modified(|published| {
            let changed = **published != groups;
            if changed {
                *published = Arc::new(groups);
            }
            changed
        });
        let now = self.wholes.kept();
        self.kept.send_if_modified(|kept| {
            // The time alone is not worth a write: it is told as older than it is.
            let changed = kept.groups != now.groups;
            if changed {
                *kept = Arc::new(now);
            }
            changed
        });
    }

    /// Logs what has changed for the worse or the better.
    fn tell(&self, standings: &[Standing]) {
        let before: BTreeMap<_, _> = lock(&self.standings)
            .iter()
            .map(|s| (s.status.id.clone(), (s.status.state, s.status.reason.clone())))
            .collect();
        for Standing { status, .. } in standings {
            let now = (status.state, status.reason.clone());
            if before.get(&status.id) == Some(&now) {
                continue;
            }
            let reason = status.reason.as_ref().or(status.last_error.as_ref());
            match status.state {
                GroupHealth::Unresolved => {
                    tracing::warn!(group = %status.id, reason, "a security group denies: it is not resolved");
                }
                GroupHealth::Pending if reason.is_some() => {
                    tracing::warn!(group = %status.id, reason, "a security group is not read yet: its pods keep what they had, new ones stay closed");
                }
                GroupHealth::Stale => {
                    tracing::warn!(group = %status.id, reason, "a security group stays as it was: it cannot be refreshed");
                }
                GroupHealth::Pending => {}
                GroupHealth::Fresh => {
                    tracing::info!(group = %status.id, rules = status.rules, members = status.members, notes = ?status.notes, "a security group is in force");
                }
            }
        }
    }

    /// When there is something to ask without a change of wants; `None` while nothing is wanted.
    fn next_wake(&self) -> Option<Instant> {
        let Parts { rules, members, lists } = &self.parts;
        if rules.is_empty() {
            return self.covered.until;
        }
        let retries = retries(rules).chain(retries(members)).chain(retries(lists));
        Some(retries.chain(self.covered.until).fold(self.refresh_at, Instant::min))
    }
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn retries<K, T>(parts: &BTreeMap<K, Part<T>>) -> impl Iterator<Item = Instant> {
    parts.values().filter_map(Part::wakes_at)
}

/// Makes `parts` those of `ids`: new ones as they are remembered.
async fn retain<K, T>(parts: &mut BTreeMap<K, Part<T>>, ids: BTreeSet<K>, shelf: &Shelf<K, T>)
where
    K: std::hash::Hash + Ord + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
{
    parts.retain(|id, _| ids.contains(id));
    let now = Instant::now();
    for id in ids {
        if let Entry::Vacant(new) = parts.entry(id) {
            let part = shelf.part(new.key(), now).await;
            new.insert(part);
        }
    }
}

/// What the rules refer to and can be seen: groups and prefix lists.
fn referenced(parts: &Parts) -> (BTreeSet<SecurityGroupId>, BTreeSet<PrefixListId>) {
    let (mut groups, mut lists) = (BTreeSet::new(), BTreeSet::new());
    for rule in parts.rules.values().filter_map(Part::value).flat_map(|rules| rules.iter()) {
        match &rule.peer {
            RulePeer::Group(group) if invisible(group).is_none() => {
                groups.insert(group.id.clone());
            }
            RulePeer::PrefixList(list) => {
                lists.insert(list.clone());
            }
            _ => {}
        }
    }
    (groups, lists)
}
