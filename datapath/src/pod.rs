//! Wiring a pod: a veth pair whose far end is born inside the pod's namespace, the filter's qdisc on the near end,
//! the pod's /32 route, and the pod's own address, routes and gateway neighbour.
//!
//! Invariants: what names an index goes in one write with the pair of that index only while no link has it, so a link
//! of another is not touched. The filter's qdisc is on the host end before the pod's end is up, so no packet is ever unfiltered.
//! [`wire`] either leaves the whole or nothing, except when it is killed: what it then leaves is found by name and
//! made anew by the next [`wire`], and removed by [`unwire`]. Removing the host end removes everything: the kernel
//! drops its peer, its qdisc and its routes with it.
//!
//! Deliberately absent: IPv6 (the message builders take one family at a time and leave room for a second), the
//! namespace's `lo` (the runtime's), sysctls (the daemon's).

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use veni_core::{
    id::{IfName, ParseIdError},
    net::Mac,
    wire::Wiring,
};

use crate::{
    fault,
    netlink::{self, Request, Socket},
    netns::{self, NetNs},
};

mod message;
mod step;
mod verify;

use step::Step;
pub use verify::{Difference, verify};

/// A pod's interface as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wired {
    /// Whether it was there, whole, before this call.
    pub existed: bool,
}

/// Why a pod is not wired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a step.
    #[error("{step} for {ifname}")]
    Netlink {
        /// What was being done.
        step: &'static str,
        /// The interface that it was done to.
        ifname: IfName,
        /// The kernel's answer.
        #[source]
        source: netlink::Error,
    },
    /// What was to be made is there already, made by somebody else.
    #[error("{step} for {ifname}: it is there already; {advice}")]
    Occupied {
        /// What was being done.
        step: &'static str,
        /// The interface that it was done to.
        ifname: IfName,
        /// How to see whose it is, and what to do.
        advice: String,
        /// The kernel's answer.
        #[source]
        source: netlink::Error,
    },
    /// The pod's namespace cannot be entered.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// The pod already has an interface of this name, which is not ours.
    #[error(
        "the pod already has an interface {ifname} that veni did not make; remove the other network plugin or \
         choose another CNI_IFNAME"
    )]
    PodNameTaken {
        /// The name inside the pod.
        ifname: IfName,
    },
    /// The interface index that the daemon chose belongs to another link.
    #[error(
        "interface index {index}, meant for {ifname}, belongs to {holder}, which is left alone; the runtime's next try \
         gets another index (if this comes again, see who numbers links from 1048576 up: `ip link`)"
    )]
    IndexTaken {
        /// The host end that could not be made.
        ifname: IfName,
        /// Its index.
        index: u32,
        /// Who has it.
        holder: String,
    },
    /// The namespace to be wired is the node's own.
    #[error(
        "CNI_NETNS is the node's own network namespace: a pod on the host's network needs no interface"
    )]
    NotAPod,
    /// A link of the name that is to be removed exists, but is not a veth: it is not ours.
    #[error("{ifname} is not a veth: veni did not make it and does not remove it")]
    NotAVeth {
        /// The name.
        ifname: IfName,
    },
    /// A link's name that is no name.
    #[error(transparent)]
    Name(#[from] ParseIdError),
    /// It failed, and so did taking back what had been done.
    #[error(
        "undoing the wiring of {ifname} failed too ({undo}); the next DEL of this pod removes what is left"
    )]
    Undo {
        /// The host end that is left.
        ifname: IfName,
        /// Why it could not be removed.
        undo: Box<Self>,
        /// What failed first.
        #[source]
        cause: Box<Self>,
    },
}

/// What the kernel is to make, borrowed from the daemon's answer and the runtime's request.
#[derive(Debug, Clone, Copy)]
struct Plan<'a> {
    wiring: &'a Wiring,
    ifname: &'a IfName,
    netns: &'a NetNs,
}

