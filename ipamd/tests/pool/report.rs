//! What the cluster is told.

use super::*;

fn reasons(node: &Node) -> Vec<(String, &'static str)> {
    node.told().happenings().into_iter().map(|(pod, reason, _)| (pod, reason)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_is_told_of_the_node_and_of_each_pod_and_its_end_of_both() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    assert_eq!(node.told().happenings(), [], "nothing is wrong");
    let fault = node.sim().inject(Fault::deny("CreateNetworkInterface"));
    let bodies = add_all(&node, 0..20).await;
    let starved = bodies.iter().position(|body| matches!(body, ReplyBody::Error(_))).unwrap();
    let starved = u32::try_from(starved).unwrap();
    let told = node.told().happenings();
    let of_node: Vec<_> = told.iter().filter(|(pod, ..)| pod.is_empty()).collect();
    assert_eq!(of_node.len(), 1, "{told:?}");
    assert!(
        of_node[0].1 == "CloudPermissionMissing"
            && of_node[0].2.contains("lacks ec2:CreateNetworkInterface"),
        "{of_node:?}"
    );
    let name = Node::request(starved).pod.name;
    let of_pod = told.iter().find(|(pod, ..)| *pod == name).expect("the pod is told of");
    assert!(
        of_pod.1 == "NoPodAddress" && of_pod.2.contains("ec2:CreateNetworkInterface"),
        "{of_pod:?}"
    );
    let fed = bodies.iter().filter(|body| matches!(body, ReplyBody::Wiring(_))).count();
    assert_eq!(told.len(), 1 + bodies.len() - fed, "one event a pod without an address: {told:?}");

    node.sim().withdraw(fault);
    tokio::time::sleep(Duration::from_secs(150)).await;
    node.add(starved).await;
    node.settle().await;
    let since = &reasons(&node)[told.len()..];
    assert!(since.contains(&(name, "PodAddressAssigned")), "{since:?}");
    assert!(since.contains(&(String::new(), "Resolved")), "{since:?}");
    assert_eq!(since.len(), 2, "{since:?}");
}

#[tokio::test(start_paused = true)]
async fn the_network_is_available_from_the_first_address_on_and_not_while_none_is_to_be_had() {
    let mut config = by_addresses();
    config.startup_taint = Some("veni.dev/starting".to_owned());
    let mut node = Node::start(NodeSpec::instant(config)).await;
    node.settle().await;
    let networks = node.told().networks();
    assert_eq!(networks.last(), Some(&(true, "PodAddresses")), "{networks:?}");
    assert!(networks[..networks.len() - 1].iter().all(|(available, _)| !available), "{networks:?}");
    assert_eq!(node.told().untainted(), [Some("veni.dev/starting".to_owned())]);

    // Pods, and then the last address: the node stays available, because a full node is the scheduler's affair.
    assert_all_wired(&add_all(&node, 0..20).await);
    node.settle().await;
    assert_eq!(node.told().networks(), networks);

    // A restart over a journal does not take pods away for a moment.
    node.kill().await;
    node.boot().await;
    node.settle().await;
    let after = &node.told().networks()[networks.len()..];
    assert_eq!(after, [(true, "PodAddresses")]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_gets_no_address_at_all_is_not_available_and_attempts_do_not_make_it_so() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    for action in ["CreateNetworkInterface", "AssignPrivateIpAddresses"] {
        node.sim().inject(Fault::deny(action).times(u32::MAX));
    }
    drop(add_all(&node, 0..1).await);
    tokio::time::sleep(Duration::from_secs(1200)).await;
    let networks = node.told().networks();
    assert!(networks.iter().all(|(available, _)| !available), "{networks:?}");
    assert!(networks.len() <= 3, "it does not flap: {networks:?}");
    assert_eq!(node.told().untainted(), [], "the taint stays");
}

#[tokio::test(start_paused = true)]
async fn pods_are_annotated_with_their_address_where_that_is_asked_for() {
    for asked in [false, true] {
        let mut config = by_addresses();
        config.annotate_pod_ip = asked;
        let node = Node::start(NodeSpec::instant(config)).await;
        let address = node.add(1).await.address.to_string();
        let expected = asked.then(|| (Node::request(1).pod.name, address));
        assert_eq!(node.told().annotations(), expected.into_iter().collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_tried_again_is_not_told_as_resolved() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let fault = node.sim().inject(Fault::deny("CreateNetworkInterface").times(u32::MAX));
    assert_all_wired(&add_all(&node, 0..14).await);
    assert!(matches!(node.begin_add(14).await, Some(ReplyBody::Error(_))));
    // No more demand: nothing is asked for, and the permission lacks as before.
    del_all(&node, 0..14).await;
    tokio::time::sleep(Duration::from_secs(1200)).await;
    let told = reasons(&node);
    assert!(told.contains(&(String::new(), "CloudPermissionMissing")), "{told:?}");
    assert!(told.iter().all(|(_, reason)| *reason != "Resolved"), "{told:?}");
    // It is told again when it is met again, and its end once the call has succeeded.
    assert!(add_all(&node, 20..40).await.iter().any(|body| matches!(body, ReplyBody::Error(_))));
    node.sim().withdraw(fault);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_all_wired(&add_all(&node, 20..40).await);
    let since = &reasons(&node)[told.len()..];
    let of_node: Vec<_> = since.iter().filter(|(pod, _)| pod.is_empty()).collect();
    assert_eq!(of_node.len(), 2, "{of_node:?}");
    assert_eq!((of_node[0].1, of_node[1].1), ("CloudPermissionMissing", "Resolved"));
}

#[tokio::test(start_paused = true)]
async fn pods_that_never_got_an_address_keep_no_later_ones_good_news_back() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let faults = ["CreateNetworkInterface", "AssignPrivateIpAddresses"]
        .map(|action| node.sim().inject(Fault::deny(action).times(u32::MAX)));
    assert_all_wired(&add_all(&node, 0..10).await);
    // Many that come and go in vain, and one that stays.
    for pods in [10..1034, 1034..1035] {
        let refused = add_all(&node, pods).await;
        assert!(refused.iter().all(|body| matches!(body, ReplyBody::Error(_))));
    }
    for fault in faults {
        node.sim().withdraw(fault);
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    node.add(1034).await;
    let name = Node::request(1034).pod.name;
    assert_eq!(reasons(&node).last(), Some(&(name, "PodAddressAssigned")));
}
