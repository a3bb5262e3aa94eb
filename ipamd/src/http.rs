//! Health, readiness, metrics and introspection over HTTP, on loopback unless told otherwise.

use std::{future::IntoFuture as _, io, net::TcpListener, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use veni_core::{
    config::Config,
    wire::inspect::{self, View},
};

use crate::{
    enforcer::Handle, metrics::Metrics, owner::Command, requests::Requests, startup::Startup,
};

mod policy;

const PATHS: &str = "/healthz\n/readyz\n/metrics\n/v1/status\n/v1/enis\n/v1/pool\n/v1/plan\n/v1/settings\n/v1/policy\n/v1/policy/check\n/v1/policy/matrix\n/v1/policy/explain\n/v1/flows\n";

/// `/v1/pool`, as `venictl pool show --addresses -o json` prints it.
#[derive(Debug, Serialize)]
struct PoolView {
    pool: inspect::Pool,
    enis: Vec<inspect::Eni>,
    addresses: Vec<inspect::Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overrides: Option<inspect::Overrides>,
}

impl From<View> for PoolView {
    fn from(view: View) -> Self {
        let View { pool, enis, addresses, overrides, .. } = view;
        Self { pool, enis, addresses, overrides }
    }
}

const NOT_READY: &str =
    "an ADD would not be served at once: see problems in /v1/status, and /v1/plan\n";

/// How long an address that is taken is left alone: no longer than a probe may fail.
const RETRY: Duration = Duration::from_secs(1);

/// How long the owner may take until it counts as stuck: kubelet's own patience is 1 s by default.
const PATIENCE: Duration = Duration::from_millis(900);

#[derive(Debug, Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    commands: mpsc::Sender<Command>,
    enforcer: Option<Handle>,
}

/// What takes the routes of the daemon that serves: one for all of them, one for metrics by themselves.
#[derive(Debug)]
pub struct Listening {
    all: oneshot::Sender<Router>,
    metrics_only: oneshot::Sender<Router>,
}

/// Serves, at the addresses that there are, what a daemon that starts has to say.
#[must_use]
pub fn listen(config: &Config, metrics: &Arc<Metrics>, startup: &Startup) -> Listening {
    let (all, started) = oneshot::channel();
    if let Some(address) = &config.http_bind {
        let starting = starting(metrics.clone(), startup.clone());
        tokio::spawn(serve(address.clone(), starting, started));
    }
    let (metrics_only, started) = oneshot::channel();
    if let Some(address) = &config.metrics_bind {
        let starting = only_metrics(metrics.clone(), None);
        tokio::spawn(serve(address.clone(), starting, started));
    }
    Listening { all, metrics_only }
}

impl Listening {
    /// From now on the daemon serves.
    pub fn started(
        self,
        metrics: Arc<Metrics>,
        commands: mpsc::Sender<Command>,
        enforcer: Option<Handle>,
    ) {
        // Where an address is not served, nobody takes them.
        drop(self.metrics_only.send(only_metrics(metrics.clone(), enforcer.clone())));
        drop(self.all.send(router(metrics, commands, enforcer)));
    }
}

/// `/metrics`, which names no pod, for an address that others reach.
fn only_metrics(metrics: Arc<Metrics>, enforcer: Option<Handle>) -> Router {
    let text =
        move || async move { with_policy(policy::metrics(enforcer.as_ref()).await, &metrics) };
    Router::new().route("/metrics", get(text))
}

/// The routes: `/healthz`, `/readyz`, `/metrics`, `/v1/status`, `/v1/enis`, `/v1/pool`, `/v1/plan`, `/v1/settings`.
/// Beside them the enforcer's: `/v1/policy…`, `/v1/flows`.
pub fn router(
    metrics: Arc<Metrics>,
    commands: mpsc::Sender<Command>,
    enforcer: Option<Handle>,
) -> Router {
    Router::new()
        .route("/", get(|| async { PATHS }))
        .route("/v1", get(|| async { PATHS }))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .route("/v1/status", get(|state| view(state, false, |v| Json(v).into_response())))
        .route("/v1/enis", get(|state| view(state, false, |v| Json(v.enis).into_response())))
        .route(
            "/v1/pool",
            get(|state| view(state, true, |v| Json(PoolView::from(v)).into_response())),
        )
        .route("/v1/plan", get(|state| view(state, false, |v| Json(v.plan).into_response())))
        .route(
            "/v1/settings",
            get(|state| view(state, false, |v| Json(v.settings).into_response())),
        )
        .with_state(Shared { metrics, commands, enforcer: enforcer.clone() })
        .merge(policy::router(enforcer))
}

/// The routes of a daemon that starts: alive as long as it tries, and everything else says what it waits for.
pub fn starting(metrics: Arc<Metrics>, startup: Startup) -> Router {
    let text = move || async move { exposition(&metrics) };
    let (waiting, health) = (startup.clone(), startup);
    Router::new()
        .route("/healthz", get(|| async move { alive(&health) }))
        .route("/metrics", get(text))
        .fallback(|| async move { (StatusCode::SERVICE_UNAVAILABLE, format!("{waiting}\n")) })
}

/// Serves `starting` on `address` until `started` has the routes of a daemon that serves. Pods do not depend on it:
/// while the address is taken (by the daemon that this one replaces), it is tried again.
pub async fn serve(address: String, starting: Router, started: oneshot::Receiver<Router>) {
    let ended = match bind(&address).await {
        Ok(listener) => serve_on(listener, starting, started).await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::error!(%error, address, "metrics and health are not served any more");
    }
}

