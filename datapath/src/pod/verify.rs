//! CHECK: whether a pod is wired exactly as it should be.

use std::{fmt::Display, net::IpAddr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage},
    tc::{TcHandle, TcMessage},
};
use veni_core::{
    id::IfName,
    net::Mac,
    wire::{FilterBlocks, Wiring},
};

use super::{Error, decode_error, is_veth, link_mac, link_mtu, peer_index};
use crate::{
    clsact,
    netlink::{self, Socket},
};

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is, e.g. `MTU of eth0`.
    pub what: String,
    /// How it should be.
    pub expected: String,
    /// How it is.
    pub found: String,
}

/// Compares the kernel with `wiring`: both ends, the address, the routes, the neighbour entry and the qdisc's blocks.
/// Empty when all is well. `host` is a socket in the node's namespace, `pod` one in the pod's.
/// What cannot be looked at because its link is missing is not listed again.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn verify(
    host: &mut Socket,
    pod: &mut Socket,
    wiring: &Wiring,
    ifname: &IfName,
) -> Result<Vec<Difference>, Error> {
    let mut report = Report { differences: Vec::new(), ifname: ifname.clone() };
    let pod_end = report.link(pod, ifname, wiring.pod_mac, wiring.mtu)?;
    let host_end = report.link(host, &wiring.host_ifname, wiring.host_mac, wiring.mtu)?;
    if let Some(link) = &host_end {
        let what = || format!("index of {}", wiring.host_ifname);
        report.expect(what, wiring.host_ifindex, Some(link.header.index));
        report.host_route(host, wiring, link.header.index)?;
        if let Some(blocks) = wiring.blocks {
            report.blocks(host, link.header.index, blocks)?;
        }
    }
    if let Some(link) = &pod_end {
        let index = link.header.index;
        report.expect(|| format!("peer of {ifname}"), wiring.host_ifindex, peer_index(link));
        report.address(pod, wiring, index)?;
        report.pod_routes(pod, wiring, index)?;
        report.neighbour(pod, wiring, index)?;
    }
    Ok(report.differences)
}

struct Report {
    differences: Vec<Difference>,
    ifname: IfName,
}

// === impl Difference ===

impl Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: expected {}, found {}", self.what, self.expected, self.found)
    }
}

// === impl Report ===

impl Report {
    fn expect<T: PartialEq + Display>(
        &mut self,
        what: impl FnOnce() -> String,
        expected: T,
        found: Option<T>,
    ) {
        if found.as_ref() != Some(&expected) {
            self.differences.push(Difference {
                what: what(),
                expected: expected.to_string(),
                found: found.map_or_else(|| "none".to_owned(), |found| found.to_string()),
            });
        }
    }

    fn expect_one(&mut self, what: impl FnOnce() -> String, expected: &str, found: bool) {
        self.expect(what, expected, found.then_some(expected));
    }

    fn asked(&self, step: &'static str) -> impl Fn(netlink::Error) -> Error + use<> {
        let ifname = self.ifname.clone();
        move |source| Error::Netlink { step, ifname: ifname.clone(), source }
    }

    fn link(
        &mut self,
        socket: &mut Socket,
        name: &IfName,
        mac: Mac,
        mtu: u32,
    ) -> Result<Option<LinkMessage>, Error> {
        let link =
            socket.get_link_by_name(name.as_str()).map_err(self.asked("looking at a link"))?;
        let veth = link.filter(is_veth);
        self.expect_one(|| format!("link {name}"), "a veth", veth.is_some());
        if let Some(link) = &veth {
            self.expect(|| format!("MAC of {name}"), mac, link_mac(link));
            self.expect(|| format!("MTU of {name}"), mtu, link_mtu(link));
            let up = link.header.flags.contains(LinkFlags::Up);
            self.expect_one(|| format!("state of {name}"), "up", up);
        }
        Ok(veth)
    }

    fn host_route(&mut self, host: &mut Socket, wiring: &Wiring, index: u32) -> Result<(), Error> {
        let wanted = [
            RouteAttribute::Destination(RouteAddress::Inet(wiring.address)),
            RouteAttribute::PrefSource(RouteAddress::Inet(wiring.node_address)),
        ];
        let filter = [RouteAttribute::Table(wiring.pod_table), RouteAttribute::Oif(index)];
        let found = self.routes(host, &filter)?;
        let there = found.iter().any(|route| {
            route.header.destination_prefix_length == 32
                && wanted.iter().chain(&filter).all(|a| route.attributes.contains(a))
        });
        let what = || format!("route to the pod in table {}", wiring.pod_table);
        let expected =
            format!("{}/32 dev {} src {}", wiring.address, wiring.host_ifname, wiring.node_address);
        self.expect_one(what, &expected, there);
        Ok(())
    }

