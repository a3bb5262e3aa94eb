//! Traffic with counts: answering servers, single probes, and generators that say what they lost.
//!
//! A server answers with the source address that it saw, so that one probe shows both that a path works and how it
//! was translated. Sockets are made inside a namespace and then used from anywhere.

pub mod generator;
pub mod icmp;
pub mod intruder;
pub mod reach;
pub mod workload;

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{Shutdown, shutdown};

use crate::{
    error::{Context as _, Error, Result},
    ns::Namespace,
};

/// How long a probe waits for an answer.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// A TCP and a UDP server on one port of a namespace. Both answer with the peer's address as they see it.
/// They stop when dropped.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

// === impl Server ===

impl Server {
    /// Starts one on `port` of every address in `namespace`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let (listener, datagrams) = namespace.run(|| {
            let at = (Ipv4Addr::UNSPECIFIED, port);
            let what = || format!("cannot listen on port {port} in {}", namespace.name());
            let datagrams = UdpSocket::bind(at).context(what)?;
            datagrams.set_read_timeout(Some(Duration::from_millis(200))).context(what)?;
            Ok((TcpListener::bind(at).context(what)?, datagrams))
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let what = || "cannot share a listening socket".to_owned();
        let accepting = listener.try_clone().context(what)?;
        let (tcp, udp) = (Arc::clone(&stop), Arc::clone(&stop));
        let threads = vec![
            thread::spawn(move || serve_tcp(&accepting, &tcp)),
            thread::spawn(move || serve_udp(&datagrams, &udp)),
        ];
        Ok(Self { listener, stop, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes accept(); nothing else can be done about a failure than to leave the thread behind.
        if shutdown(self.listener.as_raw_fd(), Shutdown::Both).is_ok() {
            for thread in self.threads.drain(..) {
                drop(thread.join());
            }
        }
    }
}

/// Connects from `from` to `to` and returns the address that the server saw.
///
/// # Errors
/// When no connection or no answer comes within [`PROBE_TIMEOUT`].
pub fn tcp_seen(from: &Namespace, to: SocketAddrV4) -> Result<SocketAddrV4> {
    let what = || format!("no TCP answer in {} from {to}", from.name());
    from.run(|| connect_seen(to, PROBE_TIMEOUT).context(what))
}

/// Sends a datagram from `from` to `to` and returns the address that the server saw.
///
/// # Errors
/// When no answer comes within [`PROBE_TIMEOUT`].
pub fn udp_seen(from: &Namespace, to: SocketAddrV4) -> Result<SocketAddrV4> {
    let what = || format!("no UDP answer in {} from {to}", from.name());
    from.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context(what)?;
        socket.set_read_timeout(Some(PROBE_TIMEOUT)).context(what)?;
        // Connected: an answer from another address than the one that was asked is no answer.
        socket.connect(to).context(what)?;
        socket.send(b"who am I").context(what)?;
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).context(what)?;
        parse_seen(&buffer[..len]).context(what)
    })
}

/// Whether a datagram from `from` to `to` is answered within `patience`.
///
/// # Errors
/// When no socket can be made.
pub fn udp_answers(from: &Namespace, to: SocketAddrV4, patience: Duration) -> Result<bool> {
    let what = || format!("cannot send to {to} in {}", from.name());
    from.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context(what)?;
        socket.set_read_timeout(Some(patience)).context(what)?;
        socket.connect(to).context(what)?;
        Ok(socket.send(b"who am I").is_ok() && socket.recv(&mut [0; 64]).is_ok())
    })
}

/// As [`tcp_seen`], from the calling thread's namespace.
pub(crate) fn connect_seen(to: SocketAddrV4, timeout: Duration) -> io::Result<SocketAddrV4> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(to), timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse_seen(&answer)
}

fn parse_seen(answer: &[u8]) -> io::Result<SocketAddrV4> {
    let text = String::from_utf8_lossy(answer);
    text.trim().parse().map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, format!("the server answered {text:?}"))
    })
}

fn serve_tcp(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        match listener.accept() {
            // The client may be gone already: its own count says so.
            Ok((mut stream, peer)) => drop(stream.write_all(peer.to_string().as_bytes())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => thread::yield_now(),
        }
    }
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Acquire) {
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(peer.to_string().as_bytes(), peer));
        }
    }
}

/// Pings `to` from `from` once.
///
/// # Errors
/// When no answer comes within [`PROBE_TIMEOUT`].
pub fn ping(from: &Namespace, to: Ipv4Addr) -> Result<Duration> {
    from.run(|| {
        let mut pinger = icmp::Pinger::new(to)
            .context(|| format!("cannot make a raw socket in {}", from.name()))?;
        let rtt = pinger
            .echo(PROBE_TIMEOUT)
            .context(|| format!("cannot ping {to} from {}", from.name()))?;
        rtt.ok_or_else(|| Error::invalid(format!("no echo reply in {} from {to}", from.name())))
    })
}

/// Sends a datagram from `from` with the source address `source`; whether an answer came within half a second.
///
/// # Errors
/// When `source` is no address of the namespace.
pub fn send_from(from: &Namespace, source: Ipv4Addr, to: SocketAddrV4) -> Result<bool> {
    let what = || format!("cannot send from {source} in {}", from.name());
    from.run(|| {
        let socket = UdpSocket::bind((source, 0)).context(what)?;
        socket.set_read_timeout(Some(Duration::from_millis(500))).context(what)?;
        socket.send_to(b"who am I", to).context(what)?;
        Ok(socket.recv_from(&mut [0; 64]).is_ok())
    })
}
