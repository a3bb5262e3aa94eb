//! A node without a kernel over the EC2 simulator, in virtual time: for the tests of the pool.
//!
//! Real are the ledger, the planner, the executor, the owner and the simulator. The journal is in memory so that a
//! crash is an abort of the owner, and the kernel is [`FakeHost`], whose ENI links follow the simulator's attachments.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use veni_core::{
    config::Config,
    id::InstanceId,
    ipam::{
        Allocation,
        check::{self, Violation},
    },
    wire::{
        AddRequest, Attachment, DelReason, GcRequest, PodRef, ReplyBody, ValidAttachment, Wiring,
        inspect::View,
    },
};
use veni_provider::{
    InterfaceStatus,
    sim::{InstanceSpec, Sim, SimCloud, SimConfig, SubnetSpec, Timer},
};

use crate::{
    clock::{Clock, TokioClock},
    following::Heard,
    host::fake::FakeHost,
    metrics::Metrics,
    placement::News,
    requests::Requests,
    start::{self, Channels, Start},
    startup::Startup,
};

pub use store::MemoryStore;
pub use told::Told;

mod store;
mod told;

/// The instance of the tests.
pub const INSTANCE: &str = "i-0test";

/// The EC2 calls that a pool makes.
pub const ACTIONS: &[&str] = &[
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
    "DescribeNetworkInterfaces",
];

/// Tokio's time as the simulator's.
#[derive(Debug)]
pub struct VirtualTime {
    epoch: tokio::time::Instant,
}

/// What a node is made of.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// The instance type.
    pub instance_type: &'static str,
    /// The subnet.
    pub subnet: &'static str,
    /// The settings.
    pub config: Config,
    /// The simulator's settings.
    pub sim: SimConfig,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    /// The account.
    pub sim: Arc<Mutex<Sim>>,
    timer: Arc<VirtualTime>,
    /// The kernel.
    pub host: FakeHost,
    store: MemoryStore,
    clock: Arc<TokioClock>,
    daemon: Option<Daemon>,
    runtime: Runtime,
    placement: watch::Sender<News>,
    settings: watch::Sender<Option<Heard>>,
    told: Arc<Told>,
}

/// The container runtime's part: libcni's results (`Evidence` reads them).
#[derive(Debug)]
pub struct Runtime {
    cache: tempfile::TempDir,
}

#[derive(Debug)]
struct Daemon {
    requests: Requests,
    metrics: Arc<Metrics>,
    task: JoinHandle<()>,
}

// === impl Runtime ===

impl Runtime {
    /// One without pods.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn new() -> io::Result<Self> {
        let cache = tempfile::tempdir()?;
        fs::create_dir(cache.path().join("results"))?;
        Ok(Self { cache })
    }

    /// `VENI_CNI_CACHE_DIR`.
    #[must_use]
    pub fn cache_dir(&self) -> &Path {
        self.cache.path()
    }

    /// Where the result of `attachment` is kept.
    #[must_use]
    pub fn file(&self, attachment: &Attachment) -> PathBuf {
        let Attachment { network, container_id, ifname } = attachment;
        self.cache.path().join(format!("results/{network}-{container_id}-{ifname}"))
    }

    /// What libcni writes there after an ADD.
    #[must_use]
    pub fn result(request: &AddRequest, wiring: &Wiring) -> String {
        let AddRequest { attachment, pod, netns, .. } = request;
        serde_json::json!({
            "kind": "cniCacheV1",
            "containerId": attachment.container_id,
            "ifName": attachment.ifname,
            "networkName": attachment.network,
            "netns": netns,
            "cniArgs": [["K8S_POD_NAMESPACE", pod.namespace], ["K8S_POD_NAME", pod.name]],
            "result": {
                "cniVersion": "1.0.0",
                "interfaces": [
                    { "name": wiring.host_ifname },
                    { "name": attachment.ifname, "sandbox": netns },
                ],
                "ips": [{ "address": format!("{}/32", wiring.address) }],
            },
        })
        .to_string()
    }
}

// === impl VirtualTime ===

