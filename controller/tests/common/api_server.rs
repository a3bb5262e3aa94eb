//! An API server's double that keeps objects: get, create, replace with the check of versions, delete; with faults.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused with this status, and nothing has happened.
    Refused(u16),
    /// It happens, and the answer is this status: lost.
    AnswerLost,
}

#[derive(Debug, Default)]
struct Inner {
    version: u64,
    objects: BTreeMap<String, Value>,
    /// What strikes the next writes.
    faults: VecDeque<Fault>,
    /// Everything is refused with this.
    away: Option<u16>,
    requests: Vec<(Method, String)>,
    /// Watches from a version before this are too old.
    expired: u64,
    /// Watches that were answered with a failure.
    refused: usize,
    /// Every change: version, path, type, object.
    log: Vec<(u64, String, &'static str, Value)>,
}

/// Collections: what is asked for under these names is a list.
const COLLECTIONS: [&str; 4] =
    ["/leases", "/pods", "/resolvedsecuritygroups", "/securitygrouppolicies"];
/// How long a watch without news is kept.
const WATCH: Duration = Duration::from_millis(500);

/// It.
#[derive(Debug, Clone, Default)]
pub(crate) struct ApiServer {
    inner: Arc<Mutex<Inner>>,
    port: u16,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self { inner: Arc::default(), port };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub(crate) fn client(&self) -> Client {
        let url = format!("http://127.0.0.1:{}", self.port).parse().unwrap();
        Client::try_from(Config::new(url)).unwrap()
    }

    /// The object at a path.
    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.inner.lock().unwrap().objects.get(path).cloned()
    }

    /// All objects under a path.
    pub(crate) fn objects(&self, under: &str) -> Vec<Value> {
        let inner = self.inner.lock().unwrap();
        inner
            .objects
            .iter()
            .filter(|(path, _)| path.starts_with(under))
            .map(|(_, it)| it.clone())
            .collect()
    }

    /// As somebody else writes it.
    pub(crate) fn put(&self, path: &str, mut object: Value) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        object["metadata"]["resourceVersion"] = inner.version.to_string().into();
        let event = (inner.version, path.to_owned(), "ADDED", object.clone());
        inner.log.push(event);
        inner.objects.insert(path.to_owned(), object);
    }

    pub(crate) fn remove(&self, path: &str) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        let mut object = inner.objects.remove(path).unwrap();
        object["metadata"]["resourceVersion"] = inner.version.to_string().into();
        let event = (inner.version, path.to_owned(), "DELETED", object);
        inner.log.push(event);
    }

    pub(crate) fn fault(&self, faults: &[Fault]) {
        self.inner.lock().unwrap().faults.extend(faults);
    }

    pub(crate) fn away(&self, status: Option<u16>) {
        self.inner.lock().unwrap().away = status;
    }

    /// Every version up to now is too old to go on from.
    pub(crate) fn expire(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        inner.expired = inner.version;
    }

    /// How many watches were answered with a failure.
    pub(crate) fn refused(&self) -> usize {
        self.inner.lock().unwrap().refused
    }

    /// Everything that was asked for.
    pub(crate) fn requests(&self) -> Vec<(Method, String)> {
        self.inner.lock().unwrap().requests.clone()
    }
}

async fn answer(
    State(server): State<ApiServer>,
    method: Method,
    uri: Uri,
    body: axum::body::Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let is_list = COLLECTIONS.iter().any(|name| path.ends_with(name));
    let query = uri.query().unwrap_or_default();
    if method == Method::GET && is_list && query.contains("watch=true") {
        return watch(&server, &path, query).await;
    }
    let mut inner = server.inner.lock().unwrap();
    if let Some(status) = inner.away {
        return refusal(status);
    }
    inner.requests.push((method.clone(), path.clone()));
    if method == Method::GET && is_list {
        let under = format!("{path}/");
        let all = inner.objects.iter().filter(|(path, _)| path.starts_with(&under));
        let items: Vec<_> = all.map(|(_, object)| object.clone()).collect();
        let metadata = json!({"resourceVersion": inner.version.to_string()});
        return Json(
            json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}),
        )
        .into_response();
    }
    if method == Method::GET {
        return match inner.objects.get(&path) {
            Some(object) => Json(object.clone()).into_response(),
            None => refusal(404),
        };
    }
    let fault = inner.faults.pop_front();
    if let Some(Fault::Refused(status)) = fault {
        return refusal(status);
    }
    let written = inner.write(&method, path, &body);
    match (written, fault) {
        (Ok(_), Some(Fault::AnswerLost)) => refusal(504),
        (Ok(object), _) => Json(object).into_response(),
        (Err(status), _) => refusal(status),
    }
}

/// What has changed since a version; it ends after a while.
async fn watch(server: &ApiServer, path: &str, query: &str) -> Response {
    let at = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
    let at: u64 = at.and_then(|at| at.parse().ok()).unwrap_or_default();
    let under = format!("{path}/");
    for _ in 0..10 {
        let news: Vec<String> = {
            let mut inner = server.inner.lock().unwrap();
            let old = (at < inner.expired).then_some(410);
            if let Some(status) = inner.away.or(old) {
                inner.refused += 1;
                return refusal(status);
            }
            let since = inner
                .log
                .iter()
                .filter(|(version, of, ..)| *version > at && of.starts_with(&under));
            since
                .map(|(_, _, kind, object)| {
                    format!("{}\n", json!({"type": kind, "object": object}))
                })
                .collect()
        };
        if !news.is_empty() {
            return news.concat().into_response();
        }
        tokio::time::sleep(WATCH / 10).await;
    }
    String::new().into_response()
}

impl Inner {
    fn write(&mut self, method: &Method, path: String, body: &[u8]) -> Result<Value, u16> {
        if method == Method::DELETE {
            return self.objects.remove(&path).ok_or(404);
        }
        let mut object: Value = serde_json::from_slice(body).map_err(|_| 400_u16)?;
        let text = |object: &Value, pointer: &str| {
            object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let path = if method == Method::POST {
            let path = format!("{path}/{}", text(&object, "/metadata/name"));
            if self.objects.contains_key(&path) {
                return Err(409);
            }
            path
        } else {
            let present = self.objects.get(&path).ok_or(404_u16)?;
            let (asked, is) =
                [&object, present].map(|it| text(it, "/metadata/resourceVersion")).into();
            if !asked.is_empty() && asked != is {
                return Err(409);
            }
            path
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path, object.clone());
        Ok(object)
    }
}

fn refusal(status: u16) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "the double says no", "reason": if status == 404 { "NotFound" } else { "" }, "code": status,
    });
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}
