//! What a daemon finds that starts over maps of an earlier one, and what it makes of it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skipped"
)]
#![cfg(feature = "bpf")]

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use veni_core::{marks::EniMarkMask, net::Mac};
use veni_datapath::{
    bpf::{
        Filter, PodEntry, PodPolicy, SettingFlags, Settings, Write,
        table::{
            ANY_CLASS, BackendKey, BackendValue, Decision, PortRange, Profile, ServiceKeyV4,
            ServiceValue, VerdictKey,
        },
    },
    host,
};

#[path = "support/node.rs"]
mod node;

fn open(directory: &Path) -> Filter {
    Filter::open(&node::pins(directory), EniMarkMask::default()).unwrap()
}

#[test]
fn flows_are_not_learned_for_ever_when_a_daemon_dies_while_they_are() {
    node::in_node(|directory| {
        let first = open(directory);
        first.configure(|settings| settings.flags |= SettingFlags::LEARN).unwrap();
        let epoch = first.raise_epoch().unwrap();
        drop(first);
        let settings = open(directory).settings().unwrap();
        assert_eq!(settings.flags & SettingFlags::LEARN, 0);
        assert_eq!(settings.epoch, epoch, "the rest stays");
    });
}

#[test]
fn a_full_table_of_the_nodes_addresses_loses_those_that_went_and_takes_what_fits() {
    const ROOM: u32 = 1024;
    node::in_node(|directory| {
        let filter = open(directory);
        let some = |range: std::ops::Range<u32>| -> BTreeSet<IpAddr> {
            range.map(|n| std::net::Ipv4Addr::from(0x0a01_0000 + n).into()).collect()
        };
        let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
        assert!(filter.set_node_addresses(&some(0..ROOM)).unwrap());
        let mut wanted = some(5..ROOM + 8);
        wanted.insert(v6);
        let error = filter.set_node_addresses(&wanted).unwrap_err().to_string();
        assert!(error.starts_with("3 of the node's own addresses do not fit"), "{error}");
        assert!(error.contains("at most 1024 a family") && error.contains("ip address"), "{error}");
        let known = filter.node_addresses().unwrap();
        assert!(known.is_superset(&some(5..ROOM)) && known.is_subset(&wanted), "{known:?}");
        assert!(known.len() == ROOM as usize + 1 && known.contains(&v6), "all that fit");
        filter.set_node_addresses(&wanted).unwrap_err();
        assert_eq!(filter.node_addresses().unwrap(), known);
        let fewer = some(8..ROOM + 8);
        assert!(filter.set_node_addresses(&fewer).unwrap());
        assert_eq!(filter.node_addresses().unwrap(), fewer);
        assert!(!filter.set_node_addresses(&fewer).unwrap());
    });
}

#[test]
fn without_policy_nothing_of_an_earlier_policy_stays_in_force() {
    node::in_node(|directory| {
        let filter = open(directory);
        let policy = PodPolicy { ingress_set: 3, egress_set: 4, flags: 1, ..PodPolicy::default() };
        for (ifindex, policy) in [(7, policy), (8, PodPolicy::default())] {
            let entry = PodEntry { address: [10, 0, 0, 7].into(), mac: Mac([2; 6]), mark: 1 << 16 };
            filter.pod_admit(ifindex, entry, policy).unwrap();
        }
        filter.tables().apply(&tables()).unwrap();
        let before = filter.settings().unwrap().epoch;
        assert!(filter.isolates().unwrap());
        assert_eq!(filter.judge_nobody().unwrap(), (1, 5));
        assert!(!filter.isolates().unwrap(), "tables and open pods alone isolate nobody");
        for (_, pod) in filter.entries().unwrap() {
            assert_eq!(pod.policy, PodPolicy::default());
        }
        assert_eq!(filter.tables().entries().unwrap(), []);
        assert_ne!(filter.settings().unwrap().epoch, before, "flows are judged again");
        assert_eq!(filter.judge_nobody().unwrap(), (0, 0));
    });
}

