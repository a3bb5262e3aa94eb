//! Thirteen of Kubernetes' own cases, on all nine pods and all ports.

use serde_json::{Value, json};

use super::super::manifest::{expression, labels, namespace, network_policy};
use super::{Addresses, Case, Theme, World, dns_rule, one_step};

pub(super) fn cases(addresses: Addresses<'_>) -> Vec<Case> {
    let mut cases = single(addresses);
    cases.extend(stacked(addresses));
    cases.extend(updated(addresses));
    cases
}

fn in_x(name: &str, selector: &Value, ingress: Option<Value>, egress: Option<Value>) -> Value {
    network_policy("x", name, selector, ingress, egress)
}

fn pod(name: &str) -> Value {
    labels(&json!({"pod": name}))
}

/// Cases of one step.
fn single(addresses: Addresses<'_>) -> Vec<Case> {
    let everyone = json!({});
    let not_x_but_bc = json!([{"from": [{
        "namespaceSelector": expression("ns", "NotIn", &["x"]),
        "podSelector": expression("pod", "In", &["b", "c"]),
    }]}]);
    let from_b = json!([{"from": [{"podSelector": pod("b")}]}]);
    let web_and_dns = json!([{"ports": [{"port": 80}, {"protocol": "UDP", "port": 53}]}]);
    let named = json!([{"ports": [{"port": "serve-81-tcp"}]}]);
    let y_a = json!([{"to": [{"namespaceSelector": labels(&json!({"ns": "y"})), "podSelector": pod("a")}]}, dns_rule()]);
    let x_a = json!([{"from": [{"namespaceSelector": labels(&json!({"ns": "x"})), "podSelector": pod("a")}]}]);
    let table = [
        ("default deny ingress", vec![in_x("deny", &everyone, Some(json!([])), None)]),
        (
            "default deny all but DNS",
            vec![in_x("deny", &everyone, Some(json!([])), Some(json!([dns_rule()])))],
        ),
        ("several selectors", vec![in_x("b-c", &pod("a"), Some(not_x_but_bc), None)]),
        ("allow all", vec![in_x("allow-all", &everyone, Some(json!([{}])), None)]),
        ("one named port", vec![in_x("named", &everyone, Some(named), None)]),
        ("both directions", vec![in_x("both", &pod("a"), Some(from_b), Some(web_and_dns))]),
        (
            "denied at the client",
            vec![
                in_x("to-y-a", &pod("a"), None, Some(y_a)),
                network_policy("y", "from-x-a", &pod("a"), Some(x_a.clone()), None),
                network_policy("y", "from-x-a-too", &pod("b"), Some(x_a), None),
            ],
        ),
    ];
    let case = |(name, policies)| {
        one_step(addresses, Theme::Upstream, format!("upstream: {name}"), policies)
    };
    table.into_iter().map(case).collect()
}

/// A second policy opens a second port.
fn stacked(addresses: Addresses<'_>) -> Vec<Case> {
    let rules = |port: u16| {
        let peer = json!({"namespaceSelector": labels(&json!({"ns": "y"}))});
        Some(json!([{"from": [peer], "ports": [{"protocol": "TCP", "port": port}]}]))
    };
    let mut world = World::new(addresses);
    world.put(in_x("allow-81", &pod("a"), rules(81), None));
    world.probe();
    world.put(in_x("allow-80", &pod("a"), rules(80), None));
    world.probe();
    vec![world.case(Theme::Upstream, "upstream: stacked policies")]
}

/// Policies, namespaces and pods that change.
fn updated(addresses: Addresses<'_>) -> Vec<Case> {
    let everyone = json!({});
    let deny = |selector: &Value| in_x("deny", selector, Some(json!([])), None);

    let mut policy = World::new(addresses);
    policy.put(in_x("mutates", &everyone, Some(json!([{}])), None));
    policy.probe();
    policy.put(in_x("mutates", &everyone, Some(json!([])), None));
    policy.probe();

    let mut labelled_namespace = World::new(addresses);
    let from = json!([{"from": [{"namespaceSelector": labels(&json!({"ns2": "updated"}))}]}]);
    labelled_namespace.put(in_x("by-namespace", &pod("a"), Some(from), None));
    labelled_namespace.probe();
    labelled_namespace.put(namespace("y", &json!({"ns": "y", "ns2": "updated"})));
    labelled_namespace.probe();

    let mut labelled_peer = World::new(addresses);
    let both = json!({"pod": "b", "pod2": "updated"});
    let from = json!([{"from": [{"podSelector": labels(&both)}]}]);
    labelled_peer.put(in_x("by-pod", &pod("a"), Some(from), None));
    labelled_peer.probe();
    labelled_peer.pod("x", "b", &both);
    labelled_peer.probe();

    let mut labelled_target = World::new(addresses);
    labelled_target.put(deny(&labels(&json!({"target": "isolated"}))));
    labelled_target.probe();
    labelled_target.pod("x", "a", &json!({"target": "isolated"}));
    labelled_target.probe();

    let mut deleted = World::new(addresses);
    deleted.put(in_x("deny-all", &everyone, Some(json!([])), Some(json!([]))));
    deleted.probe();
    deleted.delete("NetworkPolicy", "x", "deny-all");
    deleted.probe();

    vec![
        policy.case(Theme::Upstream, "upstream: updated policy"),
        labelled_namespace.case(Theme::Upstream, "upstream: updated namespace"),
        labelled_peer.case(Theme::Upstream, "upstream: updated peer"),
        labelled_target.case(Theme::Upstream, "upstream: updated target"),
        deleted.case(Theme::Upstream, "upstream: deleted policy"),
    ]
}
