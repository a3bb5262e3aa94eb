//! Notifications about the node's network: who changed what we rely on.
//!
//! Invariants: the sockets are opened in the caller's network namespace before [`spawn`] returns, so nothing that
//! happens after it is missed; a lost notification is never silent (it becomes [`Change::Overrun`]). What our own
//! repairs cause is left out where it can be told apart (protocol 118, our own `nft`), and a check that finds nothing
//! wrong changes nothing, so no loop can arise.
//!
//! Deliberately absent: debouncing and repairing (the caller's), and TCX programs, of which the kernel tells
//! nobody.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    thread::JoinHandle,
    time::Instant,
};

use veni_core::net::Mac;

use crate::{
    error::{Error, Result},
    socket::RawSocket,
};

mod netfilter;
mod route;

/// Room for notifications: a burst of 700 pods is about 2 MiB.
const RECEIVE_BUFFER: libc::c_int = 4 * 1024 * 1024;

/// Something happened that may need a repair.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A link appeared (in this namespace), or got another name or MAC.
    LinkAdded {
        /// Its MAC.
        mac: Option<Mac>,
        /// Its index.
        ifindex: u32,
        /// Its name.
        name: String,
    },
    /// A link went up or down, or got another MTU.
    LinkChanged {
        /// Its index.
        ifindex: u32,
        /// Its name.
        name: String,
    },
    /// A link is gone.
    LinkRemoved {
        /// Its index.
        ifindex: u32,
        /// Its name.
        name: String,
    },
    /// An address came or went on a link; IPv6's link-local ones aside.
    Addresses,
    /// A rule of ours went, or one of somebody else came.
    Rules,
    /// A route of ours went, or one of somebody else came in `main` or in a table of ours.
    Routes,
    /// The table `ip veni` was changed, not by us.
    Nft,
    /// A clsact or ingress qdisc or a filter was removed.
    Qdisc,
    /// A filter appeared in, or was replaced in, a block that links share: ours or another program's.
    Filter,
    /// Forwarding went off or the reverse path filter became strict on a link.
    Netconf,
    /// Notifications were lost: everything has to be looked at.
    Overrun,
}

/// What to leave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchConfig {
    /// The name of the nftables table to watch.
    pub nft_table: String,
    /// Settings of links with this prefix are not reported: pods' veths are made with the system's defaults, which
    /// pods' traffic does not depend on.
    pub veth_prefix: String,
    /// The first of our routing tables: routes of others in it, or in one of the 255 after it, are reported.
    pub table_base: u32,
}

/// A running watch; dropping it ends the thread.
#[derive(Debug)]
pub struct Watch {
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a thread that calls `notify` for every change in the calling thread's network namespace.
///
/// # Errors
/// When a socket or the thread cannot be made.
pub fn spawn(config: WatchConfig, notify: impl FnMut(Change) + Send + 'static) -> Result<Watch> {
    let open = || Error::io("watching the node's network");
    let routes = route::open().map_err(open())?;
    let netfilter = netfilter::open().map_err(open())?;
    let (stopped, stop) = io::pipe().map_err(open())?;
    let links = route::Links::now()?;
    let thread = std::thread::Builder::new()
        .name("netlink-watch".to_owned())
        .spawn(move || {
            let mut reader = Reader {
                routes: route::Reader::new(links, config.veth_prefix, config.table_base),
                netfilter: netfilter::Reader::new(config.nft_table),
                buffer: vec![0; 64 * 1024],
                notify,
            };
            reader.run(&routes, &netfilter, &stopped);
        })
        .map_err(open())?;
    Ok(Watch { stop: Some(stop), thread: Some(thread) })
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the netlink watch panicked");
        }
    }
}

struct Reader<F> {
    routes: route::Reader,
    netfilter: netfilter::Reader,
    buffer: Vec<u8>,
    notify: F,
}

impl<F: FnMut(Change)> Reader<F> {
    fn run(&mut self, routes: &RawSocket, netfilter: &RawSocket, stopped: &io::PipeReader) {
        loop {
            let fds =
                [routes.as_fd().as_raw_fd(), netfilter.as_fd().as_raw_fd(), stopped.as_raw_fd()];
            let ready = poll(fds, self.routes.next());
            if ready[2] {
                return;
            }
            if ready[0] {
                self.drain(routes, |reader, datagram| reader.routes.read(datagram));
            }
            if ready[1] {
                self.drain(netfilter, |reader, datagram| reader.netfilter.read(datagram));
            }
            self.routes.due(Instant::now()).into_iter().for_each(&mut self.notify);
        }
    }

    fn drain(&mut self, socket: &RawSocket, read: impl Fn(&mut Self, &[u8]) -> Vec<Change>) {
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            let outcome = socket
                .receive(&mut buffer, libc::MSG_DONTWAIT)
                .map(|datagram| read(self, datagram));
            self.buffer = buffer;
            match outcome {
                Ok(changes) => changes.into_iter().for_each(&mut self.notify),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // ENOBUFS: the queue ran over. Anything else: a datagram is lost all the same.
                Err(error) => {
                    tracing::warn!(%error, "netlink notifications were lost");
                    (self.notify)(Change::Overrun);
                }
            }
        }
    }
}

#[expect(unsafe_code, reason = "poll(2) without a further dependency")]
fn poll(fds: [libc::c_int; 3], until: Option<Instant>) -> [bool; 3] {
    let left = until.map(|at| at.saturating_duration_since(Instant::now()).as_millis());
    // Rounded up, so that it is not woken just before.
    let timeout =
        left.map_or(-1, |millis| libc::c_int::try_from(millis + 1).unwrap_or(libc::c_int::MAX));
    let mut set = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: the pointer and the length describe `set`, which outlives the call.
    let ready = unsafe { libc::poll(set.as_mut_ptr(), 3, timeout) };
    if ready < 0 { [false; 3] } else { set.map(|entry| entry.revents != 0) }
}
