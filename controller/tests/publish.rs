//! The publisher against an API server's double and the simulator: what is written, how often, and when it is not.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what does not hold")]

#[path = "common/api_server.rs"]
mod api_server;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use api_server::ApiServer;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PartialObjectMeta};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use veni_controller::{elector::Fence, metrics::Metrics, named, publisher::Publisher};
use veni_core::id::SecurityGroupId;
use veni_policy::security_group::GroupPeer;
use veni_provider::{
    RuleDirection, RulePeer, RuleTraffic,
    sim::{Fault, RuleSpec, Sim, SimCloud, SimConfig, Timer},
};
use veni_security_groups::published::{Board, Published};
use veni_watch::{Collection, News};

const GROUPS: &str = "/apis/veni.dev/v1alpha1/resolvedsecuritygroups";
const LONG: Duration = Duration::from_secs(30);

struct Clock(Instant);

impl Timer for Clock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        sleep(duration).await;
    }
}

#[derive(Default, Clone)]
struct Held(Arc<AtomicBool>);

impl Fence for Held {
    async fn confirm(&self) -> bool {
        !self.0.load(SeqCst)
    }
}

struct Place {
    server: ApiServer,
    sim: Arc<Mutex<Sim>>,
    cloud: Arc<SimCloud<Clock>>,
    lost: Held,
}

fn id(id: &str) -> SecurityGroupId {
    id.parse().unwrap()
}

impl Place {
    /// `sg-web` lets 10.9.0.0/16 in; `sg-app` and `sg-other` exist. A SecurityGroupPolicy names the first, a pod the second.
    async fn new() -> Self {
        let mut sim = Sim::new(SimConfig::instant());
        let vpc_id: veni_core::id::VpcId = "vpc-1".parse().unwrap();
        sim.add_vpc(vpc_id.clone(), vec!["10.0.0.0/16".parse().unwrap()]).unwrap();
        for group in ["sg-web", "sg-app", "sg-other"] {
            sim.add_security_group(id(group), vpc_id.clone()).unwrap();
        }
        let rule = RuleSpec {
            group: id("sg-web"),
            direction: RuleDirection::Ingress,
            traffic: RuleTraffic::All,
            peer: RulePeer::Cidr("10.9.0.0/16".parse().unwrap()),
        };
        sim.authorize(rule).unwrap();
        let sim = Arc::new(Mutex::new(sim));
        let clock = Arc::new(Clock(Instant::now()));
        let cloud = Arc::new(SimCloud::new(sim.clone(), clock, "i-1".parse().unwrap()));
        let place = Self { server: ApiServer::start().await, sim, cloud, lost: Held::default() };
        place.policy("web", "sg-web");
        let annotations = json!({"vpc.amazonaws.com/security-groups": "sg-app, nonsense"});
        let pod = json!({"metadata": {"namespace": "x", "name": "p", "annotations": annotations}});
        place.server.put("/api/v1/pods/p", pod);
        place
    }

    fn policy(&self, name: &str, group: &str) {
        self.server.put(
            &format!("/apis/vpcresources.k8s.aws/v1beta1/securitygrouppolicies/{name}"),
            json!({
                "apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
                "metadata": {"namespace": "x", "name": name},
                "spec": {"securityGroups": {"groupIds": [group]}},
            }),
        );
    }

    /// A leader begins.
    fn lead(&self, leader: &str) -> tokio::task::JoinHandle<()> {
        let client = self.server.client();
        let metrics = Arc::new(Metrics::default());
        let publisher =
            Publisher::new(client.clone(), named::follow(client), leader.to_owned(), metrics);
        let (cloud, fence) = (self.cloud.clone(), self.lost.clone());
        tokio::spawn(async move { publisher.run(cloud, 1, &fence).await })
    }

    /// What a node would read.
    fn published(&self) -> Arc<Published> {
        let mut board = Board::default();
        for object in self.server.objects(GROUPS) {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            board.apply(&name, serde_json::from_value(object["spec"].clone()).unwrap());
        }
        board.published()
    }

