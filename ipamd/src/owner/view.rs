//! The owner's state as people and metrics see it.

use veni_core::{
    ipam::{AddressState, BootTime, Counts, Eni, Phase},
    wire::inspect::{self, Problem, View},
};
use veni_provider::Cloud;

use super::Owner;
use crate::{following::Following, host::Host, journal::Store, metrics::Gauges};

impl<C: Cloud, H: Host, S: Store> Owner<C, H, S> {
    pub(super) fn view(&mut self, query: inspect::Query) -> View {
        let problems = self.problems();
        let identity = &self.parts.whereabouts.identity;
        let pool = &self.parts.pool;
        View {
            daemon: inspect::Daemon {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_secs: self.started.elapsed().as_secs(),
                ready: self.ready(),
                provider: self.parts.provider_name.to_owned(),
            },
            node: inspect::Node {
                instance_id: identity.instance_id.clone(),
                instance_type: identity.instance_type.clone(),
                address: identity.local_ipv4,
                max_enis: pool.limits.max_enis,
                addresses_per_eni: pool.limits.per_eni + 1,
                vpc_cidrs: self.vpc_cidrs.held().to_vec(),
            },
            pool: self.pool_view(),
            enis: pool.ledger.enis().map(|eni| self.eni_view(eni)).collect(),
            addresses: if query.addresses { self.address_views() } else { Vec::new() },
            plan: self.plan_view(),
            problems,
            settings: self.settings.config.settings(),
            overrides: self.settings.following.as_ref().map(Following::view),
            drops: self.parts.host.drops(),
            repairs: self.repairs.clone(),
        }
    }

    /// Brings the gauges up to date.
    pub(super) fn publish(&self) {
        let pool = self.pool_view();
        let ledger = &self.parts.pool.ledger;
        self.parts.metrics.publish(Gauges {
            ready: self.ready(),
            enis: u32::try_from(ledger.enis().count()).unwrap_or(u32::MAX),
            max_enis: self.parts.pool.limits.max_enis,
            max_addresses: self.parts.pool.capacity(),
            pool,
            journal_backlog: self.parts.pool.backlog(),
            flushing: self.parts.host.flushing(),
            quarantined: self.parts.pool.activity.quarantined.len(),
        });
    }

    fn pool_view(&self) -> inspect::Pool {
        let pool = &self.parts.pool;
        let counts = pool.ledger.counts();
        let snapshot = pool.snapshot(self.now());
        inspect::Pool {
            available: snapshot.available(),
            pending: snapshot.pool().incoming,
            waiting: u32::try_from(self.waiters.len()).unwrap_or(u32::MAX),
            ..sums(counts)
        }
    }

    fn eni_view(&self, eni: &Eni) -> inspect::Eni {
        let config = &self.parts.config;
        let facts = eni.facts.as_ref();
        let mut pool = sums(eni.counts());
        pool.pending = eni.promised();
        inspect::Eni {
            id: facts.map(|f| f.id.clone()),
            primary: eni.primary,
            device_index: eni.slot.device_index(),
            phase: phase_name(&eni.phase).to_owned(),
            mac: facts.map(|f| f.mac),
            ifname: self.links.get(&eni.slot).and_then(|name| name.parse().ok()),
            subnet: facts.map(|f| f.subnet.clone()),
            primary_address: facts.map(|f| f.primary_address),
            table: if eni.primary { 254 } else { eni.slot.table(config.table_base) },
            mark: config.eni_mark_mask.mark(eni.slot),
            pool,
        }
    }

    fn address_views(&self) -> Vec<inspect::Address> {
        let ledger = &self.parts.pool.ledger;
        let (now, cooldown) = (self.now(), self.parts.pool.settings.cooldown);
        let mut views: Vec<_> = ledger
            .addresses()
            .filter_map(|(address, slot, state)| {
                let eni = ledger.eni(slot)?.facts.as_ref()?.id.clone();
                let allocation = match state {
                    AddressState::Assigned(attachment) => ledger.allocation(attachment),
                    _ => None,
                };
                let cooling_millis = match state {
                    AddressState::Cooling { since } => {
                        Some(since.after(cooldown).0.saturating_sub(now.0))
                    }
                    _ => None,
                };
                Some(inspect::Address {
                    address,
                    eni,
                    state: state_name(state).to_owned(),
                    cooling_millis,
                    attachment: allocation.map(|a| a.attachment.clone()),
                    pod: allocation.map(|a| a.pod.clone()),
                    host_ifname: allocation.map(|a| a.host_ifname.clone()),
                })
            })
            .collect();
        views.sort_by_key(|view| view.address);
        views
    }

