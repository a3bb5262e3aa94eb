//! One packet at work: what is known about it, and how it ends.
//!
//! It lives in a per-CPU map, not on the stack: what is read from there is unknown to the verifier, so that each step
//! is walked once, and not once for everything that the steps before it may have found. A filter is not
//! interrupted by another on its CPU, and the packet that is turned round is met by its other filter afterwards.

use veni_ebpf_common::{
    Direction, DropReason, Flow, PodValue, Settings,
    packet::{Packet, Quoted, SCTP, TCP, UDP, tcp},
    table::{Decision, OPEN_SET},
};

use crate::{family::Family, skb::Skb};

/// How a packet ends: a plain number, because a BPF function returns one register.
pub(crate) type End = u32;
/// It passes.
pub(crate) const PASS: End = 0;
/// It goes back out of the interface that it came from.
pub(crate) const TURN_ROUND: End = 1;
/// It is described in its family's scratch, and has to be followed ([`crate::slow`]).
pub(crate) const FOLLOW_V4: End = 2;
/// As [`FOLLOW_V4`].
pub(crate) const FOLLOW_V6: End = 3;
/// From here on: dropped, with a reason.
const REFUSED: End = 4;

/// [`Work::reason`]: none, so far.
pub(crate) const NO_REASON: u32 = u32::MAX;

/// Where a flow was found.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Place {
    /// Nowhere.
    Nowhere,
    /// Among the established.
    Established,
    /// Among the half open.
    HalfOpen,
    /// Among the half open of pods that have more than their share.
    Overflow,
}

/// What every step is given: the packet, its pod, the settings.
#[derive(Clone, Copy)]
pub(crate) struct Env {
    pub(crate) skb: Skb,
    pub(crate) pod: &'static PodValue,
    pub(crate) settings: &'static Settings,
    /// The policy's epoch, read before the pod's entry was looked up: what is judged by an older entry or older tables
    /// is then never taken for judged by newer ones.
    pub(crate) epoch: u32,
    /// The entry's [`PodValue::first`] and [`PodValue::last`] before all else of it was read.
    pub(crate) write: u32,
}

/// What is known about a packet.
#[repr(C)]
pub(crate) struct Work<F: Family> {
    pub(crate) packet: Packet<F::Address>,
    /// What an ICMP error quotes.
    pub(crate) quoted: Quoted<F::Address>,
    /// The flow's key, as this side of it sees the packet.
    pub(crate) key: F::Key,
    /// The key of a translated flow's other view.
    pub(crate) other: F::Key,
    /// The other end that is judged: the back end where a Service was translated.
    pub(crate) remote: F::Address,
    /// The flow: found (a copy), or to be written.
    pub(crate) entry: Flow,
    /// A new flow's other view.
    pub(crate) reverse: Flow,
    pub(crate) decision: Decision,
    /// Of `remote`, once it was looked up.
    pub(crate) class: u32,
    /// In ticks.
    pub(crate) now: u32,
    /// [`Env::epoch`].
    pub(crate) epoch: u32,
    /// A [`DropReason`]'s slot, or [`NO_REASON`].
    pub(crate) reason: u32,
    /// Of `remote`, host order.
    pub(crate) remote_port: u16,
    /// What rules call the port.
    pub(crate) judged_port: u16,
    /// [`Direction`] of the packet.
    pub(crate) direction: u8,
    /// [`Direction`] in which it is judged.
    pub(crate) judged_direction: u8,
    pub(crate) place: Place,
    /// It was looked for among the established flows, and is none.
    pub(crate) absent: bool,
    /// The tables have to be asked.
    pub(crate) judge: bool,
    /// The other end is the node itself: what the tables say counts only where they say it of the node.
    pub(crate) at_node: bool,
    /// A Service was translated.
    pub(crate) translated: bool,
    /// It passes, and nothing is remembered of it.
    pub(crate) untracked: bool,
    /// The entry was judged again.
    pub(crate) rejudged: bool,
    /// It is to be told.
    pub(crate) event: bool,
    /// The flow leaves the half-open ones.
    pub(crate) establish: bool,
}

#[inline(always)]
pub(crate) const fn refuse(reason: DropReason) -> End {
    REFUSED + reason as u32
}

#[inline(always)]
pub(crate) const fn refuse_slot(slot: u32) -> End {
    REFUSED + slot
}

#[inline(always)]
pub(crate) const fn refused(end: End) -> Option<u32> {
    if end >= REFUSED { Some(end - REFUSED) } else { None }
}

impl<F: Family> Work<F> {
    #[inline(always)]
    pub(crate) fn is_egress(&self) -> bool {
        self.direction == Direction::Egress as u8
    }

    #[inline(always)]
    pub(crate) fn is_syn(&self) -> bool {
        is_syn(&self.packet)
    }

    #[inline(always)]
    pub(crate) fn refuse(&mut self, reason: DropReason) {
        self.reason = reason as u32;
    }

    /// Whether the pod is isolated in the packet's direction.
    #[inline(always)]
    pub(crate) fn isolated(&self, env: &Env) -> bool {
        set_of(env.pod, self.direction) != OPEN_SET
    }
}

#[inline(always)]
pub(crate) fn is_syn<A>(packet: &Packet<A>) -> bool {
    packet.protocol == TCP && packet.flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

#[inline(always)]
pub(crate) fn set_of(pod: &PodValue, direction: u8) -> u32 {
    if direction == Direction::Egress as u8 { pod.egress_set } else { pod.ingress_set }
}

/// The other end, and the ports: of the pod, of the other end.
#[inline(always)]
pub(crate) fn ends<F: Family>(packet: &Packet<F::Address>, egress: bool) -> (F::Address, u16, u16) {
    if egress {
        (packet.destination, packet.source_port, packet.destination_port)
    } else {
        (packet.source, packet.destination_port, packet.source_port)
    }
}

#[inline(always)]
pub(crate) fn key_of<F: Family>(
    pod: &PodValue,
    packet: &Packet<F::Address>,
    egress: bool,
) -> F::Key {
    let (remote, local_port, remote_port) = ends::<F>(packet, egress);
    F::key(pod.slot, remote, local_port.to_be_bytes(), remote_port.to_be_bytes(), packet.protocol)
}

/// Whether the protocol has ports.
#[inline(always)]
pub(crate) fn has_ports(protocol: u8) -> bool {
    protocol == TCP || protocol == UDP || protocol == SCTP
}

/// Whether the "port" of rules is a message's type and code.
#[inline(always)]
pub(crate) fn is_icmp<F: Family>(protocol: u8) -> bool {
    protocol == F::ICMP
}
