//! The watch against an API server's double: what it does when things go well, and when they do not.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use double::{Double, Fault, pod};
use serde_json::{Value, json};
use tokio::time::timeout;
use veni_policy::object::{Key, Kind};
use veni_watch::{Access, Batch, Resource, Settings, Watch, start};

#[path = "api_server/double.rs"]
mod double;
#[path = "api_server/report.rs"]
mod report;

const NODE: &str = "node-a";
const LONG: Duration = Duration::from_secs(20);
/// Longer than anything that is under way takes here.
const QUIET: Duration = Duration::from_millis(400);

fn settings() -> Settings {
    Settings {
        retry: Duration::from_millis(20),
        retry_most: Duration::from_millis(100),
        settled: Duration::from_millis(50),
        patience: Duration::from_millis(500),
        stalled: Duration::from_millis(500),
        idle: Duration::from_secs(5),
        unread: Duration::from_millis(100),
        missing: Duration::from_millis(100),
        ask_again: Duration::from_millis(50),
        spread: Duration::from_millis(2),
        tidy: Duration::from_millis(100),
        ..Settings::default()
    }
}

fn watching(double: &Double) -> Watch {
    watching_with(double, settings())
}

fn watching_with(double: &Double, settings: Settings) -> Watch {
    start(Access::Open(double.url()), NODE, settings).expect("a thread")
}

/// The batches up to the first that has what is looked for.
async fn until(watch: &mut Watch, found: impl Fn(&Batch) -> bool) -> Batch {
    timeout(LONG, async {
        loop {
            let batch = watch.batches.recv().await.expect("the watch goes on");
            if found(&batch) {
                return batch;
            }
        }
    })
    .await
    .expect("a batch within 20 s")
}

async fn complete(watch: &mut Watch) -> Batch {
    until(watch, |batch| batch.complete).await
}

async fn quiet(watch: &mut Watch) {
    if let Ok(batch) = timeout(QUIET, watch.batches.recv()).await {
        panic!("nothing was to be told: {batch:?}");
    }
}

fn keys(batch: &Batch) -> Vec<String> {
    let mut keys: Vec<_> = batch.apply.iter().map(|object| object.key().to_string()).collect();
    keys.sort();
    keys
}

fn policy(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": name},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"zone": "a"}, "annotations": {"k8s.amazonaws.com/eniConfig": "pods"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.9"}]},
    })
}

#[tokio::test]
async fn all_that_there_is_comes_at_once_and_then_what_changes() {
    let double = Double::start().await;
    double.put(Resource::Pods, pod("a", "u1", "web"));
    double.put(Resource::NetworkPolicies, policy("closed"));
    let mut watch = watching(&double);
    let first = watch.batches.recv().await.unwrap();
    assert!(first.complete && first.diagnostics.is_empty(), "{first:?}");
    assert_eq!(keys(&first), ["NetworkPolicy x/closed", "Pod x/a"]);

    double.put(Resource::Pods, pod("b", "u2", "web"));
    assert_eq!(keys(&until(&mut watch, |_| true).await), ["Pod x/b"]);
    let mut heartbeat = pod("b", "u2", "web");
    heartbeat["status"]["containerStatuses"] = json!([{"restartCount": 7}]);
    heartbeat["metadata"]["managedFields"] = json!([{"manager": "kubelet"}]);
    double.put(Resource::Pods, heartbeat);
    quiet(&mut watch).await;
    double.put(Resource::Pods, pod("b", "u2", "db"));
    assert_eq!(keys(&until(&mut watch, |_| true).await), ["Pod x/b"]);
    double.delete(Resource::Pods, "x/b");
    let last = until(&mut watch, |_| true).await;
    assert_eq!((last.delete, last.apply.len()), (vec![Key::new(Kind::Pod, "x", "b")], 0));
}

