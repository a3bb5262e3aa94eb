//! What this node tells the API server: events, how its network stands, and which settings it follows.
//!
//! Invariants: nothing here is waited for by anyone; what is told and cannot be written is dropped and counted (events), or
//! replaced by what is so by then ([`Standing`], annotations). With the API server gone nothing grows. Writes go over the watches'
//! connection, from their thread. Deliberately absent: deciding what is worth telling (the daemon's), and any write that
//! somebody else's field could be lost by: each is of one field, or of an entry of a list with this node's key.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use self::annotate::Addresses;
use crate::{
    Configuration, Settings,
    api::{Api, Failure},
};

mod annotate;
mod events;
mod node;
mod settings;

/// What may wait to be written; what comes then is dropped.
const WAITING: usize = 256;

/// What is written, for the chart's role: API group, resource, verb.
pub const WRITTEN: &[(&str, &str, &str)] = &[
    ("events.k8s.io", "events", "create"),
    ("events.k8s.io", "events", "patch"),
    ("veni.dev", "nodenetworkconfigs/status", "patch"),
    ("", "nodes/status", "patch"),
    // With `VENI_STARTUP_TAINT`.
    ("", "nodes", "patch"),
    // With `ANNOTATE_POD_IP`.
    ("", "pods/status", "patch"),
];

/// Tells the API server.
#[derive(Debug, Clone)]
pub struct Reports {
    news: mpsc::Sender<Happening>,
    addresses: Arc<watch::Sender<Addresses>>,
    standing: Arc<watch::Sender<Standing>>,
    counters: Arc<ReportCounters>,
}

/// What became of what was told.
#[derive(Debug, Default)]
pub struct ReportCounters {
    /// Writes that the API server has taken.
    pub written: AtomicU64,
    /// Events that came while too many waited.
    pub dropped: AtomicU64,
    /// Events that came too often, and were counted with others or not at all.
    pub limited: AtomicU64,
    /// Writes that it has not taken.
    pub failed: AtomicU64,
}

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// To whom.
    pub about: About,
    /// Whether somebody should look; otherwise it is good news.
    pub warning: bool,
    /// A stable word, e.g. `NoPodAddress`.
    pub reason: &'static str,
    /// What was being done, e.g. `AssignAddress`.
    pub action: &'static str,
    /// For people. What is said again within minutes, whatever the numbers in it, is one event that counts.
    pub note: String,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum About {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its UID, where that is known.
        uid: Option<String>,
    },
    /// This node.
    Node,
}

/// How this node stands: what the API server is to show until told otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// The NodeNetworkConfig that is in force; `None` as long as nobody knows.
    pub following: Option<Option<Followed>>,
    /// Whether pods can be wired; `None` as long as nobody knows.
    pub network: Option<Network>,
    /// The taint that keeps pods away until the first address is there: removed once `able`.
    pub startup_taint: Option<String>,
    /// The first address is there.
    pub able: bool,
}

/// A NodeNetworkConfig that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// Its name.
    pub name: String,
    /// Its generation that is.
    pub generation: i64,
    /// Why it is not the present one.
    pub message: Option<String>,
}

/// Whether pods can be wired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Whether.
    pub available: bool,
    /// A stable word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The ends that the writers hold.
pub(crate) struct Told {
    news: mpsc::Receiver<Happening>,
    addresses: Arc<watch::Sender<Addresses>>,
    standing: watch::Receiver<Standing>,
    counters: Arc<ReportCounters>,
}

/// What every writer needs.
#[derive(Clone)]
struct Desk {
    api: Api,
    node: Arc<str>,
    settings: Settings,
    counters: Arc<ReportCounters>,
}

// === impl Reports ===

impl Reports {
    pub(crate) fn new() -> (Self, Told) {
        let (news, taken) = mpsc::channel(WAITING);
        let (standing, stands) = watch::channel(Standing::default());
        let counters = Arc::<ReportCounters>::default();
        let addresses = Arc::new(watch::Sender::new(Addresses::new()));
        let told = Told {
            news: taken,
            addresses: addresses.clone(),
            standing: stands,
            counters: counters.clone(),
        };
        (Self { news, addresses, standing: Arc::new(standing), counters }, told)
    }

    /// Tells of it, if there is room.
    pub fn happened(&self, happening: Happening) {
        self.count_dropped(self.news.try_send(happening).is_ok());
    }

    /// Annotates the pod with its addresses, as soon as the API server takes it.
    pub fn annotate(&self, pod: About, addresses: String) {
        self.count_dropped(annotate::tell(&self.addresses, pod, addresses));
    }

    fn count_dropped(&self, is_told: bool) {
        self.counters.dropped.fetch_add(u64::from(!is_told), Relaxed);
    }

    /// Changes how the node stands.
    pub fn stand(&self, change: impl FnOnce(&mut Standing)) {
        self.standing.send_if_modified(|standing| {
            let before = standing.clone();
            change(standing);
            *standing != before
        });
    }

    /// What became of what was told.
    #[must_use]
    pub fn counters(&self) -> &ReportCounters {
        &self.counters
    }
}

/// Starts the writers. They end with the daemon.
pub(crate) fn start(
    api: Api,
    node: Arc<str>,
    settings: Settings,
    told: Told,
    configuration: watch::Receiver<Arc<Configuration>>,
) {
    let Told { news, addresses, standing, counters } = told;
    let desk = Desk { api, node, settings, counters };
    tokio::spawn(events::write(desk.clone(), news));
    tokio::spawn(annotate::write(desk.clone(), addresses));
    tokio::spawn(node::write(desk.clone(), standing.clone(), configuration.clone()));
    tokio::spawn(settings::write(desk, standing, configuration));
}

// === impl Desk ===

impl Desk {
    /// Counts what came of a write, and says what is not so for a moment only.
    fn count<T>(&self, what: &str, done: Result<T, Failure>) -> Result<T, Failure> {
        match &done {
            Ok(_) => {
                self.counters.written.fetch_add(1, Relaxed);
            }
            Err(failure) => {
                self.counters.failed.fetch_add(1, Relaxed);
                if lacks_right(failure) {
                    tracing::warn!(
                        what,
                        ?failure,
                        "may not be written: add it to the daemon's role"
                    );
                } else {
                    tracing::debug!(what, ?failure, "not written");
                }
            }
        }
        done
    }
}

/// Whether the role lacks something: what is new in a namespace that is being deleted is refused with the same status
/// (apiserver `NamespaceLifecycle`), and its events are for nobody.
fn lacks_right(failure: &Failure) -> bool {
    match failure {
        Failure::Refused { status: 403, message, .. } => {
            !message.contains("because it is being terminated")
        }
        _ => false,
    }
}

/// A name as part of a path or a query.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            escaped.push(char::from(byte));
        } else {
            let _infallible = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let micros = since.unwrap_or_default().as_micros();
    Timestamp::from_microsecond(i64::try_from(micros).unwrap_or_default()).unwrap_or_default()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_being_deleted_is_no_right_that_lacks() {
        let check = |status: u16, message: &str, expected: bool| {
            let message = message.to_owned();
            let failure = Failure::Refused { status, message, retry_after: None };
            assert_eq!(lacks_right(&failure), expected, "{failure}");
        };
        let who = "system:serviceaccount:kube-system:veni";
        let role =
            format!("events.events.k8s.io is forbidden: User {who:?} cannot create resource");
        check(403, &role, true);
        let ends = "events.events.k8s.io \"a.1\" is forbidden: unable to create new content in namespace x because it is being terminated";
        check(403, ends, false);
        check(409, "conflict", false);
    }
}
