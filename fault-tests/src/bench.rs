//! One node of a lab, its daemon in the test's hands, and pods whose sandboxes outlive failed operations.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use veni_core::wire::inspect::View;
use veni_lab::{
    Lab, LabConfig, Node, Pod,
    cluster::PodSpec,
    ns::{self, Namespace},
    runtime::Sandbox,
    snapshot::Snapshot,
};
use veni_provider::sim::SimConfig;

use crate::{daemon::Daemon, journal, programs};

/// How long anything may take that is instant in the simulator: a daemon's backoff included.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// How long requests that are to come together are waited for.
const TOGETHER: Duration = Duration::from_millis(500);

/// A node with 3 ENIs of 3 addresses for pods each, and a pool that keeps one address spare: little is needed to make
/// it grow and shrink. No cooldown: a released address is the next one to be given out.
const INSTANCE_TYPE: &str = "t3.small";
/// Pods here have no objects, so there is no policy; with policy the lab's own tests end the daemon.
const SETTINGS: [(&str, &str); 3] =
    [("WARM_IP_TARGET", "1"), ("IP_COOLDOWN_PERIOD", "0"), ("VENI_MANIFEST_DIR", "")];

/// The node and what runs on it.
#[derive(Debug)]
pub struct Bench {
    /// Before the lab, so that it is gone before the lab is.
    daemon: Option<Daemon>,
    pods: BTreeMap<String, Pod>,
    sandboxes: BTreeMap<String, (Namespace, Sandbox)>,
    vanished: BTreeMap<String, Sandbox>,
    /// The node.
    pub node: Arc<Node>,
    /// The lab.
    pub lab: Lab,
    bare: Snapshot,
}

// === impl Bench ===

impl Bench {
    /// A node whose daemon serves; `None` where no lab can be laid, which it says.
    ///
    /// # Errors
    /// When something cannot be built or started.
    pub fn up(test: &str) -> Result<Option<Self>> {
        let Some(mut bench) = Self::without_daemon(test)? else { return Ok(None) };
        bench.start()?;
        bench.settle(0, 1, 1)?;
        bench.bare = Snapshot::take(&bench.node.namespace)?;
        Ok(Some(bench))
    }

    /// As [`Bench::up`], before the daemon's first start.
    ///
    /// # Errors
    /// As [`Bench::up`].
    #[expect(clippy::print_stdout, reason = "what is skipped is said")]
    pub fn without_daemon(test: &str) -> Result<Option<Self>> {
        if let Some(missing) = ns::missing_feature() {
            println!("SKIPPED: {missing}");
            return Ok(None);
        }
        programs::build()?;
        let name = format!("f-{test}-{}", std::process::id());
        let mut config = LabConfig::one_node(&name, INSTANCE_TYPE);
        config.ec2 = SimConfig::instant();
        for (name, value) in SETTINGS {
            config = config.with_env(name, value);
        }
        for node in &mut config.nodes {
            node.ipamd = false;
        }
        let lab = Lab::up(&config)?;
        let node = Arc::clone(lab.node("node-1")?);
        Ok(Some(Self {
            daemon: None,
            pods: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            vanished: BTreeMap::new(),
            node,
            lab,
            bare: Snapshot::default(),
        }))
    }

    /// The pods that were added and not deleted.
    #[must_use]
    pub fn pods(&self) -> &BTreeMap<String, Pod> {
        &self.pods
    }

