//! A whole lab: fabric, account, nodes, pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use veni_core::{
    id::{InstanceId, InstanceType},
    net::Ipv4Prefix,
};
use veni_provider::sim::SimConfig;

use crate::{
    account::{Account, Booted, Cloud, subnet_cidr, zone_of},
    binaries,
    cluster::{Cluster, PodSpec},
    dhcp,
    error::{Context as _, Error, Result, make_dir},
    machine::Machine,
    node::{self, Daemon, Node},
    ns::{Namespace, Outer, Worker},
    place,
    runtime::{Added, Runtime, Sandbox},
    vpc::{Port, Vpc},
};

/// How long a daemon may take to be ready: several slow attachments.
pub const READY: Duration = Duration::from_secs(30);

/// What a lab is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabConfig {
    /// Its name, one per machine.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<NodeConfig>,
    /// Where it is.
    #[serde(default)]
    pub cloud: Cloud,
    /// How EC2 behaves, when it is the simulator.
    pub ec2: SimConfig,
}

/// What a node is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Its name: at most 9 letters, digits and `-`.
    pub name: String,
    /// Its type.
    pub instance_type: InstanceType,
    /// Variables of its daemon.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Whether its daemon starts with it.
    #[serde(default = "yes")]
    pub ipamd: bool,
    /// Whether it is a machine: with namespaces for processes and mounts too, in which its daemon runs.
    #[serde(default)]
    pub machine: bool,
}

/// A lab that is up. It is down when dropped.
#[derive(Debug)]
pub struct Lab {
    /// Its name.
    pub name: String,
    /// Its files.
    pub dir: PathBuf,
    /// The router and the hosts outside.
    pub vpc: Arc<Vpc>,
    /// EC2.
    pub account: Account,
    /// The API server.
    pub cluster: Cluster,
    nodes: Vec<Arc<Node>>,
    /// What is in the VPC beside its nodes.
    hosts: Mutex<BTreeMap<String, Namespace>>,
    pods: Mutex<BTreeMap<String, Pod>>,
    /// Names of pods that are being added.
    coming: Mutex<BTreeSet<String>>,
    outer: Outer,
    containers: AtomicU64,
    _lease: place::Lease,
}

/// A pod whose sandbox is made and whose ADD is still to come.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Its name in the lab.
    pub name: String,
    /// What its author wrote.
    pub spec: PodSpec,
    /// Its node.
    pub node: Arc<Node>,
    /// Its network namespace.
    pub namespace: Namespace,
    /// What the runtime knows of it.
    pub sandbox: Sandbox,
}

/// A pod that was added.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name in the lab ([`PodSpec::lab_name`]).
    pub name: String,
    /// What its author wrote.
    pub spec: PodSpec,
    /// Its node.
    pub node: Arc<Node>,
    /// Its network namespace.
    pub namespace: Namespace,
    /// What the runtime knows of it.
    pub sandbox: Sandbox,
    /// What the plugin said.
    pub added: Added,
}

// === impl LabConfig ===

impl LabConfig {
    /// Two nodes of different types in different subnets, each with room for 30 pods.
    #[must_use]
    pub fn two_nodes(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: vec![
                NodeConfig::new("node-1", "m5.xlarge"),
                NodeConfig::new("node-2", "t3.large"),
            ],
            cloud: Cloud::Simulator,
            ec2: SimConfig::default(),
        }
    }

    /// One node.
    #[must_use]
    pub fn one_node(name: &str, instance_type: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: vec![NodeConfig::new("node-1", instance_type)],
            cloud: Cloud::Simulator,
            ec2: SimConfig::default(),
        }
    }

    /// With this variable for every daemon.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        for node in &mut self.nodes {
            node.environment.insert(name.to_owned(), value.to_owned());
        }
        self
    }
}

impl NodeConfig {
    /// A node of a type, with its daemon.
    ///
    /// # Panics
    /// When `instance_type` is not the name of a type.
    #[must_use]
    pub fn new(name: &str, instance_type: &str) -> Self {
        Self {
            name: name.to_owned(),
            instance_type: instance_type.parse().expect("an instance type is a family and a size"),
            environment: BTreeMap::new(),
            ipamd: true,
            machine: false,
        }
    }
}

fn yes() -> bool {
    true
}

// === impl Lab ===

