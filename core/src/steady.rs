//! What the AWS VPC CNI's warm-pool arithmetic settles in: for people who choose targets, and as the yardstick of
//! our own planner.
//!
//! A literal model of one of its pool cycles (amazon-vpc-cni-k8s v1.23, `updateIPPoolIfRequired` and what it calls),
//! run until nothing changes after each pod that arrives. EC2 answers at once; there is no cooldown and no minimum
//! age of an ENI. Where its choice is by Go's random map order, the model fills prefixes and ENIs in the order in
//! which they came, and frees the newest first.
//!
//! Some settings never settle (`WARM_ENI_TARGET=0` with every address taken: an ENI is added because none is free,
//! and freed because it is empty). The model finds the cycle and answers with its fullest state: the AWS VPC CNI
//! stays in it a minute (an ENI's minimum age; 30 s between two scale-downs) and in the others one 5 s tick.
//!
//! Deliberately absent: the subnet's size, pods that leave, network cards other than the default one.

use serde::Serialize;

use crate::{config::PoolSettings, limits::InstanceLimits};

mod pool;

use pool::{Pool, Rules};

/// The state of the pool. Serialised, it is what `venictl pool steady -o json` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Steady {
    /// ENIs, the primary included.
    pub enis: u32,
    /// Addresses for pods: ENIs' own primary addresses are not counted.
    pub addresses: Addresses,
    /// Delegated /28 prefixes.
    pub prefixes: u32,
    /// Pods that do not fit.
    pub pending: u32,
}

/// Sums over the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Addresses {
    /// All, 16 a prefix.
    pub total: u32,
    /// Assigned to pods.
    pub assigned: u32,
    /// Free.
    pub warm: u32,
}

/// A [`Steady`] with what is worth saying about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The state.
    pub steady: Steady,
    /// Sentences for people.
    pub notes: Vec<String>,
}

/// What the AWS VPC CNI settles in on an instance of these `limits` for `pods` that arrived one by one, starting
/// from none. `max_pods` clamps growth only when it is given.
#[must_use]
pub fn steady(
    limits: &InstanceLimits,
    settings: &PoolSettings,
    pods: u32,
    max_pods: Option<u32>,
) -> Outcome {
    let mut notes = Vec::new();
    let rules = rules(limits, settings, max_pods, &mut notes);
    let mut pool = Pool::new();
    let mut restless = settle(&mut pool, &rules);
    let mut assigned = 0;
    // Growth depends on the pool alone, not on who waits: once a settled pool has no address, it never will.
    while assigned < pods && pool.place(&rules) {
        assigned += 1;
        restless = settle(&mut pool, &rules);
    }
    if restless {
        notes.push(
            "the AWS VPC CNI does not settle with these settings: it adds and frees the last ENI or prefix in turns; \
             this is the state with it"
                .to_owned(),
        );
    }
    let total = pool.total(&rules);
    Outcome {
        steady: Steady {
            enis: pool.enis(),
            addresses: Addresses { total, assigned, warm: total - assigned },
            prefixes: if rules.prefixes { pool.cidrs() } else { 0 },
            pending: pods - assigned,
        },
        notes,
    }
}

fn rules(
    limits: &InstanceLimits,
    settings: &PoolSettings,
    max_pods: Option<u32>,
    notes: &mut Vec<String>,
) -> Rules {
    let targets = settings.targets;
    let prefixes = targets.prefix_delegation && limits.supports_prefixes();
    if targets.prefix_delegation && !prefixes {
        notes
            .push("prefix delegation needs a Nitro instance: single addresses are used".to_owned());
    }
    let limit = limits.enis_for_pods();
    if settings.max_eni.is_some_and(|max| max > limit) {
        notes.push(format!("MAX_ENI is above the instance type's limit: {limit} is used"));
    }
    if limits.network_cards.len() > 1 {
        notes.push(format!(
            "of {} network cards, only the default one counts",
            limits.network_cards.len()
        ));
    }
    Rules {
        targets,
        prefixes,
        slots_per_eni: limits.pod_addresses_per_eni(),
        max_enis: settings
            .max_eni
            .map_or(limit, |max| max.min(limit))
            .saturating_sub(settings.pod_eni.into()),
        max_pods,
        skip_primary: settings.custom_networking,
        frozen: settings.disable_provisioning,
    }
}

/// Runs cycles until nothing changes. True when it never does; then the fullest state of the cycle is left.
fn settle(pool: &mut Pool, rules: &Rules) -> bool {
    let mut seen = vec![pool.clone()];
    loop {
        pool.cycle(rules);
        match seen.iter().position(|state| state == pool) {
            None => seen.push(pool.clone()),
            Some(first) if first + 1 == seen.len() => return false,
            Some(first) => {
                let fullest = seen.drain(first..).max_by_key(|state| state.total(rules));
                *pool = fullest.expect("the cycle has at least the state that was met again");
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests;
