//! Health, readiness, metrics and introspection over HTTP, on loopback unless told otherwise.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tokio::sync::mpsc;
use veni_core::wire::inspect::{self, View};

use crate::{enforcer::Handle, metrics::Metrics, owner::Command, requests::Requests};

mod policy;

const PATHS: &str = "/healthz\n/readyz\n/metrics\n/v1/status\n/v1/enis\n/v1/pool\n/v1/plan\n/v1/settings\n/v1/policy\n/v1/policy/check\n/v1/policy/matrix\n/v1/policy/explain\n/v1/flows\n";

/// `/v1/pool`, as `venictl pool show --addresses -o json` prints it.
#[derive(Debug, Serialize)]
struct PoolView {
    pool: inspect::Pool,
    enis: Vec<inspect::Eni>,
    addresses: Vec<inspect::Address>,
}

impl From<View> for PoolView {
    fn from(view: View) -> Self {
        Self { pool: view.pool, enis: view.enis, addresses: view.addresses }
    }
}

/// How long an address that is taken is left alone.
const RETRY: Duration = Duration::from_secs(10);

/// How long the owner may take until it counts as stuck: kubelet's own patience is 1 s by default.
const PATIENCE: Duration = Duration::from_millis(900);

#[derive(Debug, Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    commands: mpsc::Sender<Command>,
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
        .with_state(Shared { metrics, commands })
        .merge(policy::router(enforcer))
}

/// Serves `router` on `address`. Pods do not depend on it: while the address is taken (by the daemon that this one
/// replaces), it is tried again.
pub async fn serve(address: String, router: Router) {
    let listener = loop {
        match tokio::net::TcpListener::bind(&address).await {
            Ok(listener) => break listener,
            Err(error) => {
                let next = "set INTROSPECTION_BIND_ADDRESS to a free one";
                tracing::warn!(%error, address, next, "metrics and health are not served yet");
            }
        }
        tokio::time::sleep(RETRY).await;
    };
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, address, "metrics and health are not served any more");
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
        (StatusCode::SERVICE_UNAVAILABLE, "the pool is empty: see /v1/plan\n").into_response()
    }
}

async fn metrics_text(State(shared): State<Shared>) -> Response {
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([("content-type", format)], shared.metrics.text()).into_response()
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
