//! The netlink messages that a pod's wiring is made of.
//!
//! Pure: values in, messages out.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use veni_core::{id::IfName, net::Mac, wire::Wiring};

use crate::{
    clsact,
    netlink::{OWN_PROTOCOL, Request},
    netns::NetNs,
};

/// The host side, in the order of `step::HOST`: the pair with its far end in `netns` and still down, the route, the
/// filter's qdisc. The far end gets index `pod_index`, or the kernel's choice for 0.
pub(super) fn host_batch(
    wiring: &Wiring,
    ifname: &IfName,
    netns: &NetNs,
    pod_index: u32,
) -> Vec<Request> {
    let mut batch = Vec::with_capacity(3);
    batch.push(Request::create(new_pair(wiring, ifname, netns, pod_index)));
    batch.push(Request::create(host_route(wiring)));
    if let Some(blocks) = wiring.blocks {
        batch.push(clsact::add(wiring.host_ifindex, blocks));
    }
    batch
}

/// The pod side, in the order of `step::POD`.
pub(super) fn pod_batch(wiring: &Wiring, index: u32) -> [Request; 5] {
    [
        Request::plain(link_up(index)),
        Request::create(new_address(wiring.address, index)),
        Request::create(pod_route(index, Some(wiring.gateway), None)),
        Request::create(pod_route(index, None, Some(wiring.gateway))),
        // A process that is in the pod already may have asked for the gateway the moment the route was there.
        Request::replace(new_neighbour(wiring.gateway, wiring.host_mac, index)),
    ]
}

/// Removes a link by its index.
pub(super) fn delete_link(index: u32) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    RouteNetlinkMessage::DelLink(link)
}

fn new_pair(
    wiring: &Wiring,
    ifname: &IfName,
    netns: &NetNs,
    pod_index: u32,
) -> RouteNetlinkMessage {
    let ends = |name: &IfName, mac: Mac| {
        vec![
            LinkAttribute::IfName(name.as_str().to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(wiring.mtu),
        ]
    };
    let mut peer = LinkMessage::default();
    peer.header.index = pod_index;
    peer.attributes = ends(ifname, wiring.pod_mac);
    // The pod's end is born in the pod's namespace: no window in which the node could see or configure it.
    peer.attributes.push(LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()));

    let mut link = LinkMessage::default();
    link.header.index = wiring.host_ifindex;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = ends(&wiring.host_ifname, wiring.host_mac);
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(link)
}

fn host_route(wiring: &Wiring) -> RouteNetlinkMessage {
    let mut route = unicast_route(RouteScope::Link);
    route.header.destination_prefix_length = 32;
    route.header.table = RouteHeader::RT_TABLE_UNSPEC; // RTA_TABLE says it in 32 bits
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(wiring.address)),
        RouteAttribute::Oif(wiring.host_ifindex),
        RouteAttribute::Table(wiring.pod_table),
        RouteAttribute::PrefSource(RouteAddress::Inet(wiring.node_address)),
    ];
    RouteNetlinkMessage::NewRoute(route)
}

fn link_up(index: u32) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(link)
}

fn new_address(local: Ipv4Addr, index: u32) -> RouteNetlinkMessage {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = 32;
    address.header.index = index;
    address.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(local)),
        AddressAttribute::Address(IpAddr::V4(local)),
    ];
    RouteNetlinkMessage::NewAddress(address)
}

/// With a destination: that address is on the link. With a gateway: it is the way to everything else.
fn pod_route(
    index: u32,
    destination: Option<Ipv4Addr>,
    gateway: Option<Ipv4Addr>,
) -> RouteNetlinkMessage {
    let scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    let mut route = unicast_route(scope);
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.attributes.push(RouteAttribute::Oif(index));
    if let Some(destination) = destination {
        route.header.destination_prefix_length = 32;
        route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(destination)));
    }
    if let Some(gateway) = gateway {
        route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    }
    RouteNetlinkMessage::NewRoute(route)
}

fn unicast_route(scope: RouteScope) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.protocol = RouteProtocol::Other(OWN_PROTOCOL);
    route.header.scope = scope;
    route.header.kind = RouteType::Unicast;
    route
}

fn new_neighbour(address: Ipv4Addr, mac: Mac, index: u32) -> RouteNetlinkMessage {
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = AddressFamily::Inet;
    neighbour.header.ifindex = index;
    neighbour.header.state = NeighbourState::Permanent;
    neighbour.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(neighbour)
}
