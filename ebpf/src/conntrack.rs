//! Flows: found, begun, established, revoked.
//!
//! Invariants: an entry counts only if it is of this pod's incarnation and not too old. One of another epoch is judged
//! again, in the direction in which it began, before a packet passes by it. A SYN is always judged as a new flow: what
//! the table says of an earlier one by the same ports does not open anything.
//!
//! Entries are read through pointers that stay valid but may be reused for another flow by another CPU; what is
//! decided on is a copy, and its incarnation was checked.

use veni_ebpf_common::{
    Counter, Direction, DropReason, Flow, FlowFlags, FlowKind, PodValue, SettingFlags, Settings,
    packet::{Kind, Packet, TCP, tcp},
    table::Decision,
};

use crate::{
    family::Family,
    half_open, maps,
    policy::{self, end},
    service,
    work::{Env, Place, Work, ends, has_ports, is_icmp, key_of, set_of},
};

/// How stale the time of an entry may get before it is written (about a second).
pub(crate) const REFRESH: u32 = 1024;

/// What a first look at the established flows says of a packet.
pub(crate) mod glance {
    /// It is of one, and nothing has to be done to it.
    pub(crate) const PLAIN: u32 = 0;
    /// There is none of its key.
    pub(crate) const ABSENT: u32 = 1;
    /// Nothing that would spare the long way.
    pub(crate) const UNSURE: u32 = 2;
}

/// The hot path: a packet of an established flow that nothing has to be done to.
#[inline(always)]
pub(crate) fn glance<F: Family>(
    env: &Env,
    packet: &Packet<F::Address>,
    now: u32,
    egress: bool,
) -> u32 {
    if packet.kind != Kind::Flow || packet.first_fragment {
        return glance::UNSURE;
    }
    // A SYN, too: it has another flow's entry at most.
    if packet.flags & (tcp::FIN | tcp::RST | tcp::SYN) != 0 {
        return glance::UNSURE;
    }
    let Some(found) = F::flows().get_ptr_mut(key_of::<F>(env.pod, packet, egress)) else {
        return glance::ABSENT;
    };
    // SAFETY: a valid entry; see the module.
    let entry = unsafe { &mut *found };
    let age = now.wrapping_sub(entry.seen);
    let limit =
        if packet.protocol == TCP { env.settings.tcp_ticks } else { env.settings.other_ticks };
    let plain = entry.kind == FlowKind::DIRECT
        && entry.flags & (FlowFlags::CLOSING | FlowFlags::RESET) == 0
        && entry.incarnation == env.pod.incarnation
        && entry.epoch == env.epoch
        && age < limit;
    // By the node's own flow goes only what the node made.
    let made_here =
        entry.flags & FlowFlags::EXEMPT == 0 || egress || env.skb.ingress_ifindex() == 0;
    if plain && age > REFRESH {
        entry.seen = now;
    }
    if plain && made_here { glance::PLAIN } else { glance::UNSURE }
}

/// Whether the entry is the pod's, and young enough.
#[inline(always)]
fn is_alive(pod: &PodValue, settings: &Settings, protocol: u8, now: u32, entry: &Flow) -> bool {
    let limit = if entry.flags & FlowFlags::RESET != 0 {
        settings.reset_ticks
    } else if entry.flags & FlowFlags::ESTABLISHED == 0 {
        settings.half_open_ticks
    } else if entry.flags & FlowFlags::CLOSING != 0 {
        settings.closing_ticks
    } else if protocol == TCP {
        settings.tcp_ticks
    } else {
        settings.other_ticks
    };
    entry.incarnation == pod.incarnation && now.wrapping_sub(entry.seen) < limit
}

#[inline(always)]
pub(crate) fn alive<F: Family>(env: &Env, work: &Work<F>, entry: &Flow) -> bool {
    is_alive(env.pod, env.settings, work.packet.protocol, work.now, entry)
}

