//! What is open without any policy: pods, Services, the world outside; and how fast.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{bail, ensure};
use tokio::time::{Instant, sleep};

use super::{
    PATIENCE, PORTS, Part, Test,
    api::Cluster,
    judge::Outcome,
    objects::{NAMESPACE, Role, SERVICE, SERVICE_PORT, pod_name},
    probe::{Answer, Question, What},
    stage::{Node, Stage},
};

/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(200);
/// Questions until both of two back ends are expected to have answered: one of them has not with a chance of 2^-24.
const MANY: usize = 25;

/// A path that a client asks along, and who is to answer.
#[derive(Debug, Clone)]
pub(super) struct Path {
    /// The client's number.
    pub(super) from: usize,
    pub(super) what: What,
    pub(super) to: String,
    /// In words: `node-1 → node-2`.
    pub(super) told: String,
    /// The pod that answers; `None`: any.
    pub(super) by: Option<String>,
    /// The address that it sees; `None`: any.
    pub(super) seen: Option<IpAddr>,
}

pub(super) async fn check(
    cluster: &impl Cluster,
    stage: &Stage,
    test: &Test,
    outcome: &mut Outcome,
) {
    let settle = Duration::from_secs(test.settle_secs);
    let (own, others) = between_pods(stage, PORTS[0]);
    outcome.record("pod to pod on one node", open(cluster, &own, settle).await);
    if others.is_empty() {
        outcome.skip("pod to pod across nodes", "one node is tested only");
    } else {
        outcome.record("pod to pod across nodes", open(cluster, &others, settle).await);
    }
    if test.skip.contains(&Part::Service) {
        outcome.skip("Services", "left out by --skip service");
    } else {
        let address = SocketAddr::new(stage.service.address, SERVICE_PORT).to_string();
        let seen = back_ends(cluster, stage, &address, settle).await;
        outcome.record("pod to Service", seen);
        let name =
            to_clients(stage, What::Tcp, &format!("{SERVICE}.{NAMESPACE}.svc:{SERVICE_PORT}"));
        outcome.record("pod to Service by its name", open(cluster, &name, settle).await);
        match node_ports(stage) {
            Some(paths) => outcome.record("pod to NodePort", open(cluster, &paths, settle).await),
            None => outcome.skip(
                "pod to NodePort",
                "the nodes have no InternalIP, or the Service no node port",
            ),
        }
        let api = to_clients(stage, What::Connect, "kubernetes.default.svc:443");
        outcome.record("pod to API server", open(cluster, &api, settle).await);
    }
    if test.external == "none" {
        outcome.skip("pod to outside", "left out by --external none");
    } else {
        let outside = to_clients(stage, What::Connect, &test.external);
        outcome.record("pod to outside", open(cluster, &outside, settle).await);
    }
}

/// Every client's paths to the server of its own node, and to the others'.
pub(super) fn between_pods(stage: &Stage, port: u16) -> (Vec<Path>, Vec<Path>) {
    let mut paths = Vec::new();
    for (from, client) in stage.nodes.iter().enumerate() {
        for (to, server) in stage.nodes.iter().enumerate() {
            for what in [What::Tcp, What::Udp] {
                let address = SocketAddr::new(server.server, port).to_string();
                let told = format!("{} → {}", client.name, server.name);
                let by = Some(pod_name(Role::Server, to));
                let seen = Some(client.client);
                paths.push((from == to, Path { from, what, to: address, told, by, seen }));
            }
        }
    }
    let (own, others): (Vec<_>, Vec<_>) = paths.into_iter().partition(|(is_own, _)| *is_own);
    let paths = |of: Vec<(bool, Path)>| of.into_iter().map(|(_, path)| path).collect();
    (paths(own), paths(others))
}

/// From every client to the same place.
pub(super) fn to_clients(stage: &Stage, what: What, to: &str) -> Vec<Path> {
    let path = |(from, node): (usize, &Node)| Path {
        from,
        what,
        to: to.to_owned(),
        told: format!("{} → {to}", node.name),
        by: None,
        seen: None,
    };
    stage.nodes.iter().enumerate().map(path).collect()
}

fn node_ports(stage: &Stage) -> Option<Vec<Path>> {
    let port = u16::try_from(stage.service.node_port?).ok()?;
    let nodes = stage.nodes.iter().map(|node| Some(SocketAddr::new(node.address?, port)));
    let addresses: Vec<_> = nodes.collect::<Option<_>>()?;
    Some(addresses.iter().flat_map(|to| to_clients(stage, What::Tcp, &to.to_string())).collect())
}

/// Asks until all paths are open, for so long at most.
pub(super) async fn open(
    cluster: &impl Cluster,
    paths: &[Path],
    settle: Duration,
) -> anyhow::Result<String> {
    let start = Instant::now();
    loop {
        let failures = failures(cluster, paths, PATIENCE).await?;
        if failures.is_empty() {
            let first = start.elapsed() < AGAIN + PATIENCE;
            let after =
                if first { String::new() } else { format!(", after {}", seconds(start.elapsed())) };
            return Ok(format!("{} of {} paths{after}", paths.len(), paths.len()));
        }
        if start.elapsed() > settle {
            bail!("{} of {} paths: {}", failures.len(), paths.len(), few(&failures));
        }
        sleep(AGAIN).await;
    }
}

