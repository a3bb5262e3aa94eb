//! Which way a pod's packets go, and with which source: real filter, rules and nft table; a router that drops what EC2
//! would drop (source/destination check).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skipped or measured"
)]
#![cfg(feature = "bpf")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use veni_core::{marks::EniMarkMask, net::Mac};
use veni_datapath::{
    bpf::{Filter, PodEntry},
    host::HostConfig,
    netns::NetNs,
    nft::{NftConfig, NftTable},
};

#[path = "support/node.rs"]
mod node;
#[path = "support/vpc.rs"]
mod vpc;

/// A Service address: nobody's.
const SERVICE: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);

struct World {
    router: NetNs,
    pod: NetNs,
    _filter: Filter,
}

fn world(
    directory: &Path,
    config: impl FnOnce(&mut HostConfig),
    nft: impl FnOnce(&mut NftConfig),
) -> World {
    let router = vpc::up();
    let filter = Filter::open(&node::pins(directory), EniMarkMask::default()).unwrap();
    let blocks = filter.ensure_attached().unwrap();
    let mut host = vpc::config(Some(blocks));
    config(&mut host);
    let wiring =
        veni_core::wire::Wiring { address: vpc::pod().address, ..node::wiring(1, Some(blocks)) };
    let mark = host.mask.mark(host.secondary[0].slot);
    let entry = PodEntry { address: wiring.address, mac: Mac(wiring.pod_mac.0), mark };
    filter.pod_insert(wiring.host_ifindex, entry).unwrap();
    let pod = node::wire(&wiring);
    let mut table = vpc::nft_config();
    nft(&mut table);
    NftTable::new(&table).apply().unwrap();
    assert_eq!(vpc::settle(&host, &[vpc::pod()]).conflicts, []);
    World { router, pod, _filter: filter }
}

/// Serves one connection inside `namespace`: says whom it sees.
fn serve(namespace: &NetNs, address: Ipv4Addr, port: u16) -> thread::JoinHandle<SocketAddr> {
    let listener = node::within(namespace, || TcpListener::bind((address, port)).unwrap());
    thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
        from
    })
}

/// Connects from inside `namespace` and reads the greeting.
fn connect(namespace: &NetNs, from: Option<Ipv4Addr>, to: Ipv4Addr, port: u16) -> bool {
    node::within(namespace, || {
        let stream = from.map_or_else(
            || TcpStream::connect_timeout(&(to, port).into(), Duration::from_secs(5)),
            |from| connect_from(from, to, port),
        );
        let Ok(mut stream) = stream else { return false };
        let mut greeting = [0; 5];
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.read_exact(&mut greeting).is_ok() && greeting == *b"hello"
    })
}

/// A route with that source is all it takes.
fn connect_from(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let via = node::ip(&format!("route get {to}"));
    let device =
        via.split_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap().to_owned();
    node::ip(&format!("route replace {to}/32 dev {device} src {from}"));
    TcpStream::connect_timeout(&(to, port).into(), Duration::from_secs(5))
}

/// The source that a server at `address` in the VPC's surroundings sees when the pod connects.
fn seen_at(world: &World, address: Ipv4Addr) -> Ipv4Addr {
    let server = serve(&world.router, address, 80);
    assert!(connect(&world.pod, None, address, 80), "the pod cannot reach {address}");
    match server.join().unwrap() {
        SocketAddr::V4(from) => *from.ip(),
        SocketAddr::V6(from) => panic!("{from}"),
    }
}

#[test]
fn the_vpc_sees_the_pod_and_the_internet_the_primary_eni() {
    node::in_node(|directory| {
        let world = world(directory, |_| {}, |_| {});
        assert_eq!(seen_at(&world, vpc::NEIGHBOUR), vpc::pod().address);
        assert_eq!(seen_at(&world, vpc::INTERNET), node::NODE);
    });
}

#[test]
fn excluded_cidrs_are_not_translated() {
    node::in_node(|directory| {
        let exclude =
            |nft: &mut NftConfig| nft.snat.exclude_cidrs = vec!["192.168.0.0/16".parse().unwrap()];
        let world = world(directory, |_| {}, exclude);
        assert_eq!(seen_at(&world, vpc::PEERED), vpc::pod().address);
        assert_eq!(seen_at(&world, vpc::INTERNET), node::NODE);
    });
}

#[test]
fn with_external_snat_everything_leaves_by_the_pods_eni_untranslated() {
    node::in_node(|directory| {
        let world =
            world(directory, |host| host.external_snat = true, |nft| nft.snat.external = true);
        assert_eq!(seen_at(&world, vpc::INTERNET), vpc::pod().address);
    });
}

#[test]
fn a_connection_from_outside_the_vpc_is_answered_by_the_pods_eni() {
    node::in_node(|directory| {
        let world = world(directory, |_| {}, |_| {});
        let server = serve(&world.pod, vpc::pod().address, 80);
        assert!(connect(&world.router, Some(vpc::PEERED), vpc::pod().address, 80));
        assert_eq!(server.join().unwrap().ip(), vpc::PEERED);
    });
}

