//! What a leader's word covers, and for how long.
//!
//! A group is covered while the leader beats and vouches for it. One that it does not publish is waited for a moment and
//! then asked for by the node itself, as are all when the beats end. Nothing is taken away by either: what was in force is
//! kept as whole until another word replaces it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use veni_core::id::SecurityGroupId;
use veni_eniconfig_crd::resolved_security_group::Heartbeat;
use veni_policy::security_group::{GroupState, ResolvedGroup};

use crate::{
    assemble::Assembled,
    part::Members,
    published::{Published, PublishedGroup},
    status::{GroupHealth, Standing},
    whole::{Whole, Wholes},
};

/// How many beats may be missing until there is no leader.
const BEATS: u32 = 3;
/// A beat that was so many intervals old, by the time of day, when it was first seen is of a leader that was.
const OLD: u32 = 10;
/// How long a group that is not published yet is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Over how long nodes that have a group whole ask for it themselves: all of them hear at once that a leader does not vouch
/// for it any more.
const SPREAD: Duration = Duration::from_secs(50);

/// A leader's word.
#[derive(Debug)]
pub(crate) struct Leader {
    published: watch::Receiver<Arc<Published>>,
    /// The last beat, and when it was seen.
    beat: Option<(Heartbeat, Instant)>,
    /// Until when which wanted group that is not published is waited for.
    lacking: BTreeMap<SecurityGroupId, Instant>,
    began: Instant,
    /// 0 to 1023: nodes do not lose their leader in step.
    spread: u32,
    /// Whether there was one.
    led: bool,
}

/// What of the wanted is covered.
#[derive(Debug, Default)]
pub(crate) struct Covered {
    /// By the leader's word.
    pub(crate) groups: BTreeMap<SecurityGroupId, Arc<PublishedGroup>>,
    /// Not yet, and soon.
    awaited: BTreeSet<SecurityGroupId>,
    /// As of when.
    since: Option<Instant>,
    /// When that ends.
    pub(crate) until: Option<Instant>,
}

impl Leader {
    pub(crate) fn new(published: watch::Receiver<Arc<Published>>, seed: u64) -> Self {
        let spread = u32::try_from(seed % 1024).unwrap_or(0);
        let (lacking, began) = (BTreeMap::new(), Instant::now());
        Self { published, beat: None, lacking, began, spread, led: false }
    }

    /// Waits until something else is published; for ever when nothing will be.
    pub(crate) async fn changed(leader: &mut Option<Self>) {
        if let Some(leader) = leader
            && leader.published.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// What is covered of `wanted` now; `unix_secs`: the time of day.
    pub(crate) fn cover(
        &mut self,
        wanted: &BTreeSet<SecurityGroupId>,
        wholes: &Wholes,
        now: Instant,
        unix_secs: u64,
    ) -> Covered {
        let published = self.published.borrow_and_update().clone();
        if self.beat.as_ref().map(|(beat, _)| beat) != published.heartbeat.as_ref() {
            let beat = published.heartbeat.clone();
            self.beat = beat.filter(|beat| !is_old(beat, unix_secs)).map(|beat| (beat, now));
        }
        self.lacking.retain(|id, _| wanted.contains(id));
        if !published.listed {
            let until = self.began + PATIENCE;
            let awaited = if now < until { wanted.clone() } else { BTreeSet::new() };
            return Covered {
                awaited,
                until: (now < until).then_some(until),
                ..Covered::default()
            };
        }
        let ends = self.beat.as_ref().map(|(beat, at)| (*at, *at + self.lasts(beat)));
        let Some((since, end)) = ends.filter(|(_, end)| now < *end) else {
            if std::mem::take(&mut self.led) {
                tracing::warn!(
                    "no leader publishes security groups any more: this node asks EC2 itself"
                );
            }
            self.lacking.clear();
            return Covered::default();
        };
        if !std::mem::replace(&mut self.led, true) {
            tracing::info!(
                "a leader publishes security groups: this node need not ask EC2 for them"
            );
        }
        let mut covered = Covered { since: Some(since), until: Some(end), ..Covered::default() };
        for id in wanted {
            let found = published.groups.get(id);
            if let Some(group) = found.filter(|group| !group.stale) {
                self.lacking.remove(id);
                covered.groups.insert(id.clone(), group.clone());
                continue;
            }
            let patience = match (wholes.get(id), found) {
                (Some(_), _) => PATIENCE + SPREAD * self.spread / 1024,
                (None, None) => PATIENCE,
                // The leader has it, and cannot say what it is: yet, where it was asked for a moment ago. All nodes hear that
                // at once.
                (None, Some(_)) => PATIENCE * self.spread / 1024,
            };
            let until = self.lacking.entry(id.clone()).or_insert(now + patience);
            if wholes.get(id).is_none() && found.is_some() {
                *until = (*until).min(now + patience);
            }
            let until = *until;
            if now < until {
                covered.awaited.insert(id.clone());
                covered.until = covered.until.map(|end| end.min(until));
            }
        }
        covered
    }

    fn lasts(&self, beat: &Heartbeat) -> Duration {
        let every = Duration::from_secs(beat.every_secs.into());
        every * BEATS + every * self.spread / 1024
    }
}

fn is_old(beat: &Heartbeat, unix_secs: u64) -> bool {
    let at = u64::try_from(beat.at_secs).unwrap_or_default();
    unix_secs.abs_diff(at) > u64::from(beat.every_secs) * u64::from(OLD)
}

// === impl Covered ===

impl Covered {
    /// Those that the node has to ask for itself.
    pub(crate) fn own(&self, wanted: &BTreeSet<SecurityGroupId>) -> BTreeSet<SecurityGroupId> {
        let other = |id: &&SecurityGroupId| !self.awaited.contains(*id);
        self.rest(wanted).iter().filter(other).cloned().collect()
    }

