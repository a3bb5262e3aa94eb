//! What the fault tests share: the programs with their fault points, a node of the lab whose daemon dies on command,
//! and what must hold whenever it has come back.
//!
//! Invariants: everything runs in a lab of its own; the daemon and the plugin are the real ones, built with
//! `fault-points`, over the real kernel and the EC2 simulator.

pub mod bench;
pub mod checks;
pub mod daemon;
pub mod journal;
pub mod plugin;
pub mod programs;

pub use bench::Bench;
pub use daemon::{Daemon, Death};
