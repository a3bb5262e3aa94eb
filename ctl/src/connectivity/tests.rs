//! The test's order of things over a cluster in memory, in virtual time.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::pending,
    net::SocketAddr,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Part, Test,
    api::{Cluster, Forbidden},
    judge::{Outcome, Verdict},
    objects::{self, CLUSTER_POLICIES, CLUSTER_POLICY, NAMESPACE_PATH, NAMESPACES},
    place::DAEMON_SETS,
    probe::{Answer, Identity, Question, What},
    run::run,
};

/// A cluster of two nodes.
struct Fake {
    objects: RefCell<BTreeMap<String, Value>>,
    /// Whether policies do anything.
    enforces: bool,
    cluster_policies: bool,
    /// Whether the user may do anything with ClusterNetworkPolicies.
    cluster_rights: bool,
    /// The nodes with a ready pod of veni's.
    veni: &'static [&'static str],
    /// Whether another test beats in the namespace.
    beats: bool,
    /// How often pods were asked.
    asked: Cell<usize>,
    /// This path is closed whatever policy says: a client and what it asks.
    broken: Option<(&'static str, &'static str)>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            objects: RefCell::default(),
            enforces: true,
            cluster_policies: true,
            cluster_rights: true,
            veni: &["a", "b", "c"],
            beats: false,
            asked: Cell::new(0),
            broken: None,
        }
    }
}

impl Fake {
    fn paths(&self) -> Vec<String> {
        self.objects.borrow().keys().cloned().collect()
    }

    fn has(&self, collection: &str, name: &str) -> Option<Value> {
        self.objects.borrow().get(&format!("{collection}/{name}")).cloned()
    }

    /// Veni's pods, one of which is not ready, and another's.
    fn daemons(&self) -> Vec<Value> {
        let pod = |set: &str, node: &str, ready: bool| {
            json!({
                "metadata": {"ownerReferences": [{"kind": "DaemonSet", "name": set}]},
                "spec": {"nodeName": node},
                "status": {
                    "podIP": "192.168.0.1",
                    "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
                },
            })
        };
        let of_node =
            |node: &&str| [pod("veni", node, self.veni.contains(node)), pod("x", node, true)];
        ["a", "b", "c"].iter().flat_map(of_node).collect()
    }

