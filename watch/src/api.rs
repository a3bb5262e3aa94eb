//! Requests and what can become of them.

use std::{fmt, time::Duration};

use http::{
    Method, Request, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
    request::Builder,
};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::Value;
use tokio::time::timeout;
use veni_core::chain::chain;

/// A line or an answer that is longer is not read: objects are 1.5 MiB at most (etcd's limit), a page holds 500.
const LONGEST: usize = 256 << 20;
const AGENT: &str = concat!("veni-ipamd/", env!("CARGO_PKG_VERSION"));

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There was no answer, or it broke off: why.
    Unreachable(String),
    /// The API server said no.
    Refused {
        /// The HTTP status.
        status: u16,
        /// In its words.
        message: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The version to go on from is too old (410): all has to be listed anew.
    Expired,
    /// What came is no answer to what was asked.
    Garbled(String),
}

/// How something is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Creates.
    Post,
    /// Changes fields.
    MergePatch,
    /// The same, with lists by their keys: of Kubernetes' own resources only.
    StrategicPatch,
    /// Operations, one after the other or none.
    JsonPatch,
    /// Server-side apply.
    Apply,
}

/// An API server.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    /// How long an answer's beginning, or a whole short answer, is waited for.
    patience: Duration,
}

/// The lines of an answer without end.
pub(crate) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
}

// === impl Failure ===

impl Failure {
    /// The failure that a `Status` object tells of.
    pub(crate) fn of_status(status: &Value) -> Self {
        let code = status.get("code").and_then(Value::as_u64).unwrap_or_default();
        let code = u16::try_from(code).unwrap_or_default();
        let message = status.get("message").and_then(Value::as_str).unwrap_or_default();
        let secs = status.pointer("/details/retryAfterSeconds").and_then(Value::as_u64);
        Self::new(code, message.to_owned(), secs.map(Duration::from_secs))
    }

    fn new(status: u16, message: String, retry_after: Option<Duration>) -> Self {
        if status == StatusCode::GONE.as_u16() {
            return Self::Expired;
        }
        Self::Refused { status, message, retry_after }
    }

    pub(crate) const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason) => write!(f, "the API server cannot be reached ({reason})"),
            Self::Refused { status, message, .. } => {
                write!(f, "the API server answered {status} ({message})")
            }
            Self::Expired => f.write_str("the API server answered 410"),
            Self::Garbled(reason) => {
                write!(f, "what the API server answers is not understood ({reason})")
            }
        }
    }
}

// === impl Verb ===

impl Verb {
    /// Method and content type.
    const fn names(self) -> (Method, &'static str) {
        match self {
            Self::Post => (Method::POST, "application/json"),
            Self::MergePatch => (Method::PATCH, "application/merge-patch+json"),
            Self::StrategicPatch => (Method::PATCH, "application/strategic-merge-patch+json"),
            Self::JsonPatch => (Method::PATCH, "application/json-patch+json"),
            // Every JSON document is one of YAML.
            Self::Apply => (Method::PATCH, "application/apply-patch+yaml"),
        }
    }
}

// === impl Api ===

impl Api {
    pub(crate) const fn new(client: Client, patience: Duration) -> Self {
        Self { client, patience }
    }

    /// Reads a whole answer.
    pub(crate) async fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let body = self.begin(path).await?;
        let whole = timeout(self.patience, body.collect_bytes()).await;
        let whole = whole.map_err(|_| self.silence())?.map_err(unreachable)?;
        Ok(whole.into())
    }

    /// As [`Api::get`], as JSON.
    pub(crate) async fn json(&self, path: &str) -> Result<Value, Failure> {
        let answer = self.get(path).await?;
        serde_json::from_slice(&answer).map_err(|error| Failure::Garbled(error.to_string()))
    }

    /// Begins to read an answer without end.
    pub(crate) async fn lines(&self, path: &str) -> Result<Lines, Failure> {
        Ok(Lines { body: self.begin(path).await?, buffer: Vec::new(), start: 0 })
    }

    /// Writes, and reads the answer as JSON.
    pub(crate) async fn send(
        &self,
        verb: Verb,
        path: &str,
        body: &Value,
    ) -> Result<Value, Failure> {
        let (method, content) = verb.names();
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, content);
        let body = self.answer(request, Body::from(body.to_string().into_bytes())).await?;
        let whole = timeout(self.patience, body.collect_bytes()).await;
        let whole = whole.map_err(|_| self.silence())?.map_err(unreachable)?;
        serde_json::from_slice(&whole).map_err(|error| Failure::Garbled(error.to_string()))
    }

    async fn begin(&self, path: &str) -> Result<Body, Failure> {
        self.answer(Request::get(path), Body::empty()).await
    }

    async fn answer(&self, request: Builder, body: Body) -> Result<Body, Failure> {
        let request = request.header(ACCEPT, "application/json").header(USER_AGENT, AGENT);
        let request = request.body(body).map_err(|error| Failure::Garbled(error.to_string()))?;
        let answer = timeout(self.patience, self.client.send(request)).await;
        let answer = answer.map_err(|_| self.silence())?.map_err(unreachable)?;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let status = answer.status();
        let secs = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = secs.and_then(|secs| secs.parse().ok()).map(Duration::from_secs);
        let said = timeout(self.patience, answer.into_body().collect_bytes()).await;
        let said = said.map_err(|_| self.silence())?.map_err(unreachable)?;
        Err(Failure::new(status.as_u16(), message(status, &said), retry_after))
    }

    fn silence(&self) -> Failure {
        Failure::Unreachable(format!("no answer within {} s", self.patience.as_secs_f32()))
    }
}

/// A `Status` object's message; or the text, as proxies and unknown paths answer.
fn message(status: StatusCode, said: &[u8]) -> String {
    let object: Option<Value> = serde_json::from_slice(said).ok();
    let message = object.as_ref().and_then(|object| object.get("message")?.as_str());
    let text = || String::from_utf8_lossy(said).trim().chars().take(200).collect();
    let message = message.map_or_else(text, str::to_owned);
    if message.is_empty() { status.to_string() } else { message }
}

fn unreachable(error: kube::Error) -> Failure {
    let text = match &error {
        // kube prints the source itself.
        kube::Error::Service(source) => chain(source.as_ref()),
        kube::Error::HyperError(source) => chain(source),
        other => other.to_string(),
    };
    Failure::Unreachable(text)
}

// === impl Lines ===

impl Lines {
    /// The next line; `None` at the end. What has no end of line before it broke off is no line.
    pub(crate) async fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        let mut searched = self.start;
        loop {
            let rest = &self.buffer[searched..];
            if let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                let (start, end) = (self.start, searched + length);
                self.start = end + 1;
                return Ok(Some(&self.buffer[start..end]));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            searched = self.buffer.len();
            if searched > LONGEST {
                return Err(Failure::Garbled(format!("a line of more than {LONGEST} bytes")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(unreachable(error)),
                Some(Ok(frame)) => {
                    self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                }
            }
        }
    }
}
