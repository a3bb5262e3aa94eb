//! What a packet is: addresses, protocol, ports, fragment, or the reason why it cannot be followed.
//!
//! Invariants: a header is read only after the bytes were there *and* the IP header's own length covers them (what
//! lies behind it is padding, not a header). What cannot be followed is refused, never guessed: options are skipped by
//! the header's length, extension headers are walked, at most [`EXTENSIONS`] of them, and a later fragment has no
//! ports. Reads are of whole 32-bit words at even places, so that one look at the packet is one helper call.
//!
//! Deliberately absent: checksums (the receiver's), TCP sequence numbers, what options mean, except that a source
//! route (RFC 791, RFC 8200) is refused: it changes where the packet goes after it was judged.

use crate::DropReason;

/// Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Extension headers that are walked; a chain that is longer is refused.
pub const EXTENSIONS: usize = 6;
/// Words of the first look, from byte [`HEAD_AT`] of the frame: two thirds of the Ethernet header and 40 bytes.
pub const HEAD_WORDS: usize = 13;
/// See [`HEAD_WORDS`]. Two bytes in, so that the IP header starts with a word.
pub const HEAD_AT: usize = 2;
/// Where the IP header starts in the head.
const IP: usize = 3;

/// TCP's number.
pub const TCP: u8 = 6;
/// UDP's number.
pub const UDP: u8 = 17;
/// SCTP's number.
pub const SCTP: u8 = 132;
/// ICMP's number.
pub const ICMP: u8 = 1;
/// ICMPv6's number.
pub const ICMPV6: u8 = 58;

/// TCP flags.
pub mod tcp {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// A beginning.
    pub const SYN: u8 = 0x02;
    /// An abort.
    pub const RST: u8 = 0x04;
    /// An acknowledgement.
    pub const ACK: u8 = 0x10;
}

/// The bytes of a frame.
pub trait Bytes {
    /// `W` words from byte `at`, as they are in memory; `None` where the frame ends before.
    fn words<const W: usize>(&self, at: usize) -> Option<[u32; W]>;
    /// The frame's length.
    fn length(&self) -> usize;
}

/// The first bytes of a frame, from [`HEAD_AT`].
pub type Head = [u32; HEAD_WORDS];

/// What kind of packet it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// TCP, UDP, SCTP, an echo (its identifier is the requester's port), or a protocol without ports (both 0).
    Flow,
    /// An ICMP error that quotes a packet.
    Error,
    /// Another ICMP message: judged each time.
    Message,
    /// Neighbour discovery or multicast listener discovery.
    Neighbour,
    /// A fragment that is not the first.
    LaterFragment,
}

/// A packet that could be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Identification, for fragments.
    pub fragment_id: u32,
    /// Host order; 0 without ports. An echo request's identifier.
    pub source_port: u16,
    /// Host order; 0 without ports. An echo reply's identifier.
    pub destination_port: u16,
    /// ICMP's type << 8 | code.
    pub message: u16,
    /// Where the transport header starts in the frame.
    pub transport: u16,
    /// IP protocol number, after all extension headers.
    pub protocol: u8,
    /// TCP's flags.
    pub flags: u8,
    /// What it is.
    pub kind: Kind,
    /// Whether it is the first fragment of more.
    pub first_fragment: bool,
}

/// The packet that an ICMP error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Host order.
    pub source_port: u16,
    /// Host order.
    pub destination_port: u16,
    /// Where its IP header starts in the frame.
    pub network: u16,
    /// Where its transport header starts in the frame.
    pub transport: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// A transport header as far as it is read.
struct Transport {
    source_port: u16,
    destination_port: u16,
    message: u16,
    flags: u8,
    kind: Kind,
}

const fn high(word: u32) -> u16 {
    (u32::from_be(word) >> 16) as u16
}

const fn low(word: u32) -> u16 {
    (u32::from_be(word) & 0xffff) as u16
}

