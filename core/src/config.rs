//! The daemon's settings, read from environment variables that are handed in.
//!
//! Names, defaults and meanings are those of the AWS VPC CNI where it has them; `VENI_*` beside them.

use std::{net::Ipv4Addr, time::Duration};

use crate::{marks::{DEFAULT_TABLE_BASE, EniMarkMask}, net::Ipv4Prefix};

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
    /// `VENI_SOCKET`.
    pub socket: String,
    /// `VENI_STATE_DIR`.
    pub state_dir: String,
    /// `VENI_BPF_DIR`.
    pub bpf_dir: String,
    /// `VENI_CNI_CACHE_DIR`: where libcni keeps the results of live attachments.
    pub cni_cache_dir: String,
    /// `VENI_PROVIDER`.
    pub provider: Provider,
    /// `AWS_VPC_K8S_CNI_LOGLEVEL`.
    pub log_level: String,
    /// `MY_NODE_NAME`.
    pub node_name: Option<String>,
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

/// The on-link gateway inside every pod.
pub const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

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
            snat: Snat::default(),
            eni_mtu: 9001,
            pod_mtu: 9001,
            veth_prefix: "eni".to_owned(),
            eni_mark_mask: EniMarkMask::default(),
            table_base: DEFAULT_TABLE_BASE,
            http_bind: Some("127.0.0.1:61679".to_owned()),
            socket: crate::wire::DEFAULT_SOCKET.to_owned(),
            state_dir: "/var/lib/veni".to_owned(),
            bpf_dir: "/sys/fs/bpf/veni".to_owned(),
            cni_cache_dir: "/var/lib/cni".to_owned(),
            provider: Provider::Aws,
            log_level: "info".to_owned(),
            node_name: None,
        }
    }
}