#[test]
fn a_node_port_reaches_a_pod_of_a_secondary_eni_and_is_answered_by_the_primary() {
    node::in_node(|directory| {
        let world = world(directory, |_| {}, |_| {});
        let rule = format!(
            "add rule ip kp pre ip daddr {} tcp dport 30080 dnat to {}:80",
            node::NODE,
            vpc::pod().address
        );
        node::run(
            "nft",
            &["add table ip kp; add chain ip kp pre { type nat hook prerouting priority -100; }"],
        );
        node::run("nft", &[&rule]);
        let server = serve(&world.pod, vpc::pod().address, 80);
        assert!(connect(&world.router, Some(vpc::INTERNET), node::NODE, 30080));
        assert_eq!(
            server.join().unwrap().ip(),
            vpc::INTERNET,
            "externalTrafficPolicy: Local keeps the source"
        );
    });
}

#[test]
fn a_service_address_is_judged_by_its_backend() {
    node::in_node(|directory| {
        let world = world(directory, |_| {}, |_| {});
        node::run(
            "nft",
            &["add table ip kp; add chain ip kp pre { type nat hook prerouting priority -100; }"],
        );
        for (port, backend, source) in
            [(1080, vpc::NEIGHBOUR, vpc::pod().address), (1081, vpc::INTERNET, node::NODE)]
        {
            node::run(
                "nft",
                &[&format!(
                    "add rule ip kp pre ip daddr {SERVICE} tcp dport {port} dnat to {backend}:80"
                )],
            );
            let server = serve(&world.router, backend, 80);
            assert!(connect(&world.pod, None, SERVICE, port), "{backend}");
            assert_eq!(server.join().unwrap().ip(), source);
        }
    });
}

#[test]
fn the_node_and_its_pod_talk_both_ways() {
    node::in_node(|directory| {
        let world = world(directory, |_| {}, |_| {});
        let here = NetNs::current().unwrap();
        let server = serve(&here, node::NODE, 80);
        assert!(connect(&world.pod, None, node::NODE, 80));
        assert_eq!(server.join().unwrap().ip(), vpc::pod().address);
        let server = serve(&world.pod, vpc::pod().address, 81);
        assert!(connect(&here, None, vpc::pod().address, 81));
        assert_eq!(server.join().unwrap().ip(), node::NODE);
    });
}

#[test]
fn the_nodes_own_traffic_from_a_secondary_address_leaves_by_that_eni() {
    node::in_node(|directory| {
        let world = world(directory, |_| {}, |_| {});
        let out = node::output(
            "ping",
            &["-c1", "-W2", "-I", &vpc::SECONDARY.to_string(), &vpc::NEIGHBOUR.to_string()],
        );
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        drop(world);
    });
}

/// The sources that `address` sees, each with how many connections, while the pod makes one after the other until
/// `over`; nobody, for those that do not arrive. Two flows with ports from 0 and 1 have none in common.
fn sources_of_new_connections(
    world: &World,
    (address, first): (Ipv4Addr, u16),
    over: &AtomicBool,
) -> BTreeMap<Option<IpAddr>, u32> {
    let server = node::within(&world.router, || UdpSocket::bind((address, 53)).unwrap());
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _inside = world.pod.enter().unwrap();
    let mut seen = BTreeMap::new();
    let mut ports = (1024 + first..u16::MAX).step_by(2).cycle();
    while !over.load(Ordering::Relaxed) {
        let from = (vpc::pod().address, ports.next().expect("endless"));
        let client = UdpSocket::bind(from).unwrap();
        client.send_to(&[0], (address, 53)).unwrap();
        let from = server.recv_from(&mut [0]).ok().map(|(_, from)| from.ip());
        *seen.entry(from).or_default() += 1;
    }
    seen
}

#[test]
fn no_new_connection_meets_a_table_that_is_half_replaced() {
    node::in_node(|directory| {
        let world = world(directory, |_| {}, |_| {});
        // Neighbours are known before anything is counted.
        assert_eq!(seen_at(&world, vpc::NEIGHBOUR), vpc::pod().address);
        assert_eq!(seen_at(&world, vpc::INTERNET), node::NODE);
        let over = AtomicBool::new(false);
        let tables = ["100.64.0.0/16", "100.65.0.0/16"].map(|more| {
            let mut config = vpc::nft_config();
            config.vpc_cidrs.push(more.parse().unwrap());
            config
        });
        thread::scope(|scope| {
            let flow = |to| {
                let (world, over) = (&world, &over);
                scope.spawn(move || sources_of_new_connections(world, to, over))
            };
            let flows = [(vpc::NEIGHBOUR, 0), (vpc::INTERNET, 1)].map(flow);
            // What fails is told once the flows have ended.
            let applied: Result<(), _> =
                tables.iter().cycle().take(200).try_for_each(|c| NftTable::new(c).apply());
            over.store(true, Ordering::Relaxed);
            applied.unwrap();
            let [inside, outside] = flows.map(|flow| flow.join().unwrap());
            println!("to the VPC: {inside:?}; to the internet: {outside:?}");
            let only = |address: Ipv4Addr| BTreeSet::from([Some(IpAddr::from(address))]);
            assert_eq!(inside.into_keys().collect::<BTreeSet<_>>(), only(vpc::pod().address));
            assert_eq!(outside.into_keys().collect::<BTreeSet<_>>(), only(node::NODE));
        });
    });
}
