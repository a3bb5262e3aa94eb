//! One pool cycle, formula by formula.

use crate::config::Targets;

/// Addresses of a /28.
const PREFIX_ADDRESSES: u32 = 16;

/// What the arithmetic depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) targets: Targets,
    /// Whether a slot holds a /28 rather than an address.
    pub(super) prefixes: bool,
    /// Slots of an ENI beside its own primary address: K.
    pub(super) slots_per_eni: u32,
    /// ENIs to use at most, the trunk's reserved slot taken off.
    pub(super) max_enis: u32,
    pub(super) max_pods: Option<u32>,
    /// Custom networking: the primary ENI gives no addresses.
    pub(super) skip_primary: bool,
    /// Nothing is added or returned.
    pub(super) frozen: bool,
}

/// The ENIs in the order in which they came, the primary first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pool(Vec<Eni>);

/// An ENI's slots. Pods fill one slot after the other, so two numbers tell all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Eni {
    /// Slots in use: addresses or prefixes.
    cidrs: u32,
    /// Addresses assigned to pods.
    assigned: u32,
}

/// Sums over the pool.
#[derive(Debug, Clone, Copy)]
struct Stats {
    total: u32,
    assigned: u32,
    cidrs: u32,
    /// Slots without a pod.
    free: u32,
}

/// How far target mode (`WARM_IP_TARGET`, `MINIMUM_IP_TARGET`) is off, in slots.
#[derive(Debug, Clone, Copy)]
struct TargetState {
    short: u32,
    over: u32,
}

// === impl Rules ===

impl Rules {
    fn addresses_per_slot(&self) -> u32 {
        if self.prefixes { PREFIX_ADDRESSES } else { 1 }
    }

    /// `warmIPTargetsDefined`.
    fn by_target(&self) -> bool {
        self.targets.warm_ip > 0 || self.targets.minimum_ip > 0
    }

    /// A number of addresses in whole slots, as addresses (64 bits: targets are anything).
    fn rounded_up(&self, addresses: u32) -> u64 {
        let size = self.addresses_per_slot();
        u64::from(addresses.div_ceil(size)) * u64::from(size)
    }

    /// `datastoreTargetState`; `None` outside of target mode.
    fn target_state(&self, stats: &Stats) -> Option<TargetState> {
        if !self.by_target() {
            return None;
        }
        let Targets { warm_ip, minimum_ip, .. } = self.targets;
        let short =
            warm_ip.saturating_sub(stats.available()).max(minimum_ip.saturating_sub(stats.total));
        if !self.prefixes {
            let over = stats.available().saturating_sub(warm_ip);
            return Some(TargetState {
                short,
                over: over.min(stats.total.saturating_sub(minimum_ip)),
            });
        }
        let for_warm = stats.assigned.saturating_add(warm_ip).div_ceil(PREFIX_ADDRESSES);
        let for_minimum = minimum_ip.div_ceil(PREFIX_ADDRESSES);
        let over = stats.free.min(stats.cidrs.saturating_sub(for_warm));
        Some(TargetState {
            short: short.div_ceil(PREFIX_ADDRESSES),
            over: over.min(stats.cidrs.saturating_sub(for_minimum)),
        })
    }

    /// `isDatastorePoolTooLow`.
    fn too_low(&self, stats: &Stats) -> bool {
        if self.max_pods.is_some_and(|max| stats.total >= max) {
            return false;
        }
        if let Some(state) = self.target_state(stats) {
            return state.short > 0;
        }
        let (warm, unit) = if self.prefixes {
            (self.targets.warm_prefix, PREFIX_ADDRESSES)
        } else {
            (self.targets.warm_eni, self.slots_per_eni)
        };
        let available = u64::from(stats.available());
        available < u64::from(unit) * u64::from(warm) || (warm == 0 && available == 0)
    }

    /// `isDatastorePoolTooHigh` and the amount that `tryUnassignCidrsFromAll` returns, in slots.
    fn over(&self, stats: &Stats) -> u32 {
        match self.target_state(stats) {
            Some(state) => state.over,
            None if self.prefixes => stats.free.saturating_sub(self.targets.warm_prefix),
            None => 0,
        }
    }

    /// The slots to ask for in this cycle: `tryAssignIPs`, `getPrefixesNeeded`.
    fn needed(&self, stats: &Stats) -> u32 {
        match (self.target_state(stats), self.prefixes) {
            (Some(state), false) => state.short,
            (Some(state), true) => state.short.max(1),
            (None, false) => self.slots_per_eni,
            (None, true) => self.targets.warm_prefix.saturating_sub(stats.free).max(1),
        }
    }
}

