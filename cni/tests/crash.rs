//! The plugin killed at every step, and what comes after. Needs feature `fault-points`.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![expect(clippy::print_stdout, reason = "what was skipped is said")]

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde_json::{Value, json};
use veni_core::wire::{DelReason, RequestBody};

#[path = "support/node.rs"]
mod node;

use node::{Node, Outcome, finish, on_a_node, start};

const ADD_POINTS: [&str; 4] = ["add:asked", "add:allocated", "wire:host", "add:wired"];

/// Runs `command` until it dies at `point`.
fn killed_at(node: &Node, command: &str, point: &str, config: &Value) {
    let mut environment = node.environment(command);
    environment.push(("VENI_FAULT", format!("{point}:kill").into()));
    let outcome = finish(start(&environment, config.to_string().as_bytes()));
    assert_eq!(outcome.signal, Some(9), "{point} was not reached: {outcome:?}");
}

/// ADD by a plugin that is stopped at `point` and finds its time over when it goes on.
fn held_up_at(node: &Node, point: &str, meanwhile: impl FnOnce()) -> Outcome {
    let mut environment = node.environment("ADD");
    environment.push(("VENI_FAULT", format!("{point}:stop").into()));
    environment.push(("VENI_FAULT_LATE", "1".into()));
    let child = start(&environment, node.config().to_string().as_bytes());
    let pid = Pid::from_raw(child.id().cast_signed());
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP), "{point} was not reached");
    meanwhile();
    kill(pid, Signal::SIGCONT).unwrap();
    finish(child)
}

#[test]
fn a_late_add_that_ipamd_does_not_know_any_more_leaves_nothing() {
    // Before anything is made, and after the host's end is.
    for point in ["add:allocated", "wire:host"] {
        on_a_node(move |mut node| {
            let before = node.state();
            let ipamd = node.ipamd.clone();
            let outcome = held_up_at(&node, point, || ipamd.hang_up());
            assert_eq!(outcome.code, Some(1), "{point}: {outcome:?}");
            let said = outcome.stdout["msg"].as_str().unwrap();
            assert!(said.contains("this plugin was held up"), "{point}: {said}");
            assert_eq!(node.state(), before, "{point}");
            assert_eq!(node.ipamd.operations(), ["add", "del"], "{point}");
            let RequestBody::Del(del) = node.ipamd.with(|state| state.asked.remove(1)) else {
                panic!("{point}")
            };
            assert_eq!(del.reason, DelReason::AddFailed, "{point}");
        });
        on_a_node(move |mut node| {
            let outcome = held_up_at(&node, point, || ());
            assert_eq!(outcome.code, Some(0), "{point}: ipamd waits for it: {outcome:?}");
            node.assert_wired();
        });
    }
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
