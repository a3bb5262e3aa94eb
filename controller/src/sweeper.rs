//! Sweeps leaked ENIs: asks EC2, judges ([`crate::sweep`]), takes away.
//!
//! One look is one `DescribeNetworkInterfaces` of the cluster's unattached ENIs, and one more for each instance that left
//! some: an instance that lives, running or stopped, has its primary ENI; one that is gone has none. Nothing is asked that a
//! node's daemon does not ask, so that its IAM policy will do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};
use veni_core::id::{EniId, InstanceId};
use veni_provider::{
    Cloud, CloudError, CloudResult, ErrorClass, Interface, InterfaceFilter, TAG_CLUSTER,
    TAG_CREATED_AT,
};

use crate::{
    elector::Fence,
    metrics::Metrics,
    sweep::{Rules, Sightings, Verdict, judge},
};

/// When to look, and how fast to work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Between two looks, about.
    pub interval: Duration,
    /// A leader's first look is up to so long after its beginning.
    pub start: Duration,
    /// How long a call may take.
    pub call: Duration,
    /// Between two calls of one look: other programs of the account need EC2 too.
    pub between: Duration,
    /// Instances that are asked for, ENIs that are taken away and ENIs that are given a time of creation, in one look.
    pub most: usize,
    /// Denials of one action after which a look does not ask for it any more: of one ENI it may be a condition in the IAM
    /// policy, of several it is the policy.
    pub denials: u32,
}

/// It.
#[derive(Debug)]
pub struct Sweeper<C> {
    cloud: Arc<C>,
    rules: Rules,
    pace: Pace,
    metrics: Arc<Metrics>,
    sightings: Sightings,
    /// ENIs of which something was denied: tried last.
    denied: BTreeSet<EniId>,
    begun: Instant,
    /// The time of day.
    clock: fn() -> Timestamp,
    /// Looks made; also what jitter and turns follow from.
    looks: u64,
    seed: u64,
}

/// Why a look ends before its end.
#[derive(Debug)]
enum Stop {
    /// EC2 is not to be asked before that.
    Wait(Duration),
    /// Somebody else leads.
    Fenced,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(600),
            start: Duration::from_secs(60),
            call: Duration::from_secs(10),
            between: Duration::from_millis(200),
            most: 100,
            denials: 3,
        }
    }
}

impl<C: Cloud> Sweeper<C> {
    /// Has looked at nothing yet. Different seeds do not look in step.
    #[must_use]
    pub fn new(
        cloud: Arc<C>,
        rules: Rules,
        pace: Pace,
        metrics: Arc<Metrics>,
        (clock, seed): (fn() -> Timestamp, u64),
    ) -> Self {
        let (sightings, begun) = (Sightings::default(), Instant::now());
        let denied = BTreeSet::new();
        Self { cloud, rules, pace, metrics, sightings, denied, begun, clock, looks: 0, seed }
    }

    /// Looks again and again, as long as it is let.
    pub async fn run(mut self, fence: &impl Fence) {
        sleep(self.share(self.pace.start, 0)).await;
        loop {
            let wait = self.look(fence).await;
            sleep(wait).await;
        }
    }

    /// Looks once. How long to wait until the next time.
    pub async fn look(&mut self, fence: &impl Fence) -> Duration {
        self.looks += 1;
        let looked = self.try_look(fence).await;
        self.metrics.swept(looked.is_ok(), self.sightings.len());
        let interval = self.pace.interval * 3 / 4 + self.share(self.pace.interval / 2, 1);
        match looked {
            Ok(()) if self.sightings.is_empty() => interval,
            // Something waits for its second look.
            Ok(()) => self.rules.apart.min(interval),
            Err(Stop::Wait(least)) => interval.max(least),
            Err(Stop::Fenced) => {
                tracing::info!("not the leader any more, or not surely: nothing is taken away");
                interval
            }
        }
    }

