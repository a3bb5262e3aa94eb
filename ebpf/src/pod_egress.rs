//! Ingress of the host-side veth: what leaves a pod.
//!
//! Drops what the pod has no right to send (counted by reason), translates Services, and marks *every* other packet
//! with its pod's ENI, whatever the destination: one ip rule per ENI leads the mark to that ENI's table.
//!
//! Returns `TC_ACT_UNSPEC` for what passes: "use the default", so that later filters of the same block still run.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use veni_ebpf_common::{
    Direction, DropReason, FlowKind, PodValue,
    frame::{self, Carries},
    packet::{self, Bytes as _, Head, Kind, Packet},
    table::Decision,
};

use crate::{
    conntrack::glance,
    end::finish,
    events,
    family::{Family, V4, V6, is_unspecified, same16},
    maps::{PODS, SCRATCH_POD, SETTINGS, count_drop, epoch},
    skb::Skb,
    work::{End, Env, NO_REASON, PASS, Place, ends, key_of, refuse},
};

/// See the module.
#[classifier]
pub(crate) fn pod_egress(ctx: TcContext) -> i32 {
    let skb = Skb(ctx.skb.skb);
    let Some(settings) = SETTINGS.get(0) else {
        count_drop(DropReason::Settings);
        return TC_ACT_SHOT;
    };
    // Before the entry: a change writes the entry first.
    let epoch = epoch(settings);
    // SAFETY: an entry stays readable, but is overwritten when it was replaced and another pod's is written next:
    // `is_still` looks whether that happened before what was read counts.
    let Some(pod) = (unsafe { PODS.get(skb.ifindex()) }) else {
        count_drop(DropReason::UnknownInterface);
        return TC_ACT_SHOT;
    };
    let Some(write) = write_of(pod, skb.ifindex()) else {
        count_drop(DropReason::UnknownInterface);
        return TC_ACT_SHOT;
    };
    finish(&ctx, skb, pod, judge(&Env { skb, pod, settings, epoch, write }), true)
}

#[inline(always)]
fn judge(env: &Env) -> End {
    let (skb, pod) = (env.skb, env.pod);
    // The kernel has taken the outer tag out of the frame by now (skb_vlan_untag before ingress filters).
    if skb.has_vlan() {
        return refuse(DropReason::Vlan);
    }
    let head = match packet::head(&skb) {
        Ok(head) => head,
        Err(reason) => return refuse(reason),
    };
    let carried = match frame::carries(&head) {
        Ok(carried) => carried,
        Err(reason) => return refuse(reason),
    };
    if let Err(reason) = frame::sender(&head, pod) {
        return refuse(reason);
    }
    match carried {
        Carries::Ipv4 => ipv4(env, &head),
        Carries::Ipv6 => ipv6(env, &head),
        Carries::Arp => match frame::arp(&skb, pod) {
            Ok(()) => PASS,
            Err(reason) => refuse(reason),
        },
    }
}

#[inline(never)]
fn ipv4(env: &Env, head: &Head) -> End {
    // The source is at a fixed place: options cannot move it, and every fragment carries it.
    if head[6].to_ne_bytes() != env.pod.address {
        return refuse(DropReason::SourceAddress);
    }
    match packet::ipv4(&env.skb, head) {
        Ok(packet) => step::<V4>(env, packet, Direction::Egress),
        Err(reason) => refuse(reason),
    }
}

#[inline(never)]
fn ipv6(env: &Env, head: &Head) -> End {
    let packet = match packet::ipv6(&env.skb, head) {
        Ok(packet) => packet,
        Err(_) if is_unspecified(&env.pod.address_v6) => return refuse(DropReason::Ipv6),
        Err(reason) => return refuse(reason),
    };
    if packet.kind == Kind::Neighbour && is_local(&packet.destination) {
        return neighbour(env.skb, env.pod, &packet);
    }
    if is_unspecified(&env.pod.address_v6) {
        return refuse(DropReason::Ipv6);
    }
    if !same16(&packet.source, &env.pod.address_v6) {
        return refuse(DropReason::SourceAddress);
    }
    step::<V6>(env, packet, Direction::Egress)
}

/// Link-local (fe80::/10) or of the link's scope (ff02::/16): never forwarded.
#[inline(always)]
pub(crate) fn is_local(address: &[u8; 16]) -> bool {
    (address[0] == 0xfe && address[1] & 0xc0 == 0x80)
        || (address[0] == 0xff && address[1] & 0x0f <= 2)
}

