//! The registry of variables: what `docs/` and `venictl config` print, and what tells a misspelt name from a
//! foreign one.

/// One environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What holds when it is unset; empty for nothing.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// What veni makes of it.
    pub support: Support,
}

/// What veni makes of a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It does what it says.
    Honoured,
    /// It is known and has no meaning here; setting it is fine.
    Ignored,
    /// Not supported yet, or kept in another way than the name says. A value other than the default starts with a
    /// warning.
    Warned(&'static str),
    /// Not supported yet. A value other than the default would put pods in the wrong network or leave them
    /// unprotected: refused.
    Refused(&'static str),
}

impl Support {
    /// One word for tables: `honoured`, `ignored`, `warned` or `refused`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Ignored => "ignored",
            Self::Warned(_) => "warned",
            Self::Refused(_) => "refused",
        }
    }
}

impl Variable {
    /// What it does that its name does not say.
    #[must_use]
    pub fn trap(&self) -> Option<&'static str> {
        let mut traps = super::traps::TRAPS.iter();
        traps.find(|(name, _)| *name == self.name).map(|(_, trap)| *trap)
    }

    /// The values of a variable that is not supported yet which are warned about or refused, in words that follow
    /// "if": `true`, `set`. `None` when every value is fine.
    #[must_use]
    pub fn unsupported_values(&self) -> Option<String> {
        let (Warned(_) | Refused(_)) = self.support else { return None };
        Some(match (self.name, self.default) {
            (_, "true") => "false".to_owned(),
            (_, "false") => "true".to_owned(),
            (_, "") => "set".to_owned(),
            (_, default) => format!("not {default}"),
        })
    }
}

use Support::{Honoured, Ignored, Refused, Warned};

const fn v(
    name: &'static str,
    default: &'static str,
    support: Support,
    meaning: &'static str,
) -> Variable {
    Variable { name, default, meaning, support }
}

