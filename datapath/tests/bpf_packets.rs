//! The filter on single packets (`BPF_PROG_TEST_RUN`): every drop reason, and the mark.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skipped or measured"
)]
#![cfg(feature = "bpf")]

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use etherparse::PacketBuilder;
use veni_core::{
    marks::{EniMarkMask, EniSlot},
    net::Mac,
};
use veni_datapath::bpf::{
    Action, Direction, DropReason, Filter, Outcome, PodEntry, PodPolicy, Skb,
};

#[path = "support/node.rs"]
mod node;

const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
const POD_MAC: [u8; 6] = [2, 0xbb, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [2, 0xaa, 0, 0, 0, 1];

/// The loaded filter, in a namespace with a link that stands for the pod's veth.
struct Bench {
    filter: Filter,
    ifindex: u32,
    mask: EniMarkMask,
}

impl Bench {
    fn new(directory: &Path) -> Self {
        Self::with_mask(directory, EniMarkMask::default())
    }

    fn with_mask(directory: &Path, mask: EniMarkMask) -> Self {
        let filter = Filter::open(&node::pins(directory), mask).unwrap();
        let ifindex = 0x10_0001;
        node::ip(&format!("link add veth1 index {ifindex} type veth peer name peer1"));
        let mark = mask.mark(EniSlot::new(0, 1).unwrap());
        filter.pod_insert(ifindex, PodEntry { address: POD, mac: Mac(POD_MAC), mark }).unwrap();
        Self { filter, ifindex, mask }
    }

    fn run(&self, frame: &[u8], ifindex: u32, mark: u32, repeat: u32) -> Outcome {
        let skb = Skb { ifindex, mark, ..Skb::default() };
        self.filter
            .run(Direction::Egress, frame, skb, repeat)
            .unwrap_or_else(|e| panic!("{e:?}: {frame:02x?}"))
    }

    /// Asserts the verdict, and that exactly the counter of the reason went up by one.
    fn check(&self, what: &str, frame: &[u8], expect: Result<(), DropReason>) {
        let before = self.filter.drops().unwrap();
        let outcome = self.run(frame, self.ifindex, 0, 1);
        let after = self.filter.drops().unwrap();
        let counted: BTreeMap<DropReason, u64> = after
            .into_iter()
            .map(|(reason, n)| (reason, n - before[&reason]))
            .filter(|(_, n)| *n > 0)
            .collect();
        match expect {
            Ok(()) => {
                assert_eq!((outcome.action, outcome.mark), (Action::Pass, 0x0002_0000), "{what}");
                assert!(counted.is_empty(), "{what}: {counted:?}");
            }
            Err(reason) => {
                assert_eq!(outcome.action, Action::Drop, "{what}");
                assert_eq!(counted, BTreeMap::from([(reason, 1)]), "{what}");
            }
        }
    }
}

fn udp(mac: [u8; 6], source: Ipv4Addr, payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, HOST_MAC)
        .ipv4(source.octets(), [10, 0, 2, 9], 64)
        .udp(1000, 53)
        .write(&mut frame, &vec![7; payload])
        .unwrap();
    frame
}

fn own() -> Vec<u8> {
    udp(POD_MAC, POD, 18)
}

/// An Ethernet header over any EtherType and payload.
fn raw(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&HOST_MAC[..], &POD_MAC, &ether_type.to_be_bytes(), payload].concat()
}

fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    raw(0x0806, &[&head[..], &mac, &address.octets(), &[0; 6], &[169, 254, 1, 1]].concat())
}

fn ipv6(extension: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(POD_MAC, HOST_MAC);
    if extension {
        let mut inner = vec![0x60, 0, 0, 0, 0, 8, 0 /* hop by hop */, 64];
        inner.extend([0xfe; 32]);
        inner.extend([59, 0, 1, 4, 0, 0, 0, 0]);
        return raw(0x86dd, &inner);
    }
    builder.ipv6([0xfe; 16], [0xff; 16], 64).udp(1, 2).write(&mut frame, b"x").unwrap();
    frame
}

#[test]
fn what_the_pod_may_send_passes_with_its_enis_mark() {
    node::in_node(|directory| {
        let bench = Bench::new(directory);
        bench.check("UDP", &own(), Ok(()));
        bench.check("a jumbo frame", &udp(POD_MAC, POD, 2900), Ok(()));
        bench.check("ARP", &arp(POD_MAC, POD), Ok(()));
        let mut later_fragment = own();
        later_fragment[20..22].copy_from_slice(&[0x00, 0xb9]);
        bench.check("a later fragment", &later_fragment, Ok(()));
    });
}

