//! The 48 cases of Kubernetes' `test/e2e/network/netpol`, with expectations written by hand from their text, so that
//! the oracle itself is judged. Every case runs on all nine pods, over IPv4, IPv6 and both at once.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};
use veni_policy::oracle::manifest::{expression, labels, namespace, network_policy, pod};
use veni_policy::oracle::systematic::{NAMESPACES, PODS, served};

use crate::support::{Expect, check_state, put, remove};

/// Which addresses the pods have.
#[derive(Debug, Clone, Copy)]
enum Family {
    V4,
    V6,
    Both,
}

/// The cluster of one case.
struct Cluster {
    family: Family,
    objects: Vec<Value>,
}

impl Cluster {
    fn new(family: Family) -> Self {
        let mut cluster = Self { family, objects: Vec::new() };
        for name in NAMESPACES {
            cluster.put(namespace(name, &json!({})));
            for pod in PODS {
                cluster.pod(name, pod, &json!({"pod": pod}));
            }
        }
        cluster
    }

    fn put(&mut self, object: Value) {
        put(&mut self.objects, object);
    }

    fn pod(&mut self, namespace: &str, name: &str, labels: &Value) {
        let ips = self.addresses(namespace, name);
        self.put(pod(namespace, name, labels, &ips, &served()));
    }

    fn addresses(&self, namespace: &str, name: &str) -> Vec<IpAddr> {
        let [namespace, name] = [namespace, name].map(|text| text.as_bytes()[0]);
        let v4 = IpAddr::from([10, 1, namespace, name]);
        let last = u16::from_be_bytes([namespace, name]);
        let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]);
        match self.family {
            Family::V4 => vec![v4],
            Family::V6 => vec![v6],
            Family::Both => vec![v4, v6],
        }
    }

    /// One ipBlock for each address of a pod: /`narrow` bits of each taken out of /`wide` when asked for.
    fn blocks(&self, namespace: &str, name: &str, wide: Option<u8>) -> Value {
        let own = |ip: &IpAddr| IpNet::from(*ip).to_string();
        let block = |ip: &IpAddr| match wide {
            None => json!({"ipBlock": {"cidr": own(ip)}}),
            Some(bits) => {
                let cidr = IpNet::new(*ip, bits).expect("bits of an address").trunc().to_string();
                json!({"ipBlock": {"cidr": cidr, "except": [own(ip)]}})
            }
        };
        self.addresses(namespace, name).iter().map(block).collect()
    }

    #[track_caller]
    fn check(&self, protocol: &str, port: u16, expect: Expect<'_>) {
        check_state(&self.objects, protocol, port, expect);
    }

    #[track_caller]
    fn tcp(&self, port: u16, expect: Expect<'_>) {
        self.check("TCP", port, expect);
    }
}

/// Runs a case in each family.
fn each_family(case: impl Fn(Cluster)) {
    for family in [Family::V4, Family::V6, Family::Both] {
        case(Cluster::new(family));
    }
}

fn all() -> Value {
    json!({})
}

fn named(name: &str) -> Value {
    labels(&json!({"pod": name}))
}

fn ns(name: &str) -> Value {
    labels(&json!({"kubernetes.io/metadata.name": name}))
}

fn not_x() -> Value {
    expression("kubernetes.io/metadata.name", "NotIn", &["x"])
}

/// One rule from these peers.
fn from(peers: Value) -> Value {
    json!([{"from": peers}])
}

fn to(peers: Value) -> Value {
    json!([{"to": peers}])
}

/// An ingress policy in x.
fn ingress(name: &str, selector: &Value, rules: Value) -> Value {
    network_policy("x", name, selector, Some(rules), None)
}

/// An egress policy in x.
fn egress(name: &str, selector: &Value, rules: Value) -> Value {
    network_policy("x", name, selector, None, Some(rules))
}

const OPEN: Expect<'static> = &[];
const X_TAKES_NOTHING: Expect<'static> = &[("*", "x", false)];
const XA_TAKES_NOTHING: Expect<'static> = &[("*", "x/a", false)];
const XA_TAKES_Y_ONLY: Expect<'static> = &[("*", "x/a", false), ("y", "x/a", true)];
const XA_TAKES_YA_ONLY: Expect<'static> = &[("*", "x/a", false), ("y/a", "x/a", true)];

