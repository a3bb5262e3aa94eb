//! From configuration to the objects that have to be there: pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
};

use veni_core::{net::Ipv4Prefix, wire::FilterBlocks};

use super::{
    EniLink, HostConfig, PodLink,
    route::Route,
    rule::{Rule, Selector, TABLE_MAIN},
};
use crate::sysctl::Sysctl;

/// Pods' own routes: before everything else that is ours.
pub const PRIORITY_PODS: u32 = 512;
/// Connections that belong to the primary ENI (`AWS_VPC_K8S_CNI_CONNMARK`).
pub const PRIORITY_CONNMARK: u32 = 1024;
/// `AWS_EXTERNAL_SERVICE_CIDRS`.
pub const PRIORITY_EXTERNAL_SERVICE: u32 = 1535;
/// What a pod sends, by its ENI.
pub const PRIORITY_ENI: u32 = 1536;
/// What the node sends from a secondary ENI's own address: just before `main`.
pub const PRIORITY_ENI_ADDRESS: u32 = 32765;

/// Everything that has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The rules with our protocol: exactly these.
    pub rules: BTreeSet<Rule>,
    /// The routes of the ENIs' tables: exactly these.
    pub eni_routes: BTreeSet<Route>,
    /// Routes of the pods' table, by address: at least these, where the link exists.
    pub pod_routes: BTreeMap<Ipv4Addr, Route>,
    /// The pods' table.
    pub pod_table: u32,
    /// The ENIs' tables, used or not.
    pub eni_tables: std::ops::RangeInclusive<u32>,
    /// The secondary ENIs.
    pub secondary: Vec<EniLink>,
    /// Settings and their values.
    pub sysctls: Vec<(Sysctl, &'static str)>,
    /// The folder of `net`'s settings.
    pub sysctl_dir: PathBuf,
    /// The pods' veths, and the blocks that each must carry.
    pub pod_links: Vec<PodLink>,
    /// See `pod_links`.
    pub blocks: Option<FilterBlocks>,
}

impl Desired {
    /// Nothing of ours: what a node looks like once veni has left it.
    #[must_use]
    pub fn nothing(table_base: u32) -> Self {
        Self {
            rules: BTreeSet::new(),
            eni_routes: BTreeSet::new(),
            pod_routes: BTreeMap::new(),
            pod_table: table_base,
            eni_tables: table_base + 1..=table_base + 255,
            secondary: Vec::new(),
            sysctls: Vec::new(),
            sysctl_dir: PathBuf::new(),
            pod_links: Vec::new(),
            blocks: None,
        }
    }
}

/// What `config` and `pods` ask for.
#[must_use]
pub fn desired(config: &HostConfig, pods: &[PodLink]) -> Desired {
    let pod_table = config.table_base;
    Desired {
        rules: rules(config),
        eni_routes: config.secondary.iter().flat_map(|eni| eni_routes(config, eni)).collect(),
        pod_routes: pods.iter().map(|pod| (pod.address, pod_route(config, pod))).collect(),
        pod_table,
        eni_tables: pod_table + 1..=pod_table + 255,
        secondary: config.secondary.clone(),
        sysctls: sysctls(config),
        sysctl_dir: config.sysctl_dir.clone(),
        pod_links: pods.to_vec(),
        blocks: config.blocks,
    }
}

fn rules(config: &HostConfig) -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    let mut add = |priority, selector, table| {
        rules.insert(Rule { priority, selector, table });
    };
    add(PRIORITY_PODS, Selector::All, config.table_base);
    if config.node_port_support || !config.external_snat {
        let mark = Selector::Mark { value: config.connmark, mask: config.connmark };
        add(PRIORITY_CONNMARK, mark, TABLE_MAIN);
    }
    for cidr in &config.external_service_cidrs {
        add(PRIORITY_EXTERNAL_SERVICE, Selector::To(*cidr), TABLE_MAIN);
    }
    for eni in &config.secondary {
        let table = eni.slot.table(config.table_base);
        let mark = Selector::Mark { value: config.mask.mark(eni.slot), mask: config.mask.bits() };
        add(PRIORITY_ENI, mark, table);
        add(PRIORITY_ENI_ADDRESS, Selector::From(eni.address), table);
    }
    rules
}

fn eni_routes(config: &HostConfig, eni: &EniLink) -> [Route; 2] {
    let route = |destination, gateway| Route {
        table: eni.slot.table(config.table_base),
        destination,
        gateway,
        ifindex: eni.ifindex,
        source: None,
    };
    [route(host(eni.gateway()), None), route(everywhere(), Some(eni.gateway()))]
}

fn pod_route(config: &HostConfig, pod: &PodLink) -> Route {
    Route {
        table: config.table_base,
        destination: host(pod.address),
        gateway: None,
        ifindex: pod.ifindex,
        source: Some(config.primary.address),
    }
}

fn sysctls(config: &HostConfig) -> Vec<(Sysctl, &'static str)> {
    let mut sysctls = vec![(Sysctl::IpForward, "1")];
    for eni in std::iter::once(&config.primary).chain(&config.secondary) {
        sysctls.push((Sysctl::Forwarding(eni.ifname.clone()), "1"));
        sysctls.push((Sysctl::RpFilter(eni.ifname.clone()), "2"));
    }
    sysctls
}

fn host(address: Ipv4Addr) -> Ipv4Prefix {
    Ipv4Prefix::new(address, 32).expect("a /32 has no host bits")
}

fn everywhere() -> Ipv4Prefix {
    Ipv4Prefix::new(Ipv4Addr::UNSPECIFIED, 0).expect("0.0.0.0/0 has no host bits")
}
