//! The real ledger, planner, executor and owner against the simulator, with random operations and faults.
//!
//! `VENI_RANDOM_OPS` operations (12,000 unless told otherwise) in worlds of 500; the seed of each world is printed
//! when it fails, and `VENI_RANDOM_SEED=<seed>` runs that world alone. Seeds that once failed are in [`REGRESSIONS`].
//!
//! After every operation: no address on two pods, none that a pod has dropped or given back, ledger and account sound,
//! no more than [`CALLS_PER_MINUTE`] EC2 calls in any minute. An ADD is served at once when an address is available,
//! whatever the cloud does. At the end, all faults over: everything is as on a node on which nothing ever failed, and an
//! idle node makes no call. Faults: every error class that EC2 has for the call, once to three times or until it is
//! healed, before the effect or after it; delays; kill -9; a full disk; a damaged journal; a filter that takes nothing;
//! stale Describes and short metadata. Not covered: what the fake kernel does not have (routes, links' own failures).

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says by panicking what does not hold"
)]

use std::{
    collections::{BTreeMap, VecDeque},
    env,
    net::Ipv4Addr,
    time::Duration,
};

use veni_core::{
    config::{Config, Targets},
    ipam::{Allocation, check::Violation},
    wire::ReplyBody,
};
use veni_ipamd::{
    owner::Command,
    start::is_stranger,
    testing::{ACTIONS, INSTANCE, Node, NodeSpec},
};
use veni_provider::{
    ErrorClass,
    call::Failure,
    sim::{Consistency, Distortion, DistortionKind, Fault, Latency, Outcome, SimConfig},
};

/// Worlds that failed once.
/// 24: a damaged journal had an address on the ENI where it was before. 207780043: two ENIs of the node had filled its subnet,
/// and it asked for ever to empty one onto the other. 198 and 207780211: killed soon after a damaged journal was read, and the
/// next daemon served from what EC2 had not confirmed. 207780359: asked to collect before the first daemon had metadata. 207790147: two ENIs had been replaced, and one had an address of the other's
/// predecessor. 880109, 880113: the journal of these tests took a rewrite on a full disk.
const REGRESSIONS: &[u64] =
    &[24, 198, 880_109, 880_113, 207_780_043, 207_780_211, 207_780_359, 207_790_147];
const OPS_PER_WORLD: u64 = 500;
/// A subnet that a node can fill.
const SMALL: &str = "10.0.0.0/27";
/// EC2 calls in any minute of one daemon.
const CALLS_PER_MINUTE: u64 = 80;
const MINUTE_MILLIS: u64 = 60_000;
/// How long time passes unobserved.
const GLIMPSE: Duration = Duration::from_secs(15);

/// splitmix64 (S. Vigna, public domain algorithm): any seed will do.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

struct World {
    seed: u64,
    spec: NodeSpec,
    dice: Dice,
    node: Node,
    /// What the runtime believes: pods and their addresses.
    pods: BTreeMap<u32, Ipv4Addr>,
    next_pod: u32,
    stale: bool,
    /// The journal has lost a record.
    damaged: bool,
    /// The disk takes nothing.
    full: bool,
    /// The subnet had no room for a call.
    crowded: bool,
    /// When how many calls had been made, of the last minute.
    calls: VecDeque<(u64, u64)>,
    most_calls: u64,
    log: Vec<String>,
}

