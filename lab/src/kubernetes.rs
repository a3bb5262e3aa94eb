//! A real Kubernetes over the lab's VPC: unmodified etcd, API server, controllers, scheduler, kubelets and kube-proxies,
//! with containerd and runc. Its nodes are the lab's: pods get the addresses of their ENIs from the real daemon, which
//! the real chart puts on them ([`chart`]).
//!
//! Invariants: everything of it is in the lab's namespaces and below its directory, and ends with the lab's process.
//! Nothing is fetched: the programs are built by `hack/kubernetes.sh`, the images are made of this machine's files.
//!
//! Deliberately absent: a cloud controller, storage, names outside the cluster.

pub mod chart;
pub mod control_plane;
pub mod image;
mod process;
pub mod programs;
pub mod worker_node;

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

pub use self::{
    chart::Settings, control_plane::ControlPlane, process::Process, programs::Programs,
    worker_node::WorkerNode,
};
use crate::{
    Lab, LabConfig,
    error::{Error, Result, make_dir},
};

/// How long nodes may take to be ready on a machine that is busy.
const READY: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

/// A cluster that is up, on a lab that outlives it. It is down when dropped.
#[derive(Debug)]
pub struct Kubernetes {
    /// The nodes.
    pub nodes: Vec<WorkerNode>,
    /// The control plane.
    pub control: ControlPlane,
}

/// The lab that a cluster needs: nodes that are machines, whose daemons come with the chart.
#[must_use]
pub fn lab_config(mut config: LabConfig) -> LabConfig {
    for node in &mut config.nodes {
        node.machine = true;
        node.ipamd = false;
    }
    config
}

// === impl Kubernetes ===

impl Kubernetes {
    /// Brings a cluster up on `lab`, until all nodes are ready: their daemons run, with `settings` over the chart's.
    ///
    /// # Errors
    /// When the lab's nodes are not as [`lab_config`] has them, or a part does not come up; then nothing is left of it.
    pub fn up(lab: &Lab, settings: &Settings) -> Result<Self> {
        let mut this = Self::start(lab)?;
        this.install(settings)?;
        this.wait_ready()?;
        Ok(this)
    }

    /// As [`Kubernetes::up`], until the nodes' programs run, without veni: see [`Kubernetes::install`].
    ///
    /// # Errors
    /// As [`Kubernetes::up`].
    pub fn start(lab: &Lab) -> Result<Self> {
        let programs = Programs::find()?;
        let images = lab.dir.join("images");
        make_dir(&images)?;
        chart::open_doors(lab)?;
        let mut control = ControlPlane::start(lab, &programs)?;
        let mut nodes = lab
            .nodes()
            .iter()
            .map(|node| WorkerNode::start(node, &lab.dir, &programs))
            .collect::<Result<Vec<_>>>()?;
        thread::scope(|scope| {
            let importing = scope.spawn(|| {
                let archives = image::write_all(&programs, lab.account.cloud(), &images)?;
                nodes.iter_mut().try_for_each(|node| node.import(&archives))
            });
            let finished = control.finish();
            let imported = importing.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            finished.and(imported)
        })?;
        nodes.iter_mut().try_for_each(|node| node.join(&control))?;
        Ok(Self { nodes, control })
    }

    /// Installs the chart, or changes what is installed to `settings`. Does not wait for the daemons.
    ///
    /// # Errors
    /// When helm refuses.
    pub fn install(&self, settings: &Settings) -> Result<()> {
        chart::install(&self.control, settings)
    }

    /// Waits until all nodes are ready.
    ///
    /// # Errors
    /// When they are not in time: with what each says.
    pub fn wait_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            self.nodes.iter_mut().try_for_each(WorkerNode::check)?;
            let unready = self.unready()?;
            if unready.is_empty() {
                return Ok(());
            }
            if start.elapsed() > READY {
                let told = format!("not ready after {READY:?}: {}", unready.join("; "));
                return Err(Error::invalid(told));
            }
            thread::sleep(POLL);
        }
    }

    /// What keeps each node that is not ready.
    ///
    /// # Errors
    /// When the API server does not say.
    pub fn unready(&self) -> Result<Vec<String>> {
        let nodes = self.objects(&["get", "nodes"])?;
        let known = |name: &str| nodes.iter().find(|node| node["metadata"]["name"] == name);
        let reason = |name: &str| match known(name) {
            None => Some(format!("{name} is not registered")),
            Some(node) => {
                let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
                let ready = conditions.into_iter().find(|c| c["type"] == "Ready");
                let is_ready = ready.is_some_and(|ready| ready["status"] == "True");
                let message = ready.map_or("no condition", |r| r["message"].as_str().unwrap_or(""));
                (!is_ready).then(|| format!("{name}: {message}"))
            }
        };
        Ok(self.nodes.iter().filter_map(|node| reason(&node.node.name)).collect())
    }

    /// Runs `kubectl` as the cluster's administrator; what it prints.
    ///
    /// # Errors
    /// When it fails: with what it says.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.control.kubectl(args, "")
    }

    /// Creates or changes objects.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.control.kubectl(&["apply", "--filename", "-"], &list.to_string()).map(drop)
    }

    /// The objects that a `kubectl get` of several prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn objects(&self, get: &[&str]) -> Result<Vec<Value>> {
        let text = self.kubectl(&[get, &["--output", "json"]].concat())?;
        let mut list: Value = serde_json::from_str(&text)
            .map_err(|error| Error::invalid(format!("kubectl printed no JSON: {error}")))?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(vec![list]),
        }
    }
}
