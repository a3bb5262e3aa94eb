//! Policies of the API server, switched on and off under traffic.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use veni_lab::account::Group;

use crate::{
    cluster::{PORT, Pod, SETTLE, Stage, dial_path, until},
    http,
    load::{Load, Stream},
    print::{Table, seconds, step},
};

const SERVER: &str = "guarded";
const FRIEND: &str = "friend";
const VISITOR: &str = "visitor";
/// Of each, so that there is one on each node.
const PODS: u32 = 2;
/// How often each policy is switched on and off.
const ROUNDS: usize = 3;
const GROUPED: &str = "grouped";
const GROUP: &str = "e2e";
/// The daemons ask EC2 for a known group's rules once a minute, spread by a tenth.
const REFRESH: Duration = Duration::from_secs(80);

/// What a connection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    /// Nobody answers: what a policy does.
    Dropped,
}

pub(crate) fn check(stage: &mut Stage, table: &mut Table) -> anyhow::Result<()> {
    step("policies on and off under traffic");
    let apps = [SERVER, FRIEND, VISITOR];
    stage.cluster.apply(&apps.map(|app| Stage::web(app, PODS)))?;
    apps.iter().try_for_each(|app| stage.rolled_out(app))?;
    let (servers, visitors) = (stage.pods(SERVER)?, stage.pods(VISITOR)?);
    let load = Load::start(friends(stage, &servers)?)?;
    let switched = |object: &Value| switch(stage, object, &visitors, &servers);
    table.record("a NetworkPolicy on and off", switched(&network_policy()));
    table.record("a ClusterNetworkPolicy on and off", switched(&cluster_network_policy()));
    table.record("policies on and off: traffic that they allow", load.stop().nothing_lost());
    table.record("a SecurityGroupPolicy", security_group(stage, &visitors));
    apps.iter().try_for_each(|app| stage.delete(app, &[]).map(drop))
}

/// From every friend to every server: what the policies allow.
fn friends(stage: &Stage, servers: &[Pod]) -> anyhow::Result<Vec<Stream>> {
    let friends = stage.pods(FRIEND)?;
    let pairs = friends.iter().flat_map(|from| servers.iter().map(move |to| (from, to)));
    let stream = |(from, to): (&Pod, &Pod)| Stream {
        name: format!("{} to {}", from.name, to.name),
        from: stage.cluster.control.host().clone(),
        to: (from.address, PORT).into(),
        path: dial_path("http", (to.address, PORT), "hostname"),
        kept: false,
    };
    Ok(pairs.map(stream).collect())
}

/// Whom the servers listen to: friends, and the kubelets' host (which probes them) by itself.
fn network_policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "friends-only"},
        "spec": {
            "podSelector": {"matchLabels": {"app": SERVER}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": FRIEND}}}]}],
        },
    })
}

fn cluster_network_policy() -> Value {
    let pods = |app: &str| {
        json!({"pods": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
            "podSelector": {"matchLabels": {"app": app}},
        }})
    };
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "no-visitors"},
        "spec": {
            "tier": "Admin", "priority": 10, "subject": pods(SERVER),
            "ingress": [{"name": "no-visitors", "action": "Deny", "from": [pods(VISITOR)]}],
        },
    })
}

/// Visitors reach the servers, while the policy is there none of them does, and then they do again.
fn switch(
    stage: &Stage,
    policy: &Value,
    visitors: &[Pod],
    servers: &[Pod],
) -> anyhow::Result<String> {
    let kind = policy["kind"].as_str().context("a kind")?;
    let name = policy["metadata"]["name"].as_str().context("a name")?;
    everywhere(stage, visitors, servers, Fate::Open).context("before the policy")?;
    let mut slowest = [Duration::ZERO; 2];
    for _ in 0..ROUNDS {
        stage.cluster.apply(std::slice::from_ref(policy))?;
        slowest[0] = slowest[0].max(becomes(stage, visitors, servers, Fate::Dropped)?);
        // It stays so.
        everywhere(stage, visitors, servers, Fate::Dropped).context("with the policy")?;
        stage.cluster.kubectl(&["delete", kind, name])?;
        slowest[1] = slowest[1].max(becomes(stage, visitors, servers, Fate::Open)?);
    }
    let pairs = visitors.len() * servers.len();
    Ok(format!(
        "{ROUNDS} times, for {pairs} of {pairs} pairs: seen closed after {} at most, open after {}",
        seconds(slowest[0]),
        seconds(slowest[1])
    ))
}