impl World {
    async fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let targets = dice.pick(&[
            Targets::default(),
            Targets { warm_ip: 5, minimum_ip: 10, ..Targets::default() },
            Targets { warm_ip: 1, ..Targets::default() },
            Targets { minimum_ip: 8, ..Targets::default() },
            Targets { warm_eni: 0, ..Targets::default() },
        ]);
        let stale = dice.below(2) == 0;
        let latency = match dice.below(3) {
            0 => Latency::none(),
            1 => Latency::fixed(20, 300),
            _ => Latency::fixed(200, 2500),
        };
        let consistency = Consistency {
            // Some answers are older than the wait before an ENI is deleted (`DETACH_SETTLE`).
            describe_delay_millis: if stale { dice.pick(&[5_000, 12_000]) } else { 0 },
            describe_stale_percent: if stale { 50 } else { 0 },
            new_interface_hidden_millis: if stale { 700 } else { 0 },
            metadata_delay_millis: dice.pick(&[0, 3_000, 20_000]),
        };
        let sim = SimConfig { seed, latency, consistency, ..SimConfig::instant() };
        let config = Config { targets, ..Config::default() };
        let instance_type = dice.pick(&["t3.small", "m5.large", "m5.xlarge"]);
        let subnet = dice.pick(&["10.0.0.0/24", SMALL]);
        let spec = NodeSpec { instance_type, subnet, config, sim };
        let node = Node::start(spec.clone()).await;
        let log = vec![format!("{instance_type} in {subnet}, {targets:?}, stale {stale}")];
        let pods = BTreeMap::new();
        let (calls, most_calls) = (VecDeque::new(), 0);
        Self {
            seed,
            spec,
            dice,
            node,
            pods,
            next_pod: 0,
            stale,
            damaged: false,
            full: false,
            crowded: false,
            calls,
            most_calls,
            log,
        }
    }

    async fn run(&mut self, ops: u64) {
        for _ in 0..ops {
            self.step().await;
            self.crowded |= self.is_crowded();
            self.check();
            self.count_calls();
        }
        self.end().await;
    }

    async fn step(&mut self) {
        match self.dice.below(100) {
            0..35 => self.add().await,
            35..60 => self.del().await,
            60..68 => self.burst().await,
            68..78 => self.wait().await,
            78..84 => self.crash().await,
            84..94 => self.fault(),
            94..97 => self.distort(),
            97 => match self.dice.below(4) {
                0 => self.fill_disk(true),
                1 => self.damage().await,
                _ => self.fail_host(),
            },
            98 => self.heal(),
            _ => match self.dice.below(2) {
                0 => self.again().await,
                _ => self.collect().await,
            },
        }
    }

    /// What the runtime saw of an ADD.
    fn added(&mut self, pod: u32, body: Option<ReplyBody>) {
        if let Some(ReplyBody::Wiring(wiring)) = body {
            let former = self.pods.insert(pod, wiring.address);
            assert!(
                former.is_none_or(|a| a == wiring.address),
                "seed {}: pod {pod} got two addresses",
                self.seed
            );
        }
    }

    async fn add(&mut self) {
        let pod = self.next_pod;
        self.next_pod += 1;
        self.log.push(format!("add {pod}"));
        let failing = self.full || self.node.host.state().failing;
        let requests = self.node.requests().unwrap();
        // The view is taken just before the ADD: the owner finds both together.
        let (view, body) = tokio::join!(requests.view(false), self.node.begin_add(pod));
        let available = view.is_some_and(|v| v.pool.available > 0 && v.pool.waiting == 0);
        let wired = matches!(body, Some(ReplyBody::Wiring(_)));
        assert!(
            wired || failing || !available,
            "seed {}: an address was available: {body:?}",
            self.seed
        );
        self.added(pod, body);
    }

    /// An ADD repeated gives the same address.
    async fn again(&mut self) {
        let Some(pod) = self.some_pod() else { return };
        self.log.push(format!("add {pod} again"));
        let body = self.node.begin_add(pod).await;
        let failing = self.node.host.state().failing;
        let wired = matches!(body, Some(ReplyBody::Wiring(_)));
        assert!(wired || failing, "seed {}: {body:?}", self.seed);
        self.added(pod, body);
    }

    /// The filter's map takes nothing for a while.
    fn fail_host(&mut self) {
        self.log.push("the host fails".into());
        self.node.host.state().failing = true;
    }

    /// A record of the journal is lost, and what does not fit without it. The kernel and the runtime have all pods.
    async fn damage(&mut self) {
        let at = usize::try_from(self.dice.roll() % 4096).unwrap();
        self.log.push(format!("the journal is damaged at {at}"));
        self.damaged = true;
        // It starts once EC2 tells what there is.
        self.heal();
        self.node.kill().await;
        self.node.store().damage(at);
        self.calls.clear();
        self.node.boot().await;
        // Until the daemon answers, what the journal lost is not there again.
        self.node.view().await;
    }

    /// Pods vanish without a DEL; the runtime collects what it does not have any more.
    async fn collect(&mut self) {
        for _ in 0..self.dice.below(4) {
            let Some(pod) = self.some_pod() else { break };
            self.log.push(format!("pod {pod} vanishes"));
            self.node.vanish(pod);
            self.pods.remove(&pod);
        }
        self.log.push("gc".into());
        let valid = Node::gc(self.pods.keys().copied());
        let body = self.node.requests().unwrap().ask(|reply| Command::Gc(valid, reply)).await;
        let released = matches!(body, Some(ReplyBody::Released(_)));
        // No daemon of this node has begun yet: it waits for the metadata that is withheld.
        let never_began = self.node.store().recover().whereabouts.is_none();
        assert!(released || never_began, "seed {}: {body:?}", self.seed);
    }

    async fn burst(&mut self) {
        let count = 1 + u32::try_from(self.dice.below(12)).unwrap();
        self.log.push(format!("burst of {count} from {}", self.next_pod));
        let pods = self.next_pod..self.next_pod + count;
        self.next_pod += count;
        let adds: Vec<_> = pods.map(|pod| (pod, tokio::spawn(self.node.begin_add(pod)))).collect();
        for (pod, add) in adds {
            let body = add.await.unwrap();
            self.added(pod, body);
        }
    }

    async fn del(&mut self) {
        let Some(pod) = self.some_pod() else { return };
        self.log.push(format!("del {pod}"));
        let body = self.node.del(pod).await;
        assert!(matches!(body, Some(ReplyBody::Released(_))), "seed {}: {body:?}", self.seed);
        self.pods.remove(&pod);
    }

    fn some_pod(&mut self) -> Option<u32> {
        let at = self.dice.below(self.pods.len().max(1) as u64);
        self.pods.keys().nth(usize::try_from(at).unwrap()).copied()
    }

    async fn wait(&mut self) {
        let millis = self.dice.pick(&[1, 10, 100, 1_000, 10_000, 45_000, 130_000]);
        self.log.push(format!("{millis} ms pass"));
        self.pass(Duration::from_millis(millis)).await;
    }

    async fn pass(&mut self, mut time: Duration) {
        while !time.is_zero() {
            let some = time.min(GLIMPSE);
            tokio::time::sleep(some).await;
            self.count_calls();
            time -= some;
        }
    }

    /// The budget is each daemon's own.
    fn count_calls(&mut self) {
        let (now, calls) = (self.node.now_millis(), self.node.sim().calls().ec2());
        while self.calls.front().is_some_and(|(at, _)| at + MINUTE_MILLIS < now) {
            self.calls.pop_front();
        }
        self.calls.push_back((now, calls));
        let made = calls - self.calls[0].1;
        self.most_calls = self.most_calls.max(made);
        assert!(made <= CALLS_PER_MINUTE, "seed {}: {made} EC2 calls within a minute", self.seed);
    }

    fn fill_disk(&mut self, full: bool) {
        self.full = full;
        self.node.store().set_full(full);
    }

    /// Nothing fails any more.
    fn heal(&mut self) {
        self.log.push("all is well".into());
        self.fill_disk(false);
        self.node.host.state().failing = false;
        self.node.sim().clear_faults();
    }

    /// `kill -9` with ADDs under way: the runtime never hears of those.
    async fn crash(&mut self) {
        self.log.push("kill -9".into());
        let lost: Vec<_> = (0..self.dice.below(3)).map(|_| self.next_pod()).collect();
        let adds: Vec<_> = lost.iter().map(|pod| tokio::spawn(self.node.begin_add(*pod))).collect();
        tokio::time::sleep(Duration::from_millis(self.dice.below(6))).await;
        self.node.kill().await;
        self.calls.clear();
        self.node.boot().await;
        for (pod, add) in lost.into_iter().zip(adds) {
            match add.await.unwrap() {
                Some(body) => self.added(pod, Some(body)),
                // The runtime deletes what it could not add.
                None => drop(self.node.del(pod).await),
            }
        }
    }

    fn next_pod(&mut self) -> u32 {
        self.next_pod += 1;
        self.next_pod - 1
    }

    fn fault(&mut self) {
        let action = self.dice.pick(ACTIONS);
        let fault = match self.dice.below(10) {
            0 => Fault::unavailable(action),
            1 | 2 => Fault::lost_answer(action),
            3 => Fault::throttle(action, Some(700)),
            4 => Fault::deny(action),
            5 => Fault::delay(action, 4_000),
            6 => refusal(action, ErrorClass::Invalid),
            // Of what EC2 has just made, it says so for a while; of what it deletes it says so only when it is gone.
            7 => refusal(self.dice.pick(NOT_FOUND), ErrorClass::NotFound),
            8 => refusal(self.dice.pick(FILLING), ErrorClass::AddressLimit { eni: None }),
            _ => refusal("CreateNetworkInterface", ErrorClass::Quota),
        };
        let times = 1 + u32::try_from(self.dice.below(3)).unwrap();
        let lasting = self.dice.below(8) == 0;
        self.log.push(if lasting { format!("{fault:?}") } else { format!("{fault:?} × {times}") });
        self.node.sim().inject(if lasting { fault } else { fault.times(times) });
    }

    fn distort(&mut self) {
        let kind = if self.dice.below(2) == 0 {
            DistortionKind::Omit
        } else {
            DistortionKind::Short { addresses: 1 }
        };
        self.log.push(format!("metadata: {kind:?}"));
        let distortion =
            Distortion { instance: INSTANCE.parse().unwrap(), eni: None, kind, for_millis: 60_000 };
        let now = Duration::from_millis(self.node.now_millis());
        self.node.sim().distort(now, distortion);
    }

    fn check(&self) {
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.check_now()));
        if let Err(panic) = told {
            let tail = self.log.len().saturating_sub(40);
            eprintln!(
                "VENI_RANDOM_SEED={} failed after:\n{}\n…\n{}",
                self.seed,
                self.log[0],
                self.log[tail..].join("\n")
            );
            std::panic::resume_unwind(panic);
        }
    }

    fn check_now(&self) {
        // A damaged journal can have lost how addresses went: they are kept until EC2 has twice not shown them.
        let excused = |violation: &Violation| {
            self.damaged && matches!(violation, Violation::AddressLimit { .. })
        };
        self.node.assert_sound_but(excused);
        let mut owners = BTreeMap::new();
        let ledger = self.node.store().recover().ledger;
        for (pod, address) in &self.pods {
            let other = owners.insert(address, pod);
            assert_eq!(other, None, "{address} is on pods {pod} and {other:?}");
            // While the disk is full, releases wait in memory; allocations never do.
            let held = ledger.allocation(&Node::attachment(*pod)).map(|a| a.address);
            // What a damaged journal lost waits until an answer shows the address, which a stale one does not: in the kernel,
            // whose entry for it and link stay. `end` looks again when all are fresh.
            let waits = self.damaged
                && self.stale
                && ledger.address(*address).is_none()
                && self.kernel_has(*pod, *address);
            assert!(waits || held == Some(*address), "pod {pod}'s allocation was dropped");
        }
    }

    fn kernel_has(&self, pod: u32, address: Ipv4Addr) -> bool {
        let state = self.node.host.state();
        let of_pod =
            |a: &&Allocation| a.attachment == Node::attachment(pod) || is_stranger(&a.attachment);
        let entries = state.admitted.values().filter(|a| a.address == address);
        let indexes: Vec<_> = entries.clone().filter(of_pod).map(|a| a.host_ifindex).collect();
        entries.count() == 1 && indexes.iter().any(|index| state.links.contains(index))
    }

    /// Whether EC2 has refused a call for want of addresses in the subnet: from then on calls ask for less.
    fn is_crowded(&self) -> bool {
        let sim = self.node.sim();
        let full = |code: &str| code == "InsufficientFreeAddressesInSubnet";
        sim.call_log().any(|call| matches!(&call.outcome, Outcome::Failed(code) if full(code)))
    }

    /// A pool that is short for a subnet that was full once has all that a fresh node has for those who ask.
    async fn serves(&mut self, pods: u32) {
        let first = self.next_pod;
        self.next_pod += pods;
        let adds: Vec<_> = (first..self.next_pod)
            .map(|pod| (pod, tokio::spawn(self.node.begin_add(pod))))
            .collect();
        for (pod, add) in adds {
            let body = add.await.unwrap();
            let wired = matches!(body, Some(ReplyBody::Wiring(_)));
            assert!(wired, "seed {}: no address for pod {pod}: {body:?}", self.seed);
        }
        for pod in first..self.next_pod {
            drop(self.node.del(pod).await);
        }
        self.pass(Duration::from_secs(1_000)).await;
    }

    /// Faults over, pods gone: everything goes back to what the targets ask for, and EC2 and ledger agree.
    async fn end(&mut self) {
        self.heal();
        self.node.sim().set_consistency(Consistency::default());
        self.pass(Duration::from_secs(400)).await;
        let was_stale = std::mem::replace(&mut self.stale, false);
        self.check();
        self.stale = was_stale;
        for pod in std::mem::take(&mut self.pods).into_keys() {
            drop(self.node.del(pod).await);
        }
        self.pass(Duration::from_secs(1_000)).await;
        let view = self.node.settle().await;
        let calls = self.node.sim().calls().ec2();
        self.pass(Duration::from_secs(600)).await;
        assert_eq!(
            self.node.sim().calls().ec2(),
            calls,
            "seed {}: an idle node calls EC2",
            self.seed
        );
        let describe = format!("seed {}: {:#?}\n{}", self.seed, view.plan, self.log.join("\n"));
        self.node.assert_sound();
        assert_eq!(view.pool.assigned, 0, "{describe}");
        self.spec.sim.consistency = Consistency::default();
        let fresh = Node::start(self.spec.clone()).await.settle().await;
        let steady = (fresh.enis.len(), fresh.pool.available);
        let settled = (view.enis.len(), view.pool.available);
        // Where the subnet was full, calls asked for less than an ENI takes, and nothing asks for the rest when the targets
        // are met.
        let met = self.crowded && settled.0 == steady.0 && view.plan.wanted == 0;
        let short = met && (1..steady.1).contains(&settled.1);
        assert!(
            settled == steady || short,
            "{settled:?} instead of {steady:?}: not as a node on which nothing ever failed; {describe}"
        );
        if short {
            self.serves(steady.1).await;
        }
        let view = self.node.settle().await;
        let sim = self.node.sim();
        let enis = sim.interfaces().count();
        assert_eq!(view.enis.len(), enis, "ENIs of ledger and account differ; {describe}");
        let held: usize = sim.interfaces().map(|i| i.secondary_addresses.len()).sum();
        assert_eq!(
            view.addresses.len(),
            held,
            "addresses of ledger and account differ; {describe}"
        );
        assert!(self.stale || view.problems.is_empty(), "{:?}; {describe}", view.problems);
    }
}

