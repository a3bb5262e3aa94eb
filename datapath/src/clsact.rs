//! The clsact qdisc that carries the filter's shared blocks: what pods' links and the daemon's anchor have in common.
//!
//! Pure: values in, messages out.

use netlink_packet_core::{Nla as _, parse_u32};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use veni_core::wire::FilterBlocks;

use crate::netlink::{DefaultNla, Request};

/// `TCA_INGRESS_BLOCK` and `TCA_EGRESS_BLOCK` (include/uapi/linux/rtnetlink.h, Linux 4.16).
const TCA_INGRESS_BLOCK: u16 = 13;
const TCA_EGRESS_BLOCK: u16 = 14;
/// The handle of every clsact and ingress qdisc.
const HANDLE: TcHandle = TcHandle { major: u16::MAX, minor: 0 };

/// A qdisc that carries the filters of both blocks from its first packet on. A block exists from the first qdisc that
/// names it; it needs no filter to be there (`tcf_block_get_ext`).
pub(crate) fn add(ifindex: u32, blocks: FilterBlocks) -> Request {
    let block =
        |kind, index: u32| TcAttribute::Other(DefaultNla::new(kind, index.to_ne_bytes().to_vec()));
    let mut qdisc = at(ifindex);
    qdisc.attributes = vec![
        TcAttribute::Kind("clsact".to_owned()),
        block(TCA_INGRESS_BLOCK, blocks.ingress),
        block(TCA_EGRESS_BLOCK, blocks.egress),
    ];
    Request::create(RouteNetlinkMessage::NewQueueDiscipline(qdisc))
}

/// What is at the ingress hook of a link.
pub(crate) fn at(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = HANDLE;
    message
}

/// The blocks of a qdisc, ingress and egress.
pub(crate) fn blocks(qdisc: &TcMessage) -> [Option<u32>; 2] {
    [TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK].map(|kind| {
        qdisc.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Other(other) if other.kind() == kind => {
                let mut value = vec![0; other.value_len()];
                other.emit_value(&mut value);
                parse_u32(&value).ok()
            }
            _ => None,
        })
    })
}