fn default_deny_ingress(protocol: &str) {
    each_family(|mut cluster| {
        cluster.put(ingress("deny-ingress", &all(), json!([])));
        cluster.check(protocol, 80, X_TAKES_NOTHING);
    });
}

fn by_ports(protocol: &str) {
    each_family(|mut cluster| {
        let ports = json!([{"protocol": protocol, "port": 81}]);
        let rules = json!([{"from": [{"namespaceSelector": ns("y")}], "ports": ports}]);
        cluster.put(ingress("allow-81", &named("a"), rules));
        cluster.check(protocol, 81, XA_TAKES_Y_ONLY);
    });
}

fn by_pod_in_another_namespace(protocol: &str) {
    each_family(|mut cluster| {
        let peer = json!({"namespaceSelector": ns("y"), "podSelector": named("a")});
        cluster.put(ingress("from-y-a", &named("a"), from(json!([peer]))));
        cluster.check(protocol, 80, XA_TAKES_YA_ONLY);
    });
}

#[test]
fn default_deny_ingress_tcp() {
    default_deny_ingress("TCP");
}

#[test]
fn default_deny_ingress_udp() {
    default_deny_ingress("UDP");
}

#[test]
fn default_deny_ingress_sctp() {
    default_deny_ingress("SCTP");
}

#[test]
fn default_deny_all() {
    each_family(|mut cluster| {
        let nothing = || Some(json!([]));
        cluster.put(network_policy("x", "deny-all", &all(), nothing(), nothing()));
        cluster.tcp(80, &[("*", "x", false), ("x", "*", false)]);
    });
}

#[test]
fn allows_pods_of_the_own_namespace_by_selector() {
    each_family(|mut cluster| {
        let rules = from(json!([{"podSelector": named("b")}]));
        cluster.put(ingress("from-x-b", &named("a"), rules));
        cluster.tcp(80, &[("*", "x/a", false), ("x/b", "x/a", true)]);
    });
}

#[test]
fn allows_ingress_for_one_target_of_a_closed_namespace() {
    each_family(|mut cluster| {
        cluster.put(ingress("deny-all", &all(), json!([])));
        let rules = from(json!([{"podSelector": {}, "namespaceSelector": {}}]));
        cluster.put(ingress("allow-all-to-a", &named("a"), rules));
        cluster.tcp(80, &[("*", "x", false), ("*", "x/a", true)]);
    });
}

#[test]
fn allows_pods_of_all_namespaces() {
    each_family(|mut cluster| {
        let rules = from(json!([{"namespaceSelector": {"matchLabels": {}}}]));
        cluster.put(ingress("from-any", &named("a"), rules));
        cluster.tcp(80, OPEN);
    });
}

#[test]
fn allows_one_other_namespace() {
    each_family(|mut cluster| {
        let rules = from(json!([{"namespaceSelector": ns("y")}]));
        cluster.put(ingress("from-y", &named("a"), rules));
        cluster.tcp(80, XA_TAKES_Y_ONLY);
    });
}

#[test]
fn pod_selector_with_match_expressions() {
    each_family(|mut cluster| {
        let rules = from(json!([{"podSelector": expression("pod", "In", &["b"])}]));
        cluster.put(ingress("from-x-b", &named("a"), rules));
        cluster.tcp(80, &[("*", "x/a", false), ("x/b", "x/a", true)]);
    });
}

#[test]
fn namespace_selector_with_match_expressions() {
    each_family(|mut cluster| {
        let selector = expression("kubernetes.io/metadata.name", "In", &["y"]);
        let rules = from(json!([{"namespaceSelector": selector}]));
        cluster.put(ingress("from-y", &named("a"), rules));
        cluster.tcp(80, XA_TAKES_Y_ONLY);
    });
}

#[test]
fn two_peers_mean_either() {
    each_family(|mut cluster| {
        let rules = from(json!([{"namespaceSelector": not_x()}, {"podSelector": named("b")}]));
        cluster.put(ingress("either", &named("a"), rules));
        cluster.tcp(80, &[("x/c", "x/a", false)]);
    });
}

#[test]
fn two_selectors_of_one_peer_mean_both() {
    each_family(|mut cluster| {
        let rules = from(json!([{"namespaceSelector": not_x(), "podSelector": named("b")}]));
        cluster.put(ingress("both", &named("a"), rules));
        cluster.tcp(80, &[("*", "x/a", false), ("y/b", "x/a", true), ("z/b", "x/a", true)]);
    });
}

