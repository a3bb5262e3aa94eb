//! A blocking `NETLINK_ROUTE` socket.
//!
//! Invariants: a batch is one `send`, so one system call and one turn of the kernel's RTNL queue; the kernel handles
//! every message of a batch even after one of them failed (`netlink_rcv_skb`), so batches are written such that what
//! follows a failed message does no harm. A dump that the kernel marks as inconsistent (`NLM_F_DUMP_INTR`) is never
//! handed out: it is made again.
//!
//! Deliberately absent: multicast groups (the daemon's watcher has its own socket) and any async.

#![expect(unsafe_code, reason = "socket options and send/recv without a further dependency")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

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

pub mod frame;

use frame::Frame;

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
    fd: OwnedFd,
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

/// What the kernel said to the first message of a batch that it refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchError {
    /// Which message of the batch, from 0.
    pub index: usize,
    /// Why, as a positive `errno`.
    pub errno: i32,
    /// The kernel's own words (`NETLINK_EXT_ACK`), often empty.
    pub ext_ack: String,
}

/// Why a netlink exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("opening a NETLINK_ROUTE socket")]
    Open(#[source] io::Error),
    /// The request could not be handed over: none of it was done.
    #[error("sending to netlink")]
    Send(#[source] io::Error),
    /// The outcome could not be read: what was asked may have been done.
    #[error("receiving from netlink")]
    Receive(#[source] io::Error),
    /// A reply that does not follow the protocol, or that this build cannot read.
    #[error("reading a netlink reply: {0}")]
    Decode(String),
    /// The kernel had nothing to say about what was asked for.
    #[error("netlink acknowledged a question without an answer")]
    NoObject,
    /// The kernel's tables changed during every attempt.
    #[error("a netlink dump was interrupted {DUMP_ATTEMPTS} times in a row")]
    Interrupted,
    /// The kernel refused.
    #[error(transparent)]
    Rejected(#[from] BatchError),
}

/// The result of a netlink exchange.
pub type Result<T> = std::result::Result<T, Error>;

// === impl BatchError ===

impl std::fmt::Display for BatchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        if self.ext_ack.is_empty() { Ok(()) } else { write!(f, ": {}", self.ext_ack) }
    }
}

impl std::error::Error for BatchError {}

// === impl Error ===

impl Error {
    /// The kernel's `errno`, when it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Rejected(rejected) => Some(rejected.errno),
            _ => None,
        }
    }

    /// Which message of the batch the kernel refused.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::Rejected(rejected) => Some(rejected.index),
            _ => None,
        }
    }

    /// Whether the thing named is not there: [`Error::NoObject`], or the kernel refused because of it
    /// (`ENODEV`, `ENOENT`, `ESRCH`, `EADDRNOTAVAIL`, `ENXIO`).
    #[must_use]
    pub fn is_absent(&self) -> bool {
        const ABSENT: [i32; 5] =
            [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENXIO];
        matches!(self, Self::NoObject) || self.errno().is_some_and(|errno| ABSENT.contains(&errno))
    }

    /// Whether the kernel refused because it is there already.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
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
        // SAFETY: no pointers; the result is checked before use.
        let fd = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
        };
        if fd < 0 {
            return Err(Error::Open(io::Error::last_os_error()));
        }
        // SAFETY: `fd` is open and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self { fd, sequence: 0, strict: false, out: Vec::new(), input: Vec::new() };
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
        let on: libc::c_int = 1;
        // SAFETY: the pointer and the length describe `on`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                libc::socklen_t::try_from(size_of_val(&on)).expect("4 fits"),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
        // SAFETY: the pointer and the length describe `out`, which outlives the call.
        let sent = retry(|| unsafe {
            libc::send(self.fd.as_raw_fd(), self.out.as_ptr().cast(), self.out.len(), 0)
        });
        sent.map(|_| ()).map_err(Error::Send)
    }

    fn receive(&mut self) -> Result<usize> {
        // SAFETY: the pointer and the length describe `input`, which outlives the call.
        let length = retry(|| unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                self.input.as_mut_ptr().cast(),
                self.input.len(),
                libc::MSG_TRUNC,
            )
        })
        .map_err(Error::Receive)?;
        if length > self.input.len() {
            return Err(Error::Decode(format!("a datagram of {length} bytes")));
        }
        Ok(length)
    }
}

impl std::os::fd::AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn decode(frame: &Frame<'_>) -> Result<RouteNetlinkMessage> {
    let frame::Body::Object(body) = frame.body else {
        return Err(Error::Decode("an outcome in place of an object".into()));
    };
    RouteNetlinkMessage::deserialize(&frame.header(), body)
        .map_err(|error| Error::Decode(error.to_string()))
}