#[tokio::test]
async fn an_api_server_that_does_not_stream_lists_is_listed_in_pages() {
    for status in [400, 422, 500] {
        let double = Double::start().await;
        for index in 0..5 {
            double.put(Resource::Pods, pod(&format!("p{index}"), "u", "web"));
        }
        double.fault(None, Fault::NoStreaming(status));
        let mut watch = watching(&double);
        let first = complete(&mut watch).await;
        assert_eq!(first.apply.len(), 5, "{status}");
        assert!(first.diagnostics.is_empty(), "{first:?}");
        double.put(Resource::Pods, pod("late", "u9", "web"));
        assert_eq!(keys(&until(&mut watch, |_| true).await), ["Pod x/late"]);
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_resumed_and_takes_nothing_away() {
    let double = Double::start().await;
    double.put(Resource::Pods, pod("a", "u1", "web"));
    double.put(Resource::Pods, pod("b", "u2", "web"));
    let mut watch = watching(&double);
    complete(&mut watch).await;
    double.away(true);
    let away = until(&mut watch, |batch| !batch.diagnostics.is_empty()).await;
    double.delete(Resource::Pods, "x/a");
    double.put(Resource::Pods, pod("c", "u3", "web"));
    assert!(away.apply.is_empty() && away.delete.is_empty() && away.complete, "{away:?}");
    assert!(away.diagnostics[0].message.contains("stays in force"), "{away:?}");
    let lists = double.lists(Resource::Pods);
    double.away(false);
    let (mut gone, mut new, mut wrong) = (Vec::new(), Vec::new(), 1);
    while gone.len() + new.len() < 2 || wrong > 0 {
        let batch = until(&mut watch, |_| true).await;
        gone.extend(batch.delete.clone());
        new.extend(keys(&batch));
        wrong = batch.diagnostics.len();
    }
    assert_eq!((gone, new), (vec![Key::new(Kind::Pod, "x", "a")], vec!["Pod x/c".to_owned()]));
    assert_eq!(double.lists(Resource::Pods), lists, "resumed, not listed anew");
}

#[tokio::test]
async fn a_version_that_is_too_old_is_listed_anew_and_only_what_differs_is_told() {
    for at_once in [true, false] {
        let double = Double::start().await;
        double.put(Resource::Pods, pod("a", "u1", "web"));
        double.put(Resource::Pods, pod("b", "u2", "web"));
        let mut watch = watching(&double);
        complete(&mut watch).await;
        let lists = double.lists(Resource::Pods);
        double.away(true);
        until(&mut watch, |batch| !batch.diagnostics.is_empty()).await;
        double.delete(Resource::Pods, "x/a");
        double.put(Resource::Pods, pod("c", "u3", "web"));
        double.expire(at_once);
        double.away(false);
        let batch = until(&mut watch, |batch| !batch.delete.is_empty()).await;
        assert_eq!(batch.delete, [Key::new(Kind::Pod, "x", "a")]);
        assert!(!keys(&batch).contains(&"Pod x/b".to_owned()), "{batch:?}");
        assert!(double.lists(Resource::Pods) > lists);
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_is_no_list() {
    let double = Double::start().await;
    for index in 0..4 {
        double.put(Resource::NetworkPolicies, policy(&format!("p{index}")));
    }
    double.fault(Some(Resource::NetworkPolicies), Fault::CutAfter(2));
    let mut watch = watching(&double);
    double.requested(Resource::NetworkPolicies, 3).await;
    if let Ok(batch) = timeout(QUIET, watch.batches.recv()).await {
        let batch = batch.unwrap();
        assert!(!batch.complete && batch.apply.is_empty(), "half of the policies: {batch:?}");
    }
    double.mend(Some(Resource::NetworkPolicies));
    assert_eq!(complete(&mut watch).await.apply.len(), 4);
}

#[tokio::test]
async fn a_role_that_lacks_a_verb_keeps_policy_from_beginning_and_is_named() {
    let double = Double::start().await;
    double.put(Resource::Pods, pod("a", "u1", "web"));
    double.fault(Some(Resource::NetworkPolicies), Fault::Status(403));
    let mut watch = watching(&double);
    let told = until(&mut watch, |batch| !batch.diagnostics.is_empty()).await;
    assert!(!told.complete && told.apply.is_empty(), "{told:?}");
    let wrong = &told.diagnostics[0];
    assert_eq!(wrong.object, "networkpolicies.networking.k8s.io");
    for part in ["\"watch\"", "\"networkpolicies\"", "\"networking.k8s.io\""] {
        assert!(wrong.message.contains(part), "{part}: {}", wrong.message);
    }
    quiet(&mut watch).await;
    double.mend(Some(Resource::NetworkPolicies));
    let granted = complete(&mut watch).await;
    assert_eq!((keys(&granted), granted.diagnostics.len()), (vec!["Pod x/a".to_owned()], 0));
    // Taken away again: what was read stays.
    double.fault(Some(Resource::Pods), Fault::Status(403));
    double.cut();
    let told = until(&mut watch, |batch| !batch.diagnostics.is_empty()).await;
    assert!(told.complete && told.delete.is_empty(), "{told:?}");
}

#[tokio::test]
async fn a_definition_that_is_missing_is_no_objects_and_is_found_when_it_comes() {
    let double = Double::start().await;
    double.uninstall(Resource::ClusterNetworkPolicies, &[]);
    double.uninstall(Resource::SecurityGroupPolicies, &[]);
    double.uninstall(Resource::EniConfigs, &[]);
    let mut watch = watching(&double);
    let first = complete(&mut watch).await;
    assert!(first.diagnostics.is_empty(), "{first:?}");
    double.put(
        Resource::SecurityGroupPolicies,
        json!({
            "apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
            "metadata": {"namespace": "x", "name": "s"},
            "spec": {"podSelector": {}, "securityGroups": {"groupIds": ["sg-1"]}},
        }),
    );
    double.install(Resource::SecurityGroupPolicies);
    assert_eq!(keys(&until(&mut watch, |_| true).await), ["SecurityGroupPolicy x/s"]);
    // The definition goes, and its objects with it.
    double.uninstall(Resource::SecurityGroupPolicies, &[]);
    double.cut();
    let gone = until(&mut watch, |batch| !batch.delete.is_empty()).await;
    assert_eq!(gone.delete, [Key::new(Kind::SecurityGroupPolicy, "x", "s")]);
}

#[tokio::test]
async fn objects_of_a_version_that_is_not_read_are_not_taken_for_none() {
    let double = Double::start().await;
    double.uninstall(Resource::ClusterNetworkPolicies, &["policy.networking.k8s.io/v1beta1"]);
    let mut watch = watching(&double);
    let told = until(&mut watch, |batch| !batch.diagnostics.is_empty()).await;
    assert!(!told.complete, "{told:?}");
    let message = &told.diagnostics[0].message;
    assert!(message.contains("v1beta1") && message.contains("v1alpha2"), "{message}");
    quiet(&mut watch).await;
    double.install(Resource::ClusterNetworkPolicies);
    complete(&mut watch).await;
}

/// What answers 404 to everything is no API server: it does not say that there are no objects.
#[tokio::test]
async fn a_404_that_is_not_the_api_servers_takes_nothing_away() {
    let double = Double::start().await;
    double.put(
        Resource::SecurityGroupPolicies,
        json!({
            "apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
            "metadata": {"namespace": "x", "name": "s"},
            "spec": {"podSelector": {}, "securityGroups": {"groupIds": ["sg-1"]}},
        }),
    );
    let mut watch = watching(&double);
    complete(&mut watch).await;
    double.fault(None, Fault::Status(404));
    double.cut();
    let told = until(&mut watch, |batch| batch.diagnostics.len() >= 7).await;
    assert!(told.delete.is_empty(), "{told:?}");
    quiet_of_deletes(&mut watch).await;
}

async fn quiet_of_deletes(watch: &mut Watch) {
    while let Ok(Some(batch)) = timeout(QUIET, watch.batches.recv()).await {
        assert!(batch.delete.is_empty(), "{batch:?}");
    }
}

#[tokio::test]
async fn an_api_server_that_is_not_there_at_the_start_is_told_and_waited_for() {
    let double = Double::start().await;
    double.put(Resource::Pods, pod("a", "u1", "web"));
    double.away(true);
    let mut watch = watching(&double);
    let told = until(&mut watch, |batch| batch.diagnostics.len() >= 7).await;
    assert!(!told.complete && told.apply.is_empty(), "{told:?}");
    assert!(told.diagnostics[0].message.contains("reached"), "{told:?}");
    double.away(false);
    assert_eq!(keys(&complete(&mut watch).await), ["Pod x/a"]);
}

#[tokio::test]
async fn silence_is_given_up() {
    let double = Double::start().await;
    double.put(Resource::Pods, pod("a", "u1", "web"));
    double.fault(Some(Resource::Pods), Fault::Silent);
    let mut watch =
        watching_with(&double, Settings { idle: Duration::from_millis(300), ..settings() });
    let told = until(&mut watch, |batch| !batch.diagnostics.is_empty()).await;
    assert!(told.diagnostics[0].message.contains("no answer within"), "{told:?}");
    double.mend(Some(Resource::Pods));
    complete(&mut watch).await;
    // A peer that is gone without a word: no bookmark comes, and the next connection resumes.
    let lists = double.lists(Resource::Pods);
    let requests = double.requests(Resource::Pods);
    double.requested(Resource::Pods, requests + 2).await;
    assert_eq!(double.lists(Resource::Pods), lists);
    double.put(Resource::Pods, pod("b", "u2", "web"));
    assert_eq!(keys(&until(&mut watch, |batch| !batch.apply.is_empty()).await), ["Pod x/b"]);
}

#[tokio::test]
async fn an_api_server_that_is_busy_is_left_alone_as_long_as_it_asks() {
    let double = Double::start().await;
    double.fault(Some(Resource::Services), Fault::Busy);
    let settings = Settings { retry_most: Duration::from_secs(1), ..settings() };
    let mut watch = watching_with(&double, settings);
    until(&mut watch, |batch| !batch.diagnostics.is_empty()).await;
    let (asked, since) = (double.requests(Resource::Services), Instant::now());
    double.requested(Resource::Services, asked + 1).await;
    assert!(since.elapsed() > Duration::from_millis(900), "{:?}", since.elapsed());
    double.mend(None);
    complete(&mut watch).await;
}

#[tokio::test]
async fn a_pod_that_the_watch_has_not_told_of_is_asked_for_by_name() {
    let double = Double::start().await;
    let mut watch = watching(&double);
    complete(&mut watch).await;
    double.hold(Resource::Pods, true);
    let soon = || Instant::now() + Duration::from_secs(10);
    // Asked for before it is there, then its predecessor, then it.
    watch.asking.pod("x", "a", Some("u2"), soon());
    double.put(Resource::Pods, pod("a", "u1", "web"));
    quiet(&mut watch).await;
    double.put(Resource::Pods, pod("a", "u2", "web"));
    assert_eq!(keys(&until(&mut watch, |_| true).await), ["Pod x/a"]);
    // What the watch tells late is older or the same.
    double.hold(Resource::Pods, false);
    quiet(&mut watch).await;
    double.put(Resource::Pods, pod("a", "u2", "db"));
    assert_eq!(keys(&until(&mut watch, |_| true).await), ["Pod x/a"]);
    // A static pod has the UID that its mirror is annotated with.
    double.hold(Resource::Pods, true);
    let mut mirror = pod("static", "other", "web");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
    double.put(Resource::Pods, mirror);
    watch.asking.pod("x", "static", Some("hash"), soon());
    let batch = until(&mut watch, |_| true).await;
    let veni_policy::object::Object::Pod(found) = &batch.apply[0] else { panic!("{batch:?}") };
    assert_eq!(found.uid.as_deref(), Some("hash"));
    watch.asking.pod("x/../../secrets", "a?b", None, soon());
    watch.asking.pod("x", "never", None, Instant::now() + Duration::from_millis(100));
    quiet(&mut watch).await;
}

/// A policy of a namespace that its watch does not tell of: the watch of pods does, or an answer.
#[tokio::test]
async fn a_new_pod_of_the_node_is_not_told_before_the_policies_that_are_older_than_it() {
    for asked in [false, true] {
        let double = Double::start().await;
        double.put(Resource::NetworkPolicies, policy("old"));
        let mut watch = watching(&double);
        complete(&mut watch).await;
        double.hold(Resource::NetworkPolicies, true);
        double.hold(Resource::Pods, asked);
        double.delete(Resource::NetworkPolicies, "x/old");
        double.put(Resource::NetworkPolicies, policy("closed"));
        let mut elsewhere = policy("elsewhere");
        elsewhere["metadata"]["namespace"] = "y".into();
        double.put(Resource::NetworkPolicies, elsewhere);
        double.put(Resource::Pods, pod("a", "u1", "web"));
        if asked {
            watch.asking.pod("x", "a", Some("u1"), Instant::now() + LONG);
        }
        let (mut told, mut gone) = (Vec::new(), Vec::new());
        while !told.contains(&"Pod x/a".to_owned()) {
            let batch = until(&mut watch, |_| true).await;
            told.extend(keys(&batch));
            gone.extend(batch.delete);
        }
        assert!(told.contains(&"NetworkPolicy x/closed".to_owned()), "{told:?}");
        assert_eq!(gone, [Key::new(Kind::NetworkPolicy, "x", "old")]);
        assert_eq!(double.parts(Resource::NetworkPolicies), 1, "asked once for the namespace");
        // What the watch tells late was told.
        double.hold(Resource::NetworkPolicies, false);
        let late = until(&mut watch, |_| true).await;
        assert_eq!(
            (keys(&late), late.delete),
            (vec!["NetworkPolicy y/elsewhere".to_owned()], vec![])
        );
        // A change of a pod that is known is told as it comes, and so is one of another node's.
        double.put(Resource::NetworkPolicies, policy("later"));
        until(&mut watch, |batch| !batch.apply.is_empty()).await;
        double.hold(Resource::Pods, false);
        let mut far = pod("far", "u2", "web");
        far["spec"]["nodeName"] = "node-b".into();
        double.put(Resource::Pods, pod("a", "u1", "db"));
        double.put(Resource::Pods, far);
        let mut told = Vec::new();
        while told.len() < 2 {
            told.extend(keys(&until(&mut watch, |_| true).await));
        }
        assert_eq!(told, ["Pod x/a", "Pod x/far"]);
        assert_eq!(double.parts(Resource::NetworkPolicies), 1);
    }
}

#[tokio::test]
async fn a_new_pod_of_the_node_waits_while_its_policies_cannot_be_read() {
    let double = Double::start().await;
    double.uninstall(Resource::ClusterNetworkPolicies, &[]);
    let mut watch = watching(&double);
    complete(&mut watch).await;
    double.fault(Some(Resource::NetworkPolicies), Fault::Status(500));
    double.put(Resource::Pods, pod("a", "u1", "web"));
    let mut far = pod("far", "u2", "web");
    far["spec"]["nodeName"] = "node-b".into();
    double.put(Resource::Pods, far);
    let others = until(&mut watch, |batch| !batch.apply.is_empty()).await;
    assert_eq!(keys(&others), ["Pod x/far"]);
    quiet(&mut watch).await;
    // One that goes meanwhile is not held on to.
    double.put(Resource::Pods, pod("short", "u3", "web"));
    double.delete(Resource::Pods, "x/short");
    double.mend(None);
    let told = until(&mut watch, |batch| !batch.apply.is_empty()).await;
    assert_eq!(keys(&told), ["Pod x/a"]);
}

/// After a start all pods of the node are new. One that the first batch lacked would be closed, though it runs.
#[tokio::test]
async fn the_first_batch_waits_for_the_nodes_pods_that_are_newer_than_its_policies() {
    for answers in [true, false] {
        let double = Double::start().await;
        double.fault(Some(Resource::Pods), Fault::Status(500));
        let settings = Settings { held_most: Duration::from_millis(600), ..settings() };
        let mut watch = watching_with(&double, settings);
        for resource in [
            Resource::Namespaces,
            Resource::NetworkPolicies,
            Resource::ClusterNetworkPolicies,
            Resource::SecurityGroupPolicies,
        ] {
            let listed = || double.lists(resource) > 0;
            double.until(listed, || format!("{resource} is not listed")).await;
        }
        double.put(Resource::Pods, pod("a", "u1", "web"));
        if !answers {
            double.fault(Some(Resource::NetworkPolicies), Fault::Status(403));
        }
        let since = Instant::now();
        double.mend(Some(Resource::Pods));
        let first = complete(&mut watch).await;
        let key = Key::new(Kind::Pod, "x", "a");
        if answers {
            assert_eq!((keys(&first), first.held), (vec!["Pod x/a".to_owned()], BTreeMap::new()));
            continue;
        }
        // What may not be read does not keep policy from beginning for ever.
        assert!(since.elapsed() > Duration::from_millis(500), "{:?}", since.elapsed());
        assert!(keys(&first).is_empty(), "{first:?}");
        let waits = &first.held[&key];
        let expected = "waits for networkpolicies.networking.k8s.io of namespace x as of version ";
        assert!(waits.starts_with(expected) && waits.contains("403"), "{waits}");
        double.mend(None);
        let told = until(&mut watch, |batch| !batch.apply.is_empty()).await;
        assert_eq!((keys(&told), told.held), (vec!["Pod x/a".to_owned()], BTreeMap::new()));
    }
}

#[tokio::test]
async fn a_new_pod_that_waits_for_long_says_for_what() {
    let double = Double::start().await;
    let settings = Settings { explain: Duration::from_millis(100), ..settings() };
    let mut watch = watching_with(&double, settings);
    complete(&mut watch).await;
    double.fault(Some(Resource::NetworkPolicies), Fault::Status(503));
    double.put(Resource::Pods, pod("a", "u1", "web"));
    let told = until(&mut watch, |batch| !batch.held.is_empty()).await;
    let waits = &told.held[&Key::new(Kind::Pod, "x", "a")];
    assert!(waits.contains("networkpolicies") && waits.contains("503"), "{waits}");
    quiet(&mut watch).await;
    double.mend(None);
    let told = until(&mut watch, |batch| !batch.apply.is_empty()).await;
    assert!(told.held.is_empty(), "{told:?}");
}

#[tokio::test]
async fn what_is_served_in_another_version_only_holds_no_new_pod() {
    let double = Double::start().await;
    let mut watch = watching(&double);
    complete(&mut watch).await;
    double.uninstall(Resource::ClusterNetworkPolicies, &["policy.networking.k8s.io/v1beta1"]);
    double.cut();
    let told = until(&mut watch, |batch| !batch.diagnostics.is_empty()).await;
    let about = &told.diagnostics[0];
    assert_eq!(about.object, "clusternetworkpolicies.policy.networking.k8s.io");
    assert!(about.message.contains("policy.networking.k8s.io/v1beta1"), "{about:?}");
    assert!(about.message.contains("new pods") && told.delete.is_empty(), "{told:?}");
    double.put(Resource::Pods, pod("a", "u1", "web"));
    let told = until(&mut watch, |batch| !batch.apply.is_empty()).await;
    assert_eq!(keys(&told), ["Pod x/a"]);
}

#[tokio::test]
async fn what_decides_about_a_new_pod_is_asked_for_ever_less_often() {
    let double = Double::start().await;
    let settings = Settings { retry_most: Duration::from_secs(5), ..settings() };
    let mut watch = watching_with(&double, settings);
    complete(&mut watch).await;
    double.fault(Some(Resource::NetworkPolicies), Fault::Status(404));
    double.put(Resource::Pods, pod("a", "u1", "web"));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let asked = double.parts(Resource::NetworkPolicies);
    // 25 to 50 ms after the first, and twice that each time.
    assert!((2..=7).contains(&asked), "{asked} times in 1.5 s");
}

#[tokio::test]
async fn an_answer_that_is_too_old_is_asked_for_again_ever_less_often() {
    let double = Double::start().await;
    let settings = Settings { retry_most: Duration::from_secs(5), ..settings() };
    let mut watch = watching_with(&double, settings);
    complete(&mut watch).await;
    double.fault(Some(Resource::NetworkPolicies), Fault::Old);
    double.put(Resource::Pods, pod("a", "u1", "web"));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let asked = double.parts(Resource::NetworkPolicies);
    assert!((2..=7).contains(&asked), "{asked} times in 1.5 s");
}

#[tokio::test]
async fn who_asks_for_what_decides_about_a_pod_leaves_a_busy_api_server_alone() {
    let double = Double::start().await;
    let settings = Settings { retry_most: Duration::from_secs(1), ..settings() };
    let mut watch = watching_with(&double, settings);
    complete(&mut watch).await;
    double.fault(Some(Resource::NetworkPolicies), Fault::Busy);
    double.put(Resource::Pods, pod("a", "u1", "web"));
    let asked = |times| {
        let double = &double;
        move || double.parts(Resource::NetworkPolicies) >= times
    };
    double.until(asked(1), || "not asked".to_owned()).await;
    let since = Instant::now();
    double.until(asked(2), || "not asked again".to_owned()).await;
    assert!(since.elapsed() > Duration::from_millis(900), "{:?}", since.elapsed());
}

#[tokio::test]
async fn the_services_ranges_come_beside_and_an_api_server_without_them_has_none() {
    let range = |cidrs: &[&str]| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs},
        })
    };
    let double = Double::start().await;
    double.put(Resource::ServiceCidrs, range(&["172.20.0.0/16", "fd00:20::/108"]));
    let mut watch = watching(&double);
    complete(&mut watch).await;
    let all = |watch: &Watch| watch.service_cidrs.borrow().clone();
    let mut changed = watch.service_cidrs.clone();
    drop(timeout(LONG, changed.wait_for(Option::is_some)).await.unwrap().unwrap());
    assert_eq!(all(&watch).unwrap()["kubernetes"], ["172.20.0.0/16", "fd00:20::/108"]);
    double.put(Resource::ServiceCidrs, range(&["172.20.0.0/15"]));
    let wider = |all: &Option<veni_watch::ServiceCidrs>| {
        all.as_ref().is_some_and(|all| all["kubernetes"] == ["172.20.0.0/15"])
    };
    drop(timeout(LONG, changed.wait_for(wider)).await.unwrap().unwrap());

    let double = Double::start().await;
    double.uninstall(Resource::ServiceCidrs, &[]);
    let mut watch = watching(&double);
    assert!(complete(&mut watch).await.diagnostics.is_empty());
    let mut changed = watch.service_cidrs.clone();
    drop(timeout(LONG, changed.wait_for(Option::is_some)).await.unwrap().unwrap());
    assert_eq!(all(&watch), Some(veni_watch::ServiceCidrs::new()));
}

