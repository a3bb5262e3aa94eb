//! From variables to [`Config`].

use std::{net::IpAddr, time::Duration};

use super::{
    Build, CniVersion, Config, HostCni, PoolSettings, Provider, RandomizeSnat, Snat, Targets,
    reader::{Reader, parse_mark},
    variables::{self, Support},
};
use crate::{id::InstanceId, marks::EniMarkMask};

const MTU: std::ops::RangeInclusive<u32> = 576..=9001;
/// Tags that EC2 refuses or that say whose an ENI is.
const FOREIGN_TAG: &str = "k8s.amazonaws.com";

pub(super) fn config(reader: &mut Reader, build: Build) -> Config {
    let defaults = Config::default();
    unsupported(reader);
    misspelt(reader);
    let pool = pool(reader);
    let imds_only = reader.bool("ENABLE_IMDS_ONLY_MODE", false);
    let snat = snat(reader, defaults.snat);
    let (eni_mtu, pod_mtu) = mtus(reader, defaults.eni_mtu);
    Config {
        // Said in a warning: the planner has single addresses only.
        targets: Targets { prefix_delegation: false, ..pool.targets },
        max_eni: pool.max_eni,
        max_pods: reader.at_least("VENI_MAX_PODS", 1),
        cooldown: reader
            .at_least("IP_COOLDOWN_PERIOD", 0)
            .map_or(defaults.cooldown, |secs| Duration::from_secs(secs.into())),
        add_wait: add_wait(reader).unwrap_or(defaults.add_wait),
        disable_provisioning: pool.disable_provisioning,
        disable_leaked_eni_cleanup: reader.bool("DISABLE_LEAKED_ENI_CLEANUP", false) || imds_only,
        manage_untagged_eni: reader.bool("MANAGE_UNTAGGED_ENI", true),
        additional_eni_tags: tags(reader),
        cluster_name: reader.text("CLUSTER_NAME"),
        custom_networking: custom_networking(reader, &pool),
        eni_config_annotation: reader
            .text("ENI_CONFIG_ANNOTATION_DEF")
            .unwrap_or(defaults.eni_config_annotation),
        eni_config_label: reader.text("ENI_CONFIG_LABEL_DEF").unwrap_or(defaults.eni_config_label),
        eni_mark_mask: mark_mask(reader, snat.connmark),
        snat,
        eni_mtu,
        pod_mtu,
        veth_prefix: veth_prefix(reader).unwrap_or(defaults.veth_prefix),
        table_base: reader
            .in_range("VENI_TABLE_BASE", 256..=0x7fff_ff00)
            .unwrap_or(defaults.table_base),
        http_bind: http_bind(reader, defaults.http_bind),
        metrics_bind: metrics_bind(reader),
        socket: reader.path("VENI_SOCKET", defaults.socket),
        state_dir: reader.path("VENI_STATE_DIR", defaults.state_dir),
        bpf_dir: reader.path("VENI_BPF_DIR", defaults.bpf_dir),
        net_sysctl_dir: reader.path("VENI_NET_SYSCTL_DIR", defaults.net_sysctl_dir),
        cni_cache_dir: reader.path("VENI_CNI_CACHE_DIR", defaults.cni_cache_dir),
        host_cni: host_cni(reader),
        provider: provider(reader, build).unwrap_or(defaults.provider),
        log_level: log_level(reader).unwrap_or(defaults.log_level),
        node_name: reader.text("MY_NODE_NAME"),
        startup_taint: reader.text("VENI_STARTUP_TAINT"),
        annotate_pod_ip: reader.bool("ANNOTATE_POD_IP", false),
        denied_events: reader.bool("VENI_DENIED_EVENTS", true),
        policy: super::policy::settings(reader),
    }
}

