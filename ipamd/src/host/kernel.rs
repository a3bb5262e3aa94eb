//! The node's kernel: a thread that keeps links, rules, routes, nft and the filter as they must be.
//!
//! It is driven by notifications; what sends none (the filter on its blocks) is looked at every [`CHECK_PERIOD`].
//! Stopping it, in whatever way, changes nothing in the kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use veni_core::{
    chain::chain,
    config::{Config, PolicySettings},
    id::IfName,
    ipam::{Allocation, EniFacts},
    marks::EniSlot,
    net::Mac,
    wire::FilterBlocks,
};
use veni_datapath::{
    bpf::{Filter, PodEntry, PodPolicy},
    host::{self, EniLink, HostConfig, PodLink, Repair},
    nft::{NftConfig, NftTable},
    watch::{self, Change, Watch, WatchConfig},
};

use veni_ebpf_common::PodFlags;
use veni_policy::change::CLOSED_SET;

use super::{Host, HostEvent, Strays, Wanted, flush::Flusher, stray};
use crate::enforcer::{Answering, Handle, Input, Judged, Wired, pod_of};
use crate::start::{self, KernelPod};

/// How often what sends no notification is looked at.
const CHECK_PERIOD: Duration = Duration::from_secs(10);
/// Changes within this time are repaired together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How long a start waits until the pods that are there are judged.
const ADOPTION: Duration = Duration::from_secs(10);
/// Of a pod whose labels are not known: nothing but its own node.
const CLOSED: PodPolicy = PodPolicy {
    address_v6: None,
    ingress_set: CLOSED_SET,
    egress_set: CLOSED_SET,
    flags: PodFlags::LABELS_UNKNOWN,
};
/// After a failure it is tried again, whether or not something is notified.
const RETRY: Duration = Duration::from_secs(5);

type Links = Arc<Mutex<HashMap<u32, String>>>;

/// The owner's end.
pub struct Kernel {
    filter: Arc<Filter>,
    flusher: Flusher,
    /// `None`: no policy on this node, no pod is isolated.
    enforcer: Option<Handle>,
    links: Links,
    config: Arc<Config>,
    orders: Sender<Order>,
    armed: Arc<AtomicBool>,
    _watch: Watch,
}

/// What the thread is told.
enum Order {
    Configure(Wanted),
    Wired(PodLink),
    Enforce(Handle),
    Forget(u32),
    Changed(Change),
}

/// The thread's state.
struct Keeper {
    config: Arc<Config>,
    enforcer: Option<Handle>,
    /// The node's own addresses, as they were last told.
    addresses: BTreeSet<IpAddr>,
    filter: Arc<Filter>,
    links: Links,
    events: UnboundedSender<HostEvent>,
    wanted: Option<Wanted>,
    pods: BTreeMap<u32, PodLink>,
    /// Links of ENIs, to know whose link it was that has gone.
    enis: HashMap<u32, Mac>,
    nft: Option<(NftConfig, NftTable)>,
    /// What the last reconciliation was about: one about other ENIs configures, one about the same repairs.
    settled: Option<Vec<EniSlot>>,
    nft_dirty: bool,
    /// ENIs that were reported as ready, with their links.
    used: Vec<(EniSlot, String)>,
    reported: Option<HostEvent>,
    /// As they were reported.
    strays: Strays,
    /// Whether the map holds the pods: the filter is not attached before.
    armed: Arc<AtomicBool>,
}