#[tokio::test]
async fn a_policy_that_selects_nodes_waits_until_they_are_known() {
    let double = Double::start().await;
    double.put(Resource::OwnNode, node(NODE));
    double.put(Resource::OtherNodes, node("node-b"));
    let mut watch = watching(&double);
    let first = complete(&mut watch).await;
    assert_eq!(double.requests(Resource::OtherNodes), 0, "other nodes are not watched for nothing");
    assert!(!keys(&first).contains(&"Node node-b".to_owned()));
    double.fault(Some(Resource::OtherNodes), Fault::Status(403));
    double.put(
        Resource::ClusterNetworkPolicies,
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "no-nodes"},
            "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
                "egress": [{"action": "Deny", "to": [{"nodes": {}}]}]},
        }),
    );
    let told = until(&mut watch, |batch| !batch.diagnostics.is_empty()).await;
    assert!(!keys(&told).iter().any(|key| key.starts_with("ClusterNetworkPolicy")), "{told:?}");
    double.mend(None);
    let mut told = Vec::new();
    while !told.contains(&"ClusterNetworkPolicy no-nodes".to_owned()) {
        told.extend(keys(&until(&mut watch, |batch| !batch.apply.is_empty()).await));
    }
    assert!(told.contains(&"Node node-b".to_owned()), "{told:?}");
}

