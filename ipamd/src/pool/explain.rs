//! Why there is no address, in one line that a person can act on.

use std::{fmt, net::Ipv4Addr};

use veni_core::ipam::{
    AddressState, BootTime, Counts,
    plan::{Addresses, Blocked, PoolLimits, Snapshot, Step},
};

use super::Pool;
use crate::journal::Store;

/// Turns growing and shrinking off.
pub(crate) const PROVISIONING: &str = "DISABLE_NETWORK_RESOURCE_PROVISIONING";
const MAX_ENI: &str = "MAX_ENI";

/// A setting as people find it: the variable, or what takes its place.
#[derive(Debug)]
pub(crate) struct Setting {
    name: String,
    /// ` of NodeNetworkConfig large`; empty for the variable.
    of: String,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, self.of)
    }
}

impl<S: Store> Pool<S> {
    /// Why a waiting ADD gets no address now.
    pub fn why_no_address(&self, now: BootTime) -> String {
        let snapshot = self.snapshot(now);
        let counts = self.ledger.counts();
        let held = format!("{} on pods, {} cooling", Addresses(counts.assigned), counts.cooling);
        if self.activity.unheard {
            let lost = "part of the journal was lost: EC2 is asked for this instance's ENIs before an address is handed out";
            return match snapshot.blocked(Blocked::Survey) {
                Some(block) => {
                    let secs = block.until.since(now).as_secs();
                    format!("{lost}; {}; next attempt in {secs} s ({held})", block.reason)
                }
                None => format!("{lost} ({held})"),
            };
        }
        if let Some(what) = self.unusable_link(now) {
            return format!("{what} ({held})");
        }
        if let Some(address) = self.activity.quarantined.iter().find(|a| self.is_free(**a)) {
            return format!(
                "{address} is free and not handed out, because the node leads it to a link of no pod: `venictl status` \
                 names the link ({held})"
            );
        }
        for what in [Blocked::Cloud, Blocked::Assign, Blocked::NewEni] {
            if let Some(block) = snapshot.blocked(what) {
                let secs = block.until.since(now).as_secs();
                return format!("{}; next attempt in {secs} s ({held})", block.reason);
            }
        }
        let slot_block =
            self.ledger.enis().find_map(|eni| snapshot.blocked(Blocked::Slot(eni.slot)));
        if let Some(block) = slot_block {
            let secs = block.until.since(now).as_secs();
            return format!("{}; next attempt in {secs} s ({held})", block.reason);
        }
        if let Some(why) = self.is_hidden(&held).or_else(|| self.is_not_grown(counts, &held)) {
            return why;
        }
        if let Some(what) = self.why_not_placed(&snapshot) {
            return format!("{what} ({held})");
        }
        let steps: Vec<String> =
            self.activity.in_flight.values().map(ToString::to_string).collect();
        if steps.is_empty() {
            format!(
                "the cloud has not delivered yet: the runtime tries again, `venictl status` shows what the pool waits for \
                 ({held})"
            )
        } else {
            format!(
                "still waiting for EC2 to {}, which the runtime's next attempt may meet ({held})",
                steps.join(", ")
            )
        }
    }

    /// Where the setting of `variable` comes from.
    pub(crate) fn setting(&self, variable: &str) -> Setting {
        let followed = self.following.as_ref().and_then(|following| following.setting(variable));
        let (name, of) = followed.unwrap_or_else(|| (variable, String::new()));
        Setting { name: name.to_owned(), of }
    }

    /// What to do when the instance takes no further ENI.
    pub(super) fn enis_next(&self) -> String {
        let by = self.setting(MAX_ENI);
        format!("see which ENIs the instance has beside veni's, and set {by} to what it takes")
    }

    fn is_free(&self, address: Ipv4Addr) -> bool {
        matches!(self.ledger.address(address), Some((_, AddressState::Free { .. }, _)))
    }

    /// Which addresses are free and not handed out, because EC2 does not show them.
    fn is_hidden(&self, held: &str) -> Option<String> {
        let hidden: Vec<_> =
            self.activity.missing.keys().filter(|address| self.is_free(**address)).collect();
        let first = hidden.first()?;
        let others = match hidden.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        Some(format!(
            "{first}{others}: free, but EC2 does not show it on this node's ENIs; it is asked again ({held})"
        ))
    }

