//! A VPC in a box: network namespaces and veths as nodes, ENIs, subnets, a router and hosts outside, with the real
//! daemon and the real plugin in it. For the demo, the end-to-end tests and the benchmarks.
//!
//! Invariants: the machine's own network is not touched: a lab lives in namespaces of its own and is gone when its
//! process is. Several labs can run side by side.

pub mod account;
pub mod binaries;
pub mod cluster;
pub mod dhcp;
mod error;
pub mod histogram;
pub mod interrupt;
pub mod kubernetes;
pub mod lab;
pub mod machine;
mod netlink;
pub mod node;
pub mod ns;
pub mod place;
pub mod runtime;
pub mod snapshot;
pub mod stats;
pub mod traffic;
pub mod vpc;
pub mod wire;

pub use cluster::{Cluster, PodSpec};
pub use error::{Error, Result};
pub use lab::{Lab, LabConfig, NodeConfig, Pod};
pub use node::Node;
