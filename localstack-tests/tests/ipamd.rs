//! ipamd's pool over real EC2 requests, with EC2's semantics: growing, shrinking, refusals, lost answers, a crash.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeSet, time::Duration};

use veni_localstack_tests::{Account, Daemon, Delays, Fault, LocalStack, Tier, When};
use veni_provider::{TAG_CREATED_AT, TAG_INSTANCE_ID};

/// The same for all tests of this binary, which share a server.
const DELAYS: Delays = Delays { attach_ms: 300, detach_ms: 200, create_visible_ms: 0 };
/// More than any cooldown and any minimum age of an ENI.
const LONG: Duration = Duration::from_secs(300);
const BY_ADDRESSES: &[(&str, &str)] = &[("WARM_IP_TARGET", "5"), ("MINIMUM_IP_TARGET", "10")];

/// A daemon on an m5.xlarge (4 ENIs, 14 secondary addresses each) in a subnet of its own.
async fn daemon(cidr: &str, vars: &[(&str, &str)]) -> Daemon {
    let account = Account::new(LocalStack::shared(Tier::Semantics)).await.unwrap();
    account.set_delays(DELAYS).unwrap();
    let subnet = account.subnet(cidr).await.unwrap();
    let node = account.run_instance("m5.xlarge", &subnet, &[]).await.unwrap();
    Daemon::start(account, node, vars).await.unwrap()
}

/// Takes `pods` away and waits until the pool holds no more than its settings want. (On how many ENIs: refusals can
/// leave the ten addresses of the minimum on a second ENI, which then may not go.)
async fn shrink(daemon: &Daemon, pods: std::ops::Range<u32>) {
    for n in pods {
        daemon.del(n).await.unwrap();
    }
    daemon.pass(LONG);
    daemon.until("small again", |view| view.pool.total <= 10).await.unwrap();
    daemon.settle().await.unwrap();
}

#[tokio::test]
async fn the_pool_grows_with_a_burst_and_shrinks_after_it() {
    let daemon = daemon("10.0.0.0/24", BY_ADDRESSES).await;
    let start = daemon.settle().await.unwrap();
    assert_eq!((start.pool.total, start.enis.len()), (10, 1));
    let wirings = daemon.add_all(0..30).await.unwrap();
    let addresses: BTreeSet<_> = wirings.iter().map(|w| w.address).collect();
    assert_eq!(addresses.len(), 30, "an address was given twice");
    let full = daemon.settle().await.unwrap();
    assert_eq!((full.pool.assigned, full.enis.len()), (30, 3));
    let attached = daemon.audit().await.unwrap();
    for eni in attached.iter().filter(|eni| eni.attachment.as_ref().unwrap().device_index > 0) {
        let instance = daemon.node().instance.as_str();
        assert_eq!(eni.description, format!("aws-K8S-{instance}"));
        assert_eq!(eni.tags.get(TAG_INSTANCE_ID).map(String::as_str), Some(instance));
        assert!(eni.tags.get(TAG_CREATED_AT).is_some_and(|at| at.ends_with('Z')), "{:?}", eni.tags);
        assert!(
            eni.attachment.as_ref().unwrap().delete_on_termination,
            "{} outlives its instance",
            eni.id
        );
    }
    shrink(&daemon, 0..30).await;
    assert_eq!(daemon.audit().await.unwrap().len(), 1);
    let calls = daemon.account().calls().unwrap();
    for action in ["CreateNetworkInterface", "AttachNetworkInterface", "DeleteNetworkInterface"] {
        let done = calls.iter().filter(|call| call.action == action && call.code == "200").count();
        assert_eq!(done, 2, "{action}: {calls:?}");
    }
}

