//! Everything but the hot path, step by step. Each step is one function, called at one place.

use veni_ebpf_common::{DropReason, FlowKind, packet::Kind};

use crate::{
    conntrack, events,
    family::Family,
    fragment, icmp, policy, service, translate,
    work::{End, Env, NO_REASON, PASS, Place, Work, refuse, refuse_slot},
};

/// Follows the packet that is described in the scratch.
#[inline(always)]
pub(crate) fn start<F: Family>(env: &Env) -> End {
    let Some(work) = F::scratch() else { return refuse(DropReason::Settings) };
    // SAFETY: this CPU's own; every field that is read was written for this packet.
    follow(env, unsafe { &mut *work })
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
    }
    if work.reason == NO_REASON && work.place == Place::Nowhere {
        if work.is_egress() && work.packet.kind == Kind::Flow {
            service::choose(env, work);
        }
    } else if work.reason == NO_REASON && work.entry.epoch != env.settings.epoch {
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
        if work.packet.kind == Kind::Flow {
            conntrack::track(env, work);
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
    if work.packet.first_fragment {
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
