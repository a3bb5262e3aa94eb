//! The resolver over the simulator, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test says what it needs by failing")]

#[path = "common/cloud.rs"]
mod cloud;
#[path = "common/keeping.rs"]
mod keeping;
#[path = "common/led.rs"]
mod led;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tokio::time::timeout;
use veni_policy::security_group::{GroupPeer, GroupProtocol, GroupRule};
use veni_provider::{
    CloudError, ErrorClass, GroupReference, RulePeer, RuleTraffic,
    call::{Answer, Call},
    sim::{Fault, RuleSpec, Timer},
};
use veni_security_groups::{GroupHealth, Limits, SecurityGroups, Settings, answered};

use crate::cloud::{Place, caller, cidr, group, http, id, ids, list, reference};

const RULES: &str = "DescribeSecurityGroupRules";
const GROUPS: &str = "DescribeSecurityGroups";
const MEMBERS: &str = "DescribeNetworkInterfaces";
const LISTS: &str = "DescribeManagedPrefixLists";
const ENTRIES: &str = "GetManagedPrefixListEntries";

/// Longer than any refresh interval.
const REFRESH: u64 = 76;

fn nets(list: &[&str]) -> Vec<ipnet::IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn peers(rules: &[GroupRule]) -> Vec<String> {
    let mut peers: Vec<_> = rules.iter().map(|rule| format!("{:?}", rule.peer)).collect();
    peers.sort();
    peers
}

/// `sg-web` lets in an address range, the list `pl-1` and the group `sg-app`, which one ENI carries.
fn web() -> Place {
    let place = Place::new(&["sg-web", "sg-app"], Settings::default());
    place
        .sim()
        .set_prefix_list("pl-1".parse().unwrap(), nets(&["192.0.2.0/24", "198.51.100.0/24"]));
    for peer in [cidr("10.9.0.0/16"), list("pl-1"), group("sg-app")] {
        place.sim().authorize(http("sg-web", peer)).unwrap();
    }
    place
}

fn members(place: &Place, of: &str) -> BTreeSet<IpAddr> {
    place.snapshots.borrow().members[&id(of)].clone()
}

#[tokio::test(start_paused = true)]
async fn a_group_is_resolved_with_all_that_it_refers_to() {
    let mut place = web();
    let eni = place.eni(&["sg-app"], 2, 0);
    place.resolve(&["sg-web"]).await;
    let rules = place.ingress("sg-web");
    let expected =
        ["Cidr(10.9.0.0/16)", "Cidr(192.0.2.0/24)", "Cidr(198.51.100.0/24)", "Group(sg-app)"];
    assert_eq!(peers(&rules), expected);
    assert!(
        rules.iter().all(|r| (r.protocol, r.first, r.last) == (GroupProtocol::Number(6), 80, 80))
    );
    let by_list: BTreeSet<_> = rules
        .iter()
        .filter(|r| matches!(&r.peer, GroupPeer::Cidr(net) if net.prefix_len() == 24))
        .map(|r| &r.id)
        .collect();
    assert_eq!(by_list.len(), 1, "a list's ranges keep their rule's id");
    assert_eq!(peers(&place.group("sg-web").egress), ["Cidr(0.0.0.0/0)"]);
    assert_eq!(members(&place, "sg-app").len(), 3);
    assert!(members(&place, "sg-app").contains(&IpAddr::V4(eni.primary_address)));
    let status = place.status("sg-web");
    assert_eq!((status.state, status.rules, status.members), (GroupHealth::Fresh, 5, 3));
    assert!(!place.snapshots.borrow().groups.contains_key(&id("sg-app")), "only what is wanted");
}

#[tokio::test(start_paused = true)]
async fn members_have_both_families_and_their_delegated_prefixes() {
    let mut place = web();
    let eni = place.eni(&["sg-app"], 0, 1);
    let v6: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
    place.sim().set_ipv6_addresses(&eni.id, [v6].into()).unwrap();
    place.resolve(&["sg-web"]).await;
    let members = members(&place, "sg-app");
    assert_eq!(members.len(), 1 + 16 + 1, "{members:?}");
    assert!(members.contains(&IpAddr::V6(v6)));
    assert!(members.contains(&IpAddr::V4(eni.prefixes[0].network())));
}

