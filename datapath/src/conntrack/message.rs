//! ctnetlink messages: which entries are meant.

use std::{collections::BTreeSet, net::Ipv4Addr};

use crate::raw::{NESTED, attribute, push};

/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`, `CTA_FILTER` (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_TUPLE_REPLY: u16 = 2;
pub(super) const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
/// `CTA_FILTER_F_CTA_IP_SRC`, `CTA_FILTER_F_CTA_IP_DST` (net/netfilter/nf_internals.h).
const FILTER_SOURCE: u32 = 1 << 0;
const FILTER_DESTINATION: u32 = 1 << 1;
/// `NFNL_SUBSYS_CTNETLINK` << 8.
pub(super) const CTNETLINK: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
pub(super) const GET: u16 = CTNETLINK | 1;
pub(super) const DELETE: u16 = CTNETLINK | 2;

/// One of an entry's two tuples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Original,
    Reply,
}

/// One of a tuple's two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// The entries whose tuple of this direction has this address on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flush {
    pub(super) address: Ipv4Addr,
    pub(super) direction: Direction,
    pub(super) side: Side,
}

/// `struct nfgenmsg`. Version 1, because a flush by version 0 is for all families, which the filter refuses
/// (`ctnetlink_del_conntrack`).
pub(super) fn header() -> Vec<u8> {
    vec![2 /* AF_INET */, 1, 0, 0]
}

impl Flush {
    pub(super) fn body(&self) -> Vec<u8> {
        let (tuple, flags) = match self.direction {
            Direction::Original => (CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS),
            Direction::Reply => (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS),
        };
        let (side, bit) = match self.side {
            Side::Source => (CTA_IP_V4_SRC, FILTER_SOURCE),
            Side::Destination => (CTA_IP_V4_DST, FILTER_DESTINATION),
        };
        let mut ip = Vec::new();
        push(&mut ip, side, &self.address.octets());
        let mut addresses = Vec::new();
        push(&mut addresses, CTA_TUPLE_IP | NESTED, &ip);
        let mut filter = Vec::new();
        push(&mut filter, flags, &bit.to_ne_bytes());
        let mut body = header();
        push(&mut body, tuple | NESTED, &addresses);
        push(&mut body, CTA_FILTER | NESTED, &filter);
        body
    }
}

/// Whether a listed entry names one of the addresses, in either of its tuples, on either side.
pub(super) fn names(body: &[u8], addresses: &BTreeSet<Ipv4Addr>) -> bool {
    let Some(attributes) = body.get(header().len()..) else { return false };
    [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].into_iter().any(|tuple| {
        let ip = attribute(attributes, tuple).and_then(|tuple| attribute(tuple, CTA_TUPLE_IP));
        [CTA_IP_V4_SRC, CTA_IP_V4_DST].into_iter().any(|side| {
            let octets =
                ip.and_then(|ip| attribute(ip, side)).and_then(|a| <[u8; 4]>::try_from(a).ok());
            octets.is_some_and(|octets| addresses.contains(&octets.into()))
        })
    })
}
