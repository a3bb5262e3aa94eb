//! A host without a kernel, for tests of the pool: ENIs that are wanted are there at once, or when the test says so.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;
use veni_core::{
    id::IfName,
    ipam::Allocation,
    net::Mac,
    wire::{Attachment, FilterBlocks, ReplyBody},
};

use super::{Host, HostEvent, Stray, Strays, Wanted};
use crate::start::KernelPod;

/// What the fake has, shared with the test.
#[derive(Debug, Default)]
pub struct FakeState {
    /// The last wanted state.
    pub wanted: Wanted,
    /// Pods in the filter's map, by interface index.
    pub admitted: BTreeMap<u32, Allocation>,
    /// Links of pods.
    pub links: BTreeSet<u32>,
    /// MACs of ENIs that are plugged; `None` plugs every wanted one.
    pub plugged: Option<HashSet<Mac>>,
    /// Addresses whose conntrack entries were flushed.
    pub flushed: Vec<Ipv4Addr>,
    /// Indexes of the pods whose wiring is kept in place.
    pub kept: HashSet<u32>,
    /// What the node leads to links of nobody.
    pub strays: Strays,
    /// Devices whose links do not come, whatever EC2 says.
    pub withheld: BTreeSet<u8>,
    /// From now on the kernel does not list its routes and links.
    pub unreadable: bool,
    /// From now on it is not told what is configured, as by a kernel that is slow.
    pub silent: bool,
    /// From now on no further ENI can be configured: why.
    pub broken: Option<String>,
    /// From now on the filter's map takes nothing.
    pub failing: bool,
    events: Option<mpsc::UnboundedSender<HostEvent>>,
}

/// The fake.
#[derive(Debug, Clone, Default)]
pub struct FakeHost {
    state: Arc<Mutex<FakeState>>,
}

