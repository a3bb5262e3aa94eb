//! The node's network in a fresh namespace: set up, disturbed by hand, noticed, repaired.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skipped or measured"
)]
#![cfg(feature = "host")]

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use veni_core::wire::FilterBlocks;
use veni_datapath::{
    host::{Conflict, PodLink, RepairKind, Report},
    nft::{self, NftTable},
    watch::{self, Change, Watch, WatchConfig},
};

#[path = "support/node.rs"]
mod node;
#[path = "support/vpc.rs"]
mod vpc;

const BLOCKS: FilterBlocks = FilterBlocks { ingress: 0x7665, egress: 0x7666 };

fn kinds(report: &Report) -> BTreeSet<RepairKind> {
    report.repaired.iter().map(|repair| repair.kind).collect()
}

fn watch() -> (Watch, Receiver<Change>) {
    let (sender, receiver) = channel();
    let config =
        WatchConfig { nft_table: nft::TABLE.into(), veth_prefix: "eni".into(), table_base: 7600 };
    let watch = watch::spawn(config, move |change| drop(sender.send(change))).unwrap();
    (watch, receiver)
}

/// Waits for `expect`; the time is a bound, not a pause.
fn notified(changes: &Receiver<Change>, expect: &Change) {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut seen = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match changes.recv_timeout(left) {
            Ok(change) if change == *expect => return,
            Ok(change) => seen.push(change),
            Err(_) => panic!("{expect:?} did not come within 2 s, but {seen:?}"),
        }
    }
}

/// Everything up to now. A marker link is made and removed; what came before its removal is returned.
fn drain(changes: &Receiver<Change>) -> Vec<Change> {
    node::ip("link add marker type veth peer name marker2");
    node::ip("link del marker");
    let mut seen = Vec::new();
    loop {
        match changes.recv_timeout(Duration::from_secs(5)) {
            Ok(Change::LinkRemoved { name, .. }) if name == "marker" => return seen,
            Ok(
                Change::LinkAdded { name, .. }
                | Change::LinkChanged { name, .. }
                | Change::LinkRemoved { name, .. },
            ) if name.starts_with("marker") => {}
            Ok(change) => seen.push(change),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                panic!("no marker; {seen:?}")
            }
        }
    }
}

