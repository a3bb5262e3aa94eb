//! ICMP echo over a raw socket.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
            setsockopt, socket,
            sockopt::{RcvBuf, ReceiveTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
};

/// Sends echo requests to one address and collects the replies.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    to: SockaddrIn,
    id: u16,
    sequence: u16,
}

/// What came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The reply to the request of this sequence number.
    Reply(u16),
    /// A packet for somebody else.
    Foreign,
    /// No packet.
    Nothing,
}

/// One identifier per pinger: raw sockets see everybody's replies.
static NEXT_ID: AtomicU16 = AtomicU16::new(1);

// === impl Pinger ===

impl Pinger {
    /// A pinger in the calling thread's namespace.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn new(to: Ipv4Addr) -> io::Result<Self> {
        let socket =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
        setsockopt(&socket, RcvBuf, &(1 << 20))?;
        let [a, b, c, d] = to.octets();
        Ok(Self {
            socket,
            to: SockaddrIn::new(a, b, c, d, 0),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            sequence: 0,
        })
    }

    /// Sends one request and waits for its reply; `None` when none comes in time.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn echo(&mut self, timeout: Duration) -> io::Result<Option<Duration>> {
        let start = Instant::now();
        let sequence = self.send()?;
        while let Some(left) = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            if self.receive(left)? == Received::Reply(sequence) {
                return Ok(Some(start.elapsed()));
            }
        }
        Ok(None)
    }

    /// Sends the next request and returns its sequence number.
    ///
    /// # Errors
    /// When the kernel refuses the packet (no route…).
    pub fn send(&mut self) -> io::Result<u16> {
        self.sequence = self.sequence.wrapping_add(1);
        let packet = echo_request(self.id, self.sequence);
        sendto(self.socket.as_raw_fd(), &packet, &self.to, MsgFlags::empty())?;
        Ok(self.sequence)
    }

    /// The next packet, waited for up to `timeout`; with zero only one that is there already.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn receive(&self, timeout: Duration) -> io::Result<Received> {
        let mut flags = MsgFlags::MSG_DONTWAIT;
        if !timeout.is_zero() {
            let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX).max(1);
            setsockopt(&self.socket, ReceiveTimeout, &TimeVal::microseconds(micros))?;
            flags = MsgFlags::empty();
        }
        let mut buffer = [0; 256];
        match recv(self.socket.as_raw_fd(), &mut buffer, flags) {
            Ok(len) => {
                Ok(echo_reply(&buffer[..len], self.id).map_or(Received::Foreign, Received::Reply))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }
}

/// RFC 792: type 8, code 0, checksum, identifier, sequence number, data.
fn echo_request(id: u16, sequence: u16) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = 8;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[8..].copy_from_slice(b"veni-lab");
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The sequence number of an echo reply to `id` in an IPv4 packet.
fn echo_reply(packet: &[u8], id: u16) -> Option<u16> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let icmp = packet.get(header..)?;
    let word = |at: usize| Some(u16::from_be_bytes([*icmp.get(at)?, *icmp.get(at + 1)?]));
    (*icmp.first()? == 0 && word(4)? == id).then(|| word(6))?
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_a_checksum_that_sums_to_zero() {
        assert_eq!(checksum(&echo_request(7, 9)), 0);
    }

    #[test]
    fn only_replies_to_our_identifier_count() {
        let mut packet = vec![0x45; 20];
        packet.extend_from_slice(&[0, 0, 0, 0, 0, 7, 0, 9]);
        assert_eq!(echo_reply(&packet, 7), Some(9));
        assert_eq!(echo_reply(&packet, 8), None);
        assert_eq!(echo_reply(&packet[..22], 7), None);
    }
}
