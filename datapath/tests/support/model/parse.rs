//! The model's own parser: slices and `Option` in place of words and offsets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;

#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: u8,
    pub(super) ports: (u16, u16),
    pub(super) flags: u8,
    pub(super) message: u16,
    pub(super) what: What,
    pub(super) first_of_more: bool,
    pub(super) id: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    Flow,
    Message,
    /// Between neighbours; the target of an advertisement.
    Neighbours(Option<Ipv6Addr>),
    Later,
    /// The quoted packet, where it can be followed: source, destination, protocol, ports.
    Error(Option<Quoted>),
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The transport header in `bytes`, of which the packet claims `left`.
fn transport(bytes: &[u8], left: usize, protocol: u8, v6: bool, seen: &mut Seen) -> Option<()> {
    let icmp = if v6 { 58 } else { 1 };
    let needs = match protocol {
        TCP => 20,
        SCTP => 12,
        UDP => 8,
        p if p == icmp => 8,
        _ => return Some(()),
    };
    let header = bytes.get(..needs).filter(|_| left >= needs)?;
    if protocol == icmp {
        seen.message = be16(header, 0);
        let identifier = be16(header, 4);
        seen.what = match (v6, header[0]) {
            (false, 8) | (true, 128) => {
                seen.ports = (identifier, identifier.wrapping_add(1));
                What::Flow
            }
            (false, 0) | (true, 129) => {
                seen.ports = (identifier.wrapping_add(1), identifier);
                What::Flow
            }
            (false, 3 | 4 | 11 | 12) => What::Error(quoted4(&bytes[8..])),
            (true, 1..=4) => What::Error(quoted6(&bytes[8..])),
            (true, 136) => What::Neighbours(
                bytes.get(8..24).map(|a| Ipv6Addr::from(<[u8; 16]>::try_from(a).unwrap())),
            ),
            (true, 130..=137 | 143) => What::Neighbours(None),
            _ => What::Message,
        };
        return Some(());
    }
    seen.ports = (be16(header, 0), be16(header, 2));
    if protocol == TCP {
        let length = usize::from(header[12] >> 4) * 4;
        if length < 20 || length > left {
            return None;
        }
        seen.flags = header[13];
    }
    Some(())
}

fn blank(from: IpAddr, to: IpAddr, protocol: u8) -> Seen {
    Seen {
        from,
        to,
        protocol,
        ports: (0, 0),
        flags: 0,
        message: 0,
        what: What::Flow,
        first_of_more: false,
        id: 0,
    }
}

fn later_is_sane(protocol: u8, offset: u16) -> bool {
    !(protocol == TCP && offset < 20 || protocol == SCTP && offset < 12)
}

fn v4(bytes: &[u8], at: usize) -> IpAddr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]).into()
}

fn v6(bytes: &[u8], at: usize) -> IpAddr {
    Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap()).into()
}

pub(super) fn ipv4(packet: &[u8]) -> Option<Seen> {
    let header = usize::from(packet[0] & 15) * 4;
    let total = match be16(packet, 2) {
        0 => packet.len(),
        total => usize::from(total),
    };
    if packet[0] >> 4 != 4 || header < 20 || total < header {
        return None;
    }
    if packet.get(20..header)?.iter().any(|byte| matches!(byte, 131 | 137)) {
        return None;
    }
    let mut seen = blank(v4(packet, 12), v4(packet, 16), packet[9]);
    seen.id = be16(packet, 4).into();
    let field = be16(packet, 6);
    let offset = (field & 0x1fff) * 8;
    if field & 0x1fff != 0 {
        seen.what = What::Later;
        return later_is_sane(packet[9], if field & 0x1fff > 100 { 1000 } else { offset })
            .then_some(seen);
    }
    seen.first_of_more = field & 0x2000 != 0;
    transport(&packet[header..], total - header, packet[9], false, &mut seen)?;
    // Only flows are remembered for their fragments.
    Some(seen)
}

