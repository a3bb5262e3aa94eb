use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
};

use serde_json::{Value, json};
use veni_core::wire::inspect::policy::{FlowTable, ForeignView, Standing};
use veni_datapath::bpf::PodIdentity;
use veni_ebpf_common::{
    Event,
    table::{ANY_CLASS, Decision, VerdictKey},
};
use veni_policy::{
    change::{CLOSED_SET, Remove, Write},
    object::parse,
    security_group::{GroupPeer, GroupProtocol, GroupRule, GroupState, ResolvedGroup},
    view::{Judge, View},
};

use super::*;

mod groups;
mod held;
mod interfaces;
mod matrix;
mod own_node;
mod room;

/// Maps that remember who is judged by what, and that can be made to fail.
#[derive(Clone, Default)]
struct FakePlane(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    entries: BTreeMap<u32, PodSets>,
    writes: usize,
    full: bool,
    /// Entries that cannot be written.
    stuck: BTreeSet<u32>,
    log: Vec<&'static str>,
    own: BTreeSet<IpAddr>,
    epochs: usize,
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

    fn remove(&self, removes: &[Remove]) -> Result<(), String> {
        let state = self.0.lock().unwrap();
        for remove in removes {
            let Remove::Verdict(key) = remove else { continue };
            let named = |sets: &PodSets| [sets.ingress, sets.egress].contains(&key.set);
            let gone = key.class == ANY_CLASS;
            assert!(!gone || !state.entries.values().any(named), "{key:?} of {:?}", state.entries);
        }
        Ok(())
    }

    fn judge(&self, ifindex: u32, sets: PodSets) -> Result<bool, String> {
        let mut state = self.0.lock().unwrap();
        if state.stuck.contains(&ifindex) {
            return Err("PODS takes no entry".to_owned());
        }
        Ok(state.entries.insert(ifindex, sets).is_some())
    }

    fn own_addresses(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), String> {
        let mut state = self.0.lock().unwrap();
        if state.full {
            return Err("NODE_V4 is full".to_owned());
        }
        state.own.clone_from(addresses);
        Ok(())
    }

    fn raise_epoch(&self) -> Result<(), String> {
        self.0.lock().unwrap().epochs += 1;
        Ok(())
    }

    fn grace(&self) {
        self.0.lock().unwrap().log.push("grace");
    }

    fn identity(&self, ifindex: u32) -> Option<PodIdentity> {
        Some(PodIdentity { slot: ifindex, incarnation: 1 })
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        [("spoofed".to_owned(), 3)].into()
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        [("events_lost".to_owned(), 2)].into()
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
        Self::with(enforcing, Memory::default())
    }

    fn with(enforcing: Enforcing, memory: Memory) -> Self {
        let plane = FakePlane::default();
        let own = OwnNode { name: "n1".to_owned(), zone: None, addresses: BTreeSet::new() };
        let enforcer = Enforcer::new(plane.clone(), own, enforcing, memory, &Found::default());
        let mut bench = Self { enforcer, plane, now: Instant::now() };
        bench.enforcer.adopt(Vec::new(), bench.now);
        bench
    }

    fn objects(&mut self, values: &[Value]) {
        let objects = values.iter().map(|value| parse(value).unwrap().unwrap());
        self.enforcer.objects(objects.collect(), &[], Vec::new(), true, self.now);
    }

    fn attach(&mut self, ifindex: u32, uid: Option<&str>) -> Receiver<Judged> {
        self.attach_as(PodKey::new("x", "a"), ifindex, uid)
    }

    fn attach_as(&mut self, pod: PodKey, ifindex: u32, uid: Option<&str>) -> Receiver<Judged> {
        let (answer, answered) = channel();
        let wired = Wired {
            pod,
            uid: uid.map(str::to_owned),
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
            ifindex,
        };
        let state = self.plane.0.clone();
        let answer = Box::new(move |judged| {
            state.lock().unwrap().log.push("answer");
            answer.send(judged).unwrap();
        });
        self.enforcer.attach(wired, self.now + Duration::from_secs(2), answer, self.now);
        answered
    }

    fn detach(&mut self, ifindex: u32) {
        self.plane.0.lock().unwrap().entries.remove(&ifindex);
        self.enforcer.detach(ifindex, self.now);
    }

    /// The peer of a new flow of this slot's pod.
    fn peer(&mut self, slot: u32, remote: [u8; 4]) -> Option<String> {
        let (flows, mut followed) = tokio::sync::mpsc::channel(1);
        self.enforcer.subscribe(Subscriber::new(flows));
        let mut event = event(slot, 1);
        event.remote[..4].copy_from_slice(&remote);
        self.enforcer.tell(&[event]);
        followed.try_recv().expect("it is told").peer
    }

    /// The pod of a new flow.
    fn told(&mut self, slot: u32, incarnation: u32) -> Option<String> {
        let (flows, mut followed) = tokio::sync::mpsc::channel(1);
        self.enforcer.subscribe(Subscriber::new(flows));
        self.enforcer.tell(&[event(slot, incarnation)]);
        followed.try_recv().ok().map(|flow| flow.pod)
    }

    fn sets(&self, ifindex: u32) -> Option<PodSets> {
        self.plane.0.lock().unwrap().entries.get(&ifindex).copied()
    }

    fn pass(&mut self, duration: Duration) {
        self.now += duration;
        self.enforcer.expire(self.now);
    }
}

