//! The thread that keeps links, rules, routes, nft and the filter as they must be.
//!
//! It is driven by notifications; what sends none (the filter on its blocks) is looked at every [`CHECK_PERIOD`].
//! Stopping it, in whatever way, changes nothing in the kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use veni_core::{
    chain::chain,
    config::{Config, PolicySettings},
    ipam::EniFacts,
    marks::EniSlot,
    net::Mac,
};
use veni_datapath::{
    bpf::Filter,
    host::{self, EniLink, HostConfig, PodLink, Repair},
    nft::{NftConfig, NftTable},
    watch::Change,
};

use super::{HostEvent, Strays, Wanted, stray};
use crate::{
    enforcer::{Handle, Input},
    policy::as_known,
};

/// How often what sends no notification is looked at.
const CHECK_PERIOD: Duration = Duration::from_secs(10);
/// Changes within this time are repaired together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// After a failure it is tried again, whether or not something is notified.
const RETRY: Duration = Duration::from_secs(5);

/// In the state directory: the nftables table as it was written. Goes with the journal, whose name it shares.
const NFT: &str = "journal.nft";

/// Interfaces by index.
pub(super) type Links = Arc<Mutex<HashMap<u32, String>>>;

/// What the thread is told.
pub(super) enum Order {
    Configure(Wanted),
    Wired(PodLink),
    Enforce(Handle),
    Forget(u32),
    Changed(Change),
}

/// The thread's state.
pub(super) struct Keeper {
    config: Arc<Config>,
    enforcer: Option<Handle>,
    /// The node's own addresses, as they were last told.
    addresses: Option<BTreeSet<IpAddr>>,
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
    /// Notifications were lost: links may have come and gone.
    links_dirty: bool,
    /// ENIs that were reported as ready, with their links.
    used: Vec<(EniSlot, String)>,
    reported: Option<HostEvent>,
    /// As they were reported.
    strays: Option<Strays>,
    /// Whether the map holds the pods: the filter is not attached before.
    armed: Arc<AtomicBool>,
}
// === impl Keeper ===

impl Keeper {
    pub(super) fn new(
        config: Arc<Config>,
        filter: Arc<Filter>,
        links: Links,
        events: UnboundedSender<HostEvent>,
        armed: Arc<AtomicBool>,
    ) -> Self {
        Self {
            config,
            enforcer: None,
            addresses: None,
            filter,
            links,
            events,
            wanted: None,
            pods: BTreeMap::new(),
            enis: HashMap::new(),
            nft: None,
            settled: None,
            nft_dirty: false,
            links_dirty: false,
            used: Vec::new(),
            reported: None,
            strays: None,
            armed,
        }
    }

