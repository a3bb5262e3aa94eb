//! How fast pods talk: netperf's TCP_RR, TCP_CRR and TCP_STREAM between two of the test's pods.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    PATIENCE,
    agent::{ECHO, SINK},
};

const CHUNK: usize = 128 * 1024;
/// Each connection keeps its port for a minute after its end, and there are 28,232 of them.
const CONNECTIONS: usize = 10_000;

/// How long things took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Times {
    /// How many were measured.
    pub(super) count: u64,
    /// Half of them took at most this.
    pub(super) p50_micros: f64,
    /// Of a hundred, 99.
    pub(super) p99_micros: f64,
}

pub(super) fn latency(to: SocketAddr, time: Duration) -> io::Result<Times> {
    let mut stream = connect(to)?;
    stream.write_all(&[ECHO])?;
    repeat(time, usize::MAX, || there_and_back(&mut stream))
}

pub(super) fn connections(to: SocketAddr, time: Duration) -> io::Result<Times> {
    repeat(time, CONNECTIONS, || {
        let mut stream = connect(to)?;
        stream.write_all(&[ECHO])?;
        there_and_back(&mut stream)
    })
}

/// As the receiver counts: what is still on its way does not.
pub(super) fn throughput(to: SocketAddr, time: Duration) -> io::Result<f64> {
    let mut stream = connect(to)?;
    stream.write_all(&[SINK])?;
    let (chunk, start) = (vec![0; CHUNK], Instant::now());
    while start.elapsed() < time {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(time.max(PATIENCE)))?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived)?;
    #[expect(clippy::cast_precision_loss, reason = "a speed for people")]
    let bits = u64::from_be_bytes(arrived) as f64 * 8.0;
    Ok(bits / start.elapsed().as_secs_f64())
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn there_and_back(stream: &mut TcpStream) -> io::Result<()> {
    let mut byte = [b'x'];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}

fn repeat(
    time: Duration,
    most: usize,
    mut once: impl FnMut() -> io::Result<()>,
) -> io::Result<Times> {
    let (start, mut taken) = (Instant::now(), Vec::new());
    while taken.is_empty() || (taken.len() < most && start.elapsed() < time) {
        let begin = Instant::now();
        once()?;
        taken.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    taken.sort_by(f64::total_cmp);
    let at = |percent: usize| taken[(taken.len() * percent / 100).min(taken.len() - 1)];
    Ok(Times { count: taken.len() as u64, p50_micros: at(50), p99_micros: at(99) })
}
