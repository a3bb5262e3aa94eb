//! What veni does to the kernel: network namespaces, netlink, and the wiring of pods.
//!
//! Without features this is what the plugin links: blocking, small, no runtime. Everything here names what it
//! touches by the caller's arguments; nothing reads the environment.

pub mod netlink;
pub mod netns;
