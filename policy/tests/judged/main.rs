//! The oracle judged by hand-written expectations, and the compiler judged by the oracle.

mod cluster_policy;
mod compiled;
mod e2e;
mod generate;
mod golden;
mod model;
mod network_policy;
mod own_node;
mod property;
mod raw;
mod reach;
mod regressions;
mod security_group;
mod support;
mod systematic;