    fn pod(&self, name: &str) -> Value {
        let number = name.bytes().last().unwrap_or(b'0') - b'0';
        let host = if name.starts_with("client") { 10 } else { 20 };
        json!({
            "metadata": {"name": name},
            "status": {
                "podIP": format!("10.0.{number}.{host}"),
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    }

    /// What policy says of a question to a server.
    fn admits(&self, client: &str, question: &Question) -> bool {
        let policy = |name: &str| self.has(&objects::policies(), name).is_some();
        let action = self.has(CLUSTER_POLICIES, CLUSTER_POLICY);
        let action = action.map(|policy| policy["spec"]["ingress"][0]["action"].clone());
        let to_one = client == "client-1"
            && question.what == What::Tcp
            && (question.to.ends_with(":8080") || question.to.ends_with(":80"));
        match action {
            Some(action) if action == "Deny" => return false,
            Some(_) if !policy("quiet") => return true,
            _ => {}
        }
        !policy("closed") && !policy("quiet") && (!policy("one") || to_one)
    }

    fn answer(&self, client: &str, question: &Question) -> Answer {
        if self.broken.is_some_and(|(of, to)| of == client && question.to.starts_with(to)) {
            return Answer::Nothing("broken".to_owned());
        }
        match question.what {
            What::Connect => return Answer::Connected,
            What::Throughput => return Answer::BitsPerSec(1e9),
            _ => {}
        }
        if self.enforces && !self.admits(client, question) {
            return Answer::Nothing("no answer".to_owned());
        }
        let direct = question.to.strip_prefix("10.0.").and_then(|rest| rest.split('.').next());
        // Services take turns.
        let turn = (self.asked.replace(self.asked.get() + 1) % 2 + 1).to_string();
        let pod = format!("server-{}", direct.unwrap_or(&turn));
        let own = self.pod(client)["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        Answer::Pod(Identity {
            pod,
            peer: SocketAddr::new(own.parse().expect("an address"), 40000),
        })
    }
}

impl Cluster for Fake {
    async fn get(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let node = |name: &str, taints: Value| {
            json!({
                "metadata": {"name": name}, "spec": {"taints": taints},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "192.168.0.1"}],
                },
            })
        };
        let closed = json!([{"key": "reserved", "effect": "NoSchedule"}]);
        let list = |items: Vec<Value>| Ok(Some(json!({"items": items})));
        let pods = objects::core("pods");
        match path {
            "/api/v1/nodes" => {
                list(vec![node("a", closed), node("b", json!([])), node("c", json!([]))])
            }
            DAEMON_SETS => list(vec![json!({"metadata": {"name": "veni", "namespace": "net"}})]),
            "/api/v1/namespaces/net/pods" => list(self.daemons()),
            CLUSTER_POLICIES if !self.cluster_rights => Err(Forbidden("no".to_owned()).into()),
            CLUSTER_POLICIES => Ok(self.cluster_policies.then(|| json!({"items": []}))),
            NAMESPACE_PATH if self.beats => {
                sleep(Duration::from_secs(1)).await;
                let mut there = self.objects.borrow_mut();
                if let Some(namespace) = there.get_mut(path) {
                    let count = self.asked.replace(self.asked.get() + 1);
                    namespace["metadata"]["annotations"][objects::BEAT] = json!(count);
                }
                Ok(there.get(path).cloned())
            }
            _ if path == pods => {
                let names = self.paths();
                let names = names.iter().filter_map(|path| path.strip_prefix(&format!("{pods}/")));
                list(names.map(|name| self.pod(name)).collect())
            }
            _ => Ok(self.objects.borrow().get(path).cloned()),
        }
    }

    async fn create(&self, collection: &str, object: &Value) -> anyhow::Result<bool> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("{collection}/{name}");
        if self.objects.borrow().contains_key(&path) {
            return Ok(false);
        }
        let mut object = object.clone();
        if collection.ends_with("/services") {
            object["spec"]["clusterIP"] = json!("172.20.0.9");
            object["spec"]["ports"][0]["nodePort"] = json!(30000);
        }
        self.objects.borrow_mut().insert(path, object);
        Ok(true)
    }

    async fn patch(&self, _: &str, _: &Value) -> anyhow::Result<()> {
        Ok(())
    }

    /// A namespace goes with all that is in it.
    async fn delete(&self, path: &str) -> anyhow::Result<()> {
        if path.starts_with(CLUSTER_POLICIES) && !self.cluster_rights {
            return Err(Forbidden("no".to_owned()).into());
        }
        let within = "/namespaces/veni-connectivity-test/";
        self.objects
            .borrow_mut()
            .retain(|name, _| *name != path && !(path == NAMESPACE_PATH && name.contains(within)));
        Ok(())
    }

    async fn ask(&self, pod: &str, questions: &[Question]) -> anyhow::Result<Vec<Answer>> {
        sleep(Duration::from_millis(100)).await;
        Ok(questions.iter().map(|question| self.answer(pod, question)).collect())
    }
}

fn options() -> Test {
    Test {
        kubeconfig: None,
        context: None,
        image: Some("an-image".to_owned()),
        nodes: Vec::new(),
        external: "198.51.100.10:80".to_owned(),
        skip: Vec::new(),
        perf: false,
        perf_secs: 1,
        ready_secs: 10,
        settle_secs: 3,
    }
}

