//! The sweep over the simulator, in virtual time: what goes, what stays, and what EC2's moods do to it.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what does not hold")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use tokio::time::{Instant, sleep};
use veni_controller::{
    elector::Fence,
    metrics::Metrics,
    sweep::Rules,
    sweeper::{Pace, Sweeper},
};
use veni_core::id::{EniId, InstanceId};
use veni_provider::{
    AttachInterface, Cloud as _, CreateInterface, TAG_CLUSTER, TAG_CREATED_AT, TAG_INSTANCE_ID,
    sim::{Consistency, Fault, InstanceSpec, Sim, SimCloud, SimConfig, SubnetSpec, Timer},
};

const LIST: &str = "DescribeNetworkInterfaces";
const DELETE: &str = "DeleteNetworkInterface";
/// When all ENIs of these tests were made, and when it is now.
const MADE: &str = "2026-11-22T02:00:00Z";
const NOW: &str = "2026-11-22T03:00:00Z";

struct Clock(Instant);

impl Timer for Clock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        sleep(duration).await;
    }
}

/// A Lease that can be taken away.
#[derive(Default)]
struct Held {
    lost: AtomicBool,
    asked: AtomicUsize,
}

impl Fence for Held {
    async fn confirm(&self) -> bool {
        self.asked.fetch_add(1, SeqCst);
        !self.lost.load(SeqCst)
    }
}

struct Place {
    sim: Arc<Mutex<Sim>>,
    clock: Arc<Clock>,
    cloud: SimCloud<Clock>,
    sweeper: Sweeper<SimCloud<Clock>>,
    metrics: Arc<Metrics>,
    fence: Held,
}

fn instance(id: &str) -> InstanceId {
    id.parse().unwrap()
}

impl Place {
    /// `i-alive` runs, `i-gone` does not any more.
    fn new() -> Self {
        let mut sim = Sim::new(SimConfig::instant());
        let vpc_id: veni_core::id::VpcId = "vpc-1".parse().unwrap();
        sim.add_vpc(vpc_id.clone(), vec!["10.0.0.0/16".parse().unwrap()]).unwrap();
        sim.add_subnet(SubnetSpec {
            id: "subnet-a".parse().unwrap(),
            vpc_id,
            availability_zone: "eu-central-1a".into(),
            cidr: "10.0.0.0/22".parse().unwrap(),
            tags: BTreeMap::new(),
        })
        .unwrap();
        for id in ["i-alive", "i-gone"] {
            let spec = InstanceSpec {
                id: instance(id),
                instance_type: "m5.large".parse().unwrap(),
                subnet_id: "subnet-a".parse().unwrap(),
                security_groups: Vec::new(),
            };
            sim.run_instance(Duration::ZERO, spec).unwrap();
        }
        sim.terminate_instance(Duration::ZERO, &instance("i-gone")).unwrap();
        let (sim, clock) = (Arc::new(Mutex::new(sim)), Arc::new(Clock(Instant::now())));
        let cloud = SimCloud::new(sim.clone(), clock.clone(), instance("i-controller"));
        let metrics = Arc::new(Metrics::default());
        let rules = Rules {
            cluster: "prod".to_owned(),
            grace: Duration::from_secs(300),
            apart: Duration::from_secs(60),
        };
        let now: fn() -> Timestamp = || NOW.parse().unwrap();
        let sweeper = Sweeper::new(
            Arc::new(cloud.clone()),
            rules,
            Pace::default(),
            metrics.clone(),
            (now, 7),
        );
        Self { sim, clock, cloud, sweeper, metrics, fence: Held::default() }
    }