async fn bind(address: &str) -> io::Result<TcpListener> {
    let mut told = false;
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => return listener.into_std(),
            Err(error) if !told => {
                told = true;
                let next = "set INTROSPECTION_BIND_ADDRESS to a free one";
                tracing::warn!(%error, address, next, "metrics and health are not served yet");
            }
            Err(error) => tracing::debug!(%error, address, "still not free"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// One listening socket for both: between them no connection is refused.
async fn serve_on(
    listener: TcpListener,
    starting: Router,
    started: oneshot::Receiver<Router>,
) -> io::Result<()> {
    let first = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
    let (over, until) = oneshot::channel::<()>();
    // Ended gracefully: a connection that is kept alive would ask the wrong routes for ever.
    let serving = axum::serve(first, starting).with_graceful_shutdown(async { drop(until.await) });
    let serving = tokio::spawn(serving.into_future());
    let Ok(router) = started.await else { return Ok(()) };
    drop(over);
    let served = axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await;
    serving.abort();
    served
}

fn alive(startup: &Startup) -> Response {
    if startup.stuck() {
        (StatusCode::SERVICE_UNAVAILABLE, format!("no attempt for minutes: {startup}\n"))
            .into_response()
    } else {
        format!("ok; {startup}\n").into_response()
    }
}

/// Healthy is who answers: the owner is asked, so that a stuck one is seen.
async fn health(State(shared): State<Shared>) -> Response {
    match tokio::time::timeout(PATIENCE, inspect(&shared, false)).await {
        Ok(Some(_)) => "ok\n".into_response(),
        Ok(None) | Err(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the owner task does not answer\n").into_response()
        }
    }
}

async fn ready(State(shared): State<Shared>) -> Response {
    if shared.metrics.ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, NOT_READY).into_response()
    }
}

async fn metrics_text(State(shared): State<Shared>) -> Response {
    let policy = policy::metrics(shared.enforcer.as_ref()).await;
    with_policy(policy, &shared.metrics)
}

fn exposition(metrics: &Metrics) -> Response {
    with_policy(String::new(), metrics)
}

/// Policy's metrics have no end mark: they go first.
fn with_policy(policy: String, metrics: &Metrics) -> Response {
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([("content-type", format)], policy + &metrics.text()).into_response()
}

async fn view(
    State(shared): State<Shared>,
    addresses: bool,
    part: impl FnOnce(View) -> Response,
) -> Response {
    match inspect(&shared, addresses).await {
        Some(view) => part(view),
        None => (StatusCode::SERVICE_UNAVAILABLE, "ipamd is stopping\n").into_response(),
    }
}

async fn inspect(shared: &Shared, addresses: bool) -> Option<View> {
    Requests::new(shared.commands.clone()).view(addresses).await
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    async fn ask(stream: &mut TcpStream, path: &str, last: bool) -> String {
        let connection = if last { "close" } else { "keep-alive" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        if last {
            stream.read_to_end(&mut answer).await.unwrap();
        } else {
            answer.resize(4096, 0);
            let length = stream.read(&mut answer).await.unwrap();
            answer.truncate(length);
        }
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn metrics_by_themselves_come_with_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (routes, started) = oneshot::channel();
        let starting = only_metrics(Arc::new(Metrics::new()), None);
        let serving = tokio::spawn(serve_on(listener, starting, started));
        let status = async |path| {
            let answer = ask(&mut TcpStream::connect(address).await.unwrap(), path, true).await;
            answer.split(' ').nth(1).map(str::to_owned)
        };
        assert_eq!(status("/metrics").await.as_deref(), Some("200"));
        routes.send(only_metrics(Arc::new(Metrics::new()), None)).unwrap();
        for path in PATHS.lines().chain(["/", "/v1"]) {
            let expected = if path == "/metrics" { "200" } else { "404" };
            assert_eq!(status(path).await.as_deref(), Some(expected), "{path}");
        }
        serving.abort();
    }

    #[tokio::test]
    async fn a_daemon_that_starts_is_alive_not_ready_and_says_what_it_waits_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let startup = Startup::default();
        startup.waits_for("the test", "none");
        let (routes, started) = oneshot::channel();
        let starting = starting(Arc::new(Metrics::new()), startup);
        let serving = tokio::spawn(serve_on(listener, starting, started));
        for (path, status, words) in [
            ("/healthz", "200", "ok; starting: waits for the test"),
            ("/readyz", "503", "\r\nstarting: waits for the test"),
            ("/v1/status", "503", "starting: waits for the test"),
            ("/v1/policy", "503", "starting: waits for the test"),
            ("/metrics", "200", "veni_ready 0"),
        ] {
            let answer = ask(&mut TcpStream::connect(address).await.unwrap(), path, true).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
            assert!(answer.contains(words), "{path}: {answer}");
        }
        let mut kept = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut kept, "/readyz", false).await.contains("starting"));
        let (commands, _owner) = mpsc::channel(1);
        routes.send(router(Arc::new(Metrics::new()), commands, None)).unwrap();
        // The connection that was kept alive ends, so that its next question is to the daemon that serves.
        assert_eq!(kept.read(&mut [0; 64]).await.unwrap(), 0);
        let answer = ask(&mut TcpStream::connect(address).await.unwrap(), "/readyz", true).await;
        assert!(answer.contains("would not be served at once"), "{answer}");
        serving.abort();
    }
}
