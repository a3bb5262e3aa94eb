//! clsact qdiscs that carry the filter's shared blocks.

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use veni_core::wire::FilterBlocks;

pub(crate) use crate::clsact::add;
use crate::{
    clsact,
    error::{Error, Result},
    netlink::{Request, Socket},
};

/// The qdisc at a link's ingress hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IngressQdisc {
    pub(crate) ifindex: u32,
    pub(crate) kind: String,
    pub(crate) blocks: FilterBlocks,
}

/// Removes what is at the ingress hook.
pub(crate) fn remove(ifindex: u32) -> Request {
    Request::plain(RouteNetlinkMessage::DelQueueDiscipline(clsact::at(ifindex)))
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
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    });
    let [ingress, egress] = clsact::blocks(message).map(Option::unwrap_or_default);
    IngressQdisc {
        ifindex: message.header.index.cast_unsigned(),
        kind: kind.unwrap_or_default(),
        blocks: FilterBlocks { ingress, egress },
    }
}