/// What decides the pool's size, with the AWS VPC CNI's meaning of every value, and the traps in it.
pub(super) fn pool(reader: &mut Reader) -> PoolSettings {
    let defaults = Targets::default();
    let settings = PoolSettings {
        targets: Targets {
            warm_eni: reader.at_least("WARM_ENI_TARGET", 0).unwrap_or(defaults.warm_eni),
            warm_ip: reader.at_least("WARM_IP_TARGET", 0).unwrap_or(0),
            minimum_ip: reader.at_least("MINIMUM_IP_TARGET", 0).unwrap_or(0),
            warm_prefix: reader.at_least("WARM_PREFIX_TARGET", 0).unwrap_or(defaults.warm_prefix),
            prefix_delegation: reader.bool("ENABLE_PREFIX_DELEGATION", false),
        },
        max_eni: reader.at_least("MAX_ENI", 1),
        custom_networking: reader.bool("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", false),
        pod_eni: reader.bool("ENABLE_POD_ENI", false),
        disable_provisioning: reader.bool("DISABLE_NETWORK_RESOURCE_PROVISIONING", false)
            || reader.bool("ENABLE_IMDS_ONLY_MODE", false),
    };
    pool_traps(reader, &settings.targets);
    settings
}

/// With the AWS VPC CNI, which does not count a waiting ADD as demand. With veni the pool grows for it.
pub(super) fn floor_trap(reader: &mut Reader, targets: &Targets) {
    if targets.minimum_ip > 0 && targets.warm_ip == 0 {
        reader.warn(
            "MINIMUM_IP_TARGET",
            "WARM_IP_TARGET is not set, so nothing is kept warm and the pool never grows past this floor: the pods \
             beyond it stay pending; set WARM_IP_TARGET=1 or more",
        );
    }
}

/// Combinations that do not do what they seem to (`vpc-cni` issues 1077, 853, 728).
fn pool_traps(reader: &mut Reader, targets: &Targets) {
    let by_target = targets.warm_ip > 0 || targets.minimum_ip > 0;
    for name in ["WARM_ENI_TARGET", "WARM_PREFIX_TARGET"] {
        let used = name != "WARM_PREFIX_TARGET" || targets.prefix_delegation;
        if by_target && used && reader.get(name).is_some() {
            reader.warn(name, "ignored, because WARM_IP_TARGET or MINIMUM_IP_TARGET is set");
        }
    }
    if reader.get("WARM_IP_TARGET") == Some("0") {
        reader.warn(
            "WARM_IP_TARGET",
            "0 is the same as unset; keeping no address warm is not possible this way",
        );
    }
    if !by_target && targets.prefix_delegation && targets.warm_prefix == 0 {
        reader.warn(
            "WARM_PREFIX_TARGET",
            "the AWS VPC CNI refuses to start with ENABLE_PREFIX_DELEGATION and no warm target: a prefix is taken \
             and given back in turns; set WARM_PREFIX_TARGET=1",
        );
    }
    if !by_target && !targets.prefix_delegation && targets.warm_eni == 0 {
        reader.warn(
            "WARM_ENI_TARGET",
            "with 0 an ENI is added only when the last address is taken, and is given back in turns while it is \
             empty; WARM_IP_TARGET=1 wastes less",
        );
    }
}

/// Variables of the AWS VPC CNI that are not supported yet, set to something else than their default.
fn unsupported(reader: &mut Reader) {
    for variable in variables::VARIABLES {
        let Some(value) = reader.text(variable.name) else {
            continue;
        };
        let same = match variable.default {
            "true" => reader.bool(variable.name, true),
            "false" => !reader.bool(variable.name, false),
            default => value == default,
        };
        match variable.support {
            _ if same => {}
            Support::Honoured | Support::Ignored => {}
            Support::Warned(sentence) => reader.warn(variable.name, sentence),
            Support::Refused(sentence) => reader.fail(variable.name, sentence),
        }
    }
}

