//! Questions to ipamd's introspection endpoint.
//!
//! Invariant: one that hangs is told from one that computes, because it does not answer for its health either.

use std::{
    collections::BTreeMap,
    fmt,
    fmt::Write as _,
    io::{self, Read},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use serde::de::DeserializeOwned;
use ureq::{Agent, Body, http::Response};

use crate::{
    Usage,
    client::{self, Unanswered},
};

/// Until the first byte of the answer, and between the first and the last: a matrix of a large cluster takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// To connect, and until the daemon is asked for its health meanwhile.
const HASTE: Duration = Duration::from_secs(3);
/// For its health, which it answers for from memory.
const PULSE: Duration = Duration::from_secs(2);
/// How long nothing may come before the daemon is asked for its health.
const SILENCE: Duration = Duration::from_secs(10);
/// The longest document: the matrix of some thousand pods.
const MAX_DOCUMENT_BYTES: u64 = 1 << 30;
/// The longest reason of a refusal that is worth reading.
const MAX_REASON_BYTES: u64 = 4096;
/// More than all settings take.
const MAX_SETTINGS_BYTES: u64 = 1 << 16;

/// Nobody answers HTTP there: ipamd does not run, runs without, or listens elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unserved {
    address: String,
    why: String,
}

/// What comes without end: where nothing comes, the daemon is asked for its health.
struct Watched {
    address: String,
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    rest: io::Cursor<Vec<u8>>,
}

/// A request on its way.
#[derive(Debug, Clone)]
struct Question {
    url: String,
    parameters: Vec<(String, String)>,
    /// Whether the answer ends.
    ends: bool,
}

/// Asks for one JSON document.
///
/// # Errors
/// When it cannot be reached ([`Unserved`]), hangs or cannot be read; a [`Usage`] when it does not know what is asked
/// for.
pub(crate) fn document<T: DeserializeOwned>(
    address: &str,
    path: &str,
    parameters: &[(&str, String)],
) -> anyhow::Result<T> {
    let response = get(address, path, parameters, true)?;
    let body = response.into_body().into_with_config().limit(MAX_DOCUMENT_BYTES).reader();
    serde_json::from_reader(io::BufReader::new(body)).with_context(|| {
        format!(
            "ipamd's answer at http://{address}{path} cannot be read; use the venictl that came with ipamd, {} is this \
             one",
            env!("CARGO_PKG_VERSION")
        )
    })
}

/// Asks for lines that go on until the daemon ends.
///
/// # Errors
/// As [`document`].
pub(crate) fn lines(
    address: &str,
    path: &str,
    parameters: &[(&str, String)],
) -> anyhow::Result<impl io::BufRead + use<>> {
    let response = get(address, path, parameters, false)?;
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let (sender, chunks) = mpsc::channel();
    thread::spawn(move || {
        let mut chunk = [0; 8192];
        loop {
            let read = body.read(&mut chunk).map(|length| chunk[..length].to_vec());
            let is_last = read.as_ref().map_or(true, Vec::is_empty);
            if sender.send(read).is_err() || is_last {
                return;
            }
        }
    });
    Ok(io::BufReader::new(Watched {
        address: address.to_owned(),
        chunks,
        rest: io::Cursor::default(),
    }))
}

/// What a daemon says that starts and has no socket yet; `None` when it does not say that.
pub(crate) fn starting(address: &str) -> Option<Unanswered> {
    let response = agent(Some(PULSE)).get(format!("http://{address}/readyz")).call().ok()?;
    let body = response.into_body().into_with_config().limit(MAX_REASON_BYTES).lossy_utf8(true);
    let said = body.read_to_string().ok()?;
    said.starts_with("starting").then(|| Unanswered::starting(&said))
}

/// A setting that the daemon has; `None` when none answers at once, or it has no such.
pub(crate) fn setting(address: &str, name: &str) -> Option<String> {
    let response = agent(Some(PULSE)).get(format!("http://{address}/v1/settings")).call().ok()?;
    let body = response.into_body().into_with_config().limit(MAX_SETTINGS_BYTES).reader();
    let mut settings: BTreeMap<String, String> = serde_json::from_reader(body).ok()?;
    settings.remove(name)
}

