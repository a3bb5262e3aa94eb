//! Flow events: one a new flow, within the pod's rate.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use veni_ebpf_common::{
    Counter, Event, SettingFlags, Settings,
    event::ALLOWED,
    flow::{SLOTS, TICK_SHIFT},
    table::Decision,
};

use crate::{
    family::Family,
    maps::{self, EVENTS, POD_STATES},
    work::{Env, NO_REASON, Work, ends, is_icmp},
};

/// The time in ticks.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}

/// Tells about a flow: new and let through, new and refused, or revoked.
#[inline(never)]
pub(crate) fn emit<F: Family>(env: &Env, work: &Work<F>) -> u32 {
    let allowed = work.reason == NO_REASON;
    maps::count(if allowed { Counter::FlowsAllowed } else { Counter::FlowsDenied });
    let wanted = if allowed { SettingFlags::EVENTS_ALLOWED } else { SettingFlags::EVENTS_DENIED };
    if env.settings.flags & wanted == 0 || !take_token(env.pod.slot, env.settings, work.now) {
        return 0;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        maps::count(Counter::EventsLost);
        return 0;
    };
    let packet = &work.packet;
    let (_, local_port, _) = ends::<F>(packet, work.is_egress());
    let remote_port = if is_icmp::<F>(packet.protocol) { packet.message } else { work.remote_port };
    let (service, service_port) = if work.translated {
        (F::wide(&packet.destination), packet.destination_port)
    } else {
        ([0; 16], 0)
    };
    let decision = if allowed { work.decision } else { Decision::deny(work.decision.rule()) };
    entry.write(Event {
        // SAFETY: no arguments.
        at: unsafe { bpf_ktime_get_coarse_ns() },
        remote: F::wide(&work.remote),
        service,
        slot: env.pod.slot,
        incarnation: env.pod.incarnation,
        decision,
        class: work.class,
        local_port,
        remote_port,
        service_port,
        protocol: packet.protocol,
        family: F::VERSION,
        direction: work.direction,
        reason: if allowed { ALLOWED } else { work.reason as u8 },
        flags: work.entry.flags,
        revoked: u8::from(work.rejudged),
        reserved: 0,
    });
    entry.submit(0);
    1
}

/// A token of the pod's bucket: `event_burst` at most, `event_rate` a second.
#[inline(always)]
fn take_token(slot: u32, settings: &Settings, now: u32) -> bool {
    let Some(state) = POD_STATES.get_ptr_mut(slot & (SLOTS - 1)) else { return false };
    // SAFETY: a valid entry; races lose a count.
    let state = unsafe { &mut *state };
    let elapsed = now.wrapping_sub(state.tokens_at);
    let given = (u64::from(elapsed) * u64::from(settings.event_rate)) >> 10;
    if given > 0 {
        let tokens = u64::from(state.tokens) + given;
        let burst = u64::from(settings.event_burst);
        state.tokens = if tokens > burst { burst as u32 } else { tokens as u32 };
        state.tokens_at = now;
    }
    if state.tokens == 0 {
        state.suppressed += 1;
        maps::count(Counter::EventsSuppressed);
        return false;
    }
    state.tokens -= 1;
    true
}
