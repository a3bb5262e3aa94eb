//! All metrics, in one place. `awscni_*` where they mean what the peer's mean, `veni_*` beside them.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use veni_core::{
    ipam::plan::Step,
    wire::{DelReason, inspect},
};

use crate::{following::Following, pool::Outcome, report::Tell};

type Level = Gauge<u32, AtomicU32>;
type Count = Counter<u64, AtomicU64>;
/// A counter under the peer's exact name: OpenMetrics would append `_total` to a counter's, and dashboards would go
/// blank. It only ever rises.
type PeerCount = Gauge<u64, AtomicU64>;
/// Labels by the peer's names (`fn` is a keyword here).
type PeerLabels = Vec<(&'static str, String)>;

/// Fine where a request that does not wait lies (10 µs to 1 ms), coarse where the cloud decides.
const REQUEST_BUCKETS: [f64; 30] = [
    10e-6, 20e-6, 30e-6, 40e-6, 50e-6, 60e-6, 70e-6, 80e-6, 90e-6, 100e-6, 120e-6, 140e-6, 160e-6,
    180e-6, 200e-6, 250e-6, 300e-6, 400e-6, 500e-6, 600e-6, 800e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3,
    0.25, 1.0, 5.0, 30.0,
];

/// The registry with handles to what is in it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    levels: Levels,
    adds: PeerCount,
    dels: Family<PeerLabels, PeerCount>,
    starved: PeerCount,
    add_wait: Histogram,
    calls: Family<PeerLabels, PeerCount>,
    call_errors: Family<PeerLabels, PeerCount>,
    call_secs: Family<ActionLabels, Histogram>,
    repairs: Family<KindLabels, Count>,
    requests: Family<RequestLabels, Histogram>,
    following: Family<ObjectLabels, Gauge>,
    teller: OnceLock<Arc<dyn Tell>>,
}

#[derive(Debug, Default)]
struct Levels {
    ready: Level,
    enis: Level,
    max_enis: Level,
    max_addresses: Level,
    total: Level,
    assigned: Level,
    available: Level,
    cooling: Level,
    releasing: Level,
    pending: Level,
    waiting: Level,
    journal_backlog: Level,
    flushing: Level,
    quarantined: Level,
}

/// The levels at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Gauges {
    /// Whether an ADD would be served.
    pub ready: bool,
    /// ENIs, those on their way in and out included.
    pub enis: u32,
    /// ENIs that the instance may have.
    pub max_enis: u32,
    /// Addresses that they may hold together.
    pub max_addresses: u32,
    /// The pool.
    pub pool: inspect::Pool,
    /// Facts that wait for the disk.
    pub journal_backlog: usize,
    /// Addresses whose conntrack entries are still to be removed.
    pub flushing: usize,
    /// Addresses that are set aside.
    pub quarantined: usize,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ActionLabels {
    action: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    request: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ObjectLabels {
    name: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: String,
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let levels = Levels::default();
        levels.register(&mut registry);
        let (adds, starved, dels) = (
            PeerCount::default(),
            PeerCount::default(),
            Family::<PeerLabels, PeerCount>::default(),
        );
        let add_wait = Histogram::new(exponential_buckets(0.001, 4.0, 9));
        let (calls, call_errors, repairs) =
            (Family::default(), Family::default(), Family::default());
        let call_secs = Family::<ActionLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.01, 3.0, 8))
        });
        registry.register(
            "awscni_add_ip_req_count",
            "ADDs that were answered with an address",
            adds.clone(),
        );
        registry.register("awscni_del_ip_req_count", "DELs by reason", dels.clone());
        registry.register(
            "awscni_no_available_ip_addresses",
            "ADDs that found no address within their wait",
            starved.clone(),
        );
        registry.register(
            "veni_add_wait_seconds",
            "How long an ADD waited for an address",
            add_wait.clone(),
        );
        registry.register("awscni_ec2api_req_count", "EC2 calls by action", calls.clone());
        registry.register(
            "awscni_ec2api_error_count",
            "Failed EC2 calls by action and code",
            call_errors.clone(),
        );
        registry.register("veni_cloud_call_seconds", "How long EC2 calls took", call_secs.clone());
        registry.register(
            "veni_repairs",
            "What was not as it must be and was repaired, by kind",
            repairs.clone(),
        );
        let requests = Family::<RequestLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(REQUEST_BUCKETS)
        });
        registry.register(
            "veni_request_duration_seconds",
            "From a request's last byte to its answer, an ADD's wait for an address included",
            requests.clone(),
        );
        Self {
            following: following(&mut registry),
            registry,
            teller: OnceLock::new(),
            levels,
            adds,
            dels,
            starved,
            add_wait,
            calls,
            call_errors,
            call_secs,
            repairs,
            requests,
        }
    }

    /// A request was answered, `took` after its last byte was read.
    pub fn answered(&self, request: &'static str, took: Duration) {
        self.requests.get_or_create(&RequestLabels { request }).observe(took.as_secs_f64());
    }

    /// An ADD was answered after waiting for `wait`.
    pub fn added(&self, wait: Duration) {
        self.adds.inc();
        self.add_wait.observe(wait.as_secs_f64());
    }

    /// An ADD found no address.
    pub fn starved(&self) {
        self.starved.inc();
    }

    /// A DEL was answered.
    pub fn deleted(&self, reason: DelReason) {
        let reason = match reason {
            DelReason::PodDeleted => "PodDeleted",
            DelReason::AddFailed => "SetupNSFailed",
        };
        self.dels.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    /// A call has left.
    pub fn call_started(&self, step: &Step) {
        self.calls.get_or_create(&called(action(step))).inc();
    }

    /// All ENIs of the instance are asked for.
    pub fn survey_started(&self) {
        self.calls.get_or_create(&called("DescribeNetworkInterfaces")).inc();
    }

    /// A call has come back.
    pub fn call_ended(&self, step: &Step, outcome: &Outcome, took: Duration) {
        let action = action(step);
        self.call_secs.get_or_create(&ActionLabels { action }).observe(took.as_secs_f64());
        if let Outcome::Failed(error) | Outcome::Refused { error, .. } = outcome {
            let mut labels = called(action);
            labels.push(("error", error.code.clone()));
            self.call_errors.get_or_create(&labels).inc();
        }
    }

    /// The settings of this object are in force from now on.
    pub fn following(&self, following: Option<&Following>) {
        self.following.clear();
        if let Some(Following { name, generation, .. }) = following {
            self.following.get_or_create(&ObjectLabels { name: name.clone() }).set(*generation);
        }
    }

    /// Something was repaired.
    pub fn repaired(&self, kind: &str) {
        self.repairs.get_or_create(&KindLabels { kind: kind.to_owned() }).inc();
    }

    /// Sets the levels.
    pub fn publish(&self, gauges: Gauges) {
        let (levels, pool) = (&self.levels, gauges.pool);
        levels.ready.set(u32::from(gauges.ready));
        levels.enis.set(gauges.enis);
        levels.max_enis.set(gauges.max_enis);
        levels.max_addresses.set(gauges.max_addresses);
        levels.total.set(pool.total);
        levels.assigned.set(pool.assigned);
        levels.available.set(pool.available);
        levels.cooling.set(pool.cooling);
        levels.releasing.set(pool.releasing);
        levels.pending.set(pool.pending);
        levels.waiting.set(pool.waiting);
        levels.journal_backlog.set(u32::try_from(gauges.journal_backlog).unwrap_or(u32::MAX));
        levels.flushing.set(u32::try_from(gauges.flushing).unwrap_or(u32::MAX));
        levels.quarantined.set(u32::try_from(gauges.quarantined).unwrap_or(u32::MAX));
    }

    /// Whether an ADD would be served now.
    pub fn ready(&self) -> bool {
        self.levels.ready.get() == 1
    }

    /// What the cluster costs is shown too from now on.
    pub fn told_by(&self, teller: Arc<dyn Tell>) {
        // The first stays: there is one.
        drop(self.teller.set(teller));
    }

    /// The text exposition format.
    pub fn text(&self) -> String {
        let mut text = self.teller.get().map(|teller| teller.metrics()).unwrap_or_default();
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }
}

