//! What the controller tells of itself.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::time::Instant;

type Level = Gauge<u32, AtomicU32>;
type Count = Counter<u64, AtomicU64>;
type Labels = Vec<(&'static str, &'static str)>;

/// A replica that has neither asked for the Lease nor tried for what it needs before that for so long is stuck.
const STUCK: Duration = Duration::from_secs(120);

/// The registry with handles to what is in it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    leader: Level,
    lease_failures: Count,
    looks: Family<Labels, Count>,
    suspected: Level,
    deleted: Count,
    failures: Family<Labels, Count>,
    publications: Family<Labels, Count>,
    groups: Level,
    /// When the Lease was asked for last, by a candidate or to renew it, or what is needed before that was tried for.
    looked_at: Mutex<Instant>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            leader: Level::default(),
            lease_failures: Count::default(),
            looks: Family::default(),
            suspected: Level::default(),
            deleted: Count::default(),
            failures: Family::default(),
            publications: Family::default(),
            groups: Level::default(),
            looked_at: Mutex::new(Instant::now()),
        };
        let all = &mut metrics.registry;
        let mut level = |name, help, level: &Level| all.register(name, help, level.clone());
        level("veni_controller_leader", "Whether this replica leads", &metrics.leader);
        level(
            "veni_controller_leaked_enis",
            "ENIs of instances that are gone, which wait to be deleted",
            &metrics.suspected,
        );
        level(
            "veni_controller_security_groups",
            "Security groups that the cluster names",
            &metrics.groups,
        );
        let mut count = |name, help, count: &Count| all.register(name, help, count.clone());
        count(
            "veni_controller_lease_failures",
            "Requests for the Lease that failed",
            &metrics.lease_failures,
        );
        count(
            "veni_controller_leaked_enis_deleted",
            "Leaked ENIs that were deleted",
            &metrics.deleted,
        );
        let mut family = |name, help, family: &Family<Labels, Count>| {
            all.register(name, help, family.clone());
        };
        family(
            "veni_controller_sweeps",
            "Looks for leaked ENIs, by how they ended",
            &metrics.looks,
        );
        family(
            "veni_controller_publications",
            "Times that security groups were brought up to date, by how that ended",
            &metrics.publications,
        );
        family("veni_controller_call_failures", "EC2 calls that failed", &metrics.failures);
        metrics
    }
}

impl Metrics {
    /// Leads, or does not: then what it knew as a leader is another one's to tell.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
        if !leads {
            self.suspected.set(0);
            self.groups.set(0);
        }
        self.stamp();
    }

    /// What is needed before the Lease can be asked for is tried for.
    pub(crate) fn tries(&self) {
        self.stamp();
    }

    /// The Lease was asked for.
    pub(crate) fn looked(&self, answered: bool) {
        self.stamp();
        if !answered {
            self.lease_failures.inc();
        }
    }

    /// ENIs were looked at; so many wait for their second look.
    pub(crate) fn swept(&self, whole: bool, suspected: usize) {
        let result = if whole { "whole" } else { "broken_off" };
        self.looks.get_or_create(&vec![("result", result)]).inc();
        self.suspected.set(u32::try_from(suspected).unwrap_or(u32::MAX));
    }

    /// Groups were brought up to date; so many are named.
    pub(crate) fn published(&self, whole: bool, named: usize) {
        let result = if whole { "whole" } else { "broken_off" };
        self.publications.get_or_create(&vec![("result", result)]).inc();
        self.groups.set(u32::try_from(named).unwrap_or(u32::MAX));
    }

    /// An ENI was deleted.
    pub(crate) fn deleted(&self) {
        self.deleted.inc();
    }

    /// A call failed.
    pub(crate) fn failed(&self, action: &'static str) {
        self.failures.get_or_create(&vec![("action", action)]).inc();
    }

    /// Whether this replica leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader.get() > 0
    }

    /// Whether it goes on.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let looked_at = *self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        looked_at.elapsed() < STUCK
    }

    /// As Prometheus reads it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _infallible = encode(&mut text, &self.registry);
        text
    }

    fn stamp(&self) {
        *self.looked_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_lead_any_more_tells_nothing_that_a_leader_would() {
        let metrics = Metrics::default();
        metrics.leads(true);
        metrics.swept(true, 3);
        metrics.published(true, 2);
        let tells = |line: &str| metrics.text().lines().any(|it| it == line);
        assert!(tells("veni_controller_leaked_enis 3"), "{}", metrics.text());
        assert!(tells("veni_controller_security_groups 2"), "{}", metrics.text());
        metrics.leads(false);
        assert!(tells("veni_controller_leaked_enis 0"), "{}", metrics.text());
        assert!(tells("veni_controller_security_groups 0"), "{}", metrics.text());
    }
}