async fn tested(cluster: &Fake, test: &Test) -> Outcome {
    let mut outcome = Outcome { quiet: true, ..Outcome::default() };
    run(cluster, test, pending::<&'static str>(), &mut outcome).await;
    outcome
}

fn of(outcome: &Outcome, verdict: Verdict) -> Vec<&str> {
    let of = outcome.checks.iter().filter(|check| check.result == verdict);
    of.map(|check| check.check.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_does_all_holds_every_check_and_keeps_nothing() {
    let (cluster, test) = (Fake::default(), Test { perf: true, ..options() });
    let outcome = tested(&cluster, &test).await;
    assert!(outcome.held(), "{outcome:#?}");
    let expected = [
        "pods run",
        "pod to pod on one node",
        "pod to pod across nodes",
        "pod to Service",
        "pod to Service by its name",
        "pod to NodePort",
        "pod to API server",
        "pod to outside",
        "NetworkPolicy: nothing may come in",
        "NetworkPolicy: one client and one port may",
        "NetworkPolicy: nothing may go out",
        "ClusterNetworkPolicy: Deny",
        "ClusterNetworkPolicy: Accept before a NetworkPolicy",
    ];
    assert_eq!(of(&outcome, Verdict::Ok)[..expected.len()], expected, "{outcome:#?}");
    // Of three nodes the one that takes no pods is left out.
    assert!(outcome.checks[0].seen.starts_with("4 on b, c "), "{}", outcome.checks[0].seen);
    assert!(cluster.paths().is_empty(), "{:?}", cluster.paths());
}

#[tokio::test(start_paused = true)]
async fn what_does_not_hold_fails_its_check_and_the_others_go_on() {
    let policies = "NetworkPolicy";
    let unenforced = Fake { enforces: false, ..Fake::default() };
    let outcome = tested(&unenforced, &options()).await;
    assert!(!outcome.held());
    let failed = of(&outcome, Verdict::Failed);
    assert_eq!(failed.len(), 5, "{failed:?}");
    assert!(failed.iter().all(|check| check.contains(policies)), "{failed:?}");
    assert!(unenforced.paths().is_empty(), "{:?}", unenforced.paths());

    let cut = Fake { broken: Some(("client-1", "198.51.100.10")), ..Fake::default() };
    let outcome = tested(&cut, &options()).await;
    assert_eq!(of(&outcome, Verdict::Failed), ["pod to outside"], "{outcome:#?}");
    let report = outcome.report(crate::cli::Format::Human).unwrap();
    assert!(report.failed);
    assert!(
        report.text.contains("FAILED  1 of 2 paths: b → 198.51.100.10:80 over TCP: broken"),
        "{}",
        report.text
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_checked_is_skipped_with_its_reason_and_fails_nothing() {
    let cluster = Fake { cluster_policies: false, ..Fake::default() };
    let test = Test {
        nodes: vec!["b".to_owned()],
        external: "none".to_owned(),
        skip: vec![Part::Service],
        ..options()
    };
    let outcome = tested(&cluster, &test).await;
    assert!(outcome.held(), "{outcome:#?}");
    let skipped = of(&outcome, Verdict::Skipped);
    assert_eq!(
        skipped,
        ["pod to pod across nodes", "Services", "pod to outside", "ClusterNetworkPolicy"]
    );
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_test_keeps_nothing_whenever_it_is_interrupted() {
    for tenths in 0.. {
        let cluster = Fake::default();
        let mut outcome = Outcome { quiet: true, ..Outcome::default() };
        let after = Duration::from_millis(100 * tenths + 50);
        let mut told = false;
        // The first signal after so long; no second one.
        let interrupted = std::future::poll_fn({
            let mut timer = Box::pin(sleep(after));
            move |context| {
                if told {
                    return std::task::Poll::Pending;
                }
                std::task::ready!(timer.as_mut().poll(context));
                told = true;
                std::task::Poll::Ready("SIGINT")
            }
        });
        run(&cluster, &options(), interrupted, &mut outcome).await;
        assert!(cluster.paths().is_empty(), "{after:?}: {:?}", cluster.paths());
        if outcome.ended.is_none() {
            assert!(outcome.held() && tenths > 30, "{after:?}: {outcome:#?}");
            return;
        }
        assert_eq!(outcome.ended.as_deref(), Some("ended by SIGINT"), "{after:?}");
        assert!(!outcome.held());
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_interruption_says_what_is_left() {
    let cluster = Fake { beats: true, ..Fake::default() };
    let mut outcome = Outcome { quiet: true, ..Outcome::default() };
    let again = std::future::poll_fn(|_| std::task::Poll::Ready("SIGTERM"));
    run(&cluster, &options(), again, &mut outcome).await;
    assert!(!outcome.held());
    assert_eq!(outcome.ended.as_deref(), Some("ended by SIGTERM"));
    let left = outcome.left.unwrap_or_default();
    assert!(left.contains("kubectl delete namespace veni-connectivity-test"), "{left}");
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_test_left_goes_first() {
    let cluster = Fake::default();
    cluster.create(NAMESPACES, &objects::namespace("killed")).await.unwrap();
    cluster.create(&objects::core("pods"), &json!({"metadata": {"name": "old-1"}})).await.unwrap();
    cluster.create(CLUSTER_POLICIES, &objects::cluster_policy("Deny")).await.unwrap();
    let outcome = tested(&cluster, &options()).await;
    assert!(outcome.held(), "{outcome:#?}");
    assert!(cluster.paths().is_empty(), "{:?}", cluster.paths());
}

#[tokio::test(start_paused = true)]
async fn a_test_that_goes_on_and_a_namespace_of_somebody_else_are_left_alone() {
    let foreign = json!({"metadata": {"name": objects::NAMESPACE, "labels": {}}});
    for (namespace, beats, words) in [
        (objects::namespace("another"), true, "another test is going on"),
        (foreign, false, "that no test made"),
    ] {
        let cluster = Fake { beats, ..Fake::default() };
        cluster.create(NAMESPACES, &namespace).await.unwrap();
        let outcome = tested(&cluster, &options()).await;
        assert!(outcome.ended.as_ref().is_some_and(|why| why.contains(words)), "{outcome:#?}");
        assert_eq!(outcome.left, None);
        assert_eq!(cluster.paths(), [NAMESPACE_PATH]);
    }
}

#[tokio::test(start_paused = true)]
async fn only_nodes_with_a_ready_veni_are_tested_and_too_few_are_said() {
    let cluster = Fake { veni: &["a", "c"], ..Fake::default() };
    // Of one server a Service's answers cannot come by turns.
    let test = Test { skip: vec![Part::Service], ..options() };
    let outcome = tested(&cluster, &test).await;
    assert!(outcome.held(), "{outcome:#?}");
    let seen = &outcome.checks[0].seen;
    let counts = "veni is ready on 1 of 2 nodes that take any pod, of 3 in all";
    assert!(seen.starts_with("2 on c ") && seen.contains(counts), "{seen}");

    let wanted = Test { nodes: vec!["b".to_owned()], ..options() };
    for (cluster, test, words) in [
        (Fake { veni: &["a"], ..Fake::default() }, options(), "veni is ready on 0 of 2 nodes"),
        (cluster, wanted, "--nodes b: veni has no ready pod there"),
    ] {
        let outcome = tested(&cluster, &test).await;
        assert!(outcome.ended.as_ref().is_some_and(|why| why.contains(words)), "{outcome:#?}");
        assert!(cluster.paths().is_empty(), "{:?}", cluster.paths());
    }
}

/// The API server refuses before it looks whether it has such a kind at all.
#[tokio::test(start_paused = true)]
async fn without_rights_on_cluster_policies_all_else_is_tested_and_nothing_is_left() {
    let cluster = Fake { cluster_rights: false, cluster_policies: false, ..Fake::default() };
    for skip in [Vec::new(), vec![Part::Policy]] {
        let outcome = tested(&cluster, &Test { skip, ..options() }).await;
        assert!(outcome.held(), "{outcome:#?}");
        assert!(cluster.paths().is_empty(), "{:?}", cluster.paths());
    }
}
