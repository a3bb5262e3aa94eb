//! Everything but the hot path, step by step. Each step is one function, called at one place.
//!
//! Two programs, one a family, that both hooks jump to (a tail call): code that the hooks share is loaded and verified once.
//! The work and the pod are in scratch maps, because pointers do not survive the jump.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use veni_ebpf_common::{DropReason, FlowKind, packet::Kind};

use crate::{
    conntrack,
    end::finish,
    events,
    family::{Family, V4, V6},
    fragment, icmp,
    maps::{SCRATCH_POD, SETTINGS, count_drop},
    policy, service,
    skb::Skb,
    track, translate,
    work::{End, Env, NO_REASON, PASS, Place, Work, refuse_slot},
};

/// See the module.
#[classifier]
pub(crate) fn follow_v4(ctx: TcContext) -> i32 {
    start::<V4>(&ctx)
}

/// See the module.
#[classifier]
pub(crate) fn follow_v6(ctx: TcContext) -> i32 {
    start::<V6>(&ctx)
}

#[inline(always)]
fn start<F: Family>(ctx: &TcContext) -> i32 {
    let skb = Skb(ctx.skb.skb);
    let pod = SCRATCH_POD.get(0);
    let (Some(pod), Some(settings), Some(work)) = (pod, SETTINGS.get(0), F::scratch()) else {
        count_drop(DropReason::Settings);
        return TC_ACT_SHOT;
    };
    // SAFETY: this CPU's own; every field that is read was written for this packet.
    let work = unsafe { &mut *work };
    let end = follow(&Env { skb, pod, settings, epoch: work.epoch, write: pod.first }, work);
    finish(ctx, skb, pod, end, work.is_egress())
}

/// Follows a packet to its end.
#[inline(never)]
fn follow<F: Family>(env: &Env, work: &mut Work<F>) -> End {
    if work.packet.kind == Kind::LaterFragment {
        return fragment::later(env, work);
    }
    let mut flow = work.packet.kind == Kind::Flow;
    if work.packet.kind == Kind::Error {
        flow = icmp::quote(env, work) == 1;
    }
    if flow && work.reason == NO_REASON {
        conntrack::find(env, work);
        if work.place != Place::Nowhere && service::is_stale(env, work) == 1 {
            conntrack::release(env, work);
        }
    }
    if work.reason == NO_REASON && work.place == Place::Nowhere {
        if work.is_egress() && work.packet.kind == Kind::Flow {
            service::choose(env, work);
        }
    } else if work.reason == NO_REASON && work.entry.epoch != work.epoch {
        conntrack::rejudge(env, work);
    }
    if work.reason == NO_REASON && work.place == Place::Nowhere {
        // What an error is about is not known here: a message like any other.
        conntrack::begin(env, work);
    }
    if work.reason == NO_REASON && work.judge {
        policy::judge(env, work);
    }
    settle(env, work)
}

/// Carries out what was decided.
#[inline(always)]
fn settle<F: Family>(env: &Env, work: &mut Work<F>) -> End {
    if work.place != Place::Nowhere {
        if work.reason == NO_REASON {
            conntrack::note(env, work);
        } else {
            conntrack::forget(env, work);
            work.event = true;
        }
        if work.establish {
            conntrack::establish(env, work);
        }
    } else if work.reason == NO_REASON {
        if work.packet.kind == Kind::Flow && !work.untracked {
            track::track(env, work);
        } else {
            work.event = false;
        }
    }
    if work.event {
        events::emit(env, work);
    }
    if work.reason != NO_REASON {
        return refuse_slot(work.reason);
    }
    // Errors are short (RFC 1812, RFC 4443): one in fragments does not have to arrive.
    if work.packet.first_fragment && work.packet.kind != Kind::Error {
        fragment::remember(env, work);
    }
    if work.entry.kind == FlowKind::DIRECT {
        return PASS;
    }
    if work.packet.kind == Kind::Error {
        return icmp::related(env, work);
    }
    translate::apply(env, work)
}
