//! The filter on real veths: shared blocks, replacement under traffic, life beyond the process.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skipped or measured"
)]
#![cfg(feature = "bpf")]

use std::{
    net::UdpSocket,
    os::fd::AsRawFd as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use veni_core::{marks::EniMarkMask, net::Mac, wire::Wiring};
use veni_datapath::{
    bpf::{Direction, DropReason, Filter, Foreign, PodEntry, bare::Bare},
    netns::NetNs,
    watch::{self, Change, WatchConfig},
};

#[path = "support/node.rs"]
mod node;

const MARK: u32 = 0x0002_0000;

fn entry(wiring: &Wiring) -> PodEntry {
    PodEntry { address: wiring.address, mac: wiring.pod_mac, mark: MARK }
}

fn open(directory: &Path) -> Filter {
    Filter::open(&node::pins(directory), EniMarkMask::default()).unwrap()
}

/// A node that answers on its own address, with its rule for pods.
fn prepare() {
    node::ip(&format!("addr add {}/32 dev lo", node::NODE));
    node::ip("rule add priority 512 lookup 7600");
}

/// One answer of three: right after wiring, a packet can be lost before the veth's carrier is up (`linkwatch`, asynchronous).
fn pings(pod: &NetNs) -> bool {
    let address = node::NODE.to_string();
    let ping = || node::output("ping", &["-c1", "-W1", &address]).status.success();
    node::within(pod, || (0..3).any(|_| ping()))
}

/// No answer at all, on a veth that had time to come up.
fn silent(pod: &NetNs) -> bool {
    let address = node::NODE.to_string();
    node::within(pod, || !node::output("ping", &["-c2", "-i0.2", "-W1", &address]).status.success())
}

#[test]
fn a_veth_made_later_carries_the_shared_filter_from_its_first_packet() {
    node::in_node(|directory| {
        prepare();
        let filter = open(directory);
        let blocks = filter.ensure_attached().unwrap();
        let wirings: Vec<Wiring> = (1..=3).map(|n| node::wiring(n, Some(blocks))).collect();
        for wiring in &wirings[..2] {
            filter.pod_insert(wiring.host_ifindex, entry(wiring)).unwrap();
        }
        let pods: Vec<NetNs> = wirings.iter().map(node::wire).collect();
        assert!(pings(&pods[0]) && pings(&pods[1]));
        assert!(silent(&pods[2]), "a pod without an entry has traffic");
        assert!(filter.drops().unwrap()[&DropReason::UnknownInterface] > 0);
        filter.pod_insert(wirings[2].host_ifindex, entry(&wirings[2])).unwrap();
        assert!(pings(&pods[2]));
    });
}

#[test]
fn a_spoofed_source_is_dropped_and_the_pods_own_is_marked() {
    node::in_node(|directory| {
        prepare();
        let filter = open(directory);
        let wiring = node::wiring(1, Some(filter.ensure_attached().unwrap()));
        filter.pod_insert(wiring.host_ifindex, entry(&wiring)).unwrap();
        let pod = node::wire(&wiring);
        // Only what has the ENI's mark is answered.
        node::run(
            "nft",
            &[
                "add table ip t; add chain ip t c { type filter hook input priority 0; policy drop; }; \
                            add rule ip t c meta mark & 0xff0000 == 0x20000 accept",
            ],
        );
        assert!(pings(&pod));
        node::within(&pod, || node::ip("addr add 10.0.9.77/32 dev eth0"));
        let before = filter.drops().unwrap()[&DropReason::SourceAddress];
        let address = node::NODE.to_string();
        node::within(&pod, || node::output("ping", &["-c1", "-W1", "-I", "10.0.9.77", &address]));
        assert_eq!(filter.drops().unwrap()[&DropReason::SourceAddress], before + 1);
    });
}

/// Sends frames from the pod's `eth0` as they are (AF_PACKET).
#[expect(unsafe_code, reason = "a packet socket")]
fn send_frames(pod: &NetNs, frames: &[Vec<u8>]) {
    node::within(pod, || {
        // SAFETY: a C string; no other pointers.
        let (fd, ifindex) = unsafe {
            (
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0),
                libc::if_nametoindex(c"eth0".as_ptr()),
            )
        };
        assert!(fd >= 0 && ifindex > 0);
        // SAFETY: all zeroes is a valid `sockaddr_ll`.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        to.sll_ifindex = ifindex.cast_signed();
        for frame in frames {
            // SAFETY: both pointers and lengths describe live objects.
            let sent = unsafe {
                libc::sendto(
                    fd,
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw const to).cast(),
                    u32::try_from(size_of_val(&to)).unwrap(),
                )
            };
            assert_eq!(sent, frame.len().cast_signed(), "{}", std::io::Error::last_os_error());
        }
        // SAFETY: open, and used by nobody else.
        unsafe { libc::close(fd) };
    });
}