/// Finds the flow of `key`, copies it, and says what a packet of an unfit one means.
#[inline(never)]
pub(crate) fn find<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    let error = work.packet.kind == Kind::Error;
    // The pod's own SYN to its own Service comes back from the address that stands for it.
    let turned = !work.is_egress()
        && env.skb.ingress_ifindex() == env.skb.ifindex()
        && F::same(&work.packet.source, &F::hairpin(env.settings));
    if !error && work.is_syn() && !turned {
        return 0;
    }
    // A look-up that finds nothing costs as much as one that does.
    let established = if work.absent { None } else { F::flows().get_ptr(&work.key) };
    if let Some(found) = established {
        // SAFETY: a valid entry; see the module.
        work.entry = unsafe { *found };
        work.place = Place::Established;
    } else if let Some((found, place)) = half_open::get::<F>(env, work.now, &work.key) {
        // SAFETY: as above.
        work.entry = unsafe { *found };
        work.place = place;
    } else {
        return 0;
    }
    let foreign = !error && !work.is_egress() && is_foreign(env, work);
    if foreign || !alive(env, work, &work.entry) {
        work.place = Place::Nowhere;
        return 0;
    }
    // A packet of the pod straight to a peer, by the very ports of a translated flow to that peer.
    let collides = !error
        && work.is_egress()
        && work.entry.kind == FlowKind::REVERSE
        && work.entry.flags & FlowFlags::HAIRPIN == 0;
    if collides {
        let closing = work.entry.flags & (FlowFlags::CLOSING | FlowFlags::RESET) != 0;
        // A datagram's sender cannot choose another port: `track` makes room for it.
        if work.packet.protocol == TCP && !closing {
            work.event = true;
            work.refuse(DropReason::PortCollision);
        }
        work.place = Place::Nowhere;
    }
    u32::from(work.place != Place::Nowhere)
}

/// Whether a packet into the pod only looks like one of the flow's: it has to be judged as what it is, and says nothing
/// about the flow.
#[inline(always)]
fn is_foreign<F: Family>(env: &Env, work: &Work<F>) -> bool {
    let flags = work.entry.flags;
    if flags & FlowFlags::HAIRPIN != 0 {
        // What is turned round comes from the pod's own interface.
        return env.skb.ingress_ifindex() != env.skb.ifindex();
    }
    // The pod's view is on no wire, unless the back end is the front end: this comes from a machine that has the
    // Service's address.
    let forward = work.entry.kind == FlowKind::FORWARD && !is_own_front_end(work);
    forward || (flags & FlowFlags::EXEMPT != 0 && came_in(env, work))
}

/// Whether the flow's two views are one: its back end has the address and the port that the pod called.
#[inline(always)]
fn is_own_front_end<F: Family>(work: &Work<F>) -> bool {
    F::same(&F::narrow(&work.entry.address), &work.packet.source)
        && work.entry.remote_port == work.packet.source_port.to_be_bytes()
}

/// Whether a packet into the pod was made neither by the node nor by the pod: after masquerading it may carry the
/// address and the ports of a flow of theirs.
#[inline(always)]
fn came_in<F: Family>(env: &Env, work: &Work<F>) -> bool {
    let interface = env.skb.ingress_ifindex();
    let own = interface == env.skb.ifindex() && F::same(&work.packet.source, &F::of_pod(env.pod));
    interface != 0 && !own
}

/// What has to be judged of a flow from another epoch: the direction in which it began.
#[inline(never)]
pub(crate) fn rejudge<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    maps::count(Counter::Rejudged);
    work.rejudged = true;
    work.decision = work.entry.decision;
    let keep = env.settings.flags & SettingFlags::KEEP_ESTABLISHED != 0
        && work.entry.flags & FlowFlags::ESTABLISHED != 0;
    if keep || work.entry.flags & FlowFlags::HAIRPIN != 0 {
        return 0;
    }
    let (mut remote, local_port, mut remote_port) = if work.packet.kind == Kind::Error {
        service::quoted_ends(work)
    } else {
        ends::<F>(&work.packet, work.is_egress())
    };
    // The back end is the remote end of the wire's view.
    if work.entry.kind == FlowKind::FORWARD {
        remote = F::narrow(&work.entry.address);
        remote_port = u16::from_be_bytes(work.entry.remote_port);
    }
    let began_here = work.entry.origin == Direction::Egress as u8;
    let protocol = protocol(work);
    work.remote = remote;
    work.remote_port = remote_port;
    if work.entry.flags & FlowFlags::EXEMPT != 0 {
        if policy::stays_exempt(env, work, protocol) {
            if !began_here || F::same(&remote, &F::of_pod(env.pod)) {
                return 0;
            }
            work.at_node = true;
        } else {
            work.entry.flags &= !FlowFlags::EXEMPT;
        }
    }
    let isolated = set_of(env.pod, work.entry.origin) != veni_ebpf_common::table::OPEN_SET;
    let direct = work.entry.kind == FlowKind::DIRECT;
    // It began while the pod was open, when nobody asked for whom it is.
    if began_here && isolated && !work.at_node && F::is_node(&remote) {
        match policy::at_node(env, work, protocol, direct) {
            end::EXEMPT
                if work.packet.kind != Kind::Error && !work.is_egress() && came_in(env, work) =>
            {
                work.place = Place::Nowhere;
                work.rejudged = false;
                return 0;
            }
            end::EXEMPT => {
                work.entry.flags |= FlowFlags::EXEMPT;
                work.at_node = true;
            }
            _ => {
                work.refuse(DropReason::Revoked);
                return 0;
            }
        }
    }
    work.judged_direction = work.entry.origin;
    work.judged_port = if is_icmp::<F>(protocol) {
        F::ECHO
    } else if began_here {
        remote_port
    } else {
        local_port
    };
    work.judge = true;
    // Through kube-proxy, then: where it ends cannot be known.
    if began_here && isolated && direct && !work.at_node {
        let front_end = has_ports(protocol) && F::service(&remote, remote_port, protocol).is_some();
        if front_end || F::in_service_range(env.settings, &remote) {
            work.refuse(DropReason::Revoked);
        }
    }
    1
}

