//! Groups as they last were whole. One that cannot be put together anew stays in force as it was, in this daemon and,
//! by way of [`Kept`], in the next: a failing call or a limit never turns what was allowed into a denial.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use veni_core::id::SecurityGroupId;
use veni_policy::security_group::{GroupPeer, GroupState, ResolvedGroup, SecurityGroups};

use crate::part::Members;

/// What is in force, for a daemon that starts while the cloud does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Kept {
    /// Groups that were resolved, with the members of those that their rules name.
    pub groups: SecurityGroups,
    /// When each was known to be so, seconds since 1970.
    pub read_at_secs: BTreeMap<SecurityGroupId, u64>,
}

/// The groups that once were whole.
#[derive(Debug)]
pub(crate) struct Wholes {
    by_id: BTreeMap<SecurityGroupId, Whole>,
    /// How long one stays that nobody wants.
    keep: Duration,
}

/// A group with all that its rules refer to.
#[derive(Debug, Clone)]
pub(crate) struct Whole {
    pub(crate) group: ResolvedGroup,
    pub(crate) members: BTreeMap<SecurityGroupId, Arc<Members>>,
    /// The age of its oldest part.
    pub(crate) since: Instant,
    /// Known from an earlier daemon, and not read again since.
    pub(crate) former: bool,
    pub(crate) wanted_at: Instant,
}

// === impl Wholes ===

impl Wholes {
    /// Those that an earlier daemon kept.
    pub(crate) fn resume(kept: Kept, keep: Duration) -> Self {
        let now = Instant::now();
        let now_secs = unix_secs();
        let Kept { groups: SecurityGroups { groups, members }, read_at_secs } = kept;
        let members: BTreeMap<SecurityGroupId, Arc<Members>> = members
            .into_iter()
            .map(|(id, addresses)| (id, Arc::new(Members { addresses, ..Members::default() })))
            .collect();
        let resolved = groups.into_iter().filter(|(_, group)| group.state == GroupState::Resolved);
        let by_id = resolved.map(|(id, group)| {
            let read_at = read_at_secs.get(&id).copied().unwrap_or(now_secs);
            let age = Duration::from_secs(now_secs.saturating_sub(read_at));
            let since = now.checked_sub(age).unwrap_or(now);
            let named = referenced(&group).into_iter();
            let members = named.filter_map(|id| Some((id.clone(), Arc::clone(members.get(&id)?))));
            let members = members.collect();
            (id, Whole { group, members, since, former: true, wanted_at: now })
        });
        Self { by_id: by_id.collect(), keep }
    }

    pub(crate) fn get(&self, id: &SecurityGroupId) -> Option<&Whole> {
        self.by_id.get(id)
    }

    pub(crate) fn insert(&mut self, id: SecurityGroupId, whole: Whole) {
        self.by_id.insert(id, whole);
    }

    /// Takes somebody else's word for a group as of `since`: `make` it unless what is here `is` the same.
    pub(crate) fn learn(
        &mut self,
        id: &SecurityGroupId,
        since: Instant,
        is: impl FnOnce(&Whole) -> bool,
        make: impl FnOnce() -> Whole,
    ) {
        match self.by_id.get_mut(id).filter(|whole| is(whole)) {
            Some(whole) => (whole.since, whole.former) = (since, false),
            None => drop(self.by_id.insert(id.clone(), make())),
        }
    }

    /// It does not exist any more.
    pub(crate) fn forget(&mut self, id: &SecurityGroupId) {
        self.by_id.remove(id);
    }

    /// Whether an earlier daemon's word is all there is for one of these.
    pub(crate) fn has_former(&self, ids: &BTreeSet<SecurityGroupId>) -> bool {
        self.by_id.iter().any(|(id, whole)| whole.former && ids.contains(id))
    }

    /// Forgets what nobody has wanted for long.
    pub(crate) fn wanted(&mut self, wanted: &BTreeSet<SecurityGroupId>, now: Instant) {
        let keep = self.keep;
        // Those of an earlier daemon may be wanted late: when the node's pods are known.
        self.by_id.retain(|_, whole| whole.former || now.duration_since(whole.wanted_at) < keep);
        for id in wanted {
            if let Some(whole) = self.by_id.get_mut(id) {
                whole.wanted_at = now;
            }
        }
    }

    /// The members of `id` that a group in force was made of.
    pub(crate) fn members(&self, id: &SecurityGroupId) -> Option<&Members> {
        self.by_id.values().find_map(|whole| whole.members.get(id)).map(Arc::as_ref)
    }

    /// For the next daemon.
    pub(crate) fn kept(&self) -> Kept {
        let mut kept = Kept::default();
        let now_secs = unix_secs();
        for (id, whole) in &self.by_id {
            for (id, members) in &whole.members {
                let of_group = kept.groups.members.entry(id.clone());
                of_group.or_insert_with(|| members.addresses.clone());
            }
            kept.groups.groups.insert(id.clone(), whole.group.clone());
            let age_secs = whole.since.elapsed().as_secs();
            kept.read_at_secs.insert(id.clone(), now_secs.saturating_sub(age_secs));
        }
        kept
    }
}

// === impl Whole ===

impl Whole {
    pub(crate) fn rules(&self) -> usize {
        self.group.ingress.len() + self.group.egress.len()
    }

    /// Brings the group in force, and its members where they are not known better.
    pub(crate) fn publish(&self, groups: &mut SecurityGroups) {
        for (id, members) in &self.members {
            let of_group = groups.members.entry(id.clone());
            of_group.or_insert_with(|| members.addresses.clone());
        }
        groups.groups.insert(self.group.id.clone(), self.group.clone());
    }
}

fn referenced(group: &ResolvedGroup) -> BTreeSet<SecurityGroupId> {
    let rules = group.ingress.iter().chain(&group.egress);
    let peers = rules.filter_map(|rule| match &rule.peer {
        GroupPeer::Group(id) => Some(id.clone()),
        GroupPeer::Cidr(_) => None,
    });
    peers.collect()
}

pub(crate) fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
