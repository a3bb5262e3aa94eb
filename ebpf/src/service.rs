//! Services: a back end for a new flow of the pod.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use veni_ebpf_common::{
    Counter, DropReason, FlowFlags, FlowKind,
    flow::{AffinityKey, AffinityValue, ticks},
    packet::{Kind, SCTP, TCP, UDP, tcp},
    table::{BackendKey, MemberKey, ServiceValue},
};

use crate::{
    conntrack::REFRESH,
    family::Family,
    half_open,
    maps::{self, AFFINITY, BACKENDS, MEMBERS},
    work::{Env, Work, has_ports},
};

/// Chooses a back end for a new flow to a front end: [`Work::translated`], with the back end as the other end; or finds
/// the flow, half open; or refuses. Otherwise the flow is what it is.
#[inline(never)]
pub(crate) fn choose<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    let protocol = work.packet.protocol;
    if !has_ports(protocol) {
        return 0;
    }
    let port = work.packet.destination_port;
    let Some(service) = F::service(&work.packet.destination, port, protocol) else { return 0 };
    if service.count == ServiceValue::OF_PROXY {
        leave(env, work, DropReason::UnknownService);
        return 0;
    }
    // The middle of a TCP flow: it has a back end already, by kube-proxy if by anyone.
    if protocol == TCP && work.packet.flags & tcp::SYN == 0 {
        if work.isolated(env) {
            work.event = true;
            work.refuse(DropReason::UnknownService);
        }
        return 0;
    }
    work.remote = work.packet.destination;
    work.remote_port = port;
    if is_again(env, work) {
        return 0;
    }
    if service.count == 0 || !pick(env, work, service) {
        // kube-proxy's answer tells the pod at once. Nothing is remembered: the next packet may find a back end.
        work.untracked = true;
        leave(env, work, DropReason::NoBackend);
        return 0;
    }
    if protocol == SCTP && work.remote_port != port {
        leave(env, work, DropReason::SctpPort);
        return 0;
    }
    work.translated = true;
    1
}

/// What is not translated here: kube-proxy's, from a pod that may send anything anywhere; whom it sends it to is judged
/// there. Where it leads is not known, so from any other pod it is refused.
#[inline(always)]
fn leave<F: Family>(env: &Env, work: &mut Work<F>, reason: DropReason) {
    if work.isolated(env) {
        work.event = true;
        work.refuse(reason);
    } else {
        maps::count(Counter::LeftToProxy);
    }
}

/// Whether the flow is there, half open: a SYN that is sent again keeps its back end.
#[inline(always)]
fn is_again<F: Family>(env: &Env, work: &mut Work<F>) -> bool {
    let found = half_open::get::<F>(env, work.now, &work.key);
    let Some((found, place)) = found else { return false };
    // SAFETY: a valid entry; one that is replaced meanwhile is another half-open flow.
    work.entry = unsafe { *found };
    let entry = &work.entry;
    let again = entry.kind == FlowKind::FORWARD
        && entry.incarnation == env.pod.incarnation
        && entry.epoch == work.epoch
        && entry.flags & (FlowFlags::RESET | FlowFlags::CLOSING) == 0
        && work.now.wrapping_sub(entry.seen) < env.settings.half_open_ticks;
    if again {
        work.place = place;
    }
    again
}

#[inline(always)]
fn pick<F: Family>(env: &Env, work: &mut Work<F>, service: &ServiceValue) -> bool {
    if service.affinity_secs != 0 && remembered(env, work, service) {
        return true;
    }
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    // The high half of the product: even without a division, and as even as it is with one.
    let slot = (u64::from(random) * u64::from(service.count)) >> 32;
    let key = BackendKey { backends: service.backends, slot: slot as u32 };
    // SAFETY: lists are never rewritten, only replaced by others.
    let Some(backend) = (unsafe { BACKENDS.get(key) }) else { return false };
    work.remote = F::narrow(&backend.address);
    work.remote_port = u16::from_be_bytes(backend.port);
    if service.affinity_secs != 0 {
        remember(env, work, service);
    }
    true
}

