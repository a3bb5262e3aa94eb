//! LocalStack in host mode as this workspace uses it, without the AWS SDK: how it is started ([`program`]), what its
//! extension is told ([`control`]) and tells ([`feed`]), and the instance metadata that it does not have ([`metadata`]).
//!
//! For the tests of the provider and the daemon, and for the lab, whose cluster has it for a cloud.
//!
//! Deliberately absent: waiting, threads, and requests to EC2.

pub mod control;
pub mod feed;
pub mod metadata;
pub mod program;
