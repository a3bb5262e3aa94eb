//! The EC2 account of a lab: the simulator in real time, served to every node's daemon, and the hand that plugs and
//! unplugs ENIs as it says.
//!
//! Invariants: one process holds the region. The fabric follows the region's events in their order, one at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use veni_core::id::{EniId, InstanceId, SecurityGroupId, SecurityGroupRuleId, SubnetId, VpcId};
use veni_provider::{
    CloudResult, Interface,
    call::{Answer, Call},
    security_group::{RuleDirection, RulePeer, RuleTraffic},
    sim::{
        Admin, AdminAnswer, Event, EventKind, RuleSpec, Sim, SimConfig, SubnetSpec, Timer as _,
        WorldError,
    },
};
use veni_provider_socket::{Handler, RealTime, SimHandler, drive, serve};

use crate::{
    error::{Context as _, Error, Result},
    ns::Namespace,
    vpc::{POD_SUBNET, Port, SUBNETS, VPC_CIDR, Vpc, cable_name},
};

/// The lab's VPC.
const VPC_ID: &str = "vpc-0lab";

/// The account.
#[derive(Debug)]
pub struct Account {
    sim: Arc<Mutex<Sim>>,
    timer: Arc<RealTime>,
    socket: PathBuf,
    nodes: Nodes,
    doors: mpsc::UnboundedSender<(UnixListener, InstanceId)>,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// Answers whoever comes as one instance, as instance metadata knows who asks.
struct Door {
    region: SimHandler<RealTime>,
    instance: InstanceId,
}

/// Which namespace an instance is.
type Nodes = Arc<Mutex<BTreeMap<InstanceId, Namespace>>>;

/// The hand: what it has plugged in.
#[derive(Debug)]
struct Hand {
    vpc: Arc<Vpc>,
    nodes: Nodes,
    plugged: BTreeMap<EniId, Plugged>,
}

#[derive(Debug)]
struct Plugged {
    cable: String,
    addresses: BTreeSet<Ipv4Addr>,
}

// === impl Account ===

impl Account {
    /// An account with the lab's VPC and subnets, served at `socket`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open(config: SimConfig, socket: PathBuf, vpc: Arc<Vpc>) -> Result<Self> {
        let mut sim = Sim::new(config);
        lay_out(&mut sim)
            .map_err(|error| Error::invalid(format!("the lab's VPC does not fit: {error}")))?;
        let what = || format!("cannot serve the EC2 simulator at {}", socket.display());
        let listener = UnixListener::bind(&socket).context(what)?;
        listener.set_nonblocking(true).context(what)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context(what)?;
        let sim = Arc::new(Mutex::new(sim));
        let timer = Arc::new(RealTime::start());
        let (stop, stopped) = oneshot::channel::<()>();
        let (events, mut happened) = mpsc::unbounded_channel();
        let (doors, opened) = mpsc::unbounded_channel();
        let nodes = Nodes::default();

        let serving = thread::spawn({
            let (sim, timer) = (Arc::clone(&sim), Arc::clone(&timer));
            move || {
                runtime.block_on(async move {
                    let Ok(listener) = tokio::net::UnixListener::from_std(listener) else {
                        return;
                    };
                    let handler = Arc::new(SimHandler::new(Arc::clone(&sim), Arc::clone(&timer)));
                    let doors = open_doors(opened, Arc::clone(&sim), Arc::clone(&timer));
                    tokio::select! {
                        () = serve(listener, handler) => {}
                        () = doors => {}
                        () = drive(sim, timer, events) => {}
                        _ = stopped => {}
                    }
                });
            }
        });
        let mut hand = Hand { vpc, nodes: Arc::clone(&nodes), plugged: BTreeMap::new() };
        let plugging = thread::spawn(move || {
            while let Some(event) = happened.blocking_recv() {
                hand.follow(event);
            }
        });
        let (stop, threads) = (Some(stop), vec![serving, plugging]);
        Ok(Self { sim, timer, socket, nodes, doors, stop, threads })
    }

