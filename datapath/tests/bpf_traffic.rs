//! Real sockets of real pods through both programs: what single frames cannot show.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skipped"
)]
#![cfg(feature = "bpf")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

use veni_core::{marks::EniMarkMask, wire::Wiring};
use veni_datapath::{
    bpf::{
        DropReason, Filter, PodEntry, PodPolicy, Write,
        table::{
            ANY_CLASS, BackendKey, BackendValue, Decision, OPEN_SET, PortRange, Profile,
            ServiceKeyV4, ServiceValue, VerdictKey,
        },
    },
    netns::NetNs,
};

#[path = "support/node.rs"]
mod node;
#[path = "support/upgrade.rs"]
mod upgrade;

const VIP: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 10);
/// A set that denies everything.
const CLOSED: u32 = 1;
const WAIT: Duration = Duration::from_millis(700);
/// For what has to arrive: a kernel under emulation takes seconds to load the programs anew.
const PATIENCE: Duration = Duration::from_secs(60);

struct Pods {
    filter: Filter,
    wirings: Vec<Wiring>,
    inside: Vec<NetNs>,
}

impl Pods {
    fn new(directory: &Path, number: u8) -> Self {
        node::ip(&format!("addr add {}/32 dev lo", node::NODE));
        node::ip("rule add priority 512 lookup 7600");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        // As on a node: all layouts on one file system.
        let pins = node::pins(directory);
        std::fs::create_dir(&pins).unwrap();
        node::run("mount", &["-t", "bpf", "bpf", &pins.display().to_string()]);
        let filter = Filter::open(&pins, EniMarkMask::default()).unwrap();
        filter.set_node_addresses(&[IpAddr::from(node::NODE)].into()).unwrap();
        let blocks = filter.ensure_attached().unwrap();
        let wirings: Vec<Wiring> = (1..=number).map(|n| node::wiring(n, Some(blocks))).collect();
        let profile = Profile {
            otherwise: Decision::deny(3),
            count: 0,
            ranges: [PortRange {
                protocol: 0,
                of_node: 0,
                first: 1,
                last: 0,
                reserved2: 0,
                decision: Decision::deny(0),
            }; 8],
        };
        filter
            .tables()
            .apply(&[
                Write::Profile { number: 1, profile },
                Write::Verdict { key: VerdictKey { set: CLOSED, class: ANY_CLASS }, profile: 1 },
            ])
            .unwrap();
        for wiring in &wirings {
            let entry =
                PodEntry { address: wiring.address, mac: wiring.pod_mac, mark: 0x0002_0000 };
            filter.pod_admit(wiring.host_ifindex, entry, PodPolicy::default()).unwrap();
        }
        let inside: Vec<NetNs> = wirings.iter().map(node::wire).collect();
        let pods = Self { filter, wirings, inside };
        (0..pods.inside.len()).for_each(|n| pods.wait_for_carrier(n));
        pods
    }

    /// A veth's carrier comes up some time after it was wired (`linkwatch`, asynchronous).
    fn wait_for_carrier(&self, n: usize) {
        let address = node::NODE.to_string();
        let up = || node::output("ping", &["-c1", "-W1", &address]).status.success();
        assert!(node::within(&self.inside[n], || (0..10).any(|_| up())));
    }

    fn isolate(&self, n: usize, ingress_set: u32, egress_set: u32) {
        let policy = PodPolicy { ingress_set, egress_set, ..PodPolicy::default() };
        assert!(self.filter.pod_policy(self.wirings[n].host_ifindex, policy).unwrap());
        self.filter.raise_epoch().unwrap();
    }

    fn service(&self, front: (Ipv4Addr, u16), backend: (Ipv4Addr, u16)) {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&backend.0.octets());
        let list = u32::from(front.1);
        let value = ServiceValue { backends: list, count: 1, affinity_secs: 0, service: list };
        let key = ServiceKeyV4 {
            address: front.0.octets(),
            port: front.1.to_be_bytes(),
            protocol: 6,
            reserved: 0,
        };
        let backend = BackendValue { address, port: backend.1.to_be_bytes(), reserved: [0; 2] };
        self.filter
            .tables()
            .apply(&[
                Write::Backend { key: BackendKey { backends: list, slot: 0 }, value: backend },
                Write::ServiceV4 { key, value },
            ])
            .unwrap();
    }

    fn address(&self, n: usize) -> Ipv4Addr {
        self.wirings[n].address
    }

    /// A server in the pod that says whom it sees and echoes a line, for as many connections.
    fn serve(
        &self,
        n: usize,
        port: u16,
        connections: usize,
    ) -> thread::JoinHandle<Vec<SocketAddr>> {
        let listener =
            node::within(&self.inside[n], || TcpListener::bind(("0.0.0.0", port)).unwrap());
        thread::spawn(move || {
            (0..connections)
                .map(|_| {
                    let (mut stream, peer) = listener.accept().unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let mut line = vec![0; 64 * 1024];
                    stream.read_exact(&mut line).unwrap();
                    stream.write_all(&line).unwrap();
                    peer
                })
                .collect()
        })
    }

    fn connects_from(&self, n: usize, to: (Ipv4Addr, u16)) -> bool {
        node::within(&self.inside[n], || connects(to))
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.filter.drops().unwrap()[&reason]
    }
}