#[test]
fn the_first_pass_sets_all_up_and_the_second_finds_nothing_to_do() {
    node::in_node(|_| {
        let _router = vpc::up();
        std::fs::write("/proc/sys/net/ipv4/conf/eth1/rp_filter", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let config = vpc::config(None);
        let report = vpc::settle(&config, &[]);
        let expect = [
            RepairKind::Rule,
            RepairKind::Route,
            RepairKind::Address,
            RepairKind::Link,
            RepairKind::Sysctl,
        ];
        assert_eq!(kinds(&report), BTreeSet::from(expect));
        assert_eq!(report.conflicts, []);
        let rules = node::ip("-d rule show");
        for rule in [
            "512:\tfrom all lookup 7600 proto 118",
            "1024:\tfrom all fwmark 0x80/0x80 lookup main proto 118",
            "1535:\tfrom all to 203.0.113.0/24 lookup main proto 118",
            "1536:\tfrom all fwmark 0x20000/0xff0000 lookup 7602 proto 118",
            "32765:\tfrom 10.0.2.10 lookup 7602 proto 118",
        ] {
            assert!(rules.contains(rule), "{rule:?} is not in\n{rules}");
        }
        let table = node::ip("route show table 7602");
        assert!(table.contains("default via 10.0.2.1 dev eth1 proto 118 onlink"), "{table}");
        assert!(table.contains("10.0.2.1 dev eth1 proto 118 scope link"), "{table}");
        assert!(
            !node::ip("route show").contains("eth1"),
            "the main table leads out of the secondary ENI"
        );
        assert_eq!(vpc::settle(&config, &[]), Report::default());
    });
}

#[test]
fn what_is_removed_by_hand_is_noticed_and_comes_back() {
    node::in_node(|_| {
        let _router = vpc::up();
        let config = vpc::config(Some(BLOCKS));
        let wiring = node::wiring(1, Some(BLOCKS));
        let pod = PodLink { address: wiring.address, ..vpc::pod() };
        let _pod = node::wire(&wiring);
        let pods = [pod];
        vpc::settle(&config, &pods);
        let (_watch, changes) = watch();
        // The last address of a link takes the link's routes with it.
        let cases: [(&str, &str, Change, &[RepairKind]); 12] = [
            ("ip", "rule del priority 1536", Change::Rules, &[RepairKind::Rule]),
            ("ip", "rule flush", Change::Rules, &[RepairKind::Rule]),
            ("ip", "route flush table 7602", Change::Routes, &[RepairKind::Route]),
            ("ip", "route flush table 7600", Change::Routes, &[RepairKind::PodRoute]),
            (
                "ip",
                "route replace default via 10.0.2.77 dev eth1 onlink table 7602",
                Change::Routes,
                &[RepairKind::Route],
            ),
            (
                "ip",
                "route replace 10.0.9.1/32 dev eth1 table 7600",
                Change::Routes,
                &[RepairKind::PodRoute],
            ),
            (
                "ip",
                "addr del 10.0.2.10/24 dev eth1",
                Change::Addresses,
                &[RepairKind::Address, RepairKind::Route],
            ),
            (
                "ip",
                "addr flush dev eth1",
                Change::Addresses,
                &[RepairKind::Address, RepairKind::Route],
            ),
            ("sysctl", "-q net.ipv4.conf.eth1.rp_filter=1", Change::Netconf, &[RepairKind::Sysctl]),
            ("sysctl", "-q net.ipv4.ip_forward=0", Change::Netconf, &[RepairKind::Sysctl]),
            ("tc", "qdisc del dev eni00000000001 clsact", Change::Qdisc, &[RepairKind::Qdisc]),
            ("ip", "rule add priority 100 to 10.0.9.0/24 lookup 99", Change::Rules, &[]),
        ];
        for (program, words, notice, repaired) in cases {
            node::run(program, &words.split_whitespace().collect::<Vec<_>>());
            notified(&changes, &notice);
            let report = vpc::settle(&config, &pods);
            assert_eq!(kinds(&report), repaired.iter().copied().collect(), "{words}");
            drain(&changes);
            let after = vpc::settle(&config, &pods);
            assert_eq!(after.repaired, [], "{words}");
            assert_eq!(drain(&changes), [], "{words}: a pass that changes nothing is noticed");
        }
        let conflicts = vpc::settle(&config, &pods).conflicts;
        assert!(
            matches!(&conflicts[..], [Conflict::Rule { rule }] if rule.contains("100")),
            "{conflicts:?}"
        );
    });
}

#[test]
fn a_link_taken_down_gets_its_state_and_routes_back() {
    node::in_node(|_| {
        let _router = vpc::up();
        let config = vpc::config(None);
        vpc::settle(&config, &[]);
        let (_watch, changes) = watch();
        node::ip("link set eth1 down");
        notified(
            &changes,
            &Change::LinkChanged { ifindex: config.secondary[0].ifindex, name: "eth1".into() },
        );
        let report = vpc::settle(&config, &[]);
        assert_eq!(kinds(&report), BTreeSet::from([RepairKind::Link, RepairKind::Route]));
        assert_eq!(vpc::settle(&config, &[]), Report::default());
    });
}

#[test]
fn a_pods_veth_taken_down_comes_up_again_with_its_route() {
    node::in_node(|_| {
        let _router = vpc::up();
        let config = vpc::config(Some(BLOCKS));
        let wiring = node::wiring(1, Some(BLOCKS));
        let pods = [PodLink { address: wiring.address, ..vpc::pod() }];
        let _pod = node::wire(&wiring);
        vpc::settle(&config, &pods);
        let (_watch, changes) = watch();
        node::ip("link set eni00000000001 down");
        let name = "eni00000000001".to_owned();
        notified(&changes, &Change::LinkChanged { ifindex: wiring.host_ifindex, name });
        let report = vpc::settle(&config, &pods);
        assert_eq!(kinds(&report), BTreeSet::from([RepairKind::Link, RepairKind::PodRoute]));
        assert_eq!(vpc::settle(&config, &pods), Report::default());
    });
}

#[test]
fn adding_and_removing_a_pod_is_no_reason_to_look_at_anything() {
    node::in_node(|_| {
        let _router = vpc::up();
        std::fs::write("/proc/sys/net/ipv4/conf/default/rp_filter", "1").unwrap();
        vpc::settle(&vpc::config(Some(BLOCKS)), &[]);
        let (_watch, changes) = watch();
        let wiring = node::wiring(1, Some(BLOCKS));
        let _pod = node::wire(&wiring);
        let (ifindex, name) = (wiring.host_ifindex, wiring.host_ifname.to_string());
        let mac = Some(wiring.host_mac);
        assert_eq!(drain(&changes), [Change::LinkAdded { mac, ifindex, name: name.clone() }]);
        node::ip(&format!("link del {name}"));
        assert_eq!(drain(&changes), [Change::LinkRemoved { ifindex, name }]);
    });
}

#[test]
fn an_address_of_either_family_is_noticed() {
    node::in_node(|_| {
        let (_watch, changes) = watch();
        for address in ["10.0.0.77/32", "fd00::77/128"] {
            node::ip(&format!("addr add {address} dev lo"));
            notified(&changes, &Change::Addresses);
        }
        drain(&changes);
        node::ip("addr del fd00::77/128 dev lo");
        notified(&changes, &Change::Addresses);
    });
}

#[test]
fn links_are_announced_with_their_mac_and_their_end() {
    node::in_node(|_| {
        let (_watch, changes) = watch();
        node::ip("link add eth7 index 77 address 02:00:00:00:00:77 type veth peer name r7");
        let mac = Some("02:00:00:00:00:77".parse().unwrap());
        notified(&changes, &Change::LinkAdded { mac, ifindex: 77, name: "eth7".into() });
        node::ip("link set eth7 name ens7");
        notified(&changes, &Change::LinkAdded { mac, ifindex: 77, name: "ens7".into() });
        node::ip("link del ens7");
        notified(&changes, &Change::LinkRemoved { ifindex: 77, name: "ens7".into() });
    });
}

#[test]
fn what_another_program_configures_on_a_secondary_eni_is_removed_or_reported() {
    node::in_node(|_| {
        let _router = vpc::up();
        let config = vpc::config(None);
        vpc::settle(&config, &[]);
        // DHCP: the address without NOPREFIXROUTE, a default route; then an administrator's route.
        node::ip("addr del 10.0.2.10/24 dev eth1");
        node::ip("addr add 10.0.2.10/24 dev eth1");
        node::ip("route add default via 10.0.2.1 dev eth1 metric 50 proto dhcp");
        node::ip("route add 10.77.0.0/16 via 10.0.2.1 dev eth1 proto static");
        // ec2-net-utils: every secondary address of the ENI.
        node::ip(&format!("addr add {}/32 dev eth1", vpc::pod().address));
        node::ip("addr add 10.0.2.99/32 dev eth1");
        let report = vpc::settle(&config, &[vpc::pod()]);
        let foreign = report.repaired.iter().filter(|r| r.kind == RepairKind::Foreign).count();
        assert_eq!(foreign, 3, "prefix route, default route, a pod's address: {report:?}");
        assert_eq!(
            report.conflicts,
            [
                Conflict::Address { ifname: "eth1".into(), address: "10.0.2.99".parse().unwrap() },
                Conflict::Route {
                    route: format!(
                        "route 10.77.0.0/16 via 10.0.2.1 dev #{} table 254",
                        config.secondary[0].ifindex
                    )
                },
            ]
        );
        assert_eq!(vpc::settle(&config, &[vpc::pod()]).repaired, []);
        let main = node::ip("route show");
        assert!(
            !main.contains("default via 10.0.2.1") && main.contains("default via 10.0.1.1"),
            "{main}"
        );
    });
}

#[test]
fn an_eni_that_is_gone_takes_its_rules_and_routes_with_it() {
    node::in_node(|_| {
        let _router = vpc::up();
        let mut config = vpc::config(None);
        vpc::settle(&config, &[]);
        config.secondary.clear();
        let report = vpc::settle(&config, &[]);
        assert_eq!(kinds(&report), BTreeSet::from([RepairKind::Rule, RepairKind::Route]));
        assert!(!node::ip("rule show").contains("7602"));
        assert_eq!(node::ip("route show table 7602"), "");
    });
}

#[test]
fn a_pod_whose_link_is_not_there_yet_is_left_alone() {
    node::in_node(|_| {
        let _router = vpc::up();
        let config = vpc::config(Some(BLOCKS));
        vpc::settle(&config, &[]);
        assert_eq!(vpc::settle(&config, &[vpc::pod()]), Report::default());
    });
}

#[test]
fn routes_of_pods_that_are_not_in_the_list_are_never_removed() {
    node::in_node(|_| {
        let _router = vpc::up();
        let config = vpc::config(None);
        vpc::settle(&config, &[]);
        let _pod = node::wire(&node::wiring(1, None));
        assert_eq!(vpc::settle(&config, &[]), Report::default());
        assert!(node::ip("route show table 7600").contains("10.0.9.1"));
    });
}

#[test]
fn the_nft_table_is_replaced_whole_and_its_loss_is_noticed() {
    node::in_node(|_| {
        let _router = vpc::up();
        vpc::settle(&vpc::config(None), &[]);
        assert!(!nft::present().unwrap());
        let (_watch, changes) = watch();
        let mut table = NftTable::new(&vpc::nft_config());
        assert!(!table.intact().unwrap());
        let start = Instant::now();
        table.apply().unwrap();
        println!("nft: a table applied and read back in {:?}", start.elapsed());
        table.apply().unwrap();
        assert!(table.intact().unwrap() && nft::present().unwrap());
        assert_eq!(drain(&changes), [], "our own transactions are noticed");
        let by_hand: [&[&str]; 4] = [
            &["delete", "table", "ip", "veni"],
            &["flush", "chain", "ip", "veni", "egress_snat"],
            &["flush", "ruleset"],
            &["add", "rule", "ip", "veni", "connmark", "accept"],
        ];
        for command in by_hand {
            node::run("nft", command);
            notified(&changes, &Change::Nft);
            assert!(!table.intact().unwrap(), "{command:?}");
            table.apply().unwrap();
            assert!(table.intact().unwrap(), "{command:?}");
        }
        drain(&changes);
        node::run("nft", &["add table ip other; add table ip6 veni"]);
        assert_eq!(drain(&changes), [], "tables of others are noticed");
        nft::remove().unwrap();
        nft::remove().unwrap();
        assert!(!nft::present().unwrap());
    });
}

#[test]
fn every_variant_of_the_nft_table_is_accepted() {
    use veni_core::config::RandomizeSnat::{HashRandom, None, Prng};
    node::in_node(|_| {
        let _router = vpc::up();
        for randomize in [Prng, HashRandom, None] {
            for (external, node_port, cidrs) in
                [(false, true, 1), (true, true, 0), (false, false, 0), (true, false, 1)]
            {
                let mut config = vpc::nft_config();
                config.snat.randomize = randomize;
                config.snat.external = external;
                config.snat.node_port_support = node_port;
                config.vpc_cidrs.truncate(cidrs);
                config.snat.exclude_cidrs = vec!["10.0.4.0/24".parse().unwrap()];
                let mut table = NftTable::new(&config);
                table.apply().unwrap();
                assert!(table.intact().unwrap(), "{config:?}");
            }
        }
    });
}

#[test]
fn a_flood_of_changes_is_reported_as_an_overrun_not_lost() {
    node::in_node(|_| {
        let (sender, changes) = channel();
        let (release, gate) = channel::<()>();
        let config = WatchConfig {
            nft_table: nft::TABLE.into(),
            veth_prefix: "eni".into(),
            table_base: 7600,
        };
        let mut held = false;
        let _watch = watch::spawn(config, move |change| {
            if !std::mem::replace(&mut held, true) {
                gate.recv().unwrap();
            }
            drop(sender.send(change));
        })
        .unwrap();
        // More than the buffer holds while the reader stands still.
        node::ip("link add d0 type veth peer name d1");
        node::ip("link set d0 up");
        let batch: String = (0..60_000)
            .map(|n| {
                format!("route add 10.{}.{}.{} dev d0\n", 100 + n / 65536, n / 256 % 256, n % 256)
            })
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), batch).unwrap();
        node::run("ip", &["-force", "-batch", file.path().to_str().unwrap()]);
        release.send(()).unwrap();
        notified(&changes, &Change::Overrun);
    });
}