/// Every variable that veni knows: the pool's, the network's, veni's own, and the AWS VPC CNI's that it has no use
/// for (yet).
#[rustfmt::skip] // one variable a line: a table
pub static VARIABLES: &[Variable] = &[
    // The pool and its ENIs.
    v("WARM_ENI_TARGET", "1", Honoured, "spare ENIs' worth of addresses to keep; ignored when WARM_IP_TARGET or MINIMUM_IP_TARGET is set, and under prefix delegation"),
    v("WARM_IP_TARGET", "", Honoured, "unassigned addresses to keep; overrides WARM_ENI_TARGET and WARM_PREFIX_TARGET; 0 is the same as unset"),
    v("MINIMUM_IP_TARGET", "", Honoured, "total addresses to keep at least; set WARM_IP_TARGET too, or the pool never grows past it"),
    v("WARM_PREFIX_TARGET", "0", Honoured, "whole free /28 prefixes to keep (prefix delegation only)"),
    v("MAX_ENI", "", Honoured, "ENIs to use at most; unset or below 1: what the instance type allows"),
    v("ENABLE_PREFIX_DELEGATION", "false", Warned("prefix delegation is not supported yet: the pool uses single addresses, so fewer pods fit; keep the kubelet's maxPods at what `venictl pool steady` gives without it"), "give out addresses of delegated /28 prefixes"),
    v("IP_COOLDOWN_PERIOD", "30", Honoured, "seconds that a released address is not reused"),
    v("DISABLE_NETWORK_RESOURCE_PROVISIONING", "false", Honoured, "neither grow nor shrink the pool"),
    v("DISABLE_LEAKED_ENI_CLEANUP", "false", Honoured, "leave leaked ENIs: the daemon does not look for those that its instance's earlier daemons left behind; the controller sweeps those of instances that are gone, unless it has this too (in the chart it does)"),
    v("MANAGE_UNTAGGED_ENI", "true", Honoured, "manage attached ENIs that do not carry this instance's tag too"),
    v("ENABLE_IMDS_ONLY_MODE", "false", Warned("the pool is neither grown nor shrunk and leaked ENIs are not looked for, but EC2 is still read at start: veni does not drop an address on the word of instance metadata alone"), "no EC2 calls"),
    v("AWS_MANAGE_ENIS_NON_SCHEDULABLE", "false", Ignored, "manage ENIs on a cordoned node too; veni always does"),
    v("AWS_VPC_K8S_CNI_BACKING_STORE", "", Warned("it has no effect: the state is kept in VENI_STATE_DIR"), "checkpoint file"),
    v("ENABLE_SUBNET_DISCOVERY", "true", Ignored, "spread ENIs over tagged subnets; veni uses the primary ENI's subnet for now"),
    v("ENABLE_MULTI_NIC", "false", Warned("several network cards are not supported yet: every pod gets one interface, from card 0"), "one pool per network card"),
    v("ADDITIONAL_ENI_TAGS", "{}", Honoured, "JSON object of tags for new ENIs; keys containing k8s.amazonaws.com are dropped"),
    v("CLUSTER_NAME", "", Honoured, "the cluster: tagged on new ENIs; by this tag the controller sweeps those of instances that are gone, and without the name none; ENIs from before it was set have to be deleted by hand"),
    // Addresses, SNAT and links.
    v("AWS_VPC_K8S_CNI_EXTERNALSNAT", "false", Honoured, "somebody else (a NAT gateway) translates what leaves the VPC"),
    v("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "prng", Honoured, "how source ports are chosen: prng, hashrandom or none"),
    v("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "", Honoured, "comma-separated CIDRs that are not translated either"),
    v("AWS_EXTERNAL_SERVICE_CIDRS", "", Honoured, "comma-separated CIDRs that are reached through the primary ENI"),
    v("AWS_VPC_CNI_NODE_PORT_SUPPORT", "true", Honoured, "send replies to NodePort traffic back through the primary ENI"),
    v("AWS_VPC_K8S_CNI_CONNMARK", "0x80", Honoured, "the bit of packet and connection marks that leads to the main table"),
    v("AWS_VPC_ENI_MTU", "9001", Honoured, "MTU of the ENIs, 576 to 9001"),
    v("POD_MTU", "AWS_VPC_ENI_MTU", Honoured, "MTU of pods' links, 576 to 9001"),
    v("AWS_VPC_K8S_CNI_VETHPREFIX", "eni", Honoured, "first letters of the names of pods' links on the node, at most 4; not eth, lo or vlan"),
    v("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "false", Honoured, "secondary ENIs take subnet and security groups from the node's ENIConfig, and the primary ENI gives pods no address; until there is one, no ENI is made"),
    v("ENI_CONFIG_ANNOTATION_DEF", "k8s.amazonaws.com/eniConfig", Honoured, "the node annotation that names the ENIConfig; before it comes the label vpc.amazonaws.com/externalEniConfig, after it ENI_CONFIG_LABEL_DEF, then the name default"),
    v("ENI_CONFIG_LABEL_DEF", "k8s.amazonaws.com/eniConfig", Honoured, "the node label that names the ENIConfig, where no annotation does"),
    v("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", "", Ignored, "deprecated, without effect; rp_filter is 2 on every managed ENI"),
    v("ENABLE_NFTABLES", "", Ignored, "deprecated, without effect; veni always uses nftables"),
    // Families, security groups, policy, annotations.
    v("ENABLE_IPv4", "true", Refused("veni is IPv4-only for now: unset it"), "IPv4 pods"),
    v("ENABLE_IPv6", "false", Refused("IPv6 is not supported yet: unset it, and run veni on IPv4 clusters"), "IPv6 pods"),
    v("ENABLE_V4_EGRESS", "true", Ignored, "IPv4 egress of IPv6 pods"),
    v("ENABLE_V6_EGRESS", "false", Warned("IPv6 egress is not supported yet: pods have IPv4 only"), "IPv6 egress of IPv4 pods"),
    v("DISABLE_POD_V6", "false", Warned("it has no effect yet: pods keep a link-local IPv6 address, and the filter drops what they send from it"), "set disable_ipv6 in pods"),
    v("ENABLE_BANDWIDTH_PLUGIN", "false", Warned("it has no effect: veni writes no bandwidth plugin into the conflist, because that wants the same qdisc as veni's filter"), "chain the bandwidth plugin"),
    v("ENABLE_POD_ENI", "false", Warned("there is no need for it: SecurityGroupPolicy objects are honoured on every instance type at full density, by the node's own programs and without branch ENIs; the limit: a rule elsewhere in AWS that names a pod's group as its source sees the ENI's groups, not the pod's"), "security groups for pods through branch ENIs"),
    v("POD_SECURITY_GROUP_ENFORCING_MODE", "strict", Ignored, "how branch ENIs' traffic is led"),
    v("DISABLE_TCP_EARLY_DEMUX", "false", Ignored, "needed by branch ENIs only"),
    v("NETWORK_POLICY_ENFORCING_MODE", "standard", Honoured, "standard: a pod that no policy selects is open; strict: a pod that no NetworkPolicy selects is closed both ways, but to itself, its own node and what a ClusterNetworkPolicy accepts; none: NetworkPolicy and ClusterNetworkPolicy objects are not enforced (security groups are)"),
    v("ANNOTATE_POD_IP", "false", Honoured, "annotate pods with vpc.amazonaws.com/pod-ips: a write to the API server a pod; the chart grants it then"),
    // Operations.
    v("AWS_VPC_K8S_CNI_LOGLEVEL", "info", Honoured, "error, warn, info, debug or trace"),
    v("AWS_VPC_K8S_CNI_LOG_FILE", "", Ignored, "veni logs to stdout"),
    v("AWS_VPC_K8S_PLUGIN_LOG_FILE", "", Ignored, "the plugin answers the runtime, which logs it"),
    v("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "", Ignored, "the plugin answers the runtime, which logs it"),
    v("AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", "", Ignored, "there is no egress plugin"),
    v("AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE", "", Ignored, "there is no egress plugin"),
    v("INTROSPECTION_BIND_ADDRESS", "127.0.0.1:61679", Honoured, "host:port of health, readiness, metrics and introspection"),
    v("DISABLE_INTROSPECTION", "false", Honoured, "do not serve INTROSPECTION_BIND_ADDRESS at all"),
    v("DISABLE_METRICS", "false", Warned("VENI_METRICS_BIND_ADDRESS is not served; beside introspection, on loopback, metrics still are: DISABLE_INTROSPECTION=true turns both off"), "do not serve metrics by themselves"),
    v("HTTP_TIMEOUT", "10", Ignored, "timeout of AWS calls; veni has its own"),
    v("VPC_CNI_VERSION", "", Ignored, "set by the AWS VPC CNI's image"),
    v("HOST_CNI_BIN_PATH", "", Honoured, "where the chart's first container copies the plugin to (veni-ipamd --install); unset: nowhere"),
    v("HOST_CNI_CONFDIR_PATH", "", Honoured, "where ipamd writes 05-veni.conflist once the node can take pods; unset: nowhere"),
    v("CLUSTER_ENDPOINT", "", Ignored, "the API server; veni needs none for addresses"),
    v("MY_NODE_NAME", "", Honoured, "the node's name in Kubernetes: pods that name it are this node's; unset: its host name"),
    v("MY_POD_NAME", "", Ignored, "the daemon's own pod"),
    v("USE_CLOUDWATCH", "true", Ignored, "of the metrics helper"),
    v("USE_PROMETHEUS", "false", Ignored, "of the metrics helper"),
    v("METRIC_UPDATE_INTERVAL", "30", Ignored, "of the metrics helper"),
    v("AWS_CLUSTER_ID", "", Ignored, "of the metrics helper"),
    // veni's own.
    v("VENI_MAX_PODS", "", Honoured, "the kubelet's maxPods: the pool never grows past it"),
    v("VENI_ADD_WAIT_SECS", "20", Honoured, "seconds that an ADD waits for an address at most, 1 to 55"),
    v("VENI_ENI_MARK_MASK", "0x00ff0000", Honoured, "the bits of packet marks that name a pod's ENI: at least 8 adjacent ones, clear of 0xc000 and of AWS_VPC_K8S_CNI_CONNMARK"),
    v("VENI_TABLE_BASE", "7600", Honoured, "the routing table of pods; the 255 tables after it are the ENIs'"),
    v("VENI_SOCKET", "/run/veni/ipamd.sock", Honoured, "the socket that plugin and venictl speak to"),
    v("VENI_METRICS_BIND_ADDRESS", "", Honoured, "host:port where /metrics is served and nothing else; unset: beside introspection only. The chart sets it to the node's address with podMonitor.create"),
    v("VENI_STATE_DIR", "/var/lib/veni", Honoured, "the journal's directory"),
    v("VENI_BPF_DIR", "/sys/fs/bpf/veni", Honoured, "where the filter's maps are pinned (a bpf file system)"),
    v("VENI_NET_SYSCTL_DIR", "/proc/sys/net", Honoured, "where the node's net sysctls can be written: a container has /proc/sys read-only"),
    v("VENI_CNI_CACHE_DIR", "/var/lib/cni", Honoured, "where libcni keeps the results of live attachments"),
    v("VENI_CNI_VERSION", "1.0.0", Honoured, "the version of the conflist that ipamd writes: 1.0.0, or 1.1.0 with GC and STATUS, for containerd from 2.0 and a portmap from 1.5.0"),
    v("VENI_MANIFEST_DIR", "", Honoured, "a folder of Kubernetes manifests (namespaces, pods, Services, policies) that is watched; unset: the API server of KUBECONFIG, or of the cluster that the daemon runs in, is, where there is one (cargo feature kube); with neither, a node that isolates pods keeps what is in force and closes new ones until NETWORK_POLICY_ENFORCING_MODE=none, and any other is open"),
    v("KUBECONFIG", "", Honoured, "the kubeconfig file of the API server to read; before the one of the cluster that the daemon runs in, after VENI_MANIFEST_DIR"),
    v("VENI_STARTUP_TAINT", "", Honoured, "the key of a taint that the node registers with (kubelet --register-with-taints), removed once the first address is there; unset: none"),
    v("VENI_POLICY_WAIT_MILLIS", "2000", Honoured, "milliseconds that an ADD waits for its pod's labels; then its last known rule set, else nothing but its own node, 0 to 60000"),
    v("VENI_ESTABLISHED_FLOWS", "rejudge", Honoured, "what a change of policy does to established flows: rejudge or keep"),
    v("VENI_INSTANCE_METADATA", "open", Honoured, "instance metadata: open, or closed for pods that no rule opens it for"),
    v("VENI_DENIED_EVENTS", "true", Honoured, "Kubernetes events for pods whose traffic is denied, one a pod and peer at most every minute; nothing with VENI_FLOW_EVENTS=none"),
    v("VENI_FLOW_EVENTS", "all", Honoured, "which new flows venictl observe is told: all, denied or none"),
    v("VENI_SERVICE_CIDRS", "", Honoured, "the cluster's Service ranges, one a family; unset: those of its ServiceCIDR objects (Kubernetes 1.33), where it has them. An isolated pod's packet to an address in them that no Service has (yet) is refused"),
    v("VENI_NODE_PORT_RANGE", "30000-32767", Honoured, "the cluster's node ports (the API server's --service-node-port-range): an isolated pod's packet to one on its own node that no Service has (yet) is refused"),
    v("VENI_PROVIDER", "aws", Honoured, "the cloud: aws, or sim:<socket> for a simulator"),
    v("VENI_SIM_INSTANCE", "", Honoured, "the instance that this daemon runs on, with VENI_PROVIDER=sim:…"),
];

/// The variable of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

/// The known name nearest to `name`, if it is near enough to be meant.
pub(super) fn nearest(name: &str, most: usize) -> Option<&'static str> {
    let distances = VARIABLES.iter().map(|variable| (distance(name, variable.name), variable.name));
    distances.filter(|(distance, _)| *distance <= most).min().map(|(_, name)| name)
}

/// Levenshtein's distance between two names, letters of either case being equal at no cost but never the same name.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(!x.eq_ignore_ascii_case(&y));
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_meanings_are_there() {
        for (i, variable) in VARIABLES.iter().enumerate() {
            assert!(!variable.meaning.is_empty(), "{}", variable.name);
            assert!(
                VARIABLES[i + 1..].iter().all(|other| other.name != variable.name),
                "{}",
                variable.name
            );
        }
    }

    /// What the table says of values is what the daemon does with them.
    #[test]
    fn the_values_that_are_warned_about_or_refused_are_the_stated_ones() {
        let read = |name: &str, value: &str| {
            let vars = [(name.to_owned(), value.to_owned())];
            let errors = crate::config::Config::from_vars(vars.clone().into_iter()).err();
            let warnings = crate::config::Config::warnings(vars.into_iter());
            let named = |variable: &String| variable == name;
            if errors.iter().flatten().any(|error| named(&error.variable)) {
                "refused"
            } else if warnings.iter().any(|warning| named(&warning.variable)) {
                "warned"
            } else {
                "fine"
            }
        };
        for variable in VARIABLES {
            let Some(values) = variable.unsupported_values() else { continue };
            let value = if values == "set" { "x" } else { values.as_str() };
            assert_eq!(read(variable.name, value), variable.support.word(), "{}", variable.name);
            assert_eq!(read(variable.name, variable.default), "fine", "{}", variable.name);
        }
    }

    #[test]
    fn the_nearest_name_is_found_when_it_is_near() {
        for (name, most, expect) in [
            ("VENI_MAXPODS", 4, Some("VENI_MAX_PODS")),
            ("ENABLE_IPV6", 2, Some("ENABLE_IPv6")),
            ("WARM_IP_TARGETS", 2, Some("WARM_IP_TARGET")),
            ("KUBERNETES_SERVICE_HOST", 2, None),
            ("PATH", 2, None),
        ] {
            assert_eq!(nearest(name, most), expect, "{name}");
        }
    }
}