impl Timer for VirtualTime {
    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

// === impl NodeSpec ===

impl NodeSpec {
    /// An m5.xlarge in a /24 of an EC2 that answers at once.
    #[must_use]
    pub fn instant(config: Config) -> Self {
        Self {
            instance_type: "m5.xlarge",
            subnet: "10.0.0.0/24",
            config,
            sim: SimConfig::instant(),
        }
    }
}

// === impl Node ===

impl Node {
    /// A node whose daemon runs.
    ///
    /// # Panics
    /// When the region cannot be built.
    pub async fn start(mut spec: NodeSpec) -> Self {
        let runtime = Runtime::new().expect("a directory can be made");
        spec.config.cni_cache_dir = runtime.cache_dir().to_string_lossy().into_owned();
        let timer = Arc::new(VirtualTime { epoch: tokio::time::Instant::now() });
        let mut sim = Sim::new(spec.sim.clone());
        build(&mut sim, &spec);
        let host = FakeHost::default();
        let sim = Arc::new(Mutex::new(sim));
        tokio::spawn(plug(sim.clone(), timer.clone(), host.clone()));
        let clock = Arc::new(TokioClock::default());
        let store = MemoryStore::default();
        let placement = watch::Sender::new(News::Unheard);
        let settings = watch::Sender::new(None);
        let (daemon, told) = (None, Arc::default());
        let mut node = Self {
            spec,
            sim,
            timer,
            host,
            store,
            clock,
            daemon,
            runtime,
            placement,
            settings,
            told,
        };
        node.boot().await;
        node
    }

    /// Starts a daemon over what the last one left.
    ///
    /// # Panics
    /// When one runs.
    pub async fn boot(&mut self) {
        assert!(self.daemon.is_none(), "a daemon runs");
        let Channels { commands: (commands, mut requests), events: (events, news) } =
            Channels::default();
        let host = self.host.reopened(events);
        // The thread that kept them has ended with the daemon.
        host.state().kept.clear();
        let instance: InstanceId = INSTANCE.parse().expect("valid");
        let cloud = Arc::new(SimCloud::new(self.sim.clone(), self.timer.clone(), instance));
        let (config, clock) = (Arc::new(self.spec.config.clone()), self.clock.clone());
        let (store, metrics) = (self.store.clone(), Arc::new(Metrics::new()));
        let counted = metrics.clone();
        let (placed, settings) = (self.placement.subscribe(), self.settings.subscribe());
        let teller: Arc<Told> = self.told.clone();
        let task = tokio::spawn(async move {
            let recovered = store.recover();
            store.begun_anew();
            let startup = Startup::default();
            let begin = async {
                let kept = recovered.whereabouts.clone();
                let whereabouts = start::kept_or_asked(&*cloud, kept, &startup).await;
                let kernel_pods = host.pods();
                let start = Start {
                    cloud,
                    host,
                    store,
                    recovered,
                    config,
                    clock,
                    whereabouts,
                    kernel_pods,
                    metrics,
                    provider_name: "sim",
                    booted_at_secs: 1_795_000_000,
                };
                start::owner_after(start, &startup).await
            };
            let answering = startup.answer_while(&mut requests, begin);
            let (owner, early) = Box::pin(answering).await;
            let owner = owner.with_early(early).placed_by(placed).told_by(Some(teller));
            let owner = owner.configured_by(settings);
            owner.run(requests, news).await;
        });
        self.daemon = Some(Daemon { requests: Requests::new(commands), metrics: counted, task });
    }

    /// Where ENIs are made from now on, with custom networking; [`News::Unheard`] once nobody says so.
    pub fn place(&self, news: News) {
        self.placement.send_replace(news);
    }

    /// What the cluster says of the pool's settings from now on; `None` once it says nothing.
    pub fn configure(&self, heard: Option<Heard>) {
        self.settings.send_replace(heard);
    }

    /// What the cluster was told.
    #[must_use]
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// The cloud as the daemon has it.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn cloud(&self) -> SimCloud<VirtualTime> {
        let instance = INSTANCE.parse().expect("valid");
        SimCloud::new(self.sim.clone(), self.timer.clone(), instance)
    }