#[test]
fn several_pods_in_several_namespaces() {
    each_family(|mut cluster| {
        let pods = expression("pod", "In", &["b", "c"]);
        let rules = from(json!([{"namespaceSelector": not_x(), "podSelector": pods}]));
        cluster.put(ingress("b-c", &named("a"), rules));
        let expect: Expect<'_> =
            &[("x", "x/a", false), ("y/a", "x/a", false), ("z/a", "x/a", false)];
        cluster.tcp(80, expect);
    });
}

#[test]
fn any_of_several_pod_selectors() {
    each_family(|mut cluster| {
        let rules = from(json!([{"podSelector": named("b")}, {"podSelector": named("c")}]));
        cluster.put(ingress("b-or-c", &named("a"), rules));
        cluster.tcp(80, &[("*", "x/a", false), ("x/b", "x/a", true), ("x/c", "x/a", true)]);
    });
}

#[test]
fn a_pod_in_another_namespace_tcp() {
    by_pod_in_another_namespace("TCP");
}

#[test]
fn a_pod_in_another_namespace_udp() {
    by_pod_in_another_namespace("UDP");
}

#[test]
fn a_pod_in_another_namespace_sctp() {
    by_pod_in_another_namespace("SCTP");
}

#[test]
fn by_ports_tcp() {
    by_ports("TCP");
}

#[test]
fn by_ports_udp() {
    by_ports("UDP");
}

#[test]
fn by_ports_sctp() {
    by_ports("SCTP");
}

#[test]
fn stacked_policies_add_up() {
    each_family(|mut cluster| {
        let rules = |port: u16| {
            let ports = json!([{"protocol": "TCP", "port": port}]);
            json!([{"from": [{"namespaceSelector": ns("y")}], "ports": ports}])
        };
        cluster.put(ingress("allow-81", &named("a"), rules(81)));
        cluster.tcp(81, XA_TAKES_Y_ONLY);
        cluster.tcp(80, XA_TAKES_NOTHING);
        cluster.put(ingress("allow-80", &named("a"), rules(80)));
        cluster.tcp(80, XA_TAKES_Y_ONLY);
        cluster.tcp(81, XA_TAKES_Y_ONLY);
    });
}

#[test]
fn allow_all() {
    each_family(|mut cluster| {
        cluster.put(ingress("allow-all", &labels(&json!({})), json!([{}])));
        cluster.tcp(80, OPEN);
        cluster.tcp(81, OPEN);
    });
}

#[test]
fn ingress_on_one_named_port() {
    each_family(|mut cluster| {
        let rules = json!([{"ports": [{"port": "serve-81-tcp"}]}]);
        cluster.put(ingress("named", &all(), rules));
        cluster.tcp(81, OPEN);
        cluster.tcp(80, X_TAKES_NOTHING);
    });
}

#[test]
fn ingress_from_a_namespace_on_one_named_port() {
    each_family(|mut cluster| {
        let ports = json!([{"protocol": "TCP", "port": "serve-80-tcp"}]);
        let rules = json!([{"from": [{"namespaceSelector": ns("y")}], "ports": ports}]);
        cluster.put(ingress("named", &named("a"), rules));
        cluster.tcp(80, XA_TAKES_Y_ONLY);
        cluster.tcp(81, XA_TAKES_NOTHING);
    });
}

#[test]
fn egress_on_one_named_port() {
    each_family(|mut cluster| {
        let rules = json!([{"ports": [{"port": "serve-80-tcp"}]}]);
        cluster.put(egress("named", &all(), rules));
        cluster.tcp(80, OPEN);
        cluster.tcp(81, &[("x", "*", false)]);
    });
}

#[test]
fn updated_policy() {
    each_family(|mut cluster| {
        cluster.put(ingress("mutates", &all(), json!([{}])));
        cluster.tcp(81, OPEN);
        cluster.put(ingress("mutates", &all(), json!([])));
        cluster.tcp(81, X_TAKES_NOTHING);
    });
}

#[test]
fn updated_namespace() {
    each_family(|mut cluster| {
        let selector = labels(&json!({"ns2": "updated"}));
        let rules = from(json!([{"namespaceSelector": selector}]));
        cluster.put(ingress("by-label", &named("a"), rules));
        cluster.tcp(80, XA_TAKES_NOTHING);
        cluster.put(namespace("y", &json!({"ns2": "updated"})));
        cluster.tcp(80, XA_TAKES_Y_ONLY);
    });
}

