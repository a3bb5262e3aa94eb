//! The demo as a user runs it, with fewer pods: as many as it takes to have some on a secondary ENI.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
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

/// The command line, on a lab of this name.
fn lab(name: &str, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_veni-lab"));
    let output = command.args(args).env("VENI_LAB", name).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "veni-lab {args:?}: {text}{errors}");
    text
}

#[test]
fn a_lab_can_be_played_with() {
    if let Some(missing) = ns::missing_feature() {
        println!("SKIPPED: {missing}");
        return;
    }
    let name = format!("play-{}", std::process::id());
    let lab = |args: &[&str]| lab(&name, args);
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

#[test]
fn a_killed_lab_takes_its_daemons_along_and_leaves_its_name_free() {
    if let Some(missing) = ns::missing_feature() {
        println!("SKIPPED: {missing}");
        return;
    }
    let name = format!("dead-{}", std::process::id());
    lab(&name, &["up", "--instant"]);
    lab(&name, &["add", "node-1", "web"]);
    let status: serde_json::Value = lab(&name, &["status", "-o", "json"]).parse().unwrap();
    let holder = i32::try_from(place::holder(&name).unwrap()).unwrap();
    let daemons: Vec<_> = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["ipamd"]["Ok"]["daemon"]["pid"].as_u64().unwrap())
        .collect();
    assert_eq!(daemons.len(), 2);
    kill(Pid::from_raw(holder), Signal::SIGKILL).unwrap();
    let start = Instant::now();
    while daemons.iter().any(|pid| runs(*pid)) {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "a daemon outlived its lab: {daemons:?}"
        );
        std::thread::yield_now();
    }
    lab(&name, &["up", "--instant"]);
    assert!(!lab(&name, &["status"]).contains("web"), "the new lab has the dead one's pod");
    lab(&name, &["down"]);
}

/// Whether a process is there and no zombie.
fn runs(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
