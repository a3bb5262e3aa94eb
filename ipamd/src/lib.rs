//! ipamd: the daemon that keeps a node's pool of addresses and gives them to pods.
//!
//! One task, the [`owner`], holds the [`pool`]: ledger, journal and what goes on. It answers the plugin's requests
//! ([`server`]), starts the cloud calls that the planner asks for ([`executor`]) and takes in what comes of them, and
//! tells the node's kernel what it must look like ([`host`]). Another, the [`enforcer`], keeps the programs' tables of
//! policy and Services.
//!
//! Invariants: the owner never waits for the cloud, the kernel's slow paths or a client. Whatever was answered for
//! is in the [`journal`]. An exit, however it happens, detaches nothing.

pub mod clock;
pub mod enforcer;
pub mod environment;
pub mod evidence;
pub mod executor;
pub mod fault;
pub mod following;
pub mod host;
pub mod http;
pub mod install;
pub mod journal;
pub mod metrics;
pub mod owner;
pub mod placement;
pub mod policy;
pub mod pool;
pub mod report;
pub mod requests;
pub mod server;
pub mod start;
pub mod startup;
#[cfg(feature = "testing")]
pub mod testing;
pub mod uninstall;
pub mod whereabouts;
