//! Random clusters: objects as manifests, security groups, and how both change.
//!
//! Names, labels, addresses and ports come from small pools, so that selectors hit, blocks cut through pods and
//! policies overlap. A pod's address follows from its name, but finished pods carry the address of another pod, and so do
//! those whose object is behind. Priorities of ClusterNetworkPolicies never tie.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};
use veni_core::id::SecurityGroupId;
use veni_policy::change::PodKey;
use veni_policy::oracle::manifest::{cluster_network_policy, namespace, network_policy, node, pod};
use veni_policy::security_group::{
    GroupPeer, GroupProtocol, GroupRule, GroupState, ResolvedGroup, SecurityGroups,
};

/// One thing that happens to a cluster.
#[derive(Clone)]
pub(crate) enum Change {
    /// An object is created or replaced.
    Apply(Value),
    /// An object is deleted, if it is there.
    Delete(Value),
    /// Security groups are resolved anew.
    Groups(SecurityGroups),
    /// The node gives a pod its addresses, which its status may not have yet.
    Attach(PodKey, Vec<IpAddr>),
    /// The node's pod is gone.
    Detach(PodKey),
}

impl fmt::Debug for Change {
    /// Manifests as JSON in one line, to be copied into a regression.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply(manifest) => write!(f, "Apply {manifest}"),
            Self::Delete(manifest) => {
                write!(f, "Delete {} {}", manifest["kind"], manifest["metadata"])
            }
            Self::Groups(groups) => write!(f, "{groups:?}"),
            Self::Attach(pod, addresses) => write!(f, "Attach {pod} {addresses:?}"),
            Self::Detach(pod) => write!(f, "Detach {pod}"),
        }
    }
}

/// A cluster's history: each batch of changes takes effect at once.
pub(crate) type History = Vec<Vec<Change>>;

const NAMESPACES: u8 = 3;
const PODS: u8 = 3;
const NODES: u8 = 2;
const POLICIES: u8 = 3;

/// Addresses that are no pod's: inside and outside of the pods' blocks, nodes', the internet's.
pub(crate) fn outside() -> Vec<IpAddr> {
    let v6 = |last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]);
    let mut outside = vec![
        IpAddr::from([10, 0, 0, 200]),
        IpAddr::from([8, 8, 8, 8]),
        // Amazon DNS, which security groups do not filter.
        IpAddr::from([169, 254, 169, 253]),
        v6(0x00ff),
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    ];
    outside.extend((0..NODES).flat_map(node_addresses));
    outside
}

/// The addresses that the first node has itself while a history goes on: those of its object, not all of them at all
/// times, and one that its object does not name and pods' blocks hold.
pub(crate) fn own_addresses(batch: usize) -> BTreeSet<IpAddr> {
    let [v4, v6] = node_addresses(0);
    let unnamed = outside()[0];
    match batch % 5 {
        2 => [v6, unnamed].into(),
        4 => [v4].into(),
        _ => [v4, v6, unnamed].into(),
    }
}

fn node_addresses(index: u8) -> [IpAddr; 2] {
    [IpAddr::from([192, 168, 0, index]), IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, index.into()])]
}

fn pod_addresses(namespace: u8, index: u8) -> [IpAddr; 2] {
    let last = u16::from(namespace) << 8 | u16::from(index);
    [IpAddr::from([10, 0, namespace, index]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])]
}

/// Ports at and around every number that a rule can name.
pub(crate) const PORTS: [u16; 11] = [1, 53, 79, 80, 81, 443, 444, 500, 8080, 8081, 65535];

fn namespace_name() -> impl Strategy<Value = u8> {
    0..NAMESPACES
}

fn labels() -> impl Strategy<Value = Value> {
    let label = |key: &'static str| {
        option::weighted(0.7, select(vec!["0", "0", "1"]))
            .prop_map(move |value| value.map(|value| (key, value)))
    };
    (label("a"), label("b"), label("c")).prop_map(|(a, b, c)| {
        let pairs = [a, b, c].into_iter().flatten();
        Value::Object(pairs.map(|(key, value)| (key.to_owned(), json!(value))).collect())
    })
}

