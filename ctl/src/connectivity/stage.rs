//! The test's namespace and pods: taken, brought up, and taken away again.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Part, Test,
    api::{Cluster, Forbidden},
    judge::Outcome,
    objects::{self, NAMESPACE, NAMESPACE_PATH, NAMESPACES, Role},
    place,
};

/// How often a test that goes on says so.
const BEAT: Duration = Duration::from_secs(2);
/// One that has not for so long was killed.
const SILENT: Duration = Duration::from_secs(7);
/// How long a namespace may take to go.
const GONE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(300);
/// How long the controllers may take to prepare a namespace.
const PREPARED: Duration = Duration::from_secs(30);

/// The pods that the checks are made with: a client and a server on each node.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub(super) nodes: Vec<Node>,
    pub(super) service: Service,
    /// Why there are fewer nodes than two.
    pub(super) short: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) address: Option<IpAddr>,
    pub(super) client: IpAddr,
    pub(super) server: IpAddr,
}

#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) address: IpAddr,
    pub(super) node_port: Option<u64>,
}

/// Makes the namespace, after what a killed test left is gone.
///
/// # Errors
/// When another test is going on, or a namespace of this name is somebody else's.
pub(super) async fn claim(
    cluster: &impl Cluster,
    run: &str,
    test: &Test,
    outcome: &Outcome,
) -> anyhow::Result<()> {
    while !cluster.create(NAMESPACES, &objects::namespace(run)).await? {
        let Some(there) = cluster.get(NAMESPACE_PATH).await? else { continue };
        ensure!(
            objects::is_ours(&there),
            "there is a namespace {NAMESPACE} that no test made: rename it, or delete it"
        );
        if there["metadata"]["deletionTimestamp"].is_null() {
            outcome.say("there is a namespace of another test: looking whether that goes on");
            sleep(SILENT).await;
            let Some(later) = cluster.get(NAMESPACE_PATH).await? else { continue };
            let beat = |of: &Value| of["metadata"]["annotations"].clone();
            ensure!(
                beat(&there) == beat(&later),
                "another test is going on in the namespace {NAMESPACE}: try again when it has ended"
            );
            outcome.say("it was killed: removing what it left");
            remove(cluster, test).await?;
        } else {
            gone(cluster).await?;
        }
    }
    // One that was killed between its namespace's end and its own.
    remove_cluster_policy(cluster, test).await
}

/// Says, for ever, that the test goes on.
pub(super) async fn beat(cluster: &impl Cluster) {
    for count in 1_u64.. {
        sleep(BEAT).await;
        let patch = json!({"metadata": {"annotations": {objects::BEAT: count.to_string()}}});
        // One that is missed is made up for by the next; the checks themselves tell of an API server that is gone.
        drop(cluster.patch(NAMESPACE_PATH, &patch).await);
    }
}

/// Takes everything away, if the namespace is this run's, and waits until it is gone.
pub(super) async fn release(cluster: &impl Cluster, run: &str, test: &Test) -> anyhow::Result<()> {
    let there = cluster.get(NAMESPACE_PATH).await?;
    let ours = there.filter(|there| there["metadata"]["annotations"][objects::RUN] == run);
    match ours {
        Some(_) => remove(cluster, test).await,
        None => Ok(()),
    }
}

/// Both, whatever comes of the other.
async fn remove(cluster: &impl Cluster, test: &Test) -> anyhow::Result<()> {
    let namespace = cluster.delete(NAMESPACE_PATH).await;
    let policy = remove_cluster_policy(cluster, test).await;
    namespace?;
    gone(cluster).await?;
    policy
}

/// Takes the policy away that is in no namespace. The right to is not missed where there is none: the API server refuses
/// before it looks, even where it does not have the kind.
async fn remove_cluster_policy(cluster: &impl Cluster, test: &Test) -> anyhow::Result<()> {
    let (kind, name) = (objects::CLUSTER_POLICIES, objects::CLUSTER_POLICY);
    match cluster.delete(&format!("{kind}/{name}")).await {
        Err(error) if error.is::<Forbidden>() => {
            // A run that may not list them makes none, nor does one that leaves policies out.
            let all = cluster.get(kind).await.ok().flatten().unwrap_or_default();
            let mut all = all["items"].as_array().into_iter().flatten();
            let none = !all.any(|policy| policy["metadata"]["name"] == name);
            if none || test.skip.contains(&Part::Policy) {
                return Ok(());
            }
            Err(error)
                .with_context(|| format!("deleting the ClusterNetworkPolicy {name} of a test"))
        }
        done => done,
    }
}