/// Wires the pod in `netns` as `wiring` says, its interface being called `ifname` inside. `host` is a socket in the
/// node's namespace, `pod` one in `netns`.
///
/// A pod that is already wired exactly so is left alone; a half-wired leftover is removed and made anew.
///
/// # Errors
/// After any error nothing is left behind, except after [`Error::Undo`].
pub fn wire(
    host: &mut Socket,
    pod: &mut Socket,
    netns: &NetNs,
    wiring: &Wiring,
    ifname: &IfName,
) -> Result<Wired, Error> {
    let plan = Plan { wiring, ifname, netns };
    let Some(pod_index) = plan.make_host_end(host, pod)? else {
        return Ok(Wired { existed: true });
    };
    fault::point("wire:host");
    match plan.configure_pod(pod, pod_index) {
        Ok(()) => Ok(Wired { existed: false }),
        Err(error) => Err(plan.undo(host, error)),
    }
}

/// Removes the pod's host end, and everything with it. `false` when there was none.
///
/// # Errors
/// [`Error::NotAVeth`] when the name belongs to another kind of link.
pub fn unwire(host: &mut Socket, host_ifname: &IfName) -> Result<bool, Error> {
    let failed = |source| Error::Netlink {
        step: "removing the host end",
        ifname: host_ifname.clone(),
        source,
    };
    let Some(link) = host.get_link_by_name(host_ifname.as_str()).map_err(failed)? else {
        return Ok(false);
    };
    if !is_veth(&link) {
        return Err(Error::NotAVeth { ifname: host_ifname.clone() });
    }
    // By index: the name may be another's by now, the index is not reused.
    match host.transact(&[Request::plain(message::delete_link(link.header.index))]) {
        Ok(()) => Ok(true),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// The host end of the pod's veth called `ifname`, `None` when there is no such veth or its peer is elsewhere.
/// `host` is a socket in the node's namespace, `pod` one in the pod's.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn host_end(
    host: &mut Socket,
    pod: &mut Socket,
    ifname: &IfName,
) -> Result<Option<IfName>, Error> {
    let failed = |source| Error::Netlink {
        step: "looking for the host end",
        ifname: ifname.clone(),
        source,
    };
    let pod_end = pod.get_link_by_name(ifname.as_str()).map_err(failed)?;
    let Some(pod_end) = pod_end.filter(is_veth) else { return Ok(None) };
    let Some(index) = peer_index(&pod_end) else { return Ok(None) };
    let found = host.get_link_by_index(index).map_err(failed)?;
    // An index alone could name a link of another namespace: the two must point at each other.
    let Some(found) =
        found.filter(|link| is_veth(link) && peer_index(link) == Some(pod_end.header.index))
    else {
        return Ok(None);
    };
    Ok(link_name(&found).map(str::parse).transpose()?)
}

// === impl Plan ===

impl Plan<'_> {
    /// Makes the pair, the route and the qdisc in one write. Returns the pod end's index, or `None` when the pod is
    /// fully wired already.
    fn make_host_end(&self, host: &mut Socket, pod: &mut Socket) -> Result<Option<u32>, Error> {
        // Any number will do inside the pod; the daemon's is least likely to be taken there.
        let mut pod_index = self.wiring.host_ifindex;
        let mut cleared = false;
        loop {
            let batch = message::host_batch(self.wiring, self.ifname, self.netns, pod_index);
            // The kernel goes on after a refused message: where a link has the index, the pair must go alone, or that
            // link would get the route and the qdisc.
            let first = if host.is_free(self.wiring.host_ifindex) { batch.len() } else { 1 };
            let (first, rest) = batch.split_at(first);
            let Err(error) = host.transact(first) else {
                let made = host.transact(rest);
                let made = made.map_err(|e| self.refused(step_of(&step::HOST[1..], &e), e));
                return made.map(|()| Some(pod_index)).map_err(|error| self.undo(host, error));
            };
            let no_pair = error.index() == Some(0) || matches!(error, netlink::Error::Send(_));
            let taken = matches!(error.errno(), Some(libc::EEXIST | libc::EBUSY));
            let cause = self.refused(step_of(&step::HOST, &error), error);
            if !no_pair {
                return Err(self.undo(host, cause));
            }
            if !taken {
                return Err(cause);
            }
            match self.resolve(host, pod, cleared, pod_index == 0)? {
                Resolution::Wired => return Ok(None),
                Resolution::Cleared => cleared = true,
                Resolution::LetKernelChoose => pod_index = 0,
            }
        }
    }

    /// Something of the pair's names or numbers is taken. By whom, and what can be done?
    fn resolve(
        &self,
        host: &mut Socket,
        pod: &mut Socket,
        cleared: bool,
        kernel_chose: bool,
    ) -> Result<Resolution, Error> {
        // In one namespace both ends cannot have one index, so this can only be found out here, off the usual path.
        let node = NetNs::of_socket(host)?;
        if node.is_same(self.netns).map_err(netns::Error::Enter)? {
            return Err(Error::NotAPod);
        }
        let name = &self.wiring.host_ifname;
        let by_name = host
            .get_link_by_name(name.as_str())
            .map_err(|e| self.failed("looking for a leftover", e))?;
        if by_name.is_some() && !cleared {
            if verify(host, pod, self.wiring, self.ifname)?.is_empty() {
                return Ok(Resolution::Wired);
            }
            unwire(host, name)?;
            return Ok(Resolution::Cleared);
        }
        let by_index = host
            .get_link_by_index(self.wiring.host_ifindex)
            .map_err(|e| self.failed("looking for the holder of the index", e))?;
        if let Some(holder) = by_index {
            return Err(Error::IndexTaken {
                ifname: name.clone(),
                index: self.wiring.host_ifindex,
                holder: link_name(&holder).unwrap_or("a link without a name").to_owned(),
            });
        }
        if kernel_chose {
            return Err(Error::PodNameTaken { ifname: self.ifname.clone() });
        }
        Ok(Resolution::LetKernelChoose)
    }

    /// Everything inside the pod, in one write. `pod_index` 0: the kernel chose, ask it.
    fn configure_pod(&self, pod: &mut Socket, pod_index: u32) -> Result<(), Error> {
        let index = match pod_index {
            0 => pod
                .get_link_by_name(self.ifname.as_str())
                .map_err(|e| self.failed("looking for the pod's end", e))?
                .map_or(0, |link| link.header.index),
            known => known,
        };
        let batch = message::pod_batch(self.wiring, index);
        pod.transact(&batch).map_err(|error| self.refused(step_of(&step::POD, &error), error))
    }

    fn undo(&self, host: &mut Socket, cause: Error) -> Error {
        match unwire(host, &self.wiring.host_ifname) {
            Ok(_) => cause,
            Err(undo) => Error::Undo {
                ifname: self.wiring.host_ifname.clone(),
                undo: Box::new(undo),
                cause: Box::new(cause),
            },
        }
    }

    fn refused(&self, step: Step, source: netlink::Error) -> Error {
        if !source.is_present() {
            return self.failed(step.what(), source);
        }
        Error::Occupied {
            step: step.what(),
            ifname: self.wiring.host_ifname.clone(),
            advice: step.when_present(self.wiring, self.ifname),
            source,
        }
    }

    fn failed(&self, step: &'static str, source: netlink::Error) -> Error {
        Error::Netlink { step, ifname: self.wiring.host_ifname.clone(), source }
    }
}

/// The step that `error` is about, the first when the kernel names none.
fn step_of(steps: &[Step], error: &netlink::Error) -> Step {
    error.index().and_then(|index| steps.get(index)).copied().unwrap_or(steps[0])
}

enum Resolution {
    Wired,
    Cleared,
    LetKernelChoose,
}

fn is_veth(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(info) if info.contains(&LinkInfo::Kind(InfoKind::Veth)))
    })
}

fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// The index of a veth's peer, in the peer's namespace.
fn peer_index(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

fn link_mac(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

fn link_mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn decode_error(message: &RouteNetlinkMessage) -> netlink::Error {
    netlink::Error::Decode(format!("message type {} where another was due", message.message_type()))
}
