//! Why something in the node's network could not be done.

use std::{io, path::PathBuf};

use crate::netlink;

/// Why something in the node's network could not be done. Each names the operation and what it was done to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused, or could not be asked.
    #[error("{operation}")]
    Netlink {
        /// What was being done, e.g. `listing routes`.
        operation: String,
        /// Why it failed.
        #[source]
        source: netlink::Error,
    },
    /// A system call or a file.
    #[error("{operation}")]
    Io {
        /// What was being done.
        operation: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// `nft` refused the table.
    #[error("nft exited with {status}: {stderr} (is the nftables package installed and recent?)")]
    Nft {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said, cut to one kibibyte.
        stderr: String,
    },
    /// `nft` printed something that is not its JSON.
    #[error("reading what `nft -j list` printed")]
    NftOutput(#[source] serde_json::Error),
    /// The eBPF filter could not be loaded.
    #[cfg(feature = "bpf")]
    #[error("the eBPF filter: {operation}")]
    Bpf {
        /// Which step.
        operation: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A table of the filter is full: the new entries are not in force.
    #[cfg(feature = "bpf")]
    #[error("the filter's table {map} is full at {limit} entries: the new entries are refused")]
    TableFull {
        /// Which.
        map: &'static str,
        /// How many entries it takes.
        limit: u32,
    },
    /// The node has more addresses of its own than the filter can be told; those that fit are in force.
    #[cfg(feature = "bpf")]
    #[error(
        "{left_out} of the node's own addresses do not fit into the filter's table (at most {limit} a family), and are \
         strangers to isolated pods; take addresses that nothing uses off the node's links (`ip address`)"
    )]
    NodeAddressesLeftOut {
        /// How many.
        left_out: usize,
        /// How many of each family fit.
        limit: u32,
    },
    /// No BPF file system, and none could be mounted.
    #[error("{} is not on a BPF file system and none could be mounted; mount one with `mount -t bpf bpf /sys/fs/bpf`", path.display())]
    NoBpfFs {
        /// Where maps were to be pinned.
        path: PathBuf,
        /// Why mounting failed.
        #[source]
        source: io::Error,
    },
}

/// The result of an operation on the node's network.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source }
    }

    #[cfg(feature = "bpf")]
    pub(crate) fn bpf(
        operation: String,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Bpf { operation, source: Box::new(source) }
    }

    pub(crate) fn netlink(operation: impl Into<String>) -> impl FnOnce(netlink::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Netlink { operation, source }
    }
}