#[test]
fn updated_peer() {
    each_family(|mut cluster| {
        let both = json!({"pod": "b", "pod2": "updated"});
        let rules = from(json!([{"podSelector": labels(&both)}]));
        cluster.put(ingress("by-label", &named("a"), rules));
        cluster.tcp(80, XA_TAKES_NOTHING);
        cluster.pod("x", "b", &both);
        cluster.tcp(80, &[("*", "x/a", false), ("x/b", "x/a", true)]);
    });
}

#[test]
fn denies_other_namespaces() {
    each_family(|mut cluster| {
        cluster.put(ingress("own", &all(), from(json!([{"podSelector": {"matchLabels": {}}}]))));
        cluster.tcp(80, &[("y", "x", false), ("z", "x", false)]);
    });
}

#[test]
fn updated_target() {
    each_family(|mut cluster| {
        let selector = labels(&json!({"target": "isolated"}));
        cluster.put(ingress("deny", &selector, json!([])));
        cluster.tcp(80, OPEN);
        cluster.pod("x", "a", &json!({"pod": "a", "target": "isolated"}));
        cluster.tcp(80, XA_TAKES_NOTHING);
    });
}

#[test]
fn denies_egress_of_a_pod() {
    each_family(|mut cluster| {
        cluster.put(egress("deny", &named("a"), json!([])));
        cluster.tcp(80, &[("x/a", "*", false)]);
    });
}

#[test]
fn denies_egress_of_a_namespace() {
    each_family(|mut cluster| {
        cluster.put(egress("deny", &all(), json!([])));
        cluster.tcp(80, &[("x", "*", false)]);
    });
}

#[test]
fn ingress_and_egress_together() {
    each_family(|mut cluster| {
        let inward = from(json!([{"podSelector": named("b")}]));
        let outward = json!([{"ports": [{"port": 80}]}]);
        cluster.put(network_policy("x", "both", &named("a"), Some(inward), Some(outward)));
        cluster.tcp(80, &[("*", "x/a", false), ("x/b", "x/a", true)]);
        cluster.tcp(81, &[("*", "x/a", false), ("x/a", "*", false), ("x/b", "x/a", true)]);
    });
}

#[test]
fn egress_denied_at_the_client_although_the_server_allows() {
    each_family(|mut cluster| {
        let y_a = json!({"namespaceSelector": ns("y"), "podSelector": named("a")});
        cluster.put(egress("to-y-a", &named("a"), to(json!([y_a]))));
        let x_a = json!([{"namespaceSelector": ns("x"), "podSelector": named("a")}]);
        for (name, target) in [("on-y-a", "a"), ("on-y-b", "b")] {
            let rules = Some(from(x_a.clone()));
            cluster.put(network_policy("y", name, &named(target), rules, None));
        }
        let expect: Expect<'_> =
            &[("x/a", "*", false), ("*", "y/a", false), ("*", "y/b", false), ("x/a", "y/a", true)];
        cluster.tcp(80, expect);
    });
}

#[test]
fn egress_to_a_pod_in_another_namespace() {
    each_family(|mut cluster| {
        let peer = json!({"namespaceSelector": ns("y"), "podSelector": named("a")});
        cluster.put(egress("to-y-a", &named("a"), to(json!([peer]))));
        cluster.tcp(80, &[("x/a", "*", false), ("x/a", "y/a", true)]);
    });
}

#[test]
fn any_port_of_one_protocol() {
    each_family(|mut cluster| {
        let rules = json!([{"ports": [{"protocol": "TCP"}]}]);
        cluster.put(ingress("tcp", &named("a"), rules));
        cluster.tcp(80, OPEN);
        cluster.check("UDP", 80, XA_TAKES_NOTHING);
    });
}

#[test]
fn allow_all_beats_a_narrow_ingress_policy() {
    each_family(|mut cluster| {
        cluster.put(ingress("only-80", &all(), json!([{"ports": [{"port": 80}]}])));
        cluster.tcp(81, X_TAKES_NOTHING);
        cluster.put(ingress("all", &all(), json!([{}])));
        cluster.tcp(81, OPEN);
    });
}

