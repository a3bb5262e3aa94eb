//! Steady traffic that counts what it loses: a ping flood, and new TCP connections at a rate.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    connect_seen,
    icmp::{Pinger, Received},
};
use crate::{
    error::{Context as _, Error, Result},
    ns::Namespace,
};

/// An attempt that took this long lost a packet on the way: TCP repeats a lost SYN after 1 s (RFC 6298).
const DELAYED: Duration = Duration::from_millis(900);
/// How long the last replies are waited for.
const DRAIN: Duration = Duration::from_secs(1);
/// Connections a second that one thread makes with ease.
const RATE_PER_THREAD: u32 = 125;

/// A generator that runs until it is stopped.
#[derive(Debug)]
pub struct Generator {
    pace: Arc<Pace>,
    threads: Vec<JoinHandle<Counts>>,
}

/// What a generator's threads and its holder tell each other.
#[derive(Debug, Default)]
struct Pace {
    stop: AtomicBool,
    sent: AtomicU64,
}

/// What became of the attempts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Attempts.
    pub sent: u64,
    /// Answered in time.
    pub answered: u64,
    /// Answered only after a packet had been repeated (TCP).
    pub delayed: u64,
    /// Failures by their message.
    pub errors: BTreeMap<String, u64>,
    /// The slowest answer.
    pub slowest: Duration,
    /// When the first and the last attempt without an answer were made, after the beginning.
    pub unanswered: Option<(Duration, Duration)>,
}

// === impl Generator ===

impl Generator {
    /// One echo request a millisecond from `from` to `to`, whether or not the last one was answered.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn ping_flood(from: &Namespace, to: Ipv4Addr) -> Result<Self> {
        let mut generator = Self { pace: Arc::default(), threads: Vec::new() };
        generator.thread(from, move |pace| flood(to, pace))?;
        Ok(generator)
    }

    /// `rate` new connections a second from `from` to a [`Server`](super::Server) at `to`.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn connections(from: &Namespace, to: SocketAddrV4, rate: u32) -> Result<Self> {
        let mut generator = Self { pace: Arc::default(), threads: Vec::new() };
        let threads = rate.div_ceil(RATE_PER_THREAD).max(1);
        let interval = Duration::from_secs(1) * threads / rate.max(1);
        for _ in 0..threads {
            generator.thread(from, move |pace| connect(to, interval, pace))?;
        }
        Ok(generator)
    }

    /// Waits until `attempts` more were made.
    pub fn wait_for(&self, attempts: u64) {
        let until = self.pace.sent.load(Ordering::Relaxed) + attempts;
        while self.pace.sent.load(Ordering::Relaxed) < until
            && self.threads.iter().any(|thread| !thread.is_finished())
        {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it and counts.
    #[must_use]
    pub fn stop(mut self) -> Counts {
        self.pace.stop.store(true, Ordering::Release);
        let mut counts = Counts::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(part) => counts.merge(part),
                Err(_) => counts.error("the generator's thread panicked"),
            }
        }
        counts
    }

    fn thread(
        &mut self,
        from: &Namespace,
        work: impl FnOnce(&Pace) -> io::Result<Counts> + Send + 'static,
    ) -> Result<()> {
        let (pace, from) = (Arc::clone(&self.pace), from.clone());
        let (entered, outcome) = std::sync::mpsc::channel();
        self.threads.push(thread::spawn(move || {
            let result = from.enter();
            let failed = result.is_err();
            if entered.send(result).is_err() || failed {
                return Counts::default();
            }
            work(&pace).unwrap_or_else(|error| {
                let mut counts = Counts::default();
                counts.error(&error.to_string());
                counts
            })
        }));
        outcome
            .recv()
            .map_err(io::Error::other)
            .context(|| "a generator's thread ended at its start".to_owned())?
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.pace.stop.store(true, Ordering::Release);
    }
}

// === impl Pace ===

impl Pace {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Acquire)
    }
}

// === impl Counts ===

