//! What is to be written of the security groups that were resolved: pure.
//!
//! Invariants: what is published as not stale is what the leader read itself, in this term, at most [`VOUCHED`] ago. A group
//! that it cannot read stays published as it was, marked as stale; only EC2's word that it is gone makes it gone. One that it
//! never could read is published as stale and without content: nodes need not wait for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use veni_core::id::SecurityGroupId;
use veni_eniconfig_crd::resolved_security_group::ResolvedSecurityGroupSpec;
use veni_policy::security_group::{GroupPeer, GroupState, ResolvedGroup, SecurityGroups};
use veni_security_groups::{
    GroupHealth, GroupStatus,
    published::{Board, PublishedGroup, split},
};

/// How old what the leader read may be before it does not vouch for it any more. Shorter, and one throttled call would send
/// every node to EC2.
pub const VOUCHED: Duration = Duration::from_secs(300);

/// Objects by name.
pub type Objects = BTreeMap<String, ResolvedSecurityGroupSpec>;

/// The objects that there are to be, given those that there are.
#[must_use]
pub fn desired(
    wanted: &BTreeSet<SecurityGroupId>,
    snapshot: &SecurityGroups,
    statuses: &[GroupStatus],
    existing: &Objects,
) -> Objects {
    let mut board = Board::default();
    for (name, spec) in existing {
        board.apply(name, spec.clone());
    }
    let before = &board.published().groups;
    let statuses: BTreeMap<_, _> = statuses.iter().map(|status| (&status.id, status)).collect();
    let mut groups = BTreeMap::new();
    for id in wanted {
        let resolved = snapshot.groups.get(id);
        let published = match (statuses.get(id), resolved) {
            (Some(status), _) if status.gone => {
                Some(PublishedGroup { group: None, members: BTreeMap::new(), stale: false })
            }
            (Some(status), Some(group)) if group.state == GroupState::Resolved => {
                Some(whole(group, snapshot, is_stale(status)))
            }
            (status, _) => {
                let before = before.get(id).map(|before| Arc::unwrap_or_clone(before.clone()));
                let unread =
                    || PublishedGroup { group: None, members: BTreeMap::new(), stale: true };
                let failed = status.is_some_and(|status| has_failed(status));
                let before = before.or_else(|| failed.then(unread));
                before.map(|before| PublishedGroup { stale: true, ..before })
            }
        };
        groups.extend(published.map(|published| (id.clone(), published)));
    }
    split(&groups, existing)
}

/// What of the groups' standing decides what is written, beside their content: who is gone, who is stale, who could not be
/// read.
#[must_use]
pub fn marks(statuses: &[GroupStatus]) -> BTreeSet<(SecurityGroupId, bool, bool, bool)> {
    let marks = |status: &GroupStatus| {
        (status.id.clone(), status.gone, is_stale(status), has_failed(status))
    };
    statuses.iter().map(marks).collect()
}

/// It was asked for, and not answered; before that nothing is known of it.
const fn has_failed(status: &GroupStatus) -> bool {
    status.reason.is_some() || status.last_error.is_some()
}

fn is_stale(status: &GroupStatus) -> bool {
    let old = status.age_secs.is_none_or(|age| age > VOUCHED.as_secs());
    status.state != GroupHealth::Fresh && old
}

fn whole(group: &ResolvedGroup, snapshot: &SecurityGroups, stale: bool) -> PublishedGroup {
    let peers = group.ingress.iter().chain(&group.egress).filter_map(|rule| match &rule.peer {
        GroupPeer::Group(id) => Some(id),
        GroupPeer::Cidr(_) => None,
    });
    let members = peers.filter_map(|id| Some((id.clone(), snapshot.members.get(id)?.clone())));
    PublishedGroup { group: Some(group.clone()), members: members.collect(), stale }
}

