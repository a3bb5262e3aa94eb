//! A simulated region in virtual time, and a resolver over it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use veni_core::id::{InstanceId, SecurityGroupId};
use veni_policy::security_group::{GroupRule, GroupState, ResolvedGroup};
use veni_provider::{
    CloudResult, CreateInterface, GroupReference, Interface, RuleDirection, RulePeer, RuleTraffic,
    call::{Answer, Call, Transport},
    sim::{InstanceSpec, RuleSpec, Sim, SimCloud, SimConfig, SubnetSpec, Timer},
};
use veni_security_groups::{
    GroupStatus, Resolver, SecurityGroups, Settings, Snapshot, answered, published::Published,
};

pub(crate) struct Clock(Instant);

impl Timer for Clock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        sleep(duration).await;
    }
}

/// What a test does to a call before EC2 sees it: an answer instead of EC2's.
pub(crate) type Spoil = fn(&Call) -> Option<CloudResult<Answer>>;

/// The simulator behind something that can spoil its answers.
pub(crate) struct Spoiled {
    sim: SimCloud<Clock>,
    spoil: Arc<Mutex<Option<Spoil>>>,
}

impl Transport for Spoiled {
    async fn carry(&self, call: Call) -> CloudResult<Answer> {
        let spoil = *self.spoil.lock().unwrap();
        match spoil.and_then(|spoil| spoil(&call)) {
            Some(answer) => answer,
            None => self.sim.carry(call).await,
        }
    }
}

pub(crate) struct Place {
    sim: Arc<Mutex<Sim>>,
    spoil: Arc<Mutex<Option<Spoil>>>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) resolver: Option<Resolver>,
    pub(crate) snapshots: watch::Receiver<Snapshot>,
    pub(crate) driver: tokio::task::JoinHandle<()>,
}

/// `i-1`, whose calls are counted.
pub(crate) fn caller() -> InstanceId {
    "i-1".parse().unwrap()
}

pub(crate) fn id(id: &str) -> SecurityGroupId {
    id.parse().unwrap()
}

pub(crate) fn ids(list: &[&str]) -> BTreeSet<SecurityGroupId> {
    list.iter().map(|group| id(group)).collect()
}

/// TCP port 80 in from `peer`.
pub(crate) fn http(group: &str, peer: RulePeer) -> RuleSpec {
    let traffic = RuleTraffic::Ports { protocol: 6, first: 80, last: 80 };
    RuleSpec { group: id(group), direction: RuleDirection::Ingress, traffic, peer }
}

pub(crate) fn cidr(cidr: &str) -> RulePeer {
    RulePeer::Cidr(cidr.parse().unwrap())
}

pub(crate) fn list(list: &str) -> RulePeer {
    RulePeer::PrefixList(list.parse().unwrap())
}

pub(crate) fn group(group: &str) -> RulePeer {
    RulePeer::Group(reference(group))
}

pub(crate) fn reference(group: &str) -> GroupReference {
    GroupReference { id: id(group), foreign_account: None, peering_connection: None, stale: false }
}

fn region() -> Sim {
    let mut sim = Sim::new(SimConfig::instant());
    let vpc_id: veni_core::id::VpcId = "vpc-1".parse().unwrap();
    sim.add_vpc(vpc_id.clone(), vec!["10.0.0.0/16".parse().unwrap()]).unwrap();
    sim.add_subnet(SubnetSpec {
        id: "subnet-1".parse().unwrap(),
        vpc_id,
        availability_zone: "eu-central-1a".into(),
        cidr: "10.0.0.0/20".parse().unwrap(),
        tags: std::collections::BTreeMap::new(),
    })
    .unwrap();
    sim.run_instance(
        Duration::ZERO,
        InstanceSpec {
            id: caller(),
            instance_type: "m5.large".parse().unwrap(),
            subnet_id: "subnet-1".parse().unwrap(),
            security_groups: Vec::new(),
        },
    )
    .unwrap();
    sim
}

impl Place {
    /// A resolver that wants nothing yet, over a region with these groups.
    pub(crate) fn new(groups: &[&str], settings: Settings) -> Self {
        let mut sim = region();
        for group in groups {
            sim.add_security_group(id(group), "vpc-1".parse().unwrap()).unwrap();
        }
        let (sim, clock) = (Arc::new(Mutex::new(sim)), Arc::new(Clock(Instant::now())));
        let spoil = Arc::default();
        let spoiled = Spoiled {
            sim: SimCloud::new(Arc::clone(&sim), Arc::clone(&clock), caller()),
            spoil: Arc::clone(&spoil),
        };
        let (resolver, driver) = Resolver::new(Arc::new(spoiled), settings);
        let snapshots = resolver.subscribe();
        let driver = tokio::spawn(driver.run());
        Self { sim, spoil, clock, resolver: Some(resolver), snapshots, driver }
    }