// === impl Pool ===

impl Pool {
    /// A fresh node: the primary ENI without secondary addresses.
    pub(super) fn new() -> Self {
        Self(vec![Eni::default()])
    }

    pub(super) fn enis(&self) -> u32 {
        u32::try_from(self.0.len()).expect("an instance has few ENIs")
    }

    pub(super) fn cidrs(&self) -> u32 {
        self.0.iter().map(|eni| eni.cidrs).sum()
    }

    pub(super) fn total(&self, rules: &Rules) -> u32 {
        self.cidrs() * rules.addresses_per_slot()
    }

    /// Gives a pod an address; false when there is none. Prefixes in use are filled first.
    pub(super) fn place(&mut self, rules: &Rules) -> bool {
        let size = rules.addresses_per_slot();
        let begun = self.0.iter().position(|eni| eni.assigned % size != 0);
        let free = || self.0.iter().position(|eni| eni.assigned < eni.cidrs * size);
        let Some(index) = begun.or_else(free) else {
            return false;
        };
        self.0[index].assigned += 1;
        true
    }

    /// `updateIPPoolIfRequired`: one tick.
    pub(super) fn cycle(&mut self, rules: &Rules) {
        if rules.frozen {
            return;
        }
        let stats = self.stats(rules);
        if rules.too_low(&stats) {
            self.grow(rules, rules.needed(&stats));
        } else {
            self.give_back(rules, rules.over(&stats));
        }
        // On the sums from before the change, as there.
        if self.should_remove_enis(rules, &stats) {
            self.free_eni(rules);
        }
    }

    fn stats(&self, rules: &Rules) -> Stats {
        Stats {
            total: self.total(rules),
            assigned: self.0.iter().map(|eni| eni.assigned).sum(),
            cidrs: self.cidrs(),
            free: self.0.iter().map(|eni| eni.free(rules)).sum(),
        }
    }

    /// `increaseDatastorePool`: one ENI with room is filled; a new ENI only when there is none.
    fn grow(&mut self, rules: &Rules, needed: u32) {
        let skip = usize::from(rules.skip_primary);
        if let Some(eni) = self.0.iter_mut().skip(skip).find(|eni| eni.cidrs < rules.slots_per_eni)
        {
            eni.cidrs += needed.min(rules.slots_per_eni - eni.cidrs);
            return;
        }
        let cidrs = needed.min(rules.slots_per_eni);
        if cidrs > 0 && self.enis() < rules.max_enis {
            self.0.push(Eni { cidrs, assigned: 0 });
        }
    }

    /// `tryUnassignCidrsFromAll`: slots without pods.
    fn give_back(&mut self, rules: &Rules, mut over: u32) {
        for eni in self.0.iter_mut().rev() {
            let returned = over.min(eni.free(rules));
            eni.cidrs -= returned;
            over -= returned;
        }
    }

    /// `shouldRemoveExtraENIs`.
    fn should_remove_enis(&self, rules: &Rules, stats: &Stats) -> bool {
        if rules.by_target() {
            return true;
        }
        let warm = if rules.prefixes { rules.targets.warm_prefix } else { rules.targets.warm_eni };
        let full_eni = u64::from(rules.slots_per_eni * rules.addresses_per_slot());
        u64::from(stats.available()) >= (u64::from(warm) + 1) * full_eni
            || rules.prefixes && self.0.iter().skip(1).any(|eni| eni.assigned == 0)
    }

    /// `getDeletableENI`: a secondary ENI without pods that no target needs.
    fn free_eni(&mut self, rules: &Rules) {
        let Targets { warm_ip, minimum_ip, warm_prefix, .. } = rules.targets;
        let all = self.stats(rules);
        let size = rules.addresses_per_slot();
        let deletable = (1..self.0.len()).rev().find(|index| {
            let eni = self.0[*index];
            let others_total = u64::from(all.total - eni.cidrs * size);
            let others_available = others_total - u64::from(all.assigned - eni.assigned);
            eni.assigned == 0
                && others_available >= rules.rounded_up(warm_ip)
                && others_total >= rules.rounded_up(minimum_ip)
                && (!rules.prefixes || all.free - eni.free(rules) >= warm_prefix)
        });
        if let Some(index) = deletable {
            self.0.remove(index);
        }
    }
}

// === impl Eni and Stats ===

impl Eni {
    /// Slots without a pod.
    fn free(self, rules: &Rules) -> u32 {
        self.cidrs - self.assigned.div_ceil(rules.addresses_per_slot())
    }
}

impl Stats {
    fn available(&self) -> u32 {
        self.total - self.assigned
    }
}
