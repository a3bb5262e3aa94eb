//! The measured executions.

use std::{
    ffi::OsString,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use veni_core::wire::{
    AddRequest, Attachment, DelReason, DelRequest, PodRef, ReplyBody, RequestBody,
};
use veni_lab::{
    Lab, Node,
    binaries::Binary,
    ns::Namespace,
    runtime::{IFNAME, NETWORK, Sandbox, execute},
    wire,
};

/// What the plugin is compared with.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) floor: Binary,
    pub(super) nop: Binary,
    /// Not compared: it measures memory.
    pub(super) peak: Binary,
}

/// One node to measure on.
pub(super) struct Bench<'a> {
    lab: &'a Lab,
    node: Arc<Node>,
    programs: Programs,
    places_made: AtomicU32,
}

/// Durations of the same rounds.
#[derive(Debug, Default)]
pub(super) struct Samples {
    pub(super) add: Vec<Duration>,
    pub(super) del: Vec<Duration>,
    pub(super) floor: Vec<Duration>,
    pub(super) nop: Vec<Duration>,
}

/// A sandbox, alive as long as this.
struct Place {
    namespace: Namespace,
    sandbox: Sandbox,
}

/// Interface indexes of the floor's links: above those that the daemon gives (from 0x100000).
const FLOOR_IFINDEX: u32 = 0x4000_0000;
const MTU: &str = "9001";

impl<'a> Bench<'a> {
    pub(super) fn new(lab: &'a Lab, programs: Programs) -> Self {
        Self { lab, node: Arc::clone(&lab.nodes()[0]), programs, places_made: AtomicU32::new(0) }
    }

    /// `pods` ADDs one at a time, each followed by a floor and a no-op; the floors stay as the pods do, so that both
    /// meet the same number of links. Then the DELs.
    pub(super) fn sequential(&self, pods: u32) -> anyhow::Result<Samples> {
        let (real, bare) = (self.places(pods)?, self.places(pods)?);
        let samples = self.on_node(|| {
            let mut samples = Samples::default();
            for (number, (real, bare)) in (0..).zip(real.iter().zip(&bare)) {
                // Each goes first every other time.
                if number % 2 == 0 {
                    samples.add.push(self.add(real)?);
                }
                samples.floor.push(self.floor(number, bare)?);
                samples.nop.push(self.nop()?);
                if number % 2 == 1 {
                    samples.add.push(self.add(real)?);
                }
            }
            for place in &real {
                samples.del.push(self.node.runtime.del_here(&place.sandbox)?);
            }
            Ok(samples)
        })?;
        remove(real)?;
        remove(bare)?;
        Ok(samples)
    }

    /// `bursts` times `size` ADDs at once, then as many floors at once, then as many no-ops.
    pub(super) fn bursts(&self, size: u32, bursts: u32) -> anyhow::Result<Samples> {
        let mut samples = Samples::default();
        for burst in 0..bursts {
            let (real, bare) = (self.places(size)?, self.places(size)?);
            let base = FLOOR_IFINDEX / 2 + burst * size;
            let adds = || self.at_once(size, |n| self.add(&real[n as usize]));
            let floors = || self.at_once(size, |n| self.floor(base + n, &bare[n as usize]));
            if burst % 2 == 0 {
                samples.add.extend(adds()?);
                samples.floor.extend(floors()?);
            } else {
                samples.floor.extend(floors()?);
                samples.add.extend(adds()?);
            }
            samples.nop.extend(self.at_once(size, |_| self.nop())?);
            samples.del.extend(
                self.at_once(size, |n| {
                    Ok(self.node.runtime.del_here(&real[n as usize].sandbox)?)
                })?,
            );
            remove(real)?;
            remove(bare)?;
        }
        Ok(samples)
    }

    /// Allocate requests without a plugin: from connecting to the reply.
    pub(super) fn requests(&self, count: u32) -> anyhow::Result<Vec<Duration>> {
        let socket = self.node.socket();
        let place = self.place()?;
        let took = (0..count).map(|number| {
            let attachment = Attachment {
                network: NETWORK.parse()?,
                container_id: format!("request-{number}").parse()?,
                ifname: IFNAME.parse()?,
            };
            let netns = place.sandbox.netns.clone();
            let add = AddRequest {
                attachment: attachment.clone(),
                pod: PodRef::default(),
                netns,
                wait_millis: None,
            };
            let start = Instant::now();
            let reply = wire::ask(&socket, RequestBody::Add(add))?;
            let elapsed = start.elapsed();
            ensure!(matches!(reply, ReplyBody::Wiring(_)), "the daemon answered {reply:?}");
            wire::ask(
                &socket,
                RequestBody::Del(DelRequest { attachment, reason: DelReason::AddFailed }),
            )?;
            Ok(elapsed)
        });
        let took = took.collect();
        place.namespace.unbind()?;
        took
    }