    /// Which limit or setting keeps the pool from getting more.
    fn is_not_grown(&self, counts: Counts, held: &str) -> Option<String> {
        let (capacity, limit) = self.limit();
        if self.held_for_pods() >= capacity {
            let taken = match (capacity, counts.releasing) {
                (1, 0) => "is on a pod or cooling",
                (1, _) => "is on a pod, cooling or on its way back",
                (_, 0) => "are on pods or cooling",
                (_, _) => "are on pods, cooling or on their way back",
            };
            return Some(format!("{} {taken}: {} ({held})", limit.0, limit.1));
        }
        if !self.settings.provisioning {
            let by = self.setting(PROVISIONING);
            return Some(format!(
                "the pool is not grown: {by} is set; unset it, or assign addresses to the node's ENIs ({held})"
            ));
        }
        if self.settings.max_pods.is_some_and(|max| counts.total() >= max) {
            let max = self.settings.max_pods.unwrap_or_default();
            return Some(format!(
                "the pool has reached {} ({}, with what cools): raise it, or lower the kubelet's maxPods ({held})",
                self.setting("VENI_MAX_PODS"),
                Addresses(max)
            ));
        }
        None
    }

    /// What keeps ENIs from being made, or new pods from those that there are, as far as it is a matter of custom networking.
    fn why_not_placed(&self, snapshot: &Snapshot<'_>) -> Option<String> {
        let grows =
            self.activity.in_flight.values().any(|step| matches!(step, Step::Assign { .. }));
        if let Some(what) = self.settings.networking.waits_for().filter(|_| !grows) {
            return Some(format!("no ENI is made: {what}"));
        }
        let enis = self.ledger.enis().count();
        let leaving = snapshot.leaving().next()?;
        let full = enis >= self.limits.max_enis as usize && !snapshot.has_room();
        full.then(|| format!("every ENI slot is taken, and {leaving}"))
    }

    /// Addresses of the ENIs that are for pods.
    fn held_for_pods(&self) -> u32 {
        let custom = self.settings.networking.custom.is_some();
        let enis = self.ledger.enis().filter(|eni| !(custom && eni.primary));
        enis.map(|eni| eni.counts().held()).sum()
    }

    /// Whether all addresses that the instance, `MAX_ENI` or `VENI_MAX_PODS` allows are on pods: there is nothing to grow, and
    /// nothing wrong. One that cools is not on a pod: the next pod waits for it, and may wait in vain.
    pub fn holds_no_more(&self) -> bool {
        let custom = self.settings.networking.custom.is_some();
        let enis = self.ledger.enis().filter(|eni| !(custom && eni.primary));
        let taken: u32 = enis.map(|eni| eni.counts().assigned).sum();
        let foreign = u32::try_from(self.activity.foreign.len()).unwrap_or(u32::MAX);
        let elsewhere = foreign.saturating_mul(self.limits.per_eni);
        let most = self.capacity().saturating_sub(elsewhere);
        let most = self.settings.max_pods.map_or(most, |max| max.min(most));
        taken > 0 && taken >= most
    }

    /// How many addresses there can be; which limit that is, and how to raise it.
    fn limit(&self) -> (u32, (String, String)) {
        let PoolLimits { max_enis, per_eni, device_indexes } = self.limits;
        let capacity = self.capacity();
        let beside = max_enis - capacity / per_eni.max(1);
        let for_pods = max_enis - beside;
        let enis = format!("{for_pods} {} × {per_eni}", if for_pods == 1 { "ENI" } else { "ENIs" });
        let enis = match beside {
            0 => enis,
            _ => format!("{enis}, the primary one gives none"),
        };
        let all = match capacity {
            1 => "the only address".to_owned(),
            _ => format!("all {capacity} addresses"),
        };
        let of_type = u32::from(device_indexes);
        let (what, next) = if max_enis < of_type {
            let by = self.setting(MAX_ENI);
            let Setting { name, of } = &by;
            let what = format!("{all} that {name}={max_enis}{of} allows ({enis})");
            let most = (of_type - beside) * per_eni;
            (
                what,
                format!("raise {by} (the instance type takes {of_type} ENIs: {})", Addresses(most)),
            )
        } else {
            let what = format!("{all} that this instance can hold ({enis})");
            (what, "use a larger instance type".to_owned())
        };
        (capacity, (what, next + " or lower the kubelet's maxPods"))
    }
}
