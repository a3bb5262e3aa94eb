//! The peers of one rule: none, each of ten, every pair of them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::super::manifest::labels;
use super::{Addresses, Base, Case, Direction, Theme, one_step};

pub(super) fn cases(addresses: Addresses<'_>) -> Vec<Case> {
    let peers = peers(addresses);
    let mut cases = Vec::new();
    for direction in Direction::BOTH {
        let mut add = |what: &str, list: Value| {
            let mut base = Base::new();
            base.rule(direction)[direction.peers()] = list;
            let name = format!("peers: {} {what}", direction.name());
            cases.push(one_step(addresses, Theme::Peers, name, [base.manifest()]));
        };
        add("none", json!([]));
        for (what, peer) in &peers {
            add(what, json!([peer]));
        }
        for (index, (first, one)) in peers.iter().enumerate() {
            for (second, two) in &peers[index + 1..] {
                add(&format!("{first} or {second}"), json!([one, two]));
            }
        }
    }
    cases
}

/// Pods {nil, all, c} × namespaces {nil, all, x} without nil × nil, and z/c's surroundings without and with a hole.
fn peers(addresses: Addresses<'_>) -> Vec<(String, Value)> {
    let pods =
        [("", None), ("all pods", Some(json!({}))), ("pod c", Some(labels(&json!({"pod": "c"}))))];
    let namespaces = [
        ("", None),
        ("all namespaces", Some(json!({}))),
        ("namespace x", Some(labels(&json!({"ns": "x"})))),
    ];
    let mut peers = Vec::new();
    for (pod_name, pod) in &pods {
        for (namespace_name, namespace) in &namespaces {
            let mut peer = json!({});
            if let Some(selector) = pod {
                peer["podSelector"] = selector.clone();
            }
            if let Some(selector) = namespace {
                peer["namespaceSelector"] = selector.clone();
            }
            if pod.is_some() || namespace.is_some() {
                peers.push((format!("({pod_name}; {namespace_name})"), peer));
            }
        }
    }
    let block = block(addresses("z", "c").first().copied(), 8);
    let hole = self::block(addresses("z", "c").first().copied(), 4);
    peers.push(("(block)".to_owned(), json!({"ipBlock": {"cidr": block}})));
    let with_hole = json!({"ipBlock": {"cidr": block, "except": [hole]}});
    peers.push(("(block with a hole)".to_owned(), with_hole));
    peers
}

/// The block around an address with that many host bits.
fn block(address: Option<IpAddr>, host_bits: u8) -> String {
    let address = address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let bits = if address.is_ipv4() { 32 } else { 128 };
    IpNet::new(address, bits - host_bits)
        .map_or_else(|_| String::new(), |net| net.trunc().to_string())
}
