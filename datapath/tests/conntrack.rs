//! Flushing conntrack entries by address, with real flows.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skipped or measured"
)]
#![cfg(feature = "host")]

use std::net::{Ipv4Addr, UdpSocket};

use veni_datapath::conntrack;

#[path = "support/node.rs"]
mod node;

const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const C: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);

/// Loopback flows between addresses, tracked because a rule asks for it.
fn track() {
    for address in [A, B, C] {
        node::ip(&format!("addr add {address}/32 dev lo"));
    }
    node::run(
        "nft",
        &[
            "add table ip t; add chain ip t c { type filter hook output priority 0; }; add rule ip t c ct state new accept",
        ],
    );
}

fn flow(from: Ipv4Addr, to: Ipv4Addr, port: u16) {
    let server = UdpSocket::bind((to, port)).unwrap();
    let client = UdpSocket::bind((from, 0)).unwrap();
    client.send_to(b"x", (to, port)).unwrap();
    let mut buffer = [0; 8];
    server.recv_from(&mut buffer).unwrap();
}

fn entries() -> String {
    node::run("conntrack", &["-L"])
}

#[test]
fn entries_that_name_the_address_go_and_others_stay() {
    node::in_node(|_| {
        track();
        flow(A, B, 1000);
        flow(B, A, 1001);
        flow(B, C, 1002);
        flow(C, B, 1003);
        assert_eq!(entries().lines().filter(|l| l.contains(&A.to_string())).count(), 2);
        conntrack::flush(A).unwrap();
        let left = entries();
        assert!(!left.contains(&format!("={A} ")), "{left}");
        assert_eq!(left.lines().filter(|l| l.contains(&C.to_string())).count(), 2, "{left}");
        conntrack::flush(A).unwrap();
    });
}

#[test]
fn an_address_behind_a_translation_is_found_in_the_reply_too() {
    node::in_node(|_| {
        track();
        node::run(
            "nft",
            &[
                "add chain ip t d { type nat hook output priority -100; }; add rule ip t d ip daddr 10.1.0.3 udp dport 53 dnat to 10.1.0.1:1000",
            ],
        );
        let server = UdpSocket::bind((A, 1000)).unwrap();
        let client = UdpSocket::bind((B, 0)).unwrap();
        client.send_to(b"x", (C, 53)).unwrap();
        server.recv_from(&mut [0; 8]).unwrap();
        let before = entries();
        assert!(before.contains("dst=10.1.0.3") && before.contains("src=10.1.0.1"), "{before}");
        conntrack::flush(A).unwrap();
        assert!(!entries().contains("10.1.0.3"), "the entry is there though A answers in it");
    });
}

#[test]
fn the_way_of_older_kernels_gives_the_same() {
    node::in_node(|_| {
        track();
        flow(A, B, 1000);
        flow(B, A, 1001);
        flow(B, C, 1002);
        conntrack::flush_one_by_one(A).unwrap();
        let left = entries();
        assert!(!left.contains(&format!("={A} ")), "{left}");
        assert!(left.contains(&C.to_string()), "{left}");
    });
}

#[test]
fn a_thousand_flows_of_others_do_not_slow_it_down_to_a_listing() {
    node::in_node(|_| {
        track();
        for port in 0..1000 {
            flow(B, C, 2000 + port);
        }
        flow(A, B, 1000);
        let start = std::time::Instant::now();
        conntrack::flush(A).unwrap();
        println!("flush of one address beside 1000 flows: {:?}", start.elapsed());
        assert_eq!(entries().lines().count(), 1000);
    });
}
