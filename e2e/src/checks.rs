//! What is checked, one file a part.

pub(crate) mod away;
pub(crate) mod chart;
pub(crate) mod connect;
pub(crate) mod connectivity;
pub(crate) mod controller;
pub(crate) mod drain;
pub(crate) mod enis;
pub(crate) mod gate;
pub(crate) mod networking;
pub(crate) mod policy;
pub(crate) mod restart;
pub(crate) mod scale;
