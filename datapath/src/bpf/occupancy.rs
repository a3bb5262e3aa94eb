//! How full the tables of established flows are. The kernel drops from a full one what was idle longest, without a word.

use super::Filter;
use crate::error::Result;

/// A table of established flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Entries: a flow by a Service has two.
    pub flows: usize,
    /// How many there can be.
    pub room: u32,
}

impl Filter {
    /// Of IPv4, then of IPv6. Reads the whole tables, some milliseconds a table that is full: not for every packet's sake, and
    /// not more often than somebody looks.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn established(&self) -> Result<[Occupancy; 2]> {
        let (v4, v6) = (&self.maps.flows_v4, &self.maps.flows_v6);
        Ok([
            Occupancy { flows: v4.entries()?.len(), room: v4.limit() },
            Occupancy { flows: v6.entries()?.len(), room: v6.limit() },
        ])
    }
}
