//! The simulator in real time, served to every node's daemon.
//!
//! Invariants: one process holds the region. The fabric follows the region's events in their order, one at a time.

use std::{
    collections::BTreeMap,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use veni_core::id::{InstanceId, SubnetId, VpcId};
use veni_provider::{
    CloudResult,
    call::{Answer, Call},
    sim::{Admin, AdminAnswer, Sim, SimConfig, SubnetSpec, Timer as _},
};
use veni_provider_socket::{Handler, RealTime, SimHandler, drive, serve};

use super::{VPC_ID, hand::Hand, zone_of};
use crate::{
    error::{Context as _, Error, Result},
    vpc::{POD_SUBNET, SUBNETS, VPC_CIDR},
};

/// The simulator.
#[derive(Debug)]
pub(super) struct Simulator {
    sim: Arc<Mutex<Sim>>,
    timer: Arc<RealTime>,
    socket: PathBuf,
    doors: mpsc::UnboundedSender<(UnixListener, InstanceId)>,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// Answers whoever comes as one instance, as instance metadata knows who asks.
struct Door {
    region: SimHandler<RealTime>,
    instance: InstanceId,
}

// === impl Simulator ===

impl Simulator {
    /// The lab's VPC and subnets, served at `socket`; `hand` follows.
    pub(super) fn open(config: SimConfig, socket: PathBuf, mut hand: Hand) -> Result<Self> {
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
        let plugging = thread::spawn(move || {
            while let Some(event) = happened.blocking_recv() {
                hand.follow(event);
            }
        });
        let (stop, threads) = (Some(stop), vec![serving, plugging]);
        Ok(Self { sim, timer, socket, doors, stop, threads })
    }

    /// Serves `instance` alone at `socket`, whatever instance a caller names: one that does not know which it is.
    pub(super) fn serve_instance(&self, instance: &InstanceId, socket: &Path) -> Result<()> {
        let what = || format!("cannot serve {instance} at {}", socket.display());
        let listener = UnixListener::bind(socket).context(what)?;
        listener.set_nonblocking(true).context(what)?;
        let opened = self.doors.send((listener, instance.clone()));
        opened.map_err(std::io::Error::other).context(what)
    }

    /// Where it is served.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn sim(&self) -> MutexGuard<'_, Sim> {
        self.sim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.timer.now()
    }
}

impl Drop for Simulator {
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

/// The subnet of the node of this number, counted from 0: they take turns.
pub(super) fn subnet_of(node: usize) -> SubnetId {
    let number = node % SUBNETS.len();
    format!("subnet-0lab{number}").parse().expect("letters and digits after `subnet-`")
}

fn lay_out(sim: &mut Sim) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let vpc: VpcId = VPC_ID.parse()?;
    sim.add_vpc(vpc.clone(), vec![VPC_CIDR.parse()?])?;
    let of_nodes = SUBNETS
        .iter()
        .enumerate()
        .map(|(number, cidr)| (subnet_of(number), *cidr, zone_of(number)));
    let (id, cidr) = POD_SUBNET;
    for (id, cidr, zone) in of_nodes.chain([(id.parse()?, cidr, zone_of(0))]) {
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
