//! The simulator passes the conformance suite whole, however late it answers; and the suite notices what is wrong.

#![expect(clippy::unwrap_used, reason = "a test says what it needs by failing")]

#[path = "common/clock.rs"]
mod clock;
#[path = "common/region.rs"]
mod region;

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use veni_provider::{
    Cloud, CloudResult,
    call::{Answer, Call, Transport},
    conformance::{CASES, CaseOutcome, CaseResult, GroupWorld, World, run},
    sim::{Consistency, Latency, RuleSpec, Sim, SimCloud, SimConfig},
};

use crate::{
    clock::{Clock, cloud},
    region::{instance, region},
};

fn world() -> World {
    World {
        subnet: "subnet-a".parse().unwrap(),
        small_subnet: "subnet-small".parse().unwrap(),
        security_groups: ["sg-1".parse().unwrap(), "sg-2".parse().unwrap()],
        groups: GroupWorld {
            ruled: "sg-a1".parse().unwrap(),
            referenced: "sg-a2".parse().unwrap(),
            prefix_list: "pl-1".parse().unwrap(),
        },
        instance: instance(),
        run: "run".into(),
        describe_is_consistent: true,
        has_metadata: true,
        patience: Duration::from_secs(60),
        pause: Duration::from_millis(500),
    }
}

/// The region of the tests with the groups of [`world`].
fn conforming(config: SimConfig) -> Sim {
    let (mut sim, groups) = (region(config), world().groups);
    let vpc_id: veni_core::id::VpcId = "vpc-1".parse().unwrap();
    for id in [&groups.ruled, &groups.referenced] {
        sim.add_security_group(id.clone(), vpc_id.clone()).unwrap();
    }
    for (id, tags) in [&groups.ruled, &groups.referenced].into_iter().zip(GroupWorld::tags()) {
        sim.tag_security_group(id, tags).unwrap();
    }
    for entries in GroupWorld::prefix_list_versions() {
        sim.set_prefix_list(groups.prefix_list.clone(), entries);
    }
    for (direction, traffic, peer) in groups.rules() {
        let group = groups.ruled.clone();
        sim.authorize(RuleSpec { group, direction, traffic, peer }).unwrap();
    }
    sim
}

fn failures(results: &[CaseResult]) -> Vec<String> {
    let bad = results.iter().filter(|result| result.outcome != CaseOutcome::Passed);
    bad.map(ToString::to_string).collect()
}

async fn check(config: SimConfig, world: World) {
    let clock = Clock::start();
    let results = run(&cloud(conforming(config), Arc::clone(&clock)), &*clock, &world).await;
    assert_eq!(results.len(), CASES.len());
    assert_eq!(failures(&results), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_instant_simulator_conforms() {
    check(SimConfig::instant(), world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_simulator_as_slow_as_ec2_conforms() {
    let config = SimConfig { throttling: None, ..SimConfig::default() };
    for seed in 0..5 {
        check(config.clone().with_seed(seed), world()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_simulator_that_answers_late_conforms_to_whoever_waits() {
    let consistency = Consistency {
        describe_delay_millis: 0,
        metadata_delay_millis: 5_000,
        ..Consistency::default()
    };
    let latency = Latency::fixed(50, 2_000);
    let config = SimConfig { latency, consistency, ..SimConfig::instant() };
    check(config, World { describe_is_consistent: false, ..world() }).await;
}

/// A cloud with one fault of plain LocalStack.
struct Wrong {
    right: SimCloud<Clock>,
    spoil: fn(Call, CloudResult<Answer>) -> CloudResult<Answer>,
}

impl Transport for Wrong {
    async fn carry(&self, call: Call) -> CloudResult<Answer> {
        let answer = self.right.carry(call.clone()).await;
        (self.spoil)(call, answer)
    }
}

async fn notices(spoil: fn(Call, CloudResult<Answer>) -> CloudResult<Answer>, case: &str) {
    let clock = Clock::start();
    let wrong = Wrong { right: cloud(conforming(SimConfig::instant()), Arc::clone(&clock)), spoil };
    let failed = failures(&run(&wrong, &*clock, &world()).await);
    assert!(failed.iter().any(|line| line.contains(case)), "{case} passed; failed: {failed:#?}");
}

#[tokio::test(start_paused = true)]
async fn the_suite_notices_what_is_wrong() {
    notices(
        |call, answer| match (call, answer) {
            (Call::AssignAddresses { .. }, Ok(Answer::Addresses(mut addresses))) => {
                addresses.push(Ipv4Addr::new(10, 0, 0, 9));
                Ok(Answer::Addresses(addresses))
            }
            (_, answer) => answer,
        },
        "assigning_answers_with_the_new_addresses_only",
    )
    .await;
    notices(
        |call, answer| match (call, answer) {
            (Call::UnassignAddresses { .. }, Err(_)) => Ok(Answer::Done),
            (_, answer) => answer,
        },
        "the_primary_address_cannot_be_unassigned",
    )
    .await;
    notices(
        |call, answer| match (call, answer) {
            (Call::DescribeSubnets(_), Ok(Answer::Subnets(mut subnets))) => {
                subnets.iter_mut().for_each(|subnet| subnet.available_addresses += 1);
                Ok(Answer::Subnets(subnets))
            }
            (_, answer) => answer,
        },
        "free_addresses_are_counted_exactly",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_after_the_suite() {
    let clock = Clock::start();
    let cloud = cloud(conforming(SimConfig::instant()), Arc::clone(&clock));
    run(&cloud, &*clock, &world()).await;
    let filter = veni_provider::InterfaceFilter::AttachedTo(instance());
    assert_eq!(cloud.describe_interfaces(filter).await.unwrap().len(), 1);
}
