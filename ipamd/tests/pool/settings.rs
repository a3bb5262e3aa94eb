//! NodeNetworkConfig over the simulator: the pool follows it while the daemon runs, and no pod notices.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use veni_core::wire::inspect::{Overrides, View};
use veni_eniconfig_crd::NodeNetworkConfig;
use veni_ipamd::following::{Heard, Known};

use super::*;

/// What the daemon's own variables ask for.
fn own() -> Config {
    Config {
        targets: Targets { warm_ip: 3, minimum_ip: 3, ..Targets::default() },
        cooldown: Duration::from_secs(5),
        ..Config::default()
    }
}

async fn node() -> Node {
    let node = Node::start(NodeSpec::instant(own())).await;
    node.settle().await;
    node
}

fn known(name: &str, generation: i64, spec: &Value) -> (String, Known) {
    let object =
        json!({"metadata": {"name": name, "generation": generation}, "spec": spec.clone()});
    let read = NodeNetworkConfig::parse(&object);
    let problem = read.as_ref().err().map(|problems| problems[0].to_string());
    (name.to_owned(), Known { uid: format!("uid-{name}"), generation, value: read.ok(), problem })
}

fn heard(label: &str, configs: &[(&str, i64, Value)]) -> Heard {
    Heard {
        labels: [("size".to_owned(), label.to_owned())].into(),
        configs: configs
            .iter()
            .map(|(name, generation, spec)| known(name, *generation, spec))
            .collect(),
    }
}

/// For nodes with the label `size: large`.
fn large(pool: &Value) -> Value {
    json!({"nodeSelector": {"matchLabels": {"size": "large"}}, "pool": pool})
}

async fn add(node: &Node, pods: std::ops::Range<u32>) -> Vec<Ipv4Addr> {
    let mut addresses = Vec::new();
    for n in pods {
        addresses.push(node.add(n).await.address);
    }
    addresses
}

fn on_pods(view: &View) -> Vec<Ipv4Addr> {
    let assigned = view.addresses.iter().filter(|address| address.state == "assigned");
    assigned.map(|address| address.address).collect()
}

/// Until growing, cooling and giving back have come to an end.
async fn rest(node: &Node) -> View {
    tokio::time::sleep(Duration::from_secs(600)).await;
    node.settle().await
}

fn of(object: &str, generation: i64, variables: &[&str]) -> Overrides {
    Overrides {
        object: format!("NodeNetworkConfig {object}"),
        generation,
        variables: variables.iter().map(|name| (*name).to_owned()).collect(),
    }
}

