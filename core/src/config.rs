//! The daemon's settings, read from environment variables that are handed in.
//!
//! Names, defaults and meanings are those of the AWS VPC CNI where it has them; `VENI_*` beside them.
//!
//! Invariants: all that is wrong is found and told in one go; what can be worked around is a warning and the
//! documented default; a value that would put pods in the wrong network or leave them unprotected is an error.
//! Deliberately absent: reading the environment (variables are handed in), and anything that needs the instance
//! type (`MAX_ENI` above the type's limit is cut where the limit is known).

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

mod load;
mod page;
mod policy;
mod reader;
mod report;
mod traps;
mod variables;

pub use page::page;
pub use policy::{
    Enforcing, Established, FlowEvents, MetadataAccess, NoNodePorts, NodePorts, PolicySettings,
};
pub use report::{ConfigError, Warning};
pub use variables::{Support, VARIABLES, Variable, find};

use crate::{
    marks::{DEFAULT_TABLE_BASE, EniMarkMask},
    net::Ipv4Prefix,
};

/// Everything ipamd is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The pool's size.
    pub targets: Targets,
    /// `MAX_ENI`: at most so many ENIs; `None` leaves the instance type's limit.
    pub max_eni: Option<u32>,
    /// `VENI_MAX_PODS`: the kubelet's maxPods; the pool never grows past it.
    pub max_pods: Option<u32>,
    /// `IP_COOLDOWN_PERIOD`: how long a released address is not reused.
    pub cooldown: Duration,
    /// `VENI_ADD_WAIT_SECS`: how long an ADD waits for an address at most.
    pub add_wait: Duration,
    /// `DISABLE_NETWORK_RESOURCE_PROVISIONING`: the pool is neither grown nor shrunk.
    pub disable_provisioning: bool,
    /// `DISABLE_LEAKED_ENI_CLEANUP`.
    pub disable_leaked_eni_cleanup: bool,
    /// `MANAGE_UNTAGGED_ENI`: ENIs without our instance tag are managed too.
    pub manage_untagged_eni: bool,
    /// `ADDITIONAL_ENI_TAGS`, in the order of their keys.
    pub additional_eni_tags: Vec<(String, String)>,
    /// `CLUSTER_NAME`.
    pub cluster_name: Option<String>,
    /// `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG`: ENIs are made where an ENIConfig says, and the primary gives pods none.
    pub custom_networking: bool,
    /// `ENI_CONFIG_ANNOTATION_DEF`: the node annotation that names the ENIConfig.
    pub eni_config_annotation: String,
    /// `ENI_CONFIG_LABEL_DEF`: the node label that does where there is no annotation.
    pub eni_config_label: String,
    /// What leaves the node.
    pub snat: Snat,
    /// `AWS_VPC_ENI_MTU`.
    pub eni_mtu: u32,
    /// `POD_MTU`, the ENI's when unset.
    pub pod_mtu: u32,
    /// `AWS_VPC_K8S_CNI_VETHPREFIX`.
    pub veth_prefix: String,
    /// `VENI_ENI_MARK_MASK`.
    pub eni_mark_mask: EniMarkMask,
    /// `VENI_TABLE_BASE`.
    pub table_base: u32,
    /// `INTROSPECTION_BIND_ADDRESS`; `None` with `DISABLE_INTROSPECTION`.
    pub http_bind: Option<String>,
    /// `VENI_METRICS_BIND_ADDRESS`: where metrics are served by themselves; `None` for nowhere, and with
    /// `DISABLE_METRICS`.
    pub metrics_bind: Option<String>,
    /// `VENI_SOCKET`.
    pub socket: String,
    /// `VENI_STATE_DIR`.
    pub state_dir: String,
    /// `VENI_BPF_DIR`.
    pub bpf_dir: String,
    /// `VENI_NET_SYSCTL_DIR`: the node's `/proc/sys/net`.
    pub net_sysctl_dir: String,
    /// `VENI_CNI_CACHE_DIR`: where libcni keeps the results of live attachments.
    pub cni_cache_dir: String,
    /// Where the container runtime looks.
    pub host_cni: HostCni,
    /// `VENI_PROVIDER`.
    pub provider: Provider,
    /// `AWS_VPC_K8S_CNI_LOGLEVEL`.
    pub log_level: String,
    /// `MY_NODE_NAME`.
    pub node_name: Option<String>,
    /// `VENI_STARTUP_TAINT`: the key of the node's taint that is removed once the first address is there.
    pub startup_taint: Option<String>,
    /// `ANNOTATE_POD_IP`: pods are annotated with their address.
    pub annotate_pod_ip: bool,
    /// `VENI_DENIED_EVENTS`: pods get events for traffic that is denied them.
    pub denied_events: bool,
    /// Network policy, Services, security groups.
    pub policy: PolicySettings,
}

/// What a build of the daemon can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    /// Whether it has the AWS provider (cargo feature `aws`).
    pub aws: bool,
}