// === impl Levels ===

impl Levels {
    fn register(&self, registry: &mut Registry) {
        let rows: [(&str, &str, &Level); 14] = [
            ("veni_ready", "Whether an ADD would be served now", &self.ready),
            ("awscni_eni_allocated", "ENIs of this instance", &self.enis),
            ("awscni_eni_max", "ENIs that this instance may have", &self.max_enis),
            ("awscni_ip_max", "Pod addresses that this instance may have", &self.max_addresses),
            ("awscni_total_ip_addresses", "Pod addresses held", &self.total),
            ("awscni_assigned_ip_addresses", "Pod addresses on pods", &self.assigned),
            ("veni_available_addresses", "Pod addresses that can be assigned now", &self.available),
            (
                "veni_cooling_addresses",
                "Pod addresses released and not to be reused yet",
                &self.cooling,
            ),
            (
                "veni_releasing_addresses",
                "Pod addresses on their way back to the cloud",
                &self.releasing,
            ),
            (
                "veni_pending_addresses",
                "Pod addresses asked of the cloud and not here yet",
                &self.pending,
            ),
            ("veni_waiting_adds", "ADDs that wait for an address", &self.waiting),
            (
                "veni_journal_backlog",
                "Facts that wait to be written to the journal",
                &self.journal_backlog,
            ),
            (
                "veni_flushing_addresses",
                "Released addresses whose conntrack entries are being removed",
                &self.flushing,
            ),
            (
                "veni_quarantined_addresses",
                "Addresses set aside because the node leads them to a link of no pod",
                &self.quarantined,
            ),
        ];
        for (name, help, level) in rows {
            registry.register(name, help, level.clone());
        }
    }
}

fn following(registry: &mut Registry) -> Family<ObjectLabels, Gauge> {
    let following = Family::<ObjectLabels, Gauge>::default();
    let help = "The NodeNetworkConfig whose settings are in force, by name: its generation";
    registry.register("veni_node_network_config_generation", help, following.clone());
    following
}

fn called(action: &str) -> PeerLabels {
    vec![("fn", action.to_owned())]
}

/// The EC2 action of a step.
#[must_use]
pub fn action(step: &Step) -> &'static str {
    match step {
        Step::CreateEni { .. } => "CreateNetworkInterface",
        Step::AttachEni { .. } => "AttachNetworkInterface",
        Step::ProtectEni { .. } | Step::SetGroups { .. } => "ModifyNetworkInterfaceAttribute",
        Step::Assign { .. } => "AssignPrivateIpAddresses",
        Step::Unassign { .. } => "UnassignPrivateIpAddresses",
        Step::DetachEni { .. } => "DetachNetworkInterface",
        Step::DeleteEni { .. } => "DeleteNetworkInterface",
        Step::Observe { .. } => "DescribeNetworkInterfaces",
    }
}
