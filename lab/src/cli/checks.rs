//! What the demo checks: who reaches whom, and which address is seen there.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use veni_lab::{
    Lab, Node, Pod,
    ns::Namespace,
    traffic::{self, Server},
    vpc::{INTERNET_HOST, PEER_HOST},
};

use super::print;

/// Where every server listens.
const PORT: u16 = 8080;
/// The NodePort and the Service that the lab's rules lead to a pod, as kube-proxy's do.
const NODE_PORT: u16 = 30080;
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 20, 0, 10), 80);

/// All checks and their outcomes.
#[derive(Debug, Default)]
pub(super) struct Checks {
    rows: Vec<(String, bool, String)>,
}

/// A node with the pods that represent it.
pub(super) struct Actors {
    node: Arc<Node>,
    on_primary: Pod,
    on_secondary: Pod,
    _servers: Vec<Server>,
}

// === impl Checks ===

impl Checks {
    /// Keeps an outcome: what was seen, or why it failed.
    pub(super) fn record(&mut self, name: &str, outcome: anyhow::Result<String>) {
        let passed = outcome.is_ok();
        let seen = outcome.unwrap_or_else(|error| format!("{error:#}"));
        print::note(format!("{} {name}: {seen}", print::verdict(passed)));
        self.rows.push((name.to_owned(), passed, seen));
    }

    /// Whether there were checks and every one held.
    pub(super) fn all_held(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|(_, passed, _)| *passed)
    }

    /// The table at the end.
    pub(super) fn summary(&self) {
        let mut table = print::table(["check", "result", "what was seen"]);
        for (name, passed, seen) in &self.rows {
            let seen = seen.lines().next().unwrap_or_default();
            table.add_row([name.as_str(), if *passed { "ok" } else { "FAILED" }, seen]);
        }
        print::line(table);
        let failed = self.rows.iter().filter(|(_, passed, _)| !passed).count();
        print::line(format!("{} of {} checks held", self.rows.len() - failed, self.rows.len()));
    }
}

// === impl Actors ===

impl Actors {
    /// One pod on the node's primary ENI and one on a secondary one, both with servers, and a server on the node.
    pub(super) fn choose(lab: &Lab, node: &Arc<Node>) -> anyhow::Result<Self> {
        let view = node.inspect()?;
        let primary = view.enis.iter().find(|eni| eni.primary).and_then(|eni| eni.id.clone());
        let enis: BTreeMap<Ipv4Addr, _> =
            view.addresses.into_iter().map(|a| (a.address, Some(a.eni))).collect();
        let mut pods: Vec<_> =
            lab.pods().into_iter().filter(|pod| pod.node.name == node.name).collect();
        // The first of each kind, whatever the order of the names.
        pods.sort_by_key(|pod| pod.added.address);
        let find = |on_primary: bool| {
            let mut of_node = pods.iter();
            of_node
                .find(|pod| {
                    enis.get(&pod.added.address).is_some_and(|eni| (*eni == primary) == on_primary)
                })
                .cloned()
        };
        let on_primary =
            find(true).with_context(|| format!("no pod on {}'s primary ENI", node.name))?;
        let on_secondary =
            find(false).with_context(|| format!("no pod on a secondary ENI of {}", node.name))?;
        let places = [&on_primary.namespace, &on_secondary.namespace, &node.namespace];
        let servers =
            places.into_iter().map(|place| Server::start(place, PORT)).collect::<Result<_, _>>()?;
        Ok(Self { node: Arc::clone(node), on_primary, on_secondary, _servers: servers })
    }

    fn pods(&self) -> [&Pod; 2] {
        [&self.on_primary, &self.on_secondary]
    }
}

