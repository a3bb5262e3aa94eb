//! ipamd on a [`Node`]: the real owner, planner, executor and journal over real EC2 requests; the kernel is
//! [`FakeHost`], whose ENI links follow EC2's attachments.
//!
//! Time is real, but for one thing: a test can move the daemon's own clock forward, past cooldowns and minimum ages.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{task::JoinHandle, time::Instant};
use veni_core::{
    config::Config,
    ipam::BootTime,
    wire::{AddRequest, Attachment, DelReason, PodRef, ReplyBody, Wiring, inspect::View},
};
use veni_ipamd::{
    clock::{BootClock, Clock},
    host::fake::FakeHost,
    journal::Journal,
    metrics::Metrics,
    placement,
    requests::Requests,
    start::{self, Channels, Start},
};
use veni_provider::{Interface, InterfaceStatus};

use crate::account::{Account, Node};

/// How often EC2's attachments become links. The kernel tells at once; LocalStack has to be asked.
const PLUG_PERIOD: Duration = Duration::from_millis(100);
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// How long a test waits for a state before it fails.
const PATIENCE: Duration = Duration::from_secs(90);

/// A node's daemon, which can be killed and started again over the same journal and kernel.
#[derive(Debug)]
pub struct Daemon {
    account: Account,
    node: Node,
    config: Arc<Config>,
    state: tempfile::TempDir,
    host: FakeHost,
    clock: Arc<ShiftedClock>,
    running: Option<Running>,
    plugging: JoinHandle<()>,
}

#[derive(Debug)]
struct Running {
    requests: Requests,
    task: JoinHandle<anyhow::Result<()>>,
}

/// Boot time, and what a test has added to it.
#[derive(Debug, Default)]
struct ShiftedClock {
    added_ms: AtomicU64,
}

impl Clock for ShiftedClock {
    fn now(&self) -> BootTime {
        BootTime(BootClock.now().0 + self.added_ms.load(Ordering::Relaxed))
    }
}

impl Daemon {
    /// Starts the daemon of `node` with the given variables.
    ///
    /// # Errors
    /// When a variable is wrong or the daemon cannot start.
    pub async fn start(
        account: Account,
        node: Node,
        vars: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let state = tempfile::tempdir()?;
        // The runtime's: it has no pod that the kernel has not.
        std::fs::create_dir(state.path().join("results"))?;
        let directory = state.path().to_string_lossy();
        let ours = [("VENI_CNI_CACHE_DIR", &*directory), ("VENI_PROVIDER", "aws")];
        let vars = vars.iter().chain(&ours).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let (config, _) =
            Config::from_vars(vars).map_err(|errors| anyhow::anyhow!("settings: {errors:?}"))?;
        let host = FakeHost::default();
        host.plug(HashSet::new());
        let plugging = tokio::spawn(plug(account.clone(), node.clone(), host.clone()));
        let (config, clock) = (Arc::new(config), Arc::default());
        let mut daemon =
            Self { account, node, config, state, host, clock, running: None, plugging };
        daemon.boot().await?;
        Ok(daemon)
    }

    /// Starts a daemon over what the last one left in the journal, the kernel and EC2.
    ///
    /// # Errors
    /// When the journal cannot be opened.
    pub async fn boot(&mut self) -> anyhow::Result<()> {
        let Channels { commands: (commands, received), events: (events, news) } =
            Channels::default();
        let host = self.host.reopened(events);
        let cloud = Arc::new(self.account.cloud_of(&self.node.metadata).await?);
        let (config, clock) = (self.config.clone(), self.clock.clone());
        let journal = PathBuf::from(self.state.path());
        let task = tokio::spawn(async move {
            let (store, recovered) = Journal::open(&journal, "the-boot-of-this-test")?;
            let whereabouts = start::whereabouts(&*cloud).await;
            let placed = placement::start(&config, cloud.clone(), &whereabouts, None)?;
            let kernel_pods = host.pods();
            let owner = start::owner(Start {
                cloud,
                host,
                store,
                recovered,
                config,
                clock,
                whereabouts,
                kernel_pods,
                metrics: Arc::new(Metrics::new()),
                provider_name: "aws",
                booted_at_secs: 1_795_000_000,
            });
            let owner = Box::pin(owner).await;
            let owner = match placed {
                Some(source) => owner.placed_by(source),
                None => owner,
            };
            owner.run(received, news).await;
            Ok(())
        });
        self.running = Some(Running { requests: Requests::new(commands), task });
        Ok(())
    }

