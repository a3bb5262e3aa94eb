//! What the programs are told about the node, in the only entry of the map `SETTINGS`.

use crate::flow::ticks;

/// Bits of [`Settings::flags`].
#[derive(Debug)]
pub struct SettingFlags;

impl SettingFlags {
    /// Established flows are not judged again when the epoch changes.
    pub const KEEP_ESTABLISHED: u32 = 1;
    /// Instance metadata is closed for pods without a rule that opens it.
    pub const METADATA_CLOSED: u32 = 2;
    /// TCP packets from the middle of a flow that policy would have allowed from its other end are taken in: flows
    /// from before there was a table of them. For the moments of a change of layout.
    pub const LEARN: u32 = 4;
    /// `bpf_l4_csum_replace` knows `BPF_F_IPV6` (Linux 6.16).
    pub const CHECKSUM_IPV6: u32 = 8;
    /// New flows that are let through are events.
    pub const EVENTS_ALLOWED: u32 = 16;
    /// New flows that are refused are events.
    pub const EVENTS_DENIED: u32 = 32;
}

/// See the module. Replaced as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// The policy's epoch: raised after every change of tables, flows of another epoch are judged again.
    pub epoch: u32,
    /// [`SettingFlags`].
    pub flags: u32,
    /// The Service range; none when the mask is zero.
    pub service_v4: [u8; 4],
    /// Its mask.
    pub service_mask_v4: [u8; 4],
    /// The Service range of IPv6; none when the mask is zero.
    pub service_v6: [u8; 16],
    /// Its mask.
    pub service_mask_v6: [u8; 16],
    /// The source that a pod sees when it talks to itself by a Service.
    pub hairpin_v4: [u8; 4],
    /// The same for IPv6.
    pub hairpin_v6: [u8; 16],
    /// First node port.
    pub node_port_first: u16,
    /// Last node port; none when 0.
    pub node_port_last: u16,
    /// A pod's share of half-open flows, in each direction. Those over it go to a table that all such pods share.
    pub half_open_cap: u32,
    /// Events a second and pod.
    pub event_rate: u32,
    /// Events at once.
    pub event_burst: u32,
    /// Ticks without a packet after which a flow is forgotten: half open.
    pub half_open_ticks: u32,
    /// Established TCP.
    pub tcp_ticks: u32,
    /// TCP after a FIN.
    pub closing_ticks: u32,
    /// TCP after a reset.
    pub reset_ticks: u32,
    /// Any other protocol.
    pub other_ticks: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            epoch: 1,
            flags: SettingFlags::EVENTS_ALLOWED | SettingFlags::EVENTS_DENIED,
            service_v4: [0; 4],
            service_mask_v4: [0; 4],
            service_v6: [0; 16],
            service_mask_v6: [0; 16],
            hairpin_v4: [169, 254, 1, 1],
            hairpin_v6: [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            node_port_first: 30_000,
            node_port_last: 32_767,
            half_open_cap: 1024,
            event_rate: 100,
            event_burst: 200,
            half_open_ticks: ticks(30),
            tcp_ticks: ticks(24 * 3600),
            closing_ticks: ticks(120),
            reset_ticks: ticks(10),
            other_ticks: ticks(180),
        }
    }
}

const _: () = assert!(size_of::<Settings>() == 104);