    /// Serves `instance` alone at `socket`, whatever instance a caller names: one that does not know which it is.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn serve_instance(&self, instance: &InstanceId, socket: &Path) -> Result<()> {
        let what = || format!("cannot serve {instance} at {}", socket.display());
        let listener = UnixListener::bind(socket).context(what)?;
        listener.set_nonblocking(true).context(what)?;
        let opened = self.doors.send((listener, instance.clone()));
        opened.map_err(std::io::Error::other).context(what)
    }

    /// Where it is served.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The region itself, for faults, counts and a look at what is really there. While it is held, EC2 stands still.
    pub fn sim(&self) -> MutexGuard<'_, Sim> {
        self.sim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The region's time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.timer.now()
    }

    /// The ENIs of `instance` as they really are, the primary first.
    #[must_use]
    pub fn interfaces_of(&self, instance: &InstanceId) -> Vec<Interface> {
        let sim = self.sim();
        let of = |i: &&Interface| i.attachment.as_ref().is_some_and(|a| a.instance_id == *instance);
        let mut interfaces: Vec<_> = sim.interfaces().filter(of).cloned().collect();
        interfaces.sort_by_key(|i| i.attachment.as_ref().map(|a| (a.network_card, a.device_index)));
        interfaces
    }

    /// Makes a security group in the lab's VPC with these rules besides the one that lets everything out; returns their
    /// ids.
    ///
    /// # Errors
    /// When there is one of that id, or a rule refers to what does not exist.
    pub fn create_group(
        &self,
        id: &SecurityGroupId,
        rules: impl IntoIterator<Item = (RuleDirection, RuleTraffic, RulePeer)>,
    ) -> Result<Vec<SecurityGroupRuleId>> {
        let refused = |error: WorldError| Error::invalid(format!("security group {id}: {error}"));
        let (now, mut sim) = (self.now(), self.sim());
        let vpc_id = VPC_ID.parse().map_err(|error| Error::invalid(format!("{error}")))?;
        sim.admin(now, Admin::CreateSecurityGroup { id: id.clone(), vpc_id }).map_err(refused)?;
        let authorize = |(direction, traffic, peer)| {
            let rule = RuleSpec { group: id.clone(), direction, traffic, peer };
            sim.authorize(rule).map_err(refused)
        };
        rules.into_iter().map(authorize).collect()
    }

    /// Does `change` to security groups; returns what it answers.
    ///
    /// # Errors
    /// When it names what does not exist, or what something still needs.
    pub fn change_groups(&self, change: Admin) -> Result<AdminAnswer> {
        let (now, mut sim) = (self.now(), self.sim());
        sim.admin(now, change).map_err(|error| Error::invalid(error.to_string()))
    }

    /// From now on, ENIs that are attached to `instance` are plugged into `node`.
    pub(crate) fn place(&self, instance: &InstanceId, node: &Namespace) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(instance.clone(), node.clone());
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // Dropping the sender ends the serving thread, and with it the events.
        self.stop = None;
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

// === impl Door ===

impl Handler for Door {
    async fn call(&self, _: InstanceId, call: Call) -> CloudResult<Answer> {
        self.region.call(self.instance.clone(), call).await
    }

    fn admin(&self, _: Admin) -> std::result::Result<AdminAnswer, String> {
        Err("an instance cannot ask for that".to_owned())
    }
}

async fn open_doors(
    mut opened: mpsc::UnboundedReceiver<(UnixListener, InstanceId)>,
    sim: Arc<Mutex<Sim>>,
    timer: Arc<RealTime>,
) {
    while let Some((listener, instance)) = opened.recv().await {
        let region = SimHandler::new(Arc::clone(&sim), Arc::clone(&timer));
        if let Ok(listener) = tokio::net::UnixListener::from_std(listener) {
            tokio::spawn(serve(listener, Arc::new(Door { region, instance })));
        }
    }
    // The account is about to end.
    std::future::pending().await
}