#[tokio::test(start_paused = true)]
async fn a_large_delegated_prefix_is_a_range_of_the_rule() {
    let mut place = web();
    place.spoil(Some(|call| match call {
        Call::DescribeGroupMembers(_) => {
            Some(Ok(Answer::GroupMembers(vec![veni_provider::GroupMember {
                eni: "eni-1".parse().unwrap(),
                security_groups: vec![id("sg-app")],
                addresses: vec!["2001:db8::1".parse().unwrap()],
                prefixes: nets(&["2001:db8:0:0:1::/80"]),
            }])))
        }
        _ => None,
    }));
    place.resolve(&["sg-web"]).await;
    let rules = place.ingress("sg-web");
    let of_group = rules.iter().find(|r| r.peer == GroupPeer::Group(id("sg-app"))).unwrap();
    let range = nets(&["2001:db8:0:0:1::/80"])[0];
    let of_range = rules.iter().find(|r| r.peer == GroupPeer::Cidr(range)).unwrap();
    assert_eq!(of_group.id, of_range.id);
}

#[tokio::test(start_paused = true)]
async fn a_cloud_out_of_reach_takes_nothing_away_and_is_told() {
    let mut place = web();
    place.eni(&["sg-app"], 0, 0);
    place.resolve(&["sg-web"]).await;
    let before = place.snapshots.borrow().clone();
    let fault = place.sim().inject(Fault { action: None, ..Fault::unavailable(RULES) });
    place.pass(3_600).await;
    assert_eq!(*place.snapshots.borrow(), before);
    let status = place.status("sg-web");
    assert_eq!(status.state, GroupHealth::Stale);
    assert!(status.age_secs.unwrap() >= 3_600, "{status:?}");
    assert!(status.last_error.unwrap().contains("DescribeSecurityGroupRules failed: transient"));
    place.sim().withdraw(fault);
    place.pass(REFRESH).await;
    let status = place.status("sg-web");
    assert_eq!((status.state, status.last_error), (GroupHealth::Fresh, None));
    assert!(status.age_secs.unwrap() <= REFRESH);
    assert!(!place.snapshots.has_changed().unwrap(), "the same again wakes nobody");
}

