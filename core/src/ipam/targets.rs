//! What the warm-pool variables ask for: the arithmetic of the AWS VPC CNI (`datastoreTargetState`,
//! `isDatastorePoolTooLow`, `shouldRemoveExtraENIs`), with two differences that are the point:
//! an address that cools is not available, and ADDs that wait count as demand.

use super::Counts;
use crate::config::Targets;

/// The pool as the targets see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolState {
    /// What is there. `free` counts ENIs in use only.
    pub counts: Counts,
    /// What has been asked of the cloud and is not here yet, ENIs on their way in included.
    pub incoming: u32,
    /// ADDs that wait for an address.
    pub waiting: u32,
    /// Addresses that one ENI holds, its primary excluded (K).
    pub per_eni: u32,
    /// The pool never grows past this.
    pub max_pods: Option<u32>,
}

/// How a want is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grow {
    /// Nothing is missing.
    Enough,
    /// So many addresses, no more.
    Addresses(u32),
    /// At least so many addresses, in whole ENIs (`WARM_ENI_TARGET`).
    WholeEnis(u32),
}

impl PoolState {
    /// Free or coming, less what waiting ADDs will take at once.
    fn spare(self) -> i64 {
        i64::from(self.counts.free) + i64::from(self.incoming) - i64::from(self.waiting)
    }

    fn total(self) -> u32 {
        self.counts.total() + self.incoming
    }

    /// What is missing.
    #[must_use]
    pub fn grow(self, targets: &Targets) -> Grow {
        let missing = if targets.by_addresses() {
            let below_warm = i64::from(targets.warm_ip) - self.spare();
            let below_minimum = i64::from(targets.minimum_ip) - i64::from(self.total());
            below_warm.max(below_minimum).max(0)
        } else {
            let warm = i64::from(targets.warm_eni) * i64::from(self.per_eni);
            let missing = (warm - self.spare()).max(0);
            // The peer keeps one address even with WARM_ENI_TARGET=0: "warm = 0 and available = 0" is too low.
            if missing == 0 && warm == 0 && self.spare() <= 0 { 1 } else { missing }
        };
        let headroom =
            self.max_pods.map_or(i64::MAX, |max| i64::from(max) - i64::from(self.total()));
        let missing = u32::try_from(missing.min(headroom).max(0)).unwrap_or(u32::MAX);
        match missing {
            0 => Grow::Enough,
            n if targets.by_addresses() => Grow::Addresses(n),
            n => Grow::WholeEnis(n),
        }
    }

    /// How many free addresses could go back, were they all on their own.
    #[must_use]
    pub fn excess(self, targets: &Targets) -> u32 {
        if !targets.by_addresses() || self.waiting > 0 {
            return 0;
        }
        let above_warm = self.counts.free.saturating_sub(targets.warm_ip);
        let above_minimum = self.counts.total().saturating_sub(targets.minimum_ip);
        above_warm.min(above_minimum)
    }

    /// Whether an idle ENI with `its_total` addresses, `its_free` of them free, can go.
    #[must_use]
    pub fn can_spare_eni(self, targets: &Targets, its_free: u32, its_total: u32) -> bool {
        self.waiting == 0 && self.short_without_eni(targets, its_free, its_total) == 0
    }

    /// How many more addresses the other ENIs would have to hold for such an ENI to go.
    #[must_use]
    pub fn short_without_eni(self, targets: &Targets, its_free: u32, its_total: u32) -> u32 {
        let free_left = self.counts.free.saturating_sub(its_free);
        let total_left = self.counts.total().saturating_sub(its_total);
        if targets.by_addresses() {
            let warm = targets.warm_ip.saturating_sub(free_left);
            warm.max(targets.minimum_ip.saturating_sub(total_left))
        } else {
            // One stays even with WARM_ENI_TARGET=0, or the next plan would make the ENI again. The peer asks for a whole
            // ENI above the target, which is the same unless errors have left the idle one in parts.
            (targets.warm_eni * self.per_eni).max(1).saturating_sub(free_left)
        }
    }
}

impl Targets {
    /// Whether `WARM_IP_TARGET` or `MINIMUM_IP_TARGET` rule (then `WARM_ENI_TARGET` is ignored).
    #[must_use]
    pub fn by_addresses(&self) -> bool {
        self.warm_ip > 0 || self.minimum_ip > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(free: u32, assigned: u32, waiting: u32) -> PoolState {
        let counts = Counts { free, assigned, cooling: 0, releasing: 0 };
        PoolState { counts, incoming: 0, waiting, per_eni: 14, max_pods: None }
    }

    fn check_grow(warm_eni: u32, warm_ip: u32, minimum_ip: u32, state: PoolState, expect: Grow) {
        let targets = Targets { warm_eni, warm_ip, minimum_ip, ..Targets::default() };
        assert_eq!(state.grow(&targets), expect, "{targets:?} over {state:?}");
    }

    #[test]
    fn missing_addresses_follow_the_variables() {
        check_grow(1, 0, 0, pool(0, 0, 0), Grow::WholeEnis(14));
        check_grow(1, 0, 0, pool(14, 0, 0), Grow::Enough);
        check_grow(1, 0, 0, pool(13, 1, 0), Grow::WholeEnis(1));
        check_grow(0, 0, 0, pool(0, 14, 0), Grow::WholeEnis(1));
        check_grow(0, 0, 0, pool(1, 13, 0), Grow::Enough);
        check_grow(1, 5, 10, pool(0, 0, 0), Grow::Addresses(10));
        check_grow(1, 5, 10, pool(5, 5, 0), Grow::Enough);
        check_grow(1, 5, 10, pool(4, 6, 0), Grow::Addresses(1));
        check_grow(1, 0, 10, pool(0, 10, 3), Grow::Addresses(3));
    }

    #[test]
    fn waiting_adds_are_demand() {
        check_grow(1, 5, 10, pool(0, 10, 20), Grow::Addresses(25));
        check_grow(1, 0, 0, pool(0, 14, 16), Grow::WholeEnis(30));
    }

    #[test]
    fn cooling_addresses_are_not_spare() {
        let mut state = pool(5, 5, 0);
        state.counts.cooling = 25;
        check_grow(1, 5, 10, state, Grow::Enough);
        state.counts.free = 0;
        check_grow(1, 5, 10, state, Grow::Addresses(5));
        assert_eq!(state.excess(&Targets { warm_ip: 1, ..Targets::default() }), 0);
    }

    #[test]
    fn the_pool_stops_at_max_pods() {
        let mut state = pool(0, 8, 4);
        state.max_pods = Some(10);
        check_grow(1, 5, 0, state, Grow::Addresses(2));
        state.counts.assigned = 10;
        check_grow(1, 5, 0, state, Grow::Enough);
    }
}
