//! The command line. What it prints is for people, except with `-o json`.

mod bench;
mod checks;
mod control;
mod demo;
mod exec;
mod group;
mod manifests;
mod policy;
mod print;
mod serve;

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use veni_core::{id::InstanceType, limits};
use veni_lab::{LabConfig, NodeConfig, kubernetes};

/// A VPC in a box: nodes, ENIs, subnets, a router and hosts outside, in network namespaces of their own. The real
/// veni-ipamd runs on every node, and pods are added with the real veni-cni.
#[derive(Debug, Parser)]
#[command(name = "veni-lab", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// A pod that only what comes to its port 8080 reaches.
const GROUP_EXAMPLE: &str = "Example:
  veni-lab group create sg-web
  veni-lab group allow sg-web --port 8080 --peer 10.0.0.0/16
  veni-lab add node-1 web --annotation vpc.amazonaws.com/security-groups=sg-web
  veni-lab exec node-1 -- venictl policy explain --live lab/web";

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring a lab up and leave it running
    Up(LabArgs),
    /// Bring a lab up in the foreground, until Ctrl-C
    Run(LabArgs),
    /// Run a command on a node, in a pod, on `router`, `internet` or `peer`, in the directory where you are
    Exec {
        #[command(flatten)]
        lab: Name,
        /// A node's or a pod's name, `router`, `internet` or `peer`
        place: String,
        /// The command, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Add a pod through the plugin
    Add {
        #[command(flatten)]
        lab: Name,
        /// The node
        node: String,
        /// The pod's new name
        pod: String,
        #[command(flatten)]
        spec: manifests::Spec,
    },
    /// Remove a pod through the plugin
    Del {
        #[command(flatten)]
        lab: Name,
        /// The node (may be left out: pods' names are unique in a lab)
        #[arg(value_name = "[NODE] POD", num_args = 1..=2)]
        names: Vec<String>,
    },
    /// Put manifests (policies, Services…) in force on all nodes; prints how long that took
    Apply(manifests::Files),
    /// Take manifests back that were applied under the same file names
    Delete(manifests::Files),
    /// Security groups in the lab's account
    #[command(after_help = GROUP_EXAMPLE)]
    Group {
        #[command(subcommand)]
        command: group::Group,
    },
    /// Start a node's veni-ipamd again, whether it runs, was killed or was stopped; pods keep their traffic
    Restart {
        #[command(flatten)]
        lab: Name,
        /// The node
        node: String,
    },
    /// Run kubectl in a lab that is up with `--kubernetes`, as the cluster's administrator
    Kubectl {
        #[command(flatten)]
        lab: Name,
        /// What kubectl is told
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<String>,
    },
    /// Show the nodes, their ENIs and pools, and the pods
    Status {
        #[command(flatten)]
        lab: Name,
        /// `table` or `json`
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Take a lab down
    Down(Name),
    /// Show and check the main job from end to end; exits with 0 only if every check held
    Demo(demo::Options),
    /// Measure
    Bench {
        #[command(subcommand)]
        what: bench::What,
    },
}

#[derive(Debug, Clone, Args)]
struct Name {
    /// The lab
    #[arg(long, default_value = "lab", env = "VENI_LAB")]
    name: String,
}

#[derive(Debug, Clone, Args)]
struct LabArgs {
    #[command(flatten)]
    lab: Name,
    /// Nodes as NAME=TYPE, several times; two by default
    #[arg(long = "node", value_name = "NAME=TYPE")]
    nodes: Vec<String>,
    /// A variable of every node's veni-ipamd, NAME=VALUE, several times
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// EC2 answers and attaches at once
    #[arg(long)]
    instant: bool,
    /// With a real Kubernetes on the nodes: see `kubectl`
    #[arg(long)]
    kubernetes: bool,
    #[arg(long, hide = true)]
    detached: bool,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let done = match cli.command {
        Command::Up(args) => serve::up(&args),
        Command::Run(args) => serve::run(&args),
        Command::Exec { lab, place, command } => exec::exec(&lab.name, &place, &command),
        Command::Add { lab, node, pod, spec } => manifests::add(&lab.name, node, &pod, spec),
        Command::Apply(files) => manifests::apply(&files),
        Command::Delete(files) => manifests::delete(&files),
        Command::Group { command } => group::group(command),
        Command::Del { lab, names } => serve::del(&lab.name, &names),
        Command::Restart { lab, node } => serve::restart(&lab.name, node),
        Command::Kubectl { lab, args } => exec::kubectl(&lab.name, args),
        Command::Status { lab, output } => serve::status(&lab.name, output),
        Command::Down(lab) => serve::down(&lab.name),
        Command::Demo(options) => demo::demo(&options),
        Command::Bench { what } => bench::bench(&what),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            print::failure(&error);
            ExitCode::FAILURE
        }
    }
}

// === impl LabArgs ===

impl LabArgs {
    fn config(&self) -> anyhow::Result<LabConfig> {
        let mut config = LabConfig::two_nodes(&self.lab.name);
        if !self.nodes.is_empty() {
            config.nodes =
                self.nodes.iter().map(|node| parse_node(node)).collect::<anyhow::Result<_>>()?;
        }
        for (name, value) in self.variables()? {
            config = config.with_env(&name, &value);
        }
        if self.instant {
            config.ec2 = veni_provider::sim::SimConfig::instant();
        }
        if self.kubernetes {
            config = kubernetes::lab_config(config);
        }
        Ok(config)
    }

    /// What every node's daemon is told.
    fn variables(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let variable = |text: &String| {
            let (name, value) = pair(text, "--env", "NAME=VALUE")?;
            Ok((name.to_owned(), value.to_owned()))
        };
        self.env.iter().map(variable).collect()
    }
}

fn parse_node(text: &str) -> anyhow::Result<NodeConfig> {
    let (name, instance_type) = pair(text, "--node", "NAME=TYPE, e.g. node-1=m5.xlarge")?;
    let instance_type: InstanceType =
        instance_type.parse().with_context(|| format!("--node {text:?}"))?;
    limits::require(&instance_type).with_context(|| format!("--node {text:?}"))?;
    Ok(NodeConfig { instance_type, ..NodeConfig::new(name, "m5.xlarge") })
}

fn pair<'a>(text: &'a str, option: &str, expected: &str) -> anyhow::Result<(&'a str, &'a str)> {
    text.split_once('=').ok_or_else(|| anyhow::anyhow!("{option} {text:?}: wants {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_of_a_type_that_there_is() {
        for (text, wrong) in [
            ("n=m5.large", None),
            ("n", Some("wants NAME=TYPE")),
            ("n=large", Some("--node \"n=large\"")),
            ("n=t2.bogus", Some("t2.bogus is not among the")),
        ] {
            let parsed = parse_node(text).map_err(|error| format!("{error:#}"));
            match wrong {
                None => assert_eq!(parsed.unwrap().instance_type.as_str(), "m5.large"),
                Some(words) => assert!(parsed.as_ref().unwrap_err().contains(words), "{parsed:?}"),
            }
        }
    }
}
