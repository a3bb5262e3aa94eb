//! The custom resources that veni reads: what they look like, what they mean, and the definitions that a cluster needs.
//!
//! Each is two things. A spec is the object as the API server has it ([`eni_config::EniConfigSpec`]); a value that the
//! rest works with is made of it once, at the edge ([`EniConfig`], [`NodeNetworkConfig`]): ids are ids, ways to say a thing
//! twice are told apart, and all that is wrong is found in one go. With the feature `schema` the specs make their
//! CustomResourceDefinitions, which `examples/crds.rs` writes into the chart.
//!
//! Invariants: an object that AWS's components take is taken, and means the same ([`eni_config`]); what cannot be read is
//! an error that names the field, never another meaning. Pure. Deliberately absent: SecurityGroupPolicy's
//! meaning, which is policy's (here is only its definition), ClusterNetworkPolicy, whose definition is Kubernetes', and
//! who watches, chooses and applies.

#[cfg(feature = "schema")]
mod definition;
pub mod eni_config;
pub mod node_network_config;
mod object;
pub mod resolved_security_group;
pub mod security_group_policy;
mod selector;

#[cfg(feature = "schema")]
pub use definition::definitions;
pub use eni_config::{EniConfig, GroupChoice, SubnetChoice};
pub use node_network_config::{NodeNetworkConfig, Overrides};
pub use object::{Labels, Problem};
pub use selector::{LabelSelector, Requirement};
