//! Giving back: idle ENIs first, then single addresses.

use std::collections::BTreeSet;

use super::{
    Addresses, Blocked, BootTime, MIN_ENI_AGE, Plan, PoolState, SHRINK_PATIENCE, SUBNET_FULL,
    Snapshot, Step,
};
use crate::{ipam::Eni, marks::EniSlot};

pub(super) fn shrink(plan: &mut Plan, snapshot: &Snapshot<'_>) {
    let mut pool = snapshot.pool();
    let targets = &snapshot.settings.targets;
    // What is on its way in is not there to be given back; the next plan sees it.
    pool.incoming = 0;
    plan.excess = pool.excess(targets);
    if snapshot.activity.in_flight.values().any(|step| matches!(step, Step::Assign { .. })) {
        // What it brings decides what can go: the next plan sees it.
        return;
    }
    if snapshot.activity.unclaimed > 0 {
        plan.reasons.push(format!(
            "nothing is given back: EC2 does not show every pod's address yet ({} to come)",
            snapshot.activity.unclaimed
        ));
        return;
    }
    let candidates = idle_enis(plan, snapshot);
    let any_eni = candidates.iter().any(|eni| spare(pool, snapshot, eni));
    let movable = candidates.iter().any(|eni| movable(snapshot, pool, eni));
    if plan.wanted > 0 || (plan.excess == 0 && !any_eni && !movable) {
        return;
    }
    if let Some(block) = snapshot.blocked(Blocked::Shrink) {
        plan.wait(block.until, block.reason.clone());
        return;
    }
    if let Some(until) = patience(snapshot, pool) {
        plan.wait(
            until,
            format!("the pool shrinks after the cooldown of {}", Addresses(pool.counts.cooling)),
        );
        return;
    }
    let spoken_for = free_enis(plan, snapshot, &mut pool, &candidates);
    if consolidate(plan, snapshot, pool, &candidates, &spoken_for) {
        return;
    }
    unassign(plan, snapshot, pool, &spoken_for);
}

/// While addresses cool, an excess waits a little: the rest will follow, and one call gives all of it back.
fn patience(snapshot: &Snapshot<'_>, pool: PoolState) -> Option<BootTime> {
    let since = snapshot.activity.excess_since.unwrap_or(snapshot.now);
    let until = since.after(SHRINK_PATIENCE);
    (pool.counts.cooling > 0 && until > snapshot.now).then_some(until)
}

/// ENIs in use that no pod and no cooldown holds, fullest first, then the highest place.
fn idle_enis<'a>(plan: &Plan, snapshot: &Snapshot<'a>) -> Vec<&'a Eni> {
    let mut enis: Vec<_> = snapshot
        .ledger
        .enis()
        .filter(|eni| {
            let counts = eni.counts();
            eni.in_use()
                && !eni.primary
                && snapshot.serves(eni)
                && counts.assigned + counts.cooling + counts.releasing == 0
                && !eni.free().any(|address| snapshot.quarantined(address))
                && snapshot.idle(eni)
                && !plan.steps.iter().any(|s| s.slot() == eni.slot)
        })
        .collect();
    enis.sort_by_key(|eni| std::cmp::Reverse((eni.counts().free, eni.slot)));
    enis
}

/// As the pool counts them.
fn usable_total(snapshot: &Snapshot<'_>, eni: &Eni) -> u32 {
    eni.counts().total() - eni.counts().free + snapshot.usable_free(eni)
}

fn spare(pool: PoolState, snapshot: &Snapshot<'_>, eni: &Eni) -> bool {
    pool.can_spare_eni(
        &snapshot.settings.targets,
        snapshot.usable_free(eni),
        usable_total(snapshot, eni),
    )
}

