//! `/healthz`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// The routes. A replica that does not lead is ready: it waits, and that is its work.
pub fn router(metrics: Arc<Metrics>) -> Router {
    let text = metrics.clone();
    let ready = metrics.clone();
    Router::new()
        .route("/healthz", get(|| async move { health(&metrics) }))
        .route(
            "/readyz",
            get(|| async move { if ready.is_leader() { "ok: leads\n" } else { "ok: waits\n" } }),
        )
        .route("/metrics", get(|| async move { text.text() }))
}

fn health(metrics: &Metrics) -> (StatusCode, &'static str) {
    if metrics.is_alive() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the Lease was not asked for in two minutes\n")
    }
}

/// Serves them on `address`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: &str, metrics: Arc<Metrics>) -> std::io::Result<()> {
    axum::serve(TcpListener::bind(address).await?, router(metrics)).await
}
