//! A blocking `NETLINK_ROUTE` socket.
//!
//! Invariants: a batch is one `send`, so one system call and one turn of the kernel's RTNL queue; the kernel handles
//! every message of a batch even after one of them failed (`netlink_rcv_skb`), so batches are written such that what
//! follows a failed message does no harm. A dump that the kernel marks as inconsistent (`NLM_F_DUMP_INTR`) is never
//! handed out: it is made again.
//!
//! Deliberately absent: multicast groups (the daemon's watcher has its own socket) and any async.

use std::{io, os::fd::BorrowedFd};

pub use netlink_packet_core::{DefaultNla, NLM_F_APPEND};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkSerializable,
};
pub use netlink_packet_route::{self as packet, RouteNetlinkMessage};
use netlink_packet_route::{
    AddressFamily,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
};

mod error;
pub mod frame;

pub use error::{BatchError, Error, Result};
use frame::Frame;

use crate::socket::RawSocket;

/// The protocol of every route and rule that veni makes (`RTA_PROTOCOL`, `FRA_PROTOCOL`): how it knows its own.
pub const OWN_PROTOCOL: u8 = 0x76;

/// How often an interrupted dump is made again before the caller hears of it.
const DUMP_ATTEMPTS: u32 = 30;
/// Verdicts are read into this much: untouched pages cost a fault each, and the plugin counts them.
const VERDICT_BYTES: usize = 4 * 1024;
/// Objects are read into this much; the kernel sizes the parts of a dump by it (`netlink_dump`, at most 32 KiB).
const OBJECT_BYTES: usize = 32 * 1024;
/// A batch is split above this, between messages: well below the default `net.core.wmem_default`.
const SEND_BYTES: usize = 64 * 1024;

/// A `NETLINK_ROUTE` socket in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    raw: RawSocket,
    sequence: u32,
    strict: bool,
    out: Vec<u8>,
    input: Vec<u8>,
}

/// One message of a batch.
#[derive(Debug, Clone)]
pub struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
}

// === impl Request ===

impl Request {
    /// `message` with exactly these `NLM_F_*` flags; `NLM_F_REQUEST` and the acknowledgement are added.
    #[must_use]
    pub fn new(message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { message, flags }
    }

