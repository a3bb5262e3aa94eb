//! The command line of `venictl policy`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use veni_policy::view::{End, PodFilter};

/// Where ipamd answers over HTTP unless told otherwise.
const DEFAULT_INTROSPECTION: &str = "127.0.0.1:61679";

/// What about the policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Whether one may connect to another, and which rule says so on each side.
    Check(Check),
    /// Every pod to every pod, on each of the destination's container ports.
    Matrix(Matrix),
    /// Which connections change between two sets of manifests.
    Diff(Diff),
    /// What applies to a pod, and what it is compiled to.
    Explain(Explain),
}

/// A question about a connection.
#[derive(Debug, Args)]
pub struct Check {
    /// Who connects: namespace/pod or an address.
    #[arg(long, value_name = "POD|IP")]
    pub from: End,
    /// To whom: namespace/pod or an address.
    #[arg(long, value_name = "POD|IP")]
    pub to: End,
    /// The destination's port; none for ICMP (an echo request).
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// TCP, UDP, SCTP, ICMP, ICMPv6, or a number.
    #[arg(long, value_name = "P", default_value = "TCP", value_parser = protocol)]
    pub protocol: u8,
    /// Where the objects are.
    #[command(flatten)]
    pub source: Source,
}

/// Which part of the matrix.
#[derive(Debug, Args)]
pub struct Matrix {
    /// Only connections from this namespace or namespace/pod.
    #[arg(long, value_name = "POD|NAMESPACE")]
    pub from: Option<PodFilter>,
    /// Only connections to this namespace or namespace/pod.
    #[arg(long, value_name = "POD|NAMESPACE")]
    pub to: Option<PodFilter>,
    /// Where the objects are.
    #[command(flatten)]
    pub source: Source,
}

/// What to compare.
#[derive(Debug, Args)]
pub struct Diff {
    /// Manifests as they are, then as they shall be (with --live only the latter).
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    pub files: Vec<PathBuf>,
    /// Compare with what is in force on this node.
    #[arg(long)]
    pub live: bool,
    /// Only connections from this namespace or namespace/pod.
    #[arg(long, value_name = "POD|NAMESPACE")]
    pub from: Option<PodFilter>,
    /// Only connections to this namespace or namespace/pod.
    #[arg(long, value_name = "POD|NAMESPACE")]
    pub to: Option<PodFilter>,
    /// The rules of security groups, the same for both; see `check --help`.
    #[arg(long, value_name = "PATH", conflicts_with = "live")]
    pub security_groups: Vec<PathBuf>,
    /// Where ipamd answers.
    #[command(flatten)]
    pub daemon: Daemon,
}

/// Which pod.
#[derive(Debug, Args)]
pub struct Explain {
    /// namespace/pod.
    #[arg(value_name = "POD")]
    pub pod: End,
    /// Where the objects are.
    #[command(flatten)]
    pub source: Source,
}

/// Where the objects are: files, or the daemon.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").required(true).args(["files", "live"])))]
pub struct Source {
    /// A file of YAML or JSON documents, a folder of such files, or - for standard input; may be repeated.
    #[arg(short, long = "file", value_name = "PATH")]
    pub files: Vec<PathBuf>,
    /// Ask ipamd for what is in force on this node.
    #[arg(long)]
    pub live: bool,
    /// The rules of security groups: what `aws ec2 describe-security-group-rules` (and describe-network-interfaces,
    /// for groups that rules refer to) prints; may be repeated. Without it, groups are not looked at.
    #[arg(long, value_name = "PATH", conflicts_with = "live")]
    pub security_groups: Vec<PathBuf>,
    /// Where ipamd answers.
    #[command(flatten)]
    pub daemon: Daemon,
}

/// Where ipamd answers over HTTP.
#[derive(Debug, Clone, Args)]
pub struct Daemon {
    /// ipamd's introspection endpoint.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "INTROSPECTION_BIND_ADDRESS",
        default_value = DEFAULT_INTROSPECTION
    )]
    pub introspection: String,
}

fn protocol(text: &str) -> Result<u8, String> {
    veni_policy::view::protocol_number(text).ok_or_else(|| {
        format!("{text:?} is none of TCP, UDP, SCTP, ICMP, ICMPv6, and no number up to 255")
    })
}