impl Counts {
    /// Attempts without an answer, and those whose packets had to be repeated.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent - self.answered + self.delayed
    }

    /// `Ok` when there was traffic and nothing of it was lost.
    ///
    /// # Errors
    /// With the counts.
    pub fn all_answered(&self) -> Result<()> {
        if self.sent > 0 && self.lost() == 0 && self.errors.is_empty() {
            Ok(())
        } else {
            Err(Error::invalid(self.to_string()))
        }
    }

    fn error(&mut self, message: &str) {
        *self.errors.entry(message.to_owned()).or_default() += 1;
    }

    fn answer(&mut self, after: Duration) {
        self.answered += 1;
        self.delayed += u64::from(after >= DELAYED);
        self.slowest = self.slowest.max(after);
    }

    fn lose(&mut self, at: Duration) {
        let (first, last) = self.unanswered.unwrap_or((at, at));
        self.unanswered = Some((first.min(at), last.max(at)));
    }

    fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.delayed += other.delayed;
        self.slowest = self.slowest.max(other.slowest);
        for at in other.unanswered.iter().flat_map(|(first, last)| [*first, *last]) {
            self.lose(at);
        }
        for (message, count) in other.errors {
            *self.errors.entry(message).or_default() += count;
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} answered, slowest {:.1} ms",
            self.answered,
            self.sent,
            self.slowest.as_secs_f64() * 1e3
        )?;
        if self.delayed > 0 {
            write!(f, ", {} after a repetition", self.delayed)?;
        }
        if let Some((first, last)) = self.unanswered {
            let (first, last) = (first.as_millis(), last.as_millis());
            write!(f, ", those without an answer from {first} to {last} ms after its beginning")?;
        }
        self.errors.iter().try_for_each(|(message, count)| write!(f, ", {count} × {message}"))
    }
}

fn flood(to: Ipv4Addr, pace: &Pace) -> io::Result<Counts> {
    let mut pinger = Pinger::new(to)?;
    let mut counts = Counts::default();
    // A sequence number comes round after 65 s: an answer is counted once, and late ones are lost ones.
    let mut open = BTreeMap::new();
    let begun = Instant::now();
    let mut tick = begun;
    while pace.goes_on() {
        counts.sent += 1;
        pace.sent.fetch_add(1, Ordering::Relaxed);
        match pinger.send() {
            Ok(sequence) => drop(open.insert(sequence, Instant::now())),
            Err(error) => counts.error(&error.to_string()),
        }
        // The scheduler's timer is finer than a socket's timeout, which counts in ticks of 4 ms. Behind (the machine is
        // busy): no burst to catch up, which the receive buffer would not hold.
        tick = Instant::now().max(tick + Duration::from_millis(1));
        thread::sleep(tick.saturating_duration_since(Instant::now()));
        collect(&pinger, &mut open, &mut counts, tick)?;
    }
    collect(&pinger, &mut open, &mut counts, Instant::now() + DRAIN)?;
    open.values().for_each(|sent| counts.lose(sent.duration_since(begun)));
    Ok(counts)
}

/// Collects all replies that are there, and then those that come until `end`.
fn collect(
    pinger: &Pinger,
    open: &mut BTreeMap<u16, Instant>,
    counts: &mut Counts,
    end: Instant,
) -> io::Result<()> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match pinger.receive(left)? {
            Received::Reply(sequence) => {
                if let Some(sent) = open.remove(&sequence) {
                    counts.answer(sent.elapsed());
                }
            }
            Received::Foreign => {}
            Received::Nothing if left.is_zero() => return Ok(()),
            Received::Nothing => {}
        }
    }
}

fn connect(to: SocketAddrV4, interval: Duration, pace: &Pace) -> io::Result<Counts> {
    let mut counts = Counts::default();
    let begun = Instant::now();
    let mut tick = begun;
    while pace.goes_on() {
        let start = Instant::now();
        counts.sent += 1;
        pace.sent.fetch_add(1, Ordering::Relaxed);
        match connect_seen(to, Duration::from_secs(5)) {
            Ok(_) => counts.answer(start.elapsed()),
            Err(error) => {
                counts.error(&error.to_string());
                counts.lose(start.duration_since(begun));
            }
        }
        tick += interval;
        match tick.checked_duration_since(Instant::now()) {
            Some(left) => thread::sleep(left),
            // Behind (the machine is busy): no burst to catch up.
            None => tick = Instant::now(),
        }
    }
    Ok(counts)
}
