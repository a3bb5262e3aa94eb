//! Who reaches whom, over TCP, UDP and SCTP, many paths at once.
//!
//! What is denied is not answered, so that it shows by time only. Paths that are expected to work are waited for as
//! long as [`PROBE_TIMEOUT`]; those that are expected not to have until then, and [`GRACE`] more: an answer to one of them
//! needs no longer than those to the others.

use std::{
    io::{self, ErrorKind},
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::PROBE_TIMEOUT;
use crate::{
    error::{Context as _, Result},
    ns::Namespace,
};

/// How long an answer that must not come is waited for after all others.
pub const GRACE: Duration = Duration::from_millis(100);
/// How often listeners look whether they are to end.
const TICK: u16 = 100;

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP: an answered datagram.
    Udp,
    /// SCTP, one-to-one (RFC 6458).
    Sctp,
}

/// A path to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Over what.
    pub transport: Transport,
    /// To where.
    pub to: SocketAddrV4,
    /// Whether it is expected to work.
    pub expected: bool,
}

/// Servers on ports of several namespaces, which count who reaches them. They stop when dropped.
#[derive(Debug)]
pub struct Listeners {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

// === impl Transport ===

impl Transport {
    /// Those that this kernel has sockets for.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let works = |transport: &Self| transport.socket().is_ok();
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().filter(works).collect()
    }

    /// By its name in manifests.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    fn socket(self) -> io::Result<Socket> {
        let (kind, protocol) = match self {
            Self::Tcp => (Type::STREAM, 6),
            Self::Udp => (Type::DGRAM, 17),
            Self::Sctp => (Type::STREAM, 132),
        };
        let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::from(protocol)))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

// === impl Listeners ===

impl Listeners {
    /// Listens on each of `ports` in each of `places`.
    ///
    /// # Errors
    /// When a port is taken, or the kernel lacks the protocol.
    pub fn start(places: &[&Namespace], ports: &[(Transport, u16)]) -> Result<Self> {
        let mut sockets = Vec::new();
        for place in places {
            sockets.extend(place.run(|| {
                let listening = ports.iter().map(|(transport, port)| {
                    let what =
                        || format!("cannot listen on {port} ({transport:?}) in {}", place.name());
                    Ok((*transport, listen(*transport, *port).context(what)?))
                });
                listening.collect::<Result<Vec<_>>>()
            })?);
        }
        let (stop, arrived) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = thread::spawn({
            let (stop, arrived) = (Arc::clone(&stop), Arc::clone(&arrived));
            move || serve(&sockets, &stop, &arrived)
        });
        Ok(Self { stop, arrived, thread: Some(thread) })
    }

    /// Connections and datagrams that came so far.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn listen(transport: Transport, port: u16) -> io::Result<Socket> {
    let socket = transport.socket()?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    if transport != Transport::Udp {
        socket.listen(512)?;
    }
    Ok(socket)
}

fn serve(sockets: &[(Transport, Socket)], stop: &AtomicBool, arrived: &AtomicU64) {
    while !stop.load(Ordering::Acquire) {
        for ready in wait(sockets.iter().map(|(_, socket)| (socket, PollFlags::POLLIN)), TICK) {
            let (transport, socket) = &sockets[ready];
            while answer(*transport, socket).is_ok() {
                arrived.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Takes one connection or answers one datagram.
fn answer(transport: Transport, socket: &Socket) -> io::Result<()> {
    if transport != Transport::Udp {
        return socket.accept().map(drop);
    }
    let mut buffer = [MaybeUninit::uninit(); 64];
    let (_, from) = socket.recv_from(&mut buffer)?;
    // One that cannot be answered has come all the same.
    drop(socket.send_to(b"here", &from));
    Ok(())
}

/// Tries `targets` from `from`, all at once; whether each one worked, in their order.
///
/// # Errors
/// When a socket cannot be made.
pub fn reach(from: &Namespace, targets: &[Target]) -> Result<Vec<bool>> {
    from.run(|| {
        let what = || format!("cannot probe from {}", from.name());
        let sockets = targets.iter().map(start).collect::<io::Result<Vec<_>>>().context(what)?;
        let mut worked = vec![false; targets.len()];
        let mut over = vec![false; targets.len()];
        let mut end = Instant::now() + PROBE_TIMEOUT;
        let mut in_grace = false;
        loop {
            let all_there =
                || targets.iter().zip(&over).all(|(target, over)| *over || !target.expected);
            if !in_grace && all_there() {
                (in_grace, end) = (true, Instant::now() + GRACE);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || over.iter().all(|over| *over) {
                return Ok(worked);
            }
            let open: Vec<_> = (0..targets.len()).filter(|n| !over[*n]).collect();
            let events = open.iter().map(|n| (&sockets[*n], wanted(targets[*n].transport)));
            let left = u16::try_from(left.as_millis()).unwrap_or(TICK).clamp(1, TICK);
            for ready in wait(events, left) {
                let number = open[ready];
                over[number] = true;
                worked[number] = finished(targets[number].transport, &sockets[number]);
            }
        }
    })
}

fn start(target: &Target) -> io::Result<Socket> {
    let socket = target.transport.socket()?;
    let refused = socket.connect(&SockAddr::from(SocketAddr::V4(target.to)));
    if target.transport == Transport::Udp {
        refused?;
        // One that is not let out of the pod (EPERM) shows as one that is not answered.
        drop(socket.send(b"who"));
    } else if let Err(error) = refused
        && !matches!(error.raw_os_error(), Some(nix::libc::EINPROGRESS))
        && error.kind() != ErrorKind::WouldBlock
    {
        return Err(error);
    } else {
        // Ended by a reset: nothing waits for the port afterwards.
        drop(socket.set_linger(Some(Duration::ZERO)));
    }
    Ok(socket)
}

const fn wanted(transport: Transport) -> PollFlags {
    match transport {
        Transport::Udp => PollFlags::POLLIN,
        Transport::Tcp | Transport::Sctp => PollFlags::POLLOUT,
    }
}

fn finished(transport: Transport, socket: &Socket) -> bool {
    match transport {
        Transport::Udp => socket.recv(&mut [MaybeUninit::uninit(); 64]).is_ok(),
        Transport::Tcp | Transport::Sctp => matches!(socket.take_error(), Ok(None)),
    }
}

/// The places of the sockets at which something has happened within `millis`.
fn wait<'a>(sockets: impl Iterator<Item = (&'a Socket, PollFlags)>, millis: u16) -> Vec<usize> {
    let mut asked: Vec<_> =
        sockets.map(|(socket, what)| PollFd::new(socket.as_fd(), what)).collect();
    if poll(&mut asked, PollTimeout::from(millis)).is_err() {
        return Vec::new();
    }
    let happened = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
    asked.iter().enumerate().filter(|(_, fd)| happened(fd)).map(|(number, _)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_and_udp_are_always_there() {
        let available = Transport::available();
        assert!(available.starts_with(&[Transport::Tcp, Transport::Udp]), "{available:?}");
        for (name, expect) in [("SCTP", Some(Transport::Sctp)), ("sctp", None)] {
            assert_eq!(Transport::named(name), expect);
        }
    }
}