async fn gone(cluster: &impl Cluster) -> anyhow::Result<()> {
    let start = Instant::now();
    while cluster.get(NAMESPACE_PATH).await?.is_some() {
        ensure!(start.elapsed() < GONE, "the namespace {NAMESPACE} is still there after {GONE:?}");
        sleep(POLL).await;
    }
    Ok(())
}

/// Brings pods and Service up; how long the pods took.
pub(super) async fn up(
    cluster: &impl Cluster,
    test: &Test,
    outcome: &Outcome,
) -> anyhow::Result<(Stage, Duration)> {
    let place::Place { image, nodes, short } = place::choose(cluster, test).await?;
    if let Some(short) = &short {
        outcome.say(short);
    }
    let start = Instant::now();
    for (number, (node, _)) in nodes.iter().enumerate() {
        for role in [Role::Server, Role::Client] {
            create(cluster, "pods", &objects::pod(role, number, node, &image)).await?;
        }
    }
    create(cluster, "services", &objects::service()).await?;
    let pods = ready(cluster, 2 * nodes.len(), Duration::from_secs(test.ready_secs)).await?;
    let took = start.elapsed();
    let address = |role, number| {
        let name = objects::pod_name(role, number);
        let pod = pods.iter().find(|pod| pod["metadata"]["name"] == name.as_str());
        let address = pod.and_then(|pod| pod["status"]["podIP"].as_str());
        address.and_then(|ip| ip.parse().ok()).with_context(|| format!("{name} has no address"))
    };
    let node = |(number, (name, node_address)): (usize, &(String, Option<IpAddr>))| {
        anyhow::Ok(Node {
            name: name.clone(),
            address: *node_address,
            client: address(Role::Client, number)?,
            server: address(Role::Server, number)?,
        })
    };
    let nodes = nodes.iter().enumerate().map(node).collect::<anyhow::Result<_>>()?;
    Ok((Stage { nodes, service: service(cluster).await?, short }, took))
}

/// A namespace's service account comes a moment after it; until then pods are refused.
async fn create(cluster: &impl Cluster, resource: &str, object: &Value) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match cluster.create(&objects::core(resource), object).await {
            Err(error)
                if error.to_string().contains("service account") && start.elapsed() < PREPARED =>
            {
                sleep(POLL).await;
            }
            made => return made.map(drop),
        }
    }
}

async fn ready(
    cluster: &impl Cluster,
    count: usize,
    patience: Duration,
) -> anyhow::Result<Vec<Value>> {
    let start = Instant::now();
    loop {
        let list = cluster.get(&objects::core("pods")).await?.unwrap_or_default();
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let waiting: Vec<_> = pods.iter().filter(|pod| !is_ready(pod)).map(why_it_waits).collect();
        if waiting.is_empty() && pods.len() == count {
            return Ok(pods);
        }
        if start.elapsed() > patience {
            let events = warnings(cluster).await;
            bail!("pods are not ready after {patience:?}: {}{events}", waiting.join("; "));
        }
        sleep(POLL).await;
    }
}

pub(super) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        && pod["status"]["podIP"].is_string()
}

fn why_it_waits(pod: &Value) -> String {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let condition =
        conditions.find(|c| c["status"] != "True").map_or(&Value::Null, |c| &c["message"]);
    let reason = [&waiting["message"], &waiting["reason"], condition];
    let reason = reason.into_iter().find_map(Value::as_str).unwrap_or("not scheduled yet");
    format!("{name}: {reason}")
}

/// The last thing that went wrong in the namespace, by its events.
async fn warnings(cluster: &impl Cluster) -> String {
    let path = objects::core("events?fieldSelector=type%3DWarning");
    let list = cluster.get(&path).await.ok().flatten().unwrap_or_default();
    let last = list["items"].as_array().and_then(|events| events.last()).cloned();
    let told = last.and_then(|event| event["message"].as_str().map(str::to_owned));
    told.map(|message| format!("; last warning: {message}")).unwrap_or_default()
}

async fn service(cluster: &impl Cluster) -> anyhow::Result<Service> {
    let path = objects::core(&format!("services/{}", objects::SERVICE));
    let service = cluster.get(&path).await?.context("the Service is gone")?;
    let address = service["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse().ok());
    Ok(Service {
        address: address.context("the Service has no address")?,
        node_port: service["spec"]["ports"][0]["nodePort"].as_u64(),
    })
}