#[tokio::test]
async fn what_cannot_be_read_any_more_stays_as_it_was() {
    let double = Double::start().await;
    let service = |port: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "x", "name": "s"},
            "spec": {"clusterIP": "10.100.0.1", "ports": [{"port": port}]},
        })
    };
    double.put(Resource::Services, service(80.into()));
    let mut watch = watching(&double);
    complete(&mut watch).await;
    double.put(Resource::Services, service("eighty".into()));
    let told = until(&mut watch, |_| true).await;
    assert!(told.apply.is_empty() && told.delete.is_empty(), "{told:?}");
    assert!(told.diagnostics.iter().any(|wrong| wrong.message.contains("previous version")));
    double.put(Resource::Services, service(80.into()));
    let mended = until(&mut watch, |_| true).await;
    assert!(mended.apply.is_empty() && mended.diagnostics.is_empty(), "{mended:?}");
}

#[tokio::test]
async fn the_nodes_own_configuration_comes_beside() {
    let double = Double::start().await;
    let eni_config = |subnet: &str| {
        json!({
            "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig",
            "metadata": {"name": "pods"}, "spec": {"subnet": subnet},
        })
    };
    double.put(Resource::EniConfigs, eni_config("subnet-1"));
    let mut watch = watching(&double);
    complete(&mut watch).await;
    double.put(Resource::OwnNode, node(NODE));
    let config = |watch: &Watch| watch.configuration.borrow().clone();
    let mut changed = watch.configuration.clone();
    let wait = changed.wait_for(|now| now.node.is_some() && now.eni_configs.is_some());
    drop(timeout(LONG, wait).await.unwrap().unwrap());
    let now = config(&watch);
    let labels = now.node.clone().unwrap();
    let chosen = veni_eniconfig_crd::eni_config::chosen(
        &labels.labels,
        &labels.annotations,
        &veni_eniconfig_crd::eni_config::Keys::default(),
    );
    assert_eq!(chosen.name, "pods");
    let known = |now: &veni_watch::Configuration| now.eni_configs.as_ref().unwrap()["pods"].clone();
    let first = known(&now);
    assert!(first.value.is_some() && first.problems.is_empty());
    double.put(Resource::EniConfigs, eni_config("eni-1"));
    let wait = changed.wait_for(|now| !known(now).problems.is_empty());
    drop(timeout(LONG, wait).await.unwrap().unwrap());
    assert_eq!(known(&config(&watch)).value, first.value, "the last that was sound");
    double.delete(Resource::EniConfigs, "pods");
    let wait = changed.wait_for(|now| now.eni_configs.as_ref().is_some_and(|all| all.is_empty()));
    drop(timeout(LONG, wait).await.unwrap().unwrap());
}