    async fn try_look(&mut self, fence: &impl Fence) -> Result<(), Stop> {
        let listed = self.list().await?;
        let now = (self.clock)();
        let there: BTreeSet<_> = listed.iter().map(|eni| &eni.id).collect();
        self.denied.retain(|eni| there.contains(eni));
        let mut suspects: BTreeMap<InstanceId, BTreeSet<EniId>> = BTreeMap::new();
        let mut ageless = Vec::new();
        for eni in listed {
            match judge(&eni, &self.rules, now) {
                Verdict::Left(reason) => {
                    tracing::debug!(eni = %eni.id, reason, "an unattached ENI is left");
                }
                Verdict::Ageless => ageless.push(eni.id),
                Verdict::Suspect(instance) => {
                    suspects.entry(instance).or_default().insert(eni.id);
                }
            }
        }
        self.stamp(ageless, now, fence).await?;
        let (leaked, untold) = self.ask(suspects).await?;
        let since = self.begun.elapsed();
        let sure = self.sightings.look(&leaked, &untold, since, &self.rules);
        self.take_away(sure, fence).await
    }

    async fn take_away(&mut self, mut sure: Vec<EniId>, fence: &impl Fence) -> Result<(), Stop> {
        sure.sort_by_key(|eni| self.denied.contains(eni));
        let mut denials = 0;
        for eni in sure.iter().take(self.pace.most) {
            denials += u32::from(self.delete(eni, fence).await?);
            if denials >= self.pace.denials {
                break;
            }
            sleep(self.pace.between).await;
        }
        // Looking again soon would change nothing.
        if denials > 0 { Err(Stop::Wait(Duration::ZERO)) } else { Ok(()) }
    }

    async fn list(&self) -> Result<Vec<Interface>, Stop> {
        let (key, value) = (TAG_CLUSTER.to_owned(), self.rules.cluster.clone());
        let call = self.cloud.describe_interfaces(InterfaceFilter::AvailableWithTag { key, value });
        self.bounded("DescribeNetworkInterfaces", call).await.map_err(|error| {
            self.failed(&error, "leaked ENIs not looked for");
            wait(&error)
        })
    }

    /// ENIs that do not say when they were made count from now on, also for the next leader.
    async fn stamp(
        &mut self,
        mut ageless: Vec<EniId>,
        now: Timestamp,
        fence: &impl Fence,
    ) -> Result<(), Stop> {
        let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let tags = [(TAG_CREATED_AT.to_owned(), now)].into();
        self.in_turn(&mut ageless);
        ageless.sort_by_key(|eni| self.denied.contains(eni));
        let mut denials = 0;
        for eni in ageless.iter().take(self.pace.most) {
            fenced(fence).await?;
            let call = self.cloud.create_tags(eni, &tags);
            if let Err(error) = self.bounded("CreateTags", call).await {
                self.failed(&error, "an ENI without a time of creation is left");
                denials += u32::from(self.passes_over(eni, &error)?);
            }
            if denials >= self.pace.denials {
                // What has a time can be taken away all the same.
                break;
            }
            sleep(self.pace.between).await;
        }
        Ok(())
    }

    /// Where there is more than one look takes in, each has its turn.
    fn in_turn<T>(&self, all: &mut [T]) {
        if all.len() > self.pace.most {
            let first = usize::try_from(self.looks).unwrap_or(0).wrapping_mul(self.pace.most);
            let first = first % all.len();
            all.rotate_left(first);
        }
    }

