//! The cluster under test: the lab, Kubernetes on it, and what the checks ask of it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use veni_lab::{
    Lab, LabConfig, Node, NodeConfig,
    account::{Cloud, LocalStack},
    kubernetes::{self, Kubernetes, Settings, chart, image},
};

use crate::{
    checks::gate,
    http,
    print::{self, Table, seconds},
};

/// Where `agnhost netexec` listens in every pod: HTTP, and UDP.
pub(crate) const PORT: u16 = 8080;
pub(crate) const UDP_PORT: u16 = 8081;
/// Short, so that what is deleted can be used again within a test.
const COOLDOWN_SECS: &str = "5";
/// As short as the controller takes them, so that a test sees a sweep.
const SWEEPS: [(&str, &str); 2] =
    [("VENI_SWEEP_INTERVAL_SECS", "10"), ("VENI_SWEEP_GRACE_SECS", "60")];
const POLL: Duration = Duration::from_millis(200);
/// How long pods may take to be as they are to be.
pub(crate) const SETTLE: Duration = Duration::from_secs(120);

/// Which pods are the controller's.
const CONTROLLERS: [&str; 3] =
    ["--namespace", chart::NAMESPACE, "--selector=app.kubernetes.io/name=veni-controller"];

/// Everything that a check needs. Kubernetes ends before its nodes do.
pub(crate) struct Stage {
    pub(crate) cluster: Kubernetes,
    pub(crate) lab: Lab,
    /// The chart's.
    pub(crate) settings: Settings,
}

/// A daemon's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Daemon {
    pub(crate) name: String,
    pub(crate) node: String,
}

/// A pod that runs.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) address: Ipv4Addr,
}

// === impl Stage ===

impl Stage {
    /// Two nodes of 56 pods each, whose daemons start last.
    pub(crate) fn up(
        cloud: Cloud,
        name: &str,
        env: &[(String, String)],
        table: &mut Table,
    ) -> anyhow::Result<Self> {
        let start = Instant::now();
        let mut stage = Self::bare(cloud, name, env)?;
        let registered = start.elapsed();
        let gated = gate::closed(&stage);
        let opened = Instant::now();
        stage.cluster.install(&stage.settings)?;
        stage.cluster.wait_ready().inspect_err(|_| stage.keep_logs())?;
        let took = opened.elapsed();
        table.record(
            "a node takes no pod before its pool is ready",
            gate::opened(&stage, gated, opened),
        );
        table.record("both nodes are Ready", stage.nodes_seen(registered, took));
        Ok(stage)
    }

    /// Nodes without daemons, registered.
    pub(crate) fn bare(cloud: Cloud, name: &str, env: &[(String, String)]) -> anyhow::Result<Self> {
        print::step("bringing up a VPC in a box, and a Kubernetes on its two nodes");
        let mut config = LabConfig { cloud, ..LabConfig::two_nodes(name) };
        for node in &mut config.nodes {
            *node = NodeConfig::new(&node.name, "m5.xlarge");
        }
        let cooldown = [("IP_COOLDOWN_PERIOD".to_owned(), COOLDOWN_SECS.to_owned())];
        let lab = Lab::up(&kubernetes::lab_config(config))?;
        let localstack =
            lab.account.localstack().map(LocalStack::environment).into_iter().flatten();
        let env = cooldown.into_iter().chain(localstack).chain(env.iter().cloned()).collect();
        let cluster = Kubernetes::start(&lab)?;
        let controller = SWEEPS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Ok(Self { cluster, lab, settings: Settings { env, controller } })
    }

