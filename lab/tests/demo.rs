//! The demo as a user runs it, with fewer pods: as many as it takes to have some on a secondary ENI.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use veni_lab::{ns, place};

#[test]
fn the_demo_holds_and_leaves_nothing() {
    if let Some(missing) = ns::missing_feature() {
        println!("SKIPPED: {missing}");
        return;
    }
    let name = format!("demo-{}", std::process::id());
    let mut demo = Command::new(env!("CARGO_BIN_EXE_veni-lab"));
    let output = demo.args(["demo", "--name", &name, "--pods", "16"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success(),
        "{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!text.contains('\x1b'), "colour without a terminal");
    assert!(!place::of(&name).exists(), "the lab's directory is left");
}

#[test]
fn a_lab_can_be_played_with() {
    if let Some(missing) = ns::missing_feature() {
        println!("SKIPPED: {missing}");
        return;
    }
    let name = format!("play-{}", std::process::id());
    let lab = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_veni-lab"))
            .args(args)
            .env("VENI_LAB", &name)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "veni-lab {args:?}: {text}{errors}");
        text
    };
    lab(&["up", "--instant"]);
    let added = lab(&["add", "node-1", "web"]);
    assert!(added.starts_with("web on node-1: 10.0."), "{added}");
    assert!(lab(&["exec", "web", "--", "ip", "-4", "route"]).contains("default via 169.254.1.1"));
    assert!(lab(&["exec", "node-1", "--", "ip", "rule"]).contains("512:"));
    assert!(lab(&["status"]).contains("web"));
    lab(&["status", "-o", "json"]).parse::<serde_json::Value>().unwrap();
    lab(&["del", "node-1", "web"]);
    lab(&["down"]);
    assert!(!place::of(&name).exists(), "the lab's directory is left");
}
