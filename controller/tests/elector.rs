//! The elector against an API server's double: one leader, however the Lease is fought over.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what does not hold")]

#[path = "common/api_server.rs"]
mod api_server;

use std::{
    collections::BTreeSet,
    fs,
    future::pending,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use api_server::{ApiServer, Fault};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use veni_controller::{
    elector::{Elector, Fence as _, Leadership},
    lease::Terms,
    metrics::Metrics,
};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/veni";
const LONG: Duration = Duration::from_secs(20);

/// A Lease's duration is in whole seconds.
fn terms() -> Terms {
    Terms {
        duration: Duration::from_secs(1),
        deadline: Duration::from_millis(600),
        retry: Duration::from_millis(50),
        fresh: Duration::from_millis(100),
        call: Duration::from_millis(200),
    }
}

/// A replica whose duty is to tell that it leads.
struct Replica {
    stop: watch::Sender<bool>,
    led: mpsc::UnboundedReceiver<Arc<Leadership>>,
    leading: Arc<AtomicUsize>,
    running: JoinHandle<()>,
}

struct Leading(Arc<AtomicUsize>);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// `leading` counts those who lead.
fn replica(server: &ApiServer, name: &str, leading: &Arc<AtomicUsize>) -> Replica {
    replica_on(terms(), server, name, leading)
}

fn replica_on(terms: Terms, server: &ApiServer, name: &str, leading: &Arc<AtomicUsize>) -> Replica {
    let (stop, stopped) = watch::channel(false);
    let (tell, led) = mpsc::unbounded_channel();
    let metrics = Arc::new(Metrics::default());
    let elector =
        Elector::new(server.client(), ("kube-system", "veni"), name.to_owned(), terms, metrics);
    let counted = leading.clone();
    let duty = move |leadership: Arc<Leadership>| {
        let (tell, counted) = (tell.clone(), counted.clone());
        async move {
            assert_eq!(counted.fetch_add(1, SeqCst), 0, "two lead at once");
            let _leading = Leading(counted);
            tell.send(leadership).unwrap();
            pending::<()>().await;
        }
    };
    let running = tokio::spawn(elector.run(stopped, duty));
    Replica { stop, led, leading: leading.clone(), running }
}

impl Replica {
    async fn leads(&mut self) -> Arc<Leadership> {
        timeout(LONG, self.led.recv()).await.expect("it leads within 20 s").unwrap()
    }

    async fn ends_leading(&self) {
        let ended = async {
            while self.leading.load(SeqCst) > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, ended).await.expect("it ends within 20 s");
    }
}

fn holder(server: &ApiServer) -> String {
    let lease = server.object(LEASE).unwrap_or_default();
    lease.pointer("/spec/holderIdentity").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn others(holder: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "veni"},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 1, "renewTime": "2026-11-22T03:00:00.000000Z"},
    })
}

