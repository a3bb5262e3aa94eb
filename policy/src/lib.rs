//! Who may talk to whom: the objects, the index over them, the compiler to the programs' tables, and the oracle.
//!
//! Deliberately absent: I/O, clocks, where the objects come from.

pub mod applied;
pub mod change;
mod compile;
pub mod index;
mod intern;
pub mod object;
pub mod oracle;
pub mod rule;
pub mod security_group;
pub mod service;
pub mod view;
