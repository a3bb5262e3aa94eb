//! A leader publishes, dies, comes back: what is in force does not move, and EC2 is asked only where there is nobody else.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;
use veni_eniconfig_crd::resolved_security_group::Heartbeat;
use veni_policy::security_group::{GroupPeer, GroupState, ResolvedGroup};
use veni_security_groups::published::{Published, PublishedGroup};

use super::*;

/// What a leader writes.
struct Leader(watch::Sender<Arc<Published>>);

impl Leader {
    /// It has listed nothing yet.
    fn new() -> Self {
        Self(watch::Sender::new(Arc::default()))
    }

    fn change(&self, change: impl FnOnce(&mut Published)) {
        self.0.send_modify(|published| {
            let published = Arc::make_mut(published);
            published.listed = true;
            change(published);
        });
    }

    /// The next beat, of so many seconds ago.
    fn beat(&self, ago: i64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let at_secs = i64::try_from(now).unwrap() - ago;
        self.change(|published| {
            let number = published.heartbeat.as_ref().map_or(0, |beat| {
                beat.leader.trim_start_matches("leader-").parse::<u32>().unwrap() + 1
            });
            let leader = format!("leader-{number}");
            published.heartbeat = Some(Heartbeat { leader, at_secs, every_secs: 60 });
        });
    }

    fn publish(&self, group: &str, published: PublishedGroup) {
        self.change(|all| drop(all.groups.insert(id(group), Arc::new(published))));
    }

    /// `sg-web` lets `net` in, and the one member of `sg-app`.
    fn web(&self, net: &str) {
        let rule = |peer| GroupRule {
            id: "sgr-1".into(),
            protocol: GroupProtocol::Any,
            first: 0,
            last: u16::MAX,
            peer,
        };
        let ingress =
            vec![rule(GroupPeer::Cidr(net.parse().unwrap())), rule(GroupPeer::Group(id("sg-app")))];
        let state = GroupState::Resolved;
        let group = ResolvedGroup { id: id("sg-web"), state, ingress, egress: Vec::new() };
        let members = [(id("sg-app"), ["10.0.9.9".parse().unwrap()].into())].into();
        self.publish("sg-web", PublishedGroup { group: Some(group), members, stale: false });
    }
}

impl Place {
    /// As [`web`], with what a leader publishes.
    fn led(leader: &Leader) -> Self {
        let mut place = web();
        place.restart_led(&leader.0);
        place.sim().reset_calls();
        place
    }

    fn ec2(&self) -> u64 {
        [RULES, GROUPS, MEMBERS, LISTS, ENTRIES].iter().map(|action| self.calls(action)).sum()
    }
}

