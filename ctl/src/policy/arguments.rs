//! The command line of `venictl policy`.

use std::{path::PathBuf, str::FromStr};

use clap::{ArgGroup, Args, Subcommand};
use ipnet::IpNet;
use veni_core::config::NodePorts;
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
    /// The destination's port, of TCP, UDP and SCTP.
    #[arg(long, value_name = "N", value_parser = port)]
    pub port: Option<u16>,
    /// Of ICMP and ICMPv6: which message; an echo request unless told otherwise.
    #[arg(long, value_name = "TYPE[/CODE]", value_parser = message)]
    pub icmp: Option<(u8, u8)>,
    /// TCP, UDP, SCTP, ICMP, ICMPv6, or a number.
    #[arg(long, value_name = "P", default_value = "TCP", value_parser = protocol)]
    pub protocol: u8,
    /// The node's Service range (VENI_SERVICE_CIDRS), for manifests: what goes to an address in it that no Service has
    /// is refused from a pod whose egress is restricted.
    #[arg(long, value_name = "CIDR", env = "VENI_SERVICE_CIDRS", value_delimiter = ',', value_parser = unless_empty::<IpNet>)]
    pub service_cidrs: Vec<Given<IpNet>>,
    /// The cluster's node ports (VENI_NODE_PORT_RANGE), for manifests: what goes to one on the pod's node that no Service
    /// has is refused from a pod whose egress is restricted. Unless told: those of this node's ipamd, where one answers,
    /// else 30000-32767.
    #[arg(long, value_name = "FIRST-LAST", env = "VENI_NODE_PORT_RANGE", value_parser = unless_empty::<NodePorts>)]
    pub node_port_range: Option<Given<NodePorts>>,
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
///
/// Both sets are whole: Namespaces, Pods with addresses, Services, policies. What a set lacks does not exist in it, so that
/// every connection of a pod that only one of them has is a change.
///
/// With --live the first set is what is in force on this node. Only what this node judges is compared: both ends of its own
/// pods' connections with each other, and its own pods' end of those with pods of other nodes, whose other end their own
/// node judges (ask there, too). NEW is judged in the mode of this node (NETWORK_POLICY_ENFORCING_MODE). Connections of pods
/// with security groups are left out unless --security-groups gives the groups' rules.
#[derive(Debug, Args)]
pub struct Diff {
    /// Manifests as they are, then as they shall be (with --live only the latter); each a whole set.
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
    /// The rules of security groups, the same for both (with --live for NEW); see `check --help`.
    #[arg(long, value_name = "PATH")]
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

/// A value that may be empty: an empty variable is as good as none, to the daemon too.
#[derive(Debug, Clone, Copy)]
pub struct Given<T>(pub Option<T>);

fn unless_empty<T: FromStr>(text: &str) -> Result<Given<T>, T::Err> {
    if text.trim().is_empty() {
        Ok(Given(None))
    } else {
        text.parse().map(|value| Given(Some(value)))
    }
}

/// `8`, `3/1`.
fn message(text: &str) -> Result<(u8, u8), String> {
    let (kind, code) = text.split_once('/').unwrap_or((text, "0"));
    let number = |text: &str| {
        text.parse().map_err(|_| format!("{text:?} is no number up to 255: TYPE or TYPE/CODE"))
    };
    Ok((number(kind)?, number(code)?))
}

/// Port 0 is refused later, with the protocol.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is no port: a number from 1 to 65535 (names of ports are not looked up)")
    })
}

fn protocol(text: &str) -> Result<u8, String> {
    veni_policy::view::protocol_number(text).ok_or_else(|| {
        format!("{text:?} is none of TCP, UDP, SCTP, ICMP, ICMPv6, and no number up to 255")
    })
}