/// Unknown `VENI_*`, and names that are nearly one of ours.
fn misspelt(reader: &mut Reader) {
    let unknown =
        reader.names().filter(|name| variables::find(name).is_none()).map(ToOwned::to_owned);
    for name in unknown.collect::<Vec<_>>() {
        let ours = name.starts_with("VENI_");
        if !ours && name.len() < 8 {
            continue;
        }
        match variables::nearest(&name, if ours { 6 } else { 2 }) {
            Some(near) => {
                reader.warn(&name, format!("unknown variable, ignored; did you mean {near}?"))
            }
            None if ours => reader
                .warn(&name, "unknown variable, ignored; `venictl config` lists the known ones"),
            None => {}
        }
    }
}

/// Names that are not in the registry, as errors.
pub(super) fn unknown_names(reader: &mut Reader) {
    let unknown =
        reader.names().filter(|name| variables::find(name).is_none()).map(ToOwned::to_owned);
    for name in unknown.collect::<Vec<_>>() {
        match variables::nearest(&name, 4) {
            Some(near) => reader.fail(&name, format!("no such variable; did you mean {near}?")),
            None => reader.fail(&name, "no such variable; `venictl config` lists them"),
        }
    }
}

/// Whether ENIs are made where an ENIConfig says. Without a source of ENIConfigs none ever is.
fn custom_networking(reader: &mut Reader, pool: &PoolSettings) -> bool {
    const NAME: &str = "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG";
    let sources = ["VENI_MANIFEST_DIR", "KUBECONFIG", "KUBERNETES_SERVICE_HOST"];
    if pool.custom_networking && sources.iter().all(|source| reader.get(source).is_none()) {
        reader.warn(
            NAME,
            "VENI_MANIFEST_DIR is not set, and there is no cluster to read ENIConfig objects from (KUBERNETES_SERVICE_HOST, \
             KUBECONFIG): no ENI is made, and no pod gets an address; put the ENIConfig, and the Node that names it, into such a \
             folder",
        );
    }
    if pool.custom_networking && pool.max_eni == Some(1) {
        reader.warn(
            NAME,
            "with MAX_ENI=1 there is the primary ENI only, which gives pods no address",
        );
    }
    pool.custom_networking
}

fn snat(reader: &mut Reader, defaults: Snat) -> Snat {
    let external = reader.bool("AWS_VPC_K8S_CNI_EXTERNALSNAT", defaults.external);
    let exclude_cidrs = reader.cidrs("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS");
    if external && !exclude_cidrs.is_empty() {
        reader.warn(
            "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
            "ignored, because AWS_VPC_K8S_CNI_EXTERNALSNAT is true: nothing is translated here",
        );
    }
    Snat {
        external,
        randomize: randomize(reader).unwrap_or(defaults.randomize),
        exclude_cidrs,
        external_service_cidrs: reader.cidrs("AWS_EXTERNAL_SERVICE_CIDRS"),
        node_port_support: reader.bool("AWS_VPC_CNI_NODE_PORT_SUPPORT", defaults.node_port_support),
        connmark: connmark(reader).unwrap_or(defaults.connmark),
    }
}

fn randomize(reader: &mut Reader) -> Option<RandomizeSnat> {
    const NAME: &str = "AWS_VPC_K8S_CNI_RANDOMIZESNAT";
    match reader.get(NAME)? {
        "prng" => Some(RandomizeSnat::Prng),
        "hashrandom" => Some(RandomizeSnat::HashRandom),
        "none" => Some(RandomizeSnat::None),
        _ => {
            reader.unparsable(NAME, "prng, hashrandom or none");
            None
        }
    }
}

fn connmark(reader: &mut Reader) -> Option<u32> {
    const NAME: &str = "AWS_VPC_K8S_CNI_CONNMARK";
    let mark = parse_mark(reader.get(NAME)?);
    if mark.is_none() {
        reader.unparsable(NAME, "a mark from 1 to 0xffffffff");
    }
    if mark.is_some_and(|mark| mark & 0xc000 != 0) {
        reader.fail(NAME, "0x4000 and 0x8000 are kube-proxy's marks: choose other bits, or leave the default, 0x80");
    }
    mark
}

