//! The enforcer's thread, and the handle on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::ControlFlow,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use veni_core::{
    config::Enforcing,
    id::SecurityGroupId,
    wire::inspect::policy::{Applied, Diagnostic, FlowTable, ForeignView, GroupStanding, Standing},
};
use veni_ebpf_common::Event;
use veni_policy::{
    change::PodKey,
    object::{Key, Object},
    security_group::SecurityGroups,
    service::OwnNode,
    view::PodFilter,
};

use crate::report::denied::Denial;

use super::{
    Answering, Enforcer, Found, Look, Memory, Plane, Query, Reply, ServiceRanges, Subscriber,
    Wired,
    foreign::{self, Looked},
    matrix::Matrices,
};

mod asks;

use asks::{Ask, Asks};

/// How long a count of the flows is told again.
const FLOWS_FRESH: Duration = Duration::from_secs(60);

/// What the thread is told.
pub enum Input {
    /// Objects have changed.
    Objects {
        /// New and changed ones.
        apply: Vec<Object>,
        /// Those that are gone.
        delete: Vec<Key>,
        /// Everything that is wrong now.
        diagnostics: Vec<Diagnostic>,
        /// Whether all that exist have been told by now.
        complete: bool,
        /// Pods whose objects are there, but are told later, and what each waits for.
        held: BTreeMap<PodKey, String>,
    },
    /// Security groups as they are resolved now.
    Groups(SecurityGroups),
    /// Where Services are, as the programs know it now.
    Ranges(ServiceRanges),
    /// The node's own addresses.
    NodeAddresses(BTreeSet<IpAddr>),
    /// A pod is about to be wired.
    Attach {
        /// It.
        wired: Wired,
        /// How long its labels are waited for.
        deadline: Instant,
        /// Called when it may be wired.
        answer: Answering,
    },
    /// Pods that were there before.
    Adopt {
        /// They.
        pods: Vec<Wired>,
        /// Called when they are judged.
        done: Box<dyn FnOnce() + Send>,
    },
    /// The pod of this interface is gone.
    Detach(u32),
    /// New flows.
    Events(Vec<Event>),
    /// Someone follows flows from now on.
    Subscribe(Subscriber),
    /// Flows that are denied are told here from now on.
    Denials(mpsc::Sender<Denial>),
    /// A question.
    Query(Query, Reply),
    /// Who of these may talk to whom of those: worked out in slices, when nothing else is to be done.
    Matrix([Option<PodFilter>; 2], Reply),
    /// How policy stands.
    Standing(oneshot::Sender<Standing>),
    /// Answered once this generation (the present one unless told otherwise) is in force.
    Await(Option<u64>, oneshot::Sender<Applied>),
}

/// Tells the thread. It ends with the last handle.
#[derive(Clone)]
pub struct Handle {
    inputs: Sender<Input>,
    groups: Arc<dyn Fn() -> Vec<GroupStanding> + Send + Sync>,
    foreign: Looked<ForeignView>,
    flow_tables: Looked<FlowTable>,
}

/// What the thread starts from.
pub struct Sources<P> {
    /// The tables.
    pub plane: P,
    /// The node.
    pub own: OwnNode,
    /// What holds for pods that no policy selects.
    pub enforcing: Enforcing,
    /// Where Services are.
    pub ranges: ServiceRanges,
    /// The labels that pods had here.
    pub memory: Memory,
    /// What an earlier daemon left in the maps.
    pub found: Found,
    /// Told which security groups are wanted, whenever that changes.
    pub want: Box<dyn Fn(BTreeSet<SecurityGroupId>) + Send>,
    /// Asks for pods that ADDs wait for.
    pub ask: Ask,
    /// How they stand.
    pub groups: Arc<dyn Fn() -> Vec<GroupStanding> + Send + Sync>,
    /// Looks for others' programs. Not on the thread: each interface costs calls.
    pub foreign: Look<ForeignView>,
    /// Looks how full the tables of flows are. Not on the thread: they are counted.
    pub flow_tables: Look<FlowTable>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Input")
    }
}