fn requirement(keys: Vec<&'static str>, values: Vec<&'static str>) -> impl Strategy<Value = Value> {
    let all = values.clone();
    let listed = (select(vec!["In", "NotIn"]), subsequence(values, 1..=all.len()));
    let plain = select(vec!["Exists", "DoesNotExist"]).prop_map(|operator| (operator, vec![]));
    let operator = prop_oneof![3 => listed, 2 => plain];
    (select(keys), operator).prop_map(|(key, (operator, values))| {
        let mut requirement = json!({"key": key, "operator": operator});
        if !values.is_empty() {
            requirement["values"] = json!(values);
        }
        requirement
    })
}

fn selector_over(
    keys: Vec<&'static str>,
    values: Vec<&'static str>,
) -> impl Strategy<Value = Value> {
    let by_labels = (select(keys.clone()), select(values.clone()))
        .prop_map(|(key, value)| json!({"matchLabels": {key: value}}));
    let by_expressions = vec(requirement(keys, values), 1..3)
        .prop_map(|requirements| json!({"matchExpressions": requirements}));
    prop_oneof![
        6 => Just(json!({})),
        4 => by_labels,
        3 => by_expressions,
        1 => Just(json!({"matchLabels": {}, "matchExpressions": []})),
    ]
}

fn selector() -> impl Strategy<Value = Value> {
    selector_over(vec!["a", "b", "c"], vec!["0", "1"])
}

fn namespace_selector() -> impl Strategy<Value = Value> {
    let by_name = selector_over(vec!["kubernetes.io/metadata.name"], vec!["n0", "n1", "n2"]);
    prop_oneof![2 => selector(), 1 => by_name]
}

/// A selector that cannot be read.
fn bad_selector() -> impl Strategy<Value = Value> {
    select(vec![
        json!({"matchLabels": {"a": 1}}),
        json!({"matchExpressions": [{"key": "a", "operator": "Near", "values": ["0"]}]}),
        json!({"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}),
        json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["0"]}]}),
        json!({"matchlabels": {"a": "0"}}),
        json!({"matchLabels": {"a": null}}),
        json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": [null]}]}),
        json!({"matchExpressions": [null]}),
    ])
}

/// A block around a pod's, a node's or nobody's address.
fn block() -> impl Strategy<Value = (IpAddr, u8)> {
    let of_pod =
        (0..NAMESPACES, 0..PODS).prop_map(|(namespace, pod)| pod_addresses(namespace, pod));
    let of_node = (0..NODES).prop_map(node_addresses);
    let of_nobody = Just([outside()[1], outside()[4]]);
    let address = prop_oneof![6 => of_pod, 1 => of_node, 1 => of_nobody];
    let host_bits = select(vec![0_u8, 1, 2, 8, 9, 16, 32, 32]);
    (address, host_bits, any::<bool>()).prop_map(|(addresses, host_bits, v6)| {
        let address = addresses[usize::from(v6)];
        // The widest is the whole family.
        let bits = if v6 { 128 } else { 32 };
        let prefix = if host_bits == 32 { 0 } else { bits - host_bits };
        (address, prefix)
    })
}

fn cidr((address, prefix): (IpAddr, u8)) -> String {
    ipnet::IpNet::new(address, prefix).expect("a prefix of the family").trunc().to_string()
}

fn ip_block() -> impl Strategy<Value = Value> {
    // Exceptions are cut out around addresses of the block itself: of the block's address with longer prefixes, or of
    // any block that lies inside.
    (block(), vec((block(), 1..9_u8), 0..3)).prop_map(|(outer, inner)| {
        let whole: ipnet::IpNet = cidr(outer).parse().expect("a block");
        let excepts: Vec<String> = inner
            .into_iter()
            .filter_map(|(other, longer)| {
                let candidate: ipnet::IpNet = cidr(other).parse().expect("a block");
                let own =
                    cidr((outer.0, outer.1.saturating_add(longer).min(whole.max_prefix_len())));
                let own: ipnet::IpNet = own.parse().expect("a block");
                [candidate, own].into_iter().find(|net| whole.contains(net) && whole != *net)
            })
            .map(|net| net.to_string())
            .collect();
        let mut block = json!({"cidr": whole.to_string()});
        if !excepts.is_empty() {
            block["except"] = json!(excepts);
        }
        json!({"ipBlock": block})
    })
}

