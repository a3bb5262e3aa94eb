//! Verdicts on new flows, on flows of another epoch, and on single messages.
//!
//! The node and its own pods may always talk, but only really. From the node is what was made there. To the node is what
//! ends in local input; it passes unless the pod's egress set has a profile for the address that
//! [judges the node](Profile::judges_node), which it has where a ClusterNetworkPolicy names nodes, and this one among them.
//! The tables are asked after the front ends, and a flow keeps [`FlowFlags::EXEMPT`](veni_ebpf_common::FlowFlags) whatever
//! they say: its other end is the node, and nothing that came in by an interface is of it.

use veni_ebpf_common::{
    Direction, DropReason, SettingFlags,
    packet::Kind,
    table::{self, Decision, OPEN_SET, PortKey, Profile, Tables, VerdictKey},
};

use crate::{
    conntrack,
    family::Family,
    maps::{PORTS, PROFILES, VERDICTS},
    work::{Env, NO_REASON, Work, ends, has_ports, set_of},
};

/// The tables as the kernel has them.
struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn verdict(&self, key: &VerdictKey) -> Option<u32> {
        // SAFETY: a profile's number is one word.
        unsafe { VERDICTS.get(key) }.copied()
    }

    #[inline(always)]
    fn profile(&self, profile: u32, protocol: u8, port: u16) -> Option<Decision> {
        let found = PROFILES.get(profile)?;
        if found.count != Profile::IN_PORTS {
            return Some(table::in_ranges(found, protocol, port));
        }
        let key = PortKey { profile, protocol, reserved: 0, port: port.to_be_bytes() };
        let decision = PORTS.get(aya_ebpf::maps::lpm_trie::Key::new(64, key));
        Some(decision.copied().unwrap_or(found.otherwise))
    }
}

#[inline(always)]
fn judges_node(profile: u32) -> bool {
    PROFILES.get(profile).is_some_and(Profile::judges_node)
}

/// Asks the tables: [`Work::decision`], and [`Work::reason`] when it is a refusal.
#[inline(never)]
pub(crate) fn judge<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    work.reason = verdict(env, work);
    if work.reason == NO_REASON || !conntrack::may_learn(env, work) {
        return 0;
    }
    // Once more, as an answer: by the pod's other set, to the port that it was begun at.
    if work.at_node {
        // What the node makes is exempt, and so is this answer to it.
        work.entry.origin = Direction::Ingress as u8;
        work.decision = Decision::allow(0);
        work.reason = NO_REASON;
        return 1;
    }
    let (_, local_port, remote_port) = ends::<F>(&work.packet, work.is_egress());
    work.judged_direction = 1 - work.direction;
    work.judged_port = if work.is_egress() { local_port } else { remote_port };
    let (reason, decision) = (work.reason, work.decision);
    work.reason = verdict(env, work);
    if work.reason == NO_REASON {
        work.entry.origin = work.judged_direction;
    } else {
        // Refused both ways: by what was asked first.
        work.reason = reason;
        work.decision = decision;
    }
    1
}

/// The reason to refuse, or [`NO_REASON`].
#[inline(never)]
fn verdict<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    let set = set_of(env.pod, work.judged_direction);
    let egress = work.judged_direction == Direction::Egress as u8;
    let mut decision = Decision::allow(0);
    if set != OPEN_SET {
        work.class = F::class(&work.remote);
        let profile = table::profile_of(&Maps, set, work.class);
        let of_node = profile.is_some_and(judges_node);
        if work.at_node && !of_node {
            work.decision = decision;
            return NO_REASON;
        }
        // An address that the node has no more, or that its map has no room for: what the node may be told is too much
        // for any other.
        let profile = profile.filter(|_| work.at_node == of_node);
        let protocol = conntrack::protocol(work);
        let judged = profile.and_then(|profile| Maps.profile(profile, protocol, work.judged_port));
        let Some(found) = judged else {
            work.decision = Decision::deny(0);
            return DropReason::TablesIncomplete.slot();
        };
        decision = found;
    }
    work.decision = decision;
    if !decision.allowed() {
        let reason = if egress { DropReason::EgressDenied } else { DropReason::IngressDenied };
        return reason.slot();
    }
    let closed = env.settings.flags & SettingFlags::METADATA_CLOSED != 0;
    if egress && closed && decision.rule() == 0 && F::is_metadata(&work.remote) {
        work.decision = Decision::deny(0);
        return DropReason::Metadata.slot();
    }
    NO_REASON
}

/// Whether a packet into the pod is between the pod and its own node, or from the pod itself: the source is the
/// node's *and* the packet was made here. A forwarded one that carries the node's address after masquerading came in
/// by an interface.
#[inline(always)]
pub(crate) fn is_from_node<F: Family>(env: &Env, work: &Work<F>) -> bool {
    let came_in = env.skb.ingress_ifindex();
    (came_in == 0 && F::is_node(&work.packet.source))
        || (came_in == env.skb.ifindex() && F::same(&work.packet.source, &F::of_pod(env.pod)))
}

/// Whether a flow that was exempt when it began is still: the address is still the node's, or the pod's own, and is not
/// known as a front end meanwhile. Needs the ends in `work`.
#[inline(always)]
pub(crate) fn stays_exempt<F: Family>(env: &Env, work: &Work<F>, protocol: u8) -> bool {
    if F::same(&work.remote, &F::of_pod(env.pod)) {
        return true;
    }
    if !F::is_node(&work.remote) {
        return false;
    }
    work.entry.origin == Direction::Ingress as u8
        || !has_ports(protocol)
        || F::service(&work.remote, work.remote_port, protocol).is_none()
}

/// What the end of an outgoing packet means before any table is asked.
pub(crate) mod end {
    /// Ask the tables.
    pub(crate) const JUDGE: u32 = u32::MAX;
    /// It ends here: exempt, if the tables have nothing to say of the node itself.
    pub(crate) const EXEMPT: u32 = u32::MAX - 1;
}

/// Whether an outgoing packet ends in local input. What it does otherwise: a reason's slot, or [`end::JUDGE`].
///
/// An own address ends here only if it is not a front end: a node port or a host port that is not known (yet) leads
/// to some pod.
#[inline(always)]
pub(crate) fn to_node<F: Family>(env: &Env, work: &Work<F>) -> u32 {
    if !work.isolated(env) {
        return end::JUDGE;
    }
    if !F::is_node(&work.remote) {
        let unknown = !work.translated && F::in_service_range(env.settings, &work.remote);
        return if unknown { DropReason::UnknownService.slot() } else { end::JUDGE };
    }
    let protocol = if work.packet.kind == Kind::Flow { work.packet.protocol } else { 0 };
    at_node(env, work, protocol, !work.translated)
}

/// What an own address as the end of a pod's flow means: a reason's slot, or [`end::EXEMPT`]. `direct` is what no Service
/// was translated of.
#[inline(always)]
pub(crate) fn at_node<F: Family>(env: &Env, work: &Work<F>, protocol: u8, direct: bool) -> u32 {
    if !has_ports(protocol) {
        return end::EXEMPT;
    }
    if F::service(&work.remote, work.remote_port, protocol).is_some() {
        return DropReason::NestedService.slot();
    }
    let settings = env.settings;
    let node_port =
        settings.node_port_first <= work.remote_port && work.remote_port <= settings.node_port_last;
    if direct && node_port {
        return DropReason::UnknownService.slot();
    }
    end::EXEMPT
}