fn event(slot: u32, incarnation: u32) -> Event {
    Event {
        at: 0,
        remote: [10; 16],
        service: [0; 16],
        slot,
        incarnation,
        decision: Decision::deny(0),
        class: 0,
        local_port: 1,
        remote_port: 2,
        service_port: 0,
        protocol: 6,
        family: 4,
        direction: 0,
        reason: veni_ebpf_common::event::ALLOWED,
        flags: 0,
        revoked: 0,
        reserved: 0,
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
    assert_eq!(answered.try_recv(), Ok(Judged::Otherwise(JudgedBy::Closed)));
    let foreign = vec![ForeignView { what: "a TCX program".to_owned(), bypasses: true }];
    let flow_tables = vec![FlowTable { family: "ipv4".to_owned(), flows: 7, room: 9 }];
    let standing = Standing { foreign, flow_tables, ..bench.enforcer.standing(bench.now) };
    assert_eq!(standing.unlabelled.len(), 1);
    assert_eq!(standing.unlabelled[0].reason, "there is no object of this name");
    assert_eq!(standing.unlabelled_adds[&JudgedBy::Closed], 1);
    let text = exposition(&standing);
    for line in [
        "veni_policy_unlabelled_pods{judged_by=\"closed\"} 1\n",
        "veni_policy_unlabelled_adds_total{judged_by=\"closed\"} 1\n",
        "veni_foreign_programs{bypasses=\"true\"} 1\n",
        "veni_flow_table_entries{family=\"ipv4\"} 7\n",
        "veni_flow_table_limit{family=\"ipv4\"} 9\n",
        "veni_dropped_packets_total{reason=\"spoofed\"} 3\n",
        "veni_datapath_events_total{event=\"events_lost\"} 2\n",
    ] {
        assert!(text.contains(line) && !text.contains("EOF"), "{line} in {text}");
    }
    assert!(bench.sets(7).is_none_or(|sets| sets == PodSets::CLOSED));
    bench.objects(&[pod("u1")]);
    assert!(bench.sets(7).is_some_and(|sets| sets.ingress != CLOSED_SET));
    assert_eq!(bench.enforcer.standing(bench.now).unlabelled, []);
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
    assert_eq!(late.try_recv(), Ok(Judged::Otherwise(JudgedBy::Predecessor)));
}

#[test]
fn nothing_is_answered_while_a_write_fails_and_all_of_it_is_tried_again() {
    let mut bench = Bench::new();
    bench.objects(&[pod("u1")]);
    bench.plane.0.lock().unwrap().full = true;
    bench.objects(&[deny_all()]);
    let answered = bench.attach(7, Some("u1"));
    answered.try_recv().unwrap_err();
    assert!(bench.enforcer.standing(bench.now).pending > 0);
    let (reply, mut applied) = oneshot::channel();
    bench.enforcer.await_applied(None, reply);
    applied.try_recv().unwrap_err();
    let explained = bench.enforcer.query(&Query::Explain(PodKey::new("x", "a")));
    assert!(matches!(explained, Ok(Answer::Explanation(found)) if found.pending));
    bench.plane.0.lock().unwrap().full = false;
    bench.pass(RETRY);
    assert_eq!(answered.try_recv(), Ok(Judged::ByLabels));
    let standing = bench.enforcer.standing(bench.now);
    assert_eq!((standing.pending, standing.write_failure), (0, None));
    assert_eq!(standing.applied, standing.generation);
    assert_eq!(applied.try_recv(), Ok(Applied { applied: standing.generation }));
    assert!(standing.write_failures > 0 && standing.changed_millis.is_some());
}

/// Nobody deletes the object of a pod that runs, but when somebody has, it is not a riddle.
#[test]
fn a_pod_whose_object_goes_is_closed_and_listed_until_it_is_back() {
    let mut bench = Bench::with(Enforcing::Standard, Memory::default());
    bench.objects(&[pod("u1")]);
    assert_eq!(bench.attach(7, Some("u1")).try_recv(), Ok(Judged::ByLabels));
    assert_eq!(bench.enforcer.standing(bench.now).unlabelled, []);
    let gone = [Key::new(Kind::Pod, "x", "a")];
    bench.enforcer.objects(Vec::new(), &gone, Vec::new(), true, bench.now);
    let [listed] = &bench.enforcer.standing(bench.now).unlabelled[..] else { panic!("one") };
    assert_eq!((listed.pod.as_str(), listed.judged_by), ("x/a", JudgedBy::Closed));
    assert!(listed.reason.contains("no object of this name"), "{}", listed.reason);
    bench.objects(&[pod("u1")]);
    assert_eq!(bench.enforcer.standing(bench.now).unlabelled, []);
}

/// A pod that was here, whose daemon and then whose object are gone.
#[test]
fn a_pod_whose_object_does_not_come_is_judged_by_what_this_node_remembers_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("journal.pods");
    let mut bench = Bench::with(Enforcing::Standard, Memory::open(file.clone()));
    bench.objects(&[pod("u1"), deny_all()]);
    assert_eq!(bench.attach(7, Some("u1")).try_recv(), Ok(Judged::ByLabels));
    let before = bench.sets(7).unwrap();
    bench.pass(Duration::from_secs(1));
    // Which waits for what is being written.
    drop(bench);
    let mut bench = Bench::with(Enforcing::Standard, Memory::open(file.clone()));
    bench.objects(&[deny_all()]);
    let answered = bench.attach(8, Some("u1"));
    answered.try_recv().unwrap_err();
    bench.pass(Duration::from_secs(2));
    assert_eq!(answered.try_recv(), Ok(Judged::Otherwise(JudgedBy::Remembered)));
    let sets = bench.sets(8).unwrap();
    assert!(sets.ingress > CLOSED_SET && sets.flags == before.flags, "{sets:?}");
    assert_eq!(bench.enforcer.standing(bench.now).unlabelled[0].judged_by, JudgedBy::Remembered);
    let Ok(Answer::Explanation(found)) =
        bench.enforcer.query(&Query::Explain(PodKey::new("x", "a")))
    else {
        panic!("it is explained")
    };
    assert!(found.notes[0].contains("labels that a pod of its name had here"), "{:?}", found.notes);
    // Its predecessor's end is told late: no change.
    bench.enforcer.objects(
        Vec::new(),
        &[Key::new(Kind::Pod, "x", "a")],
        Vec::new(),
        true,
        bench.now,
    );
    assert_eq!(bench.sets(8), Some(sets));
    bench.objects(&[pod("u1")]);
    assert_eq!(bench.enforcer.standing(bench.now).unlabelled, []);
    bench.enforcer.detach(8, bench.now);
    drop(bench);
    // Before the policies are known labels would open everything.
    let mut bench = Bench::with(Enforcing::Standard, Memory::open(file));
    let answered = bench.attach(9, Some("u1"));
    bench.pass(Duration::from_secs(2));
    assert_eq!(answered.try_recv(), Ok(Judged::Otherwise(JudgedBy::Closed)));
}

