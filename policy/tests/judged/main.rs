//! The oracle judged by hand-written expectations, and the compiler judged by the oracle.

mod cluster_policy;
mod e2e;
mod generate;
mod network_policy;
mod reach;
mod security_group;
mod support;
mod systematic;
