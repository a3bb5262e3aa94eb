//! An API server's double: lists, watches and streamed lists over HTTP/1.1, with faults.

#![expect(clippy::unwrap_used, reason = "what cannot be so ends the test")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use veni_watch::Resource;

const ALL: [Resource; 12] = [
    Resource::Namespaces,
    Resource::Pods,
    Resource::Services,
    Resource::EndpointSlices,
    Resource::NetworkPolicies,
    Resource::ClusterNetworkPolicies,
    Resource::SecurityGroupPolicies,
    Resource::OwnNode,
    Resource::OtherNodes,
    Resource::EniConfigs,
    Resource::NodeNetworkConfigs,
    Resource::ServiceCidrs,
];
/// Objects of a page, whatever is asked for.
const PAGE: usize = 2;

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// Every request is answered with this.
    Status(u16),
    /// Streamed lists are.
    NoStreaming(u16),
    /// A streamed list breaks off after so many objects.
    CutAfter(usize),
    /// Writes are answered with this.
    Writes(u16),
    /// Lists are as of version 0.
    Old,
    /// Requests are taken, and not answered.
    Silent,
    /// 429, with `Retry-After: 1`.
    Busy,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Resource, BTreeMap<String, Value>>,
    /// Every event, with its version.
    log: Vec<(u64, Resource, &'static str, Value)>,
    faults: BTreeMap<Option<Resource>, Fault>,
    away: bool,
    /// Watches do not tell of it.
    held: Vec<Resource>,
    /// Versions before this are too old: told at once, or as an event.
    expired: Option<(u64, bool)>,
    absent: BTreeMap<Resource, Vec<String>>,
    requests: BTreeMap<Resource, usize>,
    lists: BTreeMap<Resource, usize>,
    /// Questions for one object by its name.
    named: BTreeMap<Resource, usize>,
    /// Lists of what is about one namespace.
    parts: BTreeMap<Resource, usize>,
    cuts: u64,
    /// What was written: method and content type, path and query, body.
    written: Vec<Write>,
}

/// A write.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) content: String,
    pub(crate) target: String,
    pub(crate) body: Value,
}

/// It.
#[derive(Clone)]
pub(crate) struct Double {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    port: u16,
}

pub(crate) fn pod(name: &str, uid: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "uid": uid, "labels": {"app": app}},
        "spec": {"nodeName": "node-a", "containers": []},
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    })
}