#[tokio::test]
async fn a_full_subnet_is_told_and_served_again_when_there_is_room() {
    // 11 addresses, of which the instance has one, and somebody else takes five.
    let daemon =
        daemon("10.0.0.0/28", &[("WARM_IP_TARGET", "1"), ("VENI_ADD_WAIT_SECS", "3")]).await;
    daemon.settle().await.unwrap();
    let subnet = daemon.audit().await.unwrap()[0].subnet_id.to_string();
    let ec2 = daemon.account().ec2();
    let other = ec2.create_network_interface().subnet_id(subnet);
    let other = other.secondary_private_ip_address_count(4).send().await.unwrap();
    let other = other.network_interface.unwrap().network_interface_id.unwrap();
    assert_eq!(daemon.add_all(0..5).await.unwrap().len(), 5);
    let refused = daemon.add(5).await.unwrap_err().to_string();
    assert!(refused.contains("NoAddress") && refused.contains("subnet"), "{refused}");
    daemon
        .until("told", |view| view.problems.iter().any(|p| p.kind.contains("subnet")))
        .await
        .unwrap();

    ec2.delete_network_interface().network_interface_id(other).send().await.unwrap();
    // Past the wait that the refusals brought.
    daemon.pass(LONG);
    let before = daemon.calls_of("AssignPrivateIpAddresses").unwrap();
    // With the one that is to be warm they are as many as are free now.
    assert_eq!(daemon.add_all(5..9).await.unwrap().len(), 4);
    let calls = daemon.calls_of("AssignPrivateIpAddresses").unwrap() - before;
    assert!(calls <= 3, "{calls} calls for four pods: it still asks as if the subnet were full");
    daemon.audit_in_time().await.unwrap();
}

#[tokio::test]
async fn throttling_delays_and_denies_nothing() {
    let daemon = daemon("10.0.0.0/24", BY_ADDRESSES).await;
    daemon.settle().await.unwrap();
    let agent = daemon.account().agent.clone();
    let throttled =
        ["CreateNetworkInterface", "AttachNetworkInterface", "AssignPrivateIpAddresses"].map(
            |action| {
                Fault::next(action, &agent, When::Before, "RequestLimitExceeded", 503).times(2)
            },
        );
    daemon.account().set_faults(throttled.to_vec()).unwrap();
    let wirings = daemon.add_all(0..20).await.unwrap();
    assert_eq!(wirings.len(), 20);
    daemon.settle().await.unwrap();
    daemon.audit().await.unwrap();
    let calls = daemon.account().calls().unwrap();
    let hit = calls.iter().filter(|call| call.code == "RequestLimitExceeded").count();
    assert!(hit >= 2, "the throttling was met: {calls:?}");
}

#[tokio::test]
async fn an_error_before_or_after_the_effect_of_any_call_leaves_nothing_behind() {
    const ACTIONS: [&str; 7] = [
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
        "AssignPrivateIpAddresses",
        "UnassignPrivateIpAddresses",
        "DetachNetworkInterface",
        "DeleteNetworkInterface",
    ];
    for when in [When::Before, When::After] {
        let daemon = daemon("10.0.0.0/24", BY_ADDRESSES).await;
        daemon.settle().await.unwrap();
        let agent = daemon.account().agent.clone();
        let lost = ACTIONS.map(|action| Fault::next(action, &agent, when, "InternalError", 500));
        daemon.account().set_faults(lost.to_vec()).unwrap();
        let wirings = daemon.add_all(0..30).await.unwrap();
        assert_eq!(wirings.iter().map(|w| w.address).collect::<BTreeSet<_>>().len(), 30);
        daemon.settle().await.unwrap();
        daemon.audit().await.unwrap();
        shrink(&daemon, 0..30).await;
        // Addresses that the same ENI has given back and then got again by a call whose answer was lost look like a
        // stale answer, and are believed only when none can be as old.
        daemon.pass(LONG);
        daemon.audit_in_time().await.unwrap();
        let calls = daemon.account().calls().unwrap();
        let hit: BTreeSet<_> = calls
            .iter()
            .filter(|call| call.code == "InternalError")
            .map(|call| &*call.action)
            .collect();
        println!("{when:?}: hit {hit:?}");
        assert!(hit.len() >= 5, "{when:?}: only {hit:?} were met");
    }
}