// === impl Kernel ===

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the filter, or adopts the one that is there, and starts the thread. In the node's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the filter or the notifications.
    pub fn start(
        config: Arc<Config>,
        events: UnboundedSender<HostEvent>,
    ) -> Result<Self, veni_datapath::Error> {
        let filter = Arc::new(Filter::open(&PathBuf::from(&config.bpf_dir), config.eni_mark_mask)?);
        // Attached by `resume`, once the map holds the pods: an empty map would drop their packets.
        let (orders, received) = channel();
        let changes = orders.clone();
        let watched = WatchConfig {
            nft_table: veni_datapath::nft::TABLE.to_owned(),
            veth_prefix: config.veth_prefix.clone(),
        };
        // The thread may be gone before the watch is: then nobody needs the change.
        let watch =
            watch::spawn(watched, move |change| drop(changes.send(Order::Changed(change))))?;
        let links: Links = Arc::default();
        let armed = Arc::new(AtomicBool::new(false));
        relist(&links)?;
        let told = events.clone();
        let keeper = Keeper {
            config: config.clone(),
            enforcer: None,
            addresses: BTreeSet::new(),
            filter: filter.clone(),
            links: links.clone(),
            events,
            wanted: None,
            pods: BTreeMap::new(),
            enis: HashMap::new(),
            nft: None,
            settled: None,
            nft_dirty: false,
            used: Vec::new(),
            reported: None,
            strays: Strays::new(),
            armed: armed.clone(),
        };
        std::thread::Builder::new()
            .name("host".to_owned())
            .spawn(move || keeper.run(&received))
            .expect("a thread can be started");
        // The owner may have ended.
        let idle = move || drop(told.send(HostEvent::Flushed));
        let flusher = Flusher::start(idle).expect("a thread can be started");
        Ok(Self { filter, flusher, enforcer: None, links, config, orders, armed, _watch: watch })
    }

    /// Every pod that the kernel shows: by the filter's map, or by a route of ours alone (the map may be lost too).
    ///
    /// # Errors
    /// When the kernel does not list its routes.
    pub fn known_pods(&self) -> Result<Vec<KernelPod>, veni_datapath::Error> {
        let routes = host::pod_routes(self.config.table_base)?;
        let mapped =
            self.pods()?.into_iter().map(|(index, (pod, name))| (index, pod.address, name));
        let links = lock(&self.links);
        Ok(join(mapped, &routes, |index| links.get(&index).cloned(), &self.config.veth_prefix))
    }

    /// Pods that the filter's map knows and whose link is there, by interface index.
    fn pods(&self) -> Result<BTreeMap<u32, (PodEntry, String)>, veni_datapath::Error> {
        let pods = self.filter.pods()?;
        let links = lock(&self.links);
        let linked = pods
            .into_iter()
            .filter_map(|(index, pod)| Some((index, (pod, links.get(&index)?.clone()))));
        Ok(linked.collect())
    }

    /// The loaded programs.
    #[must_use]
    pub const fn filter(&self) -> &Arc<Filter> {
        &self.filter
    }

    /// From now on pods are judged: before anything is served.
    pub fn enforce(&mut self, enforcer: Handle) {
        self.order(Order::Enforce(enforcer.clone()));
        self.enforcer = Some(enforcer);
    }

    /// Has the pods that are there judged before the programs look at their entries. Waits for it, bounded: this is
    /// the start, and a pod that is closed for a moment loses packets.
    fn adopt(&self, pods: &[(Allocation, Mac)]) {
        let Some(enforcer) = &self.enforcer else { return };
        let (done, judged) = channel();
        enforcer.tell(Input::Adopt {
            pods: pods.iter().map(|(allocation, _)| wired(allocation)).collect(),
            done: Box::new(move || {
                if done.send(()).is_err() {
                    tracing::info!("pods judged, later than was waited for");
                }
            }),
        });
        if judged.recv_timeout(ADOPTION).is_err() {
            tracing::error!(
                wait_secs = ADOPTION.as_secs(),
                "pods not judged yet: those without rule sets in the map stay closed"
            );
        }
    }

    fn entry(&self, allocation: &Allocation, mac: Mac) -> PodEntry {
        PodEntry {
            address: allocation.address,
            mac,
            mark: self.config.eni_mark_mask.mark(allocation.slot),
        }
    }

    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            tracing::error!("the host thread has ended: restart ipamd");
        }
    }
}

impl Host for Kernel {
    fn configure(&mut self, wanted: Wanted) {
        self.order(Order::Configure(wanted));
    }

    fn admit(&mut self, allocation: &Allocation, pod_mac: Mac) -> Result<(), String> {
        let entry = self.entry(allocation, pod_mac);
        let index = allocation.host_ifindex;
        self.flusher.keep(allocation.address);
        let done = match &self.enforcer {
            None => self.filter.pod_insert(index, entry),
            // Closed until its sets are known.
            Some(_) => self.filter.pod_insert_judged(index, entry, CLOSED),
        };
        done.map_err(|error| chain(&error))
    }

    fn judge(&mut self, allocation: &Allocation, answer: Answering) {
        let Some(enforcer) = &self.enforcer else { return answer(Judged::ByLabels) };
        enforcer.tell(Input::Attach {
            wired: wired(allocation),
            deadline: Instant::now() + self.config.policy.wait,
            answer,
        });
    }

