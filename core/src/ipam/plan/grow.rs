//! Growing: which ENIs get how many addresses, and which ENIs must be made.

use super::{Addresses, Blocked, Grow, Plan, Snapshot, Step, place::tell_full};
use crate::{ipam::ledger::Eni, marks::EniSlot};

/// An ENI in use with room.
struct Room {
    slot: EniSlot,
    eni: crate::id::EniId,
    room: u32,
}

/// How a want is spread.
#[derive(Debug, PartialEq, Eq)]
struct Spread {
    /// Addresses of each ENI to be made.
    new_enis: Vec<u32>,
    /// Addresses for each ENI with room, in their order.
    assigned: Vec<u32>,
    /// What fits nowhere.
    unmet: u32,
}

pub(super) fn grow(plan: &mut Plan, snapshot: &Snapshot<'_>) {
    let grow = snapshot.pool().grow(&snapshot.settings.targets);
    let (wanted, whole) = match grow {
        Grow::Enough => {
            plan.reasons.push("the targets are met".to_owned());
            return;
        }
        Grow::Addresses(n) => (n, false),
        Grow::WholeEnis(n) => (n, true),
    };
    plan.wanted = wanted;
    let assign_block = snapshot.blocked(Blocked::Assign);
    let rooms = if assign_block.is_some() { Vec::new() } else { rooms(plan, snapshot) };
    let slots = free_slots(snapshot);
    let eni_block = snapshot.blocked(Blocked::NewEni);
    let place = snapshot.new_place();
    let hopeless = eni_block.is_some() || place.is_none() || snapshot.stuck().is_some();
    let creatable = if hopeless { 0 } else { slots.len() };
    tell_full(plan, snapshot);
    for block in [assign_block, eni_block].into_iter().flatten() {
        plan.wait(block.until, block.reason.clone());
    }
    let room_sizes: Vec<u32> = rooms.iter().map(|r| r.room).collect();
    let later = if assign_block.is_some() { 0 } else { room_soon(plan, snapshot) };
    let spread = spread(wanted, whole, &room_sizes, later, snapshot.limits.per_eni, creatable);
    let missing = Addresses(wanted).are();
    let fit = snapshot.activity.fit.unwrap_or(u32::MAX);
    for (room, count) in rooms.into_iter().zip(spread.assigned).filter(|(_, count)| *count > 0) {
        let count = count.min(fit);
        let fit = if count == 1 { "fits" } else { "fit" };
        plan.reasons.push(format!("{missing} missing: {count} {fit} on {}", room.eni));
        plan.steps.push(Step::Assign { slot: room.slot, eni: room.eni, count });
    }
    for (slot, addresses) in slots.into_iter().zip(spread.new_enis) {
        let addresses = addresses.min(fit);
        let token = format!("{}-{}-{}", snapshot.settings.token_seed, slot.get(), snapshot.now.0);
        let Some(place) = place.clone() else { break };
        let there = match snapshot.settings.networking.custom {
            Some(_) => format!(" in {}", place.subnet),
            None => String::new(),
        };
        plan.reasons.push(format!("{missing} missing: a new ENI{there} brings {addresses}"));
        plan.steps.push(Step::CreateEni { slot, token, addresses, place, planned: false });
    }
    if later.min(spread.unmet) > 0 {
        let fit = later.min(spread.unmet);
        let fits = if fit == 1 { "fits" } else { "fit" };
        plan.reasons.push(format!("{missing} missing: {fit} {fits} on ENIs that are busy or come"));
    }
    if spread.unmet > later && creatable == 0 && !hopeless {
        let custom = snapshot.settings.networking.custom.is_some();
        plan.reasons.push(format!(
            "{} missing and every ENI slot is taken ({} {} of {}{})",
            Addresses(spread.unmet - later).are(),
            snapshot.limits.max_enis,
            if snapshot.limits.max_enis == 1 { "ENI" } else { "ENIs" },
            Addresses(snapshot.limits.per_eni),
            if custom { ", of which the primary one gives pods none" } else { "" }
        ));
    }
}

/// ENIs in use with room, roomiest first: fewest calls for the same number of addresses.
fn rooms(plan: &Plan, snapshot: &Snapshot<'_>) -> Vec<Room> {
    let mut rooms: Vec<_> = snapshot
        .ledger
        .enis()
        .filter(|eni| {
            eni.in_use() && snapshot.idle(eni) && !plan.steps.iter().any(|s| s.slot() == eni.slot)
        })
        .filter_map(|eni| {
            let room = snapshot.room(eni);
            let facts = eni.facts.as_ref().filter(|_| room > 0)?;
            Some(Room { slot: eni.slot, eni: facts.id.clone(), room })
        })
        .collect();
    rooms.sort_by_key(|r| (std::cmp::Reverse(r.room), r.slot));
    rooms
}

