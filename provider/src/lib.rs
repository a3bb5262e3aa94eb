//! The cloud behind ipamd: the [`Cloud`] trait, its error classes, the EC2 simulator and the conformance suite.
//!
//! Invariant: no I/O and no AWS type in here. The simulator keeps its own time, which is passed in.

pub mod call;
pub mod cloud;
pub mod conformance;
pub mod error;
pub mod security_group;
pub mod sim;

pub use cloud::*;
pub use error::{CloudError, ErrorClass};
pub use security_group::{
    GroupMember, GroupReference, PrefixList, RuleDirection, RulePeer, RuleTraffic, SecurityGroup,
    SecurityGroupRule,
};
