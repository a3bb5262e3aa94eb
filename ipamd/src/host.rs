//! What ipamd needs of the node's kernel, behind a trait: links, rules, routes, nft and the filter's map.
//!
//! [`Kernel`](kernel::Kernel) is the real one. Tests that are about the pool use [`fake::FakeHost`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use veni_core::{
    id::IfName,
    ipam::{Allocation, EniFacts},
    marks::EniSlot,
    net::{Ipv4Prefix, Mac},
    wire::FilterBlocks,
};

use crate::enforcer::{Answering, Judged};

pub mod fake;
mod flush;
pub(crate) mod keeper;
pub mod kernel;
mod stray;

/// The node's networking. Calls return at once: what takes time happens elsewhere and comes back as a [`HostEvent`].
pub trait Host: fmt::Debug + Send + 'static {
    /// The ENIs that are to be configured, the primary first, and what leaves the VPC. Answered by
    /// [`HostEvent::Configured`], again whenever something changes it.
    fn configure(&mut self, wanted: Wanted);

    /// Lets a pod's packets pass the filter: in force when this returns.
    ///
    /// # Errors
    /// When the map takes no entry (full, or not there), or the index is another living link's.
    fn admit(&mut self, allocation: &Allocation, pod_mac: Mac) -> Result<(), String>;

    /// After a start: the filter's map holds exactly these pods.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    fn resume(&mut self, pods: &[(Allocation, Mac)]) -> Result<(), String>;

    /// Has the pod judged by the rule sets of its labels. `answer` is called, from any thread, once it is, or when the
    /// wait for its labels is over. Without policy on this node: at once.
    fn judge(&mut self, allocation: &Allocation, answer: Answering) {
        let _ = allocation;
        answer(Judged::ByLabels);
    }

    /// A pod's wiring is complete: its route and qdisc are kept in place from now on.
    fn wired(&mut self, allocation: &Allocation);

    /// Forgets a pod that has gone, and its conntrack entries. What another living link has is left to it.
    fn forget(&mut self, allocation: &Allocation);

    /// Forgets the conntrack entries of an address whose pod went before this daemon came.
    fn flush(&mut self, address: Ipv4Addr);

    /// Addresses whose conntrack entries are still to be forgotten; [`HostEvent::Flushed`] once there are none.
    fn flushing(&self) -> usize {
        0
    }

    /// The filter's blocks for a host veth; `None` without a filter.
    fn blocks(&self) -> Option<FilterBlocks>;

    /// What the node leads to links other than these pods', now: what is told later is [`HostEvent::Strays`].
    ///
    /// # Errors
    /// When the kernel does not list its routes.
    fn strays(&self, pods: &[(Allocation, Mac)]) -> Result<Strays, String>;

    /// The MACs of the links that the node has now and that can be ENIs'; `None` where there is nothing to look at. Whether
    /// they are configured is told later ([`HostEvent::Configured`]).
    ///
    /// # Errors
    /// When the kernel does not list its links.
    fn eni_links(&self) -> Result<Option<BTreeSet<Mac>>, String>;

    /// Whether the node has a link of this index, whosever it is: no new pod gets it.
    fn index_taken(&self, index: u32) -> bool;

    /// Whether the node has a link of this index and name.
    fn has_link(&self, name: &IfName, index: u32) -> bool;

    /// As [`Host::has_link`], by the kernel's own word: what that tells may be older by a moment.
    fn link_remains(&self, name: &IfName, index: u32) -> bool {
        self.has_link(name, index)
    }

    /// Packets dropped by the filter, by reason.
    fn drops(&self) -> BTreeMap<String, u64>;
}

/// Links by the address that leads to them.
pub type Strays = BTreeMap<Ipv4Addr, Stray>;

/// A link that an address leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Its index.
    pub ifindex: u32,
    /// Its name; empty when it has gone.
    pub ifname: String,
}

/// What the node is to look like, pods aside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// ENIs in slot order with all that is known of them.
    pub enis: Vec<(EniSlot, EniFacts)>,
    /// Those of them that were in use before, by this daemon or by the one before it: a repair that fails takes none
    /// away.
    pub in_use: Vec<EniSlot>,
    /// The VPC's CIDRs.
    pub vpc_cidrs: Vec<Ipv4Prefix>,
}

/// What the node's kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// How it stands with the wanted ENIs.
    Configured {
        /// Those whose link is there and configured, with the link's name.
        ready: Vec<(EniSlot, String)>,
        /// Those whose link is there, configured or not. Where the kernel does not say, all: nothing is given back for that.
        present: Vec<EniSlot>,
        /// What could not be configured, in one line each, with the next step.
        problems: Vec<String>,
    },
    /// An ENI's link has gone.
    EniUnplugged(Mac),
    /// A link of the pods has gone.
    PodLinkGone {
        /// Its name.
        name: String,
    },
    /// Addresses that the node leads to a link which is not known to be a pod's: all of them, again whenever they
    /// change. One whose ADD is under way is among them.
    Strays(Strays),
    /// The conntrack entries of all released addresses are gone.
    Flushed,
    /// Something of ours was not there or not as it must be, and is again.
    Repaired {
        /// `rule`, `route`, `nft`, `qdisc`, `sysctl`, `address`, `link`…
        kind: String,
        /// What.
        what: String,
    },
}
