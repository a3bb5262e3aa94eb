//! Security groups: the further ENIs have the primary one's, and what somebody else has changed stays.

use veni_core::id::SecurityGroupId;
use veni_provider::{Cloud as _, call::ACTION_METADATA_INTERFACES};

use super::*;

const ACTION: &str = "ModifyNetworkInterfaceAttribute";

fn group(id: &str) -> SecurityGroupId {
    id.parse().unwrap()
}

/// A node with three ENIs in `sg-old`, which it knows, without a daemon.
async fn node_in_old_groups(max_eni: u32) -> Node {
    let config = Config { max_eni: Some(max_eni), ..by_addresses() };
    let mut node = Node::start(NodeSpec::instant(config)).await;
    for id in ["sg-old", "sg-new"] {
        node.sim().add_security_group(group(id), "vpc-1".parse().unwrap()).unwrap();
    }
    assert_all_wired(&add_all(&node, 0..30).await);
    node.settle().await;
    let primary = node.view().await.enis[0].id.clone().unwrap();
    node.cloud().set_security_groups(&primary, &[group("sg-old")]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(130)).await;
    assert_all_in(&node, "sg-old");
    node.kill().await;
    node
}

fn assert_all_in(node: &Node, id: &str) {
    for interface in node.sim().interfaces() {
        assert_eq!(interface.security_groups, [group(id)], "{}", interface.id);
    }
}

/// As terraform does it: all ENIs of the instance.
async fn change_all(node: &Node, id: &str) {
    let enis: Vec<_> = node.sim().interfaces().map(|interface| interface.id.clone()).collect();
    for eni in enis {
        node.cloud().set_security_groups(&eni, &[group(id)]).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn groups_that_were_changed_while_no_daemon_ran_are_not_taken_back_without_metadata() {
    let mut node = node_in_old_groups(4).await;
    change_all(&node, "sg-new").await;
    let calls = |node: &Node| node.sim().calls().of(ACTION).calls;
    let before = calls(&node);
    let fault = node.sim().inject(Fault::unavailable(ACTION_METADATA_INTERFACES).times(u32::MAX));
    node.boot().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(calls(&node), before, "what was kept is a former daemon's");
    assert_all_in(&node, "sg-new");
    // Another one is made in what EC2 shows: one call, which protects it.
    assert_all_wired(&add_all(&node, 30..45).await);
    node.settle().await;
    assert_all_in(&node, "sg-new");
    assert_eq!((calls(&node), node.sim().interfaces().count()), (before + 1, 4));
    node.sim().withdraw(fault);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(calls(&node), before + 1);
    assert_all_in(&node, "sg-new");
}

#[tokio::test(start_paused = true)]
async fn groups_that_were_changed_while_no_daemon_ran_are_not_taken_back_by_metadata_that_is_behind()
 {
    let mut node = node_in_old_groups(4).await;
    node.sim()
        .set_consistency(Consistency { metadata_delay_millis: 300_000, ..Consistency::default() });
    change_all(&node, "sg-new").await;
    let before = node.sim().calls().of(ACTION).calls;
    node.boot().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_all_in(&node, "sg-new");
    assert_eq!(node.sim().calls().of(ACTION).calls, before);
    node.assert_sound();
}

/// EC2 is asked about one ENI while it shows new groups, and the daemon has seen only the old ones of the primary.
#[tokio::test(start_paused = true)]
async fn groups_that_were_changed_under_a_running_daemon_are_not_taken_back_by_a_look_at_one_eni() {
    let mut node = node_in_old_groups(3).await;
    node.sim()
        .set_consistency(Consistency { metadata_delay_millis: 300_000, ..Consistency::default() });
    node.boot().await;
    tokio::time::sleep(Duration::from_secs(310)).await;
    change_all(&node, "sg-new").await;
    let before = node.sim().calls().of(ACTION).calls;
    let looks = || node.sim().calls().of("DescribeNetworkInterfaces").calls;
    let asked = looks();
    // A link that goes and comes back has EC2 asked about its ENI.
    let macs: std::collections::HashSet<_> = node.sim().interfaces().map(|i| i.mac).collect();
    let primary = node.view().await.enis[0].mac.unwrap();
    node.host.plug([primary].into());
    node.host.plug(macs);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(looks() > asked, "EC2 was asked");
    assert_eq!(node.sim().calls().of(ACTION).calls, before);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_all_in(&node, "sg-new");
    assert_eq!(node.sim().calls().of(ACTION).calls, before);
}
