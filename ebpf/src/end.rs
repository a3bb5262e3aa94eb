//! How a packet ends, carried out.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_redirect,
    programs::TcContext,
};
use veni_ebpf_common::{DropReason, PodValue, packet::Bytes as _};

use crate::{
    maps::{DROPS, FOLLOWERS, count_drop},
    skb::Skb,
    work::{End, FOLLOW_V4, FOLLOW_V6, TURN_ROUND, refused},
};

/// What the hook returns. `TC_ACT_UNSPEC` for what passes: "use the default", so that later filters of the same block
/// still run.
#[inline(always)]
pub(crate) fn finish(ctx: &TcContext, skb: Skb, pod: &PodValue, end: End, egress: bool) -> i32 {
    if let Some(slot) = refused(end) {
        if let Some(counter) = DROPS.get_ptr_mut(slot) {
            // SAFETY: this CPU's own counter, and a filter is not preempted by another on its CPU.
            unsafe { *counter += 1 }
        }
        return TC_ACT_SHOT;
    }
    if end == FOLLOW_V4 || end == FOLLOW_V6 {
        // SAFETY: the context is the kernel's. It does not come back, unless the loader left the slot empty.
        unsafe { FOLLOWERS.tail_call(ctx, end - FOLLOW_V4) };
        count_drop(DropReason::Settings);
        return TC_ACT_SHOT;
    }
    if end == TURN_ROUND {
        return turn_round(skb, pod);
    }
    if egress {
        skb.remark(pod.mark, pod.mask);
    }
    TC_ACT_UNSPEC
}

/// Sends the packet back to the pod: from the host's end of the veth to the pod's.
#[inline(always)]
fn turn_round(skb: Skb, pod: &PodValue) -> i32 {
    // What the pod sent to is the host end's MAC.
    let Some([first, second]) = skb.words::<2>(0) else { return TC_ACT_SHOT };
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, ..] = second.to_ne_bytes();
    let mac = pod.mac;
    let macs = [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], a, b, c, d, e, f];
    if !skb.store(0, &macs) {
        return TC_ACT_SHOT;
    }
    // SAFETY: no pointers.
    (unsafe { bpf_redirect(skb.ifindex(), 0) }) as i32
}
