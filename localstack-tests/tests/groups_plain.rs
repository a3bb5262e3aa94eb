//! Security groups on plain LocalStack: which cases of the conformance suite hold, and which do not, one by one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "each case's result is worth seeing")]

use std::time::Duration;

use veni_localstack_tests::{Account, LocalStack, Tier, WallClock};
use veni_provider::conformance::{self, CaseOutcome, World};

/// The cases, and whether plain LocalStack holds them.
const CASES: &[(&str, Holds)] = &[
    ("rules_are_as_they_were_made", Holds::Yes),
    ("rules_of_several_groups_come_at_once", Holds::Yes),
    ("no_group_asked_for_is_no_rule", Holds::Yes),
    ("only_groups_that_exist_are_listed", Holds::Yes),
    ("members_are_those_who_carry_the_group", Holds::Yes),
    ("a_member_of_several_groups_is_told_once", Holds::Yes),
    ("a_members_prefixes_are_told", Holds::No("prefixes are ignored")),
    ("prefix_lists_tell_their_version", Holds::Yes),
    ("prefix_list_entries_are_those_of_the_version", Holds::Yes),
    ("an_unknown_prefix_list_is_not_found", Holds::No("an unknown list is an empty one")),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Yes,
    /// And why not.
    No(&'static str),
}

#[tokio::test]
async fn the_cases_of_groups_hold_but_for_the_listed_deviations() {
    let account = Account::new(LocalStack::shared(Tier::Plain)).await.unwrap();
    let subnet = account.subnet("10.0.0.0/20").await.unwrap();
    let groups = [
        account.security_group("one").await.unwrap(),
        account.security_group("two").await.unwrap(),
    ];
    let node = account.run_instance("m5.xlarge", &subnet, &groups[..1]).await.unwrap();
    let world = World {
        subnet: subnet.clone(),
        small_subnet: subnet,
        security_groups: groups,
        groups: account.group_world().await.unwrap(),
        instance: node.instance.clone(),
        run: "plain".into(),
        describe_is_consistent: true,
        has_metadata: true,
        patience: Duration::from_secs(20),
        pause: Duration::from_millis(50),
    };
    let clock = WallClock::start();
    let mut wrong = Vec::new();
    for (name, holds) in CASES {
        assert!(conformance::CASES.contains(name), "{name} is no case");
        let result = conformance::run_case(&node.cloud, &clock, &world, name).await;
        println!("{result}");
        let passed = result.outcome == CaseOutcome::Passed;
        if passed != (*holds == Holds::Yes) {
            wrong.push(format!("{result} (listed as {holds:?})"));
        }
    }
    assert!(wrong.is_empty(), "not as listed:\n{}", wrong.join("\n"));
}
