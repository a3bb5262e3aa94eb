//! ICMP errors: they belong to the flow that they quote.

use veni_ebpf_common::{FlowFlags, packet::SCTP};

use crate::{
    family::Family,
    service,
    skb::Checksum,
    translate,
    work::{End, Env, PASS, Work},
};

/// Reads what an error quotes; the key of its flow. 1 when it is about a flow of the pod, 0 when it is a message like
/// any other, judged by its type and code.
#[inline(never)]
pub(crate) fn quote<F: Family>(env: &Env, work: &mut Work<F>) -> u32 {
    // What cannot be followed there (a later fragment, a message that is no echo, a cut header) opens nothing.
    work.quoted = match F::quoted(env.skb, usize::from(work.packet.transport)) {
        Ok(quoted) => quoted,
        Err(_) => return 0,
    };
    let own = if work.is_egress() { work.quoted.destination } else { work.quoted.source };
    if !F::same(&own, &F::of_pod(env.pod)) {
        return 0;
    }
    // The pod complains to whom it heard from. To anyone else it is a message: the quotation would open any address.
    if work.is_egress() && !F::same(&work.packet.destination, &work.quoted.source) {
        return 0;
    }
    let (remote, local_port, remote_port) = service::quoted_ends(work);
    work.key = F::key(
        env.pod.slot,
        remote,
        local_port.to_be_bytes(),
        remote_port.to_be_bytes(),
        work.quoted.protocol,
    );
    1
}

/// Rewrites the quotation, and the error's own other end, to the flow's other view.
#[inline(never)]
pub(crate) fn related<F: Family>(env: &Env, work: &mut Work<F>) -> End {
    let egress = work.is_egress();
    let hairpin = work.entry.flags & FlowFlags::HAIRPIN != 0;
    if hairpin || !translate::applies(&work.entry, egress) {
        return PASS;
    }
    let other = F::narrow(&work.entry.address);
    let (remote_port, local_port) =
        (u16::from_be_bytes(work.entry.remote_port), u16::from_be_bytes(work.entry.local_port));
    let sum = Checksum {
        at: u32::from(work.packet.transport) + 2,
        udp: false,
        ipv6_flag: translate::checksum(env, work).ipv6_flag,
    };
    // ICMP's checksum covers the ports, and for IPv6 the addresses; ICMPv4's has no pseudo header.
    let outer = Checksum { at: if F::VERSION == 6 { sum.at } else { 0 }, ..sum };
    let (network, at) = (u32::from(work.quoted.network), u32::from(work.quoted.transport));
    let (remote, old_local, old_remote) = service::quoted_ends(work);
    // What the pod complains about came in: its source is the other end.
    let (remote_at, local_at) = if egress { (at, at + 2) } else { (at + 2, at) };
    F::set_quoted(env.skb, network, egress, &remote, &other, sum);
    if work.quoted.protocol != SCTP {
        env.skb.set_port(remote_at, old_remote, remote_port, sum);
        env.skb.set_port(local_at, old_local, local_port, sum);
    }
    // An error from the back end itself comes from the Service; one from a router keeps its source.
    if egress && F::same(&work.packet.destination, &remote) {
        F::set_address(env.skb, F::DESTINATION_AT, &remote, &other, outer);
    } else if !egress && F::same(&work.packet.source, &remote) {
        F::set_address(env.skb, F::SOURCE_AT, &remote, &other, outer);
    }
    PASS
}