/// Frees idle ENIs; those that are too young yet are left alone. Returns the slots of both.
fn free_enis(
    plan: &mut Plan,
    snapshot: &Snapshot<'_>,
    pool: &mut PoolState,
    candidates: &[&Eni],
) -> BTreeSet<EniSlot> {
    let mut spoken_for = BTreeSet::new();
    for eni in candidates {
        if !spare(*pool, snapshot, eni) {
            continue;
        }
        let Some((facts, attachment)) = eni.facts.as_ref().zip(eni.attachment.clone()) else {
            continue;
        };
        pool.counts.free -= snapshot.usable_free(eni);
        spoken_for.insert(eni.slot);
        let old_enough = eni.since.after(MIN_ENI_AGE);
        if old_enough > snapshot.now {
            plan.wait(old_enough, format!("{} is idle and too young to be freed", facts.id));
            continue;
        }
        plan.reasons.push(format!("{} is idle and the targets hold without it", facts.id));
        plan.steps.push(Step::DetachEni { slot: eni.slot, attachment, draining: false });
    }
    spoken_for
}

/// Whether an idle ENI is kept by a few addresses that others have room for: a call that failed half-way,
/// or pods that went in an unlucky order, leave it so, and nothing else would ever free it.
fn movable(snapshot: &Snapshot<'_>, pool: PoolState, eni: &Eni) -> bool {
    let short = short(snapshot, pool, eni);
    let room: u32 = others_with_room(snapshot, eni).map(|other| snapshot.room(other)).sum();
    let headroom = pool.max_pods.map_or(u32::MAX, |max| max.saturating_sub(pool.counts.total()));
    eni.counts().free > 0
        && pool.counts.cooling + pool.waiting == 0
        && may_move(snapshot, short, eni)
        && (1..=room.min(headroom)).contains(&short)
}

/// Whether the others can be given addresses: at once, or where the subnet is full (of this node's own ENIs, it may be)
/// once the idle one has given some back.
fn may_move(snapshot: &Snapshot<'_>, short: u32, idle: &Eni) -> bool {
    if subnet_is_full(snapshot) {
        to_give_back(snapshot, short, idle) > 0
    } else {
        snapshot.blocked(Blocked::Assign).is_none()
    }
}

/// Whether the subnet has refused even one address, and nothing has gone back to it since.
fn subnet_is_full(snapshot: &Snapshot<'_>) -> bool {
    let refused = snapshot.activity.blocks.get(&Blocked::Assign);
    refused.is_some_and(|block| block.kind == SUBNET_FULL)
}

/// How many an idle ENI can give back while the targets hold, of those that others are to have in their place.
fn to_give_back(snapshot: &Snapshot<'_>, short: u32, idle: &Eni) -> u32 {
    snapshot.usable_free(idle).saturating_sub(short).min(short)
}

fn short(snapshot: &Snapshot<'_>, pool: PoolState, eni: &Eni) -> u32 {
    let targets = &snapshot.settings.targets;
    pool.short_without_eni(targets, snapshot.usable_free(eni), usable_total(snapshot, eni))
}

/// Where an idle ENI's addresses could be instead: on the primary, or on one that pods hold.
fn others_with_room<'a>(
    snapshot: &Snapshot<'a>,
    idle: &'a Eni,
) -> impl Iterator<Item = &'a Eni> + use<'a> {
    let snapshot = *snapshot;
    snapshot.ledger.enis().filter(move |eni| {
        eni.slot != idle.slot
            && eni.in_use()
            && (eni.primary || eni.counts().assigned > 0)
            && snapshot.idle(eni)
            && snapshot.room(eni) > 0
    })
}