/// Everything about traffic, on two nodes.
pub(super) fn traffic(lab: &Lab, checks: &mut Checks) -> anyhow::Result<()> {
    let [first, second] = lab.nodes() else { anyhow::bail!("the demo wants two nodes") };
    let (a, b) = (Actors::choose(lab, first)?, Actors::choose(lab, second)?);
    let _outside = (Server::start(&lab.vpc.internet, PORT)?, Server::start(&lab.vpc.peer, PORT)?);
    for actors in [&a, &b] {
        let other = if actors.node.name == a.node.name { &b } else { &a };
        publish(actors, other)?;
    }

    checks.record("every pod answers both nodes' pings", every_pod_answers(lab));
    checks.record("pod ↔ pod, same node", pairs(&[(a.pods(), a.pods()), (b.pods(), b.pods())]));
    checks.record("pod ↔ pod, across nodes", pairs(&[(a.pods(), b.pods()), (b.pods(), a.pods())]));
    checks.record("pod → node, own and other", pods_to_nodes(&a, &b));
    checks.record("node → pod, own and other", nodes_to_pods(&a, &b));
    for actors in [&a, &b] {
        checks
            .record(&format!("{}: pod → internet, SNATed", actors.node.name), to_internet(actors));
        checks.record(
            &format!("{}: NodePort → pod on a secondary ENI", actors.node.name),
            node_port(lab, actors),
        );
    }
    for (from, to) in [(&a, &b), (&b, &a)] {
        let name =
            format!("{}: pod on a secondary ENI → Service → {}", from.node.name, to.node.name);
        checks.record(&name, service(from));
        let name = format!("{}: peered network → pod on a secondary ENI", from.node.name);
        checks.record(&name, from_peer(lab, from));
    }
    checks.record("EC2's source/destination check dropped nothing", nothing_dropped(lab));
    checks.record("a pod's forged source is dropped on its node", forged_source(&a, &b));
    for actors in [&a, &b] {
        actors.node.namespace.nft("delete table ip lab-kube-proxy\n")?;
    }
    Ok(())
}

/// What kube-proxy would do: NodePort to the local pod with the client's address kept (`externalTrafficPolicy:
/// Local`), and a Service whose one endpoint is on the other node.
fn publish(actors: &Actors, other: &Actors) -> anyhow::Result<()> {
    let (local, remote) = (actors.on_secondary.added.address, other.on_secondary.added.address);
    let rules = format!(
        "table ip lab-kube-proxy {{\n chain prerouting {{\n type nat hook prerouting priority dstnat;\n\
         ip daddr {service} tcp dport {port} dnat to {remote}:{PORT}\n\
         fib daddr type local tcp dport {NODE_PORT} dnat to {local}:{PORT}\n }}\n}}\n",
        service = SERVICE.ip(),
        port = SERVICE.port(),
    );
    Ok(actors.node.namespace.nft(&rules)?)
}

fn every_pod_answers(lab: &Lab) -> anyhow::Result<String> {
    let mut answers = 0;
    for node in lab.nodes() {
        for pod in lab.pods() {
            traffic::ping(&node.namespace, pod.added.address)?;
            answers += 1;
        }
    }
    Ok(format!("{answers} of {answers} echo replies"))
}

fn pairs(groups: &[([&Pod; 2], [&Pod; 2])]) -> anyhow::Result<String> {
    let mut paths = 0;
    for (from, to) in groups {
        for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (from, to))) {
            if from.name != to.name {
                seen_as(&from.namespace, to.added.address, from.added.address)?;
                paths += 1;
            }
        }
    }
    Ok(format!("{paths} paths, TCP, UDP and ping; the pod's own address seen"))
}

fn pods_to_nodes(a: &Actors, b: &Actors) -> anyhow::Result<String> {
    for pod in a.pods().into_iter().chain(b.pods()) {
        for node in [&a.node, &b.node] {
            seen_as(&pod.namespace, node.address, pod.added.address)?;
        }
    }
    Ok("8 paths; the pod's own address seen".to_owned())
}

fn nodes_to_pods(a: &Actors, b: &Actors) -> anyhow::Result<String> {
    for pod in a.pods().into_iter().chain(b.pods()) {
        for node in [&a.node, &b.node] {
            seen_as(&node.namespace, pod.added.address, node.address)?;
        }
    }
    Ok("8 paths; the node's primary address seen".to_owned())
}