fn policy_peer() -> impl Strategy<Value = Value> {
    let pods = (option::of(namespace_selector()), option::of(selector())).prop_map(
        |(namespaces, pods)| match (namespaces, pods) {
            (None, None) => json!({"podSelector": {}}),
            (Some(namespaces), None) => json!({"namespaceSelector": namespaces}),
            (None, Some(pods)) => json!({"podSelector": pods}),
            (Some(namespaces), Some(pods)) => {
                json!({"namespaceSelector": namespaces, "podSelector": pods})
            }
        },
    );
    let bad = prop_oneof![
        select(vec![
            json!({}),
            json!({"galaxy": {}}),
            json!({"ipBlock": {"cidr": "10.0.0.0/33"}}),
            json!({"ipBlock": {"cidr": "10.0.0.0/24", "except": ["11.0.0.0/25"]}}),
            json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}),
            Value::Null,
        ]),
        bad_selector().prop_map(|selector| json!({"podSelector": selector})),
    ];
    prop_oneof![16 => pods, 10 => ip_block(), 1 => bad]
}

fn protocol() -> impl Strategy<Value = &'static str> {
    select(vec!["TCP", "UDP", "SCTP"])
}

fn policy_port() -> impl Strategy<Value = Value> {
    let number = select(vec![53_u16, 80, 81, 443, 8080]).prop_map(|port| json!({"port": port}));
    let name = select(vec!["web", "alt"]).prop_map(|name| json!({"port": name}));
    let range = select(vec![(1, 65535), (80, 80), (80, 443), (81, 500), (2, 79), (444, 8080)])
        .prop_map(|(first, last)| json!({"port": first, "endPort": last}));
    let bad = select(vec![
        json!({"port": 0}),
        json!({"port": 81, "endPort": 80}),
        json!({"port": "web", "endPort": 90}),
        json!({"endPort": 90}),
        json!({"port": "80"}),
        json!({"port": 80, "protocol": "tcp"}),
        Value::Null,
    ]);
    let port = prop_oneof![6 => number, 4 => name, 6 => range, 4 => Just(json!({})), 1 => bad];
    (port, option::of(protocol())).prop_map(|(mut port, protocol)| {
        let open = port.is_object() && port["protocol"].is_null();
        if let Some(protocol) = protocol.filter(|_| open) {
            port["protocol"] = json!(protocol);
        }
        port
    })
}

/// Absent, null, empty or a list.
fn list(
    item: impl Strategy<Value = Value> + 'static,
    most: usize,
) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        4 => Just(None),
        2 => Just(Some(json!([]))),
        1 => Just(Some(Value::Null)),
        9 => vec(item, 1..=most).prop_map(|items| Some(Value::Array(items))),
    ]
}

fn fields(entries: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    let set = entries.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(set.collect::<Map<_, _>>())
}

fn policy_rule(peers: &'static str) -> impl Strategy<Value = Value> {
    let good = (list(policy_peer(), 3), list(policy_port(), 7))
        .prop_map(move |(list, ports)| fields([(peers, list), ("ports", ports)]));
    prop_oneof![24 => good, 1 => select(vec![json!({"action": "Deny"}), Value::Null])]
}

fn a_network_policy() -> impl Strategy<Value = Value> {
    let types = select(vec![
        None,
        None,
        None,
        Some(json!([])),
        Some(json!(["Ingress"])),
        Some(json!(["Egress"])),
        Some(json!(["Ingress"])),
        Some(json!(["Egress"])),
        Some(json!(["Ingress", "Egress"])),
        Some(json!(["Egress", "Ingress"])),
        Some(json!(["Sideways"])),
    ]);
    let pods = prop_oneof![30 => selector(), 1 => bad_selector(), 1 => Just(Value::Null)];
    let rules = (list(policy_rule("from"), 3), list(policy_rule("to"), 3));
    (namespace_name(), 0..POLICIES, pods, types, rules).prop_map(
        |(namespace, name, pods, types, (ingress, egress))| {
            let (namespace, name) = (format!("n{namespace}"), format!("q{name}"));
            let mut policy = network_policy(&namespace, &name, &pods, None, None);
            policy["spec"] = fields([
                ("podSelector", Some(pods)),
                ("policyTypes", types),
                ("ingress", ingress),
                ("egress", egress),
            ]);
            policy
        },
    )
}

fn subject() -> impl Strategy<Value = Value> {
    prop_oneof![
        namespace_selector().prop_map(|selector| json!({"namespaces": selector})),
        (namespace_selector(), selector()).prop_map(
            |(namespaces, pods)| json!({"pods": {"namespaceSelector": namespaces, "podSelector": pods}})
        ),
    ]
}