impl FakeHost {
    /// A fake whose events go to `events`.
    #[must_use]
    pub fn new(events: mpsc::UnboundedSender<HostEvent>) -> Self {
        let state = FakeState { events: Some(events), ..FakeState::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The shared state.
    pub fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another daemon's view of the same kernel.
    #[must_use]
    pub fn reopened(&self, events: mpsc::UnboundedSender<HostEvent>) -> Self {
        self.state().events = Some(events);
        self.clone()
    }

    /// What a plugin does with an answer: a wired pod has its link.
    pub fn wire(&self, body: &ReplyBody) {
        if let ReplyBody::Wiring(wiring) = body {
            self.state().links.insert(wiring.host_ifindex);
        }
    }

    /// A pod's link has gone.
    pub fn unwire(&self, attachment: &Attachment) {
        let mut state = self.state();
        let of_pod = state.admitted.values().filter(|a| a.attachment == *attachment);
        for index in of_pod.map(|a| a.host_ifindex).collect::<Vec<_>>() {
            state.links.remove(&index);
        }
    }

    /// Pods as the filter's map and the links show them.
    #[must_use]
    pub fn pods(&self) -> Vec<KernelPod> {
        let state = self.state();
        let linked = state.admitted.values().filter(|a| state.links.contains(&a.host_ifindex));
        let pod = |a: &Allocation| KernelPod {
            address: a.address,
            host_ifname: a.host_ifname.to_string(),
            host_ifindex: a.host_ifindex,
        };
        linked.map(pod).collect()
    }

    /// The node leads these addresses to links of nobody.
    pub fn stray(&self, addresses: &[Ipv4Addr]) {
        let stray = Stray { ifindex: 7, ifname: "stray0".to_owned() };
        let strays: Strays = addresses.iter().map(|a| (*a, stray.clone())).collect();
        let mut state = self.state();
        state.strays.clone_from(&strays);
        state.send(HostEvent::Strays(strays));
    }

    /// A link has gone after its pod was forgotten.
    pub fn cut(&self, index: u32) {
        let mut state = self.state();
        state.links.remove(&index);
        state.send(HostEvent::PodLinkGone { name: format!("link {index}") });
    }

    /// Further ENIs can be configured again.
    pub fn mend(&self) {
        let mut state = self.state();
        state.broken = None;
        state.report();
    }

    /// ENIs with these MACs are plugged now, and no others.
    pub fn plug(&self, macs: HashSet<Mac>) {
        let mut state = self.state();
        let mut gone: Vec<_> =
            state.plugged.iter().flatten().filter(|mac| !macs.contains(*mac)).copied().collect();
        // In the same order each time: a seed is to be run again.
        gone.sort_unstable();
        state.plugged = Some(macs);
        for mac in gone {
            state.send(HostEvent::EniUnplugged(mac));
        }
        state.report();
    }
}

impl FakeState {
    fn send(&self, event: HostEvent) {
        if let Some(events) = &self.events {
            // A daemon that has gone hears nothing.
            drop(events.send(event));
        }
    }

    fn working(&self) -> Result<(), String> {
        if self.failing {
            Err("the map takes nothing: the test says so".to_owned())
        } else {
            Ok(())
        }
    }

    /// Whether the index is a living link's that is another pod's.
    fn of_another(&self, allocation: &Allocation) -> bool {
        let index = allocation.host_ifindex;
        let other = |a: &Allocation| a.host_ifname != allocation.host_ifname;
        self.links.contains(&index) && self.admitted.get(&index).is_some_and(other)
    }

    fn report(&self) {
        if self.silent {
            return;
        }
        let there = |mac: Mac| self.plugged.as_ref().is_none_or(|plugged| plugged.contains(&mac));
        let present: Vec<_> = self
            .wanted
            .enis
            .iter()
            .filter(|(slot, eni)| there(eni.mac) && !self.withheld.contains(&slot.device_index()))
            .map(|(slot, _)| *slot)
            .collect();
        let ready = present
            .iter()
            .filter(|slot| self.broken.is_none() || self.wanted.in_use.contains(slot))
            .map(|slot| (*slot, format!("eth{}", slot.device_index())))
            .collect();
        let problems = self.broken.iter().cloned().collect();
        self.send(HostEvent::Configured { ready, present, problems });
    }
}

impl Host for FakeHost {
    fn configure(&mut self, wanted: Wanted) {
        let mut state = self.state();
        state.wanted = wanted;
        state.report();
    }

    fn admit(&mut self, allocation: &Allocation, _: Mac) -> Result<(), String> {
        self.state().working()?;
        if self.state().of_another(allocation) {
            return Err(format!("index {} is another link's", allocation.host_ifindex));
        }
        self.state().admitted.insert(allocation.host_ifindex, allocation.clone());
        Ok(())
    }

    fn resume(&mut self, pods: &[(Allocation, Mac)]) -> Result<(), String> {
        self.state().working()?;
        let mut state = self.state();
        // A pod that the kernel shows and the ledger could not take in keeps its entry.
        let FakeState { admitted, links, .. } = &mut *state;
        admitted.retain(|index, _| links.contains(index));
        admitted.extend(pods.iter().map(|(a, _)| (a.host_ifindex, a.clone())));
        Ok(())
    }

    fn wired(&mut self, allocation: &Allocation) {
        self.state().kept.insert(allocation.host_ifindex);
    }

    fn forget(&mut self, allocation: &Allocation) {
        let mut state = self.state();
        if !state.of_another(allocation) {
            state.admitted.remove(&allocation.host_ifindex);
        }
        state.kept.remove(&allocation.host_ifindex);
        state.flushed.push(allocation.address);
    }

    fn flush(&mut self, address: Ipv4Addr) {
        self.state().flushed.push(address);
    }

    fn blocks(&self) -> Option<FilterBlocks> {
        None
    }

    fn strays(&self, _: &[(Allocation, Mac)]) -> Result<Strays, String> {
        let state = self.state();
        if state.unreadable {
            return Err("no routes: the test says so".to_owned());
        }
        Ok(state.strays.clone())
    }

    fn eni_links(&self) -> Result<Option<BTreeSet<Mac>>, String> {
        let state = self.state();
        if state.unreadable {
            return Err("no links: the test says so".to_owned());
        }
        Ok(state.plugged.as_ref().map(|plugged| plugged.iter().copied().collect()))
    }

    fn index_taken(&self, index: u32) -> bool {
        self.state().links.contains(&index)
    }

    fn has_link(&self, _: &IfName, index: u32) -> bool {
        self.state().links.contains(&index)
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}