    fn resume(&mut self, pods: &[(Allocation, Mac)]) -> Result<(), String> {
        let entries = pods.iter().map(|(a, mac)| (a.host_ifindex, self.entry(a, *mac))).collect();
        // A pod that the kernel shows and the ledger could not take in keeps its entry: its traffic goes on.
        let mut entries: BTreeMap<u32, PodEntry> = entries;
        for (index, (pod, _)) in self.pods().map_err(|error| chain(&error))? {
            let entry = entries.entry(index).or_insert(pod);
            let owner = pods.iter().find(|(a, _)| a.host_ifindex == index);
            if owner.is_some_and(|(a, _)| start::is_stranger(&a.attachment)) {
                // Its MAC follows from a key that nobody knows any more.
                entry.mac = pod.mac;
            }
        }
        let closed = if self.enforcer.is_some() { CLOSED } else { PodPolicy::default() };
        let changed = self.filter.sync_judged(&entries, closed).map_err(|error| chain(&error))?;
        self.adopt(pods);
        self.filter.ensure_attached().map_err(|error| chain(&error))?;
        self.armed.store(true, Ordering::Release);
        tracing::info!(
            pods = pods.len(),
            changed,
            adopted = self.filter.adopted(),
            "filter's map in force"
        );
        Ok(())
    }

    fn wired(&mut self, allocation: &Allocation) {
        self.order(Order::Wired(PodLink {
            address: allocation.address,
            ifindex: allocation.host_ifindex,
            ifname: allocation.host_ifname.to_string(),
        }));
    }

    fn forget(&mut self, allocation: &Allocation) {
        if let Err(error) = self.filter.pod_remove(allocation.host_ifindex) {
            tracing::warn!(error = chain(&error), address = %allocation.address, "pod not removed from the filter's map");
        }
        if let Some(enforcer) = &self.enforcer {
            enforcer.tell(Input::Detach(allocation.host_ifindex));
        }
        self.flusher.flush(allocation.address);
        self.order(Order::Forget(allocation.host_ifindex));
    }

    fn flush(&mut self, address: Ipv4Addr) {
        self.flusher.flush(address);
    }

    fn flushing(&self) -> usize {
        self.flusher.pending()
    }

    fn blocks(&self) -> Option<FilterBlocks> {
        Some(self.filter.blocks())
    }

    fn has_link(&self, name: &IfName, index: u32) -> bool {
        lock(&self.links).get(&index).is_some_and(|n| n == name.as_str())
    }

    fn link_remains(&self, name: &IfName, index: u32) -> bool {
        nix::net::if_::if_nametoindex(name.as_str()) == Ok(index)
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let drops = self.filter.drops().unwrap_or_default();
        drops.into_iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect()
    }
}

// === impl Keeper ===