impl Double {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let double = Self { state: Arc::default(), changed: watch::Sender::new(0), port };
        let served = double.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(served.clone().connection(stream));
            }
        });
        double
    }

    pub(crate) fn url(&self) -> http::Uri {
        format!("http://127.0.0.1:{}", self.port).parse().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock().unwrap());
        self.changed.send_modify(|count| *count += 1);
        changed
    }

    pub(crate) fn put(&self, resource: Resource, mut object: Value) {
        self.change(|state| {
            state.version += 1;
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            let kind = match state
                .objects
                .entry(resource)
                .or_default()
                .insert(name(&object), object.clone())
            {
                Some(_) => "MODIFIED",
                None => "ADDED",
            };
            state.log.push((state.version, resource, kind, object));
        });
    }

    pub(crate) fn delete(&self, resource: Resource, name: &str) {
        self.change(|state| {
            state.version += 1;
            let mut object = state.objects.entry(resource).or_default().remove(name).unwrap();
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            state.log.push((state.version, resource, "DELETED", object));
        });
    }

    /// `None` is every resource.
    pub(crate) fn fault(&self, resource: Option<Resource>, fault: Fault) {
        self.change(|state| state.faults.insert(resource, fault));
    }

    pub(crate) fn mend(&self, resource: Option<Resource>) {
        self.change(|state| match resource {
            Some(_) => drop(state.faults.remove(&resource)),
            None => state.faults.clear(),
        });
    }

    /// Cuts every connection, once.
    pub(crate) fn cut(&self) {
        self.change(|state| state.cuts += 1);
    }

    pub(crate) fn away(&self, away: bool) {
        self.change(|state| {
            state.away = away;
            state.cuts += 1;
        });
    }

    pub(crate) fn hold(&self, resource: Resource, hold: bool) {
        self.change(|state| {
            state.held.retain(|held| *held != resource);
            state.held.extend(hold.then_some(resource));
        });
    }

    /// All versions up to now are too old.
    pub(crate) fn expire(&self, at_once: bool) {
        self.change(|state| state.expired = Some((state.version, at_once)));
    }

    pub(crate) fn uninstall(&self, resource: Resource, other_versions: &[&str]) {
        let versions = other_versions.iter().map(|version| (*version).to_owned()).collect();
        self.change(|state| state.absent.insert(resource, versions));
    }

    pub(crate) fn install(&self, resource: Resource) {
        self.change(|state| state.absent.remove(&resource));
    }

    pub(crate) fn requests(&self, resource: Resource) -> usize {
        self.state.lock().unwrap().requests.get(&resource).copied().unwrap_or_default()
    }

    pub(crate) fn lists(&self, resource: Resource) -> usize {
        self.state.lock().unwrap().lists.get(&resource).copied().unwrap_or_default()
    }

    pub(crate) fn named(&self, resource: Resource) -> usize {
        self.state.lock().unwrap().named.get(&resource).copied().unwrap_or_default()
    }

    pub(crate) fn parts(&self, resource: Resource) -> usize {
        self.state.lock().unwrap().parts.get(&resource).copied().unwrap_or_default()
    }

    /// Waits until so many requests were made.
    pub(crate) async fn requested(&self, resource: Resource, count: usize) {
        let mut changed = self.changed.subscribe();
        let wait = changed.wait_for(|_| self.requests(resource) >= count);
        drop(timeout(Duration::from_secs(20), wait).await.expect("requests within 20 s").unwrap());
    }

    /// Serves requests until it is cut.
    async fn connection(self, mut stream: TcpStream) {
        let mut changed = self.changed.subscribe();
        let cuts = self.state.lock().unwrap().cuts;
        let cut = async {
            let is_cut = |state: &State| state.away || state.cuts != cuts;
            let wait = changed.wait_for(|_| is_cut(&self.state.lock().unwrap())).await;
            drop(wait);
        };
        tokio::select! {
            () = cut => {}
            _ = self.serve(&mut stream) => {}
        }
    }

    async fn serve(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        loop {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let text = String::from_utf8_lossy(&head).into_owned();
            head.clear();
            let target = text.split(' ').nth(1).unwrap_or_default().to_owned();
            if !text.starts_with("GET ") {
                self.written(stream, &text, target).await?;
                continue;
            }
            let (path, query) = target.split_once('?').unwrap_or((target.as_str(), ""));
            if let Some((status, answer)) = self.short(path) {
                respond(stream, status, &answer).await?;
                continue;
            }
            if let Some((resource, namespace)) = part(path, query) {
                self.change(|state| *state.parts.entry(resource).or_default() += 1);
                self.answer(stream, resource, query, Some(&namespace)).await?;
                continue;
            }
            let Some(resource) = ALL.into_iter().find(|of| is_of(*of, path, query)) else {
                respond(stream, 404, "404 page not found").await?;
                continue;
            };
            self.change(|state| *state.requests.entry(resource).or_default() += 1);
            self.answer(stream, resource, query, None).await?;
        }
    }

    /// Takes a write in, as far as tests look at it.
    async fn written(
        &self,
        stream: &mut TcpStream,
        head: &str,
        target: String,
    ) -> std::io::Result<()> {
        let field = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name))?;
            line.split_once(": ").map(|(_, value)| value.to_owned())
        };
        let length = field("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let body: Value = serde_json::from_slice(&body).unwrap();
        let method = head.split(' ').next().unwrap_or_default();
        let content = format!("{method} {}", field("content-type").unwrap_or_default());
        let refused = match self.state.lock().unwrap().faults.get(&None) {
            Some(Fault::Writes(status)) => Some(*status),
            _ => None,
        };
        let write = Write { content, target, body };
        self.change(|state| {
            if refused.is_none() {
                state.apply(&write);
            }
            state.written.push(write);
        });
        match refused {
            Some(status) => respond(stream, status, &refusal(status)).await,
            None => respond(stream, 200, "{}").await,
        }
    }

    /// What was written so far.
    pub(crate) fn writes(&self) -> Vec<Write> {
        self.state.lock().unwrap().written.clone()
    }

    /// Waits until this holds.
    pub(crate) async fn until(&self, holds: impl Fn() -> bool, otherwise: impl Fn() -> String) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(Duration::from_secs(20), wait).await.is_ok(), "{}", otherwise());
    }

    /// Waits until something was written, and what.
    pub(crate) async fn wrote(&self, is_it: impl Fn(&Write) -> bool) -> Write {
        let mut changed = self.changed.subscribe();
        let find = || self.writes().into_iter().find(|write| is_it(write));
        let wait = changed.wait_for(|_| find().is_some());
        drop(timeout(Duration::from_secs(20), wait).await.expect("a write within 20 s").unwrap());
        find().unwrap()
    }

    pub(crate) fn object(&self, resource: Resource, name: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(&resource)?.get(name).cloned()
    }

    /// Discovery, and objects by name.
    fn short(&self, path: &str) -> Option<(u16, String)> {
        let mut state = self.state.lock().unwrap();
        if let Some(Fault::Status(404)) = state.faults.get(&None) {
            return Some((404, "404 page not found".to_owned()));
        }
        if path == "/apis" {
            let mut groups: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
            for resource in ALL.into_iter().filter(|of| !of.group().is_empty()) {
                let versions = match state.absent.get(&resource) {
                    Some(others) => others.clone(),
                    None => vec![resource.api_version()],
                };
                let versions = versions.into_iter().map(|version| json!({"groupVersion": version}));
                groups.entry(resource.group()).or_default().extend(versions);
            }
            let groups: Vec<Value> = groups
                .into_iter()
                .filter(|(_, versions)| !versions.is_empty())
                .map(|(name, versions)| json!({"name": name, "versions": versions}))
                .collect();
            return Some((200, json!({"kind": "APIGroupList", "groups": groups}).to_string()));
        }
        let version = path.strip_prefix("/apis/").filter(|rest| rest.matches('/').count() == 1);
        if let Some(version) = version {
            let here = ALL.into_iter().filter(|of| match state.absent.get(of) {
                Some(others) => others.iter().any(|other| other == version),
                None => of.api_version() == version,
            });
            let resources: Vec<Value> = here.map(|of| json!({"name": of.plural()})).collect();
            return Some((200, json!({"resources": resources}).to_string()));
        }
        for of in [Resource::OwnNode, Resource::NodeNetworkConfigs] {
            if let Some(name) = path.strip_prefix(&format!("{}/", of.path())) {
                *state.named.entry(of).or_default() += 1;
                let kinds = [of, Resource::OtherNodes];
                let mut found = kinds.iter().filter(|kind| kind.path() == of.path());
                let found = found.find_map(|kind| state.objects.get(kind)?.get(name));
                return Some(found.map_or((404, refusal(404)), |object| (200, object.to_string())));
            }
        }
        let by_name = path.strip_prefix("/api/v1/namespaces/")?;
        let (namespace, pod) = by_name.split_once("/pods/")?;
        let pods = state.objects.get(&Resource::Pods);
        let found = pods.and_then(|pods| pods.get(&format!("{namespace}/{pod}")));
        Some(found.map_or((404, String::new()), |pod| (200, pod.to_string())))
    }

    async fn answer(
        &self,
        stream: &mut TcpStream,
        resource: Resource,
        query: &str,
        namespace: Option<&str>,
    ) -> std::io::Result<()> {
        let fault = {
            let state = self.state.lock().unwrap();
            state.faults.get(&Some(resource)).or_else(|| state.faults.get(&None)).copied()
        };
        let streamed = query.contains("sendInitialEvents");
        if self.state.lock().unwrap().absent.contains_key(&resource) {
            return respond(stream, 404, "404 page not found").await;
        }
        match fault {
            Some(Fault::Status(status)) => return respond(stream, status, &refusal(status)).await,
            Some(Fault::NoStreaming(status)) if streamed => {
                return respond(stream, status, &refusal(status)).await;
            }
            Some(Fault::Silent) => return std::future::pending().await,
            Some(Fault::Busy) => {
                let head =
                    "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
                return stream.write_all(head.as_bytes()).await;
            }
            _ => {}
        }
        if !query.contains("watch=1") {
            return self.list(stream, resource, query, namespace).await;
        }
        let cut_after = match fault {
            Some(Fault::CutAfter(count)) => Some(count),
            _ => None,
        };
        self.watch(stream, resource, query, streamed, cut_after).await
    }

    async fn list(
        &self,
        stream: &mut TcpStream,
        resource: Resource,
        query: &str,
        namespace: Option<&str>,
    ) -> std::io::Result<()> {
        let from: usize =
            parameter(query, "continue").and_then(|token| token.parse().ok()).unwrap_or(0);
        let answer = {
            let mut state = self.state.lock().unwrap();
            if from == 0 && namespace.is_none() {
                *state.lists.entry(resource).or_default() += 1;
            }
            let all: Vec<Value> = state
                .objects
                .get(&resource)
                .into_iter()
                .flat_map(|all| all.values().cloned())
                .filter(|object| namespace.is_none_or(|namespace| is_about(object, namespace)))
                .collect();
            let strip = |mut object: Value| {
                // As the API server's: its items do not say what they are.
                let fields = object.as_object_mut().unwrap();
                fields.remove("kind");
                fields.remove("apiVersion");
                object
            };
            let items: Vec<Value> = all.iter().skip(from).take(PAGE).cloned().map(strip).collect();
            let more = from + items.len() < all.len();
            let next = if more { (from + PAGE).to_string() } else { String::new() };
            let is_old = matches!(state.faults.get(&Some(resource)), Some(Fault::Old));
            let version = if is_old { 0 } else { state.version };
            json!({"metadata": {"resourceVersion": version.to_string(), "continue": next}, "items": items})
        };
        respond(stream, 200, &answer.to_string()).await
    }

    async fn watch(
        &self,
        stream: &mut TcpStream,
        resource: Resource,
        query: &str,
        streamed: bool,
        cut_after: Option<usize>,
    ) -> std::io::Result<()> {
        let mut at: u64 =
            parameter(query, "resourceVersion").and_then(|at| at.parse().ok()).unwrap_or(0);
        let expired =
            self.state.lock().unwrap().expired.filter(|(version, _)| at != 0 && at <= *version);
        if let Some((_, true)) = expired {
            return respond(stream, 410, &refusal(410)).await;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
        if expired.is_some() {
            let status: Value = serde_json::from_str(&refusal(410)).unwrap();
            line(stream, &json!({"type": "ERROR", "object": status})).await?;
            return std::future::pending().await;
        }
        let mut changed = self.changed.subscribe();
        if streamed {
            let (objects, version) = {
                let mut state = self.state.lock().unwrap();
                *state.lists.entry(resource).or_default() += 1;
                let all = state.objects.get(&resource).cloned().unwrap_or_default();
                (all.into_values().collect::<Vec<_>>(), state.version)
            };
            for (index, object) in objects.iter().enumerate() {
                if cut_after == Some(index) {
                    return Err(std::io::ErrorKind::ConnectionAborted.into());
                }
                line(stream, &json!({"type": "ADDED", "object": object})).await?;
            }
            let end = json!({"annotations": {"k8s.io/initial-events-end": "true"}, "resourceVersion": version.to_string()});
            line(stream, &json!({"type": "BOOKMARK", "object": {"metadata": end}})).await?;
            at = version;
        }
        loop {
            let events: Vec<_> = {
                let state = self.state.lock().unwrap();
                let held = state.held.contains(&resource);
                let news =
                    state.log.iter().filter(|(version, of, ..)| *version > at && *of == resource);
                news.filter(|_| !held).cloned().collect()
            };
            for (version, _, kind, object) in events {
                line(stream, &json!({"type": kind, "object": object})).await?;
                at = version;
            }
            if changed.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

impl State {
    /// Server-side apply of a NodeNetworkConfig's status, whose entries are their managers' own.
    fn apply(&mut self, write: &Write) {
        let of_configs =
            write.target.strip_prefix(&format!("{}/", Resource::NodeNetworkConfigs.path()));
        let Some((name, query)) = of_configs.and_then(|rest| rest.split_once("/status?")) else {
            return;
        };
        let manager = parameter(query, "fieldManager").unwrap().trim_start_matches("veni-ipamd.");
        self.version += 1;
        let version = self.version;
        let objects = self.objects.entry(Resource::NodeNetworkConfigs).or_default();
        let object = objects.get_mut(name).unwrap();
        let entries = object["status"]["nodes"].as_array().cloned().unwrap_or_default();
        let mut entries: Vec<_> =
            entries.into_iter().filter(|entry| entry["name"] != manager).collect();
        entries.extend(write.body["status"]["nodes"].as_array().cloned().unwrap_or_default());
        object["status"]["nodes"] = entries.into();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let object = object.clone();
        self.log.push((version, Resource::NodeNetworkConfigs, "MODIFIED", object));
    }
}

/// A question about what of a resource is about one namespace.
fn part(path: &str, query: &str) -> Option<(Resource, String)> {
    if path == Resource::Namespaces.path() {
        let name = parameter(query, "fieldSelector")?.strip_prefix("metadata.name%3D")?;
        return Some((Resource::Namespaces, name.to_owned()));
    }
    let (version, rest) = path.split_once("/namespaces/")?;
    let (namespace, plural) = rest.split_once('/')?;
    let resource = ALL.into_iter().find(|of| of.path() == format!("{version}/{plural}"))?;
    Some((resource, namespace.to_owned()))
}

fn is_about(object: &Value, namespace: &str) -> bool {
    name(object).split('/').next() == Some(namespace)
}

fn is_of(resource: Resource, path: &str, query: &str) -> bool {
    let selected = match resource {
        Resource::OwnNode => query.contains("metadata.name%3Dnode-a"),
        Resource::OtherNodes => query.contains("metadata.name%21%3Dnode-a"),
        _ => true,
    };
    resource.path() == path && selected
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn name(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    match (text("namespace"), text("name")) {
        (namespace, name) if namespace.is_empty() => name,
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

fn refusal(status: u16) -> String {
    json!({"kind": "Status", "status": "Failure", "message": "the double says no", "code": status})
        .to_string()
}

async fn respond(stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await
}

async fn line(stream: &mut TcpStream, event: &Value) -> std::io::Result<()> {
    let text = format!("{event}\n");
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
}
