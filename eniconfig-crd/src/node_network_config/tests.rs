use serde_json::json;

use super::*;

fn object(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "veni.dev/v1alpha1", "kind": "NodeNetworkConfig",
        "metadata": {"name": name, "generation": 3}, "spec": spec,
    })
}

#[test]
fn settings_that_are_named_take_the_place_of_the_nodes_and_no_others() {
    let mut base = Config::default();
    base.targets.warm_ip = 5;
    base.max_eni = Some(4);
    let check = |pool: Value, change: &dyn Fn(&mut Config)| {
        let config =
            NodeNetworkConfig::parse(&object("a", &json!({"nodeSelector": {}, "pool": pool})));
        let mut expected = base.clone();
        change(&mut expected);
        assert_eq!(config.unwrap().overrides.over(&base), expected, "{pool}");
    };
    check(json!({"warmENITarget": 2}), &|c| c.targets.warm_eni = 2);
    check(json!({"warmIPTarget": 0}), &|c| c.targets.warm_ip = 0);
    check(json!({"minimumIPTarget": 20}), &|c| c.targets.minimum_ip = 20);
    check(json!({"warmPrefixTarget": 1}), &|c| c.targets.warm_prefix = 1);
    check(json!({"maxENI": 2}), &|c| c.max_eni = Some(2));
    check(json!({"maxPods": 58}), &|c| c.max_pods = Some(58));
    check(json!({"cooldownSeconds": 60}), &|c| c.cooldown = Duration::from_secs(60));
    check(json!({"disableProvisioning": true}), &|c| c.disable_provisioning = true);
    check(json!({"warmIPTarget": 1, "maxENI": 9}), &|c| {
        c.targets.warm_ip = 1;
        c.max_eni = Some(9);
    });
}

#[test]
fn what_is_wrong_is_told_with_its_field() {
    let check = |spec: Value, expected: &[&str]| {
        let problems = NodeNetworkConfig::parse(&object("a", &spec)).expect_err(&spec.to_string());
        let found: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(found, expected, "{spec}: {problems:?}");
    };
    check(json!({"nodeSelector": {}, "pool": {}}), &["spec.pool"]);
    check(
        json!({"nodeSelector": {}, "pool": {"maxENI": 0, "maxPods": 0, "cooldownSeconds": 86401}}),
        &["spec.pool.maxENI", "spec.pool.maxPods", "spec.pool.cooldownSeconds"],
    );
    check(json!({"nodeSelector": {}, "pool": {"warmIpTarget": 1}}), &["spec"]);
    check(json!({"nodeSelector": {}, "pool": {"warmIPTarget": -1}}), &["spec"]);
    check(json!({"pool": {"maxENI": 1}}), &["spec"]);
    check(
        json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}, "pool": {"maxENI": 1}}),
        &["spec.nodeSelector.matchExpressions[0].operator"],
    );
}

#[test]
fn of_several_that_select_a_node_the_highest_priority_wins_then_the_first_name() {
    let config = |name: &str, priority: i32, selector: Value| {
        let spec = json!({"nodeSelector": selector, "priority": priority, "pool": {"maxENI": 1}});
        NodeNetworkConfig::parse(&object(name, &spec)).unwrap()
    };
    let gpu = || json!({"matchLabels": {"gpu": "yes"}});
    let all = [
        config("z-everyone", 0, json!({})),
        config("b-gpu", 10, gpu()),
        config("a-gpu", 10, gpu()),
        config("other", 99, json!({"matchLabels": {"gpu": "no"}})),
    ];
    let check = |labels: &[(&str, &str)], expected: Option<&str>| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(
            in_force(&all, &labels).map(|config| config.name.as_str()),
            expected,
            "{labels:?}"
        );
    };
    check(&[], Some("z-everyone"));
    check(&[("gpu", "yes")], Some("a-gpu"));
    check(&[("gpu", "no")], Some("other"));
    assert_eq!(in_force(&all[1..2], &Labels::new()), None);
    assert_eq!(all[0].generation, 3);
}