    /// A pod.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("no pod {name}"))
    }

    /// Whose address is whose.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<String, Ipv4Addr> {
        self.pods.iter().map(|(name, pod)| (name.clone(), pod.added.address)).collect()
    }

    /// What the node's network was before the first pod.
    #[must_use]
    pub fn bare(&self) -> &Snapshot {
        &self.bare
    }

    /// The daemon's view.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn view(&self) -> Result<View> {
        Ok(self.node.inspect()?)
    }

    /// The daemon.
    ///
    /// # Errors
    /// When it was stopped.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("the daemon was stopped")
    }

    /// Starts the daemon and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(&mut self) -> Result<()> {
        self.daemon = None;
        self.daemon = Some(Daemon::serving(&self.node)?);
        Ok(())
    }

    /// As [`Bench::start`] where the daemon cannot be ready: until it answers for itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_unready(&mut self) -> Result<()> {
        self.daemon = None;
        self.daemon.insert(Daemon::start(&self.node, None)?).wait_up()
    }

    /// Takes over a daemon that was started otherwise.
    pub fn use_daemon(&mut self, daemon: Daemon) {
        self.daemon = Some(daemon);
    }

    /// Starts the daemon with `VENI_FAULT=<fault>` and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_with(&mut self, fault: &str) -> Result<()> {
        self.daemon = None;
        let daemon = self.daemon.insert(Daemon::start(&self.node, Some(fault))?);
        daemon.wait_ready()
    }

    /// Ends the daemon.
    ///
    /// # Errors
    /// When it has ended by itself.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        self.daemon.take().context("the daemon was stopped already")?.stop(signal).map(drop)
    }

    /// Ends the daemon, lets `age` pass by its journal, and starts it again.
    ///
    /// # Errors
    /// As [`Bench::stop`] and [`Bench::start_with`].
    pub fn grow_old(&mut self, age: Duration, fault: Option<&str>) -> Result<()> {
        self.stop(Signal::SIGTERM)?;
        journal::grow_old(&self.node, age)?;
        match fault {
            Some(fault) => self.start_with(fault),
            None => self.start(),
        }
    }

    /// The sandbox of the pod `name`, made when it is first asked for.
    ///
    /// # Errors
    /// When its namespace cannot be made.
    pub fn sandbox(&mut self, name: &str) -> Result<Sandbox> {
        if !self.sandboxes.contains_key(name) {
            self.sandboxes.insert(name.to_owned(), self.lab.sandbox(name)?);
        }
        Ok(self.sandboxes[name].1.clone())
    }

    /// Adds a pod, or repeats its ADD.
    ///
    /// # Errors
    /// What the plugin says. Its sandbox is kept for the next attempt.
    pub fn add(&mut self, name: &str) -> Result<Ipv4Addr> {
        self.add_all(&[name])?;
        Ok(self.pod(name)?.added.address)
    }

    /// Adds pods at once: the daemon finds all their requests when it looks at the first.
    ///
    /// # Errors
    /// What the plugin says of the first that failed; the others are added.
    pub fn add_all(&mut self, names: &[&str]) -> Result<()> {
        let sandboxes: Vec<_> =
            names.iter().map(|name| self.sandbox(name)).collect::<Result<_>>()?;
        let runtime = &self.node.runtime;
        let daemon = self.daemon.as_ref().filter(|_| names.len() > 1);
        daemon.map_or(Ok(()), |daemon| daemon.hold(true))?;
        let connected = self.connections()? + names.len();
        let results: Vec<_> = thread::scope(|scope| {
            let adding: Vec<_> =
                sandboxes.iter().map(|sandbox| scope.spawn(|| runtime.add(sandbox))).collect();
            if let Some(daemon) = daemon {
                let all_there = eventually(TOGETHER, || {
                    ensure!(self.connections()? >= connected, "plugins have not connected");
                    Ok(())
                });
                let released = daemon.hold(false);
                // The requests' own results tell more.
                drop((all_there, released));
            }
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            adding.into_iter().map(join).collect()
        });
        let mut outcome = Ok(());
        for (name, result) in names.iter().zip(results) {
            match result {
                Ok(added) => self.keep(name, added),
                Err(error) => outcome = outcome.and(Err(error.into())),
            }
        }
        outcome
    }

    /// Deletes a pod and its sandbox, however far its ADD got.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn del(&mut self, name: &str) -> Result<()> {
        if let Some(sandbox) = self.vanished.remove(name) {
            self.node.runtime.del(&sandbox)?;
            return Ok(());
        }
        let sandbox = self.sandbox(name)?;
        self.node.runtime.del(&sandbox)?;
        self.pods.remove(name);
        if let Some((namespace, _)) = self.sandboxes.remove(name) {
            namespace.unbind()?;
        }
        Ok(())
    }

    /// Removes a pod's namespace, as when its sandbox is gone before its DEL.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn vanish(&mut self, name: &str) -> Result<()> {
        self.pods.remove(name).with_context(|| format!("no pod {name}"))?;
        let (namespace, sandbox) = self.sandboxes.remove(name).context("no sandbox")?;
        namespace.unbind()?;
        self.vanished.insert(name.to_owned(), sandbox);
        Ok(())
    }

    /// Waits until the pool has come to rest with so many pods, addresses and ENIs.
    ///
    /// # Errors
    /// When the daemon dies, or something else comes of it.
    pub fn settle(&self, assigned: u32, total: u32, enis: usize) -> Result<View> {
        let rests = |view: &View| {
            let pool = &view.pool;
            (pool.assigned, pool.total, view.enis.len()) == (assigned, total, enis)
                && pool.available + pool.assigned == pool.total
                && view.enis.iter().all(|eni| eni.phase == "in_use")
                && view.plan.running.is_empty()
                && self.protected()
                && self.tidy()
        };
        let what = format!("{assigned} pods on {total} addresses of {enis} ENIs");
        let log = || self.daemon.as_ref().map(Daemon::log_tail).unwrap_or_default();
        self.node.wait_for(&what, PATIENCE, rests).with_context(log)
    }

    /// Waits until the pool has come to rest with so many pods, whatever else it has.
    ///
    /// # Errors
    /// When the daemon dies, or it does not.
    pub fn rest(&self, assigned: u32) -> Result<View> {
        let rests = |view: &View| {
            let pool = &view.pool;
            pool.assigned == assigned
                && pool.available > 0
                && pool.available + pool.assigned == pool.total
                && view.enis.iter().all(|eni| eni.phase == "in_use")
                && view.plan.running.is_empty()
                && view.plan.wanted == 0
                && self.protected()
                && self.tidy()
        };
        let log = || self.daemon.as_ref().map(Daemon::log_tail).unwrap_or_default();
        let what = format!("{assigned} pods and no call under way");
        self.node.wait_for(&what, PATIENCE, rests).with_context(log)
    }

    /// Sockets at the daemon's address: the listening one, and one a connection. (It was bound under another name
    /// and renamed.)
    fn connections(&self) -> Result<usize> {
        let listing = self.node.namespace.tool("cat", &["/proc/thread-self/net/unix"], "")?;
        let path = self.node.dir.join("ipamd.").display().to_string();
        Ok(listing.lines().filter(|line| line.contains(&path)).count())
    }

    fn keep(&mut self, name: &str, added: veni_lab::runtime::Added) {
        let (namespace, sandbox) = self.sandboxes[name].clone();
        let node = Arc::clone(&self.node);
        let spec = PodSpec::called(name);
        let pod = Pod { name: name.to_owned(), spec, node, namespace, sandbox, added };
        self.pods.insert(name.to_owned(), pod);
    }

    /// Whether nothing is left over of earlier DELs: conntrack entries of released addresses are removed beside everything
    /// else. (The journal is rewritten within a request.)
    fn tidy(&self) -> bool {
        let metrics = self.node.metrics().unwrap_or_default();
        metrics.lines().any(|line| line == "veni_flushing_addresses 0")
    }

    /// Whether EC2 deletes the secondary ENIs with the instance: the last call that a new ENI needs.
    fn protected(&self) -> bool {
        let interfaces = self.lab.account.interfaces_of(&self.node.instance);
        interfaces.iter().all(|i| i.attachment.as_ref().is_some_and(|a| a.delete_on_termination))
    }
}

/// Waits until `holds` does.
///
/// # Errors
/// When it does not within `timeout`; what `holds` fails with last.
pub fn eventually(timeout: Duration, holds: impl Fn() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    loop {
        match holds() {
            Ok(()) => return Ok(start.elapsed()),
            Err(error) => ensure!(start.elapsed() < timeout, "not within {timeout:?}: {error:#}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs `work` for each lane at once, each on a thread: labs wait more than they work.
///
/// # Errors
/// What the first lane that failed says.
pub fn in_lanes(lanes: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = (0..lanes).map(|lane| scope.spawn(move || work(lane))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let results: Vec<_> = running.into_iter().map(join).collect();
        results.into_iter().collect()
    })
}