/// The pool's size, as the AWS VPC CNI's variables state it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Targets {
    /// `WARM_ENI_TARGET`: spare ENIs' worth of addresses; ignored when `warm_ip` or `minimum_ip` is set.
    pub warm_eni: u32,
    /// `WARM_IP_TARGET`: unassigned addresses to keep; 0 is unset.
    pub warm_ip: u32,
    /// `MINIMUM_IP_TARGET`: total addresses to keep at least; 0 is unset.
    pub minimum_ip: u32,
    /// `WARM_PREFIX_TARGET`: whole free /28 prefixes (prefix delegation only).
    pub warm_prefix: u32,
    /// `ENABLE_PREFIX_DELEGATION`.
    pub prefix_delegation: bool,
}

/// What decides the pool's size, the parts included that the daemon does not do yet (`venictl pool steady`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolSettings {
    /// The targets.
    pub targets: Targets,
    /// `MAX_ENI`; `None` leaves the instance type's limit.
    pub max_eni: Option<u32>,
    /// `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG`: the primary ENI gives no addresses to pods.
    pub custom_networking: bool,
    /// `ENABLE_POD_ENI`: a slot is kept free for the trunk ENI.
    pub pod_eni: bool,
    /// `DISABLE_NETWORK_RESOURCE_PROVISIONING`: the pool is neither grown nor shrunk.
    pub disable_provisioning: bool,
}

/// How packets to outside the VPC are translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snat {
    /// `AWS_VPC_K8S_CNI_EXTERNALSNAT`: somebody else translates.
    pub external: bool,
    /// `AWS_VPC_K8S_CNI_RANDOMIZESNAT`.
    pub randomize: RandomizeSnat,
    /// `AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS`.
    pub exclude_cidrs: Vec<Ipv4Prefix>,
    /// `AWS_EXTERNAL_SERVICE_CIDRS`: reached through the primary ENI.
    pub external_service_cidrs: Vec<Ipv4Prefix>,
    /// `AWS_VPC_CNI_NODE_PORT_SUPPORT`.
    pub node_port_support: bool,
    /// `AWS_VPC_K8S_CNI_CONNMARK`.
    pub connmark: u32,
}

/// How source ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RandomizeSnat {
    /// `prng`: fully random.
    Prng,
    /// `hashrandom`.
    HashRandom,
    /// `none`.
    None,
}

/// The configuration list that ipamd writes, and `venictl doctor` looks for.
pub const CONFLIST: &str = "05-veni.conflist";

/// Where plugin and configuration list are put for the container runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostCni {
    /// `HOST_CNI_BIN_PATH`; `None` leaves the plugin to somebody else.
    pub bin_dir: Option<String>,
    /// `HOST_CNI_CONFDIR_PATH`; `None` leaves the list to somebody else.
    pub conf_dir: Option<String>,
    /// `VENI_CNI_VERSION`.
    pub version: CniVersion,
}

/// Which configuration list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CniVersion {
    /// For every runtime.
    #[default]
    V1_0,
    /// With GC and STATUS: containerd from 2.0, and a `portmap` from 1.5.0.
    V1_1,
}

/// The cloud behind the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// `aws`: EC2 and instance metadata.
    Aws,
    /// `sim:<socket>`: an EC2 simulator that serves this unix socket, as instance `VENI_SIM_INSTANCE`.
    Sim {
        /// The simulator's socket.
        socket: String,
        /// The instance that this daemon runs on.
        instance: crate::id::InstanceId,
    },
}

/// The annotation, and the label, that names a node's ENIConfig.
const ENI_CONFIG_KEY: &str = "k8s.amazonaws.com/eniConfig";

/// The on-link gateway inside every pod.
pub const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

// === impl Config ===

impl Config {
    /// The warnings about `vars`, whether or not there are errors too.
    #[must_use]
    pub fn warnings(vars: impl Iterator<Item = (String, String)>) -> Vec<Warning> {
        let mut reader = reader::Reader::new(vars, false);
        load::config(&mut reader, Build::WHOLE);
        reader.into_warnings()
    }

    /// Reads everything that veni knows from `vars` (the environment: what is not ours is passed over). A name that
    /// comes twice counts once, the last.
    ///
    /// # Errors
    /// All values that cannot be worked around, together.
    pub fn from_vars(
        vars: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<Warning>), Vec<ConfigError>> {
        Self::for_build(vars, Build::WHOLE)
    }

    /// As [`Config::from_vars`] for a daemon that may lack a part: a setting that asks for it is one of the errors.
    ///
    /// # Errors
    /// As [`Config::from_vars`].
    pub fn for_build(
        vars: impl Iterator<Item = (String, String)>,
        build: Build,
    ) -> Result<(Self, Vec<Warning>), Vec<ConfigError>> {
        let mut reader = reader::Reader::new(vars, false);
        let config = load::config(&mut reader, build);
        if reader.errors.is_empty() {
            Ok((config, reader.into_warnings()))
        } else {
            Err(reader.errors)
        }
    }