/// The back end that the pod had, if it still is one.
#[inline(always)]
fn remembered<F: Family>(env: &Env, work: &mut Work<F>, service: &ServiceValue) -> bool {
    let key = AffinityKey { service: service.service, slot: env.pod.slot };
    let Some(found) = AFFINITY.get_ptr_mut(key) else { return false };
    // SAFETY: a valid entry; one that is replaced meanwhile is another client's, and is checked below.
    let had = unsafe { *found };
    let age = work.now.wrapping_sub(had.seen);
    // Over the ticks' range: affinity of weeks is affinity of weeks.
    let holds = if service.affinity_secs > 2_000_000 {
        ticks(2_000_000)
    } else {
        ticks(service.affinity_secs)
    };
    if had.incarnation != env.pod.incarnation || age >= holds {
        return false;
    }
    if !is_member(service, had.address, had.port) {
        return false;
    }
    work.remote = F::narrow(&had.address);
    work.remote_port = u16::from_be_bytes(had.port);
    // SAFETY: as above.
    unsafe { (*found).seen = work.now };
    true
}

/// Whether the Service still has this back end, wherever in its list.
#[inline(always)]
fn is_member(service: &ServiceValue, address: [u8; 16], port: [u8; 2]) -> bool {
    let key = MemberKey { backends: service.backends, address, port, reserved: [0; 2] };
    MEMBERS.get_ptr(key).is_some()
}

/// Whether the back end of a known flow has left the Service: 1 when the packet has to be given another. Datagrams
/// only: their sender may never find out (kube-proxy clears such entries, too), where TCP does by itself. Looked up
/// when the policy changed, and else about once a second: so long may a flow outlive its back end.
#[inline(never)]
pub(crate) fn is_stale<F: Family>(env: &Env, work: &Work<F>) -> u32 {
    let (packet, entry) = (&work.packet, &work.entry);
    let may = packet.protocol == UDP
        && packet.kind == Kind::Flow
        && entry.kind == FlowKind::FORWARD
        && work.is_egress();
    let due = work.now.wrapping_sub(entry.seen) > REFRESH || entry.epoch != work.epoch;
    if !may || !due {
        return 0;
    }
    let port = packet.destination_port;
    let Some(service) = F::service(&packet.destination, port, UDP) else { return 1 };
    // The wire's view of a flow to the pod itself has the address that stands for it.
    let member = if entry.flags & FlowFlags::HAIRPIN == 0 {
        is_member(service, entry.address, entry.remote_port)
    } else {
        is_member(service, F::wide(&F::of_pod(env.pod)), entry.local_port)
    };
    u32::from(!member)
}

#[inline(always)]
fn remember<F: Family>(env: &Env, work: &Work<F>, service: &ServiceValue) {
    let key = AffinityKey { service: service.service, slot: env.pod.slot };
    let value = AffinityValue {
        address: F::wide(&work.remote),
        port: work.remote_port.to_be_bytes(),
        reserved: [0; 2],
        reserved2: 0,
        seen: work.now,
        incarnation: env.pod.incarnation,
    };
    // Without it the next flow chooses anew: the affinity of a table that is full.
    if AFFINITY.insert(key, value, 0).is_err() {
        maps::count(Counter::InsertFailed);
    }
}

/// The ends of the flow that an error quotes: the other end, the pod's port, the other end's port. The quoted packet went
/// the other way: what the pod complains about came in.
#[inline(always)]
pub(crate) fn quoted_ends<F: Family>(work: &Work<F>) -> (F::Address, u16, u16) {
    let quoted = &work.quoted;
    if work.is_egress() {
        (quoted.source, quoted.destination_port, quoted.source_port)
    } else {
        (quoted.destination, quoted.source_port, quoted.destination_port)
    }
}

/// A port that a client may have.
#[inline(always)]
pub(crate) fn random_port() -> u16 {
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    0x8000 | (random & 0x7fff) as u16
}
