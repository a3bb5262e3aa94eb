//! Questions to ipamd's introspection endpoint.

use std::{fmt::Write as _, io, time::Duration};

use anyhow::{Context, anyhow, bail};
use serde::de::DeserializeOwned;
use ureq::{Agent, Body, http::Response};

use crate::Usage;

/// To connect, and until the first byte of the answer: a matrix of a large cluster takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest document: the matrix of some thousand pods.
const MAX_DOCUMENT_BYTES: u64 = 1 << 30;
/// The longest reason of a refusal that is worth reading.
const MAX_REASON_BYTES: u64 = 4096;

/// Asks for one JSON document.
///
/// # Errors
/// When it cannot be reached or read; a [`Usage`] when it does not know what is asked for.
pub(crate) fn document<T: DeserializeOwned>(
    address: &str,
    path: &str,
    parameters: &[(&str, String)],
) -> anyhow::Result<T> {
    let response = get(address, path, parameters)?;
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
    let response = get(address, path, parameters)?;
    Ok(io::BufReader::new(response.into_body().into_with_config().limit(u64::MAX).reader()))
}

fn get(address: &str, path: &str, parameters: &[(&str, String)]) -> anyhow::Result<Response<Body>> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        // The daemon is on this node, whatever HTTP_PROXY says.
        .proxy(None)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE));
    let agent: Agent = config.build().into();
    let mut request = agent.get(format!("http://{address}{path}"));
    for (name, value) in parameters {
        request = request.query(name, value);
    }
    let response = request.call().map_err(|error| {
        anyhow!(
            "cannot ask ipamd at http://{address}: {error}; it does not run on this node, or listens elsewhere \
             (--introspection, INTROSPECTION_BIND_ADDRESS)"
        )
    })?;
    refused(address, path, response)
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
        _ => {
            let mut sentence = format!("ipamd at http://{address} refused {path} ({status})");
            if !reason.is_empty() {
                write!(sentence, ": {reason}")?;
            }
            bail!(sentence)
        }
    }
}