fn cluster_peer(direction: &'static str) -> impl Strategy<Value = Value> {
    let networks = vec(block().prop_map(cidr), 1..3).prop_map(|nets| json!({"networks": nets}));
    let nodes = selector().prop_map(|selector| json!({"nodes": selector}));
    let bad = select(vec![
        json!({}),
        json!({"galaxies": {}}),
        json!({"domainNames": ["example.com"]}),
        json!({"networks": ["10.0.0.0/64"]}),
        json!({"namespaces": {}, "pods": {"podSelector": {}}}),
        json!({"namespaces": {"matchLabels": {"a": null}}}),
        json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": null}}}}),
        Value::Null,
    ]);
    let egress = u32::from(direction == "to");
    prop_oneof![
        80 => subject(),
        1 + 48 * egress => networks,
        1 + 24 * egress => nodes,
        1 => bad,
    ]
}

fn cluster_protocol() -> impl Strategy<Value = Value> {
    let destination = prop_oneof![
        select(vec![53_u16, 80, 81, 443, 8080]).prop_map(|number| json!({"number": number})),
        select(vec![(1, 65535), (80, 443), (81, 500), (2, 79), (444, 8080)])
            .prop_map(|(start, end)| json!({"range": {"start": start, "end": end}})),
    ];
    let of_protocol = (select(vec!["tcp", "udp", "sctp"]), destination)
        .prop_map(|(protocol, port)| json!({protocol: {"destinationPort": port}}));
    let named = select(vec!["web", "alt"]).prop_map(|name| json!({"destinationNamedPort": name}));
    let bad = select(vec![
        json!({}),
        json!({"icmp": {}}),
        json!({"tcp": {"destinationPort": {"number": 0}}}),
        json!({"tcp": {"destinationPort": {"range": {"start": 9, "end": 8}}}}),
    ]);
    prop_oneof![36 => of_protocol, 14 => named, 1 => bad]
}

fn cluster_rule(direction: &'static str) -> impl Strategy<Value = Value> {
    let action = prop_oneof![
        30 => Just("Accept"), 20 => Just("Deny"), 14 => Just("Pass"), 1 => Just("Shrug")
    ];
    let protocols = option::of(vec(cluster_protocol(), 1..3));
    (action, vec(cluster_peer(direction), 1..3), protocols).prop_map(
        move |(action, peers, protocols)| {
            fields([
                ("action", Some(json!(action))),
                (direction, Some(json!(peers))),
                ("protocols", protocols.map(Value::Array)),
            ])
        },
    )
}

fn a_cluster_network_policy() -> impl Strategy<Value = Value> {
    let tier = prop_oneof![16 => Just("Admin"), 16 => Just("Baseline"), 1 => Just("Middle")];
    let subject = prop_oneof![32 => subject(), 1 => Just(json!({"everyone": {}}))];
    let rules = (vec(cluster_rule("from"), 0..4), vec(cluster_rule("to"), 0..4));
    (0..POLICIES, tier, 0..300_u32, subject, rules).prop_map(
        |(name, tier, priority, subject, (ingress, egress))| {
            // No two names share a priority. An invalid policy is at priority 0, where valid ones are not, and only
            // name 0 is ever invalid, so that those do not tie either.
            let (tier, subject) = match name {
                0 => (tier, subject),
                _ if tier == "Middle" => ("Admin", json!({"namespaces": {}})),
                _ if subject.get("everyone").is_some() => (tier, json!({"namespaces": {}})),
                _ => (tier, subject),
            };
            let priority = 1 + priority * u32::from(POLICIES) + u32::from(name);
            let (ingress, egress) = (json!(ingress), json!(egress));
            cluster_network_policy(&format!("c{name}"), tier, priority, &subject, &ingress, &egress)
        },
    )
}

fn container_ports() -> impl Strategy<Value = Value> {
    let port = |name: &'static str| {
        (option::of(protocol()), select(vec![80_u16, 81, 443])).prop_map(move |(protocol, port)| {
            let mut entry = json!({"name": name, "containerPort": port});
            if let Some(protocol) = protocol {
                entry["protocol"] = json!(protocol);
            }
            entry
        })
    };
    (option::of(port("web")), option::of(port("alt")))
        .prop_map(|(web, alt)| web.into_iter().chain(alt).collect())
}

fn group_ids() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(vec!["sg-0", "sg-1", "sg-2", "sg-3"], 1..3)
}