/// Moves what keeps an otherwise idle ENI to another one: the next plan frees it whole.
fn consolidate(
    plan: &mut Plan,
    snapshot: &Snapshot<'_>,
    pool: PoolState,
    candidates: &[&Eni],
    spoken_for: &BTreeSet<EniSlot>,
) -> bool {
    let left = candidates.iter().filter(|eni| !spoken_for.contains(&eni.slot));
    let Some(eni) = left.min_by_key(|eni| short(snapshot, pool, eni)) else { return false };
    if !movable(snapshot, pool, eni) {
        return false;
    }
    let old_enough = eni.since.after(MIN_ENI_AGE);
    if old_enough > snapshot.now {
        let device = eni.slot.device_index();
        plan.wait(
            old_enough,
            format!("the ENI of device {device} is idle and too young to be freed"),
        );
        return true;
    }
    let mut short = short(snapshot, pool, eni);
    if subnet_is_full(snapshot) {
        return make_room(plan, snapshot, eni, to_give_back(snapshot, short, eni));
    }
    let fit = snapshot.activity.fit.unwrap_or(u32::MAX);
    let mut others: Vec<_> = others_with_room(snapshot, eni)
        .filter(|other| !plan.steps.iter().any(|s| s.slot() == other.slot))
        .collect();
    others.sort_by_key(|other| (std::cmp::Reverse(snapshot.room(other)), other.slot));
    for other in others {
        let count = short.min(snapshot.room(other)).min(fit);
        let Some(facts) = other.facts.as_ref().filter(|_| count > 0) else { continue };
        short -= count;
        plan.reasons.push(format!(
            "the ENI of device {} is idle: {} more on {} and it can go",
            eni.slot.device_index(),
            Addresses(count),
            facts.id
        ));
        plan.steps.push(Step::Assign { slot: other.slot, eni: facts.id.clone(), count });
    }
    true
}

/// Gives back from an idle ENI what others are to get in its place.
fn make_room(plan: &mut Plan, snapshot: &Snapshot<'_>, idle: &Eni, count: u32) -> bool {
    let free = idle.free().rev().filter(|address| snapshot.usable(idle.slot, *address));
    let addresses: Vec<_> = free.take(count as usize).collect();
    let Some(facts) = idle.facts.as_ref() else { return false };
    plan.reasons.push(format!(
        "{} is idle and the subnet is full: {count} of its addresses go back, for others to have",
        facts.id
    ));
    plan.steps.push(Step::Unassign {
        slot: idle.slot,
        eni: facts.id.clone(),
        addresses,
        announced: false,
    });
    true
}

/// Takes what is still too much from the ENIs with the fewest pods, so that they empty.
fn unassign(
    plan: &mut Plan,
    snapshot: &Snapshot<'_>,
    pool: PoolState,
    spoken_for: &BTreeSet<EniSlot>,
) {
    // An idle ENI with a call under way may be freed whole when it is back: emptying others now would keep it.
    let undecided = |eni: &Eni| {
        let counts = eni.counts();
        let idle = !eni.primary && counts.free > 0 && counts.assigned + counts.cooling == 0;
        eni.in_use() && snapshot.serves(eni) && idle
    };
    if snapshot.ledger.enis().any(|eni| undecided(eni) && !snapshot.idle(eni)) {
        return;
    }
    let mut excess = pool.excess(&snapshot.settings.targets);
    let mut enis: Vec<_> = snapshot
        .ledger
        .enis()
        .filter(|eni| eni.in_use() && snapshot.serves(eni) && snapshot.idle(eni))
        .filter(|eni| !spoken_for.contains(&eni.slot))
        .filter(|eni| !plan.steps.iter().any(|s| s.slot() == eni.slot))
        .collect();
    enis.sort_by_key(|eni| (eni.primary, eni.counts().assigned, std::cmp::Reverse(eni.slot)));
    for eni in enis {
        // Those that have rested longest are the most valuable to keep.
        let addresses: Vec<_> = eni
            .free()
            .rev()
            .filter(|address| !snapshot.quarantined(*address))
            .take(excess as usize)
            .collect();
        let take = u32::try_from(addresses.len()).expect("an ENI has few addresses");
        let Some(facts) = eni.facts.as_ref().filter(|_| take > 0) else {
            continue;
        };
        excess -= take;
        let more = Addresses(take);
        plan.reasons.push(format!("{} has {more} more than the targets ask for", facts.id));
        plan.steps.push(Step::Unassign {
            slot: eni.slot,
            eni: facts.id.clone(),
            addresses,
            announced: false,
        });
    }
}