/// Repeats `call` while a signal interrupts it.
fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(length) => return Ok(length),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE};
    use netlink_packet_route::{
        address::{AddressAttribute, AddressMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage},
    };

    use super::*;
    use crate::netns::NetNs;

    fn isolated(test: impl FnOnce(Socket) + Send + 'static) {
        let run = || match NetNs::unshare() {
            Ok(_) => test(Socket::open().unwrap()),
            Err(error) => match error.missing_feature() {
                Some(missing) => println!("SKIPPED: {missing}"),
                None => panic!("{error:?}"),
            },
        };
        std::thread::spawn(run).join().unwrap();
    }

    /// `127.0.<number>/32` on `lo`.
    fn address(number: u16) -> Request {
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet;
        address.header.prefix_len = 32;
        address.header.index = 1;
        let [high, low] = number.to_be_bytes();
        let local = IpAddr::V4(Ipv4Addr::new(127, 0, high, low));
        address.attributes = vec![AddressAttribute::Local(local)];
        Request::create(RouteNetlinkMessage::NewAddress(address))
    }

    fn addresses(socket: &mut Socket) -> usize {
        let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        socket.dump(all, Some).unwrap().len()
    }

    #[test]
    fn the_first_refused_message_is_named_and_the_rest_is_still_done() {
        isolated(|mut socket| {
            let batch = [address(1), address(1), address(1), address(2)];
            let error = socket.transact(&batch).unwrap_err();
            assert_eq!((error.index(), error.errno()), (Some(1), Some(libc::EEXIST)));
            assert_eq!(addresses(&mut socket), 2);
            socket.transact(&[address(3)]).unwrap();
        });
    }

    #[test]
    fn a_batch_above_one_send_counts_on() {
        isolated(|mut socket| {
            let one = NetlinkSerializable::buffer_len(&address(0).message);
            let count = SEND_BYTES / one + 3;
            let mut batch: Vec<_> =
                (0..count).map(|i| address(u16::try_from(i).unwrap())).collect();
            batch.push(address(0));
            let error = socket.transact(&batch).unwrap_err();
            assert_eq!(error.index(), Some(count), "{error:?}");
            assert_eq!(addresses(&mut socket), count);
        });
    }

    #[test]
    fn the_kernels_words_reach_the_caller() {
        isolated(|mut socket| {
            let mut route = RouteMessage::default();
            route.header.address_family = AddressFamily::Inet;
            let gateway = RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, 1));
            route.attributes = vec![RouteAttribute::Gateway(gateway)];
            let route = RouteNetlinkMessage::NewRoute(route);
            let error = socket.transact(&[Request::create(route)]).unwrap_err();
            let Error::Rejected(rejected) = error else { panic!("{error:?}") };
            assert!(!rejected.ext_ack.is_empty(), "{rejected:?}");
        });
    }

    /// A kernel that marks the first `interruptions` dumps as inconsistent; each holds one address and the end.
    fn dump_from_a_kernel_that_interrupts(interruptions: u32) -> Result<usize> {
        use std::os::unix::net::UnixDatagram;
        let (ours, kernels) = UnixDatagram::pair().unwrap();
        std::thread::spawn(move || {
            let mut request = [0; 256];
            for round in 0.. {
                if kernels.recv(&mut request).unwrap_or(0) == 0 {
                    return;
                }
                let sequence = u32::from_ne_bytes(request[8..12].try_into().unwrap());
                let flags = if round < interruptions { NLM_F_DUMP_INTR } else { 0 };
                let message = address(1).message;
                let mut reply = Vec::new();
                let length = NetlinkSerializable::buffer_len(&message);
                frame::encode(&mut reply, 20, 0, sequence, length, |body| message.serialize(body));
                frame::encode(&mut reply, NLMSG_DONE, flags, sequence, 4, |_| {});
                kernels.send(&reply).unwrap();
            }
        });
        let (out, input) = (Vec::new(), Vec::new());
        let mut socket = Socket { fd: ours.into(), sequence: 0, strict: true, out, input };
        let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        socket.dump(all, Some).map(|found| found.len())
    }

    #[test]
    fn an_interrupted_dump_is_made_again_and_not_for_ever() {
        assert_eq!(dump_from_a_kernel_that_interrupts(0).unwrap(), 1);
        assert_eq!(dump_from_a_kernel_that_interrupts(DUMP_ATTEMPTS - 1).unwrap(), 1);
        let error = dump_from_a_kernel_that_interrupts(DUMP_ATTEMPTS).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error:?}");
    }

    #[test]
    fn links_are_found_by_name_and_by_index() {
        isolated(|mut socket| {
            let lo = socket.get_link_by_name("lo").unwrap().unwrap();
            let same = socket.get_link_by_index(lo.header.index).unwrap().unwrap();
            assert_eq!(lo.header, same.header);
            assert!(socket.get_link_by_name("none").unwrap().is_none());
            assert!(socket.get_link_by_index(99_999).unwrap().is_none());
        });
    }
}
