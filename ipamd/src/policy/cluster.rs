//! The cluster as one that is told, and what it costs: metrics of the watches and of what is written.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use veni_core::wire::PodRef;
use veni_watch::{About, Counters, ReportCounters, Reports, Resource};

use crate::report::{Followed, Happening, Network, Tell};

type Labels = Vec<(&'static str, String)>;
type Counts = Family<Labels, Counter<u64, AtomicU64>>;

/// It.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) reports: Reports,
    pub(super) costs: Vec<(Resource, Arc<Counters>)>,
}

fn about(pod: &PodRef) -> About {
    let PodRef { namespace, name, uid } = pod.clone();
    About::Pod { namespace, name, uid }
}

impl Tell for Cluster {
    fn happened(&self, happening: Happening) {
        let Happening { pod, warning, reason, action, note } = happening;
        let about = pod.as_ref().map_or(About::Node, about);
        self.reports.happened(veni_watch::Happening { about, warning, reason, action, note });
    }

    fn annotate(&self, pod: &PodRef, addresses: String) {
        self.reports.annotate(about(pod), addresses);
    }

    fn network(&self, network: Network) {
        let Network { available, reason, message } = network;
        let network = veni_watch::Network { available, reason, message };
        self.reports.stand(|standing| standing.network = Some(network));
    }

    fn able(&self, startup_taint: Option<&str>) {
        self.reports.stand(|standing| {
            standing.startup_taint = startup_taint.map(str::to_owned);
            standing.able = true;
        });
    }

    fn following(&self, following: Option<Followed>) {
        let following = following.map(|Followed { name, generation, message }| {
            veni_watch::Followed { name, generation, message }
        });
        self.reports.stand(|standing| standing.following = Some(following));
    }

    fn metrics(&self) -> String {
        exposition(&self.costs, self.reports.counters())
    }
}

fn exposition(costs: &[(Resource, Arc<Counters>)], reports: &ReportCounters) -> String {
    let mut registry = Registry::default();
    let mut by_resource = |name: &str, help: &str, count: fn(&Counters) -> u64| {
        let family = Counts::default();
        for (resource, counters) in costs {
            family.get_or_create(&vec![("resource", name_of(*resource))]).inc_by(count(counters));
        }
        registry.register(name, help, family);
    };
    by_resource("veni_watch_bytes", "Bytes of lists and events read", |c| c.bytes.load(Relaxed));
    by_resource("veni_watch_events", "Objects added, changed or gone", |c| c.objects.load(Relaxed));
    by_resource("veni_watch_lists", "How often all was listed", |c| c.lists.load(Relaxed));
    by_resource("veni_watch_failures", "Requests that failed, and answers that broke off", |c| {
        c.failures.load(Relaxed)
    });
    let heard = Family::<Labels, Gauge<u64, AtomicU64>>::default();
    for (resource, counters) in costs {
        let secs = counters.heard_secs.load(Relaxed);
        if secs > 0 {
            heard.get_or_create(&vec![("resource", name_of(*resource))]).set(secs);
        }
    }
    registry.register(
        "veni_watch_heard_timestamp_seconds",
        "When the API server was heard last of a resource: bookmarks come every minute",
        heard,
    );
    let told = Counts::default();
    for (outcome, count) in [
        ("written", &reports.written),
        ("dropped", &reports.dropped),
        ("limited", &reports.limited),
        ("failed", &reports.failed),
    ] {
        let labels = vec![("outcome", outcome.to_owned())];
        told.get_or_create(&labels).inc_by(count.load(Relaxed));
    }
    let help = "Events, conditions and status entries for the API server, by what became of them";
    registry.register("veni_cluster_writes", help, told);
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a string cannot fail");
    text.truncate(text.trim_end_matches("# EOF\n").len());
    text
}

/// The own node and the others are one resource to the API server, and two watches.
fn name_of(resource: Resource) -> String {
    match resource {
        Resource::OwnNode => "nodes/own".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_watch_has_its_costs_and_every_write_its_outcome() {
        let counters = Arc::<Counters>::default();
        counters.bytes.fetch_add(7, Relaxed);
        counters.heard_secs.store(1_795_000_000, Relaxed);
        let reports = ReportCounters::default();
        reports.dropped.fetch_add(3, Relaxed);
        let costs = [(Resource::Pods, counters), (Resource::OwnNode, Arc::default())];
        let text = exposition(&costs, &reports);
        for line in [
            "veni_watch_bytes_total{resource=\"pods\"} 7",
            "veni_watch_bytes_total{resource=\"nodes/own\"} 0",
            "veni_watch_heard_timestamp_seconds{resource=\"pods\"} 1795000000",
            "veni_cluster_writes_total{outcome=\"dropped\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        assert!(!text.contains("EOF") && !text.contains("seconds{resource=\"nodes"), "{text}");
    }
}
