//! What a pod may have half open.
//!
//! Half-open flows are in tables of their own. A pod has a share of them in each direction, so that neither a flood of
//! its own nor one that is sent to it evicts what others are about to open, and a flood from outside takes nothing from
//! what the pod itself begins. What is over the share is tracked too, in a table that only such pods share.
//!
//! Counted in generations of 34 s: a flow that was not heard of for two of them has expired, and needs no goodbye. The
//! counts are not atomic: a race loses one, and the generation's end forgets it.

use aya_ebpf::maps::LruHashMap;
use veni_ebpf_common::{
    Counter, Flow, PodState,
    flow::{GENERATION_SHIFT, SLOTS},
};

use crate::{
    family::Family,
    maps::{self, POD_STATES},
    work::{Env, Place, Work},
};

/// The table of half-open flows that `place` names.
#[inline(always)]
pub(crate) fn table<F: Family>(place: Place) -> &'static LruHashMap<F::Key, Flow> {
    if place == Place::Overflow { F::overflow() } else { F::half_open() }
}

#[inline(always)]
fn state(env: &Env) -> Option<&'static mut PodState> {
    let state = POD_STATES.get_ptr_mut(env.pod.slot & (SLOTS - 1))?;
    // SAFETY: a valid entry of an array; races lose a count.
    Some(unsafe { &mut *state })
}

/// Whether some of the pod's half-open flows may be in the other table.
#[inline(always)]
pub(crate) fn overflows(env: &Env, now: u32) -> bool {
    let Some(state) = state(env) else { return false };
    state.overflowed_at != 0 && now.wrapping_sub(state.overflowed_at) < env.settings.half_open_ticks
}

/// Finds a half-open flow of `key`: null when there is none.
#[inline(always)]
pub(crate) fn get<F: Family>(env: &Env, now: u32, key: &F::Key) -> Option<(*mut Flow, Place)> {
    if let Some(found) = F::half_open().get_ptr_mut(key) {
        return Some((found, Place::HalfOpen));
    }
    if !overflows(env, now) {
        return None;
    }
    F::overflow().get_ptr_mut(key).map(|found| (found, Place::Overflow))
}

/// Writes a half-open flow where it belongs. A key is in one table at most.
#[inline(always)]
pub(crate) fn insert<F: Family>(
    env: &Env,
    now: u32,
    place: Place,
    key: &F::Key,
    flow: &Flow,
) -> bool {
    if place == Place::Overflow {
        // What an earlier flow left, if one did.
        let _gone = F::half_open().remove(key);
        return F::overflow().insert(key, flow, 0).is_ok();
    }
    if overflows(env, now) {
        let _gone = F::overflow().remove(key);
    }
    F::half_open().insert(key, flow, 0).is_ok()
}

/// Counts a half-open flow that began in direction `origin`: where it belongs.
#[inline(always)]
pub(crate) fn enter(env: &Env, now: u32, origin: u8) -> Place {
    let Some(state) = state(env) else { return Place::Overflow };
    turn(state, now);
    let origin = usize::from(origin & 1);
    if state.half_open[origin] + state.half_open_before[origin] >= env.settings.half_open_cap {
        state.capped += 1;
        // 0 says "never".
        state.overflowed_at = now.max(1);
        maps::count(Counter::HalfOpenCapped);
        return Place::Overflow;
    }
    state.half_open[origin] += 1;
    Place::HalfOpen
}

/// Takes a flow that was last seen at `seen` out of the count.
#[inline(always)]
pub(crate) fn leave(env: &Env, now: u32, seen: u32, origin: u8) {
    let Some(state) = state(env) else { return };
    turn(state, now);
    let origin = usize::from(origin & 1);
    let generation = seen >> GENERATION_SHIFT;
    if generation == state.generation {
        state.half_open[origin] = state.half_open[origin].saturating_sub(1);
    } else if generation.wrapping_add(1) == state.generation {
        state.half_open_before[origin] = state.half_open_before[origin].saturating_sub(1);
    }
}

/// One that goes on counts in this generation, and no longer in the one before. One that is over the share is still
/// to be found.
#[inline(always)]
pub(crate) fn go_on<F: Family>(env: &Env, work: &Work<F>, before: u32) {
    if work.place == Place::Overflow {
        if let Some(state) = state(env) {
            state.overflowed_at = work.now.max(1);
        }
        return;
    }
    if before >> GENERATION_SHIFT == work.now >> GENERATION_SHIFT {
        return;
    }
    leave(env, work.now, before, work.entry.origin);
    if let Some(state) = state(env) {
        state.half_open[usize::from(work.entry.origin & 1)] += 1;
    }
}

#[inline(always)]
fn turn(state: &mut PodState, now: u32) {
    let generation = now >> GENERATION_SHIFT;
    if state.generation == generation {
        return;
    }
    let follows = state.generation.wrapping_add(1) == generation;
    state.half_open_before = if follows { state.half_open } else { [0; 2] };
    state.half_open = [0; 2];
    state.generation = generation;
}
