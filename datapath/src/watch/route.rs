//! rtnetlink notifications.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use netlink_packet_core::Parseable as _;
use netlink_packet_route::link::LinkMessage;

use super::{Change, RECEIVE_BUFFER};
use crate::{
    error::Result,
    host::{Link, PROTOCOL, link},
    raw::{self, Message},
    socket::RawSocket,
};

/// `RTNLGRP_LINK`, `_TC`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_IFADDR`, `_IPV4_NETCONF`
/// (include/uapi/linux/rtnetlink.h).
const GROUPS: [u32; 7] = [1, 4, 5, 7, 8, 9, 24];
/// A pod's veth that goes away is heard to go down first.
const GRACE: Duration = Duration::from_millis(100);
/// `RT_TABLE_MAIN`.
const MAIN: u32 = 254;
const FRA_PROTOCOL: u16 = 21;
const RTA_TABLE: u16 = 15;
const TCA_KIND: u16 = 1;
const NETCONFA_IFINDEX: u16 = 1;
/// `NETCONFA_IFINDEX_ALL`, -1.
const NETCONFA_IFINDEX_ALL: u32 = u32::MAX;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
/// `TCM_IFINDEX_MAGIC_BLOCK`, in place of a link's index.
const BLOCK: u32 = u32::MAX;
const RTM_NEWNETCONF: u16 = 80;

/// The links as last heard of, by index.
pub(super) struct Links(HashMap<u32, Link>);

pub(super) struct Reader {
    links: Links,
    /// Pods' veths that went down, and when that is news.
    down: HashMap<u32, Instant>,
    veth_prefix: String,
    table_base: u32,
}

pub(super) fn open() -> io::Result<RawSocket> {
    let socket = RawSocket::open(libc::NETLINK_ROUTE)?;
    socket.receive_buffer(RECEIVE_BUFFER);
    socket.join(&GROUPS)?;
    Ok(socket)
}

impl Links {
    /// Those that are there now; to be called after [`open`], so that none falls between.
    pub(super) fn now() -> Result<Self> {
        Ok(Self(link::links()?.into_iter().map(|link| (link.ifindex, link)).collect()))
    }
}

impl Reader {
    pub(super) fn new(links: Links, veth_prefix: String, table_base: u32) -> Self {
        Self { links, down: HashMap::new(), veth_prefix, table_base }
    }

    pub(super) fn read(&mut self, datagram: &[u8]) -> Vec<Change> {
        raw::messages(datagram).filter_map(|message| self.change(message)).collect()
    }

    /// When [`Reader::due`] has something to say, if nothing else happens.
    pub(super) fn next(&self) -> Option<Instant> {
        self.down.values().min().copied()
    }