/// An IPv6 address from its words, as they are in memory.
#[must_use]
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a call in BPF costs the verifier's knowledge about its arguments"
)]
pub const fn join(a: u32, b: u32, c: u32, d: u32) -> [u8; 16] {
    let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// The head of a frame; where it is shorter than a head, what is missing is zero and its length says so.
///
/// # Errors
/// [`DropReason::Truncated`] when not even an Ethernet and an IPv4 header are there.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
pub fn head<B: Bytes>(bytes: &B) -> Result<Head, DropReason> {
    if let Some(head) = bytes.words::<HEAD_WORDS>(HEAD_AT) {
        return Ok(head);
    }
    let short = bytes.words::<8>(HEAD_AT).ok_or(DropReason::Truncated)?;
    let mut head = [0; HEAD_WORDS];
    head[..8].copy_from_slice(&short);
    Ok(head)
}

/// An IPv4 packet.
///
/// # Errors
/// Why it cannot be followed.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
pub fn ipv4<B: Bytes>(bytes: &B, head: &Head) -> Result<Packet<[u8; 4]>, DropReason> {
    let first = u32::from_be(head[IP]);
    let header = (first >> 24 & 0x0f) as usize * 4;
    if first >> 28 != 4 || header < 20 {
        return Err(DropReason::Malformed);
    }
    let total = total_length(bytes, (first & 0xffff) as usize, 0);
    if total < header {
        return Err(DropReason::Malformed);
    }
    if header > 20 && source_routed(bytes, header - 20)? {
        return Err(DropReason::SourceRoute);
    }
    let second = u32::from_be(head[IP + 1]);
    let offset = second & 0x1fff;
    let protocol = (u32::from_be(head[IP + 2]) >> 16) as u8;
    let at = ETHERNET_LEN + header;
    let mut packet = Packet {
        source: head[IP + 3].to_ne_bytes(),
        destination: head[IP + 4].to_ne_bytes(),
        fragment_id: second >> 16,
        source_port: 0,
        destination_port: 0,
        message: 0,
        transport: at as u16,
        protocol,
        flags: 0,
        kind: Kind::LaterFragment,
        first_fragment: second & 0x2000 != 0,
    };
    if offset != 0 {
        later_fragment(protocol, offset * 8)?;
        packet.first_fragment = false;
        return Ok(packet);
    }
    // Without options the head holds 20 bytes of it; a frame that ends earlier is read again, piece by piece.
    let near = header == 20 && bytes.length() >= ETHERNET_LEN + 40;
    let words = [head[8], head[9], head[10], head[11]];
    let read = transport(bytes, near, words, protocol, at, total - header, ICMP)?;
    fill(&mut packet, &read);
    Ok(packet)
}

/// An IPv6 packet.
///
/// # Errors
/// Why it cannot be followed.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
pub fn ipv6<B: Bytes>(bytes: &B, head: &Head) -> Result<Packet<[u8; 16]>, DropReason> {
    if bytes.length() < ETHERNET_LEN + 40 {
        return Err(DropReason::Truncated);
    }
    let second = u32::from_be(head[IP + 1]);
    if u32::from_be(head[IP]) >> 28 != 6 {
        return Err(DropReason::Malformed);
    }
    let payload = total_length(bytes, (second >> 16) as usize, 40);
    let mut packet = Packet {
        source: join(head[IP + 2], head[IP + 3], head[IP + 4], head[IP + 5]),
        destination: join(head[IP + 6], head[IP + 7], head[IP + 8], head[IP + 9]),
        fragment_id: 0,
        source_port: 0,
        destination_port: 0,
        message: 0,
        transport: 0,
        protocol: 0,
        flags: 0,
        kind: Kind::LaterFragment,
        first_fragment: false,
    };
    let walked = walk(bytes, (second >> 8) as u8, ETHERNET_LEN + 40, payload)?;
    packet.protocol = walked.protocol;
    packet.fragment_id = walked.fragment_id;
    packet.first_fragment = walked.first_fragment;
    packet.transport = walked.at as u16;
    if walked.later_fragment {
        return Ok(packet);
    }
    let read = transport(bytes, false, [0; 4], walked.protocol, walked.at, walked.left, ICMPV6)?;
    fill(&mut packet, &read);
    Ok(packet)
}

/// The IPv4 packet that an error's transport header at `at` quotes.
///
/// # Errors
/// When not enough of it is there, or it is not what an ICMP error can quote.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
pub fn quoted_ipv4<B: Bytes>(bytes: &B, at: usize) -> Result<Quoted<[u8; 4]>, DropReason> {
    let network = at + 8;
    let words: [u32; 5] = bytes.words(network).ok_or(DropReason::Truncated)?;
    let first = u32::from_be(words[0]);
    let header = (first >> 24 & 0x0f) as usize * 4;
    if first >> 28 != 4 || header < 20 {
        return Err(DropReason::Malformed);
    }
    if u32::from_be(words[1]) & 0x1fff != 0 {
        return Err(DropReason::FragmentUnknown);
    }
    let protocol = (u32::from_be(words[2]) >> 16) as u8;
    let ports = quoted_ports(bytes, protocol, network + header, ICMP)?;
    Ok(Quoted {
        source: words[3].to_ne_bytes(),
        destination: words[4].to_ne_bytes(),
        source_port: ports.0,
        destination_port: ports.1,
        network: network as u16,
        transport: (network + header) as u16,
        protocol,
    })
}

/// As [`quoted_ipv4`].
///
/// # Errors
/// As [`quoted_ipv4`].
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
pub fn quoted_ipv6<B: Bytes>(bytes: &B, at: usize) -> Result<Quoted<[u8; 16]>, DropReason> {
    let network = at + 8;
    let w: [u32; 10] = bytes.words(network).ok_or(DropReason::Truncated)?;
    if u32::from_be(w[0]) >> 28 != 6 {
        return Err(DropReason::Malformed);
    }
    // The quotation may be cut: what counts is that the bytes are there.
    let walked = walk(bytes, (u32::from_be(w[1]) >> 8) as u8, network + 40, 0xffff)?;
    if walked.later_fragment {
        return Err(DropReason::FragmentUnknown);
    }
    let ports = quoted_ports(bytes, walked.protocol, walked.at, ICMPV6)?;
    Ok(Quoted {
        source: join(w[2], w[3], w[4], w[5]),
        destination: join(w[6], w[7], w[8], w[9]),
        source_port: ports.0,
        destination_port: ports.1,
        network: network as u16,
        transport: walked.at as u16,
        protocol: walked.protocol,
    })
}

/// Bytes of the IP packet behind the fixed header (`header` of them), by its own account. 0 there means "longer than
/// 16 bits" (BIG TCP, jumbograms): the frame's length then.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
fn total_length<B: Bytes>(bytes: &B, stated: usize, header: usize) -> usize {
    if stated == 0 { bytes.length().saturating_sub(ETHERNET_LEN + header) } else { stated }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
fn fill<A>(packet: &mut Packet<A>, read: &Transport) {
    packet.source_port = read.source_port;
    packet.destination_port = read.destination_port;
    packet.message = read.message;
    packet.flags = read.flags;
    packet.kind = read.kind;
}

/// Refuses a fragment that could overwrite the header by which the first was judged (RFC 3128; RFC 1858).
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
fn later_fragment(protocol: u8, offset: u32) -> Result<(), DropReason> {
    if (protocol == TCP && offset < 20) || (protocol == SCTP && offset < 12) {
        return Err(DropReason::Malformed);
    }
    Ok(())
}

/// The transport header at `at`; `left` bytes of the packet are there by its own account. With `near` its first words
/// are in `words`. (Not an option: in BPF a register that is set on one branch only is refused.)
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
fn transport<B: Bytes>(
    bytes: &B,
    near: bool,
    mut words: [u32; 4],
    protocol: u8,
    at: usize,
    left: usize,
    icmp: u8,
) -> Result<Transport, DropReason> {
    let mut read =
        Transport { source_port: 0, destination_port: 0, message: 0, flags: 0, kind: Kind::Flow };
    let needs = match protocol {
        TCP => 20,
        SCTP => 12,
        UDP => 8,
        _ if protocol == icmp => 8,
        _ => return Ok(read),
    };
    if left < needs {
        return Err(DropReason::Truncated);
    }
    if !near {
        if protocol == TCP {
            let far: [u32; 5] = bytes.words(at).ok_or(DropReason::Truncated)?;
            words = [far[0], far[1], far[2], far[3]];
        } else if protocol == SCTP {
            let far: [u32; 3] = bytes.words(at).ok_or(DropReason::Truncated)?;
            words = [far[0], far[1], far[2], 0];
        } else {
            let far: [u32; 2] = bytes.words(at).ok_or(DropReason::Truncated)?;
            words = [far[0], far[1], 0, 0];
        }
    }
    if protocol == icmp {
        read.message = high(words[0]);
        classify(&mut read, icmp, high(words[1]));
        return Ok(read);
    }
    read.source_port = high(words[0]);
    read.destination_port = low(words[0]);
    if protocol == TCP {
        let word = u32::from_be(words[3]);
        let length = (word >> 28) as usize * 4;
        if length < 20 || length > left {
            return Err(DropReason::Malformed);
        }
        read.flags = (word >> 16) as u8;
    }
    Ok(read)
}

/// What stands for the ports of an echo: of who asks, and of who answers. No two identifiers give each other's pair, so
/// that a request out and a request in are never one flow.
#[must_use]
pub const fn echo_ports(identifier: u16) -> (u16, u16) {
    (identifier, identifier.wrapping_add(1))
}

/// What an ICMP message is, by its type.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
fn classify(read: &mut Transport, icmp: u8, identifier: u16) {
    let kind = (read.message >> 8) as u8;
    let (request, reply) = if icmp == ICMP { (8, 0) } else { (128, 129) };
    if kind == request {
        (read.source_port, read.destination_port) = echo_ports(identifier);
    } else if kind == reply {
        (read.destination_port, read.source_port) = echo_ports(identifier);
    } else if icmp == ICMP {
        // Unreachable, source quench, time exceeded, parameter problem. A redirect (5) is a message: it relates to
        // a flow, but it changes routes.
        read.kind = if matches!(kind, 3 | 4 | 11 | 12) { Kind::Error } else { Kind::Message };
    } else {
        read.kind = match kind {
            1..=4 => Kind::Error,
            130..=137 | 143 => Kind::Neighbour,
            _ => Kind::Message,
        };
    }
}

/// Whether IPv4 options may hold a source route (RFC 791: types 131 and 137): whether a byte of them has that value. One
/// that is data is refused with it: walking options costs the verifier more than they are worth, nothing in a VPC
/// needs them. `length` bytes of options, a multiple of 4, at most 40.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
fn source_routed<B: Bytes>(bytes: &B, length: usize) -> Result<bool, DropReason> {
    let mut found = 0;
    let mut word = 0;
    while word < 10 {
        if word * 4 >= length {
            break;
        }
        let loaded: [u32; 1] =
            bytes.words(ETHERNET_LEN + 20 + word * 4).ok_or(DropReason::Truncated)?;
        found |= zero_bytes(loaded[0] ^ 0x8383_8383) | zero_bytes(loaded[0] ^ 0x8989_8989);
        word += 1;
    }
    Ok(found != 0)
}

/// Not 0 when a byte of it is (Warren, Hacker's Delight, 6-1).
const fn zero_bytes(word: u32) -> u32 {
    word.wrapping_sub(0x0101_0101) & !word & 0x8080_8080
}

/// Where extension headers end.
struct Walked {
    at: usize,
    left: usize,
    fragment_id: u32,
    protocol: u8,
    first_fragment: bool,
    later_fragment: bool,
}

/// Walks the extension headers from `at` (RFC 8200, section 4).
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
fn walk<B: Bytes>(bytes: &B, next: u8, at: usize, left: usize) -> Result<Walked, DropReason> {
    let mut walked = Walked {
        at,
        left,
        fragment_id: 0,
        protocol: next,
        first_fragment: false,
        later_fragment: false,
    };
    let mut fragmented = false;
    let mut step = 0;
    while step < EXTENSIONS {
        let first = step == 0;
        step += 1;
        // Hop by hop, routing, fragment, authentication, destination options; mobility and the others end the walk.
        if !matches!(walked.protocol, 0 | 43 | 44 | 51 | 60) {
            return Ok(walked);
        }
        if walked.protocol == 0 && !first {
            return Err(DropReason::ExtensionHeader);
        }
        let words: [u32; 2] = bytes.words(walked.at).ok_or(DropReason::Truncated)?;
        let head = u32::from_be(words[0]);
        let length = match walked.protocol {
            44 => 8,
            51 => ((head >> 16 & 0xff) as usize + 2) * 4,
            _ => ((head >> 16 & 0xff) as usize + 1) * 8,
        };
        if walked.left < length {
            return Err(DropReason::Truncated);
        }
        match walked.protocol {
            // A route that is not walked to its end: the packet goes elsewhere than its destination.
            43 if head & 0xff != 0 => return Err(DropReason::SourceRoute),
            44 if fragmented => return Err(DropReason::ExtensionHeader),
            44 => {
                fragmented = true;
                walked.fragment_id = u32::from_be(words[1]);
                let offset = head & 0xfff8;
                walked.first_fragment = offset == 0 && head & 1 != 0;
                walked.later_fragment = offset != 0;
            }
            _ => {}
        }
        walked.protocol = (head >> 24) as u8;
        walked.at += length;
        walked.left -= length;
        // A later fragment could overwrite what is behind a header that the receiver reassembles.
        let more = matches!(walked.protocol, 0 | 43 | 44 | 51 | 60);
        if more && (walked.first_fragment || walked.later_fragment) {
            return Err(DropReason::ExtensionHeader);
        }
        if walked.later_fragment {
            let offset = head & 0xfff8;
            later_fragment(walked.protocol, offset)?;
            return Ok(walked);
        }
    }
    if matches!(walked.protocol, 0 | 43 | 44 | 51 | 60) {
        return Err(DropReason::ExtensionHeader);
    }
    Ok(walked)
}

/// Ports of a quoted packet, of which eight bytes of the transport header are promised (RFC 792).
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `join`")]
fn quoted_ports<B: Bytes>(
    bytes: &B,
    protocol: u8,
    at: usize,
    icmp: u8,
) -> Result<(u16, u16), DropReason> {
    if protocol != TCP && protocol != UDP && protocol != SCTP && protocol != icmp {
        return Ok((0, 0));
    }
    let words: [u32; 2] = bytes.words(at).ok_or(DropReason::Truncated)?;
    if protocol != icmp {
        return Ok((high(words[0]), low(words[0])));
    }
    let kind = high(words[0]) >> 8;
    let (request, reply) = if icmp == ICMP { (8, 0) } else { (128, 129) };
    let identifier = high(words[1]);
    let (asks, answers) = echo_ports(identifier);
    if kind == request {
        Ok((asks, answers))
    } else if kind == reply {
        Ok((answers, asks))
    } else {
        Err(DropReason::Malformed)
    }
}

impl Bytes for [u8] {
    fn words<const W: usize>(&self, at: usize) -> Option<[u32; W]> {
        let bytes = self.get(at..at + 4 * W)?;
        let mut words = [0; W];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        Some(words)
    }

    fn length(&self) -> usize {
        self.len()
    }
}

impl Bytes for &[u8] {
    fn words<const W: usize>(&self, at: usize) -> Option<[u32; W]> {
        (**self).words(at)
    }

    fn length(&self) -> usize {
        self.len()
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [10, 0, 0, 2];

    fn tcp4() -> Vec<u8> {
        let mut frame = Vec::new();
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(A, B, 64).tcp(1000, 80, 1, 1).syn();
        builder.write(&mut frame, b"").unwrap();
        frame
    }

    fn udp6() -> Vec<u8> {
        let mut frame = Vec::new();
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64).udp(1000, 53);
        builder.write(&mut frame, b"").unwrap();
        frame
    }

    fn parse4(frame: &[u8]) -> Result<Packet<[u8; 4]>, DropReason> {
        ipv4(&frame, &head(&frame)?)
    }

    fn parse6(frame: &[u8]) -> Result<Packet<[u8; 16]>, DropReason> {
        ipv6(&frame, &head(&frame)?)
    }

    /// Puts a header between the fixed one and the rest.
    fn extend6(first: u8, header: &[u8]) -> Vec<u8> {
        let mut frame = udp6();
        frame[20] = first;
        frame.splice(54..54, header.iter().copied());
        let payload = u16::try_from(frame.len() - 54).unwrap();
        frame[18..20].copy_from_slice(&payload.to_be_bytes());
        frame
    }

    #[test]
    fn every_byte_of_a_header_that_is_read_has_to_be_there() {
        let whole = tcp4();
        assert_eq!(whole.len(), 54);
        for length in 14..54 {
            assert!(parse4(&whole[..length]).is_err(), "{length} bytes");
        }
        let packet = parse4(&whole).unwrap();
        assert_eq!((packet.source, packet.destination), (A, B));
        assert_eq!(
            (packet.source_port, packet.destination_port, packet.flags),
            (1000, 80, tcp::SYN)
        );
        assert_eq!((packet.kind, packet.transport), (Kind::Flow, 34));
        let whole = udp6();
        for length in 14..whole.len() {
            assert!(parse6(&whole[..length]).is_err(), "{length} bytes of IPv6");
        }
        assert_eq!(parse6(&whole).unwrap().destination_port, 53);
    }

    #[test]
    fn the_packets_own_length_counts_not_the_frames() {
        for (total, expect) in
            [(40, None), (39, Some(DropReason::Truncated)), (19, Some(DropReason::Malformed))]
        {
            let mut frame = [tcp4(), vec![0; 40]].concat();
            frame[17] = total;
            assert_eq!(parse4(&frame).err(), expect, "{total}");
        }
        let mut frame = [udp6(), vec![0; 40]].concat();
        frame[19] = 7;
        assert_eq!(parse6(&frame).err(), Some(DropReason::Truncated));
    }

    #[test]
    fn options_are_stepped_over_and_source_routes_refused() {
        let with = |options: &[u8]| {
            let mut frame = tcp4();
            frame.splice(34..34, options.iter().copied());
            frame[14] = 0x45 + u8::try_from(options.len() / 4).unwrap();
            frame[17] = u8::try_from(frame.len() - 14).unwrap();
            frame
        };
        let packet = parse4(&with(&[1, 1, 0, 22])).unwrap();
        assert_eq!((packet.destination_port, packet.transport), (80, 38));
        assert_eq!(parse4(&with(&[1; 40])).unwrap().transport, 74);
        assert_eq!(parse4(&with(&[131, 3, 4, 0])).err(), Some(DropReason::SourceRoute));
        assert_eq!(parse4(&with(&[1, 1, 1, 1, 137, 3, 4, 0])).err(), Some(DropReason::SourceRoute));
        let mut frame = tcp4();
        frame[14] = 0x44;
        assert_eq!(parse4(&frame).err(), Some(DropReason::Malformed));
        frame[14] = 0x65;
        assert_eq!(parse4(&frame).err(), Some(DropReason::Malformed));
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let at = |field: u16| {
            let mut frame = tcp4();
            frame[20..22].copy_from_slice(&field.to_be_bytes());
            parse4(&frame)
        };
        assert_eq!(at(0x4000).map(|p| (p.kind, p.first_fragment)), Ok((Kind::Flow, false)));
        assert_eq!(at(0x2000).map(|p| (p.kind, p.first_fragment)), Ok((Kind::Flow, true)));
        assert_eq!(at(0x2003).map(|p| (p.kind, p.destination_port)), Ok((Kind::LaterFragment, 0)));
        assert_eq!(at(0x0001).err(), Some(DropReason::Malformed), "it would overwrite the flags");
    }

    #[test]
    fn extension_headers_are_walked_to_the_transport_header() {
        let packet = parse6(&extend6(0, &[UDP, 0, 1, 4, 0, 0, 0, 0])).unwrap();
        assert_eq!((packet.protocol, packet.destination_port, packet.transport), (UDP, 53, 62));
        let many = |n: usize| {
            let mut headers = [60, 0, 1, 4, 0, 0, 0, 0].repeat(n);
            let last = headers.len() - 8;
            headers[last] = UDP;
            parse6(&extend6(60, &headers)).map(|packet| packet.destination_port)
        };
        assert_eq!(many(EXTENSIONS), Ok(53));
        assert_eq!(many(EXTENSIONS + 1), Err(DropReason::ExtensionHeader));
        assert_eq!(
            parse6(&extend6(43, &[UDP, 0, 0, 1, 0, 0, 0, 0])).err(),
            Some(DropReason::SourceRoute)
        );
        let first = parse6(&extend6(44, &[UDP, 0, 0, 1, 0, 0, 0, 9])).unwrap();
        assert_eq!((first.first_fragment, first.fragment_id, first.kind), (true, 9, Kind::Flow));
        let later = parse6(&extend6(44, &[UDP, 0, 0, 64, 0, 0, 0, 9])).unwrap();
        assert_eq!(
            (later.first_fragment, later.fragment_id, later.kind),
            (false, 9, Kind::LaterFragment)
        );
        let twice = [44, 0, 0, 1, 0, 0, 0, 9, UDP, 0, 0, 1, 0, 0, 0, 9];
        assert_eq!(parse6(&extend6(44, &twice)).err(), Some(DropReason::ExtensionHeader));
    }

    #[test]
    fn an_error_names_the_flow_that_it_quotes() {
        let quoted = tcp4();
        let message = [&[0; 34][..], &[3, 4, 0, 0, 0, 0, 5, 0], &quoted[14..42]].concat();
        let found = quoted_ipv4(&&message[..], 34).unwrap();
        assert_eq!((found.source, found.destination, found.protocol), (A, B, TCP));
        assert_eq!((found.source_port, found.destination_port), (1000, 80));
        assert_eq!((found.network, found.transport), (42, 62));
        assert_eq!(quoted_ipv4(&&message[..69], 34).err(), Some(DropReason::Truncated));
    }
}