    /// The most memory that one of `count` ADDs had, each of a pod of its own; then their DELs.
    pub(super) fn peak_kib(&self, count: u32) -> anyhow::Result<u64> {
        let places = self.places(count)?;
        let (runtime, peak) = (&self.node.runtime, &self.programs.peak);
        let plugin = runtime.plugin.to_str().context("the plugin's path is not UTF-8")?;
        let most = self.on_node(|| {
            let mut most = 0;
            for Place { sandbox, .. } in &places {
                let environment: Vec<(_, OsString)> = runtime.environment("ADD", sandbox);
                let input = runtime.configuration(None).to_string();
                let run = execute(&peak.path, &[plugin], &environment, input.as_bytes())?;
                let text = String::from_utf8_lossy(&run.stderr);
                ensure!(run.success, "{plugin} failed: {}", String::from_utf8_lossy(&run.stdout));
                most = most.max(text.trim().parse().context("veni-peak prints a number")?);
                runtime.del_here(sandbox)?;
            }
            Ok(most)
        })?;
        remove(places)?;
        Ok(most)
    }

    fn add(&self, place: &Place) -> anyhow::Result<Duration> {
        Ok(self.node.runtime.add_here(&place.sandbox)?.elapsed)
    }

    fn floor(&self, number: u32, place: &Place) -> anyhow::Result<Duration> {
        let ifindex = FLOOR_IFINDEX + number;
        let [.., high, low] = number.to_be_bytes();
        let args = [
            place.sandbox.netns.display().to_string(),
            format!("flr{ifindex:x}"),
            ifindex.to_string(),
            "2".to_owned(),
            format!("10.255.{high}.{low}"),
            self.node.address.to_string(),
            format!("02:00:00:01:{high:02x}:{low:02x}"),
            format!("02:00:00:02:{high:02x}:{low:02x}"),
            MTU.to_owned(),
            veni_core::marks::DEFAULT_TABLE_BASE.to_string(),
        ];
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        self.execute(&self.programs.floor, &args, place.sandbox.clone())
    }

    fn nop(&self) -> anyhow::Result<Duration> {
        let nowhere =
            Sandbox { container_id: "nop".into(), netns: "/dev/null".into(), pod: "nop".into() };
        self.execute(&self.programs.nop, &[], nowhere)
    }

    /// As the runtime executes the plugin: the same pipes, the same input, the same environment.
    fn execute(
        &self,
        program: &Binary,
        args: &[&str],
        sandbox: Sandbox,
    ) -> anyhow::Result<Duration> {
        let runtime = &self.node.runtime;
        let environment: Vec<(_, OsString)> = runtime.environment("ADD", &sandbox);
        let input = runtime.configuration(None).to_string();
        let execution = execute(&program.path, args, &environment, input.as_bytes())?;
        if execution.success {
            return Ok(execution.elapsed);
        }
        bail!(
            "{} failed: {}",
            program.path.display(),
            String::from_utf8_lossy(&execution.stderr).trim()
        )
    }

    fn on_node<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let working = scope.spawn(|| {
                self.node.namespace.enter()?;
                work()
            });
            working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `work` of 0 to `count` - 1 from as many threads, released together.
    fn at_once(
        &self,
        count: u32,
        work: impl Fn(u32) -> anyhow::Result<Duration> + Sync,
    ) -> anyhow::Result<Vec<Duration>> {
        let barrier = Barrier::new(count as usize);
        thread::scope(|scope| {
            let working: Vec<_> = (0..count)
                .map(|number| {
                    let (barrier, work) = (&barrier, &work);
                    scope.spawn(move || {
                        let entered = self.node.namespace.enter();
                        barrier.wait();
                        entered?;
                        work(number)
                    })
                })
                .collect();
            working
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
                .collect()
        })
    }

    fn places(&self, count: u32) -> anyhow::Result<Vec<Place>> {
        (0..count).map(|_| self.place()).collect()
    }

    fn place(&self) -> anyhow::Result<Place> {
        let name = format!("bench-{}", self.places_made.fetch_add(1, Ordering::Relaxed));
        let (namespace, sandbox) =
            self.lab.sandbox(&name).context("cannot make a pod's namespace")?;
        Ok(Place { namespace, sandbox })
    }
}

fn remove(places: Vec<Place>) -> anyhow::Result<()> {
    places.into_iter().try_for_each(|place| Ok(place.namespace.unbind()?))
}
