//! Worlds that several test programs begin with.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::{IpAddr, Ipv6Addr};

use veni_datapath::bpf::DropReason;

use crate::world::{
    End, OPEN, OTHER, OTHER_V6, PEER, PEER_V6, Rule, TCP, UDP, VIP, VIP_V6, World, assert_sound,
    ends,
};

pub(crate) const DENIED: Result<(), DropReason> = Err(DropReason::IngressDenied);
pub(crate) const EGRESS_DENIED: Result<(), DropReason> = Err(DropReason::EgressDenied);

/// The pod takes TCP/80 from PEER and UDP/53 from OTHER, and nothing else.
pub(crate) fn isolated(directory: &std::path::Path) -> World {
    let mut world = World::new(directory);
    world.class(PEER, 5);
    world.class(PEER_V6, 5);
    world.class(OTHER, 6);
    world.class(OTHER_V6, 6);
    world.set(1, 9, &[Rule(5, TCP, 80, 80, 11), Rule(6, UDP, 53, 53, 12)]);
    world.isolate(1, OPEN);
    world
}

pub(crate) fn at(address: impl Into<IpAddr>, port: u16) -> (IpAddr, u16) {
    (address.into(), port)
}

pub(crate) fn front(address: impl Into<IpAddr>, port: u16, protocol: u8) -> (IpAddr, u16, u8) {
    (address.into(), port, protocol)
}

/// VIP:80 and VIP:53/UDP lead to PEER:8080 and PEER:5353; the Service range is known.
pub(crate) fn served(directory: &std::path::Path) -> World {
    let world = World::new(directory);
    world.configure(|s| {
        (s.service_v4, s.service_mask_v4) = ([172, 20, 0, 0], [255, 255, 0, 0]);
        s.service_v6 = Ipv6Addr::new(0xfd00, 0x7172, 0, 0, 0, 0, 0, 0).octets();
        s.service_mask_v6 = Ipv6Addr::new(0xffff, 0xffff, 0, 0, 0, 0, 0, 0).octets();
    });
    world.class(PEER, 5);
    world.class(PEER_V6, 5);
    world.class(OTHER, 6);
    world.class(OTHER_V6, 6);
    world.service(front(VIP, 80, TCP), 1, &[at(PEER, 8080)], 0);
    world.service(front(VIP, 53, UDP), 2, &[at(PEER, 5353)], 0);
    world.service(front(VIP_V6, 80, TCP), 3, &[at(PEER_V6, 8080)], 0);
    world.service(front(VIP_V6, 53, UDP), 4, &[at(PEER_V6, 5353)], 0);
    world
}

#[track_caller]
pub(crate) fn sound(frame: &[u8], from: End, to: End) {
    assert_eq!(ends(frame), (from, to));
    assert_sound(frame);
}
