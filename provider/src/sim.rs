//! A simulated region of EC2, as far as network interfaces go: subnets with finite addresses, ENIs, attachments,
//! throttling, late answers, faults.
//!
//! Invariants: no address is on two ENIs, nor a reserved one on any; no instance holds more than its type allows
//! ([`Sim::audit`] checks them). Everything follows from the seed and the calls: there is no clock, every method
//! takes `now`, the time since the simulator's start (an earlier `now` than before counts as the latest one).
//!
//! Deliberately absent: IPv6 (but for members of security groups), routing, assigning prefixes to an existing ENI (the
//! [`Cloud`](crate::Cloud) trait has no call for it yet), other accounts.

mod admin;
mod audit;
mod bucket;
mod cloud;
mod config;
mod effect;
mod event;
mod fault;
mod history;
mod log;
mod refusal;
mod rng;
mod security_group;
mod space;
mod state;
mod ticket;
mod view;
mod world;

use std::{collections::BTreeMap, fmt, time::Duration};

use veni_core::{
    id::{AttachmentId, EniId, InstanceId, InstanceType, SecurityGroupId, SubnetId, VpcId},
    limits::{self, InstanceLimits},
};

pub use self::{
    admin::{Admin, AdminAnswer},
    cloud::{SimCloud, Timer},
    config::{AddressChoice, BucketSize, Consistency, Latency, SimConfig, Throttling},
    event::{Event, EventKind},
    fault::{Distortion, DistortionKind, Fault, FaultEffect},
    log::{CallCount, CallCounts, CallRecord, Outcome},
    security_group::{GroupView, RuleSpec},
    ticket::Ticket,
    world::{InstanceSpec, InstanceView, SimState, SubnetSpec, WorldError},
};
use self::{
    bucket::Bucket,
    fault::ArmedFault,
    history::History,
    log::Log,
    rng::Rng,
    security_group::Groups,
    state::{InstanceState, SubnetState, Token},
    world::Vpc,
};
use crate::Interface;

/// A simulated region. One account, every instance of it.
pub struct Sim {
    config: SimConfig,
    rng: Rng,
    now: Duration,
    vpcs: BTreeMap<VpcId, Vpc>,
    subnets: BTreeMap<SubnetId, SubnetState>,
    security_groups: BTreeMap<SecurityGroupId, VpcId>,
    groups: Groups,
    types: BTreeMap<InstanceType, InstanceLimits>,
    instances: BTreeMap<InstanceId, InstanceState>,
    enis: BTreeMap<EniId, History<Interface>>,
    /// When each living ENI was made.
    born: BTreeMap<EniId, Duration>,
    tokens: BTreeMap<String, Token>,
    macs: u64,
    /// What is to happen, by time and then by order of scheduling.
    transitions: BTreeMap<(Duration, u64), Transition>,
    sequence: u64,
    buckets: BTreeMap<&'static str, Bucket>,
    faults: Vec<ArmedFault>,
    next_fault: u64,
    /// Metadata's distortions and when each ends.
    distortions: Vec<(Duration, Distortion)>,
    log: Log,
    events: Vec<Event>,
    waker: Option<Box<dyn Fn() + Send>>,
}

/// The end of something that takes its time.
#[derive(Debug, Clone)]
enum Transition {
    /// An attachment is complete.
    Attached(EniId, AttachmentId),
    /// A detachment is complete.
    Detached(EniId, AttachmentId),
}