/// What is wrong with each path that is not open.
pub(super) async fn failures(
    cluster: &impl Cluster,
    paths: &[Path],
    time: Duration,
) -> anyhow::Result<Vec<String>> {
    let mut failures = Vec::new();
    for (path, answer) in answers(cluster, paths, time).await? {
        if let Err(why) = path.judge(&answer) {
            failures.push(format!("{} over {}: {why}", path.told, path.protocol()));
        }
    }
    Ok(failures)
}

/// Asks along all paths, each client at once.
pub(super) async fn answers<'a>(
    cluster: &impl Cluster,
    paths: &'a [Path],
    time: Duration,
) -> anyhow::Result<Vec<(&'a Path, Answer)>> {
    let clients: BTreeSet<usize> = paths.iter().map(|path| path.from).collect();
    let mut all = Vec::new();
    for client in clients {
        let own: Vec<_> = paths.iter().filter(|path| path.from == client).collect();
        let questions: Vec<_> =
            own.iter().map(|path| Question::new(path.what, &path.to, time)).collect();
        let answers = cluster.ask(&pod_name(Role::Client, client), &questions).await?;
        all.extend(own.into_iter().zip(answers));
    }
    Ok(all)
}

/// Every client hears of every server, over TCP and UDP.
async fn back_ends(
    cluster: &impl Cluster,
    stage: &Stage,
    to: &str,
    settle: Duration,
) -> anyhow::Result<String> {
    let every: BTreeSet<String> =
        (0..stage.nodes.len()).map(|number| pod_name(Role::Server, number)).collect();
    let mut paths = Vec::new();
    for what in [What::Tcp, What::Udp] {
        let of = to_clients(stage, what, to);
        paths.extend(of.iter().flat_map(|path| std::iter::repeat_n(path.clone(), MANY)));
    }
    // The proxies learn of the servers a moment after these are ready.
    open(cluster, &to_clients(stage, What::Udp, to), settle).await?;
    open(cluster, &to_clients(stage, What::Tcp, to), settle).await?;
    let mut heard = BTreeSet::new();
    for (path, answer) in answers(cluster, &paths, PATIENCE).await? {
        match answer {
            Answer::Pod(identity) => heard.insert(identity.pod),
            other => bail!("{} over {}: {}", path.told, path.protocol(), other.told()),
        };
    }
    ensure!(heard == every, "{heard:?} answered, of {every:?}");
    Ok(format!("{} of {} answers, by all {} servers", paths.len(), paths.len(), every.len()))
}

pub(super) async fn perf(
    cluster: &impl Cluster,
    stage: &Stage,
    test: &Test,
    outcome: &mut Outcome,
) {
    let to = |number: usize| SocketAddr::new(stage.nodes[number].server, PORTS[0]).to_string();
    let mut pairs = vec![("on one node", to(0))];
    if stage.nodes.len() > 1 {
        pairs.push(("across nodes", to(1)));
    }
    let time = Duration::from_secs(test.perf_secs);
    for (pair, to) in pairs {
        for (name, what) in [
            ("latency", What::Latency),
            ("new connections", What::Connections),
            ("throughput", What::Throughput),
        ] {
            let question = [Question::new(what, &to, time)];
            let answers = cluster.ask(&pod_name(Role::Client, 0), &question).await;
            let seen = answers.and_then(|answers| match &answers[..] {
                [Answer::Nothing(why)] => bail!("{why}"),
                [answer] => Ok(answer.told()),
                _ => bail!("no answer"),
            });
            outcome.record(&format!("{name} {pair}"), seen);
        }
    }
}

// === impl Path ===

impl Path {
    pub(super) const fn protocol(&self) -> &'static str {
        if matches!(self.what, What::Udp) { "UDP" } else { "TCP" }
    }

    fn judge(&self, answer: &Answer) -> Result<(), String> {
        match answer {
            Answer::Pod(identity) => {
                if let Some(by) = self.by.as_ref().filter(|by| **by != identity.pod) {
                    return Err(format!("answered by {} instead of {by}", identity.pod));
                }
                match self.seen.filter(|seen| *seen != identity.peer.ip()) {
                    Some(seen) => Err(format!("{seen} is seen as {}", identity.peer.ip())),
                    None => Ok(()),
                }
            }
            Answer::Connected => Ok(()),
            other => Err(other.told()),
        }
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn told(&self) -> String {
        match self {
            Self::Pod(identity) => format!("answered by {}", identity.pod),
            Self::Connected => "connected".to_owned(),
            Self::Times(times) => format!(
                "p50 {:.0} µs, p99 {:.0} µs of {}",
                times.p50_micros, times.p99_micros, times.count
            ),
            Self::BitsPerSec(speed) => format!("{:.2} Gbit/s", speed / 1e9),
            Self::Nothing(why) => why.clone(),
        }
    }
}

/// The first of many sentences: a line is for a person.
pub(super) fn few(sentences: &[String]) -> String {
    const FEW: usize = 3;
    let more = sentences.len().saturating_sub(FEW);
    let shown = sentences[..sentences.len() - more].join("; ");
    if more == 0 { shown } else { format!("{shown}; and {more} more") }
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