    fn plan_view(&self) -> inspect::PlanView {
        inspect::PlanView {
            wanted: self.last_plan.wanted,
            running: self.parts.pool.activity.in_flight.values().map(ToString::to_string).collect(),
            reasons: self.last_plan.reasons.clone(),
            waiting_for: self.last_plan.waiting_for.clone(),
        }
    }

    /// What is wrong now, with the time since when.
    fn problems(&mut self) -> Vec<Problem> {
        let now = self.now();
        let pool = &self.parts.pool;
        // Kind, subject, since when where that is known, and what.
        let mut found: Vec<(String, String, Option<BootTime>, String)> = Vec::new();
        for (what, block) in pool.activity.blocks.iter().filter(|(_, b)| b.until > now) {
            let told =
                found.iter().any(|(kind, .., why)| kind == block.kind && *why == block.reason);
            if !matches!(block.kind, "attaching" | "detaching" | "storage") && !told {
                let (kind, subject) = (block.kind.to_owned(), format!("{what:?}"));
                found.push((kind, subject, Some(block.since), block.reason.clone()));
            }
        }
        for (subnet, block) in pool.activity.full.iter().filter(|(_, b)| b.until > now) {
            let (kind, why) = (block.kind.to_owned(), block.reason.clone());
            found.push((kind, subnet.to_string(), Some(block.since), why));
        }
        for (kind, subject, what) in pool.placing_problems(now) {
            found.push((kind.to_owned(), subject, None, what));
        }
        let refused = self.settings.refused.iter().cloned();
        found.extend(
            refused.map(|(name, what)| ("node_network_config".to_owned(), name, None, what)),
        );
        for address in pool.lost() {
            let what =
                format!("{address} is on a pod and EC2 does not show it any more: delete the pod");
            found.push(("address_lost".to_owned(), address.to_string(), None, what));
        }
        for (address, link) in self.suspects() {
            let what = format!(
                "{address} leads to the link {link}, which is no pod's: it is not handed out; remove the link"
            );
            found.push(("address_quarantined".to_owned(), address.to_string(), None, what));
        }
        if pool.unheard(now) {
            found.push(("journal".to_owned(), String::new(), None, pool.why_no_address(now)));
        }
        let hindrances = [("filter", self.unfiltered()), ("storage", self.unwritten())];
        for (kind, hindrance) in hindrances {
            let told = hindrance.map(|(_, what)| (kind.to_owned(), String::new(), None, what));
            found.extend(told);
        }
        let host = self.host_problems.iter();
        found.extend(host.map(|what| ("host".to_owned(), what.clone(), None, what.clone())));
        found.dedup();
        let kept = |(kind, subject): &(String, String)| {
            found.iter().any(|(k, s, ..)| k == kind && s == subject)
        };
        self.problem_since.retain(|key, _| kept(key));
        let mut problems: Vec<_> = found
            .into_iter()
            .map(|(kind, subject, known, message)| {
                let seen = *self.problem_since.entry((kind.clone(), subject)).or_insert(now);
                let since = known.unwrap_or(seen);
                Problem { kind, message, age_secs: now.since(since).as_secs() }
            })
            .collect();
        problems.sort_by_key(|problem| problem.age_secs);
        problems
    }
}

fn sums(counts: Counts) -> inspect::Pool {
    inspect::Pool {
        total: counts.total(),
        assigned: counts.assigned,
        available: counts.free,
        cooling: counts.cooling,
        releasing: counts.releasing,
        pending: 0,
        waiting: 0,
    }
}

fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Creating { .. } => "creating",
        Phase::Created | Phase::Attaching => "attaching",
        Phase::InUse => "in_use",
        Phase::Draining => "draining",
        Phase::Detaching => "detaching",
        Phase::Detached => "deleting",
    }
}

fn state_name(state: &AddressState) -> &'static str {
    match state {
        AddressState::Free { .. } => "available",
        AddressState::Assigned(_) => "assigned",
        AddressState::Cooling { .. } => "cooling",
        AddressState::Releasing => "releasing",
    }
}