/// The protocol of what is judged: of the quoted packet, where an error is about a known flow.
#[inline(always)]
pub(crate) fn protocol<F: Family>(work: &Work<F>) -> u8 {
    if work.packet.kind == Kind::Error && work.place != Place::Nowhere {
        work.quoted.protocol
    } else {
        work.packet.protocol
    }
}

/// Takes a flow out of the tables, both views of it.
#[inline(never)]
pub(crate) fn forget<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    maps::count(Counter::Revoked);
    work.refuse(DropReason::Revoked);
    remove(env, work)
}

/// Takes a flow out of the tables, for its packet to begin another.
#[inline(never)]
pub(crate) fn release<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    maps::count(Counter::BackendGone);
    work.place = Place::Nowhere;
    remove(env, work)
}

#[inline(always)]
fn remove<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    work.reverse = work.entry;
    remove_views(env, work)
}

/// Takes both views of the flow in [`Work::reverse`] out of the tables, that of [`Work::key`] and its other.
#[inline(never)]
pub(crate) fn remove_views<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    let mut gone = 0;
    if work.reverse.kind != FlowKind::DIRECT {
        work.other = twin::<F>(env.pod, &work.reverse, protocol(work));
        gone += u32::from(F::flows().remove(&work.other).is_ok());
        gone += u32::from(F::half_open().remove(&work.other).is_ok());
        gone += u32::from(F::overflow().remove(&work.other).is_ok());
    }
    gone += u32::from(F::flows().remove(&work.key).is_ok());
    gone += u32::from(F::overflow().remove(&work.key).is_ok());
    if F::half_open().remove(&work.key).is_ok() {
        half_open::leave(env, work.now, work.reverse.seen, work.reverse.origin);
        gone += 1;
    }
    gone
}

/// The other view's key of a translated flow.
#[inline(always)]
fn twin<F: Family>(pod: &PodValue, entry: &Flow, protocol: u8) -> F::Key {
    F::key(pod.slot, F::narrow(&entry.address), entry.local_port, entry.remote_port, protocol)
}

/// Keeps in the entry what this packet says.
#[inline(never)]
pub(crate) fn note<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    let found = if work.place == Place::Established {
        F::flows().get_ptr_mut(&work.key)
    } else {
        half_open::table::<F>(work.place).get_ptr_mut(&work.key)
    };
    // Gone meanwhile: the packet goes by the copy.
    let Some(found) = found else { return 0 };
    // SAFETY: a valid entry; see the module.
    let entry = unsafe { &mut *found };
    // An error says nothing about the flow that it quotes.
    if work.packet.kind == Kind::Error {
        return 1;
    }
    if work.rejudged {
        entry.epoch = work.epoch;
        entry.decision = work.decision;
        entry.flags = (entry.flags & !FlowFlags::EXEMPT) | (work.entry.flags & FlowFlags::EXEMPT);
    }
    let before = entry.seen;
    if work.now.wrapping_sub(before) > REFRESH {
        entry.seen = work.now;
    }
    let mut flags = entry.flags;
    if work.packet.protocol == TCP && work.packet.flags & tcp::RST != 0 {
        flags |= FlowFlags::RESET;
    }
    if work.packet.protocol == TCP && work.packet.flags & tcp::FIN != 0 {
        flags |= FlowFlags::CLOSING;
    }
    let ends = flags & !entry.flags & (FlowFlags::CLOSING | FlowFlags::RESET);
    if work.place != Place::Established {
        // A reset ends what was not open yet: nothing is left of it that could fill the table.
        if flags & FlowFlags::RESET != 0 {
            return remove(env, work);
        }
        if entry.seen != before {
            half_open::go_on(env, work, before);
        }
        if entry.origin != work.direction {
            if flags & FlowFlags::ANSWERED == 0 {
                flags |= FlowFlags::ANSWERED;
                tell(env, work, FlowFlags::ANSWERED);
                // Only TCP's beginner has to speak again, to show that it was no forged SYN. Elsewhere the answer may
                // be all that follows (DNS), and must not use up what the pod may have half open.
                work.establish = work.packet.protocol != TCP;
            }
        } else if flags & (FlowFlags::ANSWERED | FlowFlags::RESET) == FlowFlags::ANSWERED
            && !work.is_syn()
        {
            work.establish = true;
        }
    }
    entry.flags = flags;
    work.entry.flags = flags;
    work.entry.seen = entry.seen;
    if ends != 0 {
        tell(env, work, ends);
    }
    1
}

