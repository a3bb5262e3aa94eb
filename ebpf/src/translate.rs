//! A packet of a translated flow, rewritten to its other view.

use veni_ebpf_common::{
    Flow, FlowFlags, FlowKind, SettingFlags,
    packet::{SCTP, TCP, UDP},
};

use crate::{
    family::Family,
    skb::Checksum,
    work::{End, Env, PASS, TURN_ROUND, Work},
};

/// Where the packet's transport checksum is.
#[inline(always)]
pub(crate) fn checksum<F: Family>(env: &Env, work: &Work<F>) -> Checksum {
    let at = u32::from(work.packet.transport);
    let offset = match work.packet.protocol {
        TCP => 16,
        UDP => 6,
        _ => 0,
    };
    Checksum {
        at: if offset == 0 { 0 } else { at + offset },
        udp: work.packet.protocol == UDP,
        ipv6_flag: env.settings.flags & SettingFlags::CHECKSUM_IPV6 != 0,
    }
}

/// Whether a packet in this direction is rewritten by this entry.
#[inline(always)]
pub(crate) fn applies(flow: &Flow, egress: bool) -> bool {
    if egress {
        flow.kind == FlowKind::FORWARD || flow.flags & FlowFlags::HAIRPIN != 0
    } else {
        flow.kind == FlowKind::REVERSE && flow.flags & FlowFlags::HAIRPIN == 0
    }
}

/// Rewrites the packet to the flow's other view.
#[inline(never)]
pub(crate) fn apply<F: Family>(env: &Env, work: &mut Work<F>) -> End {
    let flow = &work.entry;
    let egress = work.is_egress();
    if !applies(flow, egress) {
        return PASS;
    }
    let sum = checksum(env, work);
    let skb = env.skb;
    let packet = &work.packet;
    let remote = F::narrow(&flow.address);
    let (remote_port, local_port) =
        (u16::from_be_bytes(flow.remote_port), u16::from_be_bytes(flow.local_port));
    let at = u32::from(packet.transport);
    // SCTP's ports never change: they are under its CRC32c.
    let ports = packet.protocol != SCTP;
    let hairpin = flow.flags & FlowFlags::HAIRPIN != 0;
    // To the pod itself: from the address that stands for it, to its own.
    let source_port = if hairpin || !egress { remote_port } else { local_port };
    let destination_port = if hairpin || !egress { local_port } else { remote_port };
    if hairpin || !egress {
        F::set_address(skb, F::SOURCE_AT, &packet.source, &remote, sum);
    }
    if hairpin || egress {
        let to = if hairpin { F::of_pod(env.pod) } else { remote };
        F::set_address(skb, F::DESTINATION_AT, &packet.destination, &to, sum);
    }
    if ports {
        skb.set_port(at, packet.source_port, source_port, sum);
        skb.set_port(at + 2, packet.destination_port, destination_port, sum);
    }
    if hairpin { TURN_ROUND } else { PASS }
}
