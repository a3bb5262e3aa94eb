//! Traffic that must not arrive: sent all the time, from the first moment of a pod, however often it is refused.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    error::{Context as _, Result},
    ns::Namespace,
};

/// Between two attempts.
const INTERVAL: Duration = Duration::from_micros(200);
/// Connections that are tried at once; the oldest makes room for the next.
const OPEN: usize = 64;

/// A sender inside a namespace: a datagram and a SYN to each of its targets, again and again.
#[derive(Debug)]
pub struct Intruder {
    stop: Arc<AtomicBool>,
    left: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

// === impl Intruder ===

impl Intruder {
    /// Starts sending to `targets`. The namespace need not have a link yet: what is refused for want of a route is
    /// tried again at once.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn start(from: &Namespace, targets: &[SocketAddrV4]) -> Result<Self> {
        let (stop, left) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (entered, outcome) = std::sync::mpsc::channel();
        let thread = thread::spawn({
            let (from, targets) = (from.clone(), targets.to_vec());
            let (stop, left) = (Arc::clone(&stop), Arc::clone(&left));
            move || {
                let result = from.enter();
                let failed = result.is_err();
                if entered.send(result).is_ok() && !failed {
                    intrude(&targets, &stop, &left);
                }
            }
        });
        outcome
            .recv()
            .map_err(io::Error::other)
            .context(|| "an intruder's thread ended at its start".to_owned())??;
        Ok(Self { stop, left, thread: Some(thread) })
    }

    /// Datagrams that the pod's own network took so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Waits until `more` datagrams were sent, at most `patience`; whether they were.
    #[must_use]
    pub fn wait_for(&self, more: u64, patience: Duration) -> bool {
        let (until, start) = (self.sent() + more, std::time::Instant::now());
        while self.sent() < until {
            if start.elapsed() > patience {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn intrude(targets: &[SocketAddrV4], stop: &AtomicBool, left: &AtomicU64) {
    let mut connections = std::collections::VecDeque::new();
    while !stop.load(Ordering::Acquire) {
        for target in targets {
            if send(*target).is_ok() {
                left.fetch_add(1, Ordering::Relaxed);
            }
            // Until there is a route, there is nothing to keep.
            connections.extend(connect(*target));
            connections.drain(..connections.len().saturating_sub(OPEN));
        }
        thread::sleep(INTERVAL);
    }
}

/// From a new port each time: every one is a new flow.
fn send(to: SocketAddrV4) -> io::Result<usize> {
    std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"intruder", to)
}

fn connect(to: SocketAddrV4) -> Option<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    socket.set_nonblocking(true).ok()?;
    match socket.connect(&SockAddr::from(to)) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => None,
        _ => Some(socket),
    }
}
