//! veni's pure core: identifiers, configuration, instance limits, the IPAM ledger and planner, and the messages
//! between plugin and daemon.
//!
//! Invariant: no I/O. No files, sockets, clock or environment: time and variables are passed in
//! (`clippy.toml` of this crate bans the rest).

pub mod chain;
pub mod config;
pub mod id;
pub mod ipam;
pub mod limits;
pub mod marks;
pub mod net;
pub mod steady;
pub mod wire;
