//! A change of layout as a node meets it: daemons in processes of their own, killed, the next one over pins of another
//! layout, under traffic that nothing may be lost of and that nothing may be added to.
//!
//! The older layout is today's under another number: its programs and maps are not the next daemon's. Under the flood its
//! pods' entries are pinned in the shape that they had until layout 4.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use veni_core::{marks::EniMarkMask, wire::Wiring};
use veni_datapath::{
    bpf::{
        Action, DEFAULT_BLOCKS, Direction, Filter, Pod, PodEntry, PodPolicy, Remove, SettingFlags,
        Skb, Write,
        table::{ANY_CLASS, Decision, PortRange, Profile, VerdictKey},
    },
    netns::NetNs,
};

use crate::{PATIENCE, node};

/// The client, the server, and a stranger that neither listens to.
const PODS: u8 = 3;
/// What the client asks the server, by both protocols; what the server asks the client.
const ASKED: u16 = 8080;
const ASKED_BACK: u16 = 9000;
/// Sets: into the server, out of the server, into the client.
const SETS: [(u32, u32, u16); 3] = [(1, 11, ASKED), (2, 11, ASKED_BACK), (3, 12, ASKED_BACK)];

fn wiring(n: u8) -> Wiring {
    node::wiring(n, Some(DEFAULT_BLOCKS))
}

/// As on a node: all layouts on one file system.
fn mounted(directory: &Path) -> PathBuf {
    let pins = node::pins(directory);
    std::fs::create_dir(&pins).unwrap();
    node::run("mount", &["-t", "bpf", "bpf", &pins.display().to_string()]);
    pins
}

fn open(pins: &Path) -> Filter {
    Filter::open(pins, EniMarkMask::default()).unwrap()
}

/// Each set allows one class, at one port, and nothing else.
fn policy() -> Vec<Write> {
    let none = PortRange {
        protocol: 0,
        of_node: 0,
        first: 1,
        last: 0,
        reserved2: 0,
        decision: Decision::deny(0),
    };
    let mut writes = vec![
        Write::ClassV4 { address: wiring(1).address.octets(), class: 11 },
        Write::ClassV4 { address: wiring(2).address.octets(), class: 12 },
        Write::Profile {
            number: 0,
            profile: Profile { otherwise: Decision::deny(9), count: 0, ranges: [none; 8] },
        },
    ];
    for (set, class, port) in SETS {
        let mut ranges = [none; 8];
        for (range, protocol) in ranges.iter_mut().zip([6, 17]) {
            let decision = Decision::allow(set);
            *range = PortRange { protocol, first: port, last: port, decision, ..none };
        }
        let profile = Profile { otherwise: Decision::deny(9), count: 2, ranges };
        writes.push(Write::Profile { number: set, profile });
        writes.push(Write::Verdict { key: VerdictKey { set, class: ANY_CLASS }, profile: 0 });
        writes.push(Write::Verdict { key: VerdictKey { set, class }, profile: set });
    }
    writes
}

/// Answers are let through by what is known of flows, never by the sets.
fn admit(filter: &Filter) {
    filter.set_node_addresses(&[IpAddr::from(node::NODE)].into()).unwrap();
    filter.tables().apply(&policy()).unwrap();
    for (n, (ingress_set, egress_set)) in (1..=PODS).zip([(3, 0), (1, 2), (0, 0)]) {
        let Wiring { address, pod_mac: mac, host_ifindex, .. } = wiring(n);
        let entry = PodEntry { address, mac, mark: 0x0002_0000 };
        let policy = PodPolicy { ingress_set, egress_set, ..PodPolicy::default() };
        filter.pod_admit(host_ifindex, entry, policy).unwrap();
    }
}

