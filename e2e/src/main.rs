//! `veni-e2e`: a real Kubernetes on the lab's VPC, and what a user of it relies on, checked from end to end.
//!
//! Invariants: nothing outside the lab's namespaces is touched, and all is gone at the end, whatever ends it. A check
//! that failed does not keep the others from running, unless they need what it made.

mod checks;
mod cluster;
mod http;
mod load;
mod print;
mod upstream;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use veni_lab::{account::Cloud, interrupt};

use crate::{
    checks::{
        away, chart, connect, connectivity, controller, drain, enis, networking, policy, restart,
        scale,
    },
    cluster::Stage,
    print::Table,
};

/// Brings up a lab with a Kubernetes of two nodes and checks it from end to end; exits with 0 only if every check held.
#[derive(Debug, Parser)]
#[command(name = "veni-e2e", version)]
pub(crate) struct Options {
    /// The lab's name
    #[arg(long, default_value = "e2e")]
    name: String,
    /// Where the lab is: simulator, or localstack (whose daemon and controller hack/build-aws.sh builds)
    #[arg(long, default_value = "simulator")]
    cloud: Cloud,
    /// Pods that are started and ended at once
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100))]
    pods: u32,
    /// Seconds without an API server
    #[arg(long, default_value_t = 60)]
    away_secs: u64,
    /// A variable of every node's veni-ipamd, NAME=VALUE, several times
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Only these parts: chart, connect, connectivity, policy, controller, scale, restart, away, drain, sample, networking; with
    /// localstack: connect, policy, scale, restart, enis
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Instead of our checks: Kubernetes' own specs whose names match this regular expression
    #[arg(long, value_name = "REGEX")]
    upstream: Option<String>,
    /// But not those that match this one
    #[arg(long, value_name = "REGEX", requires = "upstream")]
    upstream_skip: Option<String>,
    /// Instead of our checks, or after those specs: network-policy-api's conformance tests whose names match this regular
    /// expression
    #[arg(long, value_name = "REGEX")]
    policy_api: Option<String>,
    /// Keep all logs when everything held too
    #[arg(long)]
    keep_logs: bool,
}

/// A part's name, and what it does.
type Part = (&'static str, fn(&mut Stage, &Options, &mut Table) -> anyhow::Result<()>);

const PARTS: [Part; 10] = [
    ("chart", |stage, _, table| chart::check(stage, table)),
    ("connect", |stage, _, table| connect::check(stage, table)),
    ("connectivity", |stage, _, table| connectivity::check(stage, table)),
    ("policy", |stage, _, table| policy::check(stage, table)),
    ("controller", |stage, _, table| controller::check(stage, table)),
    ("scale", |stage, options, table| scale::check(stage, options.pods, table)),
    ("restart", |stage, _, table| restart::check(stage, table)),
    ("away", |stage, options, table| {
        away::check(stage, Duration::from_secs(options.away_secs), table)
    }),
    ("drain", |stage, _, table| drain::check(stage, table)),
    ("sample", |stage, _, table| {
        run_upstream(stage, upstream::SAMPLE, None, table);
        run_policy_api(stage, upstream::POLICY_SAMPLE, table);
        Ok(())
    }),
];

/// On LocalStack only.
const ON_LOCALSTACK: [Part; 1] = [("enis", |stage, _, table| enis::check(stage, table))];
/// What of [`PARTS`] runs on LocalStack: the others ask the simulator for what they need, or would see nothing else there.
const ALSO_ON_LOCALSTACK: [&str; 4] = ["connect", "policy", "scale", "restart"];

/// On a cluster of its own.
const NETWORKING: &str = "networking";

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<bool> {
    let known = options.parts();
    for name in &options.only {
        anyhow::ensure!(known.contains(&name.as_str()), "--only {name}: there are {known:?}");
    }
    interrupt::remove_on_signal(&options.name)?;
    let mut table = Table::default();
    if options.only.iter().any(|only| only != NETWORKING) || options.only.is_empty() {
        on_one_cluster(options, &mut table)?;
    }
    if !options.only_theirs() && options.wants(NETWORKING) {
        with_custom_networking(options, &mut table)?;
    }
    table.summary();
    Ok(table.all_held())
}

fn on_one_cluster(options: &Options, table: &mut Table) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut stage = Stage::up(options.cloud, &options.name, &options.settings(), table)?;
    table.took("up", start.elapsed());
    if let Some(focus) = &options.upstream {
        run_upstream(&stage, focus, options.upstream_skip.as_deref(), table);
    }
    if let Some(only) = &options.policy_api {
        run_policy_api(&stage, only, table);
    }
    let parts = PARTS.iter().chain(&ON_LOCALSTACK).filter(|_| !options.only_theirs());
    for (name, check) in parts.filter(|(name, _)| options.wants(name)) {
        let start = Instant::now();
        if let Err(error) = check(&mut stage, options, table) {
            table.record(&format!("{name} came to its end"), Err(error));
        }
        table.took(name, start.elapsed());
    }
    take_down(stage, options, table);
    Ok(())
}

fn run_upstream(stage: &Stage, focus: &str, skip: Option<&str>, table: &mut Table) {
    if let Err(error) = upstream::run(stage, focus, skip, table) {
        table.record("e2e.test came to its end", Err(error));
    }
}

fn run_policy_api(stage: &Stage, only: &str, table: &mut Table) {
    if let Err(error) = upstream::policy_api(stage, only, table) {
        table.record("network-policy-api's tests came to their end", Err(error));
    }
}

/// A cluster of its own: ENIs that are there already stay where they are.
fn with_custom_networking(options: &Options, table: &mut Table) -> anyhow::Result<()> {
    let start = Instant::now();
    let env: Vec<_> = options.env.iter().cloned().chain(networking::settings()).collect();
    let mut stage = Stage::bare(options.cloud, &options.name, &env)?;
    stage.cluster.install(&stage.settings)?;
    if let Err(error) = networking::check(&mut stage, table) {
        table.record(&format!("{NETWORKING} came to its end"), Err(error));
    }
    take_down(stage, options, table);
    table.took(NETWORKING, start.elapsed());
    Ok(())
}

fn take_down(stage: Stage, options: &Options, table: &Table) {
    if !table.all_held() || options.keep_logs {
        stage.keep_logs();
    }
    print::step("taking the cluster down");
    drop(stage);
}

// === impl Options ===

impl Options {
    fn only_theirs(&self) -> bool {
        self.upstream.is_some() || self.policy_api.is_some()
    }

    fn wants(&self, part: &str) -> bool {
        let is_asked_for = self.only.is_empty() || self.only.iter().any(|only| only == part);
        is_asked_for && self.parts().contains(&part)
    }

    /// The parts that there are in this cloud.
    fn parts(&self) -> Vec<&'static str> {
        match self.cloud {
            Cloud::Simulator => {
                PARTS.map(|(name, _)| name).into_iter().chain([NETWORKING]).collect()
            }
            Cloud::LocalStack => {
                let own = ON_LOCALSTACK.map(|(name, _)| name);
                ALSO_ON_LOCALSTACK.into_iter().chain(own).collect()
            }
        }
    }

    /// The daemons' variables.
    fn settings(&self) -> Vec<(String, String)> {
        let own = (self.cloud == Cloud::LocalStack).then(enis::settings);
        own.into_iter().flatten().chain(self.env.iter().cloned()).collect()
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("wants NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