    fn blocks(&mut self, host: &mut Socket, index: u32, blocks: FilterBlocks) -> Result<(), Error> {
        let mut ask = TcMessage::with_index(index.cast_signed());
        ask.header.parent = TcHandle::CLSACT;
        let qdisc = match host.get(RouteNetlinkMessage::GetQueueDiscipline(ask)) {
            Ok(RouteNetlinkMessage::NewQueueDiscipline(qdisc)) => Some(qdisc),
            Ok(other) => return Err(self.asked("looking at the qdisc")(decode_error(&other))),
            Err(error) if error.is_absent() => None,
            Err(error) => return Err(self.asked("looking at the qdisc")(error)),
        };
        let [ingress, egress] = qdisc.as_ref().map(clsact::blocks).unwrap_or_default();
        self.expect(|| "ingress filter block".to_owned(), blocks.ingress, ingress);
        self.expect(|| "egress filter block".to_owned(), blocks.egress, egress);
        Ok(())
    }

    fn address(&mut self, pod: &mut Socket, wiring: &Wiring, index: u32) -> Result<(), Error> {
        let mut ask = AddressMessage::default();
        ask.header.family = AddressFamily::Inet;
        ask.header.index = index;
        let found = pod
            .dump(RouteNetlinkMessage::GetAddress(ask), |message| match message {
                RouteNetlinkMessage::NewAddress(found) if found.header.index == index => {
                    Some(found)
                }
                _ => None,
            })
            .map_err(self.asked("looking at the pod's addresses"))?;
        let local = AddressAttribute::Local(IpAddr::V4(wiring.address));
        let there =
            found.iter().any(|a| a.header.prefix_len == 32 && a.attributes.contains(&local));
        let ifname = self.ifname.clone();
        self.expect_one(
            || format!("address of {ifname}"),
            &format!("{}/32", wiring.address),
            there,
        );
        Ok(())
    }

    fn pod_routes(&mut self, pod: &mut Socket, wiring: &Wiring, index: u32) -> Result<(), Error> {
        let found = self.routes(pod, &[RouteAttribute::Oif(index)])?;
        let gateway = RouteAddress::Inet(wiring.gateway);
        let has = |length: u8, attribute: RouteAttribute| {
            found.iter().any(|route| {
                route.header.destination_prefix_length == length
                    && route.attributes.contains(&attribute)
                    && route.attributes.contains(&RouteAttribute::Oif(index))
            })
        };
        let on_link = has(32, RouteAttribute::Destination(gateway.clone()));
        let default = has(0, RouteAttribute::Gateway(gateway));
        let what = || "route to the gateway in the pod".to_owned();
        self.expect_one(what, &format!("{} scope link", wiring.gateway), on_link);
        let what = || "default route in the pod".to_owned();
        self.expect_one(what, &format!("via {}", wiring.gateway), default);
        Ok(())
    }

    fn neighbour(&mut self, pod: &mut Socket, wiring: &Wiring, index: u32) -> Result<(), Error> {
        let mut ask = NeighbourMessage::default();
        ask.header.family = AddressFamily::Inet;
        ask.header.ifindex = index;
        let address = NeighbourAddress::Inet(wiring.gateway);
        ask.attributes = vec![NeighbourAttribute::Destination(address)];
        let found = match pod.get(RouteNetlinkMessage::GetNeighbour(ask)) {
            Ok(RouteNetlinkMessage::NewNeighbour(found)) => Some(found),
            Ok(other) => {
                return Err(self.asked("looking at the gateway's neighbour entry")(decode_error(
                    &other,
                )));
            }
            Err(error) if error.is_absent() => None,
            Err(error) => {
                return Err(self.asked("looking at the gateway's neighbour entry")(error));
            }
        };
        let mac = NeighbourAttribute::LinkLayerAddress(wiring.host_mac.0.to_vec());
        let there = found.is_some_and(|found| {
            found.header.state == NeighbourState::Permanent && found.attributes.contains(&mac)
        });
        let what = || format!("neighbour {} in the pod", wiring.gateway);
        self.expect_one(what, &format!("{} permanent", wiring.host_mac), there);
        Ok(())
    }

    fn routes(
        &self,
        socket: &mut Socket,
        filter: &[RouteAttribute],
    ) -> Result<Vec<RouteMessage>, Error> {
        let mut ask = RouteMessage::default();
        ask.header.address_family = AddressFamily::Inet;
        ask.attributes = filter.to_vec();
        let listed = socket.dump(RouteNetlinkMessage::GetRoute(ask), |message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        match listed {
            // A table that nothing was ever put into does not exist.
            Err(error) if error.is_absent() => Ok(Vec::new()),
            other => other.map_err(self.asked("looking at routes")),
        }
    }
}
