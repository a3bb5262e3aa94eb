//! Other programs where pods' packets meet ours: what runs before a filter can let packets by it.
//!
//! Reported, never removed: it is somebody's. What is ours and gone is put back elsewhere ([`Filter::check_attached`],
//! [`crate::host::reconcile()`]); until then it is here, too.
//!
//! A filter that comes is heard of ([`crate::watch::Change::Filter`]); the kernel tells nobody of a TCX program, so those
//! are found by whoever looks.

use std::{collections::BTreeSet, fmt, io};

use netlink_packet_route::tc::{TcAttribute, TcMessage};
use veni_ebpf_common::Direction;

use super::{Filter, attach, syscall};
use crate::{
    error::{Error, Result},
    host::qdisc,
    netlink::Socket,
};

/// Something at the hooks of pods' links that is not ours, or the want of what is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Foreign {
    /// TCX programs on a pod's link (Linux 6.6): they run before every filter, and decide whether ours does.
    Tcx {
        /// The link.
        ifindex: u32,
        /// What they see: what leaves the pod, or what enters it.
        direction: Direction,
        /// In the order in which they run.
        programs: Vec<ForeignProgram>,
    },
    /// A filter in a block that all pods' links share.
    Filter {
        /// The block.
        block: u32,
        /// What it sees.
        direction: Direction,
        /// Its priority: lower ones run first.
        priority: u16,
        /// Its handle among those of the same priority.
        handle: u32,
        /// Its kind (`bpf`, `matchall`).
        kind: String,
        /// Its program, if it is one of the kind `bpf`.
        program: Option<ForeignProgram>,
        /// It runs before ours. One that runs after sees only what ours lets through.
        before: bool,
    },
    /// A pod's link without our qdisc: nothing is judged there, both ways.
    Unfiltered {
        /// The link.
        ifindex: u32,
        /// The kind of qdisc that is there instead, or that lacks the blocks.
        found: Option<String>,
    },
    /// A block without our program: nothing is judged there, on any pod's link.
    Missing {
        /// The block.
        block: u32,
        /// What is not judged.
        direction: Direction,
    },
}

/// A program, as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignProgram {
    /// `bpftool prog show id …`.
    pub id: u32,
    /// At most 15 bytes; empty when it has none, or is gone.
    pub name: String,
}

impl Foreign {
    /// Whether packets may pass that were not judged.
    #[must_use]
    pub fn bypasses(&self) -> bool {
        match self {
            Self::Tcx { .. } | Self::Unfiltered { .. } | Self::Missing { .. } => true,
            Self::Filter { before, .. } => *before,
        }
    }
}

impl Filter {
    /// Looks at the hooks of all pods' links in the current network namespace. Three listings, and two calls a pod.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn foreign(&self) -> Result<Vec<Foreign>> {
        let mut socket = Socket::open().map_err(Error::netlink("opening a netlink socket"))?;
        let entries = self.maps.pods.entries()?;
        let pods: BTreeSet<u32> = entries
            .into_iter()
            .map(|(ifindex, _)| ifindex)
            .filter(|i| !socket.is_free(*i))
            .collect();
        let mut all = tcx(&pods)?;
        for (direction, block, ours) in [
            (Direction::Egress, self.blocks.ingress, self.egress.id),
            (Direction::Ingress, self.blocks.egress, self.ingress.id),
        ] {
            let is_ours = |filter: &TcMessage| {
                attach::is_ours(filter) && attach::program_of(filter) == Some(ours)
            };
            let (own, others): (Vec<_>, Vec<_>) =
                attach::filters(&mut socket, block)?.into_iter().partition(is_ours);
            if own.is_empty() {
                all.push(Foreign::Missing { block, direction });
            }
            all.extend(others.iter().filter_map(|filter| in_block(filter, block, direction)));
        }
        let qdiscs = qdisc::dump(&mut socket)?;
        for ifindex in pods {
            let found = qdiscs.iter().find(|qdisc| qdisc.ifindex == ifindex);
            if found.is_none_or(|qdisc| qdisc.blocks != self.blocks) && !socket.is_free(ifindex) {
                let found = found.map(|qdisc| qdisc.kind.clone());
                all.push(Foreign::Unfiltered { ifindex, found });
            }
        }
        Ok(all)
    }
}

fn tcx(pods: &BTreeSet<u32>) -> Result<Vec<Foreign>> {
    let mut all = Vec::new();
    for ifindex in pods {
        for direction in [Direction::Egress, Direction::Ingress] {
            let ids = match syscall::tcx_programs(*ifindex, direction == Direction::Egress) {
                Ok(ids) => ids,
                // A kernel without TCX.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(all),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
                Err(error) => {
                    return Err(Error::bpf(format!("TCX programs of link {ifindex}"), error));
                }
            };
            if !ids.is_empty() {
                let programs = ids.into_iter().map(program).collect();
                all.push(Foreign::Tcx { ifindex: *ifindex, direction, programs });
            }
        }
    }
    Ok(all)
}

fn program(id: u32) -> ForeignProgram {
    let gone = |error: io::Error| {
        tracing::debug!(id, %error, "a program without a name");
        String::new()
    };
    ForeignProgram { id, name: syscall::program_name(id).unwrap_or_else(gone) }
}

/// `None` for what a listing says beside filters (handle 0), and for filters that no packet comes by.
fn in_block(filter: &TcMessage, block: u32, direction: Direction) -> Option<Foreign> {
    let handle = u32::from(filter.header.handle);
    let chained = |a: &TcAttribute| matches!(a, TcAttribute::Chain(chain) if *chain != 0);
    if handle == 0 || filter.attributes.iter().any(chained) {
        return None;
    }
    let kind = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    });
    let priority = attach::priority(filter);
    Some(Foreign::Filter {
        block,
        direction,
        priority,
        handle,
        kind: kind.unwrap_or_default(),
        program: attach::program_of(filter).map(program),
        // `cls_bpf_change` puts a filter of our own priority before those that are there.
        before: priority <= attach::PRIORITY,
    })
}

impl fmt::Display for ForeignProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (id {})", if self.name.is_empty() { "?" } else { &self.name }, self.id)
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcx { ifindex, direction, programs } => {
                let names: Vec<String> = programs.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "TCX programs on the pod's link {ifindex} see what {} before veni's filter and decide whether it \
                     runs: {}; detach them (`bpftool net`), or make sure that they return TCX_NEXT",
                    way(*direction),
                    names.join(", ")
                )
            }
            Self::Filter { block, direction, priority, kind, program, before, .. } => {
                let name = program.as_ref().map_or_else(|| kind.clone(), ToString::to_string);
                let order = if *before { "before" } else { "after" };
                write!(
                    f,
                    "a filter of another program ({name}, priority {priority}) in veni's block {block:#x} sees what {} \
                     {order} veni's",
                    way(*direction)
                )?;
                if *before {
                    write!(
                        f,
                        " and decides whether it runs; remove it (`tc filter del block {block} prio {priority}`)"
                    )?;
                }
                Ok(())
            }
            Self::Unfiltered { ifindex, found } => write!(
                f,
                "the pod's link {ifindex} has {} in place of veni's qdisc: nothing there is judged; veni puts it back, so \
                 stop what takes it away",
                found.as_deref().unwrap_or("nothing")
            ),
            Self::Missing { block, direction } => write!(
                f,
                "veni's filter is not on its block {block:#x}: what {} is not judged; veni puts it back, so stop what \
                 takes it away",
                way(*direction)
            ),
        }
    }
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "leaves pods",
        Direction::Ingress => "enters pods",
    }
}