/// Exchanges 64 KiB, so that segments of every size and offload go by.
fn connects(to: (Ipv4Addr, u16)) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&to.into(), WAIT) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..64 * 1024u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut received = vec![0; sent.len()];
    stream.write_all(&sent).is_ok() && stream.read_exact(&mut received).is_ok() && received == sent
}

#[test]
fn the_node_and_its_pods_may_always_talk_but_only_really() {
    node::in_node(|directory| {
        let pods = Pods::new(directory, 2);
        pods.isolate(0, CLOSED, CLOSED);
        // A probe of the node's, and the pod to a process of the node.
        let server = pods.serve(0, 8080, 1);
        assert!(connects((pods.address(0), 8080)), "the node's probe");
        assert_eq!(server.join().unwrap()[0].ip(), IpAddr::from(node::NODE));
        pods.wait_for_carrier(0);
        // The other pod is refused, with its own address and with the node's after masquerading.
        let silent =
            node::within(&pods.inside[0], || TcpListener::bind(("0.0.0.0", 8081)).unwrap());
        let before = pods.dropped(DropReason::IngressDenied);
        assert!(!pods.connects_from(1, (pods.address(0), 8081)));
        let after = pods.dropped(DropReason::IngressDenied);
        assert!(after > before, "refused by policy");
        node::run(
            "nft",
            &[
                "add table ip m; add chain ip m c { type nat hook postrouting priority 100; }; add rule ip m c ip daddr 10.0.9.1 masquerade",
            ],
        );
        assert!(!pods.connects_from(1, (pods.address(0), 8081)));
        assert!(pods.dropped(DropReason::IngressDenied) > after, "masqueraded, refused by policy");
        drop(silent);
    });
}

#[test]
fn a_service_is_reached_by_real_sockets() {
    node::in_node(|directory| {
        let pods = Pods::new(directory, 2);
        pods.service((VIP, 80), (pods.address(1), 8080));
        let server = pods.serve(1, 8080, 3);
        assert!((0..3).all(|_| pods.connects_from(0, (VIP, 80))));
        assert!(
            server.join().unwrap().iter().all(|peer| peer.ip() == IpAddr::from(pods.address(0))),
            "the pod's own address is seen"
        );
        // Isolated, it is judged by its back end.
        pods.isolate(0, OPEN_SET, CLOSED);
        assert!(!pods.connects_from(0, (VIP, 80)));
        assert!(pods.dropped(DropReason::EgressDenied) > 0);
    });
}

#[test]
fn a_pod_reaches_itself_by_its_service() {
    node::in_node(|directory| {
        let pods = Pods::new(directory, 1);
        pods.service((VIP, 81), (pods.address(0), 8080));
        pods.isolate(0, CLOSED, CLOSED);
        let server = pods.serve(0, 8080, 2);
        assert!((0..2).all(|_| pods.connects_from(0, (VIP, 81))));
        assert!(
            server.join().unwrap().iter().all(|peer| peer.ip() == IpAddr::from([169, 254, 1, 1]))
        );
    });
}

#[test]
fn a_big_datagram_arrives_in_fragments() {
    node::in_node(|directory| {
        let pods = Pods::new(directory, 2);
        let server = node::within(&pods.inside[1], || UdpSocket::bind(("0.0.0.0", 53)).unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = node::within(&pods.inside[0], || UdpSocket::bind(("0.0.0.0", 0)).unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent = vec![7; 40_000];
        client.send_to(&sent, (pods.address(1), 53)).unwrap();
        let mut received = vec![0; 65_000];
        let (length, from) = server.recv_from(&mut received).unwrap();
        assert_eq!(length, sent.len());
        // Its answer passes into a pod that takes nothing new.
        pods.isolate(0, CLOSED, OPEN_SET);
        server.send_to(&sent, from).unwrap();
        assert_eq!(client.recv_from(&mut received).unwrap().0, sent.len());
    });
}
