//! The pod that tests of the plugin and of the wiring have in common, and the node under it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::{IpAddr, Ipv4Addr};

use veni_core::{
    net::Mac,
    wire::{FilterBlocks, Wiring},
};
use veni_datapath::netlink::{
    Request, RouteNetlinkMessage, Socket,
    packet::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
        link::{LinkFlags, LinkMessage},
    },
};

/// The address of the node.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);

/// How the pod is wired.
pub(crate) fn wiring() -> Wiring {
    Wiring {
        address: Ipv4Addr::new(10, 0, 0, 77),
        gateway: veni_core::config::POD_GATEWAY,
        host_ifname: "eni0123456789a".parse().expect("an interface name"),
        host_ifindex: 0x10_0007,
        host_mac: Mac::local(1),
        pod_mac: Mac::local(2),
        mtu: 9001,
        pod_table: 7600,
        node_address: NODE,
        blocks: Some(FilterBlocks { ingress: 0x7651, egress: 0x7652 }),
        eni: "eni-0123456789abcdef0".parse().expect("an ENI id"),
    }
}

/// The calling thread's new namespace as the node's: `lo` is up and has the node's address.
pub(crate) fn node() -> Socket {
    let mut host = Socket::open().expect("a socket");
    let mut link = LinkMessage::default();
    link.header.index = 1;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = 24;
    address.header.index = 1;
    address.attributes = vec![AddressAttribute::Local(IpAddr::V4(NODE))];
    let requests = [
        Request::plain(RouteNetlinkMessage::SetLink(link)),
        Request::create(RouteNetlinkMessage::NewAddress(address)),
    ];
    host.transact(&requests).expect("an address on lo");
    host
}