fn to_internet(actors: &Actors) -> anyhow::Result<String> {
    for pod in actors.pods() {
        seen_as(&pod.namespace, INTERNET_HOST, actors.node.address)?;
    }
    Ok(format!("seen as {}, the node's primary address", actors.node.address))
}

fn node_port(lab: &Lab, actors: &Actors) -> anyhow::Result<String> {
    let to = SocketAddrV4::new(actors.node.address, NODE_PORT);
    for (client, address) in [(&lab.vpc.internet, INTERNET_HOST), (&lab.vpc.peer, PEER_HOST)] {
        let seen = traffic::tcp_seen(client, to)?;
        ensure!(*seen.ip() == address, "the pod saw {seen} instead of {address}");
    }
    Ok("from internet and peer; the pod sees the client's address".to_owned())
}

fn service(from: &Actors) -> anyhow::Result<String> {
    for pod in from.pods() {
        let seen = traffic::tcp_seen(&pod.namespace, SERVICE)?;
        ensure!(
            *seen.ip() == pod.added.address,
            "the other pod saw {seen} instead of {}",
            pod.added.address
        );
    }
    Ok(format!("{SERVICE} answered; the other pod sees {}", from.on_secondary.added.address))
}

fn from_peer(lab: &Lab, actors: &Actors) -> anyhow::Result<String> {
    let before = lab.vpc.drops()?.source_check;
    for pod in [&actors.on_secondary, &actors.on_primary] {
        seen_as(&lab.vpc.peer, pod.added.address, PEER_HOST)?;
    }
    let dropped = lab.vpc.drops()?.source_check - before;
    ensure!(dropped == 0, "{dropped} replies left by the wrong ENI");
    Ok(format!(
        "{PEER_HOST} → {}: answered by the pod's own ENI",
        actors.on_secondary.added.address
    ))
}

fn nothing_dropped(lab: &Lab) -> anyhow::Result<String> {
    let drops = lab.vpc.drops()?;
    ensure!(
        drops.source_check == 0,
        "{} packets: {}",
        drops.source_check,
        drops.offenders.join(", ")
    );
    ensure!(
        drops.no_public_address == 0,
        "{} packets without a public address",
        drops.no_public_address
    );
    Ok("0 packets".to_owned())
}

/// A pod that claims another pod's address: nothing arrives, and the filter has counted it.
fn forged_source(a: &Actors, b: &Actors) -> anyhow::Result<String> {
    let forged = a.on_secondary.added.address;
    let counted =
        || anyhow::Ok(a.node.inspect()?.drops.get("source_address").copied().unwrap_or(0));
    let before = counted()?;
    let namespace = &a.on_primary.namespace;
    namespace.ip(&format!("addr add {forged}/32 dev eth0\n"))?;
    let sent = traffic::send_from(namespace, forged, SocketAddrV4::new(b.node.address, PORT));
    namespace.ip(&format!("addr del {forged}/32 dev eth0\n"))?;
    let answered = sent?;
    ensure!(!answered, "an answer came to {} for {forged}", a.on_primary.name);
    let dropped = counted()? - before;
    ensure!(dropped > 0, "no answer, but no drop was counted either");
    Ok(format!("no answer; {dropped} dropped and counted as source_address"))
}

/// TCP, UDP and ping from `from` to `to` work, and `expected` is the source seen there.
fn seen_as(from: &Namespace, to: Ipv4Addr, expected: Ipv4Addr) -> anyhow::Result<()> {
    let target = SocketAddrV4::new(to, PORT);
    for (protocol, seen) in
        [("TCP", traffic::tcp_seen(from, target)?), ("UDP", traffic::udp_seen(from, target)?)]
    {
        ensure!(
            *seen.ip() == expected,
            "{protocol} from {}: {to} saw {seen} instead of {expected}",
            from.name()
        );
    }
    traffic::ping(from, to)?;
    Ok(())
}