    pub(super) fn run(mut self, orders: &Receiver<Order>) {
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
                self.addresses = None;
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
                if self.strays.iter().flatten().any(|(_, stray)| stray.ifindex == ifindex) {
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
                self.links_dirty = true;
                Some(DEBOUNCE)
            }
            _ => Some(DEBOUNCE),
        }
    }

    /// Makes the kernel what it must be. `false`: something did not work and is to be tried again.
    fn reconcile(&mut self) -> bool {
        let listed = self.catch_up();
        let Some(wanted) = self.wanted.clone() else { return listed };
        let mut problems = Vec::new();
        let links = host::links().map_err(|error| problems.push(chain(&error))).ok();
        let present = on_node(&wanted.enis, links.as_deref());
        let config = links.and_then(|links| self.host_config(&wanted, &links, &mut problems));
        let Some(config) = config else {
            self.report(Vec::new(), present, problems);
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
        self.report(ready, present, problems);
        listed && sound && pods_sound
    }

    /// What the lost notifications would have told of links. `false`: the kernel did not say, it is asked again.
    fn catch_up(&mut self) -> bool {
        if !self.links_dirty {
            return true;
        }
        let former = lock(&self.links).clone();
        if let Err(error) = relist(&self.links) {
            tracing::warn!(error = chain(&error), "links not listed: tried again");
            return false;
        }
        self.links_dirty = false;
        let gone = gone(&former, &lock(&self.links));
        for (ifindex, name) in gone {
            // This very look is what it asks for.
            let _ = self.changed(Change::LinkRemoved { ifindex, name });
        }
        true
    }

    fn host_config(
        &mut self,
        wanted: &Wanted,
        links: &[host::Link],
        problems: &mut Vec<String>,
    ) -> Option<HostConfig> {
        let mut found = Vec::new();
        for (slot, eni) in &wanted.enis {
            match (link_of(eni, links), eni.subnet_prefix) {
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
            sysctl_dir: PathBuf::from(&self.config.net_sysctl_dir),
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
                    keep(&Path::new(&self.config.state_dir).join(NFT), &table.kept());
                    self.send(HostEvent::Repaired {
                        kind: "nft".into(),
                        what: "table ip veni".into(),
                    });
                }
            }
            current => {
                let file = Path::new(&self.config.state_dir).join(NFT);
                // Only an earlier daemon's: one of this daemon that is to be another has to be written.
                let kept = if current.is_none() { read_kept(&file) } else { Value::Null };
                let table = if let Some(table) = NftTable::resume(&nft, &kept)? {
                    tracing::info!("nftables table left as it is");
                    table
                } else {
                    let mut table = NftTable::new(&nft);
                    table.apply()?;
                    keep(&file, &table.kept());
                    tracing::info!("nftables table written");
                    table
                };
                self.nft = Some((nft, table));
            }
        }
        // Only now: what failed above is tried again.
        self.nft_dirty = false;
        Ok(())
    }

    /// Tells programs and Services which addresses are the node's own. Where policy is on its thread tells the programs:
    /// an address is the node's only while its front ends are there.
    fn own_addresses(&mut self) {
        let addresses = match own_addresses(&self.config.policy, &self.filter) {
            Ok(addresses) => addresses,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the node's addresses not read");
                return;
            }
        };
        if let Some(enforcer) = &self.enforcer {
            if self.addresses.as_ref() != Some(&addresses) {
                enforcer.tell(Input::NodeAddresses(addresses.clone()));
                self.addresses = Some(addresses);
            }
            return;
        }
        if self.addresses.as_ref() == Some(&addresses) {
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

    /// Tells what leads to links of no pod, when that has changed. The first time in any case: the owner has looked
    /// before, and does not look again.
    fn check_strays(&mut self) {
        match stray::look(&self.config, &self.filter, &self.links, &self.pods) {
            Ok(strays) if self.strays.as_ref() != Some(&strays) => {
                self.strays = Some(strays.clone());
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

    fn report(
        &mut self,
        ready: Vec<(EniSlot, String)>,
        present: Vec<EniSlot>,
        problems: Vec<String>,
    ) {
        let event = HostEvent::Configured { ready, present, problems };
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

fn link_of<'a>(eni: &EniFacts, links: &'a [host::Link]) -> Option<&'a host::Link> {
    links.iter().find(|link| link.mac == Some(eni.mac) && link.can_be_eni())
}

/// The ENIs whose links the node has. All, where it has not even the primary's: then this is not the namespace that ENIs are
/// plugged into, or the kernel did not list its links, and what is not seen says nothing.
fn on_node(enis: &[(EniSlot, EniFacts)], links: Option<&[host::Link]>) -> Vec<EniSlot> {
    let slots = |seen: &dyn Fn(&EniFacts) -> bool| -> Vec<_> {
        enis.iter().filter(|(_, eni)| seen(eni)).map(|(slot, _)| *slot).collect()
    };
    let found = slots(&|eni| link_of(eni, links.unwrap_or_default()).is_some());
    if found.iter().any(|slot| slot.get() == 1) { found } else { slots(&|_| true) }
}

/// The links of `former` that are not there any more.
fn gone(former: &HashMap<u32, String>, now: &HashMap<u32, String>) -> Vec<(u32, String)> {
    let gone = former.iter().filter(|(index, _)| !now.contains_key(index));
    gone.map(|(index, name)| (*index, name.clone())).collect()
}

/// What an earlier daemon kept; anything else is nothing, and the table is written anew.
fn read_kept(file: &Path) -> Value {
    let text = fs::read(file).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// By a rename: a daemon that dies here leaves the old file, which matches no table any more, or the new one.
fn keep(file: &Path, kept: &Value) {
    let next = file.with_extension("nft.next");
    let written = fs::write(&next, kept.to_string()).and_then(|()| fs::rename(&next, file));
    if let Err(error) = written {
        let file = file.display();
        tracing::warn!(error = chain(&error), %file, "not kept: the next daemon writes the nftables table anew");
    }
}

/// The node's own addresses as policy sees them.
///
/// # Errors
/// When the kernel cannot be asked.
pub(crate) fn own_addresses(
    policy: &PolicySettings,
    filter: &Filter,
) -> Result<BTreeSet<IpAddr>, veni_datapath::Error> {
    // The ranges of Services may be known by their objects alone.
    let policy = as_known(policy, &filter.settings()?);
    host::addresses().map(|addresses| outside(&addresses, &policy))
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

pub(super) fn relist(links: &Links) -> Result<(), veni_datapath::Error> {
    let listed = host::links()?;
    *lock(links) = listed.into_iter().map(|link| (link.ifindex, link.ifname)).collect();
    Ok(())
}

pub(super) fn lock(links: &Links) -> MutexGuard<'_, HashMap<u32, String>> {
    links.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_of_the_table_is_read_again_and_anything_else_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(NFT);
        assert_eq!(read_kept(&file), Value::Null, "there is no file");
        let kept = serde_json::json!({"ruleset": {"nftables": []}, "listed": null});
        keep(&file, &kept);
        keep(&file, &kept);
        assert_eq!(read_kept(&file), kept);
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), [NFT], "something is left over");
        for other in [&b""[..], b"{\"ruleset\": {", b"\xff\0", b"not ours"] {
            fs::write(&file, other).unwrap();
            assert_eq!(read_kept(&file), Value::Null, "{other:?}");
        }
        // A directory that is not there: said, and that is all.
        keep(&dir.path().join("absent").join(NFT), &kept);
    }

    #[test]
    fn links_that_went_while_notifications_were_lost_are_found_gone() {
        let links = |links: &[(u32, &str)]| -> HashMap<_, _> {
            links.iter().map(|(index, name)| (*index, (*name).to_owned())).collect()
        };
        let former = links(&[(2, "eth0"), (7, "eni7"), (8, "eni8")]);
        let now = links(&[(2, "ens5"), (8, "eni8"), (9, "eni9")]);
        assert_eq!(gone(&former, &now), [(7, "eni7".to_owned())]);
        assert_eq!(gone(&now, &now), []);
    }

    #[test]
    fn an_eni_is_missing_only_where_the_node_shows_the_primary_one() {
        let facts = |n: u8| EniFacts {
            id: format!("eni-{n}").parse().unwrap(),
            mac: Mac::local(n.into()),
            subnet: "subnet-1".parse().unwrap(),
            subnet_prefix: None,
            primary_address: [10, 0, 0, n].into(),
        };
        let slot = |n| EniSlot::new(0, n).unwrap();
        let enis: Vec<_> = (0..3).map(|n| (slot(n), facts(n))).collect();
        let link = |n: u8, kind: Option<&str>| host::Link {
            ifindex: 1 + u32::from(n),
            ifname: format!("eth{n}"),
            mac: Some(Mac::local(n.into())),
            mtu: 9001,
            up: true,
            kind: kind.map(str::to_owned),
        };
        let check = |links: Option<&[host::Link]>, expect: &[u8]| {
            let expect: Vec<_> = expect.iter().map(|n| slot(*n)).collect();
            assert_eq!(on_node(&enis, links), expect, "{links:?}");
        };
        check(Some(&[link(0, None), link(2, None)]), &[0, 2]);
        check(Some(&[link(0, None), link(2, Some("vlan"))]), &[0]);
        check(Some(&[link(2, None)]), &[0, 1, 2]);
        check(None, &[0, 1, 2]);
    }

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
        // The cluster's objects said where Services are; the settings do not.
        let told = veni_ebpf_common::Settings {
            service_v4: [10, 100, 0, 0],
            service_mask_v4: [255, 255, 0, 0],
            ..Default::default()
        };
        let known = as_known(&Config::default().policy, &told);
        let own = ["10.0.0.1", "169.254.20.10", "fd00::a", "fd12::a"];
        assert_eq!(outside(&addresses, &known), own.map(|own| own.parse().unwrap()).into());
    }
}