#[test]
fn frames_that_cannot_be_followed_are_dropped_on_a_real_veth() {
    node::in_node(|directory| {
        prepare();
        let filter = open(directory);
        let wiring = node::wiring(1, Some(filter.ensure_attached().unwrap()));
        filter.pod_insert(wiring.host_ifindex, entry(&wiring)).unwrap();
        let pod = node::wire(&wiring);
        assert!(pings(&pod));
        let ethernet = |tail: &[u8]| [&wiring.host_mac.0[..], &wiring.pod_mac.0, tail].concat();
        let before = filter.drops().unwrap();
        let check = |what: &str, frame: Vec<u8>, reason: DropReason| {
            let before = filter.drops().unwrap();
            send_frames(&pod, &[frame]);
            assert_eq!(filter.drops().unwrap()[&reason], before[&reason] + 1, "{what}");
        };
        check(
            "IPv4 of 19 bytes",
            ethernet(&[&[8, 0, 0x45][..], &[0; 18]].concat()),
            DropReason::Truncated,
        );
        check("IPv4 of 1 byte", ethernet(&[8, 0, 0x45]), DropReason::Truncated);
        // The kernel takes the tag out of the frame before the filter sees it.
        check(
            "802.1Q",
            ethernet(&[&[0x81, 0, 0, 5, 8, 0, 0x45][..], &[0; 60]].concat()),
            DropReason::Vlan,
        );
        check(
            "802.1ad",
            ethernet(&[&[0x88, 0xa8, 0, 5, 8, 0, 0x45][..], &[0; 60]].concat()),
            DropReason::Vlan,
        );
        check(
            "priority-tagged",
            ethernet(&[&[0x81, 0, 0x20, 0, 8, 0, 0x45][..], &[0; 60]].concat()),
            DropReason::Vlan,
        );
        assert!(filter.drops().unwrap().values().sum::<u64>() >= before.values().sum::<u64>() + 5);
    });
}

/// Echoes datagrams in the node until told to stop; a pod sends numbered ones and counts what comes back.
struct Flood {
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    closing: Arc<AtomicBool>,
    sender: thread::JoinHandle<u64>,
    echo: thread::JoinHandle<()>,
}

impl Flood {
    fn start(pod: NetNs) -> Self {
        let (stop, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let server = UdpSocket::bind((node::NODE, 7)).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let closing = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&closing);
        let echo = thread::spawn(move || {
            let mut buffer = [0; 64];
            while !ending.load(Ordering::Relaxed) {
                if let Ok((length, from)) = server.recv_from(&mut buffer) {
                    server.send_to(&buffer[..length], from).unwrap();
                }
            }
        });
        let (ending, losing) = (Arc::clone(&stop), Arc::clone(&lost));
        let sender = thread::spawn(move || node::within(&pod, || send(&ending, &losing)));
        Self { stop, lost, closing, sender, echo }
    }

    /// How many were sent, and how many of them lost.
    fn finish(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        // Only now: the last exchange has to be answered.
        self.closing.store(true, Ordering::Relaxed);
        self.echo.join().unwrap();
        (sent, self.lost.load(Ordering::Relaxed))
    }
}