#[tokio::test(start_paused = true)]
async fn a_part_that_cannot_be_read_again_is_kept_too() {
    for action in [MEMBERS, LISTS] {
        let mut place = web();
        place.eni(&["sg-app"], 0, 0);
        place.resolve(&["sg-web"]).await;
        let before = place.snapshots.borrow().clone();
        place.sim().inject(Fault::deny(action));
        place.pass(600).await;
        assert_eq!(*place.snapshots.borrow(), before, "{action}");
        let status = place.status("sg-web");
        assert_eq!(status.state, GroupHealth::Stale, "{action}");
        assert!(status.last_error.unwrap().contains(&format!("lacks ec2:{action}")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_was_never_resolved_denies_and_names_the_missing_action() {
    for action in [RULES, MEMBERS, LISTS, ENTRIES] {
        let mut place = web();
        let fault = place.sim().inject(Fault::deny(action));
        place.resolve(&["sg-web"]).await;
        let reason = place.reason("sg-web").unwrap();
        assert!(reason.contains(&format!("lacks ec2:{action}")), "{reason}");
        assert_eq!(place.ingress("sg-web"), []);
        assert_eq!(place.group("sg-web").egress, []);
        assert_eq!(place.status("sg-web").state, GroupHealth::Unresolved);
        place.sim().withdraw(fault);
        place.pass(2 * REFRESH).await;
        assert_eq!(place.reason("sg-web"), None, "{action}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_does_not_exist_is_unresolved_until_it_does() {
    let mut place = web();
    place.resolve(&["sg-web", "sg-none"]).await;
    assert_eq!(place.reason("sg-web"), None);
    let reason = place.reason("sg-none").unwrap();
    assert_eq!(reason, "sg-none does not exist in this account and region");
    place.sim().add_security_group(id("sg-none"), "vpc-1".parse().unwrap()).unwrap();
    place.pass(6).await;
    assert_eq!(place.reason("sg-none"), None, "a new group can be late to show: asked again soon");
}

#[tokio::test(start_paused = true)]
async fn a_group_without_rules_is_resolved_and_allows_nothing() {
    let mut place = Place::new(&["sg-marker"], Settings::default());
    let rule = place.sim().security_groups().find(|g| g.id == id("sg-marker")).unwrap().rules[0]
        .id
        .clone();
    place.sim().revoke(&rule).unwrap();
    place.resolve(&["sg-marker"]).await;
    assert_eq!(place.reason("sg-marker"), None);
    assert_eq!((place.ingress("sg-marker"), place.group("sg-marker").egress), (vec![], vec![]));
    assert_eq!((place.calls(RULES), place.calls(GROUPS)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_group_denies_once_that_is_sure() {
    let mut place = Place::new(&["sg-a"], Settings::default());
    place.resolve(&["sg-a"]).await;
    place.sim().delete_security_group(&id("sg-a")).unwrap();
    place.pass(REFRESH + 6).await;
    assert_eq!(place.reason("sg-a").unwrap(), "sg-a does not exist in this account and region");
    assert_eq!(place.group("sg-a").egress, []);
}

#[tokio::test(start_paused = true)]
async fn one_answer_without_a_group_does_not_take_it_away() {
    let mut place = Place::new(&["sg-a"], Settings::default());
    place.resolve(&["sg-a"]).await;
    let changes = place.snapshots.borrow().clone();
    place.spoil(Some(|call| match call {
        Call::DescribeSecurityGroupRules(_) => Some(Ok(Answer::SecurityGroupRules(Vec::new()))),
        Call::DescribeSecurityGroups(_) => Some(Ok(Answer::SecurityGroups(Vec::new()))),
        _ => None,
    }));
    while place.status("sg-a").state != GroupHealth::Stale {
        place.pass(1).await;
    }
    place.spoil(None);
    place.pass(REFRESH).await;
    assert_eq!(place.status("sg-a").state, GroupHealth::Fresh);
    assert_eq!(*place.snapshots.borrow(), changes);
    assert!(!place.snapshots.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn new_members_and_new_rules_show_within_a_refresh() {
    let mut place = web();
    place.resolve(&["sg-web"]).await;
    assert_eq!(members(&place, "sg-app").len(), 0);
    let eni = place.eni(&["sg-app"], 0, 0);
    place.sim().authorize(http("sg-web", cidr("10.8.0.0/16"))).unwrap();
    place.pass(REFRESH).await;
    assert_eq!(members(&place, "sg-app"), [IpAddr::V4(eni.primary_address)].into());
    assert!(peers(&place.ingress("sg-web")).contains(&"Cidr(10.8.0.0/16)".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_prefix_list_is_read_again_when_its_version_changes_and_only_then() {
    let mut place = web();
    place.resolve(&["sg-web"]).await;
    place.pass(600).await;
    assert_eq!(place.calls(ENTRIES), 1);
    assert!(place.calls(LISTS) >= 8);
    place.sim().set_prefix_list("pl-1".parse().unwrap(), nets(&["203.0.113.0/24"]));
    place.pass(REFRESH).await;
    assert_eq!(place.calls(ENTRIES), 2);
    let expected = ["Cidr(10.9.0.0/16)", "Cidr(203.0.113.0/24)", "Group(sg-app)"];
    assert_eq!(peers(&place.ingress("sg-web")), expected);
}

#[tokio::test(start_paused = true)]
async fn a_list_without_versions_is_read_at_every_refresh() {
    let mut place = web();
    place.spoil(Some(|call| match call {
        Call::DescribePrefixLists(_) => {
            Some(Ok(Answer::PrefixLists(vec![veni_provider::PrefixList {
                id: "pl-1".parse().unwrap(),
                version: None,
            }])))
        }
        _ => None,
    }));
    place.resolve(&["sg-web"]).await;
    place.pass(300).await;
    assert!(place.calls(ENTRIES) >= 4, "{}", place.calls(ENTRIES));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_gone_makes_the_group_unresolved_with_the_reason() {
    let mut place = web();
    place.resolve(&["sg-web"]).await;
    place.sim().delete_prefix_list(&"pl-1".parse().unwrap()).unwrap();
    place.pass(REFRESH + 6).await;
    let reason = place.reason("sg-web").unwrap();
    assert_eq!(reason, "pl-1 does not exist, or is not shared with this account");
}

#[tokio::test(start_paused = true)]
async fn two_hundred_groups_cost_one_call_and_one_more_costs_a_second() {
    for (count, calls) in [(1, 1), (200, 1), (201, 2)] {
        let names: Vec<_> = (0..count).map(|n| format!("sg-{n:03}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut place = Place::new(&names, Settings::default());
        place.resolve(&names).await;
        assert_eq!((place.calls(RULES), place.sim().calls().ec2_of(&caller())), (calls, calls));
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_fifty_groups_costs_three_calls_a_refresh() {
    let names: Vec<_> = (0..50).map(|n| format!("sg-{n:03}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut place = Place::new(&names, Settings::default());
    place.sim().set_prefix_list("pl-1".parse().unwrap(), nets(&["192.0.2.0/24"]));
    for name in &names {
        for peer in [list("pl-1"), group("sg-000")] {
            place.sim().authorize(http(name, peer)).unwrap();
        }
    }
    place.resolve(&names).await;
    place.pass(3_600).await;
    let rounds = place.calls(RULES);
    assert!((50..=72).contains(&rounds), "{rounds} refreshes in an hour");
    assert_eq!((place.calls(MEMBERS), place.calls(LISTS)), (rounds, rounds));
    assert_eq!((place.calls(ENTRIES), place.calls(GROUPS)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn wants_that_come_together_are_asked_for_together_and_only_what_is_new() {
    let names: Vec<_> = (0..20).map(|n| format!("sg-{n:03}")).collect();
    let all: Vec<_> = names.iter().map(String::as_str).collect();
    let mut place = Place::new(&all, Settings::default());
    for count in 1..=all.len() {
        place.resolver().want(ids(&all[..count]));
        tokio::task::yield_now().await;
    }
    let before = place.clock.now();
    answered(&mut place.snapshots, &ids(&all)).await;
    assert_eq!(place.calls(RULES), 1);
    assert!(place.clock.now() - before < Duration::from_millis(50), "at once");
    place.sim().add_security_group(id("sg-new"), "vpc-1".parse().unwrap()).unwrap();
    let with_new: Vec<_> = all.iter().copied().chain(["sg-new"]).collect();
    place.sim().inject(
        Fault::error_before(
            RULES,
            veni_provider::call::Failure::new(ErrorClass::Transient, "Unavailable", ""),
        )
        .times(1),
    );
    place.resolve(&with_new).await;
    assert_eq!(place.status("sg-000").state, GroupHealth::Fresh, "it was not asked for");
}

#[tokio::test(start_paused = true)]
async fn what_was_wanted_a_moment_ago_is_at_hand() {
    let mut place = web();
    place.resolve(&["sg-web"]).await;
    let before = place.sim().calls().ec2_of(&caller());
    place.resolver().want(BTreeSet::new());
    place.pass(10).await;
    assert!(place.snapshots.borrow().groups.is_empty());
    place.resolve(&["sg-web"]).await;
    assert_eq!(place.sim().calls().ec2_of(&caller()), before, "no call");
    assert_eq!(place.ingress("sg-web").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_was_wanted_long_ago_is_asked_for_but_serves_while_the_cloud_is_away() {
    let mut place = web();
    place.resolve(&["sg-web"]).await;
    place.resolver().want(BTreeSet::new());
    place.pass(300).await;
    place.sim().inject(Fault { action: None, ..Fault::unavailable(RULES) });
    place.resolve(&["sg-web"]).await;
    assert_eq!(place.status("sg-web").state, GroupHealth::Stale);
    assert_eq!(place.ingress("sg-web").len(), 4);
    place.resolver().want(BTreeSet::new());
    place.pass(700).await;
    place.resolve(&["sg-web"]).await;
    assert_eq!(place.status("sg-web").state, GroupHealth::Pending, "too old to be trusted");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_while_nothing_is_wanted() {
    let mut place = web();
    place.pass(3_600).await;
    assert_eq!(place.sim().calls().ec2_of(&caller()), 0);
    place.resolve(&["sg-web"]).await;
    place.resolver().want(BTreeSet::new());
    place.pass(1).await;
    let before = place.sim().calls().ec2_of(&caller());
    place.pass(3_600).await;
    assert_eq!(place.sim().calls().ec2_of(&caller()), before);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_action_rests_as_long_as_the_cloud_says() {
    let mut place = Place::new(&["sg-a", "sg-b"], Settings::default());
    place.sim().inject(Fault::throttle(RULES, Some(40_000)).times(1));
    place.resolve(&["sg-a"]).await;
    assert!(place.reason("sg-a").unwrap().contains("throttled"));
    place.pass(20).await;
    place.resolve(&["sg-a", "sg-b"]).await;
    assert!(place.reason("sg-b").unwrap().contains("throttled"), "new wants wait too");
    place.pass(18).await;
    assert_eq!(place.calls(RULES), 1);
    place.pass(15).await;
    assert_eq!((place.reason("sg-a"), place.reason("sg-b")), (None, None));
    assert_eq!(place.calls(RULES), 2, "both in one call");
}

#[tokio::test(start_paused = true)]
async fn failing_calls_back_off() {
    let mut place = Place::new(&["sg-a"], Settings::default());
    place.sim().inject(Fault::unavailable(RULES));
    place.resolve(&["sg-a"]).await;
    place.pass(600).await;
    let calls = place.calls(RULES);
    assert!((10..=20).contains(&calls), "{calls} calls in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_answers_is_given_up() {
    let mut place = Place::new(&["sg-a"], Settings::default());
    place.sim().inject(Fault::delay(RULES, 3_600_000).times(1));
    place.resolve(&["sg-a"]).await;
    assert!(place.reason("sg-a").unwrap().contains("no answer within 30 s"));
    place.pass(5).await;
    assert_eq!(place.reason("sg-a"), None);
}

#[tokio::test(start_paused = true)]
async fn one_id_that_ec2_does_not_take_does_not_spoil_the_others() {
    let names: Vec<_> = (0..100).map(|n| format!("sg-{n:03}")).collect();
    let mut all: Vec<_> = names.iter().map(String::as_str).collect();
    let mut place = Place::new(&all, Settings::default());
    all.push("sg-not");
    place.spoil(Some(|call| match call {
        Call::DescribeSecurityGroupRules(groups) if groups.contains(&id("sg-not")) => {
            let code = "InvalidGroupId.Malformed";
            Some(Err(CloudError::new(RULES, ErrorClass::Invalid, code, "Invalid id: \"sg-not\"")))
        }
        _ => None,
    }));
    place.resolve(&all).await;
    assert!(place.reason("sg-not").unwrap().contains("InvalidGroupId.Malformed"));
    assert!(names.iter().all(|name| place.reason(name).is_none()));
    let found = place.calls(RULES);
    assert!(found <= 8, "{found} calls that were answered");
    place.pass(REFRESH).await;
    assert!(place.calls(RULES) <= found + 2, "it is asked for alone from then on");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_can_see_admits_nobody_and_is_told() {
    let mut place = Place::new(&["sg-a"], Settings::default());
    let foreign = GroupReference {
        foreign_account: Some("222222222222".into()),
        peering_connection: Some("pcx-1".into()),
        ..reference("sg-theirs")
    };
    let stale =
        GroupReference { stale: true, foreign_account: Some("2".into()), ..foreign.clone() };
    let unknown = RuleSpec {
        traffic: RuleTraffic::Unknown("protocol \"quic\"".into()),
        ..http("sg-a", cidr("10.0.0.0/8"))
    };
    for rule in [
        http("sg-a", RulePeer::Group(foreign)),
        http("sg-a", RulePeer::Group(stale)),
        http("sg-a", RulePeer::Unknown("a cloud of a new kind".into())),
        unknown,
        http("sg-a", cidr("10.1.0.0/16")),
    ] {
        place.sim().authorize(rule).unwrap();
    }
    place.resolve(&["sg-a"]).await;
    assert_eq!(peers(&place.ingress("sg-a")), ["Cidr(10.1.0.0/16)"]);
    let notes = place.status("sg-a").notes;
    for (note, words) in notes.iter().zip([
        "sg-theirs behind pcx-1 is of account 222222222222",
        "EC2 calls the rule stale",
        "a cloud of a new kind",
        "quic",
    ]) {
        assert!(note.contains("admits nobody") && note.contains(words), "{note}");
    }
    assert_eq!((notes.len(), place.calls(MEMBERS)), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_unresolved_not_cut() {
    let check = async |limits: Limits, words: &str| {
        let mut place =
            Place::new(&["sg-web", "sg-app", "sg-z"], Settings { limits, ..Settings::default() });
        place
            .sim()
            .set_prefix_list("pl-1".parse().unwrap(), nets(&["192.0.2.0/24", "198.51.100.0/24"]));
        for peer in [list("pl-1"), group("sg-app")] {
            place.sim().authorize(http("sg-web", peer)).unwrap();
        }
        place.eni(&["sg-app"], 9, 0);
        place.resolve(&["sg-web", "sg-z"]).await;
        let reasons = [place.reason("sg-web"), place.reason("sg-z")];
        let told = reasons.iter().flatten().cloned().collect::<Vec<_>>().join("; ");
        assert!(told.contains(words), "{told:?} lacks {words:?}");
        assert_eq!(reasons.iter().flatten().count(), usize::from(!words.is_empty()));
    };
    let roomy = Limits::default();
    check(roomy.clone(), "").await;
    check(Limits { rules_per_group: 4, ..roomy.clone() }, "").await;
    check(Limits { rules_per_group: 3, ..roomy.clone() }, "more than 3 rules of sg-web").await;
    check(Limits { members_per_group: 10, members: 10, ..roomy.clone() }, "").await;
    check(
        Limits { members_per_group: 9, ..roomy.clone() },
        "more than 9 addresses of members of sg-app",
    )
    .await;
    check(Limits { members: 9, ..roomy.clone() }, "of all groups together").await;
    check(Limits { groups: 1, ..roomy }, "more than 1 groups on this node").await;
}

#[tokio::test(start_paused = true)]
async fn nodes_do_not_ask_in_step() {
    let mut times = BTreeSet::new();
    for seed in 0..8 {
        let mut place = Place::new(&["sg-a"], Settings { seed, ..Settings::default() });
        place.resolve(&["sg-a"]).await;
        place.pass(REFRESH).await;
        let second =
            place.sim().call_log().filter(|call| call.action == RULES).nth(1).unwrap().at_millis;
        assert!((45_000..=75_100).contains(&second), "{second}");
        times.insert(second);
    }
    assert!(times.len() >= 6, "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_its_last_handle() {
    let mut place = web();
    place.resolve(&["sg-web"]).await;
    place.resolver = None;
    let ended = timeout(Duration::from_secs(1), &mut place.driver).await;
    ended.expect("the driver ends").unwrap();
    answered(&mut place.snapshots, &ids(&["sg-other"])).await;
}