    /// Kills the daemon where it stands.
    ///
    /// # Panics
    /// When the daemon has panicked before.
    pub async fn kill(&mut self) {
        let Some(daemon) = self.daemon.take() else { return };
        daemon.task.abort();
        if let Err(error) = daemon.task.await {
            assert!(error.is_cancelled(), "the daemon failed: {error}");
        }
    }

    /// Other settings from the next daemon on.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.spec.config);
    }

    /// The container runtime's part.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The journal.
    #[must_use]
    pub fn store(&self) -> MemoryStore {
        self.store.clone()
    }

    /// The simulator.
    pub fn sim(&self) -> MutexGuard<'_, Sim> {
        lock(&self.sim)
    }

    /// The key of pod `n`.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn attachment(n: u32) -> Attachment {
        Attachment {
            network: "veni".parse().expect("valid"),
            container_id: format!("pod{n}").parse().expect("valid"),
            ifname: "eth0".parse().expect("valid"),
        }
    }

    /// Begins the ADD of pod `n`: the answer comes later.
    pub fn begin_add(&self, n: u32) -> impl Future<Output = Option<ReplyBody>> + use<> {
        let request = Self::request(n);
        let requests = self.daemon.as_ref().map(|daemon| daemon.requests.clone());
        let (host, file) = (self.host.clone(), self.runtime.file(&request.attachment));
        async move {
            let wire = |body: &ReplyBody| {
                host.wire(body);
                if let ReplyBody::Wiring(wiring) = body {
                    let result = Runtime::result(&Self::request(n), wiring);
                    fs::write(file, result).expect("the directory is there");
                }
            };
            requests?.add(request, wire).await
        }
    }

    /// What the plugin asks for pod `n`.
    #[must_use]
    pub fn request(n: u32) -> AddRequest {
        AddRequest {
            attachment: Self::attachment(n),
            pod: PodRef { namespace: "default".into(), name: format!("pod{n}"), uid: None },
            netns: "/proc/self/ns/net".into(),
            wait_millis: None,
        }
    }

    /// The runtime's GC: it has these pods.
    #[must_use]
    pub fn gc(pods: impl IntoIterator<Item = u32>) -> GcRequest {
        let valid = pods.into_iter().map(Self::attachment).map(|attachment| ValidAttachment {
            container_id: attachment.container_id,
            ifname: attachment.ifname,
        });
        GcRequest { network: Self::attachment(0).network, valid: valid.collect() }
    }

    /// The daemon, for what a plugin does not do.
    #[must_use]
    pub fn requests(&self) -> Option<Requests> {
        self.daemon.as_ref().map(|daemon| daemon.requests.clone())
    }

    /// What the daemon counts.
    ///
    /// # Panics
    /// When none runs.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        self.daemon.as_ref().expect("a daemon runs").metrics.clone()
    }

    /// ADD of pod `n`.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn add(&self, n: u32) -> Box<Wiring> {
        match self.begin_add(n).await {
            Some(ReplyBody::Wiring(wiring)) => wiring,
            other => panic!("ADD of pod {n}: {other:?}"),
        }
    }

    /// DEL of pod `n`; its link goes first.
    pub async fn del(&self, n: u32) -> Option<ReplyBody> {
        self.vanish(n);
        self.requests()?.del(Self::attachment(n), DelReason::PodDeleted).await
    }

    /// Pod `n` goes without a DEL: its link, and what the runtime knows of it.
    pub fn vanish(&self, n: u32) {
        let attachment = Self::attachment(n);
        self.host.unwire(&attachment);
        // It is not there where no ADD came to its end.
        drop(fs::remove_file(self.runtime.file(&attachment)));
    }

    /// The daemon's view, once it serves.
    ///
    /// # Panics
    /// When it does not within an hour.
    pub async fn view(&self) -> View {
        let requests = self.requests().expect("a daemon runs");
        let serving = async {
            loop {
                match requests.view(true).await {
                    Some(view) => return view,
                    None => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), serving).await.expect("the daemon serves")
    }

    /// Lets time pass until nothing is in flight and the pool wants nothing.
    ///
    /// # Panics
    /// When that takes more than an hour of virtual time.
    pub async fn settle(&self) -> View {
        for _ in 0..7200 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let view = self.view().await;
            let pool = view.pool;
            let full = pool.total == view.node.max_enis * (view.node.addresses_per_eni - 1);
            let quiet = view.plan.running.is_empty() && pool.pending + pool.waiting == 0;
            if quiet && (view.plan.wanted == 0 || full) {
                return view;
            }
        }
        panic!("the pool does not settle: {:?}", self.view().await);
    }

    /// As [`Node::settle`], for an instance that can hold no more.
    pub async fn settle_full(&self) -> View {
        tokio::time::sleep(Duration::from_secs(5)).await;
        self.view().await
    }

    /// Everything that must hold at any moment, of the journal and of the account.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn assert_sound(&self) {
        self.assert_sound_but(|_| false);
    }

    /// As [`Node::assert_sound`], but for broken invariants of the ledger that are `excused`.
    ///
    /// # Panics
    /// When something else does not hold.
    pub fn assert_sound_but(&self, excused: impl Fn(&Violation) -> bool) {
        let recovered = self.store.recover();
        let kind = self.spec.instance_type.parse().expect("valid");
        let limits = veni_core::limits::lookup(&kind).expect("in the table");
        let limits = start::pool_limits(&limits, &Config::default());
        let mut violations = check::check(&recovered.ledger, limits);
        violations.retain(|violation| !excused(violation));
        assert_eq!(violations, [], "the ledger is broken");
        let sim = self.sim();
        assert_eq!(sim.audit(), Vec::<String>::new(), "the account is broken");
        let links = self.host.state().links.clone();
        let alive = |a: &&Allocation| links.contains(&a.host_ifindex);
        for allocation in recovered.ledger.allocations().filter(alive) {
            let held =
                sim.interfaces().any(|i| i.secondary_addresses.contains(&allocation.address));
            assert!(held, "{} is on a pod and not on an ENI", allocation.address);
        }
    }
}

