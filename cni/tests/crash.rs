//! The plugin killed at every step, and what comes after. Needs feature `fault-points`.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![expect(clippy::print_stdout, reason = "what was skipped is said")]

use serde_json::{Value, json};

#[path = "support/node.rs"]
mod node;

use node::{Node, finish, on_a_node, start};

const ADD_POINTS: [&str; 4] = ["add:asked", "add:allocated", "wire:host", "add:wired"];

/// Runs `command` until it dies at `point`.
fn killed_at(node: &Node, command: &str, point: &str, config: &Value) {
    let mut environment = node.environment(command);
    environment.push(("VENI_FAULT", format!("{point}:kill").into()));
    let outcome = finish(start(&environment, config.to_string().as_bytes()));
    assert_eq!(outcome.signal, Some(9), "{point} was not reached: {outcome:?}");
}

#[test]
fn add_after_a_killed_add_makes_the_pod_whole() {
    for point in ADD_POINTS {
        on_a_node(move |mut node| {
            let before = node.state();
            killed_at(&node, "ADD", point, &node.config());
            let result = node.add();
            node.assert_wired();
            let config = node.config_with(&json!({"prevResult": result}));
            assert_eq!(node.call_with("DEL", &config).code, Some(0), "{point}");
            assert_eq!(node.state(), before, "{point}");
        });
    }
}

/// libcni has no result of an ADD that was killed, so DEL comes without.
#[test]
fn del_after_a_killed_add_leaves_nothing() {
    for point in ADD_POINTS {
        on_a_node(move |mut node| {
            let before = node.state();
            killed_at(&node, "ADD", point, &node.config());
            assert_eq!(node.call("DEL").code, Some(0), "{point}");
            assert_eq!(node.state(), before, "{point}");
            assert!(!node.ipamd.with(|state| state.allocated), "{point}");
        });
    }
}

#[test]
fn del_after_a_killed_del_gives_the_address_back() {
    on_a_node(|mut node| {
        let before = node.state();
        let config = node.config_with(&json!({"prevResult": node.add()}));
        killed_at(&node, "DEL", "del:unwired", &config);
        assert!(node.ipamd.with(|state| state.allocated));
        assert_eq!(node.call_with("DEL", &config).code, Some(0));
        assert!(!node.ipamd.with(|state| state.allocated));
        assert_eq!(node.state(), before);
    });
}

#[test]
fn a_panic_is_reported_as_the_specification_wants_errors() {
    on_a_node(|mut node| {
        let before = node.state();
        let mut environment = node.environment("ADD");
        environment.push(("VENI_FAULT", "wire:host:panic".into()));
        let outcome = finish(start(&environment, node.config().to_string().as_bytes()));
        assert_eq!((outcome.code, &outcome.stdout["code"]), (Some(1), &json!(999)), "{outcome:?}");
        assert_eq!(node.call("DEL").code, Some(0));
        assert_eq!(node.state(), before);
    });
}