    /// Makes something that must not be there yet.
    #[must_use]
    pub fn create(message: RouteNetlinkMessage) -> Self {
        Self::new(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes something or replaces what is there.
    #[must_use]
    pub fn replace(message: RouteNetlinkMessage) -> Self {
        Self::new(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Changes or removes something: no flags.
    #[must_use]
    pub fn plain(message: RouteNetlinkMessage) -> Self {
        Self::new(message, 0)
    }
}

// === impl Socket ===

impl Socket {
    /// A socket in the calling thread's network namespace. It stays there whatever the thread does.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self> {
        let raw = RawSocket::open(libc::NETLINK_ROUTE).map_err(Error::Open)?;
        let socket = Self { raw, sequence: 0, strict: false, out: Vec::new(), input: Vec::new() };
        socket.set_option(libc::NETLINK_EXT_ACK).map_err(Error::Open)?;
        socket.set_option(libc::NETLINK_CAP_ACK).map_err(Error::Open)?;
        Ok(socket)
    }

    /// Hands `requests` to the kernel in one `send` (in several above 64 KiB) and waits for the outcome.
    ///
    /// Only the last message asks for an acknowledgement: the kernel answers a failed message unasked, and in order,
    /// so success costs one `recv` whatever the length of the batch.
    ///
    /// # Errors
    /// [`Error::Rejected`] names the first message that was refused. The kernel has still tried those after it in the
    /// same `send`.
    pub fn transact(&mut self, requests: &[Request]) -> Result<()> {
        let mut done = 0;
        while done < requests.len() {
            let first_sequence = self.sequence.wrapping_add(1);
            let count = self.encode(&requests[done..]);
            self.send()?;
            self.await_outcome(first_sequence, count).map_err(|error| match error {
                Error::Rejected(rejected) => {
                    Error::Rejected(BatchError { index: rejected.index + done, ..rejected })
                }
                other => other,
            })?;
            done += count;
        }
        Ok(())
    }

    /// Asks for one object, which is the kernel's whole answer.
    ///
    /// # Errors
    /// [`Error::Rejected`] when there is none; see [`Error::is_absent`].
    pub fn get(&mut self, message: RouteNetlinkMessage) -> Result<RouteNetlinkMessage> {
        self.begin(OBJECT_BYTES);
        // RTM_GETQDISC answers only those who want an echo (`qdisc_notify` → `rtnetlink_send`), and nobody at all
        // otherwise: the acknowledgement keeps us from waiting for ever.
        self.push(&message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO);
        self.send()?;
        let sequence = self.sequence;
        let mut object = None;
        loop {
            let length = self.receive()?;
            for frame in frame::frames(&self.input[..length]) {
                let frame = frame?;
                if frame.sequence != sequence {
                    continue;
                }
                if let frame::Body::Outcome(outcome) = frame.body {
                    return outcome
                        .into_error(0)
                        .map_or_else(|| object.ok_or(Error::NoObject), Err);
                }
                object = Some(decode(&frame)?);
            }
        }
    }

    /// Lists what `message` (a `Get…`) describes, handing each object to `pick` and keeping what it returns.
    /// The kernel filters by `message` where it can (`NETLINK_GET_STRICT_CHK`); `pick` must not rely on it.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the tables changed during each of 30 attempts.
    pub fn dump<T>(
        &mut self,
        message: RouteNetlinkMessage,
        mut pick: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>> {
        if !self.strict {
            // Linux 4.20 (89d35528d17d): without it, filters in the request are ignored.
            self.set_option(libc::NETLINK_GET_STRICT_CHK).map_err(Error::Open)?;
            self.strict = true;
        }
        let mut picked = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            picked.clear();
            self.begin(OBJECT_BYTES);
            self.push(&message, NLM_F_REQUEST | NLM_F_DUMP);
            self.send()?;
            match self.collect(&mut picked, &mut pick) {
                Ok(true) => return Ok(picked),
                Ok(false) => {}
                // The receive buffer ran over: what was lost is unknown, so ask again, as for DUMP_INTR.
                Err(Error::Receive(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(Error::Rejected(rejected)) if rejected.errno == libc::EINTR => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Interrupted)
    }

    /// The link of this name, `None` when there is none.
    ///
    /// # Errors
    /// See [`Socket::get`].
    pub fn get_link_by_name(&mut self, name: &str) -> Result<Option<LinkMessage>> {
        self.get_link(0, Some(LinkAttribute::IfName(name.to_owned())))
    }

    /// The link of this index, `None` when there is none.
    ///
    /// # Errors
    /// See [`Socket::get`].
    pub fn get_link_by_index(&mut self, index: u32) -> Result<Option<LinkMessage>> {
        self.get_link(index, None)
    }

    /// Whether no link has this index. One system call, much cheaper than asking for the link.
    #[must_use]
    pub fn is_free(&self, ifindex: u32) -> bool {
        self.raw.is_free(ifindex)
    }

    fn get_link(&mut self, index: u32, name: Option<LinkAttribute>) -> Result<Option<LinkMessage>> {
        let mut link = LinkMessage::default();
        link.header.interface_family = AddressFamily::Unspec;
        link.header.index = index;
        link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        link.attributes.extend(name);
        match self.get(RouteNetlinkMessage::GetLink(link)) {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            Ok(other) => Err(Error::Decode(format!(
                "message type {} in answer to RTM_GETLINK",
                other.message_type()
            ))),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn set_option(&self, option: libc::c_int) -> io::Result<()> {
        self.raw.set_option(libc::SOL_NETLINK, option, 1)
    }

    /// Starts a new exchange whose replies are at most `reply_bytes` long.
    fn begin(&mut self, reply_bytes: usize) {
        self.out.clear();
        if self.input.len() < reply_bytes {
            self.input = vec![0; reply_bytes];
        }
    }

    fn push(&mut self, message: &RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        frame::encode(
            &mut self.out,
            NetlinkSerializable::message_type(message),
            flags,
            self.sequence,
            NetlinkSerializable::buffer_len(message),
            |body| message.serialize(body),
        );
    }

    /// Writes as many of `requests` as one `send` takes, at least one. Returns how many.
    fn encode(&mut self, requests: &[Request]) -> usize {
        self.begin(VERDICT_BYTES);
        let mut last_start = 0;
        let mut count = 0;
        for request in requests {
            let length = NetlinkSerializable::buffer_len(&request.message);
            if count > 0 && self.out.len() + length + frame::HEADER_BYTES > SEND_BYTES {
                break;
            }
            last_start = self.out.len();
            self.push(&request.message, request.flags | NLM_F_REQUEST);
            count += 1;
        }
        frame::add_flags(&mut self.out[last_start..], NLM_F_ACK);
        count
    }

    fn await_outcome(&mut self, first_sequence: u32, count: usize) -> Result<()> {
        let last = self.sequence;
        let mut first_error = None;
        loop {
            let length = self.receive()?;
            for frame in frame::frames(&self.input[..length]) {
                let frame = frame?;
                let index = frame.sequence.wrapping_sub(first_sequence) as usize;
                let frame::Body::Outcome(outcome) = frame.body else {
                    continue;
                };
                if index >= count {
                    continue; // left over from an earlier exchange that gave up
                }
                if first_error.is_none() {
                    first_error = outcome.into_error(index);
                }
                if frame.sequence == last {
                    return first_error.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Reads one dump to its end. `false`: it was interrupted, and what was picked is worth nothing.
    fn collect<T>(
        &mut self,
        picked: &mut Vec<T>,
        pick: &mut impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<bool> {
        let sequence = self.sequence;
        let mut consistent = true;
        loop {
            let length = self.receive()?;
            for frame in frame::frames(&self.input[..length]) {
                let frame = frame?;
                if frame.sequence != sequence {
                    continue;
                }
                consistent &= !frame.is_interrupted();
                match &frame.body {
                    frame::Body::Done(outcome) | frame::Body::Outcome(outcome) => {
                        return outcome.clone().into_error(0).map_or(Ok(consistent), Err);
                    }
                    // Do not stop early: the rest of the dump must be drained.
                    frame::Body::Object(_) if consistent => picked.extend(pick(decode(&frame)?)),
                    frame::Body::Object(_) => {}
                }
            }
        }
    }

    fn send(&self) -> Result<()> {
        self.raw.send(&self.out).map_err(Error::Send)
    }

    fn receive(&mut self) -> Result<usize> {
        self.raw.receive(&mut self.input, 0).map(<[u8]>::len).map_err(Error::Receive)
    }
}

impl std::os::fd::AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

fn decode(frame: &Frame<'_>) -> Result<RouteNetlinkMessage> {
    let frame::Body::Object(body) = frame.body else {
        return Err(Error::Decode("an outcome in place of an object".into()));
    };
    RouteNetlinkMessage::deserialize(&frame.header(), body)
        .map_err(|error| Error::Decode(error.to_string()))
}

#[cfg(test)]
mod tests;