fn a_pod() -> impl Strategy<Value = Value> {
    // Which of its addresses it has.
    let families =
        select(vec![[true, false], [true, false], [false, true], [true, true], [false, false]]);
    let kind = prop_oneof![
        24 => Just("own"), 3 => Just("host"), 2 => Just("Succeeded"), 1 => Just("Failed"),
        3 => Just("stale"),
    ];
    let bad = group_ids().prop_map(|mut ids| {
        ids.push("none");
        ids
    });
    let null = Just(vec!["null"]);
    let groups = prop_oneof![80 => Just(vec![]), 16 => group_ids(), 2 => bad, 1 => null];
    let place = (namespace_name(), 0..PODS, 0..NODES);
    let age = (any::<bool>(), select(vec![None, Some(0), Some(1)]), select(vec![None, Some("u")]));
    (place, kind, families, labels(), container_ports(), groups, age).prop_map(
        |((namespace, index, node), kind, families, labels, ports, groups, age)| {
            let addresses = match kind {
                "own" => pod_addresses(namespace, index),
                "host" => node_addresses(node),
                _ => pod_addresses(namespace, (index + 1) % PODS),
            };
            let had = addresses.into_iter().zip(families).filter(|(_, has)| *has);
            let ips: Vec<IpAddr> = had.map(|(address, _)| address).collect();
            let (namespace, name) = (format!("n{namespace}"), format!("p{index}"));
            let mut pod = pod(&namespace, &name, &labels, &ips, &ports);
            pod["spec"]["nodeName"] = json!(format!("node{node}"));
            if kind == "host" {
                pod["spec"]["hostNetwork"] = json!(true);
            } else if kind == "stale" {
                let (deleting, created, uid) = age;
                let time = |second: u8| format!("2025-11-21T09:30:0{second}Z");
                pod["metadata"]["deletionTimestamp"] = json!(deleting.then(|| time(2)));
                pod["metadata"]["creationTimestamp"] = json!(created.map(time));
                pod["metadata"]["uid"] = json!(uid);
            } else if kind != "own" {
                pod["status"]["phase"] = json!(kind);
            }
            if groups == ["null"] {
                pod["metadata"]["annotations"] = json!({"vpc.amazonaws.com/security-groups": null});
            } else if !groups.is_empty() {
                pod["metadata"]["annotations"] =
                    json!({"vpc.amazonaws.com/security-groups": groups.join(",")});
            }
            pod
        },
    )
}

fn a_namespace() -> impl Strategy<Value = Value> {
    (namespace_name(), labels()).prop_map(|(name, labels)| namespace(&format!("n{name}"), &labels))
}

fn a_node() -> impl Strategy<Value = Value> {
    (0..NODES, labels())
        .prop_map(|(index, labels)| node(&format!("node{index}"), &labels, &node_addresses(index)))
}

fn a_security_group_policy() -> impl Strategy<Value = Value> {
    let pods = prop_oneof![8 => selector(), 1 => bad_selector()];
    let accounts = prop_oneof![8 => Just(Value::Null), 1 => selector()];
    (namespace_name(), 0..2_u8, pods, accounts, group_ids()).prop_map(
        |(namespace, name, pods, accounts, ids)| {
            let ids = json!({"groupIds": ids});
            let spec =
                json!({"podSelector": pods, "serviceAccountSelector": accounts, "securityGroups": ids});
            json!({
                "apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
                "metadata": {"namespace": format!("n{namespace}"), "name": format!("s{name}")},
                "spec": spec,
            })
        },
    )
}

fn object() -> impl Strategy<Value = Value> {
    prop_oneof![
        40 => a_pod(),
        12 => a_namespace(),
        8 => a_node(),
        36 => a_network_policy(),
        20 => a_cluster_network_policy(),
        1 => a_security_group_policy(),
    ]
}

fn group_id(index: u8) -> SecurityGroupId {
    format!("sg-{index}").parse().expect("an id")
}

fn group_rule() -> impl Strategy<Value = GroupRule> {
    let ports = select(vec![(0, 65535), (80, 80), (80, 443), (0x0800, 0x08ff), (0x0800, 0x0800)]);
    let protocol = prop_oneof![
        1 => Just(GroupProtocol::Any),
        1 => select(vec![6, 17, 132, 1, 58, 47]).prop_map(GroupProtocol::Number),
    ];
    let cidr = block().prop_map(|block| GroupPeer::Cidr(cidr(block).parse().expect("a block")));
    let peer = prop_oneof![2 => cidr, 1 => (0..4_u8).prop_map(|id| GroupPeer::Group(group_id(id)))];
    (0..3_u8, protocol, ports, peer).prop_map(|(id, protocol, (first, last), peer)| {
        let (first, last) = match protocol {
            GroupProtocol::Any | GroupProtocol::Number(47) => (0, 65535),
            GroupProtocol::Number(_) => (first, last),
        };
        GroupRule { id: format!("sgr-{id}"), protocol, first, last, peer }
    })
}

