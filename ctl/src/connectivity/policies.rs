//! Paths that policies close and open again.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    PATIENCE, PORTS, Part, Test,
    api::{Cluster, Forbidden},
    judge::Outcome,
    objects::{self, CLUSTER_POLICIES, CLUSTER_POLICY, CLUSTER_POLICY_VERSION, Role},
    paths::{self, Path, few, seconds},
    probe::{Answer, What},
    stage::Stage,
};

/// How long an answer is waited for that is not to come: a pod is never so slow.
const CLOSED: Duration = Duration::from_millis(700);
const AGAIN: Duration = Duration::from_millis(50);

/// Policies that are made one after the other, and taken away in the same order.
struct Case {
    check: &'static str,
    steps: Vec<Step>,
}

/// A policy, and what holds once it is there.
struct Step {
    policy: Policy,
    closed: Vec<Path>,
    open: Vec<Path>,
}

struct Policy {
    collection: String,
    name: String,
    object: Value,
}

pub(super) async fn check(
    cluster: &impl Cluster,
    stage: &Stage,
    test: &Test,
    outcome: &mut Outcome,
) {
    if test.skip.contains(&Part::Policy) {
        outcome.skip("policies", "left out by --skip policy");
        return;
    }
    let settle = Duration::from_secs(test.settle_secs);
    for case in network_policies(stage) {
        outcome.record(case.check, case.run(cluster, settle).await);
    }
    match cluster.get(CLUSTER_POLICIES).await {
        Ok(None) => outcome.skip(
            "ClusterNetworkPolicy",
            &format!("the cluster has no ClusterNetworkPolicy of {CLUSTER_POLICY_VERSION}"),
        ),
        // Which is said of a kind that the cluster does not have, too.
        Err(error) if error.is::<Forbidden>() => {
            outcome.skip("ClusterNetworkPolicy", &format!("no rights: {error:#}"));
        }
        Err(error) => outcome.record("ClusterNetworkPolicy", Err(error)),
        Ok(Some(_)) => {
            for case in cluster_policies(stage) {
                outcome.record(case.check, case.run(cluster, settle).await);
            }
        }
    }
}

fn network_policies(stage: &Stage) -> Vec<Case> {
    let all = |port| {
        let (own, others) = paths::between_pods(stage, port);
        [own, others].concat()
    };
    let service = format!("{}:{}", stage.service.address, objects::SERVICE_PORT);
    let one = json!([{
        "from": [{"podSelector": {"matchLabels": {"role": "client", "number": "0"}}}],
        "ports": [{"protocol": "TCP", "port": PORTS[0]}],
    }]);
    let admitted = |path: &Path| path.from == 0 && matches!(path.what, What::Tcp);
    let (open, mut closed): (Vec<_>, Vec<_>) = all(PORTS[0]).into_iter().partition(admitted);
    closed.extend(all(PORTS[1]));
    let everywhere = || [all(PORTS[0]), paths::to_clients(stage, What::Tcp, &service)].concat();
    let case =
        |check, policy, closed, open| Case { check, steps: vec![Step { policy, closed, open }] };
    vec![
        case(
            "NetworkPolicy: nothing may come in",
            network("closed", Role::Server, "Ingress", &json!([])),
            everywhere(),
            Vec::new(),
        ),
        case(
            "NetworkPolicy: one client and one port may",
            network("one", Role::Server, "Ingress", &one),
            closed,
            open,
        ),
        case(
            "NetworkPolicy: nothing may go out",
            network("quiet", Role::Client, "Egress", &json!([])),
            everywhere(),
            Vec::new(),
        ),
    ]
}

fn cluster_policies(stage: &Stage) -> Vec<Case> {
    let (own, others) = paths::between_pods(stage, PORTS[0]);
    let all = [own, others].concat();
    let closing = |policy| Step { policy, closed: all.clone(), open: Vec::new() };
    vec![
        Case { check: "ClusterNetworkPolicy: Deny", steps: vec![closing(cluster_wide("Deny"))] },
        Case {
            check: "ClusterNetworkPolicy: Accept before a NetworkPolicy",
            steps: vec![
                closing(network("closed", Role::Server, "Ingress", &json!([]))),
                Step { policy: cluster_wide("Accept"), closed: Vec::new(), open: all.clone() },
            ],
        },
    ]
}

fn network(name: &str, of: Role, direction: &str, rules: &Value) -> Policy {
    Policy {
        collection: objects::policies(),
        name: name.to_owned(),
        object: objects::policy(name, of, direction, rules),
    }
}

fn cluster_wide(action: &str) -> Policy {
    Policy {
        collection: CLUSTER_POLICIES.to_owned(),
        name: CLUSTER_POLICY.to_owned(),
        object: objects::cluster_policy(action),
    }
}

// === impl Case ===

impl Case {
    /// Open before, as it is to be with each policy, open after them.
    async fn run(&self, cluster: &impl Cluster, settle: Duration) -> anyhow::Result<String> {
        let paths: Vec<_> =
            self.steps.iter().flat_map(|step| [&step.closed[..], &step.open].concat()).collect();
        paths::open(cluster, &paths, settle).await.context("before there is a policy")?;
        let done = self.policies(cluster, settle).await;
        // Whatever came of it: the next case begins without.
        for step in &self.steps {
            cluster.delete(&step.policy.path()).await?;
        }
        let told = done?;
        let start = Instant::now();
        paths::open(cluster, &paths, settle).await.context("after the policy is gone")?;
        Ok(format!("{told}; all open again within {}", seconds(start.elapsed())))
    }

    async fn policies(&self, cluster: &impl Cluster, settle: Duration) -> anyhow::Result<String> {
        let mut told = Vec::new();
        for step in &self.steps {
            let Policy { collection, object, name } = &step.policy;
            ensure!(cluster.create(collection, object).await?, "there is a policy {name} already");
            let took = seconds(step.in_force(cluster, settle).await?);
            let count =
                |paths: &[Path], how| (!paths.is_empty()).then(|| format!("{} {how}", paths.len()));
            let counts = [count(&step.closed, "paths closed"), count(&step.open, "open")];
            let counts: Vec<_> = counts.into_iter().flatten().collect();
            told.push(format!("{} within {took}", counts.join(", ")));
        }
        Ok(told.join(", then "))
    }
}

// === impl Step ===

impl Step {
    /// Waits until everything is as it is to be, and looks once more: what is closed stays closed.
    async fn in_force(&self, cluster: &impl Cluster, settle: Duration) -> anyhow::Result<Duration> {
        let start = Instant::now();
        loop {
            let wrong = self.wrong(cluster).await?;
            let took = start.elapsed();
            if wrong.is_empty() {
                let wrong = self.wrong(cluster).await?;
                ensure!(wrong.is_empty(), "for a moment only: {}", few(&wrong));
                return Ok(took);
            }
            if took > settle {
                bail!("with {}: {}", self.policy.name, few(&wrong));
            }
            sleep(AGAIN).await;
        }
    }

    /// The paths that are not as the policy says.
    async fn wrong(&self, cluster: &impl Cluster) -> anyhow::Result<Vec<String>> {
        let mut wrong = paths::failures(cluster, &self.open, PATIENCE).await?;
        for (path, answer) in paths::answers(cluster, &self.closed, CLOSED).await? {
            if !matches!(answer, Answer::Nothing(_)) {
                wrong.push(format!("{} over {} is open", path.told, path.protocol()));
            }
        }
        Ok(wrong)
    }
}

// === impl Policy ===

impl Policy {
    fn path(&self) -> String {
        format!("{}/{}", self.collection, self.name)
    }
}
