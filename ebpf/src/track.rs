//! New flows written: what has their keys, and which port they get on the wire.
//!
//! Invariants: what the pod says last holds, and nobody but the pod takes a key from a flow that the pod began. As in
//! [`crate::conntrack`], what is decided on is a copy of an entry.

use veni_ebpf_common::{
    Counter, DropReason, Flow, FlowFlags, FlowKind,
    packet::{SCTP, TCP, tcp},
};

use crate::{
    conntrack::{alive, remove_views},
    family::{Family, same16},
    half_open, maps, service,
    work::{Env, Place, Work, is_syn},
};

/// Other source ports that are tried for a translated flow whose own is taken.
const PORTS_TRIED: u32 = 3;

/// Nothing is in the way.
const FREE: u32 = 0;
/// Another, living flow has the key.
const TAKEN: u32 = 1;
/// It passes, and what is there stays: the flow itself, half open; or a flow that a packet into the pod has nothing to
/// do with.
const KEPT: u32 = 2;

/// Writes a new flow's entries.
#[inline(never)]
pub(crate) fn track<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    work.entry.decision = work.decision;
    if work.packet.protocol == TCP && work.packet.flags & tcp::SYN == 0 {
        if work.packet.flags & tcp::RST != 0 {
            work.event = false;
            return 0;
        }
        maps::count(Counter::PickedUp);
    }
    match clear(env, work) {
        TAKEN => {
            work.refuse(DropReason::PortCollision);
            return 0;
        }
        KEPT => {
            work.event = false;
            return 0;
        }
        _ => {}
    }
    let place = half_open::enter(env, work.now, work.entry.origin);
    if work.translated {
        return translated(env, work, place);
    }
    if !half_open::insert::<F>(env, work.now, place, &work.key, &work.entry) {
        maps::count(Counter::InsertFailed);
    }
    1
}

/// Clears the key of what an earlier flow left there, both views of it.
#[inline(always)]
fn clear<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    if let Some(found) = F::flows().get_ptr(&work.key) {
        // SAFETY: a valid entry; see the module.
        work.reverse = unsafe { *found };
        let claim = claim(env, work);
        if claim != FREE {
            return claim;
        }
        if alive(env, work, &work.reverse) {
            remove_views(env, work);
        } else {
            // Gone already: the LRU was faster.
            let _gone = F::flows().remove(&work.key);
        }
    }
    let Some((found, _)) = half_open::get::<F>(env, work.now, &work.key) else { return FREE };
    // SAFETY: a valid entry; see the module.
    let old = unsafe { &mut *found };
    work.reverse = *old;
    let claim = claim(env, work);
    if claim != FREE || !alive(env, work, &work.reverse) {
        return claim;
    }
    let closing = work.reverse.flags & (FlowFlags::CLOSING | FlowFlags::RESET) != 0;
    let same = work.reverse.kind == FlowKind::DIRECT && work.reverse.origin == work.direction;
    if same && !closing && !work.translated && is_syn(&work.packet) {
        old.seen = work.now;
        old.epoch = work.entry.epoch;
        old.decision = work.decision;
        old.flags = (old.flags & !FlowFlags::EXEMPT) | (work.entry.flags & FlowFlags::EXEMPT);
        return KEPT;
    }
    if work.reverse.kind != FlowKind::DIRECT {
        remove_views(env, work);
    }
    FREE
}

/// Whether a flow that has the key of a new one ([`Work::reverse`]) leaves it free.
#[inline(never)]
fn claim<F: Family>(env: &Env, work: &Work<F>) -> u32 {
    let old = &work.reverse;
    if old.kind == FlowKind::DIRECT || !alive(env, work, old) {
        return FREE;
    }
    if old.kind == FlowKind::FORWARD {
        // Nobody but the pod ends what the pod began.
        return if work.is_egress() { FREE } else { KEPT };
    }
    let closing = old.flags & (FlowFlags::CLOSING | FlowFlags::RESET) != 0;
    // The port of a datagram's sender may be bound for good: what the pod says last holds.
    let bound =
        work.is_egress() && work.packet.protocol != TCP && old.flags & FlowFlags::HAIRPIN == 0;
    if closing || bound { FREE } else { TAKEN }
}

/// Writes both views of a translated flow.
#[inline(always)]
fn translated<F: Family>(env: &Env, work: &mut Work<F>, place: Place) -> u32 {
    let hairpin = work.entry.flags & FlowFlags::HAIRPIN != 0;
    work.reverse = work.entry;
    work.reverse.kind = FlowKind::REVERSE;
    work.reverse.address = F::wide(&work.packet.destination);
    work.reverse.remote_port = work.packet.destination_port.to_be_bytes();
    work.reverse.local_port = work.packet.source_port.to_be_bytes();
    work.entry.kind = FlowKind::FORWARD;
    // The pod that talks to itself sees an address that stands for it.
    let (remote, remote_port, mut local_port) = if hairpin {
        (F::hairpin(env.settings), work.packet.source_port, work.remote_port)
    } else {
        (work.remote, work.remote_port, work.packet.source_port)
    };
    let protocol = work.packet.protocol;
    let mut tried = 0;
    loop {
        work.other = F::key(
            env.pod.slot,
            remote,
            local_port.to_be_bytes(),
            remote_port.to_be_bytes(),
            protocol,
        );
        if is_taken(env, work) == 0 {
            break;
        }
        tried += 1;
        if tried == PORTS_TRIED || hairpin || protocol == SCTP {
            work.refuse(DropReason::PortCollision);
            return 0;
        }
        local_port = service::random_port();
    }
    if tried > 0 {
        maps::count(Counter::PortChanged);
    }
    work.entry.address = F::wide(&remote);
    work.entry.remote_port = remote_port.to_be_bytes();
    work.entry.local_port = local_port.to_be_bytes();
    let written = half_open::insert::<F>(env, work.now, place, &work.other, &work.reverse)
        && half_open::insert::<F>(env, work.now, place, &work.key, &work.entry);
    if !written {
        maps::count(Counter::InsertFailed);
        work.refuse(DropReason::Untracked);
        return 0;
    }
    // What an earlier flow to the same back end left.
    let _gone = F::flows().remove(&work.other);
    maps::count(Counter::Translated);
    1
}

/// Whether another, living flow has the wire's view.
#[inline(never)]
fn is_taken<F: Family>(env: &Env, work: &Work<F>) -> u32 {
    let established = F::flows().get_ptr(&work.other);
    if established.is_some_and(|found| is_others(env, work, found)) {
        return 1;
    }
    let half_open = half_open::get::<F>(env, work.now, &work.other);
    u32::from(half_open.is_some_and(|(found, _)| is_others(env, work, found)))
}

#[inline(always)]
fn is_others<F: Family>(env: &Env, work: &Work<F>, found: *const Flow) -> bool {
    // SAFETY: a valid entry; see the module.
    let old = unsafe { &*found };
    let same = old.kind == FlowKind::REVERSE
        && same16(&old.address, &work.reverse.address)
        && old.remote_port == work.reverse.remote_port
        && old.local_port == work.reverse.local_port;
    let closing = old.flags & (FlowFlags::CLOSING | FlowFlags::RESET) != 0;
    !same && !closing && alive(env, work, old)
}