fn build(sim: &mut Sim, spec: &NodeSpec) {
    let vpc: veni_core::id::VpcId = "vpc-1".parse().expect("valid");
    sim.add_vpc(vpc.clone(), vec!["10.0.0.0/16".parse().expect("valid")]).expect("a fresh region");
    let subnet = SubnetSpec {
        id: "subnet-1".parse().expect("valid"),
        vpc_id: vpc,
        availability_zone: "eu-central-1a".into(),
        cidr: spec.subnet.parse().expect("valid"),
        tags: std::collections::BTreeMap::default(),
    };
    sim.add_subnet(subnet).expect("a fresh region");
    let instance = InstanceSpec {
        id: INSTANCE.parse().expect("valid"),
        instance_type: spec.instance_type.parse().expect("valid"),
        subnet_id: "subnet-1".parse().expect("valid"),
        security_groups: Vec::new(),
    };
    sim.run_instance(Duration::ZERO, instance).expect("a fresh region");
}

/// Lets the simulator live and plugs ENIs' links as their attachments complete.
async fn plug(sim: Arc<Mutex<Sim>>, timer: Arc<VirtualTime>, host: FakeHost) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    lock(&sim).on_change(move || notify.notify_one());
    let mut plugged = HashSet::new();
    loop {
        let (now_plugged, next) = {
            let mut sim = lock(&sim);
            sim.advance(timer.now());
            drop(sim.drain_events());
            let in_use = sim.interfaces().filter(|i| i.status == InterfaceStatus::InUse);
            (in_use.map(|i| i.mac).collect::<HashSet<_>>(), sim.next_event_at())
        };
        if now_plugged != plugged {
            plugged.clone_from(&now_plugged);
            host.plug(now_plugged);
        }
        let due = async {
            match next {
                Some(at) => timer.sleep(at.saturating_sub(timer.now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The same order in each run of a seed.
            biased;
            () = due => {}
            () = changed.notified() => {}
        }
    }
}

/// The time of a running node.
impl Node {
    /// Milliseconds since the test's start.
    #[must_use]
    pub fn now_millis(&self) -> u64 {
        self.clock.now().0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