#[test]
fn a_sandbox_that_is_no_pod_is_answered_for_at_once_as_one_that_no_policy_selects() {
    for (enforcing, expected) in
        [(Enforcing::Standard, PodSets::new(0, 0)), (Enforcing::Strict, PodSets::CLOSED)]
    {
        let mut bench = Bench::enforcing(enforcing);
        bench.objects(&[deny_all()]);
        for ifindex in [7, 8] {
            let answered = bench.attach_as(PodKey::new("", ""), ifindex, None);
            assert_eq!(answered.try_recv(), Ok(Judged::Outside));
            assert_eq!(bench.sets(ifindex), Some(expected), "{enforcing:?}");
        }
        bench.enforcer.detach(7, bench.now);
        assert_eq!(bench.sets(8), Some(expected));
    }
}

#[test]
fn a_sandbox_that_is_no_pod_and_could_not_be_written_is_tried_again_until_it_is_gone() {
    let mut bench = Bench::new();
    bench.objects(&[deny_all()]);
    bench.plane.0.lock().unwrap().stuck.extend([7, 8]);
    for ifindex in [7, 8] {
        let answered = bench.attach_as(PodKey::new("", ""), ifindex, None);
        assert_eq!(answered.try_recv(), Ok(Judged::Outside));
    }
    bench.pass(RETRY);
    assert_eq!((bench.sets(7), bench.sets(8)), (None, None));
    assert!(bench.enforcer.wake_at().is_some_and(|at| at <= bench.now + RETRY), "not retried");
    // Nobody else waits for them.
    bench.objects(&[pod("u1")]);
    assert_eq!(bench.attach(9, Some("u1")).try_recv(), Ok(Judged::ByLabels));
    bench.enforcer.detach(8, bench.now);
    bench.plane.0.lock().unwrap().stuck.clear();
    bench.pass(RETRY);
    assert_eq!(bench.sets(7), Some(PodSets::new(0, 0)));
    assert_eq!(bench.sets(8), None, "it has gone");
    assert_eq!(bench.enforcer.wake_at(), None, "nothing is left to do");
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

fn allow_all() -> Value {
    let mut policy = deny_all();
    policy["spec"]["ingress"] = json!([{"from": [{"podSelector": {}}]}]);
    policy
}

#[test]
fn flows_are_named_by_the_pod_that_has_the_slot_now() {
    let mut bench = Bench::new();
    bench.objects(&[pod("u1")]);
    bench.attach(7, Some("u1")).try_recv().unwrap();
    bench.attach(8, Some("u1")).try_recv().unwrap();
    bench.detach(7);
    assert_eq!(bench.told(8, 1).as_deref(), Some("x/a"));
    assert_eq!(bench.told(8, 0), None, "an earlier pod's");
    assert_eq!(bench.told(7, 1), None, "it is gone");
}

#[test]
fn an_address_that_a_pod_has_no_more_is_nobodys_in_events() {
    let mut bench = Bench::new();
    let at = |address: &str| {
        let mut pod = pod("u1");
        pod["metadata"]["name"] = json!("b");
        pod["status"] = json!({"podIP": address, "podIPs": [{"ip": address}]});
        pod
    };
    for round in 0..100 {
        bench.objects(&[at(&format!("10.0.1.{round}"))]);
    }
    bench.attach(7, Some("u1")).try_recv().unwrap_err();
    for round in 0..100 {
        let peer = bench.peer(7, [10, 0, 1, round]);
        assert_eq!(peer.as_deref(), (round == 99).then_some("x/b"), "{round}");
    }
    bench.objects(&[at("10.0.2.1")]);
    assert_eq!(bench.peer(7, [10, 0, 1, 99]), None);
    assert_eq!(bench.peer(7, [10, 0, 0, 1]).as_deref(), Some("x/a"), "given, without an object");
    bench.enforcer.objects(
        Vec::new(),
        &[Key::new(Kind::Pod, "x", "b")],
        Vec::new(),
        true,
        bench.now,
    );
    assert_eq!(bench.peer(7, [10, 0, 2, 1]), None);
}

#[test]
fn events_name_the_pod_that_has_an_address_and_not_one_that_had_it() {
    let mut bench = Bench::new();
    let peer = |name: &str, created: &str, phase: &str| {
        let mut pod = pod("u1");
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["uid"] = json!(name);
        pod["metadata"]["creationTimestamp"] = json!(created);
        pod["spec"]["nodeName"] = json!("n2");
        pod["status"] = json!({"podIP": "10.0.0.5", "phase": phase});
        pod
    };
    bench.objects(&[pod("u1")]);
    bench.attach(7, Some("u1")).try_recv().unwrap();
    bench.objects(&[peer("old", "2026-01-01T00:00:00Z", "Running")]);
    assert_eq!(bench.peer(7, [10, 0, 0, 5]).as_deref(), Some("x/old"));
    bench.objects(&[peer("new", "2026-01-02T00:00:00Z", "Running")]);
    // Its object stays for a while, and is heard of again.
    bench.objects(&[peer("old", "2026-01-01T00:00:00Z", "Pending")]);
    assert_eq!(bench.peer(7, [10, 0, 0, 5]).as_deref(), Some("x/new"));
    // What this node gave, nobody else has.
    let mut claims = peer("late", "2026-01-03T00:00:00Z", "Running");
    claims["status"]["podIP"] = json!("10.0.0.1");
    bench.objects(&[claims]);
    assert_eq!(bench.peer(7, [10, 0, 0, 1]).as_deref(), Some("x/a"));
}

#[test]
fn an_add_is_answered_when_its_sets_are_in_force_and_not_when_the_old_ones_are_gone() {
    let mut bench = Bench::new();
    bench.objects(&[pod("u1"), deny_all()]);
    let answered = bench.attach(7, Some("u2"));
    answered.try_recv().unwrap_err();
    bench.plane.0.lock().unwrap().log.clear();
    bench.objects(&[pod("u2"), allow_all()]);
    assert_eq!(answered.try_recv(), Ok(Judged::ByLabels));
    let log = bench.plane.0.lock().unwrap().log.clone();
    assert!(log[0] == "answer" && log[1..].contains(&"grace"), "{log:?}");
    assert_eq!(bench.enforcer.standing(bench.now).pending, 0);
}

#[test]
fn a_pod_of_ours_whose_object_names_another_node_says_how_the_node_is_called() {
    let mut bench = Bench::new();
    let mut object = pod("u1");
    object["spec"]["nodeName"] = json!("ip-10-0-0-1.ec2.internal");
    bench.objects(&[object]);
    let _answered = bench.attach(7, Some("u1"));
    bench.pass(Duration::from_secs(2));
    let [late] = bench.enforcer.standing(bench.now).unlabelled.try_into().unwrap();
    assert!(late.reason.contains("is of node ip-10-0-0-1.ec2.internal"), "{}", late.reason);
    assert!(late.reason.contains("MY_NODE_NAME"), "{}", late.reason);
}

#[test]
fn an_own_address_that_finds_no_room_is_tried_again_and_holds_up_nothing() {
    let mut bench = Bench::new();
    let own = BTreeSet::from([IpAddr::from([10, 0, 0, 9])]);
    bench.plane.0.lock().unwrap().full = true;
    bench.enforcer.node_addresses(own.clone(), bench.now);
    assert_eq!(bench.plane.0.lock().unwrap().own, BTreeSet::new());
    bench.plane.0.lock().unwrap().full = false;
    bench.objects(&[pod("u1")]);
    bench.attach(7, Some("u1")).try_recv().expect("judged at once");
    let epochs = |bench: &Bench| bench.plane.0.lock().unwrap().epochs;
    let before = epochs(&bench);
    let again = bench.enforcer.wake_at().expect("it is tried again");
    bench.plane.0.lock().unwrap().full = true;
    bench.enforcer.expire(again);
    assert_eq!(epochs(&bench), before, "in vain");
    bench.plane.0.lock().unwrap().full = false;
    bench.enforcer.expire(bench.enforcer.wake_at().expect("and again"));
    assert_eq!(bench.plane.0.lock().unwrap().own, own);
    assert_eq!(epochs(&bench), before + 1, "flows to it are judged again");
    assert_eq!(bench.enforcer.wake_at(), None);
}

#[test]
fn flows_are_judged_again_when_their_destination_becomes_a_front_end() {
    let mut bench = Bench::new();
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "x", "name": "dns"},
        "spec": {"clusterIP": "10.100.0.10", "externalIPs": ["1.2.3.4"],
            "ports": [{"port": 53, "protocol": "UDP"}]}});
    bench.objects(&[pod("u1")]);
    let before = bench.plane.0.lock().unwrap().epochs;
    bench.objects(&[service]);
    assert_eq!(bench.plane.0.lock().unwrap().epochs, before + 1);
}

