//! Routes as values.

use std::{fmt, net::Ipv4Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use rtnetlink::RouteMessageBuilder;
use veni_core::net::Ipv4Prefix;

use super::PROTOCOL;
use crate::{
    error::{Error, Result},
    netlink::{Request, Socket},
};

/// A unicast IPv4 route of the kinds that we make.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Its table.
    pub table: u32,
    /// Where to.
    pub destination: Ipv4Prefix,
    /// Through which router, which need not be on a connected prefix (`onlink`); `None`: the link itself (`scope link`).
    pub gateway: Option<Ipv4Addr>,
    /// Out of which link.
    pub ifindex: u32,
    /// The source of what the node itself sends.
    pub source: Option<Ipv4Addr>,
}

/// A route as the kernel has it.
#[derive(Debug, Clone)]
pub(super) struct KernelRoute {
    pub(super) message: RouteMessage,
    pub(super) protocol: u8,
    /// `None` when it is of no kind of ours (multipath, not unicast).
    pub(super) route: Option<Route>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " dev #{}", self.ifindex)?;
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        write!(f, " table {}", self.table)
    }
}

impl Route {
    pub(super) fn message(&self) -> RouteMessage {
        let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .protocol(RouteProtocol::Other(PROTOCOL))
            .table_id(self.table)
            .output_interface(self.ifindex);
        if self.destination.len() > 0 {
            let (network, len) = (self.destination.network(), self.destination.len());
            builder = builder.destination_prefix(network, len);
        }
        builder = match self.gateway {
            Some(gateway) => builder.gateway(gateway).onlink(),
            None => builder.scope(RouteScope::Link),
        };
        if let Some(source) = self.source {
            builder = builder.pref_source(source);
        }
        builder.build()
    }
}

impl KernelRoute {
    fn parse(message: RouteMessage) -> Self {
        let route = parse(&message);
        Self { protocol: u8::from(message.header.protocol), route, message }
    }
}

fn parse(message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast || message.header.tos != 0 {
        return None;
    }
    let mut table = u32::from(message.header.table);
    let (mut destination, mut gateway, mut ifindex, mut source) =
        (Ipv4Addr::UNSPECIFIED, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::MultiPath(_) | RouteAttribute::Encap(_) => return None,
            _ => {}
        }
    }
    let destination =
        Ipv4Prefix::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { table, destination, gateway, ifindex: ifindex?, source })
}

/// Every unicast route of every table.
pub(super) fn dump(socket: &mut Socket) -> Result<Vec<KernelRoute>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    socket
        .dump(RouteNetlinkMessage::GetRoute(request), |message| match message {
            // Local and broadcast routes are the kernel's own affair.
            RouteNetlinkMessage::NewRoute(route)
                if route.header.address_family == AddressFamily::Inet
                    && route.header.kind == RouteType::Unicast =>
            {
                Some(KernelRoute::parse(route))
            }
            _ => None,
        })
        .map_err(Error::netlink("listing routes"))
}

/// Routes of whatever table and origin to one address on a link: where somebody's pods may be. A link can be named twice.
///
/// # Errors
/// When the kernel does not list its routes.
pub fn on_links() -> Result<Vec<(Ipv4Addr, u32)>> {
    let routes = dump(&mut Socket::open().map_err(Error::netlink("listing routes"))?)?;
    let to_one = routes.into_iter().filter_map(|route| route.route);
    let to_one = to_one.filter(|route| route.destination.len() == 32 && route.gateway.is_none());
    Ok(to_one.map(|route| (route.destination.network(), route.ifindex)).collect())
}

/// The pods' routes of ours in `table`: each pod's address with the index of its link.
///
/// # Errors
/// When the kernel does not list its routes.
pub fn pods(table: u32) -> Result<Vec<(Ipv4Addr, u32)>> {
    let routes = dump(&mut Socket::open().map_err(Error::netlink("listing routes"))?)?;
    let ours = routes.into_iter().filter(|route| route.protocol == PROTOCOL);
    let pods = ours.filter_map(|route| route.route).filter(|route| {
        route.table == table && route.destination.len() == 32 && route.gateway.is_none()
    });
    Ok(pods.map(|route| (route.destination.network(), route.ifindex)).collect())
}

pub(super) fn replace(route: &Route) -> Request {
    Request::replace(RouteNetlinkMessage::NewRoute(route.message()))
}

pub(super) fn remove(route: &KernelRoute) -> Request {
    let mut message = route.message.clone();
    // What the kernel reports but does not take back.
    message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::CacheInfo(_)));
    message.header.flags = RouteFlags::empty();
    Request::plain(RouteNetlinkMessage::DelRoute(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_make_parses_back_to_itself() {
        let gateway = Ipv4Addr::new(10, 0, 2, 1);
        let routes = [
            Route {
                table: 7602,
                destination: "0.0.0.0/0".parse().unwrap(),
                gateway: Some(gateway),
                ifindex: 3,
                source: None,
            },
            Route {
                table: 7602,
                destination: Ipv4Prefix::new(gateway, 32).unwrap(),
                gateway: None,
                ifindex: 3,
                source: None,
            },
            Route {
                table: 7600,
                destination: "10.0.2.77/32".parse().unwrap(),
                gateway: None,
                ifindex: 0x10_0007,
                source: Some(Ipv4Addr::new(10, 0, 1, 10)),
            },
        ];
        for route in routes {
            assert_eq!(KernelRoute::parse(route.message()).route, Some(route));
        }
    }
}