#[test]
fn new_sets_of_a_pod_leave_its_other_address_and_its_flags() {
    node::in_node(|directory| {
        let filter = open(directory);
        assert!(!filter.pod_sets(7, 1, 1).unwrap(), "no such entry");
        let entry = PodEntry { address: [10, 0, 0, 7].into(), mac: Mac([2; 6]), mark: 1 << 16 };
        let address_v6 = Some("fd00::7".parse().unwrap());
        let policy = PodPolicy { address_v6, ingress_set: 3, egress_set: 4, flags: 1 };
        let identity = filter.pod_admit(7, entry, policy).unwrap();
        assert!(filter.pod_sets(7, 5, 6).unwrap());
        let pod = filter.pod(7).unwrap().unwrap();
        assert_eq!(pod.policy, PodPolicy { ingress_set: 5, egress_set: 6, ..policy });
        assert_eq!((pod.entry, pod.identity), (entry, identity));
    });
}

#[test]
fn settings_that_decide_have_every_flow_judged_again_and_no_others_do() {
    node::in_node(|directory| {
        let filter = open(directory);
        let check = |what: &str, expected: bool, change: fn(&mut Settings)| {
            let before = filter.settings().unwrap().epoch;
            let after = filter.configure(change).unwrap().epoch;
            assert_eq!(after, filter.settings().unwrap().epoch);
            assert_eq!(after != before, expected, "{what}");
        };
        check("metadata closed", true, |s| s.flags |= SettingFlags::METADATA_CLOSED);
        check("the same again", false, |s| s.flags |= SettingFlags::METADATA_CLOSED);
        check("events", false, |s| s.flags ^= SettingFlags::EVENTS_ALLOWED);
        check("kept", true, |s| s.flags |= SettingFlags::KEEP_ESTABLISHED);
        check("judged again", true, |s| s.flags &= !SettingFlags::KEEP_ESTABLISHED);
        check("a Service range", true, |s| {
            (s.service_v4, s.service_mask_v4) = ([10, 100, 0, 0], [255, 255, 0, 0]);
        });
        check("node ports", true, |s| s.node_port_last = 31_000);
        check("a bound", false, |s| s.half_open_cap = 7);
        check("an epoch by itself", true, |s| s.epoch += 1);
    });
}

#[test]
fn the_tables_of_flows_tell_their_room() {
    node::in_node(|directory| {
        let tables = open(directory).established().unwrap();
        assert_eq!(tables.map(|table| table.flows), [0, 0]);
        assert!(tables.iter().all(|table| table.room > 0), "{tables:?}");
    });
}

/// Five entries and a profile.
fn tables() -> Vec<Write> {
    let decision = Decision::deny(0);
    let none = PortRange { protocol: 0, of_node: 0, first: 1, last: 0, reserved2: 0, decision };
    let profile = Profile { otherwise: decision, count: 0, ranges: [none; 8] };
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[10, 0, 0, 8]);
    let port = 80u16.to_be_bytes();
    vec![
        Write::Profile { number: 1, profile },
        Write::Verdict { key: VerdictKey { set: 3, class: ANY_CLASS }, profile: 1 },
        Write::ClassV4 { address: [10, 0, 0, 8], class: 5 },
        Write::CidrV4 { prefix: [10, 1, 0, 0], length: 16, class: 6 },
        Write::Backend {
            key: BackendKey { backends: 2, slot: 0 },
            value: BackendValue { address, port, reserved: [0; 2] },
        },
        Write::ServiceV4 {
            key: ServiceKeyV4 { address: [10, 100, 0, 1], port, protocol: 6, reserved: 0 },
            value: ServiceValue { backends: 2, count: 1, affinity_secs: 0, service: 1 },
        },
    ]
}

#[test]
fn what_a_proxy_keeps_on_a_link_of_its_own_is_not_the_nodes_and_what_an_agent_listens_on_is() {
    node::in_node(|_| {
        let links = [
            ("kube-ipvs0", "10.100.0.1/32"),
            ("nodelocaldns", "169.254.20.10/32"),
            ("pod-id-link0", "169.254.170.23/32"),
            ("pod-id-link0", "fd00:ec2::23/128"),
            ("gateway", "169.254.1.1/32"),
            ("eth0", "10.0.1.10/24"),
        ];
        let mut made = BTreeSet::new();
        for (link, address) in links {
            if made.insert(link) {
                node::ip(&format!("link add {link} type veth peer name {link}-p"));
                node::ip(&format!("link set {link} up"));
            }
            node::ip(&format!("addr add {address} dev {link}"));
        }
        let own = ["169.254.20.10", "169.254.170.23", "fd00:ec2::23", "10.0.1.10"];
        let own: BTreeSet<IpAddr> = own.map(|own| own.parse().unwrap()).into();
        assert_eq!(host::addresses().unwrap(), own);
    });
}