#[test]
fn every_reason_to_drop_is_counted_as_itself() {
    node::in_node(|directory| {
        let bench = Bench::new(directory);
        let changed = |at: usize, value: u8| {
            let mut frame = own();
            frame[at] = value;
            frame
        };
        let foreign = Ipv4Addr::new(10, 0, 9, 2);
        let foreign_mac = [2, 0xbb, 0, 0, 0, 2];
        let cases: Vec<(&str, Vec<u8>, DropReason)> = vec![
            ("a foreign MAC", udp(foreign_mac, POD, 18), DropReason::SourceMac),
            ("a foreign address", udp(POD_MAC, foreign, 18), DropReason::SourceAddress),
            (
                "no address (DHCP)",
                udp(POD_MAC, Ipv4Addr::UNSPECIFIED, 18),
                DropReason::SourceAddress,
            ),
            ("options that IHL alone claims", changed(14, 0x4f), DropReason::Malformed),
            (
                "a foreign address behind options",
                {
                    let mut frame = udp(POD_MAC, foreign, 60);
                    frame[14] = 0x4f;
                    frame
                },
                DropReason::SourceAddress,
            ),
            ("ARP for a foreign address", arp(POD_MAC, foreign), DropReason::ArpSender),
            (
                "ARP with a foreign MAC inside",
                {
                    let mut frame = arp(foreign_mac, POD);
                    frame[6..12].copy_from_slice(&POD_MAC);
                    frame
                },
                DropReason::ArpSender,
            ),
            ("an ARP probe", arp(POD_MAC, Ipv4Addr::UNSPECIFIED), DropReason::ArpSender),
            (
                "ARP of another kind",
                {
                    let mut frame = arp(POD_MAC, POD);
                    frame[15] = 6;
                    frame
                },
                DropReason::Malformed,
            ),
            ("ARP cut short", arp(POD_MAC, POD)[..41].to_vec(), DropReason::Truncated),
            ("IPv6", ipv6(false), DropReason::Ipv6),
            ("IPv6 with an extension header", ipv6(true), DropReason::Ipv6),
            ("802.1Q", raw(0x8100, &[&[0, 5, 8, 0][..], &own()[14..]].concat()), DropReason::Vlan),
            ("802.1ad", raw(0x88a8, &[&[0, 5, 8, 0][..], &own()[14..]].concat()), DropReason::Vlan),
            // IPv4 cut short cannot be run this way (EINVAL since Linux 6.18): see bpf_attach.
            ("an Ethernet header and a byte", raw(0x0806, &[0]), DropReason::Truncated),
            ("version 6 as IPv4", changed(14, 0x65), DropReason::Malformed),
            ("a header of 4 words", changed(14, 0x44), DropReason::Malformed),
            ("LLDP", raw(0x88cc, &[0; 40]), DropReason::EtherType),
            ("802.3", raw(0x0026, &[0; 40]), DropReason::EtherType),
            ("MPLS", raw(0x8847, &[0; 40]), DropReason::EtherType),
        ];
        for (what, frame, reason) in cases {
            bench.check(what, &frame, Err(reason));
        }
    });
}

#[test]
fn an_interface_without_an_entry_sends_nothing() {
    node::in_node(|directory| {
        let bench = Bench::new(directory);
        bench.filter.pod_remove(bench.ifindex).unwrap();
        bench.filter.pod_remove(bench.ifindex).unwrap();
        bench.check("after the entry is gone", &own(), Err(DropReason::UnknownInterface));
    });
}

#[test]
fn only_the_masks_bits_of_the_mark_are_replaced() {
    node::in_node(|directory| {
        let bench = Bench::with_mask(directory, EniMarkMask::new(0x0ff0_0000, 0x80).unwrap());
        let outcome = bench.run(&own(), bench.ifindex, 0xffff_ffff, 1);
        assert_eq!((outcome.action, outcome.mark), (Action::Pass, 0xf02f_ffff));
        assert_eq!(bench.mask.mark(EniSlot::new(0, 1).unwrap()), 0x0020_0000);
    });
}

#[test]
fn entries_are_synced_to_exactly_what_is_wanted() {
    node::in_node(|directory| {
        let filter = Filter::open(&node::pins(directory), EniMarkMask::default()).unwrap();
        let entry = |n| PodEntry {
            address: Ipv4Addr::new(10, 0, 9, n),
            mac: Mac([2, 0, 0, 0, 0, n]),
            mark: 1 << 16,
        };
        let first = BTreeMap::from([(1, entry(1)), (2, entry(2)), (3, entry(3))]);
        assert_eq!(filter.sync(&first).unwrap(), 3);
        let second = BTreeMap::from([(2, entry(2)), (3, entry(9)), (4, entry(4))]);
        assert_eq!(filter.sync(&second).unwrap(), 3, "one removed, one replaced, one added");
        assert_eq!(filter.pods().unwrap(), second);
        assert_eq!(filter.sync(&second).unwrap(), 0);
    });
}

/// What ADD calls returns at once: programs that are running are waited for elsewhere, by who removes what they may
/// still read.
#[test]
fn a_pods_entry_never_waits_for_running_programs() {
    node::in_node(|directory| {
        let bench = Bench::new(directory);
        let fastest = |times: u32, work: &dyn Fn(u32)| {
            let time = |n| {
                let start = std::time::Instant::now();
                work(n);
                start.elapsed()
            };
            (0..times).map(time).min().unwrap()
        };
        let wait = fastest(5, &|_| veni_datapath::grace::wait().unwrap());
        let calls = fastest(30, &|n| {
            let entry = PodEntry {
                address: Ipv4Addr::new(10, 0, 8, u8::try_from(n).unwrap()),
                mac: Mac(POD_MAC),
                mark: 1 << 16,
            };
            bench.filter.pod_admit(n, entry, PodPolicy::default()).unwrap();
            bench.filter.pod_insert(n, entry).unwrap();
            assert!(bench.filter.pod_policy(n, PodPolicy::default()).unwrap());
            bench.filter.raise_epoch().unwrap();
            bench.filter.pod_remove(n).unwrap();
        });
        println!("five changes of a pod's entry in {calls:?}, a wait for programs {wait:?}");
        assert!(calls < wait, "{calls:?}, {wait:?}");
    });
}

#[test]
fn a_packet_costs_well_under_a_microsecond() {
    node::in_node(|directory| {
        let bench = Bench::new(directory);
        let pass = bench.run(&own(), bench.ifindex, 0, 200_000).nanos;
        let drop = bench
            .run(&udp(POD_MAC, Ipv4Addr::new(1, 2, 3, 4), 18), bench.ifindex, 0, 200_000)
            .nanos;
        println!("filter: {pass} ns a packet that passes, {drop} ns one that is dropped");
        assert!(pass < 1000 && drop < 1000, "{pass} and {drop} ns");
    });
}
