//! The simulator's security groups: what changes them, what spoils the calls, how late they show.

#![expect(clippy::unwrap_used, reason = "a test says what it needs by failing")]

#[path = "common/region.rs"]
mod region;

use std::{net::IpAddr, time::Duration};

use veni_core::id::{PrefixListId, SecurityGroupId};
use veni_provider::{
    CloudError, ErrorClass, GroupReference, RuleDirection, RulePeer, RuleTraffic,
    SecurityGroupRule,
    call::{Answer, Call},
    security_group::FILTER_VALUES,
    sim::{
        Admin, AdminAnswer, BucketSize, Consistency, Fault, RuleSpec, Sim, SimConfig, Throttling,
    },
};

use crate::region::{instance, region, request};

fn group(id: &str) -> SecurityGroupId {
    id.parse().unwrap()
}

fn list() -> PrefixListId {
    "pl-1".parse().unwrap()
}

fn cidr_rule(of: &str, cidr: &str) -> RuleSpec {
    RuleSpec {
        group: group(of),
        direction: RuleDirection::Ingress,
        traffic: RuleTraffic::Ports { protocol: 6, first: 80, last: 80 },
        peer: RulePeer::Cidr(cidr.parse().unwrap()),
    }
}

fn admin(sim: &mut Sim, request: Admin) -> Result<AdminAnswer, String> {
    sim.admin(Duration::ZERO, request).map_err(|error| error.to_string())
}

fn rules(sim: &mut Sim, secs: u64, of: &[&str]) -> Result<Vec<SecurityGroupRule>, CloudError> {
    let call = Call::DescribeSecurityGroupRules(of.iter().map(|id| group(id)).collect());
    match sim.call(Duration::from_secs(secs), &instance(), call)? {
        Answer::SecurityGroupRules(rules) => Ok(rules),
        other => panic!("{other:?}"),
    }
}

