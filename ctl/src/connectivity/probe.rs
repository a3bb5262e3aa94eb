//! The questions that pods ask, and what they heard.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{agent::WHO, measure};

/// How often a datagram is sent within a question's time: one may be lost.
const DATAGRAMS: u32 = 3;
/// An answer that is longer is not from one of our pods.
const LONGEST: usize = 4096;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Question {
    /// What is asked.
    pub(super) what: What,
    /// Who: `HOST:PORT`.
    pub(super) to: String,
    /// How long an answer is waited for, or how long is measured.
    pub(super) millis: u64,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    /// Who it is, over TCP.
    Tcp,
    /// Who it is, over UDP.
    Udp,
    /// Whether it takes a TCP connection.
    Connect,
    /// How long one byte takes there and back over a connection that is there.
    Latency,
    /// How long a new connection and one byte there and back take.
    Connections,
    /// How much goes through one connection.
    Throughput,
}

/// What was heard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// A pod of the test.
    Pod(Identity),
    /// Somebody took the connection.
    Connected,
    /// Times there and back.
    Times(measure::Times),
    /// Bits that arrived in a second.
    BitsPerSec(f64),
    /// Nothing: why.
    Nothing(String),
}

/// Who answered, and whom it saw asking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The pod's name.
    pub(super) pod: String,
    /// The address that the question came from.
    pub(super) peer: SocketAddr,
}

// === impl Question ===

impl Question {
    /// What runs in pods only reads them.
    #[cfg(any(test, feature = "kube"))]
    pub(super) fn new(what: What, to: impl ToString, time: Duration) -> Self {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self { what, to: to.to_string(), millis }
    }

    fn ask(&self) -> Answer {
        let time = Duration::from_millis(self.millis);
        let answer = resolve(&self.to).and_then(|to| match self.what {
            What::Tcp => tcp(to, time).map(Answer::Pod),
            What::Udp => udp(to, time).map(Answer::Pod),
            What::Connect => TcpStream::connect_timeout(&to, time).map(|_| Answer::Connected),
            What::Latency => measure::latency(to, time).map(Answer::Times),
            What::Connections => measure::connections(to, time).map(Answer::Times),
            What::Throughput => measure::throughput(to, time).map(Answer::BitsPerSec),
        });
        answer.unwrap_or_else(|error| Answer::Nothing(error.to_string()))
    }
}

/// Asks all at once; the answers in the questions' order.
pub(super) fn ask(questions: &[Question]) -> Vec<Answer> {
    thread::scope(|scope| {
        let asking: Vec<_> = questions.iter().map(|q| scope.spawn(|| q.ask())).collect();
        let failed = |_| Answer::Nothing("the probe panicked".to_owned());
        asking.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
    })
}

fn resolve(to: &str) -> io::Result<SocketAddr> {
    let mut found = to.to_socket_addrs()?;
    found.next().ok_or_else(|| io::Error::other(format!("{to} has no address")))
}

fn tcp(to: SocketAddr, time: Duration) -> io::Result<Identity> {
    let end = Instant::now() + time;
    let mut stream = TcpStream::connect_timeout(&to, time)?;
    stream.set_read_timeout(Some(left(end)))?;
    stream.write_all(&[WHO])?;
    let mut answer = Vec::new();
    stream.take(LONGEST as u64).read_to_end(&mut answer)?;
    identity(&answer)
}

fn udp(to: SocketAddr, time: Duration) -> io::Result<Identity> {
    let socket = if to.is_ipv4() {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
    }?;
    socket.connect(to)?;
    socket.set_read_timeout(Some((time / DATAGRAMS).max(Duration::from_millis(1))))?;
    let mut last = io::ErrorKind::TimedOut.into();
    let mut answer = [0; LONGEST];
    for _ in 0..DATAGRAMS {
        match socket.send(&[WHO]).and_then(|_| socket.recv(&mut answer)) {
            Ok(length) => return identity(&answer[..length]),
            Err(error) => last = error,
        }
    }
    Err(match last.kind() {
        io::ErrorKind::WouldBlock => io::Error::other("no answer"),
        _ => last,
    })
}

fn identity(answer: &[u8]) -> io::Result<Identity> {
    serde_json::from_slice(answer).map_err(|_| io::Error::other("answered by no pod of the test"))
}

/// The time until `end`; a socket takes no zero.
pub(super) fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