    /// The settings in force by variable name, for introspection.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        let targets = &self.targets;
        let list = |prefixes: &[Ipv4Prefix]| {
            prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        };
        let number = |number: Option<u32>| number.map(|n| n.to_string()).unwrap_or_default();
        let pairs: [(&str, String); 22] = [
            ("WARM_ENI_TARGET", targets.warm_eni.to_string()),
            ("WARM_IP_TARGET", targets.warm_ip.to_string()),
            ("MINIMUM_IP_TARGET", targets.minimum_ip.to_string()),
            ("WARM_PREFIX_TARGET", targets.warm_prefix.to_string()),
            ("MAX_ENI", number(self.max_eni)),
            ("VENI_MAX_PODS", number(self.max_pods)),
            ("IP_COOLDOWN_PERIOD", self.cooldown.as_secs().to_string()),
            ("VENI_ADD_WAIT_SECS", self.add_wait.as_secs().to_string()),
            ("DISABLE_NETWORK_RESOURCE_PROVISIONING", self.disable_provisioning.to_string()),
            ("MANAGE_UNTAGGED_ENI", self.manage_untagged_eni.to_string()),
            ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", self.custom_networking.to_string()),
            ("ENI_CONFIG_ANNOTATION_DEF", self.eni_config_annotation.clone()),
            ("ENI_CONFIG_LABEL_DEF", self.eni_config_label.clone()),
            ("CLUSTER_NAME", self.cluster_name.clone().unwrap_or_default()),
            ("AWS_VPC_K8S_CNI_EXTERNALSNAT", self.snat.external.to_string()),
            ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", list(&self.snat.exclude_cidrs)),
            ("AWS_EXTERNAL_SERVICE_CIDRS", list(&self.snat.external_service_cidrs)),
            ("AWS_VPC_K8S_CNI_CONNMARK", format!("{:#x}", self.snat.connmark)),
            ("POD_MTU", self.pod_mtu.to_string()),
            ("VENI_ENI_MARK_MASK", format!("{:#010x}", self.eni_mark_mask.bits())),
            ("VENI_TABLE_BASE", self.table_base.to_string()),
            ("VENI_NODE_PORT_RANGE", self.policy.node_ports.to_string()),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

// === impl Build ===

impl Build {
    /// With everything.
    pub const WHOLE: Self = Self { aws: true };
}

// === impl PoolSettings ===

impl PoolSettings {
    /// Reads what decides the pool's size. Unlike [`Config::from_vars`] it is for a person's command line: a value
    /// that is not a number or a boolean, and a name that nobody knows, are errors. Numbers out of range mean what
    /// they mean to the AWS VPC CNI (a negative `WARM_ENI_TARGET` is 1), with a warning.
    ///
    /// # Errors
    /// All values that are not usable, together.
    pub fn from_vars(
        vars: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<Warning>), Vec<ConfigError>> {
        let mut reader = reader::Reader::new(vars, true);
        let settings = load::pool(&mut reader);
        load::floor_trap(&mut reader, &settings.targets);
        load::unknown_names(&mut reader);
        if reader.errors.is_empty() {
            Ok((settings, reader.into_warnings()))
        } else {
            Err(reader.errors)
        }
    }
}

// === defaults ===

impl Default for Targets {
    fn default() -> Self {
        Self { warm_eni: 1, warm_ip: 0, minimum_ip: 0, warm_prefix: 0, prefix_delegation: false }
    }
}

impl Default for Snat {
    fn default() -> Self {
        Self {
            external: false,
            randomize: RandomizeSnat::Prng,
            exclude_cidrs: Vec::new(),
            external_service_cidrs: Vec::new(),
            node_port_support: true,
            connmark: 0x80,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            targets: Targets::default(),
            max_eni: None,
            max_pods: None,
            cooldown: Duration::from_secs(30),
            add_wait: Duration::from_secs(20),
            disable_provisioning: false,
            disable_leaked_eni_cleanup: false,
            manage_untagged_eni: true,
            additional_eni_tags: Vec::new(),
            cluster_name: None,
            custom_networking: false,
            eni_config_annotation: ENI_CONFIG_KEY.to_owned(),
            eni_config_label: ENI_CONFIG_KEY.to_owned(),
            snat: Snat::default(),
            eni_mtu: 9001,
            pod_mtu: 9001,
            veth_prefix: "eni".to_owned(),
            eni_mark_mask: EniMarkMask::default(),
            table_base: DEFAULT_TABLE_BASE,
            http_bind: Some("127.0.0.1:61679".to_owned()),
            metrics_bind: None,
            socket: crate::wire::DEFAULT_SOCKET.to_owned(),
            state_dir: "/var/lib/veni".to_owned(),
            bpf_dir: "/sys/fs/bpf/veni".to_owned(),
            net_sysctl_dir: "/proc/sys/net".to_owned(),
            cni_cache_dir: "/var/lib/cni".to_owned(),
            host_cni: HostCni::default(),
            provider: Provider::Aws,
            log_level: "info".to_owned(),
            node_name: None,
            startup_taint: None,
            annotate_pod_ip: false,
            denied_events: true,
            policy: PolicySettings::default(),
        }
    }
}

#[cfg(test)]
mod tests;
