//! What veni does to the kernel: network namespaces, netlink, and the wiring of pods.
//!
//! Without features this is what the plugin links: blocking, small, no runtime. Everything here names what it
//! touches by the caller's arguments; nothing but a fault point reads the environment.

pub mod arena;
mod clsact;
pub mod fault;
pub mod netlink;
pub mod netns;
pub mod pod;
mod socket;

#[cfg(feature = "bpf")]
pub mod bpf;
#[cfg(feature = "host")]
pub mod conntrack;
#[cfg(feature = "host")]
mod error;
#[cfg(feature = "bpf")]
pub mod grace;
#[cfg(feature = "host")]
pub mod host;
#[cfg(feature = "host")]
pub mod nft;
#[cfg(feature = "host")]
mod raw;
#[cfg(feature = "host")]
pub mod sysctl;
#[cfg(feature = "host")]
pub mod watch;

#[cfg(feature = "host")]
pub use error::{Error, Result};