    /// Ends the daemon where it stands, its calls under way included: their answers are lost.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        running.task.abort();
        match running.task.await {
            Err(error) if error.is_cancelled() => Ok(()),
            ended => bail!("the daemon had ended: {ended:?}"),
        }
    }

    /// Its account.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Moves the daemon's clock forward.
    pub fn pass(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.clock.added_ms.fetch_add(millis, Ordering::Relaxed);
    }

    /// ADD of pod `n`: its address, or the refusal in words.
    pub async fn add(&self, n: u32) -> anyhow::Result<Wiring> {
        let request = AddRequest {
            attachment: attachment(n)?,
            pod: PodRef { namespace: "default".into(), name: format!("pod{n}"), uid: None },
            netns: "/proc/self/ns/net".into(),
            wait_millis: None,
        };
        let body = self.requests()?.add(request, |body| self.host.wire(body)).await;
        match body.context("the daemon ended during the ADD")? {
            ReplyBody::Wiring(wiring) => Ok(*wiring),
            other => bail!("ADD of pod {n}: {other:?}"),
        }
    }

    /// ADDs of many pods at once.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn add_all(&self, pods: std::ops::Range<u32>) -> anyhow::Result<Vec<Wiring>> {
        let mut wirings = Vec::new();
        // On one task: they are all sent before the first answer is looked at.
        let mut adds: Vec<_> = pods.map(|n| Box::pin(self.add(n))).collect();
        let mut open: Vec<_> = (0..adds.len()).collect();
        std::future::poll_fn(|context| {
            let mut failed = None;
            open.retain(|index| match adds[*index].as_mut().poll(context) {
                std::task::Poll::Pending => true,
                std::task::Poll::Ready(Ok(wiring)) => {
                    wirings.push(wiring);
                    false
                }
                std::task::Poll::Ready(Err(error)) => {
                    failed = Some(error);
                    false
                }
            });
            match failed {
                Some(error) => std::task::Poll::Ready(Err(error)),
                None if open.is_empty() => std::task::Poll::Ready(Ok(())),
                None => std::task::Poll::Pending,
            }
        })
        .await?;
        Ok(wirings)
    }

    /// DEL of pod `n`, whose link has gone.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub async fn del(&self, n: u32) -> anyhow::Result<()> {
        let attachment = attachment(n)?;
        self.host.unwire(&attachment);
        match self.requests()?.del(attachment, DelReason::PodDeleted).await {
            Some(ReplyBody::Released(_)) => Ok(()),
            other => bail!("DEL of pod {n}: {other:?}"),
        }
    }

    /// The daemon's view.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn view(&self) -> anyhow::Result<View> {
        self.requests()?.view(true).await.context("no view")
    }

    /// Looks until the view is as `is` wants it.
    ///
    /// # Errors
    /// When it is not within the patience of a test.
    pub async fn until(&self, what: &str, is: impl Fn(&View) -> bool) -> anyhow::Result<View> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.view().await?;
            if is(&view) {
                return Ok(view);
            }
            if Instant::now() >= deadline {
                bail!("not {what}: {view:#?}");
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    /// Waits until nothing is under way and nothing wanted.
    ///
    /// # Errors
    /// As [`Daemon::until`].
    pub async fn settle(&self) -> anyhow::Result<View> {
        self.until("settled", |view| {
            let pool = view.pool;
            let quiet =
                view.plan.running.is_empty() && pool.pending + pool.waiting + pool.releasing == 0;
            let still = view.enis.iter().all(|eni| eni.phase == "in_use");
            quiet && still && view.plan.wanted == 0
        })
        .await
    }

    /// What must hold when nothing is under way: ledger and EC2 hold the same ENIs and addresses, each pod's address
    /// once and on an ENI of its node, and no ENI of the VPC is left over.
    ///
    /// # Errors
    /// When something does not hold, in words.
    pub async fn audit(&self) -> anyhow::Result<Vec<Interface>> {
        let view = self.view().await?;
        let attached = self.account.attached_to(&self.node.instance).await?;
        let held: BTreeMap<Ipv4Addr, String> = attached
            .iter()
            .flat_map(|eni| eni.secondary_addresses.iter().map(|a| (*a, eni.id.to_string())))
            .collect();
        let known: BTreeMap<_, _> =
            view.addresses.iter().map(|a| (a.address, a.eni.to_string())).collect();
        anyhow::ensure!(known == held, "the ledger has {known:?}, EC2 {held:?}");
        let pods: Vec<_> = view.addresses.iter().filter_map(|a| a.attachment.clone()).collect();
        let distinct: BTreeSet<_> = pods.iter().collect();
        anyhow::ensure!(distinct.len() == pods.len(), "a pod has two addresses: {pods:?}");
        let ours: BTreeSet<_> = attached.iter().map(|eni| eni.id.to_string()).collect();
        let all: BTreeSet<_> = self.account.interface_ids().await?.into_iter().collect();
        anyhow::ensure!(ours == all, "ENIs left over: {:?}", &all - &ours);
        Ok(attached)
    }

    /// As [`Daemon::audit`], but with the time that the daemon's comparison with metadata takes: a call under way when
    /// a daemon was killed can have its effect after its successor has looked at EC2.
    ///
    /// # Errors
    /// What still does not hold after it.
    pub async fn audit_in_time(&self) -> anyhow::Result<Vec<Interface>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.audit().await {
                Err(_) if Instant::now() < deadline => tokio::time::sleep(LOOK_PERIOD).await,
                ended => return ended,
            }
        }
    }

    /// How often the daemon made a call of `action`, answered in whatever way.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn calls_of(&self, action: &str) -> anyhow::Result<usize> {
        Ok(self.account.calls()?.iter().filter(|call| call.action == action).count())
    }

    fn requests(&self) -> anyhow::Result<Requests> {
        Ok(self.running.as_ref().context("no daemon runs")?.requests.clone())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.plugging.abort();
        if let Some(running) = &self.running {
            running.task.abort();
        }
    }
}

fn attachment(n: u32) -> anyhow::Result<Attachment> {
    Ok(Attachment {
        network: "veni".parse()?,
        container_id: format!("pod{n}").parse()?,
        ifname: "eth0".parse()?,
    })
}

/// Gives each attached ENI its link, and takes it away again.
async fn plug(account: Account, node: Node, host: FakeHost) {
    let mut last = HashSet::new();
    loop {
        if let Ok(attached) = account.attached_to(&node.instance).await {
            let in_use = attached.iter().filter(|eni| eni.status == InterfaceStatus::InUse);
            let macs: HashSet<_> = in_use.map(|eni| eni.mac).collect();
            if macs != last {
                host.plug(macs.clone());
                last = macs;
            }
        }
        tokio::time::sleep(PLUG_PERIOD).await;
    }
}
