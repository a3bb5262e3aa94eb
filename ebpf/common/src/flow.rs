//! Connection tracking's keys and values.
//!
//! A flow belongs to a pod: its key holds the pod's slot in place of the pod's address, so that one look-up serves
//! both directions, and both ends of a flow between two pods of a node are two flows. Half-open flows are in maps of
//! their own; a flow is half open until its beginner spoke again after an answer.
//!
//! A translated flow has two entries: what the pod sees ([`FlowKind::FORWARD`], the remote end is the Service) and what is
//! on the wire ([`FlowKind::REVERSE`], the remote end is the back end). Each holds the other end.
//!
//! Ages are in ticks of 2^20 ns (about a millisecond); they wrap after 52 days, and are compared by subtraction.

/// Nanoseconds to ticks, by shifting.
pub const TICK_SHIFT: u32 = 20;
/// Ticks to generations of half-open flows (34 s), by shifting.
pub const GENERATION_SHIFT: u32 = 15;
/// Slots that pods can have; a slot is reused with another incarnation.
pub const SLOTS: u32 = 8192;

/// Ticks in so many seconds.
#[must_use]
pub const fn ticks(secs: u32) -> u32 {
    ((secs as u64 * 1_000_000_000) >> TICK_SHIFT) as u32
}

/// A flow over IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKeyV4 {
    /// The pod's slot.
    pub slot: u32,
    /// The other end's address.
    pub remote: [u8; 4],
    /// The pod's port, network order; for echoes [`crate::packet::echo_ports`].
    pub local_port: [u8; 2],
    /// The other end's port, network order; for echoes [`crate::packet::echo_ports`].
    pub remote_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// A flow over IPv6. As [`FlowKeyV4`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKeyV6 {
    /// The pod's slot.
    pub slot: u32,
    /// The other end's address.
    pub remote: [u8; 16],
    /// The pod's port, network order.
    pub local_port: [u8; 2],
    /// The other end's port, network order.
    pub remote_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// The way a packet goes, from the pod's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Out of the pod.
    Egress = 0,
    /// Into the pod.
    Ingress = 1,
}

/// [`Flow::kind`].
#[derive(Debug)]
pub struct FlowKind;

impl FlowKind {
    /// Not translated.
    pub const DIRECT: u8 = 0;
    /// The pod's view of a translated flow.
    pub const FORWARD: u8 = 1;
    /// The wire's view of a translated flow.
    pub const REVERSE: u8 = 2;
}

/// Bits of [`Flow::flags`].
#[derive(Debug)]
pub struct FlowFlags;

impl FlowFlags {
    /// Between the pod and its own node.
    pub const EXEMPT: u8 = 1;
    /// To the pod itself, by a Service.
    pub const HAIRPIN: u8 = 2;
    /// The other end than the beginner has answered.
    pub const ANSWERED: u8 = 4;
    /// An end has closed (TCP FIN).
    pub const CLOSING: u8 = 8;
    /// An end has reset it (TCP RST).
    pub const RESET: u8 = 16;
    /// The beginner spoke again after an answer: not half open.
    pub const ESTABLISHED: u8 = 32;
}

/// What is known about a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// The pod's incarnation: an entry of another pod that had the slot is none.
    pub incarnation: u32,
    /// The policy's epoch in which it was judged.
    pub epoch: u32,
    /// When a packet of it was seen, in ticks (kept to about a second).
    pub seen: u32,
    /// The decision that let it through.
    pub decision: crate::table::Decision,
    /// The other view's remote address: IPv6, or IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// The other view's remote port, network order.
    pub remote_port: [u8; 2],
    /// The other view's local port, network order.
    pub local_port: [u8; 2],
    /// [`FlowKind`].
    pub kind: u8,
    /// Who began it: [`Direction`].
    pub origin: u8,
    /// [`FlowFlags`].
    pub flags: u8,
    /// Zero.
    pub reserved: u8,
}

/// A datagram in fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// The pod's slot.
    pub slot: u32,
    /// Its identification.
    pub id: u32,
    /// The other end's address, as the packet has it at this hook: IPv6, or IPv4 in the first four bytes.
    pub remote: [u8; 16],
    /// IP protocol number (IPv4), or that of the fragment header.
    pub protocol: u8,
    /// [`Direction`].
    pub direction: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// What happened to the first fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentValue {
    /// When it was seen, in ticks.
    pub seen: u32,
    /// The pod's incarnation.
    pub incarnation: u32,
    /// The remote address that it got, if it was translated.
    pub address: [u8; 16],
    /// 1 when translated, 3 when also turned round to the pod itself, 0 otherwise.
    pub translated: u32,
}

