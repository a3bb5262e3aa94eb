//! The provider conformance suite, whole, against LocalStack with EC2's semantics.

use std::time::Duration;

use veni_localstack_tests::{Account, LocalStack, Tier, WallClock};
use veni_provider::conformance::{self, CaseOutcome, World};

#[tokio::test]
async fn the_provider_passes_every_case_of_the_conformance_suite() {
    let account = Account::new(LocalStack::shared(Tier::Semantics)).await.unwrap();
    let subnet = account.subnet("10.0.0.0/20").await.unwrap();
    let small_subnet = account.subnet("10.0.16.0/27").await.unwrap();
    let groups = [
        account.security_group("one").await.unwrap(),
        account.security_group("two").await.unwrap(),
    ];
    let node = account.run_instance("m5.xlarge", &subnet, &groups[..1]).await.unwrap();
    let world = World {
        subnet,
        small_subnet,
        security_groups: groups,
        groups: account.group_world().await.unwrap(),
        instance: node.instance.clone(),
        run: "localstack".into(),
        describe_is_consistent: true,
        has_metadata: true,
        patience: Duration::from_secs(20),
        pause: Duration::from_millis(50),
    };
    let clock = WallClock::start();
    let mut wrong = Vec::new();
    for name in conformance::CASES {
        let result = conformance::run_case(&node.cloud, &clock, &world, name).await;
        println!("{result}");
        if result.outcome != CaseOutcome::Passed {
            wrong.push(result.to_string());
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        conformance::CASES.len(),
        wrong.join("\n")
    );
}