fn get(
    address: &str,
    path: &str,
    parameters: &[(&str, String)],
    ends: bool,
) -> anyhow::Result<Response<Body>> {
    let question = Question {
        url: format!("http://{address}{path}"),
        parameters: parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
        ends,
    };
    let (sender, answered) = mpsc::channel();
    thread::spawn(move || drop(sender.send(question.ask())));
    let answer = match answered.recv_timeout(HASTE) {
        Err(_) if !is_alive(address) => return Err(hangs(address)),
        Err(_) => answered.recv().context("the question was lost")?,
        Ok(answer) => answer,
    };
    match answer {
        Ok(response) => refused(address, path, response),
        Err(ureq::Error::Timeout(ureq::Timeout::Connect)) => Err(hangs(address)),
        Err(ureq::Error::Timeout(_)) => bail!(
            "ipamd lives, but has not answered {path} at http://{address} within {} s; narrow the question (--from, --to), \
             or look at its log",
            PATIENCE.as_secs()
        ),
        Err(error) => Err(Unserved { address: address.to_owned(), why: error.to_string() }.into()),
    }
}

/// Whether it answers for its health, whatever it says.
fn is_alive(address: &str) -> bool {
    agent(Some(PULSE)).get(format!("http://{address}/healthz")).call().is_ok()
}

fn hangs(address: &str) -> anyhow::Error {
    anyhow!(
        "ipamd hangs: at http://{address} it takes connections and does not answer, not for its health either; next \
         step: {}",
        client::HANGS
    )
}

fn agent(at_most: Option<Duration>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        // The daemon is on this node, whatever HTTP_PROXY says.
        .proxy(None)
        .timeout_global(at_most);
    config.build().into()
}

/// The response itself, unless it is a refusal.
fn refused(address: &str, path: &str, response: Response<Body>) -> anyhow::Result<Response<Body>> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.into_body().into_with_config().limit(MAX_REASON_BYTES).lossy_utf8(true);
    let reason = body.read_to_string().unwrap_or_default();
    let reason = reason.trim();
    match status.as_u16() {
        404 if reason.is_empty() => bail!(
            "ipamd at http://{address} does not know {path}: it is older than this venictl, {}, or has no policy",
            env!("CARGO_PKG_VERSION")
        ),
        400 | 404 => Err(Usage(vec![reason.to_owned()]).into()),
        503 if reason.starts_with("starting") => Err(Unanswered::starting(reason).into()),
        _ => {
            let mut sentence = format!("ipamd at http://{address} refused {path} ({status})");
            if !reason.is_empty() {
                write!(sentence, ": {reason}")?;
            }
            bail!(sentence)
        }
    }
}

// === impl Watched ===

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.rest.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.chunks.recv_timeout(SILENCE) {
                Ok(chunk) => {
                    let chunk = chunk?;
                    if chunk.is_empty() {
                        return Ok(0);
                    }
                    self.rest = io::Cursor::new(chunk);
                }
                Err(mpsc::RecvTimeoutError::Timeout) if is_alive(&self.address) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, hangs(&self.address)));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
    }
}

// === impl Question ===

impl Question {
    fn ask(self) -> Result<Response<Body>, ureq::Error> {
        let mut request = agent(None).get(&self.url);
        for (name, value) in &self.parameters {
            request = request.query(name, value);
        }
        let config = request.config().timeout_connect(Some(HASTE));
        let config = config.timeout_recv_response(Some(PATIENCE));
        config.timeout_recv_body(self.ends.then_some(PATIENCE)).build().call()
    }
}

// === impl Unserved ===

impl Unserved {
    /// What it means where the socket says that ipamd runs.
    pub(crate) fn while_it_runs(&self) -> String {
        format!(
            "ipamd runs, but nobody answers HTTP at http://{} ({}): DISABLE_INTROSPECTION=true turns HTTP off, which policy, \
             observe, metrics and health checks need (unset it and restart ipamd); or it listens elsewhere: name the \
             address with --introspection or INTROSPECTION_BIND_ADDRESS",
            self.address, self.why
        )
    }
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "nobody answers HTTP at http://{} ({}): ipamd does not run on this node, runs with DISABLE_INTROSPECTION=true, or \
             listens elsewhere (--introspection, INTROSPECTION_BIND_ADDRESS)",
            self.address, self.why
        )
    }
}

impl std::error::Error for Unserved {}
