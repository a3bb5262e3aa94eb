//! Objects that come, change and go under the base policy.

use serde_json::json;

use super::super::manifest::{expression, labels, namespace, network_policy};
use super::{Addresses, Base, Case, Direction, Theme, World};

/// One port by name; a namespace and a pod come and go.
pub(super) fn example(addresses: Addresses<'_>) -> Vec<Case> {
    let mut world = World::new(addresses);
    let rules = json!([{"ports": [{"port": "serve-81-tcp"}]}]);
    world.put(network_policy("x", "allow-all", &json!({}), Some(rules), None));
    world.probe();
    world.put(namespace("w", &json!({"ns": "w"})));
    world.pod("w", "a", &json!({"pod": "a"}));
    world.probe();
    world.delete("Pod", "w", "a");
    world.probe();
    world.delete("Namespace", "", "w");
    world.probe();
    vec![world.case(Theme::Example, "example: ingress on one named port")]
}

pub(super) fn cases(addresses: Addresses<'_>) -> Vec<Case> {
    vec![
        policy_goes(addresses),
        policy_changes(addresses),
        namespace_comes_and_goes(addresses),
        namespace_is_labelled(addresses),
        pod_comes_and_goes(addresses),
        pod_is_labelled(addresses),
    ]
}

fn policy_goes(addresses: Addresses<'_>) -> Case {
    let mut world = World::new(addresses);
    world.put(Base::new().manifest());
    world.probe();
    world.delete("NetworkPolicy", "x", "base");
    world.probe();
    world.case(Theme::Action, "action: create and delete a policy")
}

fn policy_changes(addresses: Addresses<'_>) -> Case {
    let mut world = World::new(addresses);
    world.put(Base::new().manifest());
    world.probe();
    let mut base = Base::new();
    base.rule(Direction::Ingress)["ports"] = json!([{"protocol": "UDP", "port": "serve-81-udp"}]);
    world.put(base.manifest());
    world.probe();
    world.case(Theme::Action, "action: update a policy")
}

fn namespace_comes_and_goes(addresses: Addresses<'_>) -> Case {
    let mut world = World::new(addresses);
    world.put(Base::new().manifest());
    world.probe();
    world.put(namespace("y-2", &json!({"ns": "y"})));
    world.pod("y-2", "a", &json!({"pod": "a"}));
    world.pod("y-2", "b", &json!({"pod": "b"}));
    world.probe();
    world.delete("Namespace", "", "y-2");
    world.probe();
    world.case(Theme::Action, "action: create and delete a namespace")
}

fn namespace_is_labelled(addresses: Addresses<'_>) -> Case {
    let mut world = World::new(addresses);
    let mut base = Base::new();
    base.rule(Direction::Ingress)["from"] =
        json!([{"namespaceSelector": labels(&json!({"new-ns": "qrs"}))}]);
    world.put(base.manifest());
    world.probe();
    world.put(namespace("y", &json!({"ns": "y", "new-ns": "qrs"})));
    world.probe();
    world.put(namespace("y", &json!({"ns": "y"})));
    world.probe();
    world.case(Theme::Action, "action: label a namespace and back")
}

fn pod_comes_and_goes(addresses: Addresses<'_>) -> Case {
    let mut world = World::new(addresses);
    world.put(Base::new().manifest());
    world.probe();
    world.pod("x", "d", &json!({"pod": "d"}));
    world.probe();
    world.delete("Pod", "x", "d");
    world.probe();
    world.case(Theme::Action, "action: create and delete a pod")
}

fn pod_is_labelled(addresses: Addresses<'_>) -> Case {
    let mut world = World::new(addresses);
    let mut base = Base::new();
    base.rule(Direction::Ingress)["from"] = json!([{
        "podSelector": labels(&json!({"new-label": "abc"})),
        "namespaceSelector": expression("ns", "In", &["y", "z"]),
    }]);
    world.put(base.manifest());
    world.probe();
    world.pod("y", "b", &json!({"pod": "b", "new-label": "abc"}));
    world.probe();
    world.pod("y", "b", &json!({"pod": "b"}));
    world.probe();
    world.case(Theme::Action, "action: label a pod and back")
}