    /// Pods' veths that went down and stayed.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Change> {
        let due = self.down.extract_if(|_, at| *at <= now);
        due.filter_map(|(ifindex, _)| {
            let name = self.links.0.get(&ifindex)?.ifname.clone();
            Some(Change::LinkChanged { ifindex, name })
        })
        .collect()
    }

    fn change(&mut self, message: Message<'_>) -> Option<Change> {
        match message.kind {
            RTM_NEWLINK => self.link(message.body),
            RTM_DELLINK => self.link_gone(message.body),
            RTM_NEWADDR | RTM_DELADDR => address_matters(message.body).then_some(Change::Addresses),
            RTM_NEWROUTE | RTM_DELROUTE => {
                route_matters(message, self.table_base).then_some(Change::Routes)
            }
            RTM_NEWRULE | RTM_DELRULE => rule_matters(message).then_some(Change::Rules),
            RTM_DELQDISC => {
                let kind =
                    message.body.get(20..).and_then(|a| raw::attribute(a, TCA_KIND)).map(raw::text);
                matches!(kind, Some("clsact" | "ingress")).then_some(Change::Qdisc)
            }
            RTM_DELTFILTER => Some(Change::Qdisc),
            RTM_NEWTFILTER => {
                (raw::u32_at(message.body, 4) == Some(BLOCK)).then_some(Change::Filter)
            }
            RTM_NEWNETCONF => self.netconf_matters(message.body).then_some(Change::Netconf),
            _ => None,
        }
    }

    fn link(&mut self, body: &[u8]) -> Option<Change> {
        // AF_BRIDGE and AF_INET6 views of a link say nothing new.
        if body.first() != Some(&0) {
            return None;
        }
        let link = Link::parse(&LinkMessage::parse(body).ok()?);
        let before = self.links.0.insert(link.ifindex, link.clone());
        let of_pod = self.is_pod(&link);
        let Link { ifindex, ifname: name, mac, up, .. } = link.clone();
        match before {
            Some(before) if before == link => None,
            Some(before) if before.ifname == name && before.mac == mac => {
                if !of_pod {
                    return Some(Change::LinkChanged { ifindex, name });
                }
                // A pod's veth comes up as part of its ADD, and goes down as the first part of its end.
                if up {
                    self.down.remove(&ifindex);
                } else {
                    self.down.insert(ifindex, Instant::now() + GRACE);
                }
                None
            }
            _ => Some(Change::LinkAdded { mac, ifindex, name }),
        }
    }

    fn is_pod(&self, link: &Link) -> bool {
        link.ifname.starts_with(&self.veth_prefix)
    }

    fn link_gone(&mut self, body: &[u8]) -> Option<Change> {
        if body.first() != Some(&0) {
            return None;
        }
        let ifindex = raw::u32_at(body, 4)?;
        self.down.remove(&ifindex);
        let name = self.links.0.remove(&ifindex)?.ifname;
        Some(Change::LinkRemoved { ifindex, name })
    }

    /// A link that is not known yet is just being made: its [`Change::LinkAdded`] follows.
    fn netconf_matters(&self, body: &[u8]) -> bool {
        let Some(attributes) = body.get(4..) else { return false };
        let number =
            |kind| raw::attribute(attributes, kind).and_then(|value| raw::u32_at(value, 0));
        let Some(ifindex) = number(NETCONFA_IFINDEX) else { return false };
        let watched = match self.links.0.get(&ifindex) {
            Some(link) => !self.is_pod(link),
            None => ifindex == NETCONFA_IFINDEX_ALL,
        };
        watched && (number(NETCONFA_FORWARDING) == Some(0) || number(NETCONFA_RP_FILTER) == Some(1))
    }
}

/// `struct ifaddrmsg`: family at 0, scope at 3. Each veth has an IPv6 address of its link.
fn address_matters(body: &[u8]) -> bool {
    const AF_INET6: u8 = 10;
    const RT_SCOPE_LINK: u8 = 253;
    body.first() != Some(&AF_INET6) || body.get(3) != Some(&RT_SCOPE_LINK)
}

/// `struct rtmsg`: table at 4, protocol at 5. A route that takes another's place (`ip route replace`) is told as a new
/// one, and the other not at all.
fn route_matters(message: Message<'_>, table_base: u32) -> bool {
    let (Some(&table), Some(&protocol)) = (message.body.get(4), message.body.get(5)) else {
        return false;
    };
    if message.kind == RTM_DELROUTE {
        return protocol == PROTOCOL;
    }
    // Numbers that do not fit the header are in an attribute.
    let attribute = message.body.get(12..).and_then(|a| raw::attribute(a, RTA_TABLE));
    let table = attribute.and_then(|value| raw::u32_at(value, 0)).unwrap_or(u32::from(table));
    protocol != PROTOCOL && (table == MAIN || (table_base..=table_base + 255).contains(&table))
}

fn rule_matters(message: Message<'_>) -> bool {
    let protocol = message
        .body
        .get(12..)
        .and_then(|a| raw::attribute(a, FRA_PROTOCOL))
        .and_then(|v| v.first());
    let ours = protocol == Some(&PROTOCOL);
    (message.kind == RTM_DELRULE) == ours
}
