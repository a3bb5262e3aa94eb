//! Netlink sockets and bytes of the families that no crate here speaks (nfnetlink), and of multicast groups.
//!
//! Invariant: every length is checked before it is used; what does not fit ends the iteration.

#![expect(unsafe_code, reason = "netlink sockets without a further dependency")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// `sizeof(struct nlmsghdr)`.
pub(crate) const HEADER_BYTES: usize = 16;
/// `NLA_F_NESTED`.
pub(crate) const NESTED: u16 = 0x8000;

/// A netlink socket of any family, in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct RawSocket {
    fd: OwnedFd,
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

// === impl RawSocket ===

impl RawSocket {
    pub(crate) fn open(family: libc::c_int) -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before use.
        let fd =
            unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, family) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is open and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Joins multicast groups by number.
    pub(crate) fn join(&self, groups: &[u32]) -> io::Result<()> {
        self.bind()?;
        for group in groups {
            self.set_option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group.cast_signed())?;
        }
        Ok(())
    }

    /// Gives the socket a port. Without one, notifications that no process caused pass it by: their sender's port is
    /// 0 too, and a sender does not hear itself (`do_one_broadcast`).
    fn bind(&self) -> io::Result<()> {
        // SAFETY: all zeroes is a valid address: any port, no groups.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).expect("16 fits");
        let length = libc::socklen_t::try_from(size_of_val(&address)).expect("12 fits");
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let result =
            unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Asks for room for this many bytes of notifications, past the administrator's limit where allowed.
    pub(crate) fn receive_buffer(&self, bytes: libc::c_int) {
        let forced = self.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes);
        if forced.is_err() && self.set_option(libc::SOL_SOCKET, libc::SO_RCVBUF, bytes).is_err() {
            tracing::debug!(bytes, "the netlink receive buffer keeps its default size");
        }
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `bytes`, which outlives the call.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// One datagram into `buffer`. Longer ones are an error (`EMSGSIZE`).
    pub(crate) fn receive<'a>(
        &self,
        buffer: &'a mut [u8],
        flags: libc::c_int,
    ) -> io::Result<&'a [u8]> {
        loop {
            // SAFETY: the pointer and the length describe `buffer`, which outlives the call.
            let received = unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    flags | libc::MSG_TRUNC,
                )
            };
            match usize::try_from(received) {
                Ok(length) if length <= buffer.len() => return Ok(&buffer[..length]),
                Ok(_) => return Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn set_option(
        &self,
        level: libc::c_int,
        option: libc::c_int,
        value: libc::c_int,
    ) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `value`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("4 fits"),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// === bytes ===

/// The messages of a datagram.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let message = Message {
            kind: u16_at(datagram, 4)?,
            sequence: u32_at(datagram, 8)?,
            body: datagram.get(HEADER_BYTES..length)?,
        };
        datagram = datagram.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`: type without flags, and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of one attribute.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// An attribute's text, without its end.
pub(crate) fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or_default()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// One message: header and body.
pub(crate) fn encode(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("messages made here are small");
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out.extend(body);
    out
}

/// Appends an attribute, padded.
pub(crate) fn push(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes made here are small");
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(align(out.len()), 0);
}

fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_back() {
        let mut body = Vec::new();
        push(&mut body, 7, b"abcde");
        push(&mut body, 9 | NESTED, &[1, 2, 3, 4]);
        let datagram = [encode(3, 5, 11, &body), encode(4, 0, 12, &[])].concat();
        let all: Vec<_> = messages(&datagram).map(|m| (m.kind, m.sequence)).collect();
        assert_eq!(all, [(3, 11), (4, 12)]);
        assert_eq!(attribute(&body, 7), Some(&b"abcde"[..]));
        assert_eq!(attribute(&body, 9), Some(&[1, 2, 3, 4][..]));
    }

    #[test]
    fn false_lengths_end_the_iteration() {
        for length in [0u32, 3, 15, 17, u32::MAX] {
            let mut datagram = encode(3, 0, 1, &[]);
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(messages(&datagram).count() == 0, "length {length}");
        }
        for broken in [&[0u8, 0, 1, 0][..], &[9, 0, 1, 0, 1], &[4]] {
            assert_eq!(attributes(broken).count(), 0, "{broken:?}");
        }
    }
}
