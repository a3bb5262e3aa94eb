//! Steady load whose speed is measured: netperf's TCP_RR, TCP_CRR and TCP_STREAM between two namespaces.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::{
    error::{Context as _, Result},
    ns::Namespace,
};

/// How much is written at once in a stream.
const CHUNK: usize = 128 * 1024;
/// How long a step of a measurement may take: what is lost for good ends it, instead of letting it wait for ever.
const PATIENCE: Duration = Duration::from_secs(10);
/// First byte of a stream; any other one is a request.
const STREAM: u8 = b'S';
/// A request that is the connection's only one.
const ONCE: u8 = b'1';
/// A request that others may follow.
const AGAIN: u8 = b'n';

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// One byte there and back, over one connection; transactions a second.
    Rr,
    /// The same with a new connection each; transactions a second.
    Crr,
    /// As much as goes through one connection; bytes a second, as they arrive.
    Stream,
}

/// The other end. It stops when dropped.
#[derive(Debug)]
pub struct Responder {
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

// === impl Load ===

impl Load {
    /// netperf's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rr => "TCP_RR",
            Self::Crr => "TCP_CRR",
            Self::Stream => "TCP_STREAM",
        }
    }

    /// Loads `to` from `from` for `time`; per second.
    ///
    /// # Errors
    /// When a connection fails.
    pub fn run(self, from: &Namespace, to: SocketAddrV4, time: Duration) -> Result<f64> {
        let what = || format!("{} from {} to {to}", self.name(), from.name());
        from.run(|| {
            match self {
                Self::Rr => rr(to, time),
                Self::Crr => crr(to, time),
                Self::Stream => stream(to, time),
            }
            .context(what)
        })
    }
}

fn connect(to: SocketAddrV4) -> io::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    connection.set_nodelay(true)?;
    be_patient(&connection)?;
    Ok(connection)
}

fn be_patient(connection: &TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))
}

fn rr(to: SocketAddrV4, time: Duration) -> io::Result<f64> {
    let mut connection = connect(to)?;
    let (start, mut count, mut byte) = (Instant::now(), 0_u32, [0]);
    while start.elapsed() < time {
        connection.write_all(&[AGAIN])?;
        connection.read_exact(&mut byte)?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn crr(to: SocketAddrV4, time: Duration) -> io::Result<f64> {
    let (start, mut count, mut byte) = (Instant::now(), 0_u32, [0]);
    while start.elapsed() < time {
        let mut connection = connect(to)?;
        connection.write_all(&[ONCE])?;
        connection.read_exact(&mut byte)?;
        // Ended by a reset: otherwise all ports wait for their time (TIME-WAIT) after some rounds.
        SockRef::from(&connection).set_linger(Some(Duration::ZERO))?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn stream(to: SocketAddrV4, time: Duration) -> io::Result<f64> {
    let mut connection = connect(to)?;
    let chunk = vec![STREAM; CHUNK];
    let start = Instant::now();
    while start.elapsed() < time {
        connection.write_all(&chunk)?;
    }
    connection.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    connection.read_exact(&mut total)?;
    #[expect(clippy::cast_precision_loss, reason = "2^53 bytes are more than any run sends")]
    let total = u64::from_be_bytes(total) as f64;
    Ok(total / start.elapsed().as_secs_f64())
}

// === impl Responder ===

impl Responder {
    /// Answers on `port` in `namespace`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let what = || format!("cannot listen on port {port} in {}", namespace.name());
        let listener =
            namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context(what))?;
        let accepting = listener.try_clone().context(what)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !ending.load(Ordering::Acquire) {
                if let Ok((connection, _)) = accepting.accept() {
                    answer(connection);
                }
            }
        });
        Ok(Self { listener, stop, thread: Some(thread) })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let fd = self.listener.as_raw_fd();
        let woken = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both);
        if let (Ok(()), Some(thread)) = (woken, self.thread.take()) {
            drop(thread.join());
        }
    }
}

/// A single request on the accepting thread, as fast as it goes; everything else on a thread of its own.
fn answer(mut connection: TcpStream) {
    let mut byte = [0];
    let ready = connection.set_nodelay(true).and_then(|()| be_patient(&connection));
    if ready.and_then(|()| connection.read_exact(&mut byte)).is_err() {
        return;
    }
    match byte[0] {
        // Those who measure see what fails.
        ONCE => drop(connection.write_all(&byte)),
        STREAM => drop(thread::spawn(move || sink(connection))),
        _ => drop(thread::spawn(move || echo(connection, byte))),
    }
}

fn echo(mut connection: TcpStream, mut byte: [u8; 1]) {
    while connection.write_all(&byte).is_ok() && connection.read_exact(&mut byte).is_ok() {}
}

fn sink(mut connection: TcpStream) {
    let (mut buffer, mut total) = (vec![0; CHUNK], 1_u64);
    while let Ok(count @ 1..) = connection.read(&mut buffer) {
        total += count as u64;
    }
    drop(connection.write_all(&total.to_be_bytes()));
}