impl Lab {
    /// Brings a lab up: the fabric, EC2, the nodes, and their daemons until each is ready. What a lab that was killed
    /// has left is removed first.
    ///
    /// # Errors
    /// When a lab of that name is up, or something cannot be made; then nothing is left.
    pub fn up(config: &LabConfig) -> Result<Self> {
        let (lease, dir) = place::take(&config.name)?;
        let outer = Outer::new()?;
        let vpc = Arc::new(Vpc::build(&dir, &outer)?);
        let account = Account::open(config.cloud, config.ec2.clone(), &dir, &vpc)?;
        let cluster = Cluster::create(dir.join("manifests"))?;
        let mut lab = Self {
            name: config.name.clone(),
            dir,
            vpc,
            account,
            cluster,
            nodes: Vec::new(),
            hosts: Mutex::default(),
            pods: Mutex::default(),
            coming: Mutex::default(),
            outer,
            containers: AtomicU64::new(1),
            _lease: lease,
        };
        for node in &config.nodes {
            lab.add_node(node)?;
        }
        match lab.start(&config.nodes) {
            Ok(()) => Ok(lab),
            Err(error) => Err(lab.keep_log(error)),
        }
    }

    /// Starts the daemons, and waits for them.
    fn start(&self, configs: &[NodeConfig]) -> Result<()> {
        let with_daemon = || self.nodes.iter().zip(configs).filter(|(_, config)| config.ipamd);
        with_daemon().try_for_each(|(node, _)| node.spawn_ipamd(&[]))?;
        with_daemon().try_for_each(|(node, _)| node.wait_ready(READY).map(drop))
    }

