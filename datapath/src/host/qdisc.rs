//! clsact qdiscs that carry the filter's shared blocks.

use netlink_packet_core::{DefaultNla, Nla as _};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use veni_core::wire::FilterBlocks;

use crate::{
    error::{Error, Result},
    netlink::{Request, Socket},
};

/// `TCA_INGRESS_BLOCK`, `TCA_EGRESS_BLOCK` (include/uapi/linux/rtnetlink.h, Linux 4.16).
const TCA_INGRESS_BLOCK: u16 = 13;
const TCA_EGRESS_BLOCK: u16 = 14;
/// The handle of every clsact and ingress qdisc.
const HANDLE: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// The qdisc at a link's ingress hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IngressQdisc {
    pub(crate) ifindex: u32,
    pub(crate) kind: String,
    pub(crate) blocks: FilterBlocks,
}

/// A clsact qdisc with these blocks.
pub(crate) fn add(ifindex: u32, blocks: FilterBlocks) -> Request {
    let mut message = message(ifindex);
    let block =
        |kind, index: u32| TcAttribute::Other(DefaultNla::new(kind, index.to_ne_bytes().to_vec()));
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    message.attributes.push(block(TCA_INGRESS_BLOCK, blocks.ingress));
    message.attributes.push(block(TCA_EGRESS_BLOCK, blocks.egress));
    Request::create(RouteNetlinkMessage::NewQueueDiscipline(message))
}

/// Removes what is at the ingress hook.
pub(crate) fn remove(ifindex: u32) -> Request {
    Request::plain(RouteNetlinkMessage::DelQueueDiscipline(message(ifindex)))
}

fn message(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = HANDLE;
    message
}

/// What is at the ingress hook of every link that has something there.
pub(crate) fn dump(socket: &mut Socket) -> Result<Vec<IngressQdisc>> {
    socket
        .dump(
            RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()),
            |message| match message {
                RouteNetlinkMessage::NewQueueDiscipline(qdisc)
                    if qdisc.header.parent == TcHandle::CLSACT =>
                {
                    Some(parse(&qdisc))
                }
                _ => None,
            },
        )
        .map_err(Error::netlink("listing qdiscs"))
}

fn parse(message: &TcMessage) -> IngressQdisc {
    let mut qdisc = IngressQdisc {
        ifindex: message.header.index.cast_unsigned(),
        kind: String::new(),
        blocks: FilterBlocks { ingress: 0, egress: 0 },
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => qdisc.kind.clone_from(kind),
            TcAttribute::Other(other) => {
                let mut value = [0; 4];
                if other.value_len() != 4 {
                    continue;
                }
                other.emit_value(&mut value);
                match other.kind() {
                    TCA_INGRESS_BLOCK => qdisc.blocks.ingress = u32::from_ne_bytes(value),
                    TCA_EGRESS_BLOCK => qdisc.blocks.egress = u32::from_ne_bytes(value),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    qdisc
}