#[test]
fn what_the_programs_refuse_before_any_rule_is_told_as_refused() {
    let mut bench = Bench::new();
    let ranges = ServiceRanges { v4: Some("10.100.0.0/16".parse().unwrap()), ..Default::default() };
    bench.objects(&[]);
    assert!(bench.enforcer.standing(bench.now).ranges_unknown);
    bench.enforcer.set_ranges(ranges);
    assert!(!bench.enforcer.standing(bench.now).ranges_unknown);
    bench.enforcer.node_addresses([IpAddr::from([10, 0, 0, 9])].into(), bench.now);
    let everywhere = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "out"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]},
    });
    let check = |bench: &Bench, to: [u8; 4], port: u16, expect: Option<&str>| {
        let Some(Object::Pod(pod)) = parse(&pod("u1")).unwrap() else { panic!("a pod") };
        let refused = bench.enforcer.refuses(&pod, IpAddr::from(to), 6, port);
        assert_eq!(refused, expect, "{to:?}:{port}");
    };
    bench.objects(&[pod("u1")]);
    check(&bench, [10, 100, 0, 7], 80, None);
    bench.objects(&[everywhere]);
    check(&bench, [10, 100, 0, 7], 80, Some("unknown_service"));
    check(&bench, [10, 0, 0, 9], 30080, Some("unknown_service"));
    check(&bench, [10, 0, 0, 9], 10250, None);
    check(&bench, [10, 0, 0, 8], 30080, None);
}

/// An earlier daemon's set that denies everything, as an entry of each of these interfaces.
fn found(interfaces: BTreeMap<u32, PodKey>, plane: &FakePlane) -> (Found, PodSets) {
    let sets = PodSets::new(9, 9);
    let mut found = Found::default();
    found.policy.verdicts.push((VerdictKey { set: 9, class: ANY_CLASS }, 3));
    for (ifindex, pod) in &interfaces {
        plane.0.lock().unwrap().entries.insert(*ifindex, sets);
        found.policy.endpoints.insert(pod.clone(), sets);
    }
    found.interfaces = interfaces;
    (found, sets)
}