    async fn until(&self, is: impl Fn(&Published) -> bool) -> Arc<Published> {
        let wait = async {
            loop {
                let published = self.published();
                if is(&published) {
                    return published;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{:?}", self.server.objects(GROUPS)))
    }

    fn writes(&self) -> usize {
        let requests = self.server.requests();
        requests.iter().filter(|(method, _)| method != http::Method::GET).count()
    }
}

fn names(published: &Published) -> Vec<&str> {
    published.groups.keys().map(SecurityGroupId::as_str).collect()
}

#[tokio::test]
async fn what_policies_and_pods_name_is_published_and_written_again_only_when_it_changes() {
    let place = Place::new().await;
    let _leader = place.lead("a");
    let published = place.until(|it| it.heartbeat.is_some()).await;
    assert_eq!(names(&published), ["sg-app", "sg-web"]);
    let web = published.groups[&id("sg-web")].group.clone().unwrap();
    assert_eq!(web.ingress[0].peer, GroupPeer::Cidr("10.9.0.0/16".parse().unwrap()));
    let beat = published.heartbeat.clone().unwrap();
    assert_eq!((beat.leader.as_str(), beat.every_secs), ("a", 60));
    let before = place.writes();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(place.writes(), before, "nothing has changed, and no beat is due");

    place.policy("other", "sg-other");
    let published = place.until(|it| it.groups.len() == 3).await;
    assert_eq!(names(&published), ["sg-app", "sg-other", "sg-web"]);
    assert_eq!(place.writes(), before + 1);
    place.server.remove("/apis/vpcresources.k8s.aws/v1beta1/securitygrouppolicies/web");
    place.until(|it| names(it) == ["sg-app", "sg-other"]).await;
}

#[tokio::test]
async fn one_who_does_not_lead_surely_writes_nothing() {
    let place = Place::new().await;
    place.lost.0.store(true, SeqCst);
    let _leader = place.lead("a");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(place.writes(), 0);
}

#[tokio::test]
async fn a_leader_that_cannot_write_does_not_beat() {
    let place = Place::new().await;
    place.server.fault(&[api_server::Fault::Refused(403); 100]);
    let _leader = place.lead("a");
    sleep(Duration::from_secs(2)).await;
    assert!(place.writes() > 0);
    assert!(place.server.objects(GROUPS).is_empty());
}

/// What was published before is not what this leader has read.
#[tokio::test]
async fn a_leader_that_cannot_read_a_group_leaves_it_as_it_was_and_does_not_vouch_for_it() {
    let place = Place::new().await;
    let first = place.lead("a");
    let before = place.until(|it| it.heartbeat.is_some()).await;
    first.abort();
    place.sim.lock().unwrap().inject(Fault::deny("DescribeSecurityGroupRules"));
    let _second = place.lead("b");
    let is_b = |it: &Published| it.heartbeat.as_ref().is_some_and(|beat| beat.leader == "b");
    let after = place.until(is_b).await;
    assert_eq!(names(&after), names(&before));
    for (id, group) in &after.groups {
        assert!(group.stale, "{id}");
        assert_eq!(group.group, before.groups[id].group);
    }
}

/// A node that waited for it would keep every pod with a new group waiting.
#[tokio::test]
async fn a_leader_that_may_read_nothing_says_so_of_each_group() {
    let place = Place::new().await;
    place.sim.lock().unwrap().inject(Fault::deny("DescribeSecurityGroupRules"));
    let _leader = place.lead("a");
    let published = place.until(|it| it.heartbeat.is_some()).await;
    assert_eq!(names(&published), ["sg-app", "sg-web"]);
    assert!(published.groups.values().all(|it| it.stale && it.group.is_none()), "{published:?}");
}

#[tokio::test]
async fn a_group_that_does_not_exist_is_published_as_gone() {
    let place = Place::new().await;
    place.policy("none", "sg-none");
    let _leader = place.lead("a");
    let is_gone = |it: &Published| {
        it.groups.get(&id("sg-none")).is_some_and(|it| it.group.is_none() && !it.stale)
    };
    // The heartbeat is written after all else.
    let is_told = |it: &Published| it.heartbeat.is_some() && is_gone(it);
    let published = place.until(is_told).await;
    assert_eq!(names(&published), ["sg-app", "sg-none", "sg-web"]);
}

/// All nodes follow what is published: a cut must not make each of them list it anew.
#[tokio::test]
async fn a_watch_that_is_cut_goes_on_and_only_one_that_is_too_old_is_listed_anew() {
    const PODS: &str = "/api/v1/pods";
    let place = Place::new().await;
    let name = |name: &str| json!({"metadata": {"namespace": "x", "name": name}});
    place.server.put("/api/v1/pods/none", name("none"));
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let pods = Collection::metadata("pods", Api::<Pod>::all(place.server.client()));
    let annotated = |pod: PartialObjectMeta<Pod>| pod.metadata.annotations.map(|all| all.len());
    let follow = pods
        .spread_over(Duration::from_millis(10))
        .follow(annotated, move |news| tell.send(news).is_ok());
    let _following = tokio::spawn(follow);
    let mut next = async || timeout(LONG, told.recv()).await.unwrap().unwrap();
    assert_eq!(
        next().await,
        News::Listed(vec![("x/p".to_owned(), 1)]),
        "what is nothing is not kept"
    );
    let lists = || {
        let requests = place.server.requests();
        requests.iter().filter(|(_, path)| path == PODS).count()
    };
    place.server.away(Some(503));
    let refused = async |more: usize| {
        let all = place.server.refused() + more;
        let wait = async {
            while place.server.refused() < all {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, wait).await.expect("watches within 30 s");
    };
    refused(2).await;
    place.server.away(None);
    let annotations = json!({"a": "b", "c": "d"});
    let metadata = json!({"namespace": "x", "name": "q", "annotations": annotations});
    place.server.put("/api/v1/pods/q", json!({"metadata": metadata}));
    assert_eq!(next().await, News::Changed("x/q".to_owned(), 2));
    place.server.put("/api/v1/pods/q", name("q"));
    assert_eq!(next().await, News::Gone("x/q".to_owned()));
    assert_eq!(lists(), 1);
    place.server.expire();
    assert_eq!(next().await, News::Listed(vec![("x/p".to_owned(), 1)]));
    assert_eq!(lists(), 2);
}

/// The chart's ClusterRole for the controller, `group/plural verb`.
fn granted() -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/veni/templates/controller.yaml");
    let text = fs::read_to_string(file).unwrap();
    let role = text.split("\nkind: ClusterRole\n").nth(1).unwrap();
    let rules = role.split("\nrules:\n").nth(1).unwrap().split("---").next().unwrap();
    let mut grants = BTreeSet::new();
    for rule in rules.split("- apiGroups: ").skip(1) {
        let list = |key: &str| -> Vec<String> {
            let list = rule.split(key).nth(1).unwrap().split(']').next().unwrap();
            list.split(", ").map(|item| item.trim_matches('"').to_owned()).collect()
        };
        let group = rule.trim_start_matches('[').split(']').next().unwrap().trim_matches('"');
        for resource in list("resources: [") {
            grants.extend(list("verbs: [").iter().map(|verb| format!("{group}/{resource} {verb}")));
        }
    }
    grants
}

#[tokio::test]
async fn the_charts_cluster_role_grants_what_is_asked_for_and_no_more() {
    let place = Place::new().await;
    let leader = place.lead("a");
    place.until(|it| it.heartbeat.is_some()).await;
    place.policy("other", "sg-other");
    place.until(|it| it.groups.len() == 3).await;
    place.server.remove("/apis/vpcresources.k8s.aws/v1beta1/securitygrouppolicies/other");
    place.until(|it| it.groups.len() == 2).await;
    leader.abort();
    let _next = place.lead("b");
    let is_b = |it: &Published| it.heartbeat.as_ref().is_some_and(|beat| beat.leader == "b");
    place.until(is_b).await;
    let mut asked: BTreeSet<String> = BTreeSet::new();
    for (method, path) in place.server.requests() {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (group, rest) =
            if parts[0] == "api" { ("", &parts[2..]) } else { (parts[1], &parts[3..]) };
        let verb = match (method.as_str(), rest.len()) {
            ("GET", 1) => "list",
            ("GET", _) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("DELETE", _) => "delete",
            _ => panic!("{method} {path}"),
        };
        asked.insert(format!("{group}/{} {verb}", rest[0]));
    }
    // What is followed is watched too; the double does not note that.
    for followed in ["/pods", "vpcresources.k8s.aws/securitygrouppolicies"] {
        asked.insert(format!("{followed} watch"));
    }
    assert_eq!(asked, granted());
}