    /// Those that are not covered.
    pub(crate) fn rest(&self, wanted: &BTreeSet<SecurityGroupId>) -> BTreeSet<SecurityGroupId> {
        wanted.iter().filter(|id| !self.groups.contains_key(*id)).cloned().collect()
    }

    /// What is covered is what was whole last.
    pub(crate) fn learn(&self, wholes: &mut Wholes, now: Instant) {
        let since = self.since.unwrap_or(now);
        for (id, published) in &self.groups {
            match &published.group {
                Some(group) => wholes.learn(
                    id,
                    since,
                    |is| is_same(is, published),
                    || Whole {
                        group: group.clone(),
                        members: members(published),
                        since,
                        former: false,
                        wanted_at: now,
                    },
                ),
                None => wholes.forget(id),
            }
        }
    }

    /// Brings what is covered in force.
    pub(crate) fn publish(&self, wholes: &Wholes, assembled: &mut Assembled) {
        for id in self.groups.keys() {
            let standing = if let Some(whole) = wholes.get(id) {
                whole.publish(&mut assembled.groups);
                let mut standing = Standing::new(id.clone(), GroupHealth::Fresh);
                standing.since = self.since;
                standing.status.rules = whole.rules();
                standing.status.members = whole.members.values().map(|members| members.len()).sum();
                standing
            } else {
                let reason =
                    format!("{id} does not exist in this account and region, says the controller");
                let mut standing = Standing::new(id.clone(), GroupHealth::Unresolved);
                standing.status.reason = Some(reason.clone());
                let (ingress, egress) = (Vec::new(), Vec::new());
                let state = GroupState::Unresolved { reason };
                let group = ResolvedGroup { id: id.clone(), state, ingress, egress };
                assembled.groups.groups.insert(id.clone(), group);
                standing
            };
            assembled.standings.push(standing);
        }
        assembled.standings.sort_by(|a, b| a.status.id.cmp(&b.status.id));
    }
}

fn is_same(whole: &Whole, published: &PublishedGroup) -> bool {
    Some(&whole.group) == published.group.as_ref()
        && whole.members.len() == published.members.len()
        && whole.members.iter().all(|(id, members)| {
            members.ranges.is_empty() && published.members.get(id) == Some(&members.addresses)
        })
}

fn members(published: &PublishedGroup) -> BTreeMap<SecurityGroupId, Arc<Members>> {
    let members = published.members.iter();
    let whole = |addresses| Members { addresses, ..Members::default() };
    members.map(|(id, addresses)| (id.clone(), Arc::new(whole(addresses.clone())))).collect()
}
