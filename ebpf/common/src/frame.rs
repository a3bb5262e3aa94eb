//! Who sent a frame, judged by its first bytes.
//!
//! Invariants: what cannot be followed is refused, never guessed.

use crate::{
    DropReason, PodValue,
    packet::{Bytes, Head},
};

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// ARP: [`arp`] decides.
    Arp,
}

const IPV4: u32 = 0x0800;
const ARP: u32 = 0x0806;
const IPV6: u32 = 0x86dd;

/// What the frame carries, by its EtherType.
///
/// # Errors
/// For VLAN tags (802.1Q, 802.1ad, and the two that old switches use for stacked tags) and everything else that pods
/// have no use for.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a call in BPF costs the verifier's knowledge about its arguments"
)]
pub fn carries(head: &Head) -> Result<Carries, DropReason> {
    match u32::from_be(head[2]) & 0xffff {
        IPV4 => Ok(Carries::Ipv4),
        IPV6 => Ok(Carries::Ipv6),
        ARP => Ok(Carries::Arp),
        0x8100 | 0x88a8 | 0x9100 | 0x9200 => Err(DropReason::Vlan),
        _ => Err(DropReason::EtherType),
    }
}

/// Whether the frame's source MAC is the pod's.
///
/// # Errors
/// When it is not.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `carries`")]
pub fn sender(head: &Head, pod: &PodValue) -> Result<(), DropReason> {
    let [a, b, c, d] = head[1].to_ne_bytes();
    let [e, f, ..] = head[2].to_ne_bytes();
    if [a, b, c, d, e, f] == pod.mac { Ok(()) } else { Err(DropReason::SourceMac) }
}

/// Judges an ARP frame whose source MAC was found to be the pod's.
///
/// A probe (RFC 5227, sender address 0.0.0.0) is not the pod's address, so it is dropped too: the pod's address is
/// its own, nobody else has to be asked.
///
/// # Errors
/// The reason to drop it.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `carries`")]
pub fn arp<B: Bytes>(bytes: &B, pod: &PodValue) -> Result<(), DropReason> {
    // Bytes 14 to 42: types and lengths, operation, sender, target.
    let words: [u32; 7] = bytes.words(14).ok_or(DropReason::Truncated)?;
    let types = (u32::from_be(words[0]), u32::from_be(words[1]) >> 16);
    // Hardware type Ethernet, protocol type IPv4, 6 and 4 bytes of address (RFC 826).
    if types != (0x0001_0800, 0x0604) {
        return Err(DropReason::Malformed);
    }
    let [a, b, c, d] = words[2].to_ne_bytes();
    let [e, f, g, h] = words[3].to_ne_bytes();
    let [i, j, ..] = words[4].to_ne_bytes();
    if [a, b, c, d, e, f] != pod.mac || [g, h, i, j] != pod.address {
        return Err(DropReason::ArpSender);
    }
    Ok(())
}