impl<P> std::fmt::Debug for Sources<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("own", &self.own).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start<P: Plane>(sources: Sources<P>) -> std::io::Result<Self> {
        let (inputs, received) = channel();
        let groups = sources.groups.clone();
        let foreign = Looked::new(sources.foreign.clone(), foreign::FRESH);
        let flow_tables = Looked::new(sources.flow_tables.clone(), FLOWS_FRESH);
        std::thread::Builder::new()
            .name("policy".to_owned())
            .spawn(move || run(sources, &received))?;
        Ok(Self { inputs, groups, foreign, flow_tables })
    }

    /// How the pods' security groups stand.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupStanding> {
        (self.groups)()
    }

    /// How policy and the pods' security groups stand; `None`: the thread has ended.
    pub async fn standing(&self) -> Option<Standing> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Standing(reply));
        let (security_groups, foreign) = (self.groups(), self.foreign.found().await);
        let flow_tables = self.flow_tables.found().await;
        Some(Standing { security_groups, foreign, flow_tables, ..answer.await.ok()? })
    }

    /// Tells the thread.
    pub fn tell(&self, input: Input) {
        if self.inputs.send(input).is_err() {
            tracing::error!("the policy thread has ended: restart ipamd");
        }
    }
}

fn run<P: Plane>(sources: Sources<P>, inputs: &Receiver<Input>) {
    let Sources { plane, own, enforcing, ranges, memory, found, want, ask, .. } = sources;
    let mut enforcer = Enforcer::new(plane, own, enforcing, memory, &found).with_ranges(ranges);
    let (mut matrices, mut wanted) = (Matrices::default(), BTreeSet::new());
    let mut asks = Asks::new(ask);
    while turn(&mut enforcer, &mut matrices, inputs).is_continue() {
        asks.turn(&enforcer);
        if let Some(now_wanted) = enforcer.wanted_anew()
            && now_wanted != wanted
        {
            wanted.clone_from(&now_wanted);
            want(now_wanted);
        }
    }
}

/// Takes what is told, or goes on with a matrix where nothing is; breaks when nobody is left to tell anything.
pub(super) fn turn<P: Plane>(
    enforcer: &mut Enforcer<P>,
    matrices: &mut Matrices,
    inputs: &Receiver<Input>,
) -> ControlFlow<()> {
    let now = Instant::now();
    let until_wake = || {
        let wake_at = enforcer.wake_at();
        wake_at.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(now))
    };
    let wait = if matrices.is_empty() { until_wake() } else { Duration::ZERO };
    match inputs.recv_timeout(wait) {
        Ok(input) => take(enforcer, matrices, input),
        Err(RecvTimeoutError::Timeout) => matrices.advance(enforcer),
        Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
    }
    enforcer.expire(Instant::now());
    ControlFlow::Continue(())
}

fn take<P: Plane>(enforcer: &mut Enforcer<P>, matrices: &mut Matrices, input: Input) {
    let now = Instant::now();
    match input {
        Input::Objects { apply, delete, diagnostics, complete, held } => {
            enforcer.hold(held);
            enforcer.objects(apply, &delete, diagnostics, complete, now);
        }
        Input::Groups(groups) => enforcer.groups(groups, now),
        Input::Ranges(ranges) => enforcer.set_ranges(ranges),
        Input::NodeAddresses(addresses) => enforcer.node_addresses(addresses, now),
        Input::Attach { wired, deadline, answer } => {
            enforcer.attach(wired, deadline, answer, now);
        }
        Input::Adopt { pods, done } => {
            enforcer.adopt(pods, now);
            done();
        }
        Input::Detach(ifindex) => enforcer.detach(ifindex, now),
        Input::Events(events) => enforcer.tell(&events),
        Input::Subscribe(subscriber) => enforcer.subscribe(subscriber),
        Input::Denials(denials) => enforcer.tell_denials(denials),
        // Who asked and went away needs no answer.
        Input::Query(query, reply) => drop(reply.send(enforcer.query(&query))),
        Input::Matrix(ends, reply) => matrices.ask(enforcer, ends, reply),
        Input::Standing(reply) => drop(reply.send(enforcer.standing(now))),
        Input::Await(generation, reply) => enforcer.await_applied(generation, reply),
    }
}
