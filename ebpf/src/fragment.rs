//! Fragments follow their first: what was decided on the header decides for the rest.
//!
//! A later fragment that comes before its first is dropped for an isolated pod: it cannot be judged.

use veni_ebpf_common::{
    DropReason, FlowFlags,
    flow::{FragmentKey, FragmentValue, ticks},
};

use crate::{
    family::Family,
    maps::FRAGMENTS,
    skb::Checksum,
    translate,
    work::{End, Env, PASS, TURN_ROUND, Work, ends, refuse},
};

/// How long later fragments may follow (the kernel's own reassembly waits 30 s).
const FOLLOW: u32 = ticks(30);
const PLAIN: u32 = 0;
const TRANSLATED: u32 = 1;
const TURNED: u32 = 3;

#[inline(always)]
fn key<F: Family>(env: &Env, work: &Work<F>) -> FragmentKey {
    // IPv6 fragments of one datagram may name different next headers (RFC 8200, 4.5): the identification is enough.
    let protocol = if F::VERSION == 4 { work.packet.protocol } else { 44 };
    let (remote, ..) = ends::<F>(&work.packet, work.is_egress());
    FragmentKey {
        slot: env.pod.slot,
        id: work.packet.fragment_id,
        remote: F::wide(&remote),
        protocol,
        direction: work.direction,
        reserved: [0; 2],
    }
}

/// Remembers that a first fragment was let through, and how it was translated.
#[inline(never)]
pub(crate) fn remember<F: Family>(env: &Env, work: &Work<F>) -> u32 {
    let flow = &work.entry;
    let translated = if !translate::applies(flow, work.is_egress()) {
        PLAIN
    } else if flow.flags & FlowFlags::HAIRPIN != 0 {
        TURNED
    } else {
        TRANSLATED
    };
    let value = FragmentValue {
        seen: work.now,
        incarnation: env.pod.incarnation,
        address: flow.address,
        translated,
    };
    u32::from(FRAGMENTS.insert(key(env, work), value, 0).is_ok())
}

/// A later fragment.
#[inline(never)]
pub(crate) fn later<F: Family>(env: &Env, work: &Work<F>) -> End {
    let Some(first) = FRAGMENTS.get_ptr(key(env, work)) else { return unknown(env, work) };
    // SAFETY: a valid entry; a replaced one describes a datagram with the same identification.
    let first = unsafe { *first };
    if first.incarnation != env.pod.incarnation || work.now.wrapping_sub(first.seen) > FOLLOW {
        return unknown(env, work);
    }
    let none = Checksum { at: 0, udp: false, ipv6_flag: false };
    let remote = F::narrow(&first.address);
    let packet = &work.packet;
    match first.translated {
        PLAIN => PASS,
        TURNED => {
            F::set_address(env.skb, F::SOURCE_AT, &packet.source, &remote, none);
            let own = F::of_pod(env.pod);
            F::set_address(env.skb, F::DESTINATION_AT, &packet.destination, &own, none);
            TURN_ROUND
        }
        _ if work.is_egress() => {
            F::set_address(env.skb, F::DESTINATION_AT, &packet.destination, &remote, none);
            PASS
        }
        _ => {
            F::set_address(env.skb, F::SOURCE_AT, &packet.source, &remote, none);
            PASS
        }
    }
}

/// Without a first fragment nothing can be judged; where nothing would be, it passes.
#[inline(always)]
fn unknown<F: Family>(env: &Env, work: &Work<F>) -> End {
    let service = work.is_egress() && F::in_service_range(env.settings, &work.packet.destination);
    if work.isolated(env) || service { refuse(DropReason::FragmentUnknown) } else { PASS }
}