/// Most nodes have no pod with groups, and what is published is sent to all that follow it.
#[tokio::test(start_paused = true)]
async fn what_is_published_is_followed_from_the_first_group_that_is_wanted() {
    let leader = Leader::new();
    let mut place = Place::led(&leader);
    leader.web("10.7.0.0/16");
    leader.beat(0);
    place.pass(120).await;
    assert_eq!(leader.0.receiver_count(), 0);
    place.resolve(&["sg-web"]).await;
    assert_eq!((leader.0.receiver_count(), place.ec2()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn while_a_leader_beats_nobody_else_asks_ec2() {
    let leader = Leader::new();
    let mut place = Place::led(&leader);
    leader.web("10.7.0.0/16");
    leader.beat(0);
    place.resolve(&["sg-web"]).await;
    assert_eq!(peers(&place.ingress("sg-web")), ["Cidr(10.7.0.0/16)", "Group(sg-app)"]);
    assert_eq!(members(&place, "sg-app"), ["10.0.9.9".parse().unwrap()].into());
    for _ in 0..30 {
        place.pass(60).await;
        leader.beat(0);
    }
    let status = place.status("sg-web");
    assert_eq!((status.state, status.rules, status.members), (GroupHealth::Fresh, 2, 1));
    assert!(status.age_secs.unwrap() <= 60, "{status:?}");
    // What the leader finds out is in force at once.
    leader.web("10.8.0.0/16");
    place.pass(1).await;
    assert_eq!(peers(&place.ingress("sg-web")), ["Cidr(10.8.0.0/16)", "Group(sg-app)"]);
    assert_eq!(place.ec2(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_beats_the_node_asks_itself_and_until_it_is_answered_nothing_moves() {
    let leader = Leader::new();
    let mut place = Place::led(&leader);
    leader.web("10.7.0.0/16");
    leader.beat(0);
    place.resolve(&["sg-web"]).await;
    let before = place.snapshots.borrow_and_update().clone();
    let faults = [RULES, MEMBERS, LISTS].map(|action| place.sim().inject(Fault::deny(action)));
    place.pass(170).await;
    assert_eq!(place.ec2(), 0, "a beat or two may be late");
    place.pass(600).await;
    assert!(place.ec2() > 0);
    assert_eq!(*place.snapshots.borrow(), before, "denied: as it was, neither open nor closed");
    let status = place.status("sg-web");
    assert_eq!(status.state, GroupHealth::Stale);
    assert!(status.age_secs.unwrap() > 600, "{status:?}");
    for fault in faults {
        place.sim().withdraw(fault);
    }
    place.pass(2 * REFRESH).await;
    assert_eq!(place.status("sg-web").state, GroupHealth::Fresh);
    assert!(peers(&place.ingress("sg-web")).contains(&"Cidr(10.9.0.0/16)".to_owned()));
    // It comes back.
    leader.beat(0);
    place.pass(1).await;
    assert_eq!(peers(&place.ingress("sg-web")), ["Cidr(10.7.0.0/16)", "Group(sg-app)"]);
    let calls = place.ec2();
    place.pass(120).await;
    assert_eq!(place.ec2(), calls);
}

#[tokio::test(start_paused = true)]
async fn what_the_leader_does_not_publish_or_vouch_for_is_asked_for_after_a_moment() {
    let leader = Leader::new();
    let place = Place::led(&leader);
    leader.beat(0);
    place.resolver().want(ids(&["sg-web"]));
    place.pass(9).await;
    assert_eq!(place.ec2(), 0);
    assert_eq!(place.status("sg-web").state, GroupHealth::Pending);
    place.pass(2).await;
    assert!(peers(&place.ingress("sg-web")).contains(&"Cidr(10.9.0.0/16)".to_owned()));
    leader.web("10.7.0.0/16");
    place.pass(1).await;
    assert_eq!(peers(&place.ingress("sg-web")), ["Cidr(10.7.0.0/16)", "Group(sg-app)"]);
    let before = place.ec2();
    leader.change(|all| {
        let group = all.groups.get_mut(&id("sg-web")).unwrap();
        Arc::make_mut(group).stale = true;
    });
    place.pass(9).await;
    assert_eq!(place.ec2(), before);
    assert_eq!(peers(&place.ingress("sg-web")), ["Cidr(10.7.0.0/16)", "Group(sg-app)"]);
    place.pass(2).await;
    // As the node read it a moment ago: that is still fresh.
    assert!(peers(&place.ingress("sg-web")).contains(&"Cidr(10.9.0.0/16)".to_owned()));
    place.pass(REFRESH).await;
    assert!(place.ec2() > before);
}

/// The leader is denied: its word that it cannot read a group is no reason to wait for it.
#[tokio::test(start_paused = true)]
async fn what_the_leader_cannot_read_is_asked_for_at_once() {
    let leader = Leader::new();
    let place = Place::led(&leader);
    leader.publish("sg-web", PublishedGroup { group: None, members: BTreeMap::new(), stale: true });
    leader.beat(0);
    place.resolver().want(ids(&["sg-web"]));
    place.pass(2).await;
    assert!(peers(&place.ingress("sg-web")).contains(&"Cidr(10.9.0.0/16)".to_owned()));
}

/// It may be a question that was not answered yet, and all nodes hear of it in the same second.
#[tokio::test(start_paused = true)]
async fn nodes_do_not_ask_in_step_for_what_the_leader_cannot_read() {
    let mut when = BTreeSet::new();
    for seed in [0, 300, 600, 900] {
        let leader = Leader::new();
        let mut place = Place::led(&leader);
        place.restart_led_as(&leader.0, Settings { seed, ..Settings::default() });
        let unread = PublishedGroup { group: None, members: BTreeMap::new(), stale: true };
        leader.publish("sg-web", unread);
        leader.beat(0);
        place.resolver().want(ids(&["sg-web"]));
        let mut passed = 0;
        while place.ec2() == 0 && passed < 20 {
            place.pass(1).await;
            passed += 1;
        }
        when.insert(passed);
    }
    assert!(when.len() == 4 && when.iter().all(|at| (1..=13).contains(at)), "{when:?}");
}

/// 5,000 nodes hear of it in the same second.
#[tokio::test(start_paused = true)]
async fn nodes_that_have_a_group_do_not_ask_for_it_in_step() {
    let mut when = BTreeSet::new();
    for seed in [1, 300, 600, 900] {
        let leader = Leader::new();
        let mut place = Place::led(&leader);
        place.restart_led_as(&leader.0, Settings { seed, ..Settings::default() });
        leader.web("10.7.0.0/16");
        leader.beat(0);
        place.resolve(&["sg-web"]).await;
        place.sim().reset_calls();
        leader.change(|all| {
            let group = all.groups.get_mut(&id("sg-web")).unwrap();
            Arc::make_mut(group).stale = true;
        });
        let mut passed = 0;
        while place.ec2() == 0 && passed < 70 {
            place.pass(1).await;
            passed += 1;
        }
        when.insert(passed);
    }
    assert!(when.len() == 4 && when.iter().all(|at| (10..=62).contains(at)), "{when:?}");
}

#[tokio::test(start_paused = true)]
async fn a_group_that_is_gone_denies_on_the_leaders_word_too() {
    let leader = Leader::new();
    let mut place = Place::led(&leader);
    leader.web("10.7.0.0/16");
    leader.beat(0);
    place.resolve(&["sg-web"]).await;
    let gone = PublishedGroup { group: None, members: BTreeMap::new(), stale: false };
    leader.publish("sg-web", gone);
    place.pass(1).await;
    assert!(place.reason("sg-web").unwrap().contains("does not exist"));
    assert_eq!(place.status("sg-web").state, GroupHealth::Unresolved);
    assert_eq!((place.ingress("sg-web"), place.ec2()), (Vec::new(), 0));
}

#[tokio::test(start_paused = true)]
async fn a_beat_of_long_ago_is_no_leaders() {
    let leader = Leader::new();
    let mut place = Place::led(&leader);
    leader.web("10.7.0.0/16");
    leader.beat(3_600);
    place.resolve(&["sg-web"]).await;
    assert!(place.ec2() > 0);
    assert!(peers(&place.ingress("sg-web")).contains(&"Cidr(10.9.0.0/16)".to_owned()));
}

/// Without an API server, or the definition, nothing is ever listed.
#[tokio::test(start_paused = true)]
async fn objects_that_cannot_be_read_are_waited_for_a_moment_and_no_longer() {
    let leader = Leader::new();
    let place = Place::led(&leader);
    place.resolver().want(ids(&["sg-web"]));
    place.pass(9).await;
    assert_eq!(place.ec2(), 0);
    place.pass(2).await;
    assert_eq!(place.status("sg-web").state, GroupHealth::Fresh);
    drop(leader);
    place.pass(600).await;
    assert_eq!(place.status("sg-web").state, GroupHealth::Fresh);
}

#[tokio::test(start_paused = true)]
async fn what_a_leader_said_is_kept_over_a_restart_without_it() {
    let leader = Leader::new();
    let mut place = Place::led(&leader);
    leader.web("10.7.0.0/16");
    leader.beat(0);
    place.resolve(&["sg-web"]).await;
    place.sim().inject(Fault::unavailable(RULES));
    place.restart();
    place.resolve(&["sg-web"]).await;
    assert_eq!(peers(&place.ingress("sg-web")), ["Cidr(10.7.0.0/16)", "Group(sg-app)"]);
    assert_eq!(place.status("sg-web").state, GroupHealth::Stale);
}