    /// Which instances are gone: the ENIs of those, and the ENIs of those of which it could not be told.
    async fn ask(
        &mut self,
        suspects: BTreeMap<InstanceId, BTreeSet<EniId>>,
    ) -> Result<(BTreeSet<EniId>, BTreeSet<EniId>), Stop> {
        let (mut leaked, mut untold) = (BTreeSet::new(), BTreeSet::new());
        let mut turns: Vec<_> = suspects.into_iter().collect();
        self.in_turn(&mut turns);
        for (turn, (instance, enis)) in turns.into_iter().enumerate() {
            if turn >= self.pace.most {
                untold.extend(enis);
                continue;
            }
            let call =
                self.cloud.describe_interfaces(InterfaceFilter::AttachedTo(instance.clone()));
            match self.bounded("DescribeNetworkInterfaces", call).await {
                Ok(attached) if attached.is_empty() => leaked.extend(enis),
                // Its daemon sees to them.
                Ok(_) => {}
                Err(error) => {
                    self.failed(&error, "not told whether an instance is gone: its ENIs are left");
                    untold.extend(enis);
                    stops(&error)?;
                }
            }
            sleep(self.pace.between).await;
        }
        Ok((leaked, untold))
    }

    /// Whether it was denied.
    async fn delete(&mut self, eni: &EniId, fence: &impl Fence) -> Result<bool, Stop> {
        fenced(fence).await?;
        let call = self.cloud.delete_interface(eni);
        match self.bounded("DeleteNetworkInterface", call).await {
            Ok(()) => {
                tracing::info!(%eni, "a leaked ENI is deleted");
                self.metrics.deleted();
                self.sightings.forget(eni);
                Ok(false)
            }
            // An earlier call's answer was lost, or somebody else has deleted it.
            Err(error) if error.class == ErrorClass::NotFound => {
                self.sightings.forget(eni);
                Ok(false)
            }
            Err(error) => {
                self.failed(&error, "a leaked ENI is not deleted");
                if error.class == ErrorClass::Invalid {
                    // It is used after all, or EC2 holds it for something: it has to look leaked twice again.
                    self.sightings.forget(eni);
                }
                self.passes_over(eni, &error)
            }
        }
    }

    /// Whether it was denied. The look goes on also then, because a denial may be for one ENI's tags.
    fn passes_over(&mut self, eni: &EniId, error: &CloudError) -> Result<bool, Stop> {
        if matches!(error.class, ErrorClass::Denied { .. }) {
            self.denied.insert(eni.clone());
            return Ok(true);
        }
        stops(error).map(|()| false)
    }

    async fn bounded<T>(
        &self,
        action: &'static str,
        call: impl Future<Output = CloudResult<T>>,
    ) -> CloudResult<T> {
        let silent = || {
            let message = format!("no answer within {} s", self.pace.call.as_secs());
            CloudError::new(action, ErrorClass::Transient, "Timeout", message)
        };
        timeout(self.pace.call, call).await.unwrap_or_else(|_| Err(silent()))
    }

    fn failed(&self, error: &CloudError, what: &str) {
        self.metrics.failed(error.action);
        match &error.class {
            ErrorClass::Denied { action } => {
                let next =
                    format!("allow ec2:{action} to the controller's role (docs/iam-policy.json)");
                tracing::warn!(%error, next, "{what}");
            }
            _ => tracing::warn!(%error, "{what}"),
        }
    }

    /// A share of `most` that differs from leader to leader and from look to look.
    fn share(&self, most: Duration, salt: u64) -> Duration {
        // splitmix64 (Steele, Lea, Flood).
        let mut z = (self.seed ^ salt).wrapping_add(self.looks.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        most * u32::try_from((z ^ (z >> 31)) % 1024).unwrap_or(0) / 1024
    }
}

async fn fenced(fence: &impl Fence) -> Result<(), Stop> {
    if fence.confirm().await { Ok(()) } else { Err(Stop::Fenced) }
}

/// Whether the look ends with this failure: what concerns one thing does not hold the others up.
fn stops(error: &CloudError) -> Result<(), Stop> {
    match error.class {
        ErrorClass::Throttled { .. } | ErrorClass::Denied { .. } => Err(wait(error)),
        _ => Ok(()),
    }
}

fn wait(error: &CloudError) -> Stop {
    Stop::Wait(error.retry_after().unwrap_or_default())
}
