//! The tables that steps are carried out on: the loaded programs' maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use veni_core::{
    chain::chain,
    wire::inspect::policy::{FlowTable, ForeignView},
};
use veni_datapath::{
    bpf::{Filter, Foreign, Occupancy, PodIdentity},
    grace,
};
use veni_ebpf_common::write::{Remove as Gone, Write as Entry};
use veni_policy::change::{PodSets, Remove, Write};

/// What carries out steps.
pub trait Plane: Send + 'static {
    /// Writes these, in order.
    ///
    /// # Errors
    /// The map that is full, or the kernel's refusal, in one line.
    fn write(&self, writes: &[Write]) -> Result<(), String>;
    /// Removes these.
    ///
    /// # Errors
    /// As for [`Plane::write`].
    fn remove(&self, removes: &[Remove]) -> Result<(), String>;
    /// Puts the sets into the entry of this interface. `false`: there is none.
    ///
    /// # Errors
    /// As for [`Plane::write`].
    fn judge(&self, ifindex: u32, sets: PodSets) -> Result<bool, String>;
    /// The node's own addresses are exactly these.
    ///
    /// # Errors
    /// As for [`Plane::write`].
    fn own_addresses(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), String>;
    /// Every established flow is judged again.
    ///
    /// # Errors
    /// As for [`Plane::write`].
    fn raise_epoch(&self) -> Result<(), String>;
    /// Waits until no program that started before is running any more.
    fn grace(&self);
    /// How events name the pod of this interface.
    fn identity(&self, ifindex: u32) -> Option<PodIdentity>;
    /// Packets dropped, by reason.
    fn drops(&self) -> BTreeMap<String, u64>;
    /// What the programs count beside drops, by name.
    fn counters(&self) -> BTreeMap<String, u64>;
}

/// The loaded programs.
#[derive(Debug, Clone)]
pub struct FilterPlane(pub Arc<Filter>);

/// Longer than any program runs, where the kernel cannot tell.
const GRACE: std::time::Duration = std::time::Duration::from_millis(20);

impl Plane for FilterPlane {
    fn write(&self, writes: &[Write]) -> Result<(), String> {
        let entries: Vec<_> = writes.iter().map(entry).collect();
        self.0.tables().apply(&entries).map_err(|error| chain(&error))
    }

    fn remove(&self, removes: &[Remove]) -> Result<(), String> {
        let keys: Vec<_> = removes.iter().map(key).collect();
        self.0.tables().remove(&keys).map(drop).map_err(|error| chain(&error))
    }

    fn judge(&self, ifindex: u32, sets: PodSets) -> Result<bool, String> {
        self.0.pod_sets(ifindex, sets.ingress, sets.egress).map_err(|error| chain(&error))
    }

    fn own_addresses(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), String> {
        self.0.set_node_addresses(addresses).map(drop).map_err(|error| chain(&error))
    }

    fn raise_epoch(&self) -> Result<(), String> {
        self.0.raise_epoch().map(drop).map_err(|error| chain(&error))
    }

    fn grace(&self) {
        if let Err(error) = grace::wait() {
            tracing::debug!(%error, "no membarrier: a fixed wait instead");
            std::thread::sleep(GRACE);
        }
    }

    fn identity(&self, ifindex: u32) -> Option<PodIdentity> {
        Some(self.0.pod(ifindex).ok()??.identity)
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let drops = self.0.drops().unwrap_or_default();
        drops.into_iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect()
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let counters = self.0.counters().unwrap_or_default();
        counters.into_iter().map(|(counter, count)| (counter.name().to_owned(), count)).collect()
    }
}

impl FilterPlane {
    /// Others' programs where pods' packets are judged, and where ours are missing. Takes calls for each interface.
    #[must_use]
    pub fn foreign(&self) -> Vec<ForeignView> {
        let found = self.0.foreign().unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "others' programs not looked for");
            Vec::new()
        });
        let view = |foreign: &Foreign| ForeignView {
            what: foreign.to_string(),
            bypasses: foreign.bypasses(),
        };
        found.iter().map(view).collect()
    }

    /// How full the tables of established flows are. Counts them.
    #[must_use]
    pub fn flow_tables(&self) -> Vec<FlowTable> {
        let counted = self.0.established().map_err(|error| {
            tracing::warn!(error = chain(&error), "established flows not counted");
        });
        let families = ["ipv4", "ipv6"].into_iter().zip(counted.into_iter().flatten());
        let table = |(family, table): (&str, Occupancy)| FlowTable {
            family: family.to_owned(),
            flows: u64::try_from(table.flows).unwrap_or(u64::MAX),
            room: table.room.into(),
        };
        families.map(table).collect()
    }
}

/// A typed write in the programs' bytes.
fn entry(write: &Write) -> Entry {
    match *write {
        Write::ClassV4 { address, class } => Entry::ClassV4 { address: address.octets(), class },
        Write::ClassV6 { address, class } => Entry::ClassV6 { address: address.octets(), class },
        Write::CidrV4 { net, class } => {
            Entry::CidrV4 { prefix: net.network().octets(), length: net.prefix_len(), class }
        }
        Write::CidrV6 { net, class } => {
            Entry::CidrV6 { prefix: net.network().octets(), length: net.prefix_len(), class }
        }
        Write::Verdict { key, profile } => Entry::Verdict { key, profile },
        Write::Profile { number, profile } => Entry::Profile { number, profile },
        Write::Port { bits, key, decision } => Entry::Port { key, length: length(bits), decision },
        Write::ServiceV4 { key, value } => Entry::ServiceV4 { key, value },
        Write::ServiceV6 { key, value } => Entry::ServiceV6 { key, value },
        Write::Backend { key, value } => Entry::Backend { key, value },
    }
}

/// As [`entry`], of what is removed.
fn key(remove: &Remove) -> Gone {
    match *remove {
        Remove::ClassV4(address) => Gone::ClassV4(address.octets()),
        Remove::ClassV6(address) => Gone::ClassV6(address.octets()),
        Remove::CidrV4(net) => Gone::CidrV4(net.network().octets(), net.prefix_len()),
        Remove::CidrV6(net) => Gone::CidrV6(net.network().octets(), net.prefix_len()),
        Remove::Verdict(key) => Gone::Verdict(key),
        Remove::Port { bits, key } => Gone::Port(key, length(bits)),
        Remove::ServiceV4(key) => Gone::ServiceV4(key),
        Remove::ServiceV6(key) => Gone::ServiceV6(key),
        Remove::Backend(key) => Gone::Backend(key),
    }
}

fn length(bits: u32) -> u8 {
    u8::try_from(bits).expect("a port's prefix has at most 64 bits")
}
