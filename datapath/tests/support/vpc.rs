//! A node with two ENIs on a router that knows a VPC, a peered network and an internet.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::Ipv4Addr;

use veni_core::{
    config::Snat,
    marks::{EniMarkMask, EniSlot},
    net::Mac,
    wire::FilterBlocks,
};
use veni_datapath::{
    host::{EniLink, HostConfig, PodLink, Report, desired, link, reconcile},
    netns::NetNs,
    nft::NftConfig,
};

use crate::node;

pub(crate) const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 10);
/// Outside the VPC.
pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Outside the VPC's CIDRs too, but with a route to the pods.
pub(crate) const PEERED: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);
/// In the VPC, on the router.
pub(crate) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);
const MACS: [&str; 2] = ["02:00:00:00:00:10", "02:00:00:00:00:11"];

/// Makes eth0 and eth1 in the current namespace, and the router at their other ends.
pub(crate) fn up() -> NetNs {
    let router = node::pod_namespace();
    for (index, mac) in MACS.iter().enumerate() {
        node::ip(&format!("link add eth{index} address {mac} type veth peer name r{index}"));
        node::run_in(&router, |pid| {
            node::ip(&format!("link set r{index} netns {pid}"));
        });
    }
    node::ip(&format!("addr add {}/24 dev eth0", node::NODE));
    node::ip("link set eth0 up");
    node::ip("route add default via 10.0.1.1 dev eth0");
    node::within(&router, || {
        node::ip("link set lo up");
        for (index, subnet) in [(0, "10.0.1.1/24"), (1, "10.0.2.1/24")] {
            node::ip(&format!("addr add {subnet} dev r{index}"));
            node::ip(&format!("link set r{index} up"));
        }
        for address in [INTERNET, PEERED, NEIGHBOUR] {
            node::ip(&format!("addr add {address}/32 dev lo"));
        }
        // A VPC delivers by its own map, not by ARP.
        node::ip(&format!("neigh add {} lladdr {} dev r1", pod().address, MACS[1]));
        // Source/destination check: nothing comes by an ENI that does not own its source.
        for (device, own) in
            [("r0", node::NODE.to_string()), ("r1", format!("{SECONDARY}, {}", pod().address))]
        {
            let rule =
                format!("add rule ip vpc check iifname {device} ip saddr != {{ {own} }} drop");
            node::run(
                "nft",
                &[
                    "add table ip vpc; add chain ip vpc check { type filter hook prerouting priority -300; }",
                ],
            );
            node::run("nft", &[&rule]);
        }
    });
    router
}

/// The one pod, with an address of the secondary ENI.
pub(crate) fn pod() -> PodLink {
    PodLink {
        address: Ipv4Addr::new(10, 0, 2, 77),
        ifindex: 0x10_0001,
        ifname: "eni00000000001".into(),
    }
}

pub(crate) fn config(blocks: Option<FilterBlocks>) -> HostConfig {
    HostConfig {
        primary: eni(0, node::NODE),
        secondary: vec![eni(1, SECONDARY)],
        mask: EniMarkMask::default(),
        table_base: 7600,
        connmark: 0x80,
        node_port_support: true,
        external_snat: false,
        external_service_cidrs: vec!["203.0.113.0/24".parse().expect("a prefix")],
        blocks,
        sysctl_dir: "/proc/sys/net".into(),
    }
}

pub(crate) fn nft_config() -> NftConfig {
    NftConfig {
        primary_ifname: "eth0".into(),
        primary_address: node::NODE,
        veth_prefix: "eni".into(),
        vpc_cidrs: vec!["10.0.0.0/16".parse().expect("a prefix")],
        snat: Snat::default(),
        mask: EniMarkMask::default(),
    }
}

/// Reconciles the node with `pods`; nothing may fail.
pub(crate) fn settle(config: &HostConfig, pods: &[PodLink]) -> Report {
    let report = reconcile(&desired(config, pods)).expect("the kernel's state");
    assert_eq!(report.failed, Vec::<String>::new());
    report
}

fn eni(index: u8, address: Ipv4Addr) -> EniLink {
    let mac: Mac = MACS[usize::from(index)].parse().expect("a MAC");
    let link = link::by_mac(mac).expect("links").expect("the ENI's link");
    let [a, b, c, _] = address.octets();
    EniLink {
        slot: EniSlot::new(0, index).expect("a slot"),
        mac,
        ifindex: link.ifindex,
        ifname: link.ifname,
        address,
        subnet: format!("{a}.{b}.{c}.0/24").parse().expect("a prefix"),
        mtu: 9001,
    }
}
