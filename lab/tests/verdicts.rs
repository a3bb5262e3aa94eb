//! Policy with real sockets: what the oracle says of the systematic cases, and that nothing slips through at a pod's
//! start.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it saw"
)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddrV4},
    sync::Arc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use veni_lab::{
    Lab, LabConfig, Pod, PodSpec,
    lab::Pending,
    ns,
    traffic::{
        intruder::Intruder,
        reach::{Listeners, Target, Transport, reach},
    },
};
use veni_policy::{
    object::Protocol,
    oracle::systematic::{self, Case, PORTS, cases, matrix},
};
use veni_provider::sim::SimConfig;

/// How many cases a person wants, for a glance; all of them unless it is set. As many are judged, however long it takes.
const CASES: &str = "VENI_LAB_POLICY_CASES";
/// All there are.
const ALL: usize = 230;

fn lab(test: &str) -> Option<Lab> {
    if let Some(missing) = ns::missing_feature() {
        println!("SKIPPED: {missing}");
        return None;
    }
    let mut config = LabConfig::two_nodes(&format!("{test}-{}", std::process::id()));
    config.ec2 = SimConfig::instant();
    Some(Lab::up(&config.with_env("WARM_IP_TARGET", "16")).unwrap())
}

// --- the systematic cases -----------------------------------------------------------------------------------------

/// The pods of the cases: nine that are always there, and those that some cases create.
fn names() -> Vec<(&'static str, &'static str)> {
    let nine = systematic::NAMESPACES.into_iter().flat_map(|n| systematic::PODS.map(|p| (n, p)));
    nine.chain([("x", "d"), ("y-2", "a"), ("y-2", "b"), ("w", "a")]).collect()
}

/// The pods, on the nodes in turn. The cases' manifests take the place of the lab's own.
fn pods(lab: &Lab) -> BTreeMap<(String, String), Pod> {
    let mut pods = BTreeMap::new();
    for ((namespace, name), node) in names().into_iter().zip(lab.nodes().iter().cycle()) {
        let pod = lab.add(&node.name, &PodSpec::new(namespace, name)).unwrap();
        pods.insert((namespace.to_owned(), name.to_owned()), pod);
    }
    for pod in pods.values() {
        lab.cluster.remove_pod(&pod.spec).unwrap();
        lab.cluster.remove_namespace(&pod.spec.namespace).unwrap();
    }
    pods
}

fn transport(protocol: Protocol) -> Transport {
    Transport::named(protocol.as_str()).unwrap()
}