/// Waits until all connections come to `fate`.
pub(super) fn becomes(
    stage: &Stage,
    from: &[Pod],
    to: &[Pod],
    fate: Fate,
) -> anyhow::Result<Duration> {
    let start = Instant::now();
    until(SETTLE, || everywhere(stage, from, to, fate))?;
    Ok(start.elapsed())
}

pub(super) fn everywhere(
    stage: &Stage,
    from: &[Pod],
    to: &[Pod],
    fate: Fate,
) -> anyhow::Result<()> {
    let pairs: Vec<_> = from.iter().flat_map(|from| to.iter().map(move |to| (from, to))).collect();
    thread::scope(|scope| {
        let tries: Vec<_> =
            pairs.iter().map(|(from, to)| scope.spawn(move || connect(stage, from, to))).collect();
        for (seen, (from, to)) in tries.into_iter().zip(&pairs) {
            let seen = seen.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
            ensure!(seen == fate, "{} → {}: {seen:?}, expected {fate:?}", from.name, to.name);
        }
        Ok(())
    })
}

/// Asks `from` to connect to `to`.
fn connect(stage: &Stage, from: &Pod, to: &Pod) -> anyhow::Result<Fate> {
    let command = format!("/agnhost%20connect%20--timeout=1s%20{}:{PORT}", to.address);
    let path = format!("/shell?cmd={command}");
    let heard = http::get(stage.cluster.control.host(), (from.address, PORT).into(), &path)?;
    let answer: Value = serde_json::from_str(&heard)?;
    let said = answer["output"].as_str().unwrap_or_default();
    match (answer["error"].as_str().unwrap_or_default(), said.trim()) {
        ("", "") => Ok(Fate::Open),
        (_, "TIMEOUT") => Ok(Fate::Dropped),
        _ => bail!("{} → {}: {heard}", from.name, to.name),
    }
}

/// Pods that a SecurityGroupPolicy selects are reached by what a rule of their group lets in, and by nobody else.
fn security_group(stage: &Stage, visitors: &[Pod]) -> anyhow::Result<String> {
    let mut group = Group::create(&stage.lab.account, GROUP)?;
    let policy = json!({
        "apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
        "metadata": {"name": GROUPED},
        "spec": {
            "podSelector": {"matchLabels": {"app": GROUPED}},
            "securityGroups": {"groupIds": [group.id()]},
        },
    });
    stage.cluster.apply(&[policy, Stage::web(GROUPED, PODS)])?;
    stage.rolled_out(GROUPED)?;
    let grouped = stage.pods(GROUPED)?;
    everywhere(stage, visitors, &grouped, Fate::Dropped).context("without a rule")?;
    group.let_in(PORT)?;
    let (start, both) = (Instant::now(), |fate| everywhere(stage, visitors, &grouped, fate));
    until(REFRESH, || both(Fate::Open)).context("with the rule")?;
    let opened = start.elapsed();
    group.shut()?;
    let start = Instant::now();
    until(REFRESH, || both(Fate::Dropped)).context("after the rule")?;
    let closed = start.elapsed();
    stage.cluster.kubectl(&["delete", "securitygrouppolicy", GROUPED])?;
    stage.delete(GROUPED, &[])?;
    group.delete()?;
    Ok(format!(
        "members of a new group are closed at once, open {} after a rule, closed {} after its end",
        seconds(opened),
        seconds(closed)
    ))
}
