//! Why a netlink exchange failed.

use std::io;

use super::DUMP_ATTEMPTS;

/// What the kernel said to the first message of a batch that it refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchError {
    /// Which message of the batch, from 0.
    pub index: usize,
    /// Why, as a positive `errno`.
    pub errno: i32,
    /// The kernel's own words (`NETLINK_EXT_ACK`), often empty.
    pub ext_ack: String,
}

/// Why a netlink exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("opening a NETLINK_ROUTE socket")]
    Open(#[source] io::Error),
    /// The request could not be handed over: none of it was done.
    #[error("sending to netlink")]
    Send(#[source] io::Error),
    /// The outcome could not be read: what was asked may have been done.
    #[error("receiving from netlink")]
    Receive(#[source] io::Error),
    /// A reply that does not follow the protocol, or that this build cannot read.
    #[error("reading a netlink reply: {0}")]
    Decode(String),
    /// The kernel had nothing to say about what was asked for.
    #[error("netlink acknowledged a question without an answer")]
    NoObject,
    /// The kernel's tables changed during every attempt.
    #[error("a netlink dump was interrupted {DUMP_ATTEMPTS} times in a row")]
    Interrupted,
    /// The kernel refused.
    #[error(transparent)]
    Rejected(#[from] BatchError),
}

/// The result of a netlink exchange.
pub type Result<T> = std::result::Result<T, Error>;

// === impl BatchError ===

impl std::fmt::Display for BatchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        if self.ext_ack.is_empty() { Ok(()) } else { write!(f, ": {}", self.ext_ack) }
    }
}

impl std::error::Error for BatchError {}

// === impl Error ===

impl Error {
    /// The kernel's `errno`, when it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Rejected(rejected) => Some(rejected.errno),
            _ => None,
        }
    }

    /// Which message of the batch the kernel refused.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::Rejected(rejected) => Some(rejected.index),
            _ => None,
        }
    }

    /// Whether the thing named is not there: [`Error::NoObject`], or the kernel refused because of it
    /// (`ENODEV`, `ENOENT`, `ESRCH`, `EADDRNOTAVAIL`, `ENXIO`).
    #[must_use]
    pub fn is_absent(&self) -> bool {
        const ABSENT: [i32; 5] =
            [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENXIO];
        matches!(self, Self::NoObject) || self.errno().is_some_and(|errno| ABSENT.contains(&errno))
    }

    /// Whether the kernel refused because it is there already.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
}
