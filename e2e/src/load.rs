//! Traffic that goes on while something else happens, and what of it was lost.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use veni_lab::ns::Namespace;

use crate::{
    cluster::{SETTLE, until},
    http::{self, Connection},
};

/// Between two requests of one stream.
const PACE: Duration = Duration::from_millis(20);

/// One stream of requests.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    /// For people.
    pub(crate) name: String,
    /// Where the requests are made.
    pub(crate) from: Namespace,
    pub(crate) to: SocketAddr,
    pub(crate) path: String,
    /// Whether one connection carries all requests, or each has its own.
    pub(crate) kept: bool,
}

/// Streams that run until they are asked for their report.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    streams: Vec<(String, JoinHandle<Seen>)>,
}

/// What a stream saw.
#[derive(Debug, Default)]
struct Seen {
    answers: u64,
    lost: u64,
    first_loss: Option<String>,
    longest: Duration,
}

/// What all streams saw.
#[derive(Debug, Default)]
pub(crate) struct Report {
    streams: usize,
    answers: u64,
    lost: u64,
    first_losses: Vec<String>,
    /// The longest time between two answers of a stream.
    longest: Duration,
}

// === impl Load ===

impl Load {
    /// Once every stream had an answer: kube-proxy may still be behind the API server.
    ///
    /// # Errors
    /// When one has none.
    pub(crate) fn start(streams: Vec<Stream>) -> anyhow::Result<Self> {
        for stream in &streams {
            until(SETTLE, || http::get(&stream.from, stream.to, &stream.path))
                .with_context(|| stream.name.clone())?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let start = |stream: Stream| {
            let stop = Arc::clone(&stop);
            (stream.name.clone(), thread::spawn(move || stream.run(&stop)))
        };
        let streams = streams.into_iter().map(start).collect();
        Ok(Self { stop, streams })
    }

    /// Ends all streams.
    pub(crate) fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        for (name, stream) in self.streams {
            let seen = stream.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            report.streams += 1;
            report.answers += seen.answers;
            report.lost += seen.lost;
            report.longest = report.longest.max(seen.longest);
            report.first_losses.extend(seen.first_loss.map(|why| format!("{name}: {why}")));
        }
        report
    }
}

// === impl Report ===

impl Report {
    /// # Errors
    /// When a request was lost, or a stream had no answer at all.
    pub(crate) fn nothing_lost(&self) -> anyhow::Result<String> {
        ensure!(
            self.lost == 0,
            "{} of {} requests lost; {}",
            self.lost,
            self.lost + self.answers,
            self.first_losses.join("; ")
        );
        ensure!(self.answers >= self.streams as u64, "{self:?}");
        Ok(format!(
            "{} requests in {} streams, 0 lost, at most {} ms between two answers",
            self.answers,
            self.streams,
            self.longest.as_millis()
        ))
    }
}

// === impl Stream ===

impl Stream {
    fn run(&self, stop: &AtomicBool) -> Seen {
        let within = self.from.run(|| Ok(self.run_here(stop)));
        within.unwrap_or_else(|error| Seen {
            lost: 1,
            first_loss: Some(error.to_string()),
            ..Seen::default()
        })
    }

    fn run_here(&self, stop: &AtomicBool) -> Seen {
        let mut seen = Seen::default();
        let mut kept = None;
        let mut last = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let connection = kept.take().map_or_else(|| Connection::open(self.to), Ok);
            let answer = connection.and_then(|mut connection| {
                let body = connection.get(&self.path)?;
                // netexec that was asked to ask another: it answers in any case.
                ensure!(!body.contains(r#""errors":"#), "{body}");
                Ok(connection)
            });
            match answer {
                Ok(connection) => {
                    seen.answers += 1;
                    seen.longest = seen.longest.max(last.elapsed());
                    last = Instant::now();
                    kept = self.kept.then_some(connection);
                }
                Err(error) => {
                    seen.lost += 1;
                    seen.first_loss.get_or_insert_with(|| format!("{error:#}"));
                }
            }
            thread::sleep(PACE);
        }
        seen
    }
}