/// One at a time: nothing can be lost to a full queue.
fn send(stop: &AtomicBool, lost: &AtomicU64) -> u64 {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    socket.connect((node::NODE, 7)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let mut answer = [0; 8];
        let answered = socket.send(&number.to_be_bytes()).is_ok()
            && socket.recv(&mut answer).is_ok()
            && answer == number.to_be_bytes();
        if !answered {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }
    number
}

#[test]
fn replacing_the_filter_under_traffic_loses_nothing() {
    node::in_node(|directory| {
        prepare();
        let fresh = Instant::now();
        let mut filter = open(directory);
        let opened = fresh.elapsed();
        let wiring = node::wiring(1, Some(filter.ensure_attached().unwrap()));
        println!("fresh node: opened after {opened:?}, attached after {:?}", fresh.elapsed());
        filter.pod_insert(wiring.host_ifindex, entry(&wiring)).unwrap();
        let pod = node::wire(&wiring);
        assert!(pings(&pod));
        let flood = Flood::start(pod);
        let start = Instant::now();
        let (mut loading, mut slowest) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..50 {
            // What an upgrade does: load anew over the pinned maps, replace, let go of the old one.
            let before = Instant::now();
            let next = open(directory);
            loading += before.elapsed();
            assert!(next.adopted());
            let before = Instant::now();
            next.ensure_attached().unwrap();
            slowest = slowest.max(before.elapsed());
            filter = next;
        }
        let took = start.elapsed();
        let (sent, lost) = flood.finish();
        println!(
            "50 replacements in {took:?} (loading {:?} each, slowest attach {slowest:?}): {sent} exchanges, {lost} lost",
            loading / 50,
        );
        assert!(sent > 100 && lost == 0, "{lost} of {sent} lost");
        assert_eq!(filter.check_attached().unwrap(), []);
    });
}

/// Not a test of its own: the body of a daemon that dies, run by the next test in a process of its own.
#[test]
fn daemon() {
    let Some(directory) = std::env::var_os("VENI_TEST_DAEMON") else { return };
    let filter = open(Path::new(&directory));
    let wiring = node::wiring(1, Some(filter.ensure_attached().unwrap()));
    filter.pod_insert(wiring.host_ifindex, entry(&wiring)).unwrap();
    match std::env::var("VENI_TEST_DEATH").unwrap().as_str() {
        "exit" => drop(filter),
        "panic" => panic!("as asked"),
        _ => std::process::abort(),
    }
}

#[test]
fn filter_and_maps_outlive_the_process_however_it_ends() {
    for death in ["exit", "panic", "abort"] {
        node::in_node(move |directory| {
            prepare();
            // The BPF file system has to be mounted by us: the child's mounts would end with it.
            drop(open(directory));
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "daemon", "--nocapture"])
                .env("VENI_TEST_DAEMON", directory)
                .env("VENI_TEST_DEATH", death)
                .output()
                .unwrap()
                .status;
            assert_eq!(status.success(), death == "exit", "{death}");
            let wiring = node::wiring(1, Some(veni_datapath::bpf::DEFAULT_BLOCKS));
            let pod = node::wire(&wiring);
            assert!(pings(&pod), "{death}: no traffic");
            let stranger = node::wire(&node::wiring(2, Some(veni_datapath::bpf::DEFAULT_BLOCKS)));
            assert!(silent(&stranger), "{death}: no filter");
            let next = open(directory);
            assert!(next.adopted());
            assert_eq!(
                next.pods().unwrap().into_iter().collect::<Vec<_>>(),
                [(wiring.host_ifindex, entry(&wiring))]
            );
            assert!(next.drops().unwrap()[&DropReason::UnknownInterface] > 0, "counters were lost");
        });
    }
}

