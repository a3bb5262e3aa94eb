//! Why there is no address, in one line that a person can act on.

use veni_core::ipam::{AddressState, BootTime, plan::Blocked};

use super::Pool;
use crate::journal::Store;

impl<S: Store> Pool<S> {
    /// Why a waiting ADD gets no address now.
    pub fn why_no_address(&self, now: BootTime) -> String {
        let snapshot = self.snapshot(now);
        let counts = self.ledger.counts();
        let held = format!("{} addresses on pods, {} cooling", counts.assigned, counts.cooling);
        let unplugged = self
            .ledger
            .enis()
            .find(|eni| eni.in_use() && eni.counts().free > 0 && !self.activity.plugged(eni.slot));
        if let Some(eni) = unplugged {
            let id = eni.facts.as_ref().map(|facts| facts.id.to_string()).unwrap_or_default();
            let what = self.link_problems.first().map_or("it is not on the node", String::as_str);
            return format!("the link of {id} is not configured: {what} ({held})");
        }
        let free = |address| {
            matches!(self.ledger.address(address), Some((_, AddressState::Free { .. }, _)))
        };
        if let Some(address) = self.activity.quarantined.iter().find(|address| free(**address)) {
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
            return format!("{} ({held})", block.reason);
        }
        let capacity = self.limits.max_enis * self.limits.per_eni;
        if counts.held() >= capacity {
            let releasing = if counts.releasing > 0 { " or on their way back" } else { "" };
            return format!(
                "all {capacity} addresses that this instance can hold ({} ENIs × {}) are on pods, cooling{releasing}: \
                 use a larger instance type or lower the kubelet's maxPods ({held})",
                self.limits.max_enis, self.limits.per_eni
            );
        }
        if !self.settings.provisioning {
            return format!(
                "the pool is not grown: DISABLE_NETWORK_RESOURCE_PROVISIONING is set ({held})"
            );
        }
        if self.settings.max_pods.is_some_and(|max| counts.total() >= max) {
            return format!("the pool has reached VENI_MAX_PODS ({held})");
        }
        let steps: Vec<String> =
            self.activity.in_flight.values().map(ToString::to_string).collect();
        if steps.is_empty() {
            format!("the cloud has not delivered yet ({held})")
        } else {
            format!("still waiting for EC2 to {} ({held})", steps.join(", "))
        }
    }
}