/// The groups that an annotation or a SecurityGroupPolicy names; what is no id is passed over.
#[must_use]
pub fn ids<'a>(texts: impl IntoIterator<Item = &'a str>) -> BTreeSet<SecurityGroupId> {
    texts.into_iter().filter_map(|text| text.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> SecurityGroupId {
        id.parse().unwrap()
    }

    fn status(of: &str, state: GroupHealth, age_secs: Option<u64>, gone: bool) -> GroupStatus {
        GroupStatus {
            id: id(of),
            state,
            reason: None,
            age_secs,
            last_error: None,
            rules: 0,
            members: 0,
            notes: Vec::new(),
            gone,
        }
    }

    fn snapshot(state: GroupState) -> SecurityGroups {
        let group =
            ResolvedGroup { id: id("sg-1"), state, ingress: Vec::new(), egress: Vec::new() };
        SecurityGroups { groups: [(id("sg-1"), group)].into(), members: BTreeMap::new() }
    }

    /// What becomes of `sg-1`, which was published before: whether it exists, whether it is stale.
    fn check(status: GroupStatus, state: GroupState, expect: Option<(bool, bool)>) {
        let wanted = [id("sg-1")].into();
        let fresh = status_fresh();
        let existing = desired(&wanted, &snapshot(GroupState::Resolved), &[fresh], &Objects::new());
        for (existing, expect) in
            [(existing, expect.or(Some((true, true)))), (Objects::new(), expect)]
        {
            let words = format!("{status:?}");
            let objects = desired(
                &wanted,
                &snapshot(state.clone()),
                std::slice::from_ref(&status),
                &existing,
            );
            let mut board = Board::default();
            for (name, spec) in objects {
                board.apply(&name, spec);
            }
            let published = board.published();
            let found = published.groups.get(&id("sg-1"));
            assert_eq!(found.map(|it| (it.group.is_some(), it.stale)), expect, "{words}");
        }
    }

    fn status_fresh() -> GroupStatus {
        status("sg-1", GroupHealth::Fresh, Some(0), false)
    }

    #[test]
    fn what_was_read_is_vouched_for_what_could_not_be_read_is_marked_and_only_what_is_gone_goes() {
        use GroupHealth::{Fresh, Pending, Stale, Unresolved};
        let reason = || "denied".to_owned();
        let whole = || GroupState::Resolved;
        check(status_fresh(), whole(), Some((true, false)));
        check(status("sg-1", Fresh, Some(500), false), whole(), Some((true, false)));
        check(status("sg-1", Stale, Some(300), false), whole(), Some((true, false)));
        check(status("sg-1", Stale, Some(301), false), whole(), Some((true, true)));
        let denied = GroupState::Unresolved { reason: reason() };
        check(status("sg-1", Unresolved, None, false), denied.clone(), None);
        check(status("sg-1", Pending, None, false), GroupState::Pending { reason: reason() }, None);
        check(status("sg-1", Unresolved, None, true), denied, Some((false, false)));
    }

    /// Not what was not asked for yet: all nodes would ask for it.
    #[test]
    fn what_was_never_read_is_published_as_that_once_reading_it_has_failed() {
        check(status("sg-1", GroupHealth::Pending, None, false), pending(), None);
        for state in [GroupHealth::Pending, GroupHealth::Unresolved] {
            let failed =
                GroupStatus { reason: Some("denied".into()), ..status("sg-1", state, None, false) };
            let wanted = [id("sg-1")].into();
            let objects = desired(&wanted, &snapshot(pending()), &[failed], &Objects::new());
            let mut board = Board::default();
            for (name, spec) in objects {
                board.apply(&name, spec);
            }
            let published = board.published();
            let found = published.groups.get(&id("sg-1"));
            assert!(found.is_some_and(|it| it.group.is_none() && it.stale), "{published:?}");
        }
    }

    fn pending() -> GroupState {
        GroupState::Pending { reason: "denied".to_owned() }
    }

    #[test]
    fn what_nobody_names_is_not_published() {
        let fresh = [status_fresh()];
        let wanted = [id("sg-1")].into();
        let existing = desired(&wanted, &snapshot(GroupState::Resolved), &fresh, &Objects::new());
        assert_eq!(existing.len(), 1);
        let none = BTreeSet::new();
        assert!(desired(&none, &snapshot(GroupState::Resolved), &fresh, &existing).is_empty());
    }

    #[test]
    fn names_that_are_no_ids_are_passed_over() {
        assert_eq!(ids("sg-1, nonsense,sg-2 ,".split(',')), [id("sg-1"), id("sg-2")].into());
    }
}
