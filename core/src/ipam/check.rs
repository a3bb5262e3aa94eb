//! The invariants of a ledger, checked from the outside: after every step in tests, in the daemon
//! at a start without a whole journal.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
};

use super::{AddressState, Counts, Ledger, Phase, plan::PoolLimits};

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Two attachments have the same address, or one that the ledger does not hold for it.
    #[error("address {0} is not assigned to exactly the attachment that claims it")]
    Assignment(Ipv4Addr),
    /// Two host veths have the same index or name.
    #[error("host interface {0} is used twice")]
    HostInterface(String),
    /// An address lies on an ENI that the ledger does not have.
    #[error("address {0} is on no ENI")]
    Homeless(Ipv4Addr),
    /// An ENI holds more than it may, or there are more than may be.
    #[error("slot {slot} holds {held} addresses, {limit} are allowed")]
    AddressLimit {
        /// The slot.
        slot: u8,
        /// What it holds.
        held: u32,
        /// What it may hold.
        limit: u32,
    },
    /// The sums do not add up.
    #[error("the sums of slot {0} do not match its addresses")]
    Counts(u8),
    /// An ENI on its way out has pods.
    #[error("slot {0} is on its way out and has pods")]
    LeavingWithPods(u8),
}

/// All broken invariants of `ledger`; empty when it is sound.
#[must_use]
pub fn check(ledger: &Ledger, limits: PoolLimits) -> Vec<Violation> {
    let mut violations = Vec::new();
    check_allocations(ledger, &mut violations);
    check_enis(ledger, limits, &mut violations);
    violations
}

fn check_allocations(ledger: &Ledger, violations: &mut Vec<Violation>) {
    let (mut interfaces, mut claimed) = (HashSet::new(), HashSet::new());
    for allocation in ledger.allocations() {
        let held = matches!(
            ledger.address(allocation.address),
            Some((slot, AddressState::Assigned(owner), _)) if *owner == allocation.attachment && slot == allocation.slot
        );
        if !held || !claimed.insert(allocation.address) {
            violations.push(Violation::Assignment(allocation.address));
        }
        for interface in
            [allocation.host_ifname.to_string(), format!("index {}", allocation.host_ifindex)]
        {
            if !interfaces.insert(interface.clone()) {
                violations.push(Violation::HostInterface(interface));
            }
        }
    }
    for (address, _, state) in ledger.addresses() {
        if matches!(state, AddressState::Assigned(_)) && !claimed.contains(&address) {
            violations.push(Violation::Assignment(address));
        }
    }
}

fn check_enis(ledger: &Ledger, limits: PoolLimits, violations: &mut Vec<Violation>) {
    let mut sums: HashMap<_, Counts> = HashMap::new();
    for (address, slot, state) in ledger.addresses() {
        if ledger.eni(slot).is_none() {
            violations.push(Violation::Homeless(address));
        }
        let sum = sums.entry(slot).or_default();
        match state {
            AddressState::Free { .. } => sum.free += 1,
            AddressState::Assigned(_) => sum.assigned += 1,
            AddressState::Cooling { .. } => sum.cooling += 1,
            AddressState::Releasing => sum.releasing += 1,
        }
    }
    for eni in ledger.enis() {
        let sum = sums.get(&eni.slot).copied().unwrap_or_default();
        let slot = eni.slot.get();
        if sum != eni.counts() {
            violations.push(Violation::Counts(slot));
        }
        if sum.held() > limits.per_eni {
            violations.push(Violation::AddressLimit {
                slot,
                held: sum.held(),
                limit: limits.per_eni,
            });
        }
        let leaving = matches!(eni.phase, Phase::Draining | Phase::Detaching | Phase::Detached);
        if leaving && sum.assigned > 0 {
            violations.push(Violation::LeavingWithPods(slot));
        }
    }
}
