//! Links of the node: found by MAC, brought up, given an MTU and an address.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage},
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use veni_core::{
    config::POD_GATEWAY,
    net::{Ipv4Prefix, Mac},
};

use crate::{
    error::{Error, Result},
    netlink::{Request, Socket},
};

/// A link of the current network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub ifname: String,
    /// Its MAC, for Ethernet.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is up (administratively).
    pub up: bool,
    /// `vlan`, `macvlan`, `veth`…; `None` for hardware.
    pub kind: Option<String>,
}

/// An IPv4 address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkAddress {
    pub(super) ifindex: u32,
    pub(super) address: Ipv4Addr,
    pub(super) prefix_len: u8,
}

// === impl Link ===

impl Link {
    pub(crate) fn parse(message: &LinkMessage) -> Self {
        let mut link = Self {
            ifindex: message.header.index,
            ifname: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.ifname.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => {
                    link.mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(Mac)
                }
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind_name(kind)),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }

    /// Whether this can be an ENI: links stacked on one (VLAN, macvlan, bridge…) carry its MAC too.
    #[must_use]
    pub fn can_be_eni(&self) -> bool {
        // A veth stands for an ENI in the lab.
        self.kind.as_deref().is_none_or(|kind| kind == "veth")
    }
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

/// All links of the current network namespace.
///
/// # Errors
/// When they cannot be listed.
pub fn links() -> Result<Vec<Link>> {
    dump(&mut Socket::open().map_err(Error::netlink("listing links"))?)
}

/// The link of the ENI with this MAC, `None` while it is not there.
///
/// # Errors
/// When links cannot be listed.
pub fn by_mac(mac: Mac) -> Result<Option<Link>> {
    Ok(links()?.into_iter().find(|link| link.mac == Some(mac) && link.can_be_eni()))
}

pub(super) fn dump(socket: &mut Socket) -> Result<Vec<Link>> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    socket
        .dump(RouteNetlinkMessage::GetLink(request), |message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(Link::parse(&link)),
            _ => None,
        })
        .map_err(Error::netlink("listing links"))
}

pub(super) fn set_up(ifindex: u32) -> Request {
    set(LinkUnspec::new_with_index(ifindex).up())
}

pub(super) fn set_mtu(ifindex: u32, mtu: u32) -> Request {
    set(LinkUnspec::new_with_index(ifindex).mtu(mtu))
}

fn set(link: LinkMessageBuilder<LinkUnspec>) -> Request {
    Request::plain(RouteNetlinkMessage::SetLink(link.build()))
}

pub(super) fn dump_addresses(socket: &mut Socket) -> Result<Vec<LinkAddress>> {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    socket
        .dump(RouteNetlinkMessage::GetAddress(request), |message| match message {
            RouteNetlinkMessage::NewAddress(address) => parse_address(&address),
            _ => None,
        })
        .map_err(Error::netlink("listing addresses"))
}

/// Links on which a proxy keeps the Services' addresses: kube-proxy's IPVS mode (`DefaultDummyDevice` in
/// pkg/proxy/ipvs/proxier.go), kube-router.
const PROXIES_LINKS: [&str; 2] = ["kube-ipvs0", "kube-dummy-if"];

/// The addresses that are the node's own, of both families, all links. IPv4's link-local ones are among them: agents
/// of the node listen there (NodeLocal DNS at 169.254.20.10, EKS Pod Identity at 169.254.170.23). Loopback's, IPv6's
/// link-local ones, the pods' gateway, and those that a proxy keeps for Services are not.
///
/// # Errors
/// When they cannot be listed.
pub fn addresses() -> Result<BTreeSet<IpAddr>> {
    let mut socket = Socket::open().map_err(Error::netlink("listing addresses"))?;
    let links = dump(&mut socket)?;
    let proxies = links.into_iter().filter(|link| PROXIES_LINKS.contains(&&*link.ifname));
    let proxies: BTreeSet<u32> = proxies.map(|link| link.ifindex).collect();
    let found = socket
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| match message {
            RouteNetlinkMessage::NewAddress(address)
                if !proxies.contains(&address.header.index) =>
            {
                own_address(&address)
            }
            _ => None,
        })
        .map_err(Error::netlink("listing addresses"))?;
    Ok(found.into_iter().collect())
}

fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    // `IFA_LOCAL` is the end on this side; IPv6 has `IFA_ADDRESS` only (rtnetlink(7)).
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    local.or(address).filter(|address| match address {
        IpAddr::V4(address) => !address.is_loopback() && *address != POD_GATEWAY,
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    })
}

fn parse_address(message: &AddressMessage) -> Option<LinkAddress> {
    let local = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    };
    let address = message.attributes.iter().find_map(local)?;
    Some(LinkAddress {
        ifindex: message.header.index,
        address,
        prefix_len: message.header.prefix_len,
    })
}

/// The address with its subnet's length, and no route for the subnet (`IFA_F_NOPREFIXROUTE`, Linux 3.14 and for IPv4
/// 4.10): the main table must not lead to the subnet through a secondary ENI.
pub(super) fn add_address(ifindex: u32, address: Ipv4Addr, subnet: Ipv4Prefix) -> Request {
    let mut message = address_message(ifindex, address, subnet.len());
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    Request::replace(RouteNetlinkMessage::NewAddress(message))
}

pub(super) fn remove_address(address: &LinkAddress) -> Request {
    let message = address_message(address.ifindex, address.address, address.prefix_len);
    Request::plain(RouteNetlinkMessage::DelAddress(message))
}

fn address_message(ifindex: u32, address: Ipv4Addr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix_len;
    message.header.scope = AddressScope::Universe;
    message.header.index = ifindex;
    message.attributes.push(AddressAttribute::Local(IpAddr::V4(address)));
    message.attributes.push(AddressAttribute::Address(IpAddr::V4(address)));
    message
}