#[test]
fn a_pass_over_seven_hundred_pods_is_short_and_repairs_all_that_is_missing() {
    node::in_node(|_| {
        let _router = vpc::up();
        let config = vpc::config(Some(BLOCKS));
        let batch = |program: &str, lines: String| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), lines).unwrap();
            node::run(program, &["-batch", file.path().to_str().unwrap()]);
        };
        let pods: Vec<PodLink> = (0..700)
            .map(|n| PodLink {
                address: Ipv4Addr::new(
                    10,
                    0,
                    4 + u8::try_from(n / 250).unwrap(),
                    u8::try_from(n % 250).unwrap(),
                ),
                ifindex: 0x10_0000 + n,
                ifname: format!("eni{n:011x}"),
            })
            .collect();
        let add = |pod: &PodLink| {
            format!(
                "link add {} index {} up type veth peer name p{}\n",
                pod.ifname, pod.ifindex, pod.ifindex
            )
        };
        batch("ip", pods.iter().map(add).collect());
        let timed = |what: &str| {
            let start = Instant::now();
            let report = vpc::settle(&config, &pods);
            println!("700 pods, {what}: {:?}", start.elapsed());
            report
        };
        let first = timed("all routes and qdiscs missing");
        let count = |kind| first.repaired.iter().filter(|repair| repair.kind == kind).count();
        assert_eq!((count(RepairKind::PodRoute), count(RepairKind::Qdisc)), (700, 700));
        assert_eq!(timed("nothing to do"), Report::default());
    });
}