    fn sim(&self) -> MutexGuard<'_, Sim> {
        let mut sim = self.sim.lock().unwrap();
        sim.advance(self.clock.now());
        sim
    }

    async fn eni(&self, of: &str, change: impl FnOnce(&mut CreateInterface)) -> EniId {
        let tags = [(TAG_CLUSTER, "prod"), (TAG_INSTANCE_ID, of), (TAG_CREATED_AT, MADE)];
        let mut request = CreateInterface {
            subnet_id: "subnet-a".parse().unwrap(),
            security_groups: Vec::new(),
            secondary_addresses: 3,
            prefixes: 0,
            description: format!("aws-K8S-{of}"),
            tags: tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            client_token: String::new(),
        };
        change(&mut request);
        self.cloud.create_interface(request).await.unwrap().id
    }

    async fn leaked(&self) -> EniId {
        self.eni("i-gone", |_| {}).await
    }

    /// Looks, and waits until the next look is due.
    async fn look(&mut self) -> Duration {
        let wait = self.sweeper.look(&self.fence).await;
        sleep(wait).await;
        wait
    }

    fn is_there(&self, eni: &EniId) -> bool {
        self.sim().interface(eni).is_some()
    }

    fn calls(&self, action: &str) -> u64 {
        self.sim().calls().of(action).calls
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_instance_that_is_gone_left_is_taken_away_at_the_second_look() {
    let mut place = Place::new();
    let leaked = place.leaked().await;
    assert_eq!(place.look().await, Duration::from_secs(60));
    assert!(place.is_there(&leaked), "one look is not enough");
    let wait = place.look().await;
    assert!(!place.is_there(&leaked));
    assert!(wait > Duration::from_secs(400) && wait < Duration::from_secs(800), "{wait:?}");
    assert!(place.metrics.text().contains("veni_controller_leaked_enis_deleted_total 1"));
    assert_eq!(place.fence.asked.load(SeqCst), 1, "asked before the one effect");
}

#[tokio::test(start_paused = true)]
async fn what_is_another_clusters_or_a_living_nodes_or_young_or_not_ours_stays() {
    let mut place = Place::new();
    let tag = |key: &str, value: &str| {
        let (key, value) = (key.to_owned(), value.to_owned());
        move |request: &mut CreateInterface| drop(request.tags.insert(key, value))
    };
    let kept = [
        place.eni("i-alive", |_| {}).await,
        place.eni("i-gone", tag(TAG_CLUSTER, "prod-2")).await,
        place.eni("i-gone", |request| drop(request.tags.remove(TAG_CLUSTER))).await,
        place.eni("i-gone", tag(TAG_CREATED_AT, "2026-11-22T02:59:00Z")).await,
        place.eni("i-gone", |request| request.description = "ELB x".to_owned()).await,
        place.eni("i-gone", |request| drop(request.tags.remove(TAG_INSTANCE_ID))).await,
    ];
    for _ in 0..5 {
        place.look().await;
    }
    for eni in &kept {
        assert!(place.is_there(eni), "{:?}", place.sim().interface(eni));
    }
    assert_eq!(place.calls(DELETE), 0);
}

#[tokio::test(start_paused = true)]
async fn an_eni_that_is_used_between_the_looks_stays() {
    let mut place = Place::new();
    let leaked = place.leaked().await;
    place.look().await;
    let attach = AttachInterface {
        eni: leaked.clone(),
        instance: instance("i-alive"),
        device_index: 1,
        network_card: 0,
    };
    let attachment = place.cloud.attach_interface(attach).await.unwrap();
    place.look().await;
    place.cloud.detach_interface(&attachment).await.unwrap();
    // Unattached again: two looks from here on.
    place.look().await;
    assert!(place.is_there(&leaked));
    place.look().await;
    assert!(!place.is_there(&leaked));
}

#[tokio::test(start_paused = true)]
async fn an_eni_without_a_time_of_creation_is_given_one_and_counts_from_then_on() {
    let mut place = Place::new();
    let ageless = place.eni("i-gone", |request| drop(request.tags.remove(TAG_CREATED_AT))).await;
    for _ in 0..4 {
        place.look().await;
    }
    // The sweeper's time of day stands still: it stays young.
    let tags = place.sim().interface(&ageless).unwrap().tags.clone();
    assert_eq!(tags.get(TAG_CREATED_AT).map(String::as_str), Some(NOW));
    assert_eq!(place.calls("CreateTags"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_lead_surely_changes_nothing() {
    let mut place = Place::new();
    let leaked = place.leaked().await;
    let ageless = place.eni("i-gone", |request| drop(request.tags.remove(TAG_CREATED_AT))).await;
    place.fence.lost.store(true, SeqCst);
    for _ in 0..4 {
        place.look().await;
    }
    assert!(place.is_there(&leaked) && place.is_there(&ageless));
    assert_eq!((place.calls(DELETE), place.calls("CreateTags")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_is_looked_up_and_not_told_as_a_failure_for_ever() {
    let mut place = Place::new();
    let leaked = [place.leaked().await, place.leaked().await];
    place.sim().inject(Fault::lost_answer(DELETE).times(1));
    for _ in 0..3 {
        place.look().await;
    }
    assert!(leaked.iter().all(|eni| !place.is_there(eni)));
    assert_eq!(place.calls(DELETE), 2, "the next look does not show it any more");
    assert!(place.metrics.text().contains("veni_controller_leaked_enis 0"));
}

#[tokio::test(start_paused = true)]
async fn a_throttled_look_ends_and_comes_back_when_it_may() {
    for action in [LIST, DELETE] {
        let mut place = Place::new();
        let leaked = [place.leaked().await, place.leaked().await, place.leaked().await];
        place.look().await;
        let wait: u64 = 2_000_000;
        place.sim().inject(Fault::throttle(action, Some(wait)).times(1));
        let before = place.calls(action);
        assert_eq!(place.look().await, Duration::from_millis(wait), "{action}");
        assert_eq!(place.calls(action), before + 1, "{action}: not asked again at once");
        assert!(leaked.iter().all(|eni| place.is_there(eni)));
        place.look().await;
        place.look().await;
        assert!(leaked.iter().all(|eni| !place.is_there(eni)), "{action}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_iam_denies_is_counted_and_done_once_it_is_allowed() {
    for action in [LIST, DELETE] {
        let mut place = Place::new();
        let leaked = place.leaked().await;
        let fault = place.sim().inject(Fault::deny(action));
        for _ in 0..3 {
            place.look().await;
        }
        assert!(place.is_there(&leaked));
        let told = format!("veni_controller_call_failures_total{{action=\"{action}\"}}");
        assert!(place.metrics.text().contains(&told), "{}", place.metrics.text());
        place.sim().withdraw(fault);
        for _ in 0..3 {
            place.look().await;
        }
        assert!(!place.is_there(&leaked), "{action}");
    }
}

/// As where a condition on tags allows the one and not the other. ENIs are taken away in the order of their ids.
#[tokio::test(start_paused = true)]
async fn a_denied_eni_does_not_hold_the_others_up() {
    let mut place = Place::new();
    let mut leaked = Vec::new();
    for _ in 0..5 {
        leaked.push(place.leaked().await);
    }
    leaked.sort();
    place.sim().inject(Fault::deny(DELETE).times(1));
    place.look().await;
    let wait = place.look().await;
    let there =
        |place: &Place| -> Vec<bool> { leaked.iter().map(|it| place.is_there(it)).collect() };
    assert_eq!(there(&place), [true, false, false, false, false]);
    assert!(wait > Duration::from_secs(400), "{wait:?}: looking soon would change nothing");
    place.look().await;
    assert_eq!(there(&place), [false; 5]);
}

#[tokio::test(start_paused = true)]
async fn several_denials_end_a_look_and_those_that_were_denied_come_last_at_the_next() {
    let mut place = Place::new();
    let mut leaked = Vec::new();
    for _ in 0..5 {
        leaked.push(place.leaked().await);
    }
    leaked.sort();
    place.sim().inject(Fault::deny(DELETE).times(3));
    place.look().await;
    place.look().await;
    assert_eq!(place.calls(DELETE), 3);
    place.sim().inject(Fault { skip: 2, ..Fault::deny(DELETE) });
    place.look().await;
    let there: Vec<_> = leaked.iter().map(|it| place.is_there(it)).collect();
    assert_eq!(there, [true, true, true, false, false]);
    assert_eq!(place.calls(DELETE), 8);
}

#[tokio::test(start_paused = true)]
async fn times_of_creation_are_given_some_at_a_look_and_what_is_denied_of_that_holds_nothing_up() {
    let mut place = Place::new();
    for _ in 0..150 {
        place.eni("i-gone", |request| drop(request.tags.remove(TAG_CREATED_AT))).await;
    }
    let begun = Instant::now();
    let wait = place.sweeper.look(&place.fence).await;
    assert_eq!(place.calls("CreateTags"), 100);
    assert!(begun.elapsed() >= Duration::from_secs(20), "{:?}: paced", begun.elapsed());
    sleep(wait).await;
    place.look().await;
    assert_eq!(place.calls("CreateTags"), 150);

    let leaked = place.leaked().await;
    place.eni("i-gone", |request| drop(request.tags.remove(TAG_CREATED_AT))).await;
    place.sim().inject(Fault::deny("CreateTags"));
    place.look().await;
    place.look().await;
    assert!(!place.is_there(&leaked));
}

/// Of an instance that EC2 does not tell of it is not known that it is gone.
#[tokio::test(start_paused = true)]
async fn an_instance_that_cannot_be_asked_for_is_taken_for_a_living_one() {
    let mut place = Place::new();
    let leaked = place.leaked().await;
    place.look().await;
    // The list is answered, the question for the instance is not.
    let fault = place.sim().inject(Fault { skip: 1, ..Fault::unavailable(LIST) });
    place.look().await;
    assert!(place.is_there(&leaked));
    place.sim().withdraw(fault);
    place.look().await;
    assert!(!place.is_there(&leaked), "the first look still counts");
}

#[tokio::test(start_paused = true)]
async fn late_answers_of_ec2_take_nothing_from_a_living_node() {
    let mut place = Place::new();
    place.sim().set_consistency(Consistency {
        describe_delay_millis: 30_000,
        describe_stale_percent: 50,
        ..Consistency::default()
    });
    for round in 0..20_u32 {
        let eni = place.eni("i-alive", |_| {}).await;
        place.look().await;
        let attach = AttachInterface {
            eni: eni.clone(),
            instance: instance("i-alive"),
            device_index: 1,
            network_card: 0,
        };
        let attachment = place.cloud.attach_interface(attach).await.unwrap();
        place.look().await;
        place.cloud.detach_interface(&attachment).await.unwrap();
        place.look().await;
        assert!(place.is_there(&eni), "round {round}");
        place.cloud.delete_interface(&eni).await.unwrap();
    }
    assert_eq!(place.calls(DELETE), 20, "the daemon's own");
}

#[tokio::test(start_paused = true)]
async fn many_instances_are_asked_for_in_turns() {
    let mut place = Place::new();
    let mut leaked = Vec::new();
    for number in 0..150 {
        leaked.push(place.eni(&format!("i-{number:04x}"), |_| {}).await);
    }
    let before = place.calls(LIST);
    place.look().await;
    assert_eq!(place.calls(LIST) - before, 101);
    for _ in 0..6 {
        place.look().await;
    }
    assert!(leaked.iter().all(|eni| !place.is_there(eni)));
}
