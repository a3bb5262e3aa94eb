//! What is written to the API server.

#![expect(clippy::unwrap_used, reason = "what cannot be so ends the test")]

use veni_watch::{About, Followed, Happening, Network};

use super::{double::Write, *};

fn config(name: &str, generation: u32) -> Value {
    json!({
        "apiVersion": "veni.dev/v1alpha1", "kind": "NodeNetworkConfig",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": generation},
        "spec": {"nodeSelector": {}, "pool": {"warmIPTarget": 5}},
    })
}

fn follows(name: &str, generation: i64) -> Option<Option<Followed>> {
    Some(Some(Followed { name: name.to_owned(), generation, message: None }))
}

fn entries(double: &Double, name: &str) -> Vec<(String, i64)> {
    let object = double.object(Resource::NodeNetworkConfigs, name).unwrap();
    let entries = object["status"]["nodes"].as_array().cloned().unwrap_or_default();
    let entry = |entry: &Value| {
        (entry["name"].as_str().unwrap().to_owned(), entry["generation"].as_i64().unwrap())
    };
    entries.iter().map(entry).collect()
}

/// Waits until the entries are these.
async fn stands(double: &Double, name: &str, expected: &[(&str, i64)]) {
    let expected: Vec<_> = expected.iter().map(|(name, of)| ((*name).to_owned(), *of)).collect();
    double
        .until(|| entries(double, name) == expected, || format!("{:?}", entries(double, name)))
        .await;
}

fn no_address(pod: &str) -> Happening {
    Happening {
        about: About::Pod {
            namespace: "x".to_owned(),
            name: pod.to_owned(),
            uid: Some("u1".to_owned()),
        },
        warning: true,
        reason: "NoPodAddress",
        action: "AssignAddress",
        note: "the subnet is full".to_owned(),
    }
}

fn is_event(write: &Write) -> bool {
    write.content == "POST application/json"
}

#[tokio::test]
async fn a_node_keeps_its_own_entry_of_the_objects_that_it_follows_and_no_other() {
    let double = Double::start().await;
    double.put(Resource::OwnNode, node(NODE));
    double.put(Resource::OtherNodes, node("node-b"));
    let mut first = config("large", 3);
    // One of before this daemon, one of another that lives, one of another that is gone.
    first["status"] = json!({"nodes": [
        {"name": NODE, "generation": 1}, {"name": "node-b", "generation": 3}, {"name": "node-z", "generation": 2},
    ]});
    double.put(Resource::NodeNetworkConfigs, first);
    let mut second = config("small", 1);
    second["status"] = json!({"nodes": [{"name": NODE, "generation": 1}]});
    double.put(Resource::NodeNetworkConfigs, second);
    let watch = watching(&double);
    watch.reports.stand(|standing| standing.following = follows("large", 3));
    stands(&double, "small", &[]).await;
    stands(&double, "large", &[("node-b", 3), ("node-z", 2), (NODE, 3)]).await;
    let write = double.wrote(|write| write.target.contains("/large/status")).await;
    assert_eq!(write.content, "PATCH application/apply-patch+yaml");
    assert!(
        write.target.ends_with("?fieldManager=veni-ipamd.node-a&force=true"),
        "{}",
        write.target
    );
    // The one behind this node in the ring lives; once it is gone, the next is looked after.
    double.delete(Resource::OtherNodes, "node-b");
    stands(&double, "large", &[(NODE, 3)]).await;

    watch.reports.stand(|standing| standing.following = Some(None));
    stands(&double, "large", &[]).await;
    let written = double.writes().len();
    tokio::time::sleep(QUIET).await;
    assert_eq!(double.writes().len(), written, "nothing is written twice");
}

#[tokio::test]
async fn the_same_settings_again_are_another_generation_and_a_status_is_none() {
    let double = Double::start().await;
    double.put(Resource::NodeNetworkConfigs, config("large", 1));
    let watch = watching(&double);
    let mut changed = watch.configuration.clone();
    let is_of = |generation: i64| {
        move |now: &std::sync::Arc<veni_watch::Configuration>| {
            let known = now.node_network_configs.as_ref().and_then(|all| all.get("large"));
            known.is_some_and(|known| {
                let in_force = known.value.as_ref().map(|value| value.generation);
                (known.generation, in_force) == (generation, Some(generation))
            })
        }
    };
    drop(timeout(LONG, changed.wait_for(is_of(1))).await.expect("told within 20 s").unwrap());
    double.put(Resource::NodeNetworkConfigs, config("large", 2));
    drop(timeout(LONG, changed.wait_for(is_of(2))).await.expect("told within 20 s").unwrap());
    let mut reported = config("large", 2);
    reported["status"] = json!({"nodes": [{"name": "node-b", "generation": 2}]});
    double.put(Resource::NodeNetworkConfigs, reported);
    let news = timeout(QUIET, changed.changed()).await;
    assert!(news.is_err(), "a status changes nothing");
}

