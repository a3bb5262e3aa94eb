//! `venictl connectivity`: pods of its own that check a cluster's paths.
//!
//! `test` asks the API server for the pods and judges what they say (cargo feature `kube`). `serve` and `probe` run in
//! them, so that any image with a `venictl` will do, and nothing of a cluster is needed to try them.
//!
//! Invariants: all that `test` makes is in a namespace of its own, or carries its name; it goes whatever ends the test, and
//! what a killed one left goes first. Deliberately absent: pods with privileges, or on the nodes' own network.

use std::time::Duration;

use clap::{Args, Subcommand};

mod agent;
#[cfg(feature = "kube")]
mod api;
#[cfg(feature = "kube")]
mod judge;
mod measure;
#[cfg(feature = "kube")]
mod objects;
#[cfg(feature = "kube")]
mod paths;
#[cfg(feature = "kube")]
mod place;
#[cfg(feature = "kube")]
mod policies;
mod probe;
#[cfg(feature = "kube")]
mod run;
#[cfg(feature = "kube")]
mod stage;
#[cfg(all(test, feature = "kube"))]
mod tests;

use crate::{Report, cli::Format};

/// Where the pods listen: TCP and UDP on each.
const PORTS: [u16; 2] = [8080, 8081];

/// What about it.
#[derive(Debug, Subcommand)]
pub enum ConnectivityCommand {
    /// Deploy pods in a namespace of their own, check pod, service, external and policy paths, and clean up.
    Test(Test),
    /// Answer the probes of other pods (what the test's pods run).
    #[command(hide = true)]
    Serve {
        /// Ports to listen on, TCP and UDP
        #[arg(long = "port", default_values_t = PORTS)]
        ports: Vec<u16>,
    },
    /// Ask what the JSON list says, at once, and print the answers (what the test runs in its pods).
    #[command(hide = true)]
    Probe {
        /// The questions
        questions: String,
    },
}

/// How to test.
#[derive(Debug, Clone, Args)]
pub struct Test {
    /// The kubeconfig; default KUBECONFIG, else ~/.kube/config, else the cluster that this runs in
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<std::path::PathBuf>,
    /// The kubeconfig's context, if not its current one
    #[arg(long)]
    pub context: Option<String>,
    /// The pods' image, which has /usr/bin/venictl; default: that of the cluster's veni DaemonSet
    #[arg(long)]
    pub image: Option<String>,
    /// The nodes to test, by name; default: two that are ready, take any pod and have a ready veni
    #[arg(long, value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// What pods connect to outside of the cluster, HOST:PORT over TCP; `none` leaves it out
    #[arg(long, value_name = "HOST:PORT", default_value = "1.1.1.1:443")]
    pub external: String,
    /// Parts to leave out
    #[arg(long, value_enum, value_delimiter = ',')]
    pub skip: Vec<Part>,
    /// Measure throughput and latency between pods too
    #[arg(long)]
    pub perf: bool,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub perf_secs: u64,
    /// Seconds that the pods may take to be ready
    #[arg(long, default_value_t = 120)]
    pub ready_secs: u64,
    /// Seconds that a path may take to be as it is to be, e.g. after a change of policy
    #[arg(long, default_value_t = 10)]
    pub settle_secs: u64,
}

/// A part of the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Services: by address and by name, node ports, the API server.
    Service,
    /// NetworkPolicy and ClusterNetworkPolicy.
    Policy,
}

pub(crate) fn report(command: &ConnectivityCommand, format: Format) -> anyhow::Result<Report> {
    match command {
        ConnectivityCommand::Serve { ports } => agent::serve(ports).map(|never| match never {}),
        ConnectivityCommand::Probe { questions } => {
            let questions: Vec<probe::Question> = serde_json::from_str(questions)
                .map_err(|error| crate::Usage(vec![format!("the questions: {error}")]))?;
            let text = serde_json::to_string(&probe::ask(&questions))? + "\n";
            Ok(Report { text, ..Report::default() })
        }
        ConnectivityCommand::Test(test) => test_report(test, format),
    }
}

#[cfg(feature = "kube")]
fn test_report(test: &Test, format: Format) -> anyhow::Result<Report> {
    run::report(test, format)
}

#[cfg(not(feature = "kube"))]
fn test_report(_: &Test, _: Format) -> anyhow::Result<Report> {
    let told = "this venictl was built without the feature kube, which the test needs: build it with \
                `cargo build --release -p veni-ctl --features kube`";
    Err(crate::Usage(vec![told.to_owned()]).into())
}

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(2);
