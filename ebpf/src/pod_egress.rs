//! Ingress of the host-side veth: what leaves a pod.
//!
//! Drops what the pod has no right to send (counted by reason) and marks *every* other packet with its pod's ENI,
//! whatever the destination: one ip rule per ENI leads the mark to that ENI's table.
//!
//! Maps are of the kind without BTF: with it they could only be made by a loader that parses the kernel's own.
//!
//! Returns `TC_ACT_UNSPEC` for what passes: "use the default", so that later filters of the same block still run.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::{classifier, map},
    maps::{HashMap, PerCpuArray},
    programs::TcContext,
};
use veni_ebpf_common::{
    DROP_SLOTS, DropReason, MAX_PODS, PodValue,
    frame::{self, ArpFrame, Head, Judgement},
};

/// Pods by the interface index of their host-side veth.
#[map]
static PODS: HashMap<u32, PodValue> = HashMap::with_max_entries(MAX_PODS, 0);

/// Packets dropped, by [`DropReason::slot`].
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROP_SLOTS, 0);

/// See the module.
#[classifier]
pub(crate) fn pod_egress(ctx: TcContext) -> i32 {
    match judge(&ctx) {
        Ok(pod) => {
            let skb = ctx.skb.skb;
            // SAFETY: the kernel hands a valid `__sk_buff`; the verifier checks the access.
            let mark = unsafe { (*skb).mark };
            ctx.set_mark((mark & !pod.mask) | pod.mark);
            TC_ACT_UNSPEC
        }
        Err(reason) => {
            count(reason);
            TC_ACT_SHOT
        }
    }
}

/// The pod that sent the packet.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a call in BPF costs the verifier's knowledge about its arguments"
)]
fn judge(ctx: &TcContext) -> Result<&'static PodValue, DropReason> {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid `__sk_buff`; the verifier checks the access.
    let (ifindex, vlan_present) = unsafe { ((*skb).ifindex, (*skb).vlan_present) };
    // SAFETY: an entry is replaced or removed as a whole; at worst the packet is judged by the entry that follows.
    let pod = unsafe { PODS.get(ifindex) }.ok_or(DropReason::UnknownInterface)?;
    // The kernel has taken the outer tag out of the frame by now (skb_vlan_untag before ingress filters).
    if vlan_present != 0 {
        return Err(DropReason::Vlan);
    }
    let head: Head = ctx.load(0).map_err(|_| DropReason::Truncated)?;
    match frame::head(&head, pod)? {
        Judgement::Pass => {}
        Judgement::Arp => {
            let arp: ArpFrame = ctx.load(0).map_err(|_| DropReason::Truncated)?;
            frame::arp(&arp, pod)?;
        }
    }
    Ok(pod)
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `judge`")]
fn count(reason: DropReason) {
    if let Some(slot) = DROPS.get_ptr_mut(reason.slot()) {
        // SAFETY: this CPU's own counter, and a filter is not preempted by another on its CPU.
        unsafe { *slot += 1 }
    }
}