fn addresses(sim: &mut Sim, of: &str) -> Vec<IpAddr> {
    let call = Call::DescribeGroupMembers(vec![group(of)]);
    match sim.call(Duration::ZERO, &instance(), call).unwrap() {
        Answer::GroupMembers(members) => members.into_iter().flat_map(|m| m.addresses).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_group_has_the_rules_that_ec2_gives_it() {
    let mut sim = region(SimConfig::instant());
    let own = rules(&mut sim, 0, &["sg-2"]).unwrap();
    assert_eq!(own.len(), 1);
    assert_eq!((own[0].direction, &own[0].traffic), (RuleDirection::Egress, &RuleTraffic::All));
    let default = rules(&mut sim, 0, &["sg-1"]).unwrap();
    let itself = |rule: &SecurityGroupRule| matches!(&rule.peer, RulePeer::Group(g) if g.id == group("sg-1"));
    assert_eq!(default.len(), 2);
    assert!(default.iter().any(|r| r.direction == RuleDirection::Ingress && itself(r)));
}

#[test]
fn groups_change_while_the_region_runs() {
    let mut sim = region(SimConfig::instant());
    let vpc_id = "vpc-1".parse().unwrap();
    admin(&mut sim, Admin::CreateSecurityGroup { id: group("sg-9"), vpc_id }).unwrap();
    let made = admin(&mut sim, Admin::AuthorizeRule(cidr_rule("sg-9", "10.1.0.0/16"))).unwrap();
    let AdminAnswer::Rule(rule) = made else { panic!("{made:?}") };
    assert!(rules(&mut sim, 0, &["sg-9"]).unwrap().iter().any(|r| r.id == rule));
    admin(&mut sim, Admin::RevokeRule(rule.clone())).unwrap();
    assert!(rules(&mut sim, 0, &["sg-9"]).unwrap().iter().all(|r| r.id != rule));
    let listed = admin(&mut sim, Admin::SecurityGroups).unwrap();
    let AdminAnswer::SecurityGroups(listed) = listed else { panic!("{listed:?}") };
    assert_eq!(listed.len(), 3);
    admin(&mut sim, Admin::DeleteSecurityGroup(group("sg-9"))).unwrap();
    assert_eq!(rules(&mut sim, 0, &["sg-9"]).unwrap(), []);
}

#[test]
fn what_ec2_refuses_is_refused() {
    let mut sim = region(SimConfig::instant());
    sim.authorize(cidr_rule("sg-2", "10.0.0.0/8")).unwrap();
    let reference = |id: &str, foreign: Option<&str>| RuleSpec {
        peer: RulePeer::Group(GroupReference {
            id: group(id),
            foreign_account: foreign.map(Into::into),
            peering_connection: None,
            stale: false,
        }),
        ..cidr_rule("sg-2", "10.0.0.0/8")
    };
    sim.authorize(reference("sg-1", None)).unwrap();
    sim.authorize(reference("sg-77", Some("222222222222"))).unwrap();
    let in_list =
        RuleSpec { peer: RulePeer::PrefixList(list()), ..cidr_rule("sg-2", "10.0.0.0/8") };
    for (request, words) in [
        (Admin::AuthorizeRule(cidr_rule("sg-2", "10.0.0.0/8")), "InvalidPermission.Duplicate"),
        (Admin::AuthorizeRule(cidr_rule("sg-7", "10.0.0.0/8")), "sg-7 does not exist"),
        (Admin::AuthorizeRule(reference("sg-7", None)), "sg-7 does not exist"),
        (Admin::AuthorizeRule(in_list), "pl-1 does not exist"),
        (Admin::RevokeRule("sgr-0".parse().unwrap()), "sgr-0 does not exist"),
        (Admin::DeleteSecurityGroup(group("sg-1")), "DependencyViolation"),
        (Admin::DeleteSecurityGroup(group("sg-7")), "sg-7 does not exist"),
        (Admin::DeletePrefixList(list()), "pl-1 does not exist"),
    ] {
        let refusal = admin(&mut sim, request.clone()).unwrap_err();
        assert!(refusal.contains(words), "{request:?}: {refusal}");
    }
}

#[test]
fn members_show_every_address_of_both_families() {
    let mut sim = region(SimConfig::instant());
    let made = Call::CreateInterface(veni_provider::CreateInterface {
        security_groups: vec![group("sg-2")],
        ..request(&"subnet-a".parse().unwrap(), "a", 2)
    });
    let Ok(Answer::Interface(eni)) = sim.call(Duration::ZERO, &instance(), made) else { panic!() };
    let addresses_given = ["2001:db8::4".parse().unwrap()].into();
    admin(&mut sim, Admin::SetIpv6Addresses { eni: eni.id.clone(), addresses: addresses_given })
        .unwrap();
    let told = addresses(&mut sim, "sg-2");
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(told.contains(&IpAddr::V4(eni.primary_address)));
    assert_eq!(told.iter().filter(|a| a.is_ipv6()).count(), 1);
    let unknown = Admin::SetIpv6Addresses { eni: "eni-0".parse().unwrap(), addresses: [].into() };
    admin(&mut sim, unknown).unwrap_err();
}

#[test]
fn a_filter_takes_200_values_and_no_more() {
    let mut sim = region(SimConfig::instant());
    let ask = |sim: &mut Sim, count: usize| {
        let ids: Vec<_> = (0..count).map(|n| group(&format!("sg-{n}"))).collect();
        let call = Call::DescribeSecurityGroupRules(ids);
        sim.call(Duration::ZERO, &instance(), call)
    };
    ask(&mut sim, FILTER_VALUES).unwrap();
    let refused = ask(&mut sim, FILTER_VALUES + 1).unwrap_err();
    assert_eq!(
        (refused.class, refused.code.as_str()),
        (ErrorClass::Invalid, "FilterLimitExceeded")
    );
}

#[test]
fn faults_and_throttling_spoil_these_calls_too() {
    let throttling = Throttling {
        describe: BucketSize { capacity: 1, refill_per_sec: 1 },
        ..Throttling::default()
    };
    let mut sim = region(SimConfig { throttling: Some(throttling), ..SimConfig::instant() });
    rules(&mut sim, 0, &["sg-2"]).unwrap();
    let throttled = rules(&mut sim, 0, &["sg-2"]).unwrap_err();
    assert_eq!(throttled.class, ErrorClass::Throttled { retry_after_millis: None });
    for (action, call) in [
        ("DescribeSecurityGroupRules", Call::DescribeSecurityGroupRules(vec![group("sg-2")])),
        ("DescribeSecurityGroups", Call::DescribeSecurityGroups(vec![group("sg-2")])),
        ("DescribeNetworkInterfaces", Call::DescribeGroupMembers(vec![group("sg-2")])),
        ("DescribeManagedPrefixLists", Call::DescribePrefixLists(vec![list()])),
        ("GetManagedPrefixListEntries", Call::PrefixListEntries { list: list(), version: None }),
    ] {
        sim.inject(Fault::deny(action).times(1));
        let denied = sim.call(Duration::from_secs(9), &instance(), call).unwrap_err();
        assert_eq!(denied.class, ErrorClass::Denied { action: action.into() });
    }
}

#[test]
fn a_stale_answer_shows_the_rules_and_lists_of_the_past() {
    let consistency = Consistency { describe_delay_millis: 5_000, ..Consistency::default() };
    let mut sim = region(SimConfig { consistency, ..SimConfig::instant() });
    sim.advance(Duration::from_secs(10));
    sim.authorize(cidr_rule("sg-2", "10.0.0.0/8")).unwrap();
    sim.set_prefix_list(list(), Vec::new());
    let lists = |sim: &mut Sim, secs| {
        let call = Call::DescribePrefixLists(vec![list()]);
        match sim.call(Duration::from_secs(secs), &instance(), call).unwrap() {
            Answer::PrefixLists(lists) => lists.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(rules(&mut sim, 14, &["sg-2"]).unwrap().len(), 1);
    assert_eq!(lists(&mut sim, 14), 0);
    assert_eq!(rules(&mut sim, 15, &["sg-2"]).unwrap().len(), 2);
    assert_eq!(lists(&mut sim, 15), 1);
}