    fn nodes_seen(&self, without: Duration, daemons: Duration) -> anyhow::Result<String> {
        let nodes = self.cluster.objects(&["get", "nodes"])?;
        for node in self.lab.nodes() {
            let has = |of: &&Value| of["metadata"]["name"] == node.name.as_str();
            let object = nodes.iter().find(has).with_context(|| format!("no {}", node.name))?;
            let address = &object["status"]["addresses"][0]["address"];
            ensure!(*address == json!(node.address), "{} has {address}", node.name);
        }
        let version = nodes[0]["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or("?");
        Ok(format!(
            "{version}: {} after the chart's installation, {} after the start of everything else",
            seconds(daemons),
            seconds(without)
        ))
    }

    /// A Deployment of `agnhost netexec`, spread over the nodes, whose pods end only once nobody is sent to them.
    pub(crate) fn web(name: &str, replicas: u32) -> Value {
        let labels = json!({"app": name});
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 2}},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "dnsPolicy": "Default",
                    "terminationGracePeriodSeconds": 5,
                    "topologySpreadConstraints": [{
                        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": labels},
                    }],
                    "containers": [{
                        "name": "web", "image": image::AGNHOST,
                        "args": ["netexec", format!("--http-port={PORT}"), format!("--udp-port={UDP_PORT}")],
                        "readinessProbe": {
                            "httpGet": {"path": "/hostname", "port": PORT}, "periodSeconds": 1,
                        },
                        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
                    }],
                }},
            },
        })
    }

    /// A Service of [`Stage::web`]'s pods: a ClusterIP, and a NodePort if there is one.
    pub(crate) fn service(name: &str, of: &str, node_port: Option<u16>, local: bool) -> Value {
        let tcp = json!({"name": "http", "port": 80, "targetPort": PORT});
        let udp = json!({"name": "udp", "protocol": "UDP", "port": 80, "targetPort": UDP_PORT});
        let mut spec = json!({"selector": {"app": of}, "ports": [tcp, udp]});
        if let Some(port) = node_port {
            spec["type"] = json!("NodePort");
            spec["ports"][0]["nodePort"] = json!(port);
            spec["externalTrafficPolicy"] = json!(if local { "Local" } else { "Cluster" });
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    }

    /// The address of a Service.
    pub(crate) fn cluster_ip(&self, service: &str) -> anyhow::Result<Ipv4Addr> {
        let get = ["get", "service", service, "--output", "jsonpath={.spec.clusterIP}"];
        Ok(self.cluster.kubectl(&get)?.parse()?)
    }

    /// Waits until a Deployment is as it is to be.
    pub(crate) fn rolled_out(&self, name: &str) -> anyhow::Result<()> {
        self.rolled_out_in("default", name)
    }

    /// As [`Stage::rolled_out`], in another namespace.
    pub(crate) fn rolled_out_in(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let (deployment, timeout) =
            (format!("deployment/{name}"), format!("--timeout={}s", SETTLE.as_secs()));
        self.cluster
            .kubectl(&["rollout", "status", &deployment, "--namespace", namespace, &timeout])
            .map(drop)
            .with_context(|| self.why_pods_wait(name))
    }

    /// The pods of an app that are Ready and not about to go.
    pub(crate) fn pods(&self, app: &str) -> anyhow::Result<Vec<Pod>> {
        self.ready_pods(&[&format!("--selector=app={app}")])
    }

    /// The controller's pods that are Ready and not about to go.
    pub(crate) fn controllers(&self) -> anyhow::Result<Vec<Pod>> {
        self.ready_pods(&CONTROLLERS)
    }

    fn ready_pods(&self, which: &[&str]) -> anyhow::Result<Vec<Pod>> {
        let pods = self.cluster.objects(&[&["get", "pods"], which].concat())?;
        let living = pods.iter().filter(|pod| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let mut ready = conditions.filter(|c| c["type"] == "Ready");
            pod["metadata"]["deletionTimestamp"].is_null()
                && ready.any(|condition| condition["status"] == "True")
        });
        living.map(Pod::read).collect()
    }

    /// Deletes an app and its Services of these names, and waits until its pods are gone.
    pub(crate) fn delete(&self, app: &str, services: &[&str]) -> anyhow::Result<Duration> {
        let start = Instant::now();
        for service in services {
            self.cluster.kubectl(&["delete", "service", service])?;
        }
        self.cluster.kubectl(&["delete", "deployment", app, "--wait=false"])?;
        let selector = format!("--selector=app={app}");
        until(SETTLE, || {
            let left = self.cluster.kubectl(&["get", "pods", &selector, "--output=name"])?;
            ensure!(left.is_empty(), "{} pods of {app} are left", left.lines().count());
            Ok(())
        })?;
        Ok(start.elapsed())
    }

    /// Waits until the daemons hold exactly these addresses for pods, beside the controller's, which moves as it likes.
    pub(crate) fn allocated(&self, expected: &[Pod]) -> anyhow::Result<()> {
        for node in self.lab.nodes() {
            until(SETTLE, || {
                let controllers =
                    self.cluster.objects(&[&["get", "pods"], &CONTROLLERS[..]].concat())?;
                let with_address =
                    controllers.iter().filter(|pod| pod["status"]["podIP"].is_string());
                let controllers =
                    with_address.map(Pod::read).collect::<anyhow::Result<Vec<_>>>()?;
                let all = expected.iter().chain(&controllers);
                let mut own: Vec<_> =
                    all.filter(|pod| pod.node == node.name).map(|pod| pod.address).collect();
                own.sort();
                let held = held(node)?;
                ensure!(
                    held == own,
                    "the daemon of {} holds {} addresses for {} pods: {held:?}, {own:?}",
                    node.name,
                    held.len(),
                    own.len()
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The daemons' pods.
    pub(crate) fn daemons(&self) -> anyhow::Result<Vec<Daemon>> {
        let selector = "--selector=app.kubernetes.io/name=veni";
        let get = ["get", "pods", "--namespace", chart::NAMESPACE, selector];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let daemon = |pod: &Value| Daemon {
            name: text(&pod["metadata"]["name"]),
            node: text(&pod["spec"]["nodeName"]),
        };
        let pods = self.cluster.objects(&get)?;
        // The controller has a node too, and is none of them.
        let own =
            pods.iter().filter(|pod| pod["metadata"]["ownerReferences"][0]["kind"] == "DaemonSet");
        Ok(own.map(daemon).collect())
    }

    /// Waits until all daemons are as the chart has them.
    pub(crate) fn daemons_rolled_out(&self) -> anyhow::Result<()> {
        let (set, timeout) =
            (format!("daemonset/{}", chart::RELEASE), format!("--timeout={}s", SETTLE.as_secs()));
        let rollout = ["rollout", "status", &set, "--namespace", chart::NAMESPACE, &timeout];
        Ok(self.cluster.kubectl(&rollout).map(drop)?)
    }

    /// What `from` hears when it asks `to` who it is, with `protocol`.
    pub(crate) fn dial(
        &self,
        from: &Pod,
        protocol: &str,
        to: (Ipv4Addr, u16),
        request: &str,
    ) -> anyhow::Result<String> {
        let path = dial_path(protocol, to, request);
        let asked = http::get(self.cluster.control.host(), (from.address, PORT).into(), &path)?;
        let answer: Value = serde_json::from_str(&asked)?;
        match answer["responses"][0].as_str() {
            Some(response) if answer["errors"].is_null() => Ok(response.to_owned()),
            _ => bail!("{} → {protocol} {}:{}: {asked}", from.name, to.0, to.1),
        }
    }

    /// Copies all logs out of the lab's directory.
    pub(crate) fn keep_logs(&self) {
        let kept = std::env::temp_dir().join(format!("veni-e2e-{}", self.lab.name));
        let copied = self.copy_logs(&kept);
        match copied {
            Ok(()) => print::note(format!("all logs are in {}", kept.display())),
            Err(error) => print::note(format!("the logs cannot be kept: {error:#}")),
        }
    }

    fn copy_logs(&self, kept: &PathBuf) -> anyhow::Result<()> {
        if kept.exists() {
            std::fs::remove_dir_all(kept)?;
        }
        std::fs::create_dir_all(kept)?;
        let nodes = self.lab.nodes().iter().map(|node| (node.dir.join("log"), node.name.clone()));
        let control = (self.lab.dir.join("kubernetes/log"), "control".to_owned());
        for (from, name) in nodes.chain([control]) {
            for entry in std::fs::read_dir(&from)?.flatten().filter(|e| e.path().is_file()) {
                let file = entry.file_name();
                let to = kept.join(format!("{name}.{}", file.to_string_lossy()));
                std::fs::copy(entry.path(), to)?;
            }
        }
        for node in self.lab.nodes() {
            for pod in std::fs::read_dir(node.dir.join("log/pods"))?.flatten() {
                let name = pod.file_name().to_string_lossy().into_owned();
                if name.starts_with(chart::NAMESPACE) {
                    copy_pod_logs(&pod.path(), &kept.join(format!("{}.{name}", node.name)))?;
                }
            }
        }
        Ok(())
    }

    fn why_pods_wait(&self, app: &str) -> String {
        let get = ["get", "events", "--all-namespaces", "--field-selector=type=Warning"];
        let events = self.cluster.objects(&get).unwrap_or_default();
        let mut of = events.iter().filter(|event| {
            event["involvedObject"]["name"].as_str().is_some_and(|name| name.starts_with(app))
        });
        let last = of.next_back().map(|event| format!("{}: {}", event["reason"], event["message"]));
        format!("{app} did not come up; its last warning: {}", last.unwrap_or_default())
    }
}

// === impl Pod ===

impl Pod {
    fn read(pod: &Value) -> anyhow::Result<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            name: text(&pod["metadata"]["name"]),
            node: text(&pod["spec"]["nodeName"]),
            address: text(&pod["status"]["podIP"]).parse()?,
        })
    }
}

/// Of each container, the logs of each of its starts.
fn copy_pod_logs(from: &Path, to: &Path) -> anyhow::Result<()> {
    for container in std::fs::read_dir(from)?.flatten() {
        for log in std::fs::read_dir(container.path())?.flatten() {
            let name = container.file_name().to_string_lossy().into_owned();
            let file = format!("{}.{name}.{}", to.display(), log.file_name().to_string_lossy());
            std::fs::copy(log.path(), file)?;
        }
    }
    Ok(())
}

/// What netexec is asked to ask another for it.
pub(crate) fn dial_path(protocol: &str, to: (Ipv4Addr, u16), request: &str) -> String {
    format!("/dial?protocol={protocol}&host={}&port={}&request={request}&tries=1", to.0, to.1)
}

/// The addresses that a node's daemon holds for pods.
fn held(node: &Node) -> anyhow::Result<Vec<Ipv4Addr>> {
    let view = node.inspect()?;
    let assigned = view.addresses.into_iter().filter(|address| address.attachment.is_some());
    let mut held: Vec<_> = assigned.map(|address| address.address).collect();
    held.sort();
    Ok(held)
}

/// Asks again and again until `done` succeeds.
///
/// # Errors
/// The last failure, when none succeeded within `timeout`.
pub(crate) fn until<T>(
    timeout: Duration,
    mut done: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match done() {
            Err(error) if start.elapsed() > timeout => {
                return Err(error.context(format!("not after {timeout:?}")));
            }
            Err(_) => thread::sleep(POLL),
            Ok(value) => return Ok(value),
        }
    }
}

/// Where a node's port can be reached.
pub(crate) fn door(node: &Node, port: u16) -> SocketAddr {
    (node.address, port).into()
}
