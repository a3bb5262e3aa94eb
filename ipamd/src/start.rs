//! From nothing to serving: lock, socket, journal, kernel, cloud.
//!
//! With a journal of this boot the daemon serves from it at once, and asks instance metadata and EC2 beside; without one
//! it needs both answers first: who it is, and what it has. What the cloud refuses is tried again for ever, with
//! backoff, and said ([`Startup`]): never a crash loop.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::sync::{mpsc, oneshot};
use veni_core::{
    config::Config,
    id::InstanceType,
    ipam::{
        Allocation, BootTime, check,
        placement::Networking,
        plan::{PoolLimits, Settings},
    },
    limits::{self, Hypervisor, InstanceLimits},
    wire::{Attachment, PodRef},
};
use veni_provider::{
    Cloud, CloudError, ErrorClass, InstanceIdentity, InterfaceFilter, TAG_INSTANCE_ID,
};

use crate::{
    clock::Clock,
    evidence::Evidence,
    executor,
    host::{Host, HostEvent},
    journal::{Recovered, Store},
    metrics::Metrics,
    owner::{Command, Owner, Parts, WIRING_GRACE},
    pool::{Adoption, PROVISIONING, Pool},
    startup::Startup,
    whereabouts::Whereabouts,
};

/// What to do when metadata does not answer.
const METADATA_NEXT: &str = "see that the node reaches http://169.254.169.254 (the instance's metadata options, a \
                             firewall on the node) and that ipamd runs in the node's network namespace";
/// What to do when EC2 does not answer.
const EC2_NEXT: &str = "see that the node reaches EC2's API (route, VPC endpoint, security group) and that its IAM \
                        role allows ec2:DescribeNetworkInterfaces";

/// A pod that the kernel shows.
#[derive(Debug, Clone)]
pub struct KernelPod {
    /// Its address.
    pub address: std::net::Ipv4Addr,
    /// Its veth on the node.
    pub host_ifname: String,
    /// Its index.
    pub host_ifindex: u32,
}