fn mark_mask(reader: &mut Reader, connmark: u32) -> EniMarkMask {
    const NAME: &str = "VENI_ENI_MARK_MASK";
    let default = EniMarkMask::default();
    let Some(text) = reader.get(NAME) else {
        if default.bits() & connmark != 0 {
            let taken = default.bits();
            reader.fail(
                "AWS_VPC_K8S_CNI_CONNMARK",
                format!("it overlaps VENI_ENI_MARK_MASK ({taken:#010x}): choose bits outside of it, or set both"),
            );
        }
        return default;
    };
    let mask = parse_mark(text).and_then(|mask| EniMarkMask::new(mask, connmark));
    if mask.is_none() {
        reader.fail(
            NAME,
            format!("expected at least 8 adjacent bits clear of 0xc000 (kube-proxy) and {connmark:#x} (AWS_VPC_K8S_CNI_CONNMARK)"),
        );
    }
    mask.unwrap_or(default)
}

fn mtus(reader: &mut Reader, default: u32) -> (u32, u32) {
    let eni = reader.in_range("AWS_VPC_ENI_MTU", MTU).unwrap_or(default);
    let pod = reader.in_range("POD_MTU", MTU).unwrap_or(eni);
    if pod > eni {
        reader.warn(
            "POD_MTU",
            format!(
                "larger than AWS_VPC_ENI_MTU ({eni}): pods' large packets are fragmented or lost"
            ),
        );
    }
    (eni, pod)
}

fn veth_prefix(reader: &mut Reader) -> Option<String> {
    const NAME: &str = "AWS_VPC_K8S_CNI_VETHPREFIX";
    let prefix = reader.text(NAME)?;
    let valid = prefix.len() <= 4
        && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !valid || ["eth", "lo", "vlan"].contains(&prefix.as_str()) {
        reader.fail(NAME, "expected 1 to 4 letters, digits, `-` or `_`, and not eth, lo or vlan");
    }
    Some(prefix)
}

/// `ADDITIONAL_ENI_TAGS`: a JSON object of strings. Tags that EC2 would refuse would make every ENI fail, so they
/// are left out (EC2 API reference, "Tag restrictions").
fn tags(reader: &mut Reader) -> Vec<(String, String)> {
    const NAME: &str = "ADDITIONAL_ENI_TAGS";
    let Some(text) = reader.get(NAME) else {
        return Vec::new();
    };
    let Ok(tags) = serde_json::from_str::<std::collections::BTreeMap<String, String>>(text) else {
        reader.unparsable(NAME, "a JSON object with strings only, such as {\"team\":\"net\"}");
        return Vec::new();
    };
    let refusal = |key: &str, value: &str| match () {
        () if key.contains(FOREIGN_TAG) => {
            Some("keys containing k8s.amazonaws.com say whose an ENI is")
        }
        () if key.to_ascii_lowercase().starts_with("aws:") => {
            Some("keys starting with aws: are reserved by AWS")
        }
        () if key.is_empty() || key.chars().count() > 128 => {
            Some("EC2 takes keys of 1 to 128 characters")
        }
        () if value.chars().count() > 256 => Some("EC2 takes values of at most 256 characters"),
        () => None,
    };
    let mut kept = Vec::new();
    for (key, value) in tags {
        match refusal(&key, &value) {
            Some(why) => reader.warn(NAME, format!("the tag {key:?} is left out: {why}")),
            None => kept.push((key, value)),
        }
    }
    kept
}

fn add_wait(reader: &mut Reader) -> Option<Duration> {
    const NAME: &str = "VENI_ADD_WAIT_SECS";
    let secs = reader.at_least(NAME, 1)?;
    // The plugin asks for no more (`wait_millis` of its ADD), so that it answers before the runtime gives up.
    const MOST: u32 = 55;
    if secs > MOST {
        reader.warn(NAME, "longer than the plugin waits for an ADD; 55 is used");
    }
    Some(Duration::from_secs(secs.min(MOST).into()))
}