/// Calls on an ENI that EC2 may not know yet.
const NOT_FOUND: &[&str] =
    &["AttachNetworkInterface", "ModifyNetworkInterfaceAttribute", "AssignPrivateIpAddresses"];
/// Calls that bring addresses.
const FILLING: &[&str] = &["CreateNetworkInterface", "AssignPrivateIpAddresses"];

fn refusal(action: &str, class: ErrorClass) -> Fault {
    let code = format!("Test.{class:?}");
    Fault::error_before(action, Failure::new(class, code, "the test says so"))
}

/// Returns the most EC2 calls of a minute.
async fn world(seed: u64, ops: u64) -> u64 {
    let mut world = World::new(seed).await;
    world.run(ops).await;
    world.most_calls
}

fn number(name: &str) -> Option<u64> {
    env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn nothing_is_lost_or_doubled_whatever_happens() {
    let run = |seed, ops| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(world(seed, ops))
    };
    let total = number("VENI_RANDOM_OPS").unwrap_or(12_000);
    if let Some(seed) = number("VENI_RANDOM_SEED") {
        println!("at most {} EC2 calls a minute", run(seed, OPS_PER_WORLD));
        return;
    }
    for seed in REGRESSIONS {
        run(*seed, OPS_PER_WORLD);
    }
    // Another range each day, so that CI wanders; the seed is printed on failure.
    let day = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
        / 86_400;
    for n in 0..total.div_ceil(OPS_PER_WORLD) {
        let seed = if n % 2 == 0 { n } else { day * 10_000 + n };
        let most = run(seed, OPS_PER_WORLD);
        println!(
            "world {} of {}: seed {seed}, {OPS_PER_WORLD} operations, at most {most} EC2 calls a minute",
            n + 1,
            total.div_ceil(OPS_PER_WORLD)
        );
    }
}
