//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use veni_core::wire::DEFAULT_SOCKET;

use crate::{
    connectivity::ConnectivityCommand,
    observe::Observe,
    policy::arguments::{Daemon, PolicyCommand},
};

/// See, explain and simulate what veni does on this node.
#[derive(Debug, Parser)]
#[command(
    name = "venictl",
    version,
    about,
    after_help = "Exit status: 0 done, 1 failed or found something wrong, 2 wrong command line or unreadable input."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to print it.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Human)]
    pub output: Format,
    /// ipamd's socket.
    #[arg(long, global = true, env = "VENI_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[value(alias = "table")]
    Human,
    /// One JSON document.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How this node is: pool, ENIs, policy, what it waits for, what is wrong.
    Status(Daemon),
    /// The address pool.
    Pool {
        /// What about it.
        #[command(subcommand)]
        command: PoolCommand,
    },
    /// Who may talk to whom, and which rule says so: from manifests, or from what is in force here.
    Policy {
        /// What about it.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Follow new, denied and dropped flows of the pods of this node.
    Observe(Observe),
    /// Check a whole cluster's paths with pods of its own, through a kubeconfig; no node needed.
    Connectivity {
        /// What about it.
        #[command(subcommand)]
        command: ConnectivityCommand,
    },
    /// Check kernel, sysctls, socket, rules, routes, nftables, CNI configuration and cloud reach.
    Doctor(Paths),
    /// Every environment variable that ipamd knows, with its default and meaning.
    Config,
}

/// What about the pool.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Every ENI, and with --addresses every address with its owner and state.
    Show {
        /// List the addresses.
        #[arg(long)]
        addresses: bool,
    },
    /// What the planner wants, what it does, what it waits for, and why.
    Explain,
    /// The state that the AWS VPC CNI's formulas settle in for pods that arrive one by one (no node needed).
    Steady(Question),
}

/// What to compute.
#[derive(Debug, Args)]
pub struct Question {
    /// The EC2 instance type.
    #[arg(long, value_name = "TYPE")]
    pub instance_type: String,
    /// How many pods arrive, one by one.
    #[arg(long, value_name = "N")]
    pub pods: u32,
    /// Variables of the daemon, e.g. WARM_IP_TARGET=5; unset ones have their defaults.
    #[arg(long, value_name = "NAME=VALUE", num_args = 1..)]
    pub env: Vec<String>,
    /// The kubelet's maxPods: the pool does not grow once it holds as many addresses.
    #[arg(long, value_name = "M")]
    pub max_pods: Option<u32>,
}

/// Where things are on this node.
#[derive(Debug, Clone, Args)]
pub struct Paths {
    /// Where the runtime looks for network configurations; default: where ipamd writes its own (`HOST_CNI_CONFDIR_PATH`).
    #[arg(long, env = "VENI_CNI_CONF_DIR", default_value_os_t = host_dir("HOST_CNI_CONFDIR_PATH", "/etc/cni/net.d"))]
    pub cni_conf_dir: PathBuf,
    /// Where the runtime looks for plugins; default: where ipamd puts its own (`HOST_CNI_BIN_PATH`).
    #[arg(long, env = "VENI_CNI_BIN_DIR", default_value_os_t = host_dir("HOST_CNI_BIN_PATH", "/opt/cni/bin"))]
    pub cni_bin_dir: PathBuf,
    /// Where the filter's maps are pinned.
    #[arg(long, env = "VENI_BPF_DIR", default_value = "/sys/fs/bpf/veni")]
    pub bpf_dir: PathBuf,
    /// Where ipamd answers over HTTP.
    #[command(flatten)]
    pub daemon: Daemon,
}

/// In the daemon's container a directory of the node is where the daemon's own variable says that it is mounted.
fn host_dir(variable: &str, on_the_node: &str) -> PathBuf {
    let set = std::env::var_os(variable).filter(|dir| !dir.is_empty());
    set.map_or_else(|| on_the_node.into(), PathBuf::from)
}