/// Neighbour and listener discovery within the link: every pod has link-local addresses, and the kernel in it talks
/// about them. It may not play the router, nor answer for an address that is not its own.
#[inline(always)]
fn neighbour(skb: Skb, pod: &PodValue, packet: &Packet<[u8; 16]>) -> End {
    let own = is_unspecified(&packet.source)
        || (packet.source[0] == 0xfe && packet.source[1] & 0xc0 == 0x80)
        || same16(&packet.source, &pod.address_v6);
    if !own {
        return refuse(DropReason::SourceAddress);
    }
    match packet.message >> 8 {
        // Advertisement: of a link-local address, or of the pod's own.
        136 => {
            let Some(target) = skb.words::<4>(usize::from(packet.transport) + 8) else {
                return refuse(DropReason::Truncated);
            };
            let [first, second, ..] = target[0].to_ne_bytes();
            let own = u128_of(&target) == u128::from_ne_bytes(pod.address_v6);
            if (first == 0xfe && second & 0xc0 == 0x80) || own {
                PASS
            } else {
                refuse(DropReason::NeighbourDiscovery)
            }
        }
        // Router advertisement, redirect.
        134 | 137 => refuse(DropReason::NeighbourDiscovery),
        _ => PASS,
    }
}

#[inline(always)]
fn u128_of(words: &[u32; 4]) -> u128 {
    let low = u64::from(words[0]) | u64::from(words[1]) << 32;
    let high = u64::from(words[2]) | u64::from(words[3]) << 32;
    u128::from(low) | u128::from(high) << 64
}

/// The number of the write that wrote the entry; none while it is written over, or when it is another's by now. The fences
/// here and in [`is_still`] bind the compiler; that a CPU reads in this order is x86's, and elsewhere a window of some
/// instructions is left.
#[inline(always)]
pub(crate) fn write_of(pod: &PodValue, ifindex: u32) -> Option<u32> {
    let (first, last) = ends_now(pod);
    compiler_fence(Ordering::SeqCst);
    if first == last && pod.ifindex == ifindex { Some(first) } else { None }
}

/// Whether all that was read of the entry is of one write: it may have been replaced meanwhile, and written over.
#[inline(always)]
fn is_still(env: &Env) -> bool {
    compiler_fence(Ordering::SeqCst);
    let (first, last) = ends_now(env.pod);
    first == env.write && last == env.write
}

#[inline(always)]
fn ends_now(pod: &PodValue) -> (u32, u32) {
    // SAFETY: valid, aligned fields. Volatile, so that they are read at this point.
    unsafe {
        (
            core::ptr::read_volatile(&raw const pod.first),
            core::ptr::read_volatile(&raw const pod.last),
        )
    }
}

/// The hot path, and what else there is.
#[inline(always)]
pub(crate) fn step<F: Family>(env: &Env, packet: Packet<F::Address>, direction: Direction) -> End {
    let now = events::now();
    let egress = direction as u8 == Direction::Egress as u8;
    let seen = glance::<F>(env, &packet, now, egress);
    if seen == glance::PLAIN {
        return if is_still(env) { PASS } else { refuse(DropReason::UnknownInterface) };
    }
    let (Some(work), Some(pod)) = (F::scratch(), SCRATCH_POD.get_ptr_mut(0)) else {
        return refuse(DropReason::Settings);
    };
    // SAFETY: this CPU's own.
    unsafe { *pod = *env.pod };
    if !is_still(env) {
        return refuse(DropReason::UnknownInterface);
    }
    // SAFETY: this CPU's own, and of plain numbers; every field that is read below was written for this packet.
    let work = unsafe { &mut *work };
    work.key = key_of::<F>(env.pod, &packet, egress);
    (work.remote, _, work.remote_port) = ends::<F>(&packet, egress);
    work.packet = packet;
    work.decision = Decision::allow(0);
    work.now = now;
    work.epoch = env.epoch;
    work.direction = direction as u8;
    work.class = 0;
    work.reason = NO_REASON;
    work.entry.kind = FlowKind::DIRECT;
    work.entry.flags = 0;
    work.place = Place::Nowhere;
    work.absent = seen == glance::ABSENT;
    work.judge = false;
    work.at_node = false;
    work.translated = false;
    work.untracked = false;
    work.rejudged = false;
    work.event = false;
    work.establish = false;
    F::FOLLOW
}