/// Waits for the lock of the state directory: during a rolling update the former daemon serves on.
///
/// # Errors
/// When the file cannot be made.
pub async fn lock(state_dir: &Path) -> Result<Flock<File>> {
    let (path, file) = lock_file(state_dir)?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(held(lock)),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, error)) => {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
    };
    let holder = holder(&path);
    tracing::info!(lock = %path.display(), holder, "another ipamd serves this node: waiting until it ends");
    // A thread of its own, that SIGTERM need not wait for: the process ends around it.
    let (locked, lock) = oneshot::channel();
    std::thread::Builder::new()
        .name("lock".to_owned())
        .spawn(move || drop(locked.send(Flock::lock(file, FlockArg::LockExclusive))))
        .context("starting a thread")?;
    match lock.await.context("the thread that waits for the lock has ended")? {
        Ok(lock) => Ok(held(lock)),
        Err((_, error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// The lock's file, which is never emptied by who does not hold it: it names the holder.
///
/// # Errors
/// When it cannot be made.
pub fn lock_file(state_dir: &Path) -> Result<(PathBuf, File)> {
    let path = state_dir.join("lock");
    std::fs::create_dir_all(state_dir)
        .with_context(|| format!("making {}", state_dir.display()))?;
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(|| format!("making {}", path.display()))?;
    Ok((path, file))
}

/// Who holds the lock at `path`, for people.
#[must_use]
pub fn holder(path: &Path) -> String {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => format!("process {}", text.trim()),
        _ => "a process that has not said which".to_owned(),
    }
}

/// Names this process in the file. The lock holds without.
fn held(mut lock: Flock<File>) -> Flock<File> {
    let named = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
    if let Err(error) = named {
        tracing::debug!(%error, "the lock's file does not name this process");
    }
    lock
}

/// Asks who and where this instance is, until there is an answer.
pub async fn whereabouts<C: Cloud>(cloud: &C) -> Whereabouts {
    asked(cloud, &Startup::default()).await
}

async fn asked<C: Cloud>(cloud: &C, startup: &Startup) -> Whereabouts {
    let what = "the instance's identity from instance metadata";
    let identity = startup.persist(what, METADATA_NEXT, || cloud.identity()).await;
    let what = "the primary ENI in instance metadata";
    let primary = startup.persist(what, METADATA_NEXT, || async {
        let interfaces = cloud.metadata_interfaces().await?;
        let primary = interfaces.into_iter().find(|i| i.mac == identity.primary_mac);
        primary.ok_or_else(|| {
            let message = "the primary ENI is not in instance metadata (yet)";
            CloudError::new("metadata", ErrorClass::NotFound, "NotFound", message)
        })
    });
    let primary = primary.await;
    let (limits, makeshift) = limits_of(cloud, &identity.instance_type).await;
    Whereabouts { identity, primary, limits, makeshift, custom: None, following: None }
}

/// What a former daemon of this boot has kept, else what the cloud says. Within a boot an instance cannot have become
/// another one, so what was kept is believed without asking.
pub async fn kept_or_asked<C: Cloud>(
    cloud: &C,
    kept: Option<Whereabouts>,
    startup: &Startup,
) -> Whereabouts {
    let Some(kept) = kept else { return asked(cloud, startup).await };
    if let Some(limits) = limits::lookup(&kept.identity.instance_type) {
        // A newer table knows better.
        return Whereabouts { limits, makeshift: false, ..kept };
    }
    if !kept.makeshift {
        return kept;
    }
    startup.waits_for("the instance type's limits from EC2", EC2_NEXT);
    let (limits, makeshift) = limits_of(cloud, &kept.identity.instance_type).await;
    Whereabouts { limits, makeshift, ..kept }
}

/// Limits, and whether they are a makeshift.
async fn limits_of<C: Cloud>(cloud: &C, instance_type: &InstanceType) -> (InstanceLimits, bool) {
    match limits::lookup(instance_type) {
        Some(limits) => (limits, false),
        None => described_limits(cloud, instance_type).await,
    }
}

/// A type that is not in the table: EC2 is asked. Where it does not tell, the node works with the least that any type
/// holds rather than not at all.
async fn described_limits<C: Cloud>(
    cloud: &C,
    instance_type: &InstanceType,
) -> (InstanceLimits, bool) {
    let call = cloud.describe_instance_type(instance_type);
    match executor::bounded("DescribeInstanceTypes", call).await {
        Ok(limits) => (limits, false),
        Err(error) => {
            let next = "allow ec2:DescribeInstanceTypes, or update veni, and restart ipamd";
            tracing::error!(%error, %instance_type, next, "limits not known: one pod address an ENI, two ENIs");
            let least = InstanceLimits {
                max_enis: 2,
                addresses_per_eni: 2,
                default_network_card: 0,
                network_cards: Vec::new(),
                hypervisor: Hypervisor::Unknown,
                bare_metal: false,
            };
            (least, true)
        }
    }
}

/// Limits of the pool out of the instance's and the settings.
#[must_use]
pub fn pool_limits(limits: &InstanceLimits, config: &Config) -> PoolLimits {
    let on_card = limits.enis_for_pods();
    PoolLimits {
        max_enis: config.max_eni.map_or(on_card, |max| max.min(on_card)).max(1),
        per_eni: limits.pod_addresses_per_eni(),
        device_indexes: u8::try_from(on_card).unwrap_or(u8::MAX),
    }
}

/// Everything that a pool starts from.
#[derive(Debug)]
pub struct Start<C, H, S> {
    /// The cloud.
    pub cloud: Arc<C>,
    /// The kernel.
    pub host: H,
    /// Where records go.
    pub store: S,
    /// What the journal held.
    pub recovered: Recovered,
    /// The settings.
    pub config: Arc<Config>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where we are.
    pub whereabouts: Whereabouts,
    /// Pods that the kernel shows.
    pub kernel_pods: Vec<KernelPod>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The provider's name.
    pub provider_name: &'static str,
    /// Seconds since 1970 at this machine's boot, for the tags of new ENIs.
    pub booted_at_secs: u64,
}

/// Builds the owner. Asks EC2 first unless the journal is whole.
pub async fn owner<C: Cloud, H: Host, S: Store>(start: Start<C, H, S>) -> Owner<C, H, S> {
    owner_after(start, &Startup::default()).await
}

/// As [`owner`]: `startup` tells what is waited for.
pub async fn owner_after<C: Cloud, H: Host, S: Store>(
    start: Start<C, H, S>,
    startup: &Startup,
) -> Owner<C, H, S> {
    let Start {
        cloud,
        host,
        store,
        recovered,
        config,
        clock,
        whereabouts,
        kernel_pods,
        metrics,
        ..
    } = start;
    let Whereabouts { identity, limits, .. } = &whereabouts;
    for note in &recovered.notes {
        tracing::warn!(note, "journal");
    }
    let settings = settings(&config, &whereabouts, start.booted_at_secs);
    let limits = pool_limits(limits, &config);
    let known = can_serve_from(&recovered, &kernel_pods);
    let part_lost = recovered.ledger.unconfirmed();
    let mut pool = Pool::new(
        recovered.ledger,
        store,
        limits,
        settings,
        whereabouts.place(),
        config.veth_prefix.clone(),
        clock.now(),
    );
    let evidence = Evidence::new(&config.cni_cache_dir);
    if part_lost {
        release_dead(&mut pool, &host, &evidence, clock.now());
    }
    pool.on_pods = kernel_pods.iter().map(|pod| pod.address).collect();
    if !known && !kernel_pods.is_empty() {
        pool.note_unconfirmed();
    }
    if !known {
        first_survey(&*cloud, &mut pool, identity, &config, &*clock, startup).await;
        metrics.survey_started();
    }
    take_in(&mut pool, &host, &evidence, kernel_pods, clock.now());
    if !known {
        for violation in check::check(&pool.ledger, limits) {
            tracing::error!(%violation, "the ledger that was rebuilt is broken: please report this");
        }
    }
    // From now on a pod may go, and its address with it.
    pool.on_pods.clear();
    let parts = Parts {
        cloud,
        host,
        pool,
        clock,
        config,
        whereabouts,
        evidence,
        metrics,
        provider_name: start.provider_name,
        surveyed: !known,
    };
    Owner::new(parts)
}

/// What the planner is told to want.
fn settings(config: &Config, whereabouts: &Whereabouts, booted_at_secs: u64) -> Settings {
    let known = || whereabouts.custom.clone().unwrap_or_default();
    Settings {
        targets: config.targets,
        cooldown: config.cooldown,
        max_pods: config.max_pods,
        provisioning: !config.disable_provisioning,
        provisioned_by: PROVISIONING.to_owned(),
        networking: Networking {
            primary: whereabouts.primary_place(),
            custom: config.custom_networking.then(known),
        },
        token_seed: format!("{}-{booted_at_secs:x}", whereabouts.identity.instance_id),
    }
}

/// Asks EC2 what the instance has, and what it has left behind.
async fn first_survey<C: Cloud, S: Store>(
    cloud: &C,
    pool: &mut Pool<S>,
    identity: &InstanceIdentity,
    config: &Config,
    clock: &dyn Clock,
    startup: &Startup,
) {
    let filter = || InterfaceFilter::AttachedTo(identity.instance_id.clone());
    let what = "the ENIs of this instance from EC2: there is no whole journal of this boot";
    let interfaces = startup.persist(what, EC2_NEXT, || cloud.describe_interfaces(filter())).await;
    let adoption = Adoption { manage_untagged: config.manage_untagged_eni };
    pool.survey(&interfaces, adoption, clock.now());
    if !config.disable_leaked_eni_cleanup {
        adopt_orphans(cloud, pool, identity, clock.now()).await;
    }
}

/// Pods whose release a damaged journal has lost: they would keep ENIs in the ledger that are long gone.
fn release_dead<H: Host, S: Store>(
    pool: &mut Pool<S>,
    host: &H,
    evidence: &Evidence,
    now: BootTime,
) {
    let dead: Vec<_> = pool
        .ledger
        .allocations()
        .filter(|a| now.since(a.at) >= WIRING_GRACE)
        .filter(|a| !host.has_link(&a.host_ifname, a.host_ifindex))
        .filter(|a| !evidence.runtime_has(&a.attachment))
        .map(|a| a.attachment.clone())
        .collect();
    for attachment in dead {
        pool.release(&attachment, now);
    }
}

/// Whether there is a ledger with nothing missing: neither records nor an address that the kernel shows on a pod.
fn can_serve_from(recovered: &Recovered, kernel_pods: &[KernelPod]) -> bool {
    let ledger = &recovered.ledger;
    !recovered.damaged
        && ledger.enis().any(|eni| eni.primary)
        && kernel_pods.iter().all(|pod| ledger.address(pod.address).is_some())
}

/// ENIs of this instance that a daemon without a journal may have left behind.
async fn adopt_orphans<C: Cloud, S: Store>(
    cloud: &C,
    pool: &mut Pool<S>,
    identity: &InstanceIdentity,
    now: BootTime,
) {
    let filter = InterfaceFilter::AvailableWithTag {
        key: TAG_INSTANCE_ID.to_owned(),
        value: identity.instance_id.to_string(),
    };
    let call = cloud.describe_interfaces(filter);
    let answer = executor::bounded("DescribeNetworkInterfaces", call).await;
    pool.settle_orphans(answer, now);
}

/// The kernel's pods, as far as they are still there.
fn take_in<H: Host, S: Store>(
    pool: &mut Pool<S>,
    host: &H,
    evidence: &Evidence,
    mut kernel_pods: Vec<KernelPod>,
    now: BootTime,
) {
    // No other pod gets their indexes, whatever becomes of them below.
    pool.see_indexes(kernel_pods.iter().map(|pod| pod.host_ifindex));
    // While EC2 was asked, pods may have gone.
    let there = |pod: &KernelPod| {
        pod.host_ifname.parse().is_ok_and(|name| host.has_link(&name, pod.host_ifindex))
    };
    kernel_pods.retain(there);
    adopt_pods(pool, evidence, kernel_pods, now);
}

/// Pods that the kernel shows and the journal does not: the journal was lost or damaged.
fn adopt_pods<S: Store>(
    pool: &mut Pool<S>,
    evidence: &Evidence,
    kernel_pods: Vec<KernelPod>,
    now: BootTime,
) {
    let links: HashSet<_> = kernel_pods.iter().map(|pod| pod.host_ifindex).collect();
    let unknown: Vec<_> = kernel_pods
        .into_iter()
        .filter(|pod| !pool.ledger.allocations().any(|a| a.host_ifindex == pod.host_ifindex))
        .collect();
    if unknown.is_empty() {
        return;
    }
    let cached = evidence.attachments();
    for pod in unknown {
        let cached = cached.iter().find(|c| c.is(pod.address, &pod.host_ifname));
        let Ok(host_ifname) = pod.host_ifname.parse() else { continue };
        let allocation = Allocation {
            attachment: cached.map_or_else(|| stranger(pod.host_ifindex), |c| c.attachment.clone()),
            pod: cached.map_or_else(PodRef::default, |c| c.pod.clone()),
            netns: cached.map_or_else(Default::default, |c| c.netns.clone()),
            address: pod.address,
            slot: veni_core::marks::EniSlot::new(0, 0).expect("the primary's slot exists"),
            host_ifname,
            host_ifindex: pod.host_ifindex,
            at: now,
        };
        if !pool.adopt_pod(allocation, now, |former| !links.contains(&former.host_ifindex)) {
            tracing::error!(address = %pod.address, link = pod.host_ifname, "a pod's address is not on any ENI that EC2 shows, or is another pod's too");
        }
    }
}

const STRANGERS: &str = "unknown";

/// Whether nobody knows whose pod this is: its key was made up.
#[must_use]
pub fn is_stranger(attachment: &Attachment) -> bool {
    attachment.network.as_str() == STRANGERS
}

/// A pod of which only the kernel knows. It keeps its address as long as its link is there.
fn stranger(host_ifindex: u32) -> Attachment {
    Attachment {
        network: STRANGERS.parse().expect("a valid name"),
        container_id: format!("ifindex-{host_ifindex}").parse().expect("a valid id"),
        ifname: "eth0".parse().expect("a valid name"),
    }
}

/// The pod as one of which only the kernel knows.
pub(crate) fn as_stranger(pod: Allocation) -> Allocation {
    Allocation {
        attachment: stranger(pod.host_ifindex),
        pod: PodRef::default(),
        netns: PathBuf::new(),
        ..pod
    }
}

/// Seconds since 1970 at this machine's boot.
///
/// # Errors
/// When procfs is not there.
pub fn booted_at_secs() -> io::Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    Ok(line.and_then(|secs| secs.trim().parse().ok()).unwrap_or(0))
}

/// The channels of an owner.
#[derive(Debug)]
pub struct Channels {
    /// Requests.
    pub commands: (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    /// The kernel's news.
    pub events: (mpsc::UnboundedSender<HostEvent>, mpsc::UnboundedReceiver<HostEvent>),
}

impl Default for Channels {
    fn default() -> Self {
        Self { commands: mpsc::channel(1024), events: mpsc::unbounded_channel() }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead as _, BufReader},
        process::{Command as Program, Stdio},
    };

    use futures_util::FutureExt as _;

    use super::*;

    /// Who waits for the lock, and who leaves the node, while another holds it: neither changes anything.
    async fn refused_while_held(dir: &Path, holder: &str) {
        let journal = dir.join("journal");
        fs::write(&journal, "the holder's").unwrap();
        let waiting = tokio::spawn({
            let dir = dir.to_owned();
            async move { lock(&dir).await }
        });
        tokio::task::yield_now().await;
        assert!(lock(dir).now_or_never().is_none(), "two hold it");
        let state_dir = dir.to_string_lossy().into_owned();
        let config = Config { state_dir, ..Config::default() };
        let error = crate::uninstall::uninstall(&config).unwrap_err().to_string();
        assert!(error.contains(holder) && error.contains("stop it first"), "{error}");
        assert_eq!(fs::read_to_string(&journal).unwrap(), "the holder's");
        assert!(!waiting.is_finished());
        waiting.abort();
    }

    #[tokio::test]
    async fn a_lock_held_by_another_thread_is_waited_for_and_nothing_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).await.unwrap();
        refused_while_held(dir.path(), &format!("process {}", std::process::id())).await;
        drop(first);
        drop(lock(dir.path()).await.unwrap());
    }

    #[tokio::test]
    async fn a_lock_held_by_another_process_is_waited_for_and_nothing_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = lock_file(dir.path()).unwrap();
        // util-linux's; it has the lock once `cat` answers.
        let mut holder = Program::new("flock")
            .arg(path)
            .arg("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = holder.stdin.take().unwrap();
        input.write_all(b"held\n").unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        refused_while_held(dir.path(), "a process that has not said which").await;
        drop(input);
        drop(lock(dir.path()).await.unwrap());
        assert!(holder.wait().unwrap().success());
    }
}