#[test]
fn what_is_taken_away_by_hand_is_put_back() {
    node::in_node(|directory| {
        prepare();
        let filter = open(directory);
        let wiring = node::wiring(1, Some(filter.ensure_attached().unwrap()));
        filter.pod_insert(wiring.host_ifindex, entry(&wiring)).unwrap();
        assert_eq!(filter.check_attached().unwrap(), []);
        let block = wiring.blocks.unwrap().ingress.to_string();
        node::run("tc", &["filter", "del", "block", &block]);
        assert_eq!(filter.check_attached().unwrap().len(), 1, "the filter");
        node::ip("link del veni-anchor");
        assert_eq!(filter.check_attached().unwrap().len(), 4, "anchor, blocks, filters");
        node::run("tc", &["qdisc", "del", "dev", "veni-anchor", "clsact"]);
        assert_eq!(filter.check_attached().unwrap().len(), 3, "blocks, filters");
        assert_eq!(filter.check_attached().unwrap(), []);
        let pod = node::wire(&wiring);
        assert!(pings(&pod));
        // A pod's own link keeps the blocks, and their filters.
        node::ip("link del veni-anchor");
        assert!(pings(&pod));
        assert_eq!(filter.check_attached().unwrap().len(), 2, "anchor, blocks");
    });
}

