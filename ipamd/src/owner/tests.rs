//! What readiness, STATUS and the problems say of an owner that cannot serve.

use std::time::Duration;

use veni_core::{
    config::{Config, Targets},
    wire::{ErrorCode, ReplyBody, inspect::View},
};
use veni_provider::sim::Fault;

use super::Command;
use crate::testing::{Node, NodeSpec};

async fn node() -> Node {
    let targets = Targets { warm_ip: 5, minimum_ip: 10, ..Targets::default() };
    let node = Node::start(NodeSpec::instant(Config { targets, ..Config::default() })).await;
    node.settle().await;
    node
}

/// What STATUS answers: `None` when it does not fail.
async fn status(node: &Node) -> Option<(ErrorCode, String)> {
    match node.requests().unwrap().ask(Command::Status).await {
        Some(ReplyBody::Ready) => None,
        Some(ReplyBody::Error(error)) => Some((error.code, error.message)),
        other => panic!("{other:?}"),
    }
}

async fn refusal(node: &Node, pod: u32) -> ErrorCode {
    match node.begin_add(pod).await {
        Some(ReplyBody::Error(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

fn problem(view: &View, kind: &str) -> Option<String> {
    view.problems.iter().find(|p| p.kind == kind).map(|p| p.message.clone())
}

fn adds_counted(node: &Node) -> String {
    let text = node.metrics().text();
    let line = text.lines().find(|line| line.starts_with("awscni_add_ip_req_count "));
    line.unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_by_readiness_status_and_problems_until_it_takes_something() {
    let node = node().await;
    node.store().set_full(true);
    assert_eq!(refusal(&node, 0).await, ErrorCode::Storage);
    let view = node.view().await;
    assert!(!view.daemon.ready && view.pool.available > 0, "{:?}", view.pool);
    assert!(problem(&view, "storage").unwrap().contains("free space"), "{:?}", view.problems);
    assert_eq!(view.problems.len(), 1, "{:?}", view.problems);
    let (code, message) = status(&node).await.unwrap();
    assert_eq!(code, ErrorCode::Storage);
    assert!(message.contains("the journal cannot be written"), "{message}");
    assert_eq!(adds_counted(&node), "awscni_add_ip_req_count 0", "a refusal has no address");
    node.store().set_full(false);
    // Nobody asks meanwhile: a node that is not ready gets no pods.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let view = node.view().await;
    assert!(view.daemon.ready && view.problems.is_empty(), "{:?}", view.problems);
    assert_eq!(status(&node).await, None);
    node.add(0).await;
    assert_eq!(adds_counted(&node), "awscni_add_ip_req_count 1");
}

#[tokio::test(start_paused = true)]
async fn a_filter_that_is_not_in_force_is_told_and_tried_again_by_itself() {
    let mut node = node().await;
    node.kill().await;
    node.host.state().failing = true;
    node.boot().await;
    let view = node.view().await;
    assert!(!view.daemon.ready && view.pool.available > 0, "{:?}", view.pool);
    let told = problem(&view, "filter").unwrap();
    assert!(told.contains("the test says so"), "{told}");
    assert_eq!(status(&node).await, Some((ErrorCode::NotReady, told)));
    assert_eq!(refusal(&node, 0).await, ErrorCode::Internal);
    node.host.state().failing = false;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let view = node.view().await;
    assert!(view.daemon.ready && view.problems.is_empty(), "{:?}", view.problems);
    assert_eq!(status(&node).await, None);
}

#[tokio::test(start_paused = true)]
async fn status_fails_for_want_of_addresses_only_where_there_are_no_pods_to_lose() {
    let mut node = node().await;
    node.add(0).await;
    for action in ["CreateNetworkInterface", "AssignPrivateIpAddresses"] {
        node.sim().inject(Fault::deny(action).times(u32::MAX));
    }
    let adds: Vec<_> = (1..30).map(|pod| tokio::spawn(node.begin_add(pod))).collect();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let view = node.view().await;
    assert!(view.pool.available == 0 && view.pool.waiting > 0, "{:?}", view.pool);
    assert!(!view.daemon.ready, "readiness is that of the next ADD");
    assert_eq!(status(&node).await, None, "healthy pods would be evicted");
    for add in adds {
        add.abort();
    }
    node.kill().await;

    let spec = NodeSpec::instant(Config { disable_provisioning: true, ..Config::default() });
    let bare = Node::start(spec).await;
    let view = bare.view().await;
    assert_eq!((view.pool.available, view.daemon.ready), (0, false));
    let (code, message) = status(&bare).await.unwrap();
    assert_eq!(code, ErrorCode::NotReady);
    assert!(message.contains("DISABLE_NETWORK_RESOURCE_PROVISIONING"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn status_does_not_fail_while_an_empty_pool_grows() {
    let node = Node::start(NodeSpec::instant(Config::default())).await;
    for action in ["CreateNetworkInterface", "AssignPrivateIpAddresses"] {
        node.sim().inject(Fault::delay(action, 10_000).times(u32::MAX));
    }
    let view = node.view().await;
    assert_eq!((view.pool.available, view.daemon.ready), (0, false), "nothing has come yet");
    assert_eq!(status(&node).await, None);
}