/// A client of a Service with session affinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AffinityKey {
    /// [`crate::table::ServiceValue::service`].
    pub service: u32,
    /// The pod's slot.
    pub slot: u32,
}

/// The back end that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct AffinityValue {
    /// Its address: IPv6, or IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Its port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
    /// Zero.
    pub reserved2: u32,
    /// When it was last chosen, in ticks.
    pub seen: u32,
    /// The pod's incarnation.
    pub incarnation: u32,
}

/// What the programs keep about a pod. Written by them only; races lose a count, never a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct PodState {
    /// The generation that `half_open` counts.
    pub generation: u32,
    /// Half-open flows of this generation, by [`Direction`] of their beginning: what others begin takes nothing from
    /// what the pod may.
    pub half_open: [u32; 2],
    /// Half-open flows of the generation before.
    pub half_open_before: [u32; 2],
    /// When a flow last went over the pod's share, in ticks; 0 when none did.
    pub overflowed_at: u32,
    /// Events that may still be sent.
    pub tokens: u32,
    /// When tokens were last given, in ticks.
    pub tokens_at: u32,
    /// New flows over the pod's share of half-open ones.
    pub capped: u64,
    /// Events that were not sent because the pod had too many.
    pub suppressed: u64,
}

/// What the programs count beside drops, each in a slot of `COUNTERS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Counter {
    /// New flows let through.
    FlowsAllowed = 0,
    /// New flows refused by policy.
    FlowsDenied = 1,
    /// Flows that left the half-open ones.
    FlowsEstablished = 2,
    /// Half-open flows over their pod's share: kept in the table that all such pods share.
    HalfOpenCapped = 3,
    /// Allowed flows that are not tracked: the table refused them.
    InsertFailed = 4,
    /// TCP flows taken in from their middle: the table had lost them, or never knew them.
    PickedUp = 5,
    /// Flows judged again after a change.
    Rejudged = 6,
    /// Flows refused when judged again.
    Revoked = 7,
    /// New flows to Services translated.
    Translated = 8,
    /// Translated flows that got another source port.
    PortChanged = 9,
    /// Events that the ring had no room for.
    EventsLost = 10,
    /// Events over a pod's rate.
    EventsSuppressed = 11,
    /// Packets to Services left to kube-proxy: SCTP with another port, no back end, what it alone can serve.
    LeftToProxy = 12,
    /// Flows of datagrams whose back end had left the Service, and that were given another.
    BackendGone = 13,
}

impl Counter {
    /// All of them, by slot.
    pub const ALL: [Self; 14] = [
        Self::FlowsAllowed,
        Self::FlowsDenied,
        Self::FlowsEstablished,
        Self::HalfOpenCapped,
        Self::InsertFailed,
        Self::PickedUp,
        Self::Rejudged,
        Self::Revoked,
        Self::Translated,
        Self::PortChanged,
        Self::EventsLost,
        Self::EventsSuppressed,
        Self::LeftToProxy,
        Self::BackendGone,
    ];

    /// The name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlowsAllowed => "flows_allowed",
            Self::FlowsDenied => "flows_denied",
            Self::FlowsEstablished => "flows_established",
            Self::HalfOpenCapped => "half_open_capped",
            Self::InsertFailed => "insert_failed",
            Self::PickedUp => "picked_up",
            Self::Rejudged => "rejudged",
            Self::Revoked => "revoked",
            Self::Translated => "translated",
            Self::PortChanged => "port_changed",
            Self::EventsLost => "events_lost",
            Self::EventsSuppressed => "events_suppressed",
            Self::LeftToProxy => "left_to_proxy",
            Self::BackendGone => "backend_gone",
        }
    }

    /// The counter's slot.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self as u32
    }
}

const _: () = assert!(
    size_of::<FlowKeyV4>() == 16
        && size_of::<FlowKeyV6>() == 28
        && size_of::<Flow>() == 40
        && size_of::<FragmentKey>() == 28
        && size_of::<FragmentValue>() == 28
        && size_of::<AffinityKey>() == 8
        && size_of::<AffinityValue>() == 32
        && size_of::<PodState>() == 48
);

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn slots_are_the_positions() {
        for (position, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(usize::try_from(counter.slot()).unwrap(), position, "{}", counter.name());
        }
    }
}