// === impl Hand ===

impl Hand {
    fn follow(&mut self, event: Event) {
        let done = match event.kind {
            EventKind::Attached { instance, interface } => self.attach(&instance, &interface),
            EventKind::Detaching { interface, .. } | EventKind::Detached { interface, .. } => {
                self.detach(&interface.id)
            }
            EventKind::Assigned { eni, addresses, prefixes, .. } => {
                let inside = prefixes.iter().flat_map(|prefix| {
                    let first = u32::from(prefix.network());
                    (first..first + (1 << (32 - prefix.len()))).map(Ipv4Addr::from)
                });
                self.change(&eni, |held| held.extend(inside.chain(addresses)))
            }
            EventKind::Unassigned { eni, addresses, .. } => {
                self.change(&eni, |held| held.retain(|address| !addresses.contains(address)))
            }
            EventKind::Created { .. } | EventKind::Deleted { .. } => Ok(()),
        };
        if let Err(error) = done {
            complain(&error);
        }
    }

    fn attach(&mut self, instance: &InstanceId, interface: &Interface) -> Result<()> {
        let Some(attachment) = &interface.attachment else {
            return Ok(());
        };
        let node = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(instance).cloned();
        let Some(node) = node else { return Ok(()) };
        let mut addresses: BTreeSet<_> = interface.secondary_addresses.iter().copied().collect();
        addresses.insert(interface.primary_address);
        let cable = cable_name(node.name(), attachment.device_index);
        self.plugged.insert(interface.id.clone(), Plugged { cable, addresses: addresses.clone() });
        // The primary one was there when the node booted.
        if attachment.device_index == 0 {
            return Ok(());
        }
        let node_name = node.name().to_owned();
        let port = Port {
            node: node_name,
            device_index: attachment.device_index,
            mac: interface.mac,
            addresses,
        };
        self.vpc.plug(&node, &port)
    }

    fn detach(&mut self, eni: &EniId) -> Result<()> {
        self.plugged.remove(eni).map_or(Ok(()), |plugged| self.vpc.unplug(&plugged.cable))
    }

    fn change(&mut self, eni: &EniId, change: impl FnOnce(&mut BTreeSet<Ipv4Addr>)) -> Result<()> {
        let Some(plugged) = self.plugged.get_mut(eni) else {
            return Ok(());
        };
        change(&mut plugged.addresses);
        self.vpc.set_addresses(&plugged.cable, &plugged.addresses)
    }
}

/// The subnet of the node of this number, counted from 0: they take turns.
pub(crate) fn subnet_of(node: usize) -> (SubnetId, &'static str) {
    let number = node % SUBNETS.len();
    let id = format!("subnet-0lab{number}").parse().expect("letters and digits after `subnet-`");
    (id, SUBNETS[number])
}

/// The availability zone of the node of this number.
pub(crate) fn zone_of(node: usize) -> &'static str {
    ["eu-central-1a", "eu-central-1b"][node % SUBNETS.len()]
}

fn lay_out(sim: &mut Sim) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let vpc: VpcId = VPC_ID.parse()?;
    sim.add_vpc(vpc.clone(), vec![VPC_CIDR.parse()?])?;
    let of_nodes = (0..SUBNETS.len()).map(|number| (subnet_of(number), zone_of(number)));
    let (id, cidr) = POD_SUBNET;
    for ((id, cidr), zone) in of_nodes.chain([((id.parse()?, cidr), zone_of(0))]) {
        sim.add_subnet(SubnetSpec {
            id,
            vpc_id: vpc.clone(),
            availability_zone: zone.to_owned(),
            cidr: cidr.parse()?,
            tags: BTreeMap::new(),
        })?;
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the lab's own trouble, with nobody else to tell")]
fn complain(error: &Error) {
    use std::error::Error as _;
    let source = error.source().map(|s| format!(": {s}")).unwrap_or_default();
    eprintln!("veni-lab: the fabric could not follow EC2: {error}{source}");
}