#[tokio::test]
async fn a_status_that_is_full_takes_no_more_entries() {
    let double = Double::start().await;
    let mut full = config("large", 1);
    let nodes = (0..10).map(|n| json!({"name": format!("a-{n:03}"), "generation": 1}));
    full["status"] = json!({"nodes": nodes.collect::<Vec<_>>()});
    double.put(Resource::NodeNetworkConfigs, full);
    for n in 0..10 {
        double.put(Resource::OtherNodes, node(&format!("a-{n:03}")));
    }
    let watch = watching(&double);
    watch.reports.stand(|standing| standing.following = follows("large", 1));
    tokio::time::sleep(QUIET).await;
    assert!(double.writes().is_empty(), "{:?}", double.writes());
    // One place is free, because a node is gone.
    double.delete(Resource::OtherNodes, "a-000");
    double
        .until(
            || entries(&double, "large").iter().any(|(name, _)| name == NODE),
            || "no entry".to_owned(),
        )
        .await;
    assert_eq!(entries(&double, "large").len(), 10);
}

/// All nodes hear in the same second that some other object has changed.
#[tokio::test]
async fn a_node_looks_at_the_object_that_it_follows_for_news_of_its_own_only() {
    let double = Double::start().await;
    double.put(Resource::OwnNode, node(NODE));
    double.put(Resource::NodeNetworkConfigs, config("large", 1));
    let seldom = Settings { tidy: Duration::from_secs(600), ..settings() };
    let Watch { mut batches, configuration, reports, .. } = watching_with(&double, seldom);
    tokio::spawn(async move { while batches.recv().await.is_some() {} });
    reports.stand(|standing| standing.following = follows("large", 1));
    stands(&double, "large", &[(NODE, 1)]).await;
    let asked = double.named(Resource::NodeNetworkConfigs);
    let mut changed = configuration;
    for generation in 1..20 {
        let mut labelled = node(NODE);
        labelled["metadata"]["labels"]["step"] = generation.to_string().into();
        double.put(Resource::OwnNode, labelled);
        let known = |now: &std::sync::Arc<veni_watch::Configuration>| {
            let node = now.node.as_ref();
            node.and_then(|node| node.labels.get("step")) == Some(&generation.to_string())
        };
        drop(timeout(LONG, changed.wait_for(known)).await.expect("told within 20 s").unwrap());
    }
    reports.stand(|standing| standing.following = follows("large", 2));
    stands(&double, "large", &[(NODE, 2)]).await;
    assert_eq!(double.named(Resource::NodeNetworkConfigs), asked + 1);
}

fn group_policy() -> Value {
    json!({
        "apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
        "metadata": {"namespace": "x", "name": "web"},
        "spec": {"podSelector": {}, "securityGroups": {"groupIds": ["sg-1"]}},
    })
}

/// EKS' webhook has pods of SecurityGroupPolicies request a branch ENI each, which no node without a trunk offers.
#[tokio::test]
async fn a_node_offers_room_for_pods_with_security_groups_and_again_when_the_kubelet_took_it_back()
{
    let double = Double::start().await;
    let registered = |capacity: Value| {
        let mut node = node(NODE);
        node["status"]["capacity"] = capacity;
        node
    };
    double.put(Resource::OwnNode, registered(json!({"cpu": "2", "pods": "58"})));
    let mut watch = watching(&double);
    complete(&mut watch).await;
    tokio::time::sleep(QUIET).await;
    assert!(double.writes().is_empty(), "nobody asks for it: {:?}", double.writes());
    double.put(Resource::SecurityGroupPolicies, group_policy());
    let offers = |write: &Write| {
        write.target == "/api/v1/nodes/node-a/status"
            && write.content == "PATCH application/strategic-merge-patch+json"
            && write.body == json!({"status": {"capacity": {"vpc.amazonaws.com/pod-eni": "58"}}})
    };
    double.wrote(offers).await;
    let offered = |double: &Double| double.writes().iter().filter(|write| offers(write)).count();
    let capacity = |number: &str| json!({"pods": "58", "vpc.amazonaws.com/pod-eni": number});
    double.put(Resource::OwnNode, registered(capacity("58")));
    tokio::time::sleep(QUIET).await;
    assert_eq!(offered(&double), 1, "said once");
    // As after a boot.
    double.put(Resource::OwnNode, registered(capacity("0")));
    double.until(|| offered(&double) == 2, || format!("{:?}", double.writes())).await;
    // EKS' own controller, of a node with a trunk ENI.
    double.put(Resource::OwnNode, registered(capacity("9")));
    tokio::time::sleep(QUIET).await;
    assert_eq!(offered(&double), 2);
}

