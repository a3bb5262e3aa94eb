use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
};

use serde_json::{Value, json};
use veni_policy::{change::CLOSED_SET, object::parse};

use super::*;

/// Maps that remember who is judged by what, and that can be made to fail.
#[derive(Clone, Default)]
struct FakePlane(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    entries: BTreeMap<u32, PodSets>,
    writes: usize,
    full: bool,
}

impl Plane for FakePlane {
    fn write(&self, writes: &[Write]) -> Result<(), String> {
        let mut state = self.0.lock().unwrap();
        if state.full {
            return Err("VERDICTS is full".to_owned());
        }
        state.writes += writes.len();
        Ok(())
    }

    fn remove(&self, _: &[Remove]) -> Result<(), String> {
        Ok(())
    }

    fn judge(&self, ifindex: u32, sets: PodSets) -> Result<bool, String> {
        let mut state = self.0.lock().unwrap();
        Ok(state.entries.insert(ifindex, sets).is_some())
    }

    fn raise_epoch(&self) -> Result<(), String> {
        Ok(())
    }

    fn grace(&self) {}

    fn slot(&self, ifindex: u32) -> Option<u32> {
        Some(ifindex)
    }
}

struct Bench {
    enforcer: Enforcer<FakePlane>,
    plane: FakePlane,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::enforcing(Enforcing::Standard)
    }

    fn enforcing(enforcing: Enforcing) -> Self {
        let plane = FakePlane::default();
        let own = OwnNode { name: "n1".to_owned(), zone: None, addresses: BTreeSet::new() };
        let enforcer = Enforcer::new(plane.clone(), own, enforcing, &Found::default());
        Self { enforcer, plane, now: Instant::now() }
    }

    fn objects(&mut self, values: &[Value]) {
        let objects = values.iter().map(|value| parse(value).unwrap().unwrap());
        self.enforcer.objects(objects.collect(), &[], Vec::new(), true, self.now);
    }

    fn attach(&mut self, ifindex: u32, uid: Option<&str>) -> Receiver<Judged> {
        let (answer, answered) = channel();
        let wired = Wired {
            pod: PodKey::new("x", "a"),
            uid: uid.map(str::to_owned),
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
            ifindex,
        };
        let answer = Box::new(move |judged| answer.send(judged).unwrap());
        self.enforcer.attach(wired, self.now + Duration::from_secs(2), answer, self.now);
        answered
    }

    fn sets(&self, ifindex: u32) -> Option<PodSets> {
        self.plane.0.lock().unwrap().entries.get(&ifindex).copied()
    }

    fn pass(&mut self, duration: Duration) {
        self.now += duration;
        self.enforcer.expire(self.now);
    }
}

fn pod(uid: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": "a", "uid": uid, "labels": {"app": "a"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
    })
}

fn deny_all() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

#[test]
fn a_pod_whose_labels_are_known_is_answered_for_with_its_sets_in_force() {
    let mut bench = Bench::new();
    bench.objects(&[pod("u1"), deny_all()]);
    let answered = bench.attach(7, Some("u1"));
    assert_eq!(answered.try_recv(), Ok(Judged::ByLabels));
    let sets = bench.sets(7).expect("an entry");
    assert!(sets.flags & PodSets::INGRESS_ISOLATED != 0 && sets.ingress != CLOSED_SET, "{sets:?}");
}

#[test]
fn a_pod_without_labels_is_waited_for_and_then_stays_closed_until_they_come() {
    let mut bench = Bench::new();
    bench.objects(&[deny_all()]);
    let answered = bench.attach(7, Some("u1"));
    bench.pass(Duration::from_millis(1999));
    answered.try_recv().unwrap_err();
    bench.pass(Duration::from_millis(1));
    assert_eq!(answered.try_recv(), Ok(Judged::Closed));
    assert_eq!(bench.enforcer.standing().closed, [PodKey::new("x", "a")]);
    assert!(bench.sets(7).is_none_or(|sets| sets == PodSets::CLOSED));
    bench.objects(&[pod("u1")]);
    assert!(bench.sets(7).is_some_and(|sets| sets.ingress != CLOSED_SET));
    assert_eq!(bench.enforcer.standing().closed, []);
}

#[test]
fn a_pod_is_not_judged_by_the_labels_of_a_predecessor_while_its_own_may_come() {
    let mut bench = Bench::new();
    bench.objects(&[pod("u1"), deny_all()]);
    let answered = bench.attach(7, Some("u2"));
    answered.try_recv().unwrap_err();
    bench.objects(&[pod("u2")]);
    assert_eq!(answered.try_recv(), Ok(Judged::ByLabels));
    let late = bench.attach(8, Some("u3"));
    bench.pass(Duration::from_secs(2));
    assert_eq!(late.try_recv(), Ok(Judged::ByPredecessor));
}

#[test]
fn nothing_is_answered_while_a_write_fails_and_all_of_it_is_tried_again() {
    let mut bench = Bench::new();
    bench.objects(&[pod("u1")]);
    bench.plane.0.lock().unwrap().full = true;
    bench.objects(&[deny_all()]);
    let answered = bench.attach(7, Some("u1"));
    answered.try_recv().unwrap_err();
    assert!(bench.enforcer.standing().pending > 0);
    bench.plane.0.lock().unwrap().full = false;
    bench.pass(RETRY);
    assert_eq!(answered.try_recv(), Ok(Judged::ByLabels));
    assert_eq!(bench.enforcer.standing().pending, 0);
}

#[test]
fn a_strict_node_closes_a_pod_until_a_policy_selects_it() {
    for (enforcing, closed) in [(Enforcing::Standard, false), (Enforcing::Strict, true)] {
        let mut bench = Bench::enforcing(enforcing);
        bench.objects(&[pod("u1")]);
        let answered = bench.attach(7, Some("u1"));
        assert_eq!(answered.try_recv(), Ok(Judged::ByLabels));
        let sets = bench.sets(7).expect("an entry");
        assert_eq!(sets != PodSets::new(0, 0), closed, "{enforcing:?}: {sets:?}");
        bench.objects(&[deny_all()]);
        assert_eq!(bench.sets(7).expect("an entry").egress, 0, "the policy is about ingress alone");
    }
}