    /// The daemon ends, and another one starts from what it kept.
    pub(crate) fn restart(&mut self) {
        let kept = self.resolver().kept().borrow().as_ref().clone();
        self.driver.abort();
        let spoiled = Spoiled {
            sim: SimCloud::new(Arc::clone(&self.sim), Arc::clone(&self.clock), caller()),
            spoil: Arc::clone(&self.spoil),
        };
        let (resolver, driver) = Resolver::resume(Arc::new(spoiled), Settings::default(), kept);
        self.snapshots = resolver.subscribe();
        self.resolver = Some(resolver);
        self.driver = tokio::spawn(driver.run());
    }

    /// As [`Place::restart`], with nothing kept and with what a leader publishes.
    pub(crate) fn restart_led(&mut self, published: &watch::Sender<Arc<Published>>) {
        self.restart_led_as(published, Settings::default());
    }

    pub(crate) fn restart_led_as(
        &mut self,
        published: &watch::Sender<Arc<Published>>,
        settings: Settings,
    ) {
        self.driver.abort();
        let spoiled = Spoiled {
            sim: SimCloud::new(Arc::clone(&self.sim), Arc::clone(&self.clock), caller()),
            spoil: Arc::clone(&self.spoil),
        };
        let (resolver, driver) = Resolver::new(Arc::new(spoiled), settings);
        self.snapshots = resolver.subscribe();
        self.resolver = Some(resolver);
        let published = published.clone();
        self.driver = tokio::spawn(driver.led_by(move || published.subscribe()).run());
    }

    pub(crate) fn sim(&self) -> MutexGuard<'_, Sim> {
        self.sim.lock().unwrap()
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        self.resolver.as_ref().unwrap()
    }

    pub(crate) fn spoil(&self, spoil: Option<Spoil>) {
        *self.spoil.lock().unwrap() = spoil;
    }

    /// Wants these groups and waits until all are answered for.
    pub(crate) async fn resolve(&mut self, groups: &[&str]) {
        let groups = ids(groups);
        self.resolver().want(groups.clone());
        let answered = answered(&mut self.snapshots, &groups);
        timeout(Duration::from_secs(3_600), answered).await.expect("an answer within the hour");
    }

    pub(crate) fn group(&self, group: &str) -> ResolvedGroup {
        self.snapshots.borrow().groups[&id(group)].clone()
    }

    pub(crate) fn ingress(&self, group: &str) -> Vec<GroupRule> {
        self.group(group).ingress
    }

    pub(crate) fn reason(&self, group: &str) -> Option<String> {
        match self.group(group).state {
            GroupState::Resolved => None,
            GroupState::Unresolved { reason } | GroupState::Pending { reason } => Some(reason),
        }
    }

    pub(crate) fn status(&self, group: &str) -> GroupStatus {
        let all = self.resolver().status();
        all.into_iter().find(|status| status.id == id(group)).unwrap()
    }

    /// Calls of an action so far.
    pub(crate) fn calls(&self, action: &str) -> u64 {
        self.sim().calls().of(action).calls
    }

    /// An ENI that carries these groups.
    pub(crate) fn eni(
        &self,
        groups: &[&str],
        secondary_addresses: u32,
        prefixes: u32,
    ) -> Interface {
        let request = CreateInterface {
            subnet_id: "subnet-1".parse().unwrap(),
            security_groups: groups.iter().map(|group| id(group)).collect(),
            secondary_addresses,
            prefixes,
            description: String::new(),
            tags: std::collections::BTreeMap::new(),
            client_token: String::new(),
        };
        let now = self.clock.now();
        let other = "i-2".parse().unwrap();
        let answer = self.sim().call(now, &other, Call::CreateInterface(request));
        match answer.unwrap() {
            Answer::Interface(eni) => *eni,
            answer => panic!("{answer:?}"),
        }
    }

    /// Lets virtual time pass.
    pub(crate) async fn pass(&self, secs: u64) {
        sleep(Duration::from_secs(secs)).await;
    }
}