fn resolved_group() -> impl Strategy<Value = (GroupState, Vec<GroupRule>, Vec<GroupRule>)> {
    let state = prop_oneof![
        20 => Just(GroupState::Resolved),
        1 => Just(GroupState::Unresolved { reason: "it does not exist".to_owned() }),
        1 => Just(GroupState::Pending { reason: "no answer".to_owned() }),
    ];
    (state, vec(group_rule(), 0..4), vec(group_rule(), 0..4))
}

fn groups() -> impl Strategy<Value = SecurityGroups> {
    let member = prop_oneof![
        (0..NAMESPACES, 0..PODS, 0..2_usize)
            .prop_map(|(namespace, pod, family)| pod_addresses(namespace, pod)[family]),
        select(outside()),
    ];
    let members = vec((0..4_u8, member), 0..4);
    (vec(option::weighted(0.95, resolved_group()), 4), members).prop_map(|(list, pairs)| {
        let mut groups = SecurityGroups::default();
        for (index, group) in (0..).zip(list) {
            let id = group_id(index);
            if let Some((state, ingress, egress)) = group {
                // A rule is known by its id within a direction; EC2's ids are unique.
                let known = |rules: Vec<GroupRule>, direction: &str| {
                    let named = rules.into_iter().map(|rule| GroupRule {
                        id: format!("{}{index}{direction}", rule.id),
                        ..rule
                    });
                    named.collect()
                };
                let (ingress, egress) = (known(ingress, "i"), known(egress, "e"));
                groups.groups.insert(id.clone(), ResolvedGroup { id, state, ingress, egress });
            }
        }
        let mut members: BTreeMap<SecurityGroupId, BTreeSet<IpAddr>> = BTreeMap::new();
        for (index, address) in pairs {
            members.entry(group_id(index)).or_default().insert(address);
        }
        groups.members = members;
        groups
    })
}

fn attachment() -> impl Strategy<Value = Change> {
    (namespace_name(), 0..PODS, select(vec![1, 2]), any::<bool>()).prop_map(
        |(namespace, index, families, attach)| {
            let pod = PodKey::new(format!("n{namespace}"), format!("p{index}"));
            let addresses = pod_addresses(namespace, index)[..families].to_vec();
            if attach { Change::Attach(pod, addresses) } else { Change::Detach(pod) }
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        12 => object().prop_map(Change::Apply),
        5 => object().prop_map(Change::Delete),
        1 => groups().prop_map(Change::Groups),
        2 => attachment(),
    ]
}

/// The same history, but that every other egress rule of ClusterNetworkPolicies names nodes, too.
pub(crate) fn naming_nodes(history: History) -> History {
    let selectors = [json!({}), json!({"matchLabels": {"a": "0"}})];
    let named = |change: Change| {
        let Change::Apply(mut object) = change else { return change };
        if object["kind"] == "ClusterNetworkPolicy" {
            let rules = object["spec"].get_mut("egress").and_then(Value::as_array_mut);
            for (place, rule) in rules.into_iter().flatten().enumerate().step_by(2) {
                let peers = rule.get_mut("to").and_then(Value::as_array_mut);
                peers.into_iter().for_each(|to| to.push(json!({"nodes": selectors[place / 2]})));
            }
        }
        Change::Apply(object)
    };
    history.into_iter().map(|batch| batch.into_iter().map(named).collect()).collect()
}

/// A cluster that is built in one batch and then changes, `changes` times.
pub(crate) fn history(changes: usize) -> impl Strategy<Value = History> {
    let start = (vec(object().prop_map(Change::Apply), 0..28), option::weighted(0.9, groups()))
        .prop_map(|(mut start, groups)| {
            start.extend(groups.map(Change::Groups));
            start
        });
    let batches = vec(vec(change(), 0..4), changes..=changes);
    (start, batches).prop_map(|(start, batches)| {
        let mut history = vec![start];
        history.extend(batches);
        history
    })
}