impl Keeper {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut check_at = Instant::now() + CHECK_PERIOD;
        let mut dirty_at: Option<Instant> = None;
        loop {
            let next = dirty_at.map_or(check_at, |at| at.min(check_at));
            match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(order) => {
                    if let Some(delay) = self.take(order) {
                        let at = Instant::now() + delay;
                        dirty_at = Some(dirty_at.map_or(at, |earlier| earlier.min(at)));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if dirty_at.is_some_and(|at| at <= now) {
                dirty_at = (!self.reconcile()).then(|| now + RETRY);
            }
            if check_at <= now {
                check_at = now + CHECK_PERIOD;
                self.check_filter();
                self.check_strays();
            }
        }
    }

    /// Takes in an order. How long to wait until the kernel is looked at; `None` for not at all.
    fn take(&mut self, order: Order) -> Option<Duration> {
        match order {
            Order::Configure(wanted) => {
                self.wanted = Some(wanted);
                Some(Duration::ZERO)
            }
            Order::Wired(pod) => {
                self.pods.insert(pod.ifindex, pod);
                None
            }
            Order::Forget(ifindex) => {
                self.pods.remove(&ifindex);
                None
            }
            Order::Enforce(enforcer) => {
                self.enforcer = Some(enforcer);
                self.own_addresses();
                None
            }
            Order::Changed(change) => self.changed(change),
        }
    }

    fn changed(&mut self, change: Change) -> Option<Duration> {
        match change {
            Change::LinkAdded { mac, ifindex, name } => {
                lock(&self.links).insert(ifindex, name);
                let awaited = self
                    .wanted
                    .as_ref()
                    .is_some_and(|w| w.enis.iter().any(|(_, e)| Some(e.mac) == mac));
                awaited.then_some(Duration::ZERO)
            }
            Change::LinkRemoved { ifindex, name } => {
                lock(&self.links).remove(&ifindex);
                if name.starts_with("veni-anchor") {
                    // Without pods the block has gone with it: the next pod's packets would not be judged.
                    self.check_filter();
                }
                if let Some(mac) = self.enis.remove(&ifindex) {
                    self.send(HostEvent::EniUnplugged(mac));
                    self.reported = None;
                    return Some(Duration::ZERO);
                }
                let of_pod = self.pods.remove(&ifindex).is_some();
                if self.strays.values().any(|stray| stray.ifindex == ifindex) {
                    self.check_strays();
                }
                if of_pod || name.starts_with(&self.config.veth_prefix) {
                    self.send(HostEvent::PodLinkGone { name });
                }
                None
            }
            Change::Nft => {
                self.nft_dirty = true;
                Some(DEBOUNCE)
            }
            Change::Overrun => {
                self.nft_dirty = true;
                if let Err(error) = relist(&self.links) {
                    tracing::warn!(error = chain(&error), "links not listed");
                }
                Some(DEBOUNCE)
            }
            _ => Some(DEBOUNCE),
        }
    }

    /// Makes the kernel what it must be. `false`: something did not work and is to be tried again.
    fn reconcile(&mut self) -> bool {
        let Some(wanted) = self.wanted.clone() else { return true };
        let mut problems = Vec::new();
        let Some(config) = self.host_config(&wanted, &mut problems) else {
            self.report(Vec::new(), problems);
            return false;
        };
        let mut ready: Vec<_> = std::iter::once(&config.primary)
            .chain(&config.secondary)
            .map(|eni| (eni.slot, eni.ifname.clone()))
            .collect();
        let slots: Vec<_> = ready.iter().map(|(slot, _)| *slot).collect();
        self.settled.take_if(|settled| *settled != slots);
        let pods: Vec<_> = self.pods.values().cloned().collect();
        // A conflict stands until somebody removes it, which is notified; only what failed is tried again.
        let (mut sound, mut pods_sound) = (true, true);
        match host::reconcile(&host::desired(&config, &pods)) {
            Ok(report) => {
                self.repaired(&report.repaired);
                sound &= report.failed.is_empty();
                pods_sound = report.failed_pods.is_empty();
                problems.extend(report.failed);
                problems.extend(report.failed_pods);
                problems.extend(report.conflicts.iter().map(ToString::to_string));
            }
            Err(error) => {
                sound = false;
                problems.push(chain(&error));
            }
        }
        if let Err(error) = self.keep_nft(&config, &wanted) {
            sound = false;
            problems.push(chain(&error));
        }
        self.check_filter();
        self.check_strays();
        self.own_addresses();
        if !sound {
            // A new ENI is used once its rules and routes are in place; one that was used before, by this daemon or by
            // the one before it, stays: its pods' traffic and its addresses do not depend on a repair that failed.
            ready.retain(|eni| self.used.contains(eni) || wanted.in_use.contains(&eni.0));
        }
        self.used.clone_from(&ready);
        self.settled = Some(slots);
        self.report(ready, problems);
        sound && pods_sound
    }

    fn host_config(&mut self, wanted: &Wanted, problems: &mut Vec<String>) -> Option<HostConfig> {
        let links = match host::links() {
            Ok(links) => links,
            Err(error) => {
                problems.push(chain(&error));
                return None;
            }
        };
        let mut found = Vec::new();
        for (slot, eni) in &wanted.enis {
            let link = links.iter().find(|link| link.mac == Some(eni.mac) && link.can_be_eni());
            match (link, eni.subnet_prefix) {
                (Some(link), Some(_)) => {
                    self.enis.insert(link.ifindex, eni.mac);
                    found.push(self.eni_link(*slot, eni, link));
                }
                (Some(_), None) => problems
                    .push(format!("{}: its subnet's CIDR is not known, it is not used", eni.id)),
                (None, _) => {}
            }
        }
        let at = found.iter().position(|eni| eni.slot.get() == 1);
        let Some(at) = at else {
            problems.push("the primary ENI's link is not on the node: is ipamd in the node's network namespace?".into());
            return None;
        };
        let primary = found.remove(at);
        let snat = &self.config.snat;
        Some(HostConfig {
            primary,
            secondary: found,
            mask: self.config.eni_mark_mask,
            table_base: self.config.table_base,
            connmark: snat.connmark,
            node_port_support: snat.node_port_support,
            external_snat: snat.external,
            external_service_cidrs: snat.external_service_cidrs.clone(),
            blocks: Some(self.filter.blocks()),
        })
    }

    fn eni_link(&self, slot: EniSlot, eni: &EniFacts, link: &host::Link) -> EniLink {
        EniLink {
            slot,
            mac: eni.mac,
            ifindex: link.ifindex,
            ifname: link.ifname.clone(),
            address: eni.primary_address,
            subnet: eni.subnet_prefix.expect("checked by the caller"),
            mtu: self.config.eni_mtu,
        }
    }

    fn keep_nft(
        &mut self,
        config: &HostConfig,
        wanted: &Wanted,
    ) -> Result<(), veni_datapath::Error> {
        let nft = NftConfig {
            primary_ifname: config.primary.ifname.clone(),
            primary_address: config.primary.address,
            veth_prefix: self.config.veth_prefix.clone(),
            vpc_cidrs: wanted.vpc_cidrs.clone(),
            snat: self.config.snat.clone(),
            mask: self.config.eni_mark_mask,
        };
        let dirty = self.nft_dirty;
        match &mut self.nft {
            Some((current, table)) if *current == nft => {
                if dirty && !table.intact()? {
                    table.apply()?;
                    self.send(HostEvent::Repaired {
                        kind: "nft".into(),
                        what: "table ip veni".into(),
                    });
                }
            }
            _ => {
                let mut table = NftTable::new(&nft);
                table.apply()?;
                self.nft = Some((nft, table));
            }
        }
        // Only now: what failed above is tried again.
        self.nft_dirty = false;
        Ok(())
    }

    /// Tells programs and Services which addresses are the node's own.
    fn own_addresses(&mut self) {
        let addresses = match host::addresses() {
            Ok(addresses) => outside(&addresses, &self.config.policy),
            Err(error) => {
                tracing::warn!(error = chain(&error), "the node's addresses not read");
                return;
            }
        };
        if addresses == self.addresses {
            return;
        }
        let known = self.filter.set_node_addresses(&addresses);
        if let Err(error) = &known {
            let next = "isolated pods may not reach those that do not fit";
            tracing::error!(
                error = chain(error),
                next,
                "the programs do not know all of the node's addresses"
            );
        }
        // NodePorts are on them nonetheless.
        let Some(enforcer) = &self.enforcer else { return };
        enforcer.tell(Input::NodeAddresses(addresses.clone()));
        if known.is_ok() {
            self.addresses = addresses;
        }
    }

    fn check_filter(&mut self) {
        if !self.armed.load(Ordering::Acquire) {
            return;
        }
        match self.filter.check_attached() {
            Ok(repairs) => self.repaired(&repairs),
            Err(error) => tracing::error!(
                error = chain(&error),
                "filter not in place: pods' packets are not judged"
            ),
        }
    }

    /// Tells what leads to links of no pod, when that has changed.
    fn check_strays(&mut self) {
        let found = host::pod_routes(self.config.table_base).and_then(|routes| {
            let links = lock(&self.links);
            let unknown = stray::unknown_link(&self.pods, &links, &self.config.veth_prefix);
            let mapped = if unknown { self.filter.pods()? } else { BTreeMap::default() };
            let mapped = mapped.into_iter().map(|(index, pod)| (pod.address, index));
            Ok(stray::strays(routes, mapped, &self.pods, &links))
        });
        match found {
            Ok(strays) if strays != self.strays => {
                self.strays.clone_from(&strays);
                self.send(HostEvent::Strays(strays));
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = chain(&error), "pods' routes not looked at"),
        }
    }

    /// The first look at a node or a new ENI configures: only later ones find something to repair.
    fn repaired(&self, repairs: &[Repair]) {
        for repair in repairs {
            if self.settled.is_some() {
                self.send(HostEvent::Repaired {
                    kind: repair.kind.name().to_owned(),
                    what: repair.what.clone(),
                });
            } else {
                tracing::info!(kind = repair.kind.name(), what = repair.what, "configured");
            }
        }
    }

    fn report(&mut self, ready: Vec<(EniSlot, String)>, problems: Vec<String>) {
        let event = HostEvent::Configured { ready, problems };
        if self.reported.as_ref() != Some(&event) {
            self.reported = Some(event.clone());
            self.send(event);
        }
    }

    fn send(&self, event: HostEvent) {
        // The owner ends before this thread does: then nobody needs it.
        drop(self.events.send(event));
    }
}

/// The map's pods, and those that have a route to a host veth that exists and no entry in the map.
fn join(
    mapped: impl IntoIterator<Item = (u32, Ipv4Addr, String)>,
    routes: &[(Ipv4Addr, u32)],
    link: impl Fn(u32) -> Option<String>,
    veth_prefix: &str,
) -> Vec<KernelPod> {
    let pod =
        |(host_ifindex, address, host_ifname)| KernelPod { address, host_ifname, host_ifindex };
    let mut pods: Vec<_> = mapped.into_iter().map(pod).collect();
    for (address, index) in routes {
        let known = pods.iter().any(|p| p.host_ifindex == *index || p.address == *address);
        let name = link(*index).filter(|name| name.starts_with(veth_prefix));
        if let Some(name) = name.filter(|_| !known) {
            pods.push(pod((*index, *address, name)));
        }
    }
    pods
}

/// The addresses without those of Services that a proxy (or NodeLocal DNS) keeps on the node: a Service that is not
/// known yet is not the node.
fn outside(addresses: &BTreeSet<IpAddr>, policy: &PolicySettings) -> BTreeSet<IpAddr> {
    let of_service = |address: &IpAddr| match address {
        IpAddr::V4(address) => policy.service_v4.is_some_and(|net| net.contains(address)),
        IpAddr::V6(address) => policy.service_v6.is_some_and(|net| net.contains(address)),
    };
    addresses.iter().copied().filter(|address| !of_service(address)).collect()
}

/// A pod as the enforcer knows it.
fn wired(allocation: &Allocation) -> Wired {
    Wired {
        pod: pod_of(allocation),
        uid: allocation.pod.uid.clone(),
        addresses: vec![allocation.address.into()],
        ifindex: allocation.host_ifindex,
    }
}

fn relist(links: &Links) -> Result<(), veni_datapath::Error> {
    let listed = host::links()?;
    *lock(links) = listed.into_iter().map(|link| (link.ifindex, link.ifname)).collect();
    Ok(())
}

fn lock(links: &Links) -> MutexGuard<'_, HashMap<u32, String>> {
    links.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_address_that_a_proxy_keeps_here_is_not_the_nodes() {
        let mut policy = Config::default().policy;
        let addresses: BTreeSet<IpAddr> =
            ["10.0.0.1", "10.100.0.10", "169.254.20.10", "fd00::a", "fd12::a"]
                .map(|address| address.parse().unwrap())
                .into();
        assert_eq!(outside(&addresses, &policy), addresses);
        policy.service_v4 = Some("10.100.0.0/16".parse().unwrap());
        policy.service_v6 = Some("fd12::/108".parse().unwrap());
        let own = ["10.0.0.1", "169.254.20.10", "fd00::a"].map(|own| own.parse().unwrap());
        assert_eq!(outside(&addresses, &policy), own.into());
    }