/// Metrics by themselves name no pod: no warning for an address that others reach.
fn metrics_bind(reader: &mut Reader) -> Option<String> {
    const NAME: &str = "VENI_METRICS_BIND_ADDRESS";
    if reader.bool("DISABLE_METRICS", false) {
        return None;
    }
    let address = reader.text(NAME)?;
    if is_host_and_port(&address) {
        return Some(address);
    }
    reader.unparsable(NAME, "host:port");
    None
}

fn is_host_and_port(address: &str) -> bool {
    let parts = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    parts.is_some_and(|(_, port)| port.parse::<u16>().is_ok())
}

fn http_bind(reader: &mut Reader, default: Option<String>) -> Option<String> {
    const NAME: &str = "INTROSPECTION_BIND_ADDRESS";
    if reader.bool("DISABLE_INTROSPECTION", false) {
        return None;
    }
    let Some(address) = reader.text(NAME) else {
        return default;
    };
    if !is_host_and_port(&address) {
        reader.unparsable(NAME, "host:port");
        return default;
    }
    if !is_loopback(&address) {
        reader.warn(
            NAME,
            "not loopback: whoever reaches it reads, without a password, every pod's name and address, the ENIs, the \
             settings and the metrics; set 127.0.0.1:61679, or let only your monitoring reach the port (the node's \
             security group)",
        );
    }
    Some(address)
}

/// Whether `host:port` can be reached from this machine only.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().map_or(bare == "localhost", |ip| ip.is_loopback())
}

fn provider(reader: &mut Reader, build: Build) -> Option<Provider> {
    const NAME: &str = "VENI_PROVIDER";
    const INSTANCE: &str = "VENI_SIM_INSTANCE";
    let text = reader.text(NAME).unwrap_or_else(|| "aws".to_owned());
    if text == "aws" {
        if !build.aws {
            reader.fail(
                NAME,
                "aws is the default, and this ipamd was built without it: set sim:/path/of/the/simulator's.sock, or \
                 build with `--features aws`",
            );
        }
        return Some(Provider::Aws);
    }
    let Some(socket) = text.strip_prefix("sim:").filter(|socket| socket.starts_with('/')) else {
        reader.fail(NAME, "expected aws, or sim:/path/of/the/simulator's.sock");
        return None;
    };
    match reader.text(INSTANCE).unwrap_or_default().parse::<InstanceId>() {
        Ok(instance) => Some(Provider::Sim { socket: socket.to_owned(), instance }),
        Err(error) => {
            reader.fail(INSTANCE, format!("needed with VENI_PROVIDER={text}: {error}"));
            None
        }
    }
}

fn host_cni(reader: &mut Reader) -> HostCni {
    const VERSION: &str = "VENI_CNI_VERSION";
    let folder = |reader: &mut Reader, name| {
        Some(reader.path(name, String::new())).filter(|path| !path.is_empty())
    };
    let version = match reader.get(VERSION) {
        None | Some("1.0.0") => CniVersion::V1_0,
        Some("1.1.0") => CniVersion::V1_1,
        Some(_) => {
            reader.unparsable(VERSION, "1.0.0 or 1.1.0");
            CniVersion::default()
        }
    };
    HostCni {
        bin_dir: folder(reader, "HOST_CNI_BIN_PATH"),
        conf_dir: folder(reader, "HOST_CNI_CONFDIR_PATH"),
        version,
    }
}

fn log_level(reader: &mut Reader) -> Option<String> {
    const NAME: &str = "AWS_VPC_K8S_CNI_LOGLEVEL";
    let level = reader.get(NAME)?.to_ascii_lowercase();
    match level.as_str() {
        "error" | "warn" | "info" | "debug" | "trace" => Some(level),
        "warning" => Some("warn".to_owned()),
        "fatal" | "panic" => Some("error".to_owned()),
        _ => {
            reader.unparsable(NAME, "error, warn, info, debug or trace");
            None
        }
    }
}