/// The room that ENIs will have in a moment: those in use once the call about them has ended, those on their way once they are
/// there. It takes one call then, where a further ENI takes three, comes later than they do, and is too many.
fn room_soon(plan: &Plan, snapshot: &Snapshot<'_>) -> u32 {
    let activity = &snapshot.activity;
    let room = |eni: &Eni| {
        let known = !activity.doubts.contains(&eni.slot)
            && snapshot.blocked(Blocked::Slot(eni.slot)).is_none();
        if !known {
            return 0;
        }
        if eni.arriving() {
            let comes = !snapshot.is_late(eni) && !snapshot.is_unconfigured(eni);
            // What it promises may be among what it holds already.
            let room = snapshot.room(eni) + eni.counts().free;
            return if comes { room.saturating_sub(eni.promised()) } else { 0 };
        }
        let planned = || plan.steps.iter().find(|step| step.slot() == eni.slot);
        match activity.in_flight.get(&eni.slot).or_else(planned) {
            Some(
                step @ (Step::Assign { .. }
                | Step::Unassign { .. }
                | Step::ProtectEni { .. }
                | Step::SetGroups { .. }),
            ) if eni.in_use() => snapshot.room(eni).saturating_sub(step.incoming()),
            _ => 0,
        }
    };
    snapshot.ledger.enis().map(room).sum()
}

/// Slots where an ENI can be made, lowest first.
fn free_slots(snapshot: &Snapshot<'_>) -> Vec<EniSlot> {
    let foreign = &snapshot.activity.foreign;
    let taken = snapshot.ledger.enis().count() + foreign.len();
    let left = (snapshot.limits.max_enis as usize).saturating_sub(taken);
    (0..snapshot.limits.device_indexes)
        .filter_map(|device_index| EniSlot::new(0, device_index))
        .filter(|slot| snapshot.ledger.eni(*slot).is_none() && !foreign.contains(slot))
        .take(left)
        .collect()
}

/// Spreads `wanted` addresses in as few calls as can be (an assign is one call, a new ENI three). `later` is room that there
/// will be in a moment: no ENI is made for what fits there.
fn spread(
    wanted: u32,
    whole: bool,
    rooms: &[u32],
    later: u32,
    per_eni: u32,
    creatable: usize,
) -> Spread {
    let room = rooms.iter().sum::<u32>().saturating_add(later);
    let creatable = u32::try_from(creatable).unwrap_or(u32::MAX);
    let enis = wanted.saturating_sub(room).div_ceil(per_eni.max(1)).min(creatable);
    let mut left = wanted;
    let mut new_enis = Vec::new();
    for _ in 0..enis {
        let take = if whole { per_eni } else { left.min(per_eni) };
        new_enis.push(take);
        left = left.saturating_sub(take);
    }
    let mut assigned = Vec::new();
    for room in rooms {
        let take = if left == 0 {
            0
        } else if whole {
            *room
        } else {
            left.min(*room)
        };
        assigned.push(take);
        left = left.saturating_sub(take);
    }
    Spread { new_enis, assigned, unmet: left }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        wanted: u32,
        whole: bool,
        rooms: &[u32],
        creatable: usize,
        expect: (&[u32], &[u32], u32),
    ) {
        let got = spread(wanted, whole, rooms, 0, 14, creatable);
        let expect =
            Spread { new_enis: expect.0.to_vec(), assigned: expect.1.to_vec(), unmet: expect.2 };
        assert_eq!(got, expect, "{wanted} over rooms {rooms:?}");
    }

    #[test]
    fn a_want_is_spread_in_the_fewest_calls() {
        check(10, false, &[14], 3, (&[], &[10], 0));
        check(4, false, &[4], 3, (&[], &[4], 0));
        // 25 do not fit on 4; the two ENIs that are needed anyway take them all.
        check(25, false, &[4], 3, (&[14, 11], &[0], 0));
        check(46, false, &[4], 3, (&[14, 14, 14], &[4], 0));
        check(50, false, &[4], 3, (&[14, 14, 14], &[4], 4));
        check(20, false, &[14, 14], 1, (&[], &[14, 6], 0));
        check(20, false, &[], 0, (&[], &[], 20));
    }

    #[test]
    fn no_eni_is_made_for_what_fits_in_a_moment() {
        let check = |wanted, later, expect: (&[u32], u32)| {
            let got = spread(wanted, false, &[2], later, 14, 3);
            assert_eq!((&*got.new_enis, got.unmet), expect, "{wanted} with room for {later} later");
        };
        check(5, 3, (&[], 3));
        check(2, 3, (&[], 0));
        check(6, 3, (&[6], 0));
    }

    #[test]
    fn whole_enis_are_filled_to_the_brim() {
        check(1, true, &[14], 3, (&[], &[14], 0));
        check(30, true, &[], 3, (&[14, 14, 14], &[], 0));
        check(1, true, &[], 3, (&[14], &[], 0));
    }
}