/// What is behind the extension headers: protocol, its place, what is left, fragment (offset, more, id).
type Walked = (u8, usize, usize, Option<(u16, bool, u32)>);

fn walk(packet: &[u8], next: u8, mut at: usize, mut left: usize) -> Option<Walked> {
    let mut protocol = next;
    let mut fragment = None;
    for step in 0..7 {
        if !matches!(protocol, 0 | 43 | 44 | 51 | 60) {
            return Some((protocol, at, left, fragment));
        }
        if step == 6 || (protocol == 0 && step > 0) {
            return None;
        }
        let header = packet.get(at..at + 8)?;
        let length = match protocol {
            44 => 8,
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if left < length
            || (protocol == 43 && header[3] != 0)
            || (protocol == 44 && fragment.is_some())
        {
            return None;
        }
        let was = protocol;
        (protocol, at, left) = (header[0], at + length, left - length);
        if was == 44 {
            let offset = be16(header, 2) & 0xfff8;
            let id = u32::from_be_bytes(header[4..8].try_into().unwrap());
            let more = header[3] & 1 != 0;
            if (more || offset != 0) && matches!(protocol, 0 | 43 | 44 | 51 | 60) {
                return None;
            }
            fragment = Some((offset, more, id));
            if offset != 0 {
                return later_is_sane(protocol, offset).then_some((protocol, at, left, fragment));
            }
        }
    }
    None
}

pub(super) fn ipv6(packet: &[u8]) -> Option<Seen> {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return None;
    }
    let payload = match be16(packet, 4) {
        0 => packet.len() - 40,
        payload => usize::from(payload),
    };
    let (protocol, at, left, fragment) = walk(packet, packet[6], 40, payload)?;
    let mut seen = blank(v6(packet, 8), v6(packet, 24), protocol);
    if let Some((offset, more, id)) = fragment {
        seen.id = id;
        if offset != 0 {
            seen.what = What::Later;
            return Some(seen);
        }
        seen.first_of_more = more;
    }
    transport(packet.get(at..).unwrap_or_default(), left, protocol, true, &mut seen)?;
    Some(seen)
}

fn quoted_ports(packet: &[u8], at: usize, protocol: u8, v6: bool) -> Option<(u16, u16)> {
    let icmp = if v6 { 58 } else { 1 };
    if !matches!(protocol, TCP | UDP | SCTP) && protocol != icmp {
        return Some((0, 0));
    }
    let header = packet.get(at..at + 8)?;
    match (protocol == icmp, v6, header[0]) {
        (false, ..) => Some((be16(header, 0), be16(header, 2))),
        (true, false, 8) | (true, true, 128) => {
            Some((be16(header, 4), be16(header, 4).wrapping_add(1)))
        }
        (true, false, 0) | (true, true, 129) => {
            Some((be16(header, 4).wrapping_add(1), be16(header, 4)))
        }
        _ => None,
    }
}

/// The quoted packet: source, destination, protocol, ports.
type Quoted = (IpAddr, IpAddr, u8, (u16, u16));

fn quoted4(packet: &[u8]) -> Option<Quoted> {
    let fixed = packet.get(..20)?;
    let header = usize::from(fixed[0] & 15) * 4;
    if fixed[0] >> 4 != 4 || header < 20 || be16(fixed, 6) & 0x1fff != 0 {
        return None;
    }
    let ports = quoted_ports(packet, header, fixed[9], false)?;
    Some((v4(fixed, 12), v4(fixed, 16), fixed[9], ports))
}

fn quoted6(packet: &[u8]) -> Option<Quoted> {
    let fixed = packet.get(..40)?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    let (protocol, at, _, fragment) = walk(packet, fixed[6], 40, 0xffff)?;
    if fragment.is_some_and(|(offset, ..)| offset != 0) {
        return None;
    }
    let ports = quoted_ports(packet, at, protocol, true)?;
    Some((v6(fixed, 8), v6(fixed, 24), protocol, ports))
}