    #[test]
    fn an_address_with_a_route_to_a_pods_link_is_in_use_though_the_map_is_lost() {
        let address = |last| Ipv4Addr::new(10, 0, 0, last);
        let links = HashMap::from([(7, "eni7"), (8, "eni8"), (9, "eni9"), (3, "eth1")]);
        let link = |index| links.get(&index).map(ToString::to_string);
        let mapped = [(7, address(70), "eni7".to_owned()), (9, address(90), "eni9".to_owned())];
        // One that both show, one without an entry, one without a link, one that is no pod's, one whose route is stale.
        let routes = [
            (address(70), 7),
            (address(80), 8),
            (address(60), 6),
            (address(30), 3),
            (address(91), 9),
        ];
        let known = |mapped: &[(u32, Ipv4Addr, String)]| -> Vec<_> {
            let pods = join(mapped.to_vec(), &routes, link, "eni");
            pods.into_iter().map(|p| (p.address, p.host_ifindex, p.host_ifname)).collect()
        };
        let pod = |last, index| (address(last), index, format!("eni{index}"));
        assert_eq!(known(&mapped), [pod(70, 7), pod(90, 9), pod(80, 8)]);
        assert_eq!(known(&[]), [pod(70, 7), pod(80, 8), pod(91, 9)]);
    }
}