/// Tells the other view what happened. (That the flow ends, too: its ports are free for another then.)
#[inline(never)]
fn tell<F: Family>(env: &Env, work: &mut Work<F>, flags: u8) -> u32 {
    if work.entry.kind == FlowKind::DIRECT {
        return 0;
    }
    work.other = twin::<F>(env.pod, &work.entry, work.packet.protocol);
    let found = if work.place == Place::Established {
        F::flows().get_ptr_mut(&work.other)
    } else {
        half_open::table::<F>(work.place).get_ptr_mut(&work.other)
    };
    if let Some(other) = found {
        // SAFETY: a valid entry; see the module.
        unsafe { (*other).flags |= flags };
    }
    1
}

/// Moves a flow, both views of it, out of the half-open ones.
#[inline(never)]
pub(crate) fn establish<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    work.reverse = work.entry;
    work.reverse.flags |= FlowFlags::ESTABLISHED;
    work.reverse.seen = work.now;
    work.reverse.epoch = work.epoch;
    if F::flows().insert(&work.key, work.reverse, 0).is_err() {
        maps::count(Counter::InsertFailed);
        return 0;
    }
    let half_open = half_open::table::<F>(work.place);
    if half_open.remove(&work.key).is_err() {
        // Another CPU was faster, and has counted it.
        return 1;
    }
    if work.entry.kind != FlowKind::DIRECT {
        work.other = twin::<F>(env.pod, &work.entry, work.packet.protocol);
        if let Some(found) = half_open.get_ptr(&work.other) {
            // SAFETY: a valid entry; see the module.
            work.reverse = unsafe { *found };
            work.reverse.flags |= FlowFlags::ESTABLISHED;
            work.reverse.seen = work.now;
            if F::flows().insert(&work.other, work.reverse, 0).is_err() {
                maps::count(Counter::InsertFailed);
            }
            // Gone already: nothing is left to do.
            let _gone = half_open.remove(&work.other);
        }
    }
    maps::count(Counter::FlowsEstablished);
    if work.place == Place::HalfOpen {
        half_open::leave(env, work.now, work.entry.seen, work.entry.origin);
    }
    1
}

/// A packet that no flow is known for: what has to be judged, and whether it has to.
#[inline(never)]
pub(crate) fn begin<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    let egress = work.is_egress();
    let (remote, local_port, remote_port) = ends::<F>(&work.packet, egress);
    if !work.translated {
        work.remote = remote;
        work.remote_port = remote_port;
    }
    work.entry = Flow {
        incarnation: env.pod.incarnation,
        epoch: work.epoch,
        seen: work.now,
        decision: Decision::allow(0),
        address: [0; 16],
        remote_port: [0; 2],
        local_port: [0; 2],
        kind: FlowKind::DIRECT,
        origin: work.direction,
        flags: 0,
        reserved: 0,
    };
    work.judged_direction = work.direction;
    work.decision = Decision::allow(0);
    work.event = true;
    let exempt = if egress {
        if work.translated && F::same(&work.remote, &F::of_pod(env.pod)) {
            work.entry.flags = FlowFlags::HAIRPIN;
            return 0;
        }
        match policy::to_node(env, work) {
            end::EXEMPT => {
                // Neighbours are found whatever is closed: without the pod's advertisement the node's own packets do
                // not reach it.
                work.at_node = work.packet.kind != Kind::Neighbour;
                true
            }
            end::JUDGE => false,
            slot => {
                work.reason = slot;
                return 0;
            }
        }
    } else {
        policy::is_from_node(env, work)
    };
    if exempt {
        work.entry.flags = FlowFlags::EXEMPT;
        if !work.at_node {
            return 0;
        }
    }
    work.judged_port = if is_icmp::<F>(work.packet.protocol) {
        work.packet.message
    } else if egress {
        work.remote_port
    } else {
        local_port
    };
    work.judge = true;
    1
}

/// Whether the packet may be the middle of a TCP flow that began at the other end before there was a table: judged
/// that way, then.
#[inline(always)]
pub(crate) fn may_learn<F: Family>(env: &Env, work: &Work<F>) -> bool {
    env.settings.flags & SettingFlags::LEARN != 0
        && work.place == Place::Nowhere
        && work.packet.kind == Kind::Flow
        && work.packet.protocol == TCP
        && work.packet.flags & tcp::SYN == 0
        && !work.translated
        && work.judged_direction == work.direction
}
