//! Egress of the host-side veth: what enters a pod.
//!
//! Drops what may not be sent to the pod, and gives the answers of Services their Service's address back. Marks stay.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use veni_ebpf_common::{
    Direction, DropReason,
    frame::{self, Carries},
    packet::{self, Head, Kind},
};

use crate::{
    end::finish,
    family::{V4, V6, is_unspecified, same16},
    maps::{PODS, SETTINGS, count_drop, epoch},
    pod_egress::{is_local, step, write_of},
    skb::Skb,
    work::{End, Env, PASS, refuse},
};

/// See the module.
#[classifier]
pub(crate) fn pod_ingress(ctx: TcContext) -> i32 {
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
    finish(&ctx, skb, pod, judge(&Env { skb, pod, settings, epoch, write }), false)
}

#[inline(always)]
fn judge(env: &Env) -> End {
    let skb = env.skb;
    if skb.has_vlan() {
        return refuse(DropReason::Vlan);
    }
    let head = match packet::head(&skb) {
        Ok(head) => head,
        Err(reason) => return refuse(reason),
    };
    match frame::carries(&head) {
        Ok(Carries::Ipv4) => ipv4(env, &head),
        Ok(Carries::Ipv6) => ipv6(env, &head),
        // The host asks for the pod's MAC, or answers it.
        Ok(Carries::Arp) => PASS,
        Err(reason) => refuse(reason),
    }
}

#[inline(never)]
fn ipv4(env: &Env, head: &Head) -> End {
    if head[7].to_ne_bytes() != env.pod.address {
        return refuse(DropReason::DestinationAddress);
    }
    match packet::ipv4(&env.skb, head) {
        Ok(packet) => step::<V4>(env, packet, Direction::Ingress),
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
    // Within the link, and so from the host itself: nothing with such a source is forwarded.
    let local = is_local(&packet.source) || is_unspecified(&packet.source);
    if packet.kind == Kind::Neighbour && (local || env.skb.ingress_ifindex() == 0) {
        return PASS;
    }
    if is_unspecified(&env.pod.address_v6) {
        return refuse(DropReason::Ipv6);
    }
    if !same16(&packet.destination, &env.pod.address_v6) {
        return refuse(DropReason::DestinationAddress);
    }
    step::<V6>(env, packet, Direction::Ingress)
}
