//! The pool of a node over the simulator: what it asks of EC2, how fast, and what people are told.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what does not hold")]

use std::time::Duration;

use tokio::time::Instant;
use veni_core::{
    config::{Config, Targets},
    wire::{ErrorCode, ReplyBody, Wiring},
};
use veni_ipamd::{
    owner::{Command, ConnectionId},
    testing::{ACTIONS, Node, NodeSpec},
};
use veni_provider::{
    ErrorClass,
    call::Failure,
    sim::{Consistency, Fault, Latency},
};

mod calls;
mod groups;
mod journal;
mod limits;
mod links;
mod pods;
mod refusals;
mod report;
mod restart;
mod settings;

fn by_addresses() -> Config {
    Config {
        targets: Targets { warm_ip: 5, minimum_ip: 10, ..Targets::default() },
        ..Config::default()
    }
}

async fn add_all(node: &Node, pods: std::ops::Range<u32>) -> Vec<ReplyBody> {
    let adds: Vec<_> = pods.map(|n| tokio::spawn(node.begin_add(n))).collect();
    let mut bodies = Vec::new();
    for add in adds {
        bodies.push(add.await.unwrap().expect("the daemon answers"));
    }
    bodies
}

async fn del_all(node: &Node, pods: std::ops::Range<u32>) {
    for n in pods {
        node.del(n).await.expect("the daemon answers");
    }
}

fn assert_all_wired(bodies: &[ReplyBody]) {
    let refused: Vec<_> = bodies.iter().filter(|b| !matches!(b, ReplyBody::Wiring(_))).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let mut addresses: Vec<_> = bodies
        .iter()
        .map(|body| match body {
            ReplyBody::Wiring(wiring) => wiring.address,
            _ => unreachable!("checked above"),
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), bodies.len(), "an address was given twice");
}

/// Nothing in the account that the ledger does not know.
async fn assert_nothing_leaked(node: &Node) {
    let view = node.view().await;
    let sim = node.sim();
    let held: usize = sim.interfaces().map(|i| i.secondary_addresses.len()).sum();
    let account = (sim.interfaces().count(), held);
    assert_eq!((view.enis.len(), view.addresses.len()), account, "{:?}", view.enis);
}

/// A node that has grown and shrunk, without a daemon; with the number of its journal's records.
async fn node_with_a_past() -> (Node, usize) {
    let targets = Targets { warm_ip: 2, minimum_ip: 3, ..Targets::default() };
    let mut node = Node::start(NodeSpec::instant(Config { targets, ..Config::default() })).await;
    assert_all_wired(&add_all(&node, 0..20).await);
    node.settle().await;
    del_all(&node, 2..20).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    node.settle().await;
    node.kill().await;
    let records = node.store().len();
    (node, records)
}

fn refusal(action: &str, class: ErrorClass) -> Fault {
    let code = format!("Test.{class:?}");
    Fault::error_before(action, Failure::new(class, code, "the test says so"))
}

/// The answer to an ADD whose plugin does nothing with it yet.
async fn answered(node: &Node, pod: u32) -> Box<Wiring> {
    let (connection, request) = (ConnectionId::next(), Node::request(pod));
    let body = node.requests().unwrap().ask(|reply| Command::Add(connection, request, reply)).await;
    let Some(ReplyBody::Wiring(wiring)) = body else { panic!("{body:?}") };
    wiring
}
