//! A VPC in a box.

pub mod dhcp;
mod error;
mod netlink;
pub mod ns;
pub mod traffic;
pub mod vpc;

pub use error::{Error, Result};
