//! What the conformance suite cannot ask about security groups: IPv6 members, refusals, and the resolver over EC2.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{sync::Arc, time::Duration};

use veni_localstack_tests::{Account, Fault, LocalStack, Node, Tier, When};
use veni_policy::security_group::GroupState;
use veni_provider::{Cloud, CreateInterface, ErrorClass};
use veni_security_groups::{GroupHealth, Resolver, SecurityGroups, Settings, answered};

async fn place() -> (Account, veni_core::id::SubnetId, Node) {
    let account = Account::new(LocalStack::shared(Tier::Semantics)).await.unwrap();
    let subnet = account.subnet("10.0.0.0/20").await.unwrap();
    let node = account.run_instance("m5.xlarge", &subnet, &[]).await.unwrap();
    (account, subnet, node)
}

#[tokio::test]
async fn a_members_ipv6_addresses_are_told() {
    let (account, subnet, node) = place().await;
    let group = account.security_group("six").await.unwrap();
    let address = "2001:db8::4";
    let named = veni_provider_aws::aws_sdk_ec2::types::InstanceIpv6Address::builder();
    account
        .ec2()
        .create_network_interface()
        .subnet_id(subnet.as_str())
        .groups(group.as_str())
        .ipv6_addresses(named.ipv6_address(address).build())
        .send()
        .await
        .unwrap();
    let members = node.cloud.describe_group_members(&[group]).await.unwrap();
    assert_eq!(members.len(), 1);
    assert!(members[0].addresses.contains(&address.parse().unwrap()), "{members:?}");
    assert_eq!(members[0].addresses.len(), 2, "and its IPv4 address");
}

#[tokio::test]
async fn a_denied_action_is_named() {
    let (account, _, node) = place().await;
    let world = account.group_world().await.unwrap();
    let denied = |action| {
        let code = "UnauthorizedOperation";
        let fault = Fault::next(action, &account.agent, When::Before, code, 403);
        account.set_faults(vec![fault]).unwrap();
        Some(ErrorClass::Denied { action: action.into() })
    };
    let (groups, lists) = ([world.ruled], [world.prefix_list]);
    let expected = denied("DescribeSecurityGroupRules");
    let told = node.cloud.describe_security_group_rules(&groups).await.err();
    assert_eq!(told.map(|e| e.class), expected);
    let expected = denied("DescribeSecurityGroups");
    let told = node.cloud.describe_security_groups(&groups).await.err();
    assert_eq!(told.map(|e| e.class), expected);
    let expected = denied("DescribeNetworkInterfaces");
    let told = node.cloud.describe_group_members(&groups).await.err();
    assert_eq!(told.map(|e| e.class), expected);
    let expected = denied("DescribeManagedPrefixLists");
    let told = node.cloud.describe_prefix_lists(&lists).await.err();
    assert_eq!(told.map(|e| e.class), expected);
    let expected = denied("GetManagedPrefixListEntries");
    let told = node.cloud.prefix_list_entries(&lists[0], None).await.err();
    assert_eq!(told.map(|e| e.class), expected);
}

#[tokio::test]
async fn the_resolver_publishes_what_ec2_says() {
    let (account, subnet, node) = place().await;
    let world = account.group_world().await.unwrap();
    let carrier = CreateInterface {
        subnet_id: subnet,
        security_groups: vec![world.referenced.clone()],
        secondary_addresses: 2,
        prefixes: 0,
        description: String::new(),
        tags: std::collections::BTreeMap::new(),
        client_token: format!("{}-carrier", account.agent),
    };
    node.cloud.create_interface(carrier).await.unwrap();
    let before = account.calls().unwrap().len();
    let missing: veni_core::id::SecurityGroupId = "sg-00000000000000000".parse().unwrap();
    let wanted = [world.ruled.clone(), missing.clone()].into();
    let (resolver, driver) = Resolver::new(Arc::new(node.cloud.clone()), Settings::default());
    tokio::spawn(driver.run());
    let mut snapshots = resolver.subscribe();
    resolver.want(wanted);
    let wanted = [world.ruled.clone(), missing.clone()].into();
    tokio::time::timeout(Duration::from_secs(20), answered(&mut snapshots, &wanted)).await.unwrap();
    let snapshot = snapshots.borrow().clone();
    let ruled = &snapshot.groups[&world.ruled];
    assert_eq!(ruled.state, GroupState::Resolved);
    // One rule out goes to a list of two ranges, another is the one of every new group.
    assert_eq!((ruled.ingress.len(), ruled.egress.len()), (5, 3));
    assert_eq!(snapshot.members[&world.referenced].len(), 3);
    let GroupState::Unresolved { reason } = &snapshot.groups[&missing].state else { panic!() };
    assert!(reason.contains("does not exist"), "{reason}");
    let states: Vec<_> = resolver.status().into_iter().map(|s| (s.id, s.state)).collect();
    assert!(states.contains(&(world.ruled, GroupHealth::Fresh)), "{states:?}");
    let calls = account.calls().unwrap();
    let actions: Vec<_> = calls[before..].iter().map(|call| call.action.as_str()).collect();
    let expected = [
        "DescribeSecurityGroupRules",
        "DescribeSecurityGroups",
        "DescribeNetworkInterfaces",
        "DescribeManagedPrefixLists",
        "GetManagedPrefixListEntries",
    ];
    assert_eq!(actions, expected);
}
