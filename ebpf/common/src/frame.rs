//! Who sent a frame, judged by its first bytes.
//!
//! Invariants: what cannot be followed is refused, never guessed. The IPv4 source address is at a fixed offset
//! (RFC 791: bytes 12–15 of the header), so options, whatever IHL says, cannot move it; every fragment carries it.

use crate::{DropReason, PodValue};

/// Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Ethernet header and an IPv4 header without options: what has to be there of every frame. An ARP frame is longer.
pub const HEAD_LEN: usize = ETHERNET_LEN + 20;
/// Ethernet header and an ARP packet for IPv4 over Ethernet.
pub const ARP_LEN: usize = ETHERNET_LEN + 28;

/// The first bytes of a frame.
pub type Head = [u8; HEAD_LEN];
/// All of an ARP frame.
pub type ArpFrame = [u8; ARP_LEN];

/// What is left to do after the head was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The pod sent it.
    Pass,
    /// An ARP frame from the pod's MAC: [`arp`] decides.
    Arp,
}

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// 802.1Q, 802.1ad, and the two that old switches use for stacked tags.
const VLAN: [[u8; 2]; 4] = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00], [0x92, 0x00]];
/// Hardware type Ethernet, protocol type IPv4, 6 and 4 bytes of address (RFC 826).
const ARP_TYPES: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

/// Judges a frame by its head.
///
/// # Errors
/// The reason to drop it.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a call in BPF costs the verifier's knowledge about its arguments"
)]
pub fn head(head: &Head, pod: &PodValue) -> Result<Judgement, DropReason> {
    let ether_type = [head[12], head[13]];
    if VLAN[0] == ether_type
        || VLAN[1] == ether_type
        || VLAN[2] == ether_type
        || VLAN[3] == ether_type
    {
        return Err(DropReason::Vlan);
    }
    if [head[6], head[7], head[8], head[9], head[10], head[11]] != pod.mac {
        return Err(DropReason::SourceMac);
    }
    match ether_type {
        IPV4 => ipv4(head, pod),
        ARP => Ok(Judgement::Arp),
        IPV6 => Err(DropReason::Ipv6),
        _ => Err(DropReason::EtherType),
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `head`")]
fn ipv4(head: &Head, pod: &PodValue) -> Result<Judgement, DropReason> {
    if [head[26], head[27], head[28], head[29]] != pod.address {
        return Err(DropReason::SourceAddress);
    }
    // Version 4, at least 5 words (ip_rcv_core refuses the rest too; not relied upon).
    if head[14] >> 4 != 4 || head[14] & 0x0f < 5 {
        return Err(DropReason::Malformed);
    }
    Ok(Judgement::Pass)
}

/// Judges an ARP frame whose source MAC was found to be the pod's.
///
/// A probe (RFC 5227, sender address 0.0.0.0) is not the pod's address, so it is dropped too: the pod's address is
/// its own, nobody else has to be asked.
///
/// # Errors
/// The reason to drop it.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `head`")]
pub fn arp(frame: &ArpFrame, pod: &PodValue) -> Result<(), DropReason> {
    if [frame[14], frame[15], frame[16], frame[17], frame[18], frame[19]] != ARP_TYPES {
        return Err(DropReason::Malformed);
    }
    let mac = [frame[22], frame[23], frame[24], frame[25], frame[26], frame[27]];
    if mac != pod.mac || [frame[28], frame[29], frame[30], frame[31]] != pod.address {
        return Err(DropReason::ArpSender);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const POD: PodValue = PodValue {
        address: [10, 0, 1, 5],
        mac: [2, 0, 0, 0, 0, 5],
        reserved: [0; 2],
        mark: 0x0002_0000,
        mask: 0x00ff_0000,
    };

    fn udp(mac: [u8; 6], source: [u8; 4]) -> Head {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(mac, [2, 0, 0, 0, 0, 1])
            .ipv4(source, [10, 0, 2, 9], 64)
            .udp(1, 2)
            .write(&mut bytes, b"x")
            .unwrap();
        bytes[..HEAD_LEN].try_into().unwrap()
    }

    fn check(change: impl FnOnce(&mut Head), expect: Result<Judgement, DropReason>) {
        let mut frame = udp(POD.mac, POD.address);
        change(&mut frame);
        assert_eq!(head(&frame, &POD), expect, "{frame:02x?}");
    }

    #[test]
    fn the_pods_own_packets_pass_whatever_ihl_says_of_options() {
        check(|_| {}, Ok(Judgement::Pass));
        check(|f| f[14] = 0x4f, Ok(Judgement::Pass));
    }

    #[test]
    fn a_foreign_source_is_refused_even_with_options() {
        check(|f| f[29] = 6, Err(DropReason::SourceAddress));
        check(|f| (f[14], f[29]) = (0x4f, 6), Err(DropReason::SourceAddress));
        check(|f| f[11] = 9, Err(DropReason::SourceMac));
    }

    #[test]
    fn what_is_not_ipv4_is_refused_by_name() {
        check(|f| (f[12], f[13]) = (0x86, 0xdd), Err(DropReason::Ipv6));
        check(|f| (f[12], f[13]) = (0x81, 0x00), Err(DropReason::Vlan));
        check(|f| (f[12], f[13]) = (0x88, 0xa8), Err(DropReason::Vlan));
        check(|f| (f[12], f[13]) = (0x88, 0xcc), Err(DropReason::EtherType));
        check(|f| (f[12], f[13]) = (0x00, 0x2e), Err(DropReason::EtherType));
        check(|f| f[14] = 0x65, Err(DropReason::Malformed));
        check(|f| f[14] = 0x44, Err(DropReason::Malformed));
    }

    #[test]
    fn arp_speaks_for_the_pod_only() {
        let mut frame: ArpFrame = [0; ARP_LEN];
        frame[6..12].copy_from_slice(&POD.mac);
        frame[12..14].copy_from_slice(&ARP);
        frame[14..20].copy_from_slice(&ARP_TYPES);
        frame[22..28].copy_from_slice(&POD.mac);
        frame[28..32].copy_from_slice(&POD.address);
        let first: Head = frame[..HEAD_LEN].try_into().unwrap();
        assert_eq!(head(&first, &POD), Ok(Judgement::Arp));
        assert_eq!(arp(&frame, &POD), Ok(()));
        for (offset, reason) in
            [(22, DropReason::ArpSender), (31, DropReason::ArpSender), (18, DropReason::Malformed)]
        {
            let mut forged = frame;
            forged[offset] ^= 1;
            assert_eq!(arp(&forged, &POD), Err(reason), "byte {offset}");
        }
    }
}
