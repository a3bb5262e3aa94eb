//! What was in force stays: over failing calls, limits, short answers, and restarts.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use veni_policy::security_group::GroupState;

/// `sg-web` lets an address range in; whatever else there is, nothing refers to it yet.
fn plain(settings: Settings) -> Place {
    let place = Place::new(&["sg-web", "sg-app"], settings);
    place.sim().set_prefix_list("pl-1".parse().unwrap(), nets(&["192.0.2.0/24"]));
    place.sim().authorize(http("sg-web", cidr("10.9.0.0/16"))).unwrap();
    place.eni(&["sg-app"], 2, 0);
    place
}

#[tokio::test(start_paused = true)]
async fn what_is_new_and_cannot_be_read_leaves_the_group_as_it_was() {
    for (action, peer) in
        [(MEMBERS, group("sg-app")), (LISTS, list("pl-1")), (ENTRIES, list("pl-1"))]
    {
        for fault in
            [Fault::deny(action), Fault::throttle(action, None), Fault::unavailable(action)]
        {
            let mut place = plain(Settings::default());
            place.resolve(&["sg-web"]).await;
            let before = place.snapshots.borrow_and_update().clone();
            let fault = place.sim().inject(fault);
            place.sim().authorize(http("sg-web", peer.clone())).unwrap();
            place.pass(2 * REFRESH).await;
            assert!(!place.snapshots.has_changed().unwrap(), "{action}");
            let status = place.status("sg-web");
            assert_eq!(status.state, GroupHealth::Stale, "{action}");
            assert!(status.reason.unwrap().contains(action), "{action}");
            place.sim().withdraw(fault);
            place.pass(2 * REFRESH).await;
            assert_eq!(place.status("sg-web").state, GroupHealth::Fresh, "{action}");
            assert_ne!(*place.snapshots.borrow(), before, "{action}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_does_not_show_yet_leaves_the_group_as_it_was() {
    let mut place = plain(Settings::default());
    place.resolve(&["sg-web"]).await;
    place.snapshots.borrow_and_update();
    place.spoil(Some(|call| match call {
        Call::DescribePrefixLists(_) => Some(Ok(Answer::PrefixLists(Vec::new()))),
        _ => None,
    }));
    place.sim().authorize(http("sg-web", list("pl-1"))).unwrap();
    place.pass(2 * REFRESH).await;
    assert!(!place.snapshots.has_changed().unwrap());
    assert!(place.status("sg-web").reason.unwrap().starts_with("pl-1 does not exist"));
    place.spoil(None);
    place.pass(REFRESH).await;
    assert_eq!(place.ingress("sg-web").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_grows_beyond_a_limit_stays_as_it_was() {
    let limits = Limits { rules_per_group: 2, members_per_group: 3, ..Limits::default() };
    let more = |place: &Place| drop(place.sim().authorize(http("sg-web", cidr("10.8.0.0/16"))));
    let mut place = plain(Settings { limits: limits.clone(), ..Settings::default() });
    place.resolve(&["sg-web"]).await;
    place.snapshots.borrow_and_update();
    more(&place);
    place.pass(REFRESH).await;
    assert!(!place.snapshots.has_changed().unwrap());
    let status = place.status("sg-web");
    assert_eq!(status.state, GroupHealth::Stale);
    assert!(status.reason.unwrap().contains("more than 2 rules of sg-web"));

    let limits = Limits { rules_per_group: 9, ..limits };
    let mut place = plain(Settings { limits, ..Settings::default() });
    place.sim().authorize(http("sg-web", group("sg-app"))).unwrap();
    place.resolve(&["sg-web"]).await;
    place.snapshots.borrow_and_update();
    place.eni(&["sg-app"], 2, 0);
    place.pass(REFRESH).await;
    assert!(!place.snapshots.has_changed().unwrap());
    assert!(place.status("sg-web").reason.unwrap().contains("more than 3 addresses"));
}

#[tokio::test(start_paused = true)]
async fn groups_in_force_are_not_pushed_out_by_others() {
    let limits = Limits { groups: 1, ..Limits::default() };
    let mut place = Place::new(&["sg-a", "sg-b"], Settings { limits, ..Settings::default() });
    place.resolve(&["sg-b"]).await;
    place.resolve(&["sg-a", "sg-b"]).await;
    place.pass(REFRESH).await;
    assert_eq!(place.status("sg-b").state, GroupHealth::Fresh);
    assert!(place.reason("sg-a").unwrap().contains("more than 1 groups"));
}

#[tokio::test(start_paused = true)]
async fn one_short_answer_takes_no_member_away_and_a_second_does() {
    static SHORT: AtomicU32 = AtomicU32::new(1);
    let mut place = plain(Settings::default());
    place.sim().authorize(http("sg-web", group("sg-app"))).unwrap();
    place.resolve(&["sg-web"]).await;
    assert_eq!(members(&place, "sg-app").len(), 3);
    place.snapshots.borrow_and_update();
    place.spoil(Some(|call| match call {
        Call::DescribeGroupMembers(_) if SHORT.load(Ordering::Relaxed) > 0 => {
            SHORT.fetch_sub(1, Ordering::Relaxed);
            Some(Ok(Answer::GroupMembers(Vec::new())))
        }
        _ => None,
    }));
    let calls = place.calls(MEMBERS);
    place.pass(REFRESH + 6).await;
    assert_eq!(SHORT.load(Ordering::Relaxed), 0);
    assert!(!place.snapshots.has_changed().unwrap());
    assert!(place.calls(MEMBERS) > calls, "asked for once more, within seconds");
    SHORT.store(u32::MAX, Ordering::Relaxed);
    place.pass(REFRESH + 6).await;
    assert_eq!(members(&place, "sg-app").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_next_daemon_starts_from_what_was_in_force() {
    for fault in [
        Fault { action: None, ..Fault::unavailable(RULES) },
        Fault { action: None, ..Fault::delay(RULES, 3_600_000) },
    ] {
        let mut place = web();
        place.eni(&["sg-app"], 2, 0);
        place.resolve(&["sg-web"]).await;
        let before = place.snapshots.borrow().clone();
        let fault = place.sim().inject(fault);
        place.restart();
        let started = place.clock.now();
        place.resolve(&["sg-web"]).await;
        assert!(place.clock.now() - started < Duration::from_millis(50), "EC2 is not waited for");
        assert_eq!(*place.snapshots.borrow(), before);
        let status = place.status("sg-web");
        assert_eq!((status.state, status.rules, status.members), (GroupHealth::Stale, 5, 3));
        assert!(status.reason.is_some() && status.age_secs.is_some());
        place.pass(3_600).await;
        assert_eq!(*place.snapshots.borrow(), before);
        place.sim().withdraw(fault);
        place.pass(2 * REFRESH).await;
        assert_eq!(place.status("sg-web").state, GroupHealth::Fresh);
        assert_eq!(*place.snapshots.borrow(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn what_went_while_no_daemon_ran_denies_once_that_is_sure() {
    let mut place = Place::new(&["sg-a"], Settings::default());
    place.resolve(&["sg-a"]).await;
    place.sim().delete_security_group(&id("sg-a")).unwrap();
    place.restart();
    place.resolve(&["sg-a"]).await;
    assert_eq!(place.reason("sg-a"), None);
    place.pass(6).await;
    assert_eq!(place.reason("sg-a").unwrap(), "sg-a does not exist in this account and region");
    assert_eq!(place.resolver().kept().borrow().groups.groups.len(), 0, "for the next one, too");
}

#[tokio::test(start_paused = true)]
async fn a_group_that_was_never_read_is_pending_while_the_cloud_is_away_and_denies_when_it_refuses()
{
    for (fault, pending) in [
        (Fault::unavailable(RULES), true),
        (Fault::throttle(RULES, None), true),
        (Fault::deny(RULES), false),
    ] {
        let mut place = Place::new(&["sg-a"], Settings::default());
        place.sim().inject(fault);
        place.resolve(&["sg-a"]).await;
        let state = place.group("sg-a").state;
        assert_eq!(matches!(state, GroupState::Pending { .. }), pending, "{state:?}");
        let health = if pending { GroupHealth::Pending } else { GroupHealth::Unresolved };
        assert_eq!(place.status("sg-a").state, health);
    }
}

#[tokio::test(start_paused = true)]
async fn the_words_of_a_failure_are_the_same_each_time() {
    static REQUESTS: AtomicU32 = AtomicU32::new(0);
    let mut place = Place::new(&["sg-a"], Settings::default());
    place.spoil(Some(|call| match call {
        Call::DescribeSecurityGroupRules(_) => {
            let request = REQUESTS.fetch_add(1, Ordering::Relaxed);
            let class = ErrorClass::Denied { action: RULES.to_owned() };
            let words =
                format!("You are not authorized. Encoded authorization failure message: {request}");
            Some(Err(CloudError::new(RULES, class, "UnauthorizedOperation", words)))
        }
        _ => None,
    }));
    place.resolve(&["sg-a"]).await;
    place.snapshots.borrow_and_update();
    place.pass(600).await;
    assert!(REQUESTS.load(Ordering::Relaxed) > 3);
    assert!(!place.snapshots.has_changed().unwrap());
    assert!(place.reason("sg-a").unwrap().contains("You are not authorized)"));
}
