//! What the cluster is told of this node: events of pods and of the node, whether pods can be wired, and which
//! NodeNetworkConfig is in force.
//!
//! Invariants: telling never waits and never fails; what nobody takes is counted by who would have written it. Deliberately
//! absent: how it is written (`veni-watch`'s), and anything that the node does otherwise because of it.

use std::{fmt, sync::Arc};

use veni_core::wire::PodRef;

pub mod denied;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// To which pod; `None`: to the node.
    pub pod: Option<PodRef>,
    /// Whether somebody should look; otherwise it is good news.
    pub warning: bool,
    /// A stable word (docs/events.md).
    pub reason: &'static str,
    /// What was being done.
    pub action: &'static str,
    /// For people.
    pub note: String,
}

/// Whether pods can be wired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Whether.
    pub available: bool,
    /// A stable word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The NodeNetworkConfig that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// Its name.
    pub name: String,
    /// Its generation that is.
    pub generation: i64,
    /// Why it is not the present one.
    pub message: Option<String>,
}

/// Tells the cluster.
pub trait Tell: fmt::Debug + Send + Sync {
    /// It has happened.
    fn happened(&self, happening: Happening);
    /// The pod has these addresses.
    fn annotate(&self, pod: &PodRef, addresses: String);
    /// Pods can be wired from now on, or cannot.
    fn network(&self, network: Network);
    /// The first address is there: the taint of this key may go.
    fn able(&self, startup_taint: Option<&str>);
    /// This is in force from now on.
    fn following(&self, following: Option<Followed>);
    /// What it costs and what became of it, as metrics without an end mark.
    fn metrics(&self) -> String;
}

/// Who tells, where there is a cluster.
pub type Teller = Option<Arc<dyn Tell>>;