impl Sim {
    /// An empty region.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        Self {
            rng: Rng::new(config.seed),
            config,
            now: Duration::ZERO,
            vpcs: BTreeMap::new(),
            subnets: BTreeMap::new(),
            security_groups: BTreeMap::new(),
            groups: Groups::default(),
            types: BTreeMap::new(),
            instances: BTreeMap::new(),
            enis: BTreeMap::new(),
            born: BTreeMap::new(),
            tokens: BTreeMap::new(),
            macs: 0,
            transitions: BTreeMap::new(),
            sequence: 0,
            buckets: BTreeMap::new(),
            faults: Vec::new(),
            next_fault: 1,
            distortions: Vec::new(),
            log: Log::default(),
            events: Vec::new(),
            waker: None,
        }
    }

    /// Lets time pass: what is due happens, in order, each at its own moment.
    pub fn advance(&mut self, now: Duration) {
        let until = self.now.max(now);
        while let Some(entry) = self.transitions.first_entry() {
            if entry.key().0 > until {
                break;
            }
            let ((due, _), transition) = entry.remove_entry();
            self.now = self.now.max(due);
            self.complete(&transition);
        }
        self.now = until;
    }

    /// When something will happen by itself: whoever drives time calls [`Sim::advance`] then.
    #[must_use]
    pub fn next_event_at(&self) -> Option<Duration> {
        self.transitions.first_key_value().map(|((due, _), _)| *due)
    }

    /// What has happened since the last time this was asked, in order.
    pub fn drain_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Calls `waker` after each call that took effect: there may be events, and [`Sim::next_event_at`] may have
    /// changed. It runs with the simulator borrowed (under its mutex): it may only notify.
    pub fn on_change(&mut self, waker: impl Fn() + Send + 'static) {
        self.waker = Some(Box::new(waker));
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker();
        }
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &SimConfig {
        &self.config
    }

    /// Other latencies from now on.
    pub fn set_latency(&mut self, latency: Latency) {
        self.config.latency = latency;
    }

    /// Other buckets from now on, full ones.
    pub fn set_throttling(&mut self, throttling: Option<Throttling>) {
        self.config.throttling = throttling;
        self.buckets.clear();
    }

    /// Other delays from now on. What was forgotten under shorter ones stays forgotten.
    pub fn set_consistency(&mut self, consistency: Consistency) {
        self.config.consistency = consistency;
    }

    /// Puts a fault in force; the number takes it back.
    pub fn inject(&mut self, fault: Fault) -> u64 {
        let id = self.next_fault;
        self.next_fault += 1;
        self.faults.push(ArmedFault::new(id, fault));
        id
    }

    /// Takes a fault back. False when it is spent or unknown.
    pub fn withdraw(&mut self, id: u64) -> bool {
        let before = self.faults.len();
        self.faults.retain(|armed| armed.id != id);
        self.faults.len() < before
    }

    /// Takes all faults and distortions back.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
        self.distortions.clear();
    }

    /// Distorts instance metadata for a while from now on.
    pub fn distort(&mut self, now: Duration, distortion: Distortion) {
        self.advance(now);
        let until = self.now + Duration::from_millis(distortion.for_millis);
        self.distortions.push((until, distortion));
    }

    /// How often each action was called.
    #[must_use]
    pub fn calls(&self) -> &CallCounts {
        self.log.counts()
    }

    /// The last calls one by one, oldest first (at most 4,096).
    pub fn call_log(&self) -> impl Iterator<Item = &CallRecord> {
        self.log.records()
    }

    /// Forgets all calls so far.
    pub fn reset_calls(&mut self) {
        self.log.reset();
    }

    /// An ENI as it really is.
    #[must_use]
    pub fn interface(&self, id: &EniId) -> Option<&Interface> {
        self.enis.get(id).and_then(History::current)
    }

    /// All ENIs as they really are, by id.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.enis.values().filter_map(History::current)
    }

    /// What a type holds: as registered, else as in the public table.
    #[must_use]
    pub fn limits_of(&self, kind: &InstanceType) -> Option<InstanceLimits> {
        self.types.get(kind).cloned().or_else(|| limits::lookup(kind))
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("now", &self.now)
            .field("instances", &self.instances.len())
            .field("enis", &self.enis.len())
            .finish_non_exhaustive()
    }
}

fn millis(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}
