//! What is done once for a whole cluster, by the one of its replicas that holds a Lease.
//!
//! [`sweep`] is which ENIs are taken away and why, [`groups`] what is published of security groups: pure. [`sweeper`] and
//! [`publisher`] do it, [`elector`] sees to it that one replica does. The binary puts them together.
//!
//! Invariants: nothing is changed in the cloud by a replica that has not just seen that it holds the Lease
//! ([`elector::Fence`]); what cannot be told apart from a living node's is left alone.
//!
//! Deliberately absent: anything that a node needs in order to give addresses to pods. Without a controller nodes go on.

pub mod elector;
pub mod groups;
pub mod http;
pub mod lease;
pub mod metrics;
pub mod named;
pub mod publisher;
pub mod settings;
pub mod sweep;
pub mod sweeper;
pub mod trying;