/// Not a test of its own: the body of a daemon. It fills the tables only on a node that has none, as nobody tells the
/// next one what the last one knew.
#[test]
fn loader() {
    let Some(pins) = std::env::var_os("VENI_TEST_LOADER") else { return };
    let filter = open(Path::new(&pins));
    if filter.entries().unwrap().is_empty() {
        admit(&filter);
    }
    filter.ensure_attached().unwrap();
    println!("\nATTACHED");
    // Until it is killed.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

struct Daemon(Child);

impl Daemon {
    /// Returns when its programs run.
    fn start(pins: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "upgrade::loader", "--nocapture"])
            .env("VENI_TEST_LOADER", pins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let attached = lines.map_while(Result::ok).any(|line| line == "ATTACHED");
        assert!(attached, "the daemon ended: {:?}", child.wait());
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Makes today's layout an older one.
fn age(pins: &Path, number: u32) -> PathBuf {
    let layout = std::fs::read_dir(pins).unwrap().next().unwrap().unwrap().path();
    let old = pins.join(format!("v{number}"));
    std::fs::create_dir(&old).unwrap();
    for entry in std::fs::read_dir(&layout).unwrap().flatten() {
        std::fs::rename(entry.path(), old.join(entry.file_name())).unwrap();
    }
    std::fs::remove_dir(&layout).unwrap();
    old
}

/// bpf(2) with the words of its attribute.
#[expect(unsafe_code, reason = "bpf(2)")]
fn bpf(command: libc::c_long, words: &[u64]) -> i64 {
    let mut attribute = [0_u64; 16];
    attribute[..words.len()].copy_from_slice(words);
    // SAFETY: a live attribute of the stated size; what it points to outlives the call in each caller.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(&attribute))
    };
    assert!(done >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
    done
}

/// Puts a map of layout 4's shape in the place of today's pods': without the number of the write at either end, and
/// without the key.
fn pin_as_v4(path: &Path) {
    let pods = MapData::from_pin(path).unwrap();
    let pods: HashMap<MapData, u32, [u8; 68]> = Map::HashMap(pods).try_into().unwrap();
    // Hash; key and value sizes; 8,192 elements.
    let v4 = bpf(0, &[1 | 4 << 32, 56 | 8192 << 32]);
    for (key, value) in pods.iter().map(Result::unwrap) {
        let had: [u8; 56] = value[8..64].try_into().unwrap();
        let (key, had) = (&raw const key as u64, &raw const had as u64);
        bpf(2, &[v4.cast_unsigned(), key, had]);
    }
    std::fs::remove_file(path).unwrap();
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    bpf(6, &[path.as_ptr() as u64, v4.cast_unsigned()]);
}

/// Exchanges that go on until they are told to stop.
struct Exchange {
    what: &'static str,
    done: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Exchange {
    /// `once` says whether an exchange succeeded.
    fn start(
        what: &'static str,
        stop: &Arc<AtomicBool>,
        pod: &Arc<NetNs>,
        mut once: impl FnMut(u64) -> bool + Send + 'static,
    ) -> Self {
        let (done, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count, miss) = (Arc::clone(&done), Arc::clone(&lost));
        let (stop, pod) = (Arc::clone(stop), Arc::clone(pod));
        let thread = thread::spawn(move || {
            node::within(&pod, || {
                while !stop.load(Ordering::Relaxed) {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    if !once(number) {
                        miss.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        });
        Self { what, done, lost, thread }
    }

    fn count(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn finish(self) -> (&'static str, u64, u64) {
        self.thread.join().unwrap();
        (self.what, self.done.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
    }
}

/// Echoes eight bytes at a time, on every connection.
fn serve(pod: &NetNs, port: u16) {
    let listener = node::within(pod, || TcpListener::bind(("0.0.0.0", port)).unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut number = [0; 8];
                while stream.read_exact(&mut number).is_ok() && stream.write_all(&number).is_ok() {}
            });
        }
    });
}

/// Echoes datagrams; counts those from anyone but `from`.
fn serve_datagrams(pod: &NetNs, port: u16, from: Ipv4Addr) -> Arc<AtomicU64> {
    let socket = node::within(pod, || UdpSocket::bind(("0.0.0.0", port)).unwrap());
    let strangers = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&strangers);
    thread::spawn(move || {
        let mut number = [0; 8];
        while let Ok((length, peer)) = socket.recv_from(&mut number) {
            if peer.ip() != from {
                count.fetch_add(1, Ordering::Relaxed);
            }
            if socket.send_to(&number[..length], peer).is_err() {
                return;
            }
        }
    });
    strangers
}

fn echoes(stream: &mut TcpStream, number: u64) -> bool {
    let mut answer = [0; 8];
    stream.write_all(&number.to_be_bytes()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer == number.to_be_bytes()
}

fn connect(pod: &NetNs, to: (Ipv4Addr, u16)) -> TcpStream {
    let stream = node::within(pod, || TcpStream::connect(to).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Flows of both protocols and directions, new connections, and a stranger's attempts.
fn traffic(stop: &Arc<AtomicBool>, pods: &[Arc<NetNs>]) -> (Vec<Exchange>, Arc<AtomicU64>) {
    let [client, server] = [wiring(1).address, wiring(2).address];
    serve(&pods[1], ASKED);
    serve(&pods[0], ASKED_BACK);
    let strangers = serve_datagrams(&pods[1], ASKED, client);
    let mut there = connect(&pods[0], (server, ASKED));
    let mut back = connect(&pods[1], (client, ASKED_BACK));
    let datagrams = node::within(&pods[0], || UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    datagrams.connect((server, ASKED)).unwrap();
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    let exchanges = vec![
        Exchange::start("TCP, begun by the client", stop, &pods[0], move |n| echoes(&mut there, n)),
        Exchange::start("TCP, begun by the server", stop, &pods[1], move |n| echoes(&mut back, n)),
        Exchange::start("one flow of datagrams", stop, &pods[0], move |n| {
            let mut answer = [0; 8];
            datagrams.send(&n.to_be_bytes()).is_ok()
                && datagrams.recv(&mut answer).is_ok()
                && answer == n.to_be_bytes()
        }),
        Exchange::start("new connections", stop, &pods[0], move |n| {
            TcpStream::connect((server, ASKED)).is_ok_and(|mut stream| {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                echoes(&mut stream, n)
            })
        }),
        Exchange::start("a stranger", stop, &pods[2], move |n| {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            let _refused = socket.send_to(&n.to_be_bytes(), (server, ASKED));
            let wait = Duration::from_millis(20);
            TcpStream::connect_timeout(&(server, ASKED).into(), wait).is_err()
        }),
    ];
    (exchanges, strangers)
}

#[test]
fn changes_of_layout_under_a_flood_lose_no_flow_and_let_nothing_through() {
    node::in_node(|directory| {
        node::ip(&format!("addr add {}/32 dev lo", node::NODE));
        node::ip("rule add priority 512 lookup 7600");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let pins = mounted(directory);
        let mut daemon = Daemon::start(&pins);
        let pods: Vec<Arc<NetNs>> = (1..=PODS).map(|n| Arc::new(node::wire(&wiring(n)))).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (exchanges, strangers) = traffic(&stop, &pods);
        for change in 0..3 {
            let before: Vec<u64> = exchanges.iter().map(Exchange::count).collect();
            let start = Instant::now();
            while exchanges.iter().zip(&before).any(|(e, before)| e.count() < before + 10) {
                assert!(start.elapsed() < PATIENCE, "traffic stands still after change {change}");
                thread::sleep(Duration::from_millis(5));
            }
            daemon.kill();
            let old = age(&pins, 1000 + change);
            pin_as_v4(&old.join("PODS"));
            daemon = Daemon::start(&pins);
            assert!(!old.exists(), "the old pins are gone");
        }
        stop.store(true, Ordering::Relaxed);
        let ends: Vec<_> = exchanges.into_iter().map(Exchange::finish).collect();
        println!("{ends:?}");
        for (what, done, lost) in ends {
            assert!(done > 30 && lost == 0, "{what}: {lost} of {done}");
        }
        assert_eq!(strangers.load(Ordering::Relaxed), 0, "datagrams of the stranger arrived");
        daemon.kill();
    });
}

/// A SYN or its answer between the first two pods, as the first one's interface sees it.
fn frame(out: bool, port: u16, flags: u8) -> Vec<u8> {
    let (pod, peer) = (wiring(1), wiring(2));
    let (from, to, ports) = if out {
        (pod.address, peer.address, [port, ASKED])
    } else {
        (peer.address, pod.address, [ASKED, port])
    };
    let (source, destination) =
        if out { (pod.pod_mac, pod.host_mac) } else { (pod.host_mac, pod.pod_mac) };
    let builder = etherparse::PacketBuilder::ethernet2(source.0, destination.0)
        .ipv4(from.octets(), to.octets(), 64)
        .tcp(ports[0], ports[1], 1, 1024);
    let builder = if flags & 2 != 0 { builder.syn() } else { builder };
    let builder = if flags & 16 != 0 { builder.ack(1) } else { builder };
    let mut frame = Vec::new();
    builder.write(&mut frame, b"").unwrap();
    frame
}

#[test]
fn the_next_layout_knows_what_the_last_one_knew_even_when_it_takes_two_attempts() {
    node::in_node(|directory| {
        let pins = mounted(directory);
        let index = wiring(1).host_ifindex;
        node::ip(&format!("link add veth1 index {index} type veth peer name peer1"));
        let last = open(&pins);
        admit(&last);
        last.raise_epoch().unwrap();
        // A kernel under emulation takes half a minute for what follows.
        last.configure(|s| {
            (s.flags, s.half_open_ticks) = (SettingFlags::METADATA_CLOSED, 1 << 30);
            s.half_open_cap = 1;
        })
        .unwrap();
        last.ensure_attached().unwrap();
        let tables = |filter: &Filter| {
            let mut all: Vec<String> =
                filter.tables().entries().unwrap().iter().map(|w| format!("{w:?}")).collect();
            all.sort();
            all
        };
        let entries = |filter: &Filter| -> Vec<(u32, Pod)> {
            filter.entries().unwrap().into_iter().collect()
        };
        let old = age(&pins, 2);
        let settings = last.settings().unwrap();
        // This one ends before its programs run.
        let next = open(&pins);
        assert!(!next.adopted());
        assert_eq!((entries(&next), tables(&next)), (entries(&last), tables(&last)));
        assert_eq!(next.node_addresses().unwrap(), [IpAddr::from(node::NODE)].into());
        let expect = settings.flags | SettingFlags::LEARN;
        assert_eq!(next.settings().map(|s| (s.epoch, s.flags)).unwrap(), (settings.epoch, expect));
        drop(next);
        assert!(old.exists(), "the old programs need them");
        // As a daemon of the old layout does, before the next attempt.
        let peer = wiring(2).address.octets();
        last.tables().remove(&[Remove::ClassV4(wiring(1).address.octets())]).unwrap();
        last.tables().apply(&[Write::ClassV4 { address: peer, class: 13 }]).unwrap();
        last.pod_remove(wiring(3).host_ifindex).unwrap();
        last.set_node_addresses(&[IpAddr::from(peer)].into()).unwrap();
        last.raise_epoch().unwrap();
        // Flows that begin under the old programs, meanwhile: one more than the pod's share.
        let skb = Skb { ifindex: index, ingress_ifindex: 2, mark: 0 };
        let run = |filter: &Filter, direction, frame: &[u8]| {
            filter.run(direction, frame, skb, 1).unwrap().action
        };
        for port in [4000, 4001] {
            assert_eq!(run(&last, Direction::Egress, &frame(true, port, 2)), Action::Pass);
        }
        let next = open(&pins);
        assert!(!next.adopted(), "what the first attempt knew is of another time");
        assert_eq!((entries(&next), tables(&next)), (entries(&last), tables(&last)));
        assert_eq!(next.node_addresses().unwrap(), [IpAddr::from(peer)].into());
        assert_eq!(next.settings().unwrap().epoch, last.settings().unwrap().epoch);
        next.ensure_attached().unwrap();
        assert!(open(&pins).adopted(), "ours are at work");
        assert!(!old.exists(), "the old pins are gone");
        assert_eq!(next.settings().unwrap().flags & SettingFlags::LEARN, 0);
        assert_eq!(next.flow_counts().unwrap(), last.flow_counts().unwrap());
        for port in [4000, 4001] {
            let answer = frame(false, port, 18);
            assert_eq!(run(&next, Direction::Ingress, &answer), Action::Pass, "an answer");
        }
        let unknown = frame(false, 4002, 18);
        assert_eq!(run(&next, Direction::Ingress, &unknown), Action::Drop, "an answer to nothing");
    });
}