#[test]
fn allow_all_beats_a_narrow_egress_policy() {
    each_family(|mut cluster| {
        cluster.put(egress("only-80", &all(), json!([{"ports": [{"port": 80}]}])));
        cluster.tcp(81, &[("x", "*", false)]);
        cluster.put(egress("all", &all(), json!([{}])));
        cluster.tcp(81, OPEN);
    });
}

#[test]
fn deleted_policies_are_no_longer_in_force() {
    each_family(|mut cluster| {
        let nothing = || Some(json!([]));
        let policy = network_policy("x", "deny-all", &all(), nothing(), nothing());
        cluster.put(policy.clone());
        cluster.tcp(80, &[("x", "*", false), ("*", "x", false)]);
        remove(&mut cluster.objects, &policy);
        cluster.tcp(80, OPEN);
    });
}

#[test]
fn egress_to_a_block() {
    each_family(|mut cluster| {
        let rules = to(cluster.blocks("y", "b", None));
        cluster.put(egress("block", &named("a"), rules));
        cluster.tcp(80, &[("x/a", "*", false), ("x/a", "y/b", true)]);
    });
}

#[test]
fn egress_to_a_block_with_an_exception() {
    each_family(|mut cluster| {
        let rules = to(cluster.blocks("x", "b", Some(4)));
        cluster.put(egress("block", &named("a"), rules));
        cluster.tcp(80, &[("x/a", "x/b", false)]);
    });
}

#[test]
fn an_exception_is_allowed_again_by_another_policy() {
    each_family(|mut cluster| {
        let rules = to(cluster.blocks("x", "b", Some(4)));
        cluster.put(egress("block", &named("a"), rules));
        cluster.tcp(80, &[("x/a", "x/b", false)]);
        let again = to(cluster.blocks("x", "b", None));
        let mut both = cluster.objects.clone();
        put(&mut both, egress("again", &named("a"), again.clone()));
        check_state(&both, "TCP", 80, OPEN);
        cluster.put(egress("block", &named("a"), again));
        cluster.tcp(80, &[("x/a", "*", false), ("x/a", "x/b", true)]);
    });
}

#[test]
fn directions_are_independent() {
    each_family(|mut cluster| {
        cluster.put(egress("allow-egress", &named("a"), json!([{}])));
        cluster.tcp(80, OPEN);
        cluster.put(ingress("deny-ingress", &named("a"), json!([])));
        cluster.tcp(80, XA_TAKES_NOTHING);
    });
}

#[test]
fn sctp_is_not_tcp() {
    each_family(|mut cluster| {
        cluster.put(ingress("deny", &all(), json!([])));
        let rules = json!([{"ports": [{"protocol": "SCTP", "port": 81}]}]);
        cluster.put(ingress("sctp-81", &named("a"), rules));
        cluster.tcp(81, X_TAKES_NOTHING);
        cluster.check("SCTP", 81, &[("*", "x", false), ("*", "x/a", true)]);
    });
}

#[test]
fn a_policy_of_sctp_isolates() {
    each_family(|mut cluster| {
        let rules = json!([{"ports": [{"protocol": "SCTP", "port": 80}]}]);
        cluster.put(ingress("sctp-80", &named("a"), rules));
        cluster.tcp(81, XA_TAKES_NOTHING);
    });
}

#[test]
fn udp_is_not_tcp() {
    each_family(|mut cluster| {
        let rules = json!([{"ports": [{"protocol": "UDP", "port": 81}]}]);
        cluster.put(ingress("udp-81", &named("a"), rules));
        cluster.tcp(81, XA_TAKES_NOTHING);
        cluster.check("UDP", 81, OPEN);
    });
}

#[test]
fn default_namespace_label_with_match_labels() {
    each_family(|mut cluster| {
        let rules = from(json!([{"namespaceSelector": ns("y")}]));
        cluster.objects.retain(|object| object["kind"] != "Namespace");
        cluster.put(ingress("from-y", &named("a"), rules));
        cluster.tcp(80, XA_TAKES_Y_ONLY);
    });
}

#[test]
fn default_namespace_label_with_match_expressions() {
    each_family(|mut cluster| {
        let selector = expression("kubernetes.io/metadata.name", "NotIn", &["y"]);
        cluster.put(egress("not-y", &named("a"), to(json!([{"namespaceSelector": selector}]))));
        cluster.tcp(80, &[("x/a", "y", false)]);
    });
}