/// A state of a case as one file: its pods are on the lab's nodes.
fn manifest(state: &[Value], pods: &BTreeMap<(String, String), Pod>) -> String {
    let items = state.iter().cloned().map(|mut item| {
        if item["kind"] == "Pod" {
            let field = |name: &str| item["metadata"][name].as_str().unwrap().to_owned();
            let pod = &pods[&(field("namespace"), field("name"))];
            item["metadata"]["uid"] = json!(pod.sandbox.uid());
            item["spec"]["nodeName"] = json!(pod.node.name);
        }
        item
    });
    json!({"apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>()}).to_string()
}

/// Probes every pair of a state, all at once; says which differ from the oracle.
fn differences(
    state: &[Value],
    pods: &BTreeMap<(String, String), Pod>,
    transports: &[Transport],
) -> (usize, Vec<String>) {
    let cells = matrix(state).unwrap();
    let probed = |cell: &&systematic::Cell| transports.contains(&transport(cell.protocol));
    let mut of_source: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for cell in cells.iter().filter(probed) {
        of_source.entry(&cell.from).or_default().push(cell);
    }
    let differences = thread::scope(|scope| {
        let probing: Vec<_> = of_source
            .into_iter()
            .map(|(from, cells)| {
                scope.spawn(move || {
                    let target = |cell: &&systematic::Cell| {
                        let IpAddr::V4(address) = cell.address else { panic!("the lab has IPv4") };
                        let to = SocketAddrV4::new(address, cell.port);
                        let transport = transport(cell.protocol);
                        Target { transport, to, expected: cell.allowed }
                    };
                    let targets: Vec<_> = cells.iter().map(target).collect();
                    let worked = reach(&pods[from].namespace, &targets).unwrap();
                    let wrong = cells.iter().zip(worked).filter(|(c, worked)| c.allowed != *worked);
                    let say = |(cell, worked): (&&systematic::Cell, bool)| {
                        let word = if worked { "works" } else { "does not" };
                        let ((fns, f), (tns, t)) = (&cell.from, &cell.to);
                        format!(
                            "{fns}/{f} → {tns}/{t} {}/{} {word}",
                            cell.port,
                            cell.protocol.as_str()
                        )
                    };
                    wrong.map(say).collect::<Vec<_>>()
                })
            })
            .collect();
        probing.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    (cells.iter().filter(probed).count(), differences)
}

/// The cases that are run: all, or as many as are asked for, spread over all of them.
fn chosen(all: &[Case]) -> Vec<Case> {
    assert_eq!(all.len(), ALL, "say how many cases there are now");
    let wanted = match std::env::var(CASES) {
        Err(_) => ALL,
        Ok(number) => match number.parse() {
            Ok(wanted @ 1..=ALL) => wanted,
            _ => panic!("{CASES}={number}: a number from 1 to {ALL}"),
        },
    };
    // A stride that has no divisor in common with their number visits every one, far from the last.
    let stride = (ALL / 3..).find(|stride| gcd(*stride, ALL) == 1).unwrap();
    (0..wanted).map(|n| all[n * stride % ALL].clone()).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[test]
fn real_sockets_reach_what_the_oracle_says() {
    let Some(lab) = lab("cyclonus") else { return };
    let pods = pods(&lab);
    let transports = Transport::available();
    if !transports.contains(&Transport::Sctp) {
        println!("this kernel has no SCTP sockets: TCP and UDP are probed");
    }
    let ports: Vec<_> =
        transports.iter().flat_map(|transport| PORTS.map(|port| (*transport, port))).collect();
    let places: Vec<_> = pods.values().map(|pod| &pod.namespace).collect();
    let _listeners = Listeners::start(&places, &ports).unwrap();
    let addresses = |namespace: &str, name: &str| {
        let pod = &pods[&(namespace.to_owned(), name.to_owned())];
        vec![IpAddr::V4(pod.added.address)]
    };
    let cases = chosen(&cases(&addresses));
    let (mut states, mut probes, mut wrong) = (0, 0, Vec::new());
    for case in &cases {
        for (number, state) in case.states.iter().enumerate() {
            lab.cluster.apply("state.yaml", &manifest(state, &pods)).unwrap();
            lab.settle().unwrap();
            let (probed, differences) = differences(state, &pods, &transports);
            (states, probes) = (states + 1, probes + probed);
            let say = |d: String| format!("{}, state {number}: {d}", case.name);
            wrong.extend(differences.into_iter().map(say));
        }
    }
    println!("{} cases of {ALL}, {states} states, {probes} paths", cases.len());
    assert!(
        wrong.is_empty(),
        "{} paths differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
    assert!(states >= cases.len() && probes > states, "too few to say anything");
}

// --- the first packet ---------------------------------------------------------------------------------------------

const PORT: u16 = 8080;

/// A policy that isolates the pods of `app` in both directions and lets only TCP to port 1 through.
fn isolates(app: &str) -> Value {
    let ports = json!([{"protocol": "TCP", "port": 1}]);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "lab", "name": format!("isolate-{app}")},
        "spec": {
            "podSelector": {"matchLabels": {"app": app}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": ports}], "egress": [{"ports": ports}],
        },
    })
}

/// A pod whose process sends before there is a link.
fn sending(lab: &Lab, spec: &PodSpec, targets: &[SocketAddrV4]) -> (Pending, Intruder) {
    let node = Arc::clone(lab.node("node-1").unwrap());
    let (namespace, sandbox) = lab.sandbox_of(spec, &node.name).unwrap();
    let intruder = Intruder::start(&namespace, targets).unwrap();
    (Pending { name: spec.lab_name(), spec: spec.clone(), node, namespace, sandbox }, intruder)
}

/// Servers on both nodes: an open one, and one that is isolated.
struct Servers {
    open: Vec<SocketAddrV4>,
    isolated: Vec<SocketAddrV4>,
    at_open: Listeners,
    at_isolated: Listeners,
}

impl Servers {
    fn start(lab: &Lab) -> Self {
        let add = |app: &str| -> Vec<Pod> {
            let of = |node: &str| {
                let spec = PodSpec::called(&format!("{app}-{node}")).label("app", app);
                lab.add(node, &spec).unwrap()
            };
            ["node-1", "node-2"].map(of).into()
        };
        let (open, isolated) = (add("open"), add("isolated"));
        let policies = json!({"apiVersion": "v1", "kind": "List", "items": [isolates("isolated"), isolates("caged")]});
        lab.cluster.apply("policies.yaml", &policies.to_string()).unwrap();
        lab.settle().unwrap();
        let listen = |pods: &[Pod]| {
            let places: Vec<_> = pods.iter().map(|pod| &pod.namespace).collect();
            Listeners::start(&places, &[(Transport::Tcp, PORT), (Transport::Udp, PORT)]).unwrap()
        };
        let addresses = |pods: &[Pod]| -> Vec<_> {
            pods.iter().map(|pod| SocketAddrV4::new(pod.added.address, PORT)).collect()
        };
        Self {
            open: addresses(&open),
            isolated: addresses(&isolated),
            at_open: listen(&open),
            at_isolated: listen(&isolated),
        }
    }
}

#[test]
fn no_packet_of_a_pod_is_ahead_of_its_policy() {
    let Some(lab) = lab("first") else { return };
    let servers = Servers::start(&lab);
    let everyone = [servers.open.clone(), servers.isolated.clone()].concat();

    // One that may not send, and one that may: the second shows that the first would have been seen.
    for round in 0..5 {
        let caged = PodSpec::called(&format!("caged-{round}")).label("app", "caged");
        let (pending, intruder) = sending(&lab, &caged, &everyone);
        let before = (servers.at_open.arrived(), servers.at_isolated.arrived());
        assert_eq!(intruder.sent(), 0, "there was a route before the ADD");
        lab.wire(pending).unwrap();
        assert!(intruder.wait_for(500, Duration::from_secs(10)), "the pod does not send");
        drop(intruder);
        thread::sleep(Duration::from_millis(20));
        let after = (servers.at_open.arrived(), servers.at_isolated.arrived());
        assert_eq!(after, before, "round {round}: packets of a caged pod have arrived");

        let free = PodSpec::called(&format!("free-{round}")).label("app", "free");
        let (pending, intruder) = sending(&lab, &free, &everyone);
        lab.wire(pending).unwrap();
        assert!(intruder.wait_for(200, Duration::from_secs(10)), "the pod does not send");
        drop(intruder);
        thread::sleep(Duration::from_millis(20));
        assert!(servers.at_open.arrived() > after.0, "nothing of a free pod has arrived");
        assert_eq!(servers.at_isolated.arrived(), after.1, "an isolated pod was reached");
    }
}

/// A pod that nobody has told the daemon of is closed to all but its own node.
#[test]
fn a_pod_without_labels_sends_nothing() {
    let Some(lab) = lab("unknown") else { return };
    let servers = Servers::start(&lab);
    let spec = PodSpec::called("unknown").label("app", "free");
    let (pending, intruder) = sending(&lab, &spec, &servers.open);
    lab.cluster.remove_pod(&spec).unwrap();
    lab.settle().unwrap();
    let before = servers.at_open.arrived();
    let (node, sandbox) = (Arc::clone(&pending.node), pending.sandbox.clone());
    let added = node.runtime.add(&sandbox).unwrap();
    println!("the ADD took {:?}", added.elapsed);
    assert!(intruder.wait_for(500, Duration::from_secs(10)), "the pod does not send");
    assert_eq!(servers.at_open.arrived(), before, "packets of an unknown pod have arrived");

    // Its labels come late: it is open from then on.
    lab.cluster.put_pod(&spec, &sandbox.uid(), &node.name, Some(added.address)).unwrap();
    lab.settle().unwrap();
    assert!(intruder.wait_for(200, Duration::from_secs(10)), "the pod does not send any more");
    drop(intruder);
    thread::sleep(Duration::from_millis(20));
    assert!(servers.at_open.arrived() > before, "a pod whose labels came late stays closed");
    node.runtime.del(&sandbox).unwrap();
    pending.namespace.unbind().unwrap();
}
