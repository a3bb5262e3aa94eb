//! Matrices larger than a slice.

use std::sync::mpsc::Sender;

use veni_core::wire::inspect::policy::Flows;
use veni_policy::view::{PodFilter, Unanswerable};

use super::*;
use crate::enforcer::{
    matrix::{Matrices, SLICE},
    thread::turn,
};

/// Pods beside x/a, each with [`PORTS`]: 61 × 60 × 20 connections, which 74 slices take.
const PODS: usize = 60;
const PORTS: usize = 20;
const CONNECTIONS: usize = (PODS + 1) * PODS * PORTS;

fn server(number: usize, ports: usize) -> Value {
    let ports: Vec<_> = (1..=ports).map(|port| json!({"containerPort": port})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "y", "name": format!("b{number:03}")},
        "spec": {"nodeName": "n2", "containers": [{"name": "c", "ports": ports}]},
        "status": {"podIP": format!("10.0.1.{number}")},
    })
}

fn large() -> Bench {
    let mut bench = Bench::new();
    let servers: Vec<_> = (1..=PODS).map(|number| server(number, PORTS)).collect();
    bench.objects(&servers);
    let mut here = pod("u1");
    here["status"] = json!({"podIP": "10.0.0.1"});
    bench.objects(&[here, deny_all()]);
    bench
}

/// The thread, a turn at a time, and a matrix of everything that it has been asked for.
struct Thread {
    bench: Bench,
    matrices: Matrices,
    tell: Sender<Input>,
    told: Receiver<Input>,
}

type Answered = oneshot::Receiver<Result<Answer, Unanswerable>>;

impl Thread {
    fn asked() -> (Self, Answered) {
        let (tell, told) = channel();
        let mut thread = Self { bench: large(), matrices: Matrices::default(), tell, told };
        let (reply, answer) = oneshot::channel();
        thread.tell.send(Input::Matrix([None, None], reply)).unwrap();
        thread.turn();
        (thread, answer)
    }

    fn turn(&mut self) {
        assert!(turn(&mut self.bench.enforcer, &mut self.matrices, &self.told).is_continue());
    }

    /// Turns until the answer is there.
    fn finish(&mut self, answer: &mut Answered) -> Flows {
        while !self.matrices.is_empty() {
            self.turn();
        }
        match answer.try_recv().expect("an answer") {
            Ok(Answer::Flows(flows)) => flows,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_add_that_comes_during_a_large_matrix_is_answered_before_its_next_slice() {
    let (mut thread, mut answer) = Thread::asked();
    for _ in 0..3 {
        thread.turn();
        assert!(answer.try_recv().is_err() && !thread.matrices.is_empty(), "it is no large matrix");
    }
    let (answering, answered) = channel();
    let wired = Wired {
        pod: PodKey::new("x", "a"),
        uid: Some("u1".to_owned()),
        addresses: vec![IpAddr::from([10, 0, 0, 1])],
        ifindex: 7,
    };
    let deadline = Instant::now() + Duration::from_secs(3600);
    let told = Box::new(move |judged| answering.send(judged).unwrap());
    thread.tell.send(Input::Attach { wired, deadline, answer: told }).unwrap();
    thread.turn();
    assert_eq!(answered.try_recv(), Ok(Judged::ByLabels));
    assert!(answer.try_recv().is_err(), "the ADD waited for the whole matrix");
    let flows = thread.finish(&mut answer);
    assert_eq!(flows.flows.len(), CONNECTIONS);
    let changed = |d: &&Diagnostic| d.message.contains("changed while this was worked out");
    assert_eq!(flows.diagnostics.iter().find(changed), None, "an ADD changes no verdict");
}

#[test]
fn a_slice_has_no_more_connections_than_an_add_may_wait_for_and_all_of_them_are_the_matrix() {
    let bench = large();
    let mut matrix = bench.enforcer.matrix(None, None).unwrap();
    let mut slices = Vec::new();
    while !matrix.is_over() {
        let before = matrix.flows.flows.len();
        bench.enforcer.slice(&mut matrix);
        slices.push(matrix.flows.flows.len() - before);
    }
    assert!(slices.iter().all(|flows| (1..=SLICE).contains(flows)), "{slices:?}");
    let flows = bench.enforcer.finish(matrix);
    let whole = View::new(bench.enforcer.pods.values(), &bench.enforcer).matrix(None, None);
    assert!(flows.flows == whole.unwrap().flows, "not what is worked out at once");
    let others = flows.diagnostics.iter().filter(|d| d.message.contains("is on n2")).count();
    assert_eq!(others, PODS, "{:?}", flows.diagnostics);
}

#[test]
fn a_matrix_says_that_policy_changed_under_it() {
    let (mut thread, mut answer) = Thread::asked();
    thread.turn();
    assert!(!thread.matrices.is_empty(), "it is no large matrix");
    let objects = |apply: Vec<Object>, delete: Vec<Key>| Input::Objects {
        apply,
        delete,
        diagnostics: Vec::new(),
        complete: true,
        held: BTreeMap::new(),
    };
    thread.tell.send(objects(Vec::new(), vec![Key::new(Kind::Pod, "y", "b001")])).unwrap();
    let flows = thread.finish(&mut answer);
    let last = flows.diagnostics.last().unwrap();
    assert!(last.message.contains("changed while this was worked out"), "{last}");
    // The first slice had it, the others do not.
    let gone = flows.flows.iter().filter(|flow| flow.from == "y/b001" || flow.to == "y/b001");
    assert_eq!(gone.count(), PORTS);
}

#[test]
fn who_asks_for_a_matrix_and_goes_costs_no_further_slice() {
    let (mut thread, answer) = Thread::asked();
    thread.turn();
    assert!(!thread.matrices.is_empty(), "it is no large matrix");
    drop(answer);
    thread.turn();
    assert!(thread.matrices.is_empty());
}

#[test]
fn what_is_not_there_or_too_much_has_no_matrix() {
    let mut bench = large();
    let pod = |name: &str| PodFilter::Pod { namespace: "x".to_owned(), name: name.to_owned() };
    let check = |bench: &Bench, ends: [Option<PodFilter>; 2], expected: &str| {
        let (reply, mut answer) = oneshot::channel();
        Matrices::default().ask(&bench.enforcer, ends, reply);
        let refused = answer.try_recv().expect("an answer at once").unwrap_err();
        assert_eq!(refused.to_string(), expected);
    };
    check(&bench, [Some(pod("b")), None], "there is no pod x/b");
    let nowhere = PodFilter::Namespace("z".to_owned());
    check(&bench, [None, Some(nowhere)], "there is no pod in the namespace z");
    bench.objects(&[server(1, 2000)]);
    check(
        &bench,
        [None, None],
        "the matrix has 193980 flows, at most 100000 are worked out at once: narrow it with `from` and `to`",
    );
    assert!(bench.enforcer.matrix(Some(&pod("a")), Some(&pod("a"))).unwrap().is_over());
}
