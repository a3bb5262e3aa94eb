//! What the programs tell about new flows, through the ring `EVENTS`.

use crate::table::Decision;

/// [`Event::reason`] of a flow that was let through.
pub const ALLOWED: u8 = 0xff;

/// A new flow, let through or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, nanoseconds, to the tick.
    pub at: u64,
    /// The other end: the back end where a Service was translated. IPv6, or IPv4 in the first four bytes.
    pub remote: [u8; 16],
    /// The Service's address where it was translated, zero otherwise.
    pub service: [u8; 16],
    /// The pod.
    pub slot: u32,
    /// The pod's incarnation.
    pub incarnation: u32,
    /// The deciding rule's number and what it says.
    pub decision: Decision,
    /// The other end's class.
    pub class: u32,
    /// The pod's port, host order.
    pub local_port: u16,
    /// The other end's port, host order; of ICMP its type << 8 | code.
    pub remote_port: u16,
    /// The Service's port where it was translated.
    pub service_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// [`crate::flow::Direction`].
    pub direction: u8,
    /// The slot of the [`crate::DropReason`], or [`ALLOWED`].
    pub reason: u8,
    /// [`crate::flow::FlowFlags`] of the new flow (exempt, hairpin).
    pub flags: u8,
    /// 1 when an established flow was revoked.
    pub revoked: u8,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Event>() == 72);
