//! The node's kernel, as the owner of the pool uses it: the filter's map is written at once, everything else is told
//! to the thread of [`super::keeper`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use veni_core::{
    chain::chain, config::Config, id::IfName, ipam::Allocation, net::Mac, wire::FilterBlocks,
};
use veni_datapath::{
    bpf::{Filter, PodEntry, PodPolicy},
    host::{self, PodLink},
    watch::{self, Watch, WatchConfig},
};
use veni_ebpf_common::PodFlags;
use veni_policy::change::CLOSED_SET;

use super::{
    Host, HostEvent, Strays, Wanted,
    flush::Flusher,
    keeper::{Keeper, Links, Order, lock, relist},
    stray,
};
use crate::enforcer::{Answering, Handle, Input, Judged, Wired, pod_of};
use crate::start::{self, KernelPod};

/// How long a start waits until the pods that are there are judged.
const ADOPTION: Duration = Duration::from_secs(10);
/// Of a pod whose labels are not known: nothing but its own node.
const CLOSED: PodPolicy = PodPolicy {
    address_v6: None,
    ingress_set: CLOSED_SET,
    egress_set: CLOSED_SET,
    flags: PodFlags::LABELS_UNKNOWN,
};

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
            table_base: config.table_base,
        };
        // The thread may be gone before the watch is: then nobody needs the change.
        let watch =
            watch::spawn(watched, move |change| drop(changes.send(Order::Changed(change))))?;
        let links: Links = Arc::default();
        let armed = Arc::new(AtomicBool::new(false));
        relist(&links)?;
        let told = events.clone();
        let keeper =
            Keeper::new(config.clone(), filter.clone(), links.clone(), events, armed.clone());
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

    /// The living link of another name that has the index of `allocation`.
    fn other_link(&self, allocation: &Allocation) -> Option<String> {
        let name = lock(&self.links).get(&allocation.host_ifindex).cloned()?;
        (name != allocation.host_ifname.as_str()).then_some(name)
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
        if let Some(name) = self.other_link(allocation) {
            return Err(format!(
                "its interface index {} is that of the link {name}",
                allocation.host_ifindex
            ));
        }
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
        // A pod that the kernel shows and the ledger could not take in keeps its entry, and with policy its rule sets
        // until all objects are known; who has no name then is closed (ADR 0014).
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
        self.order(Order::Wired(pod_link(allocation)));
    }

    fn forget(&mut self, allocation: &Allocation) {
        if let Some(name) = self.other_link(allocation) {
            // The entry is that link's: a pod without one is cut off.
            tracing::warn!(name, address = %allocation.address, "interface index is another link's, its entry is kept");
            return self.flusher.flush(allocation.address);
        }
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

    fn strays(&self, pods: &[(Allocation, Mac)]) -> Result<Strays, String> {
        let pods = pods.iter().map(|(pod, _)| (pod.host_ifindex, pod_link(pod))).collect();
        stray::look(&self.config, &self.filter, &self.links, &pods).map_err(|error| chain(&error))
    }

    fn eni_links(&self) -> Result<Option<BTreeSet<Mac>>, String> {
        let links = host::links().map_err(|error| chain(&error))?;
        let enis = links.into_iter().filter(host::Link::can_be_eni);
        Ok(Some(enis.filter_map(|link| link.mac).collect()))
    }

    fn index_taken(&self, index: u32) -> bool {
        lock(&self.links).contains_key(&index)
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

fn pod_link(allocation: &Allocation) -> PodLink {
    PodLink {
        address: allocation.address,
        ifindex: allocation.host_ifindex,
        ifname: allocation.host_ifname.to_string(),
    }
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

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