#[tokio::test]
async fn a_crash_while_an_eni_is_being_made_loses_and_doubles_nothing() {
    let mut daemon = daemon("10.0.0.0/24", BY_ADDRESSES).await;
    daemon.settle().await.unwrap();
    for action in ["CreateNetworkInterface", "AttachNetworkInterface"] {
        let pods = if action.starts_with('C') { 0..20 } else { 20..40 };
        let before = daemon.calls_of(action).unwrap();
        let calls = async {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
            while daemon.calls_of(action).unwrap() == before {
                assert!(tokio::time::Instant::now() < deadline, "no {action}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            wirings = daemon.add_all(pods.clone()) => panic!("served before the crash: {wirings:?}"),
            () = calls => {}
        }
        let assigned = daemon.view().await.unwrap().pool.assigned;
        daemon.kill().await.unwrap();
        daemon.boot().await.unwrap();
        assert!(
            daemon.view().await.unwrap().pool.assigned >= assigned,
            "an allocation was dropped"
        );
        // The runtime asks again for every pod of which it has no answer.
        let wirings = daemon.add_all(pods).await.unwrap();
        assert_eq!(wirings.iter().map(|w| w.address).collect::<BTreeSet<_>>().len(), 20);
        daemon.settle().await.unwrap();
        daemon.audit_in_time().await.unwrap();
    }
    shrink(&daemon, 0..40).await;
    daemon.audit_in_time().await.unwrap();
}

#[tokio::test]
async fn metadata_that_forgets_an_eni_costs_no_pod_its_address() {
    let mut daemon = daemon("10.0.0.0/24", BY_ADDRESSES).await;
    let before = daemon.add_all(0..20).await.unwrap();
    daemon.settle().await.unwrap();
    let attached = daemon.audit().await.unwrap();
    let second = attached.iter().find(|e| e.attachment.as_ref().unwrap().device_index > 0).unwrap();
    daemon.node().metadata.forget(&second.id);
    daemon.kill().await.unwrap();
    daemon.boot().await.unwrap();
    let view = daemon.settle().await.unwrap();
    assert_eq!(view.pool.assigned, 20);
    let after = daemon.add_all(0..20).await.unwrap();
    let address = |wirings: &[veni_core::wire::Wiring]| {
        wirings.iter().map(|w| w.address).collect::<BTreeSet<_>>()
    };
    assert_eq!(address(&before), address(&after), "a pod has another address");
    daemon.audit().await.unwrap();
}

#[tokio::test]
async fn custom_networking_makes_enis_where_the_eniconfig_says_and_moves_on_when_a_subnet_is_full()
{
    let account = Account::new(LocalStack::shared(Tier::Semantics)).await.unwrap();
    account.set_delays(DELAYS).unwrap();
    let own = account.subnet("10.0.0.0/24").await.unwrap();
    // 11 addresses: an ENI with 10.
    let small = account.subnet("10.0.1.0/28").await.unwrap();
    let large = account.subnet("10.0.2.0/24").await.unwrap();
    let group = account.security_group("pods").await.unwrap();
    let node = account.run_instance("m5.xlarge", &own, &[]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-1, labels: {{eni: pods}}}}\n---\n\
         apiVersion: crd.k8s.amazonaws.com/v1alpha1\nkind: ENIConfig\nmetadata: {{name: pods}}\n\
         spec: {{subnet: {small}, subnets: [{large}], securityGroups: [{group}]}}\n"
    );
    std::fs::write(folder.path().join("eniconfig.yaml"), manifest).unwrap();
    let vars = [
        ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"),
        ("ENI_CONFIG_LABEL_DEF", "eni"),
        ("VENI_MANIFEST_DIR", folder.path().to_str().unwrap()),
        ("MY_NODE_NAME", "node-1"),
        BY_ADDRESSES[0],
        BY_ADDRESSES[1],
    ];
    let mut daemon = Daemon::start(account, node, &vars).await.unwrap();
    daemon.until("filled", |view| view.pool.available >= 10).await.unwrap();
    let wirings = daemon.add_all(0..15).await.unwrap();
    let inside = |cidr: &str| {
        let cidr: veni_core::net::Ipv4Prefix = cidr.parse().unwrap();
        wirings.iter().filter(|wiring| cidr.contains(wiring.address)).count()
    };
    assert_eq!((inside("10.0.1.0/28"), inside("10.0.2.0/24")), (10, 5));
    daemon.settle().await.unwrap();
    for eni in daemon.audit().await.unwrap() {
        match eni.attachment.as_ref().unwrap().device_index {
            0 => assert!(eni.secondary_addresses.is_empty(), "the primary gives none: {eni:?}"),
            _ => assert_eq!(eni.security_groups, std::slice::from_ref(&group)),
        }
    }
    // What is known stays known where nobody tells it.
    std::fs::remove_file(folder.path().join("eniconfig.yaml")).unwrap();
    daemon.kill().await.unwrap();
    daemon.boot().await.unwrap();
    let view = daemon.view().await.unwrap();
    assert_eq!((view.pool.assigned, view.pool.available >= 5), (15, true), "{:?}", view.pool);
}