#[tokio::test(start_paused = true)]
async fn the_pool_follows_an_object_that_comes_changes_and_goes_and_pods_keep_their_addresses() {
    let node = node().await;
    let pods = add(&node, 1..5).await;
    let alone = rest(&node).await;
    assert_eq!((alone.pool.available, alone.overrides), (3, None));

    node.configure(Some(heard("large", &[("large", 1, large(&json!({"warmIPTarget": 20})))])));
    let grown = rest(&node).await;
    assert_eq!(grown.pool.available, 20);
    assert_eq!(grown.overrides, Some(of("large", 1, &["WARM_IP_TARGET"])));
    assert_eq!(grown.settings["WARM_IP_TARGET"], "20");
    assert_eq!(grown.settings["MINIMUM_IP_TARGET"], "3", "what it does not set is the daemon's");
    assert!(grown.enis.len() > 1, "20 more do not fit on one: {:?}", grown.enis);
    let metrics = node.metrics().text();
    assert!(
        metrics.contains("veni_node_network_config_generation{name=\"large\"} 1\n"),
        "{metrics}"
    );

    let changed = large(&json!({"warmIPTarget": 6, "maxENI": 1}));
    node.configure(Some(heard("large", &[("large", 2, changed)])));
    let shrunk = rest(&node).await;
    assert_eq!((shrunk.pool.available, shrunk.enis.len(), shrunk.node.max_enis), (6, 1, 1));
    assert_eq!(shrunk.overrides, Some(of("large", 2, &["WARM_IP_TARGET", "MAX_ENI"])));

    // The node is another one's now.
    let small = heard("small", &[("large", 2, large(&json!({"warmIPTarget": 6})))]);
    node.configure(Some(small));
    let back = rest(&node).await;
    let mut kept = on_pods(&back);
    kept.sort_by_key(|address| pods.iter().position(|pod| pod == address));
    assert_eq!(kept, pods, "no pod has noticed");
    assert_eq!((back.pool.available, back.overrides, back.node.max_enis), (3, None, 4));
    assert!(!node.metrics().text().contains("config_generation{"), "{}", node.metrics().text());
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_wrong_is_named_and_what_was_in_force_stays() {
    let node = node().await;
    let wrong = large(&json!({"warmIPTarget": 9, "maxENI": 0}));
    node.configure(Some(heard("large", &[("large", 1, wrong)])));
    let view = rest(&node).await;
    assert_eq!((view.pool.available, view.overrides), (3, None), "never applied in part");
    let problem = view.problems.iter().find(|problem| problem.kind == "node_network_config");
    let problem = problem.expect("it is reported");
    assert!(
        problem.message.contains("NodeNetworkConfig large, generation 1")
            && problem.message.contains("spec.pool.maxENI: must be 1 or more"),
        "{problem:?}"
    );
    node.configure(Some(heard("large", &[("large", 2, large(&json!({"warmIPTarget": 9})))])));
    let view = rest(&node).await;
    assert_eq!(view.pool.available, 9);
    let told = node.told().following().flatten().expect("the cluster is told");
    assert_eq!((told.generation, told.message), (2, None));
    let worse = large(&json!({"warmIPTarget": 9, "maxENI": 0}));
    let mut again = heard("large", &[("large", 3, worse)]);
    // As the watch has it: the last version that could be read.
    again.configs.get_mut("large").unwrap().value =
        heard("large", &[("large", 2, large(&json!({"warmIPTarget": 9})))]).configs["large"]
            .value
            .clone();
    node.configure(Some(again));
    assert_eq!(rest(&node).await.overrides.map(|of| of.generation), Some(2));
    let told = node.told().following().flatten().expect("the cluster is told");
    let message = told.message.expect("why it is not the present one");
    assert!(told.generation == 2 && message.contains("generation 3, cannot be used"), "{message}");
    node.configure(Some(heard("large", &[("large", 4, large(&json!({"warmIPTarget": 9})))])));
    let view = rest(&node).await;
    assert!(view.problems.is_empty(), "{:?}", view.problems);
}

#[tokio::test(start_paused = true)]
async fn advice_names_the_object_that_sets_a_limit_and_not_the_variable_that_it_overrides() {
    for (pool, expect, variable) in [
        (
            json!({"maxENI": 1}),
            [
                "that maxENI=1 of NodeNetworkConfig large allows",
                "raise maxENI of NodeNetworkConfig large (the instance type takes 4 ENIs",
            ],
            "MAX_ENI",
        ),
        (
            json!({"maxPods": 14}),
            ["has reached maxPods of NodeNetworkConfig large (14 addresses", "raise it"],
            "VENI_MAX_PODS",
        ),
        (
            json!({"disableProvisioning": true}),
            ["disableProvisioning of NodeNetworkConfig large is set", "unset it"],
            "DISABLE_NETWORK_RESOURCE_PROVISIONING",
        ),
    ] {
        let node = node().await;
        assert_all_wired(&add_all(&node, 0..11).await);
        node.settle().await;
        node.configure(Some(heard("large", &[("large", 1, large(&pool))])));
        drop(add_all(&node, 11..14).await);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let refused = node.begin_add(14).await;
        let Some(ReplyBody::Error(error)) = refused else { panic!("{pool}: {refused:?}") };
        let message = error.message;
        assert!(expect.iter().all(|part| message.contains(part)), "{pool}: {message}");
        assert!(!message.contains(variable), "{pool}: {message}");
        let reasons = node.view().await.plan.reasons;
        assert!(reasons.iter().all(|reason| !reason.contains(variable)), "{reasons:?}");
        // As the daemon's own variables say again.
        node.configure(Some(heard("large", &[])));
        node.add(14).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_with_what_was_in_force_until_the_cluster_says_otherwise() {
    let mut node = node().await;
    node.configure(Some(heard("large", &[("large", 7, large(&json!({"warmIPTarget": 12})))])));
    assert_eq!(rest(&node).await.pool.available, 12);
    // The API server is away: nothing is heard.
    node.kill().await;
    node.configure(None);
    node.boot().await;
    let view = rest(&node).await;
    assert_eq!(view.pool.available, 12);
    assert_eq!(view.overrides, Some(of("large", 7, &["WARM_IP_TARGET"])));
    node.configure(Some(heard("large", &[])));
    assert_eq!(rest(&node).await.pool.available, 3, "it was deleted meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_cooldown_is_changed_for_addresses_that_cool_already() {
    let node = node().await;
    add(&node, 1..2).await;
    let long = |secs: u32| large(&json!({"cooldownSeconds": secs}));
    node.configure(Some(heard("large", &[("large", 1, long(3600))])));
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.del(1).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(node.view().await.pool.cooling, 1, "for an hour");
    node.configure(Some(heard("large", &[("large", 2, long(1))])));
    assert_eq!(rest(&node).await.pool.cooling, 0);
}