/// `BPF_PROG_ATTACH` of a program that does nothing (`TCX_NEXT`) to a link's TCX hook.
#[expect(unsafe_code, reason = "bpf(2)")]
fn attach_tcx(ifindex: u32, program: &Bare) -> std::io::Result<()> {
    const PROG_ATTACH: libc::c_int = 8;
    const TCX_INGRESS: u32 = 46;
    let fd = program.fd().as_raw_fd().cast_unsigned();
    let attributes: [u32; 8] = [ifindex, fd, TCX_INGRESS, 0, 0, 0, 0, 0];
    // SAFETY: the attributes are live and of the stated size.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_ATTACH, attributes.as_ptr(), size_of_val(&attributes))
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn other_programs_at_the_hooks_are_found() {
    node::in_node(|directory| {
        prepare();
        let filter = open(directory);
        let blocks = filter.ensure_attached().unwrap();
        let wiring = node::wiring(1, Some(blocks));
        let index = wiring.host_ifindex;
        // Its veth is not there yet.
        filter.pod_insert(index, entry(&wiring)).unwrap();
        assert_eq!(filter.foreign().unwrap(), []);
        let pod = node::wire(&wiring);
        assert_eq!(filter.foreign().unwrap(), []);
        let (sender, changes) = std::sync::mpsc::channel();
        let config =
            WatchConfig { nft_table: "veni".into(), veth_prefix: "eni".into(), table_base: 7600 };
        let _watch = watch::spawn(config, move |change| drop(sender.send(change))).unwrap();
        let heard = |expect: &Change| {
            let next = || changes.recv_timeout(Duration::from_secs(2)).expect("a notification");
            while next() != *expect {}
        };
        let block = blocks.ingress.to_string();
        let add = |priority| {
            let words = ["filter", "add", "block", &block, "protocol", "all", "prio", priority];
            node::run(
                "tc",
                &[&words[..], &["bpf", "bytecode", "1,6 0 0 0,", "flowid", "1:1"]].concat(),
            );
            heard(&Change::Filter);
        };
        add("50");
        let found = filter.foreign().unwrap();
        let [Foreign::Filter { priority: 50, before: true, kind, direction, .. }] = &found[..]
        else {
            panic!("{found:?}")
        };
        assert_eq!((kind.as_str(), *direction), ("bpf", Direction::Egress));
        assert!(found[0].bypasses() && found[0].to_string().contains("tc filter del block"));
        node::run("tc", &["filter", "del", "block", &block, "protocol", "all", "prio", "50"]);
        heard(&Change::Qdisc);
        add("200");
        let found = filter.foreign().unwrap();
        assert!(matches!(&found[..], [Foreign::Filter { priority: 200, before: false, .. }]));
        assert!(!found[0].bypasses(), "it sees what ours lets through");
        assert!(pings(&pod));
        assert_eq!(filter.check_attached().unwrap(), [], "ours is as it was");
        node::run("tc", &["filter", "del", "block", &block, "protocol", "all", "prio", "200"]);
        node::run("tc", &["qdisc", "del", "dev", &wiring.host_ifname.to_string(), "clsact"]);
        heard(&Change::Qdisc);
        let found = filter.foreign().unwrap();
        assert_eq!(found, [Foreign::Unfiltered { ifindex: index, found: None }]);
        node::run("tc", &["qdisc", "add", "dev", &wiring.host_ifname.to_string(), "clsact"]);
        let found = filter.foreign().unwrap();
        let clsact = Some("clsact".to_owned());
        assert_eq!(found, [Foreign::Unfiltered { ifindex: index, found: clsact }]);
    });
}

#[test]
fn a_program_in_the_very_place_of_ours_is_found_and_replaced() {
    node::in_node(|directory| {
        let filter = open(directory);
        let blocks = filter.ensure_attached().unwrap();
        let block = blocks.ingress.to_string();
        assert_eq!(filter.foreign().unwrap(), []);
        node::run(
            "tc",
            &[
                "filter",
                "replace",
                "block",
                &block,
                "protocol",
                "all",
                "prio",
                "100",
                "handle",
                "1",
                "bpf",
                "bytecode",
                "1,6 0 0 0,",
                "flowid",
                "1:1",
            ],
        );
        let missing = Foreign::Missing { block: blocks.ingress, direction: Direction::Egress };
        let found = filter.foreign().unwrap();
        assert!(
            found.len() == 2 && found.contains(&missing) && found.iter().all(Foreign::bypasses)
        );
        assert_eq!(filter.check_attached().unwrap().len(), 1, "ours is put back");
        assert_eq!(filter.foreign().unwrap(), []);
        node::run("tc", &["filter", "del", "block", &block]);
        assert_eq!(filter.foreign().unwrap(), [missing]);
    });
}

#[test]
fn a_tcx_program_before_ours_is_found() {
    node::in_node(|directory| {
        prepare();
        let filter = open(directory);
        let wirings = [1, 2].map(|n| node::wiring(n, Some(filter.ensure_attached().unwrap())));
        for wiring in &wirings {
            filter.pod_insert(wiring.host_ifindex, entry(wiring)).unwrap();
        }
        let pods = wirings.each_ref().map(node::wire);
        let program = Bare::empty().unwrap();
        match attach_tcx(wirings[1].host_ifindex, &program) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return println!("SKIPPED: TCX (Linux 6.6)");
            }
            attached => attached.unwrap(),
        }
        let found = filter.foreign().unwrap();
        let [Foreign::Tcx { ifindex, direction: Direction::Egress, programs }] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((*ifindex, programs.len()), (wirings[1].host_ifindex, 1));
        assert_eq!(programs[0].name, "bare");
        assert!(found[0].bypasses() && found[0].to_string().contains("bare (id "));
        assert!(pods.iter().all(pings), "ours run after it");
    });
}

#[test]
fn a_pinned_map_of_another_shape_is_not_adopted() {
    node::in_node(|directory| {
        drop(open(directory));
        let layouts = std::fs::read_dir(node::pins(directory)).unwrap().flatten();
        let [pins] = &layouts.map(|layout| layout.path()).collect::<Vec<_>>()[..] else {
            panic!("one layout")
        };
        std::fs::remove_file(pins.join("PODS")).unwrap();
        std::fs::rename(pins.join("DROPS"), pins.join("PODS")).unwrap();
        let filter = open(directory);
        assert!(!filter.adopted());
        filter
            .pod_insert(7, PodEntry { address: node::NODE, mac: Mac([2; 6]), mark: MARK })
            .unwrap();
        assert_eq!(filter.pods().unwrap().len(), 1);
        assert!(open(directory).adopted());
    });
}