#[tokio::test]
async fn a_pods_addresses_are_annotated_however_much_else_is_told_and_once_the_api_server_is_back()
{
    let double = Double::start().await;
    let watch = watching(&double);
    double.fault(None, Fault::Writes(503));
    for n in 0..2000 {
        watch.reports.happened(no_address(&format!("p{n}")));
    }
    let pod = |n: u32| About::Pod {
        namespace: "x".to_owned(),
        name: format!("a{n}"),
        uid: Some(format!("u{n}")),
    };
    for n in 0..300 {
        watch.reports.annotate(pod(n), "10.0.0.7".to_owned());
    }
    watch.reports.annotate(pod(299), "10.0.0.8".to_owned());
    let is_annotation = |write: &Write| write.target.ends_with("/status");
    double.wrote(is_annotation).await;
    double.mend(None);
    let last = "/api/v1/namespaces/x/pods/a299/status";
    let write = double.wrote(|write| write.target == last).await;
    assert_eq!(write.content, "PATCH application/merge-patch+json");
    let annotations = json!({"vpc.amazonaws.com/pod-ips": "10.0.0.8"});
    assert_eq!(write.body, json!({"metadata": {"uid": "u299", "annotations": annotations}}));
    let written = || {
        let targets = double.writes().into_iter().filter(is_annotation).map(|write| write.target);
        targets.collect::<std::collections::BTreeSet<_>>().len()
    };
    double.until(|| written() == 300, || format!("{}", written())).await;
}

#[tokio::test]
async fn events_are_written_once_and_with_the_api_server_gone_they_are_dropped_and_counted() {
    let double = Double::start().await;
    let watch = watching(&double);
    for _ in 0..3 {
        watch.reports.happened(no_address("a"));
    }
    let write = double.wrote(is_event).await;
    assert_eq!(write.target, "/apis/events.k8s.io/v1/namespaces/x/events");
    let regarding =
        json!({"apiVersion": "v1", "kind": "Pod", "namespace": "x", "name": "a", "uid": "u1"});
    assert_eq!(write.body["regarding"], regarding);
    assert_eq!(
        (&write.body["reason"], &write.body["type"]),
        (&json!("NoPodAddress"), &json!("Warning"))
    );
    tokio::time::sleep(QUIET).await;
    assert_eq!(double.writes().iter().filter(|write| is_event(write)).count(), 1);

    double.away(true);
    let began = Instant::now();
    for n in 0..2000 {
        watch.reports.happened(no_address(&format!("p{n}")));
    }
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waits for the API server");
    let counters = watch.reports.counters();
    // The first of all was written, and one that was under way may have been.
    let lost = || {
        use std::sync::atomic::Ordering::Relaxed;
        let (dropped, failed) = (counters.dropped.load(Relaxed), counters.failed.load(Relaxed));
        let written = counters.written.load(Relaxed) - 1;
        (dropped, failed + written + counters.limited.load(Relaxed))
    };
    double.until(|| lost().0 + lost().1 == 2000, || format!("{:?}", lost())).await;
    assert!(lost().0 > 1000, "the queue is bounded: {:?}", lost());
}

#[tokio::test]
async fn the_nodes_condition_and_its_startup_taint_follow_and_a_node_registered_anew_gets_them_again()
 {
    let double = Double::start().await;
    let taint = json!({"key": "veni.dev/starting", "effect": "NoSchedule"});
    let registered = |uid: &str| {
        let mut node = node(NODE);
        node["metadata"]["uid"] = uid.into();
        node["spec"] =
            json!({"taints": [{"key": "theirs", "effect": "NoSchedule"}, taint.clone()]});
        node
    };
    double.put(Resource::OwnNode, registered("u1"));
    let watch = watching(&double);
    let network = |available| Network { available, reason: "Word", message: "words".to_owned() };
    watch.reports.stand(|standing| {
        standing.startup_taint = Some("veni.dev/starting".to_owned());
        standing.network = Some(network(false));
    });
    let condition = |write: &Write, status: &str| {
        write.target == "/api/v1/nodes/node-a/status"
            && write.content == "PATCH application/strategic-merge-patch+json"
            && write.body["status"]["conditions"][0]["status"] == status
    };
    double.wrote(|write| condition(write, "True")).await;
    let untaint = |write: &Write| write.target == "/api/v1/nodes/node-a";
    assert!(!double.writes().iter().any(untaint), "not before there is an address");
    watch.reports.stand(|standing| {
        standing.able = true;
        standing.network = Some(network(true));
    });
    double.wrote(|write| condition(write, "False")).await;
    let write = double.wrote(untaint).await;
    assert_eq!(write.content, "PATCH application/json-patch+json");
    assert_eq!(write.body[1]["value"], json!([{"key": "theirs", "effect": "NoSchedule"}]));

    let before = double.writes().len();
    double.put(Resource::OwnNode, registered("u2"));
    double.until(|| double.writes().len() >= before + 2, || format!("{:?}", double.writes())).await;
}

#[tokio::test]
async fn what_could_not_be_written_is_written_once_it_can_as_it_is_then() {
    let double = Double::start().await;
    double.put(Resource::OwnNode, node(NODE));
    double.fault(None, Fault::Writes(500));
    let watch = watching(&double);
    let stand = |message: &str| {
        let network = Network { available: true, reason: "Word", message: message.to_owned() };
        watch.reports.stand(|standing| standing.network = Some(network));
    };
    stand("early");
    double.wrote(|write| write.target.ends_with("/status")).await;
    stand("late");
    double.mend(None);
    let message = |write: &Write| write.body["status"]["conditions"][0]["message"].clone();
    double.wrote(|write| message(write) == "late").await;
}