#[tokio::test]
async fn one_of_several_leads_and_another_one_as_soon_as_it_is_told_to_stop() {
    let (server, leading) = (ApiServer::start().await, Arc::default());
    let mut first = replica(&server, "a", &leading);
    first.leads().await;
    let mut second = replica(&server, "b", &leading);
    sleep(2 * terms().duration).await;
    assert_eq!(holder(&server), "a");
    assert!(second.led.try_recv().is_err(), "the Lease is renewed");
    let stopped = Instant::now();
    first.stop.send_replace(true);
    timeout(LONG, first.running).await.unwrap().unwrap();
    second.leads().await;
    assert!(stopped.elapsed() < terms().duration, "given back, not waited for");
    let transitions = server.object(LEASE).unwrap().pointer("/spec/leaseTransitions").cloned();
    assert_eq!((holder(&server), transitions), ("b".to_owned(), Some(json!(1))));
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_is_taken_when_its_duration_is_over_and_not_before() {
    let (server, leading) = (ApiServer::start().await, Arc::default());
    // Its renewTime is long ago by our clock: no matter.
    server.put(LEASE, others("gone"));
    let begun = Instant::now();
    let mut replica = replica(&server, "a", &leading);
    replica.leads().await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_leader_that_cannot_renew_stops_before_another_may_begin_and_does_nothing_meanwhile() {
    let (server, leading) = (ApiServer::start().await, Arc::default());
    let mut replica = replica(&server, "a", &leading);
    let leadership = replica.leads().await;
    assert!(leadership.confirm().await);
    server.away(Some(503));
    let away = Instant::now();
    sleep(terms().fresh).await;
    assert!(!leadership.confirm().await, "no effect without a look at the Lease");
    replica.ends_leading().await;
    assert!(away.elapsed() < terms().duration, "{:?}", away.elapsed());
    server.away(None);
    assert!(!leadership.confirm().await, "what is lost stays lost");
    replica.leads().await;
}

/// The duty's question is the first to find that the Lease is lost, and the server is back before the next renewal.
#[tokio::test]
async fn a_leader_that_lost_its_lease_between_two_renewals_leads_anew_and_does_not_renew_in_vain() {
    let (server, leading) = (ApiServer::start().await, Arc::default());
    let terms =
        Terms { deadline: Duration::from_millis(300), retry: Duration::from_secs(2), ..terms() };
    let mut replica = replica_on(terms, &server, "a", &leading);
    let leadership = replica.leads().await;
    sleep(terms.deadline).await;
    server.away(Some(503));
    assert!(!leadership.confirm().await);
    server.away(None);
    let anew = replica.leads().await;
    assert!(anew.confirm().await && !leadership.confirm().await);
}

#[tokio::test]
async fn a_leader_that_was_overtaken_does_nothing_more() {
    let (server, leading) = (ApiServer::start().await, Arc::default());
    let mut replica = replica(&server, "a", &leading);
    let leadership = replica.leads().await;
    sleep(2 * terms().fresh).await;
    server.put(LEASE, others("b"));
    // A renewal of a moment ago stands for a look; after it the server is asked.
    sleep(terms().fresh).await;
    assert!(!leadership.confirm().await);
    assert_eq!(holder(&server), "b", "not overwritten");
    replica.ends_leading().await;
}

#[tokio::test]
async fn a_renewal_whose_answer_is_lost_is_found_out_about() {
    let (server, leading) = (ApiServer::start().await, Arc::default());
    let mut replica = replica(&server, "a", &leading);
    let leadership = replica.leads().await;
    server.fault(&[Fault::AnswerLost, Fault::AnswerLost]);
    sleep(terms().duration).await;
    assert!(leadership.confirm().await);
    assert!(replica.led.try_recv().is_err(), "it led all the time");
    assert_eq!(leading_now(&replica), 1);
}

fn leading_now(replica: &Replica) -> usize {
    replica.leading.load(SeqCst)
}

#[tokio::test]
async fn many_that_begin_at_once_make_one_leader() {
    let (server, leading) = (ApiServer::start().await, Arc::default());
    let mut replicas: Vec<_> =
        (0..8).map(|number| replica(&server, &format!("r{number}"), &leading)).collect();
    sleep(terms().duration).await;
    let led: usize = replicas.iter_mut().map(|it| usize::from(it.led.try_recv().is_ok())).sum();
    assert_eq!((led, leading.load(SeqCst)), (1, 1));
}

#[tokio::test]
async fn a_role_that_lacks_the_verb_makes_no_leader_and_one_that_gets_it_does() {
    let (server, leading) = (ApiServer::start().await, Arc::default());
    server.fault(&[Fault::Refused(403); 5]);
    let mut replica = replica(&server, "a", &leading);
    replica.leads().await;
    assert!(server.requests().len() > 10);
}

/// The verbs of the chart's Role, each rule in three or four lines; those without a name of their own apart.
fn granted() -> BTreeSet<(String, bool)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/veni/templates/controller.yaml");
    let text = fs::read_to_string(file).unwrap();
    let role = text.split("\nkind: Role\n").nth(1).unwrap();
    let rules = role.split("\nrules:\n").nth(1).unwrap().split("---").next().unwrap();
    let mut grants = BTreeSet::new();
    for rule in rules.split("- apiGroups: ").skip(1) {
        assert!(rule.starts_with("[coordination.k8s.io]\n    resources: [leases]\n"), "{rule}");
        let named = rule.contains("resourceNames: [{{ $name }}]");
        let verbs = rule.split("verbs: [").nth(1).unwrap().split(']').next().unwrap();
        grants.extend(verbs.split(", ").map(|verb| (verb.to_owned(), named)));
    }
    grants
}

#[tokio::test]
async fn the_charts_role_grants_what_an_election_asks_for_and_no_more() {
    let (server, leading) = (ApiServer::start().await, Arc::default());
    let mut replica = replica(&server, "a", &leading);
    replica.leads().await;
    sleep(3 * terms().retry).await;
    replica.stop.send_replace(true);
    timeout(LONG, replica.running).await.unwrap().unwrap();
    let asked = server.requests().into_iter().map(|(method, path)| {
        assert!(LEASE.starts_with(&path), "{path}");
        let verb = match method.as_str() {
            "GET" => "get",
            "POST" => "create",
            "PUT" => "update",
            other => panic!("{other} {path}"),
        };
        (verb.to_owned(), path == LEASE)
    });
    assert_eq!(asked.collect::<BTreeSet<_>>(), granted());
}

#[tokio::test]
async fn a_replica_is_alive_while_it_leads_and_tells_that_it_does() {
    let (server, leading) = (ApiServer::start().await, Arc::default());
    let (stop, stopped) = watch::channel(false);
    let metrics = Arc::new(Metrics::default());
    let place = ("kube-system", "veni");
    let elector = Elector::new(server.client(), place, "a".to_owned(), terms(), metrics.clone());
    let counted: Arc<AtomicUsize> = leading;
    let running = tokio::spawn(elector.run(stopped, move |_| {
        counted.fetch_add(1, SeqCst);
        pending()
    }));
    sleep(terms().duration).await;
    assert!(metrics.is_leader() && metrics.is_alive());
    assert!(metrics.text().contains("veni_controller_leader 1"), "{}", metrics.text());
    stop.send_replace(true);
    timeout(LONG, running).await.unwrap().unwrap();
    assert!(!metrics.is_leader());
}