    /// The log that the error names goes with the lab's directory: a copy of it stays, and is named instead.
    fn keep_log(&self, error: Error) -> Error {
        let Error::Daemon { node, message } = error else { return error };
        let kept = std::env::temp_dir().join(format!("veni-lab-{}-{node}.log", self.name));
        let log = self.nodes.iter().find(|of| of.name == node).map(|node| node.log());
        match log.filter(|log| std::fs::copy(log, &kept).is_ok()) {
            Some(log) => {
                let (log, kept) = (log.display().to_string(), kept.display().to_string());
                Error::Daemon { node, message: message.replace(&log, &kept) }
            }
            None => Error::Daemon { node, message },
        }
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// A node.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn node(&self, name: &str) -> Result<&Arc<Node>> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| {
            let names: Vec<_> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            Error::invalid(format!(
                "there is no node {name:?} in the lab {}: it has {}",
                self.name,
                names.join(", ")
            ))
        })
    }

    /// The pods, by name.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        self.locked_pods().values().cloned().collect()
    }

    /// A pod.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let pod = self.locked_pods().get(name).cloned();
        pod.ok_or_else(|| {
            Error::invalid(format!("there is no pod {name:?} in the lab {}", self.name))
        })
    }

    /// A namespace by its name: a node, a host, a pod, `router`, `internet` or `peer`.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        match name {
            "router" => Ok(self.vpc.router.clone()),
            "internet" => Ok(self.vpc.internet.clone()),
            "peer" => Ok(self.vpc.peer.clone()),
            name => match (self.node(name), self.locked_hosts().get(name)) {
                (Ok(node), _) => Ok(node.namespace.clone()),
                (Err(_), Some(host)) => Ok(host.clone()),
                (Err(_), None) => self.pod(name).map(|pod| pod.namespace),
            },
        }
    }

    /// Adds a host that is no instance of ours: it has `address`, a subnet of its own, and reaches all of the VPC.
    ///
    /// # Errors
    /// When the name is taken, or its cable is refused.
    pub fn add_host(
        &self,
        name: &str,
        address: Ipv4Addr,
        len: u8,
        gateway: Ipv4Addr,
    ) -> Result<Namespace> {
        if self.namespace(name).is_ok() {
            return Err(Error::invalid(format!("{name:?} is taken in the lab {}", self.name)));
        }
        let host = Namespace::create(name, self.dir.join("netns").join(name), &self.outer)?;
        self.vpc.add_host(&host, address, len, gateway)?;
        self.locked_hosts().insert(name.to_owned(), host.clone());
        Ok(host)
    }

    /// An empty sandbox for a pod of the first node, which the API server knows from now on.
    ///
    /// # Errors
    /// When the namespace cannot be made.
    pub fn sandbox(&self, pod: &str) -> Result<(Namespace, Sandbox)> {
        let node = self.nodes.first().ok_or_else(|| Error::invalid("the lab has no node"))?;
        self.sandbox_of(&PodSpec::called(pod), &node.name)
    }

    /// An empty sandbox for a pod of `node`: its namespace, and a container id of its own. The API server knows the pod
    /// from now on, without an address.
    ///
    /// # Errors
    /// When the namespace cannot be made.
    pub fn sandbox_of(&self, pod: &PodSpec, node: &str) -> Result<(Namespace, Sandbox)> {
        let name = pod.lab_name();
        let number = self.containers.fetch_add(1, Ordering::Relaxed);
        let container_id = format!("{number:08x}{:056x}", std::process::id());
        let path = self.dir.join("netns").join(format!("pod-{number}"));
        let namespace = Namespace::create(&name, path.clone(), &self.outer)?;
        let sandbox = Sandbox { container_id, netns: path, pod: name };
        self.cluster.put_pod(pod, &sandbox.uid(), node, None)?;
        Ok((namespace, sandbox))
    }

    /// Adds a pod without labels through the plugin. A refused one leaves no namespace behind.
    ///
    /// # Errors
    /// When the name is taken, or the plugin refuses.
    pub fn add_pod(&self, node: &str, name: &str) -> Result<Pod> {
        self.add(node, &PodSpec::called(name))
    }

    /// Adds a pod through the plugin: its object, its sandbox, ADD, its object's address. A refused one leaves nothing
    /// behind.
    ///
    /// # Errors
    /// When the name is taken or none, or the plugin refuses.
    pub fn add(&self, node: &str, spec: &PodSpec) -> Result<Pod> {
        let node = Arc::clone(self.node(node)?);
        spec.check()?;
        let name = spec.lab_name();
        let coming = || self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = || Error::invalid(format!("{name:?} is taken in the lab {}", self.name));
        if !coming().insert(name.clone()) {
            return Err(taken());
        }
        let added = if self.namespace(&name).is_ok() {
            Err(taken())
        } else {
            self.add_as(&name, node, spec)
        };
        coming().remove(&name);
        added
    }

    fn add_as(&self, name: &str, node: Arc<Node>, spec: &PodSpec) -> Result<Pod> {
        let (namespace, sandbox) = self.sandbox_of(spec, &node.name)?;
        let (name, spec) = (name.to_owned(), spec.clone());
        self.wire(Pending { name, spec, node, namespace, sandbox })
    }

    /// The ADD of a sandbox that was made before.
    ///
    /// # Errors
    /// When the plugin refuses; then nothing is left.
    pub fn wire(&self, pending: Pending) -> Result<Pod> {
        let Pending { name, spec, node, namespace, sandbox } = pending;
        match node.runtime.add(&sandbox) {
            Ok(added) => {
                self.cluster.put_pod(&spec, &sandbox.uid(), &node.name, Some(added.address))?;
                Ok(self.keep(Pod { name, spec, node, namespace, sandbox, added }))
            }
            Err(error) => {
                // What the runtime does after a failed ADD; the ADD's error is the one to tell.
                drop(node.runtime.del(&sandbox));
                self.cluster.remove_pod(&spec)?;
                namespace.unbind()?;
                Err(error)
            }
        }
    }

    /// Adds pods at once, each from a thread of its own, as a kubelet does; in the order of `names`.
    #[must_use]
    pub fn add_pods(&self, names: &[(String, String)]) -> Vec<Result<Pod>> {
        thread::scope(|scope| {
            let adding: Vec<_> = names
                .iter()
                .map(|(node, name)| scope.spawn(move || self.add_pod(node, name)))
                .collect();
            adding
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
                .collect()
        })
    }

    /// Removes a pod through the plugin, and its namespace; returns how long the plugin took.
    ///
    /// # Errors
    /// When there is none, or the plugin refuses.
    pub fn del_pod(&self, name: &str) -> Result<Duration> {
        let pod = self.pod(name)?;
        let elapsed = pod.node.runtime.del(&pod.sandbox)?;
        self.locked_pods().remove(name);
        self.cluster.remove_pod(&pod.spec)?;
        pod.namespace.unbind()?;
        Ok(elapsed)
    }

    /// Remembers a pod that was added by other means than [`Lab::add_pod`].
    pub fn keep(&self, pod: Pod) -> Pod {
        self.locked_pods().insert(pod.name.clone(), pod.clone());
        pod
    }

    /// Waits until every node that has a running daemon has in force what the API server has; returns how long that
    /// took from now.
    ///
    /// # Errors
    /// When a node has it not in time.
    pub fn settle(&self) -> Result<Duration> {
        let running = self.nodes.iter().filter(|node| node.ipamd_pid().is_some());
        self.cluster.settle(running.map(AsRef::as_ref))
    }

    /// As [`Lab::settle`], of each node by itself: how long it took there, or why it is not in force.
    ///
    /// # Errors
    /// When the folder of manifests cannot be written.
    pub fn settle_each(&self) -> Result<Vec<(&Node, Result<Duration>)>> {
        let nodes = self.nodes.iter().map(AsRef::as_ref);
        let (running, ended): (Vec<&Node>, Vec<_>) =
            nodes.partition(|node| node.ipamd_pid().is_some());
        let mut outcomes = self.cluster.settle_each(running)?;
        let dead = |node: &Node| Error::Daemon {
            node: node.name.clone(),
            message: format!("does not run (veni-lab restart {})", node.name),
        };
        outcomes.extend(ended.into_iter().map(|node| (node, Err(dead(node)))));
        Ok(outcomes)
    }

    fn add_node(&mut self, config: &NodeConfig) -> Result<()> {
        check_name(&config.name)?;
        if self.namespace(&config.name).is_ok() {
            return Err(Error::invalid(format!("two nodes are called {}", config.name)));
        }
        let number = self.nodes.len();
        let dir = self.dir.join("nodes").join(&config.name);
        let bpf = dir.join("bpf");
        for dir in
            [&bpf, &dir.join("state"), &dir.join("cni"), &dir.join("net.d"), &dir.join("bin")]
        {
            make_dir(dir)?;
        }
        self.outer.mount_bpf(&bpf)?;
        let namespace = Namespace::create(
            &config.name,
            self.dir.join("netns").join(&config.name),
            &self.outer,
        )?;
        let booted = self.account.run_instance(number, &config.instance_type, &namespace)?;
        let cidr = subnet_cidr(number).parse().map_err(|e| Error::invalid(format!("{e}")))?;
        let address = self.boot(&booted, &namespace, cidr)?;
        let Booted { instance, subnet, .. } = booted;

        let mut environment = node::environment(&dir, &config.name);
        environment.extend(self.account.environment(&instance));
        environment.extend(self.cluster.environment());
        environment.extend(config.environment.clone());
        let runtime = Runtime {
            node: namespace.clone(),
            plugin: binaries::find("veni-cni")?.path,
            cache_dir: dir.join("cni"),
            socket: dir.join("ipamd.sock"),
        };
        let zone = zone_of(number);
        self.cluster.put_node(&config.name, zone, address)?;
        runtime.install(&dir.join("net.d"), &dir.join("bin"))?;
        let machine = self.machine(config, &namespace, &dir, &instance)?;
        let daemon = Daemon {
            program: binaries::find(self.account.cloud().daemon())?.path,
            environment,
            worker: machine.as_ref().map_or_else(|| Worker::start(&namespace), Machine::worker)?,
            process: Mutex::default(),
        };
        self.nodes.push(Arc::new(Node {
            name: config.name.clone(),
            namespace,
            dir,
            instance,
            instance_type: config.instance_type.clone(),
            subnet,
            address,
            zone,
            runtime,
            machine,
            daemon,
        }));
        Ok(())
    }

    /// Configures the first interface of the instance that `node` is; returns its address.
    fn boot(&self, booted: &Booted, node: &Namespace, cidr: Ipv4Prefix) -> Result<Ipv4Addr> {
        let address = booted.primary.primary_address;
        let port = Port {
            node: node.name().to_owned(),
            device_index: 0,
            mac: booted.primary.mac,
            addresses: [address].into(),
        };
        self.vpc.plug(node, &port)?;
        self.vpc.make_public(address)?;
        dhcp::configure(node, address, cidr)?;
        Ok(address)
    }

    /// The machine around a node, if it is to be one.
    fn machine(
        &self,
        config: &NodeConfig,
        network: &Namespace,
        dir: &Path,
        instance: &InstanceId,
    ) -> Result<Option<Machine>> {
        if !config.machine {
            return Ok(None);
        }
        make_dir(&dir.join("cloud"))?;
        self.account.serve_instance(instance, &dir.join("cloud/ec2.sock"))?;
        // Inside, the daemon's socket is in a directory that others can mount.
        let socket = dir.join("ipamd.sock");
        std::os::unix::fs::symlink("run/ipamd.sock", &socket)
            .context(|| format!("cannot make {}", socket.display()))?;
        Machine::start(network, dir, &self.dir).map(Some)
    }

    fn locked_hosts(&self) -> MutexGuard<'_, BTreeMap<String, Namespace>> {
        // The map is whole between any two statements.
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locked_pods(&self) -> MutexGuard<'_, BTreeMap<String, Pod>> {
        // The map is whole between any two statements.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_name(name: &str) -> Result<()> {
    let fits = (1..=9).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let free = !["router", "internet", "peer"].contains(&name);
    if fits && free {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a node cannot be called {name:?}: 1 to 9 letters, digits and `-`, not `router`, `internet` or `peer`"
    )))
}

/// The file in which a lab's namespaces can be found by other processes.
#[must_use]
pub fn control_socket(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}
