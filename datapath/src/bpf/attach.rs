//! The filter on its shared block, and what keeps the block alive.
//!
//! A block lives as long as a qdisc refers to it. Pods come and go, so a pair of links of our own, never up, refers
//! to it too: the anchor.

use std::os::fd::AsRawFd as _;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};
use veni_core::wire::FilterBlocks;

use super::load::Program;
use crate::{
    error::{Error, Result},
    host::{Repair, RepairKind, qdisc},
    netlink::{Request, Socket},
};

/// The anchor and its peer.
const ANCHOR: [&str; 2] = ["veni-anchor", "veni-anchorp"];
/// Room before and after for other programs' filters on the same block.
pub(super) const PRIORITY: u16 = 100;
/// Ours among those of the same priority.
const HANDLE: TcHandle = TcHandle { major: 0, minor: 1 };
/// `ETH_P_ALL`.
const ETH_P_ALL: u16 = 0x0003;

/// Makes anchor, qdisc and filters be there, and the filters be these programs: `egress` (what leaves a pod) on the
/// ingress block, `ingress` on the egress block. What was not.
pub(super) fn ensure(
    egress: &Program,
    ingress: &Program,
    blocks: FilterBlocks,
) -> Result<Vec<Repair>> {
    let mut socket = Socket::open().map_err(Error::netlink("opening a netlink socket"))?;
    let mut repairs = Vec::new();
    let mut note = |what: String| repairs.push(Repair { kind: RepairKind::Filter, what });
    let anchor = match anchor_index(&mut socket)? {
        Some(index) => index,
        None => {
            make_anchor(&mut socket)?;
            note(format!("link {}", ANCHOR[0]));
            anchor_index(&mut socket)?.ok_or_else(|| Error::Io {
                operation: format!("looking for {} just made", ANCHOR[0]),
                source: std::io::ErrorKind::NotFound.into(),
            })?
        }
    };
    if hold_blocks(&mut socket, anchor, blocks)? {
        note(format!(
            "clsact with blocks {:#x} and {:#x} on {}",
            blocks.ingress, blocks.egress, ANCHOR[0]
        ));
    }
    // What leaves first: the flows that pods begin are known before their answers are judged.
    for (program, block) in [(egress, blocks.ingress), (ingress, blocks.egress)] {
        if attached(&mut socket, block)? != Some(program.id) {
            replace_filter(&mut socket, program, block)?;
            note(format!("filter {} on block {block:#x}", program.name));
        }
    }
    Ok(repairs)
}

/// The id of the program at work on what leaves pods.
pub(super) fn at_work(blocks: FilterBlocks) -> Result<Option<u32>> {
    let mut socket = Socket::open().map_err(Error::netlink("opening a netlink socket"))?;
    attached(&mut socket, blocks.ingress)
}

/// Removes what keeps the blocks alive: without pods' veths, the blocks and their filters go with it.
pub(super) fn remove_anchor() -> Result<()> {
    let mut socket = Socket::open().map_err(Error::netlink("opening a netlink socket"))?;
    let Some(index) = anchor_index(&mut socket)? else { return Ok(()) };
    let mut link = LinkMessage::default();
    link.header.index = index;
    let request = Request::plain(RouteNetlinkMessage::DelLink(link));
    socket.transact(&[request]).map_err(Error::netlink("removing the anchor link"))
}

fn anchor_index(socket: &mut Socket) -> Result<Option<u32>> {
    let link = socket
        .get_link_by_name(ANCHOR[0])
        .map_err(Error::netlink(format!("looking for {}", ANCHOR[0])))?;
    Ok(link.map(|link| link.header.index))
}

fn make_anchor(socket: &mut Socket) -> Result<()> {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(ANCHOR[1].to_owned()));
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(ANCHOR[0].to_owned()));
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    socket
        .transact(&[Request::create(RouteNetlinkMessage::NewLink(link))])
        .map_err(Error::netlink(format!("making the links {} and {}", ANCHOR[0], ANCHOR[1])))
}

/// Puts the blocks on the anchor; `false` when they are there.
fn hold_blocks(socket: &mut Socket, anchor: u32, blocks: FilterBlocks) -> Result<bool> {
    let found = qdisc::dump(socket)?.into_iter().find(|qdisc| qdisc.ifindex == anchor);
    if found.as_ref().is_some_and(|qdisc| qdisc.kind == "clsact" && qdisc.blocks == blocks) {
        return Ok(false);
    }
    let mut requests: Vec<Request> = found.map(|_| qdisc::remove(anchor)).into_iter().collect();
    requests.push(qdisc::add(anchor, blocks));
    socket
        .transact(&requests)
        .map_err(Error::netlink(format!("clsact with shared blocks on {}", ANCHOR[0])))?;
    Ok(true)
}

/// The id of the program that our filter on this block runs.
fn attached(socket: &mut Socket, block: u32) -> Result<Option<u32>> {
    Ok(filters(socket, block)?.iter().find(|filter| is_ours(filter)).and_then(program_of))
}

/// All filters of the block, in the order in which the kernel lists them.
pub(super) fn filters(socket: &mut Socket, block: u32) -> Result<Vec<TcMessage>> {
    socket
        .dump(RouteNetlinkMessage::GetTrafficFilter(on_block(block)), |message| match message {
            RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
            _ => None,
        })
        .map_err(Error::netlink(format!("listing the filters of block {block:#x}")))
}

pub(super) fn is_ours(filter: &TcMessage) -> bool {
    filter.header.handle == HANDLE && filter.header.info == info()
}

pub(super) fn priority(filter: &TcMessage) -> u16 {
    (filter.header.info >> 16) as u16
}

pub(super) fn program_of(filter: &TcMessage) -> Option<u32> {
    filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        }),
        _ => None,
    })
}

/// `cls_bpf` swaps the program of an existing handle under RCU (`list_replace_rcu`): every packet meets the old one
/// or the new one.
fn replace_filter(socket: &mut Socket, program: &Program, block: u32) -> Result<()> {
    let mut message = on_block(block);
    message.header.handle = HANDLE;
    message.header.info = info();
    message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.fd.as_raw_fd().cast_unsigned())),
        TcOption::Bpf(TcFilterBpfOption::ProgName(format!("veni:{}", program.name))),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    socket
        .transact(&[Request::replace(RouteNetlinkMessage::NewTrafficFilter(message))])
        .map_err(Error::netlink(format!("putting the filter on block {block:#x}")))
}

/// Filters of a block are named by `TCM_IFINDEX_MAGIC_BLOCK` in place of a link and the block in place of a parent
/// (include/uapi/linux/rtnetlink.h, Linux 4.16).
fn on_block(block: u32) -> TcMessage {
    let mut message = TcMessage::with_index(TcHeader::TCM_IFINDEX_MAGIC_BLOCK.cast_signed());
    message.header.parent = block.into();
    message
}

/// `TC_H_MAKE(priority << 16, protocol in network order)`.
fn info() -> u32 {
    u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be())
}
