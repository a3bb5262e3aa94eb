//! The resolver of a node: a handle, and the task that asks the cloud.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    load::Loader,
    part::{Part, Parts},
    settings::Settings,
    status::{GroupStatus, Standing},
};

/// Resolves groups by asking the cloud. Cheap to clone; its [`Driver`] does the work.
#[derive(Debug, Clone)]
pub struct Resolver {
    wanted: watch::Sender<BTreeSet<SecurityGroupId>>,
    snapshots: watch::Receiver<Snapshot>,
    standings: Arc<Mutex<Vec<Standing>>>,
}

/// The task of a [`Resolver`]: whoever makes one spawns [`Driver::run`].
#[derive(Debug)]
pub struct Driver<C> {
    loader: Loader<C>,
    settings: Settings,
    parts: Parts,
    wanted: watch::Receiver<BTreeSet<SecurityGroupId>>,
    snapshots: watch::Sender<Snapshot>,
    standings: Arc<Mutex<Vec<Standing>>>,
    /// When all that is wanted is asked for anew.
    refresh_at: Instant,
}

// === impl Resolver ===

impl Resolver {
    /// A resolver over `cloud`, which wants nothing yet. Nothing happens before its driver runs.
    #[must_use]
    pub fn new<C: Cloud>(cloud: Arc<C>, settings: Settings) -> (Self, Driver<C>) {
        let (wanted, wants) = watch::channel(BTreeSet::new());
        let (publisher, snapshots) = watch::channel(Snapshot::default());
        let standings = Arc::default();
        let driver = Driver {
            loader: Loader::new(cloud, settings.clone()),
            settings,
            parts: Parts::default(),
            wanted: wants,
            snapshots: publisher,
            standings: Arc::clone(&standings),
            refresh_at: Instant::now(),
        };
        (Self { wanted, snapshots, standings }, driver)
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
        let (inside, _) = within_limit(wanted, &self.settings.limits);
        let shelves = self.loader.memory.clone();
        retain(&mut self.parts.rules, inside, &shelves.rules).await;
        self.loader.rules(&mut self.parts.rules, everything).await;
        let (groups, lists) = referenced(&self.parts);
        retain(&mut self.parts.members, groups, &shelves.members).await;
        self.loader.members(&mut self.parts.members, everything).await;
        retain(&mut self.parts.lists, lists, &shelves.lists).await;
        self.loader.lists(&mut self.parts.lists, everything).await;
        self.publish(wanted);
    }

    fn publish(&self, wanted: &BTreeSet<SecurityGroupId>) {
        let Assembled { groups, standings } = assemble(wanted, &self.parts, &self.settings.limits);
        self.tell(&standings);
        *lock(&self.standings) = standings;
        self.snapshots.send_if_modified(|published| {
            let changed = **published != groups;
            if changed {
                *published = Arc::new(groups);
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
            match (&status.reason, &status.last_error) {
                (Some(reason), _) => {
                    tracing::warn!(group = %status.id, reason, "a security group denies: it is not resolved");
                }
                (None, Some(error)) => {
                    tracing::warn!(group = %status.id, error, "a security group stays as it was: it cannot be refreshed");
                }
                (None, None) => {
                    tracing::info!(group = %status.id, rules = status.rules, members = status.members, notes = ?status.notes, "a security group is in force");
                }
            }
        }
    }

    /// When there is something to ask without a change of wants; `None` while nothing is wanted.
    fn next_wake(&self) -> Option<Instant> {
        let Parts { rules, members, lists } = &self.parts;
        if rules.is_empty() {
            return None;
        }
        let retries = retries(rules).chain(retries(members)).chain(retries(lists));
        Some(retries.fold(self.refresh_at, Instant::min))
    }
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn retries<K, T>(parts: &BTreeMap<K, Part<T>>) -> impl Iterator<Item = Instant> {
    parts.values().filter_map(|part| part.failure.as_ref()?.retry)
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
