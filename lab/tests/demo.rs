//! The demo as a user runs it, with fewer pods: as many as it takes to have some on a secondary ENI.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
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
    let before = machine();
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
    assert_eq!(machine(), before, "the machine's own network was touched");
    assert!(!place::of(&name).exists(), "the lab's directory is left");
}

/// The machine's own network: links, addresses, rules, routes, nftables.
fn machine() -> String {
    let show = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let objects =
        [&["-o", "link"][..], &["-o", "addr"], &["rule"], &["-4", "route", "show", "table", "all"]];
    let mut all: Vec<_> = objects.into_iter().map(|args| show("ip", args)).collect();
    all.push(show("nft", &["-s", "list", "ruleset"]));
    all.join("\n")
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    if let Some(missing) = ns::missing_feature() {
        println!("SKIPPED: {missing}");
        return;
    }
    let name = format!("stop-{}", std::process::id());
    let mut command = Command::new(env!("CARGO_BIN_EXE_veni-lab"));
    let mut demo = command.args(["demo", "--name", &name]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    // The pods are being added: daemons run, plugins too.
    assert!(lines.any(|line| line.unwrap().contains("adding 30 pods")), "the demo ended early");
    let daemons = daemons_of(&name);
    assert_eq!(daemons.len(), 2, "{daemons:?}");
    kill(Pid::from_raw(i32::try_from(demo.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert!(!place::of(&name).exists(), "the lab's directory is left");
    wait_for_the_end_of(&daemons);
}

/// The daemons whose files are in this lab's directory.
fn daemons_of(name: &str) -> Vec<u64> {
    let state = format!("VENI_STATE_DIR={}/", place::of(name).display());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    let ours = |pid: &u64| {
        let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if program.trim() != "veni-ipamd" {
            return false;
        }
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(state.as_bytes()))
    };
    pids.filter(ours).collect()
}

fn wait_for_the_end_of(processes: &[u64]) {
    let start = Instant::now();
    while processes.iter().any(|pid| runs(*pid)) {
        assert!(start.elapsed() < Duration::from_secs(10), "outlived its lab: {processes:?}");
        std::thread::yield_now();
    }
}

/// The command line, on a lab of this name.
fn command(name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_veni-lab"));
    command.args(args).env("VENI_LAB", name).output().unwrap()
}

/// What it says to a command that it does.
fn lab(name: &str, args: &[&str]) -> String {
    let output = command(name, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "veni-lab {args:?}: {text}{errors}");
    text
}

/// What it says to a command that it refuses.
fn refused(name: &str, args: &[&str]) -> String {
    let output = command(name, args);
    assert!(!output.status.success(), "veni-lab {args:?} was not refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
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
    policy_comes_and_goes(&name);
    a_security_group_can_be_played_with(&name);
    an_add_that_waits_keeps_nobody_waiting(&name);
    assert!(lab(&["exec", "web", "--", "ip", "-4", "route"]).contains("default via 169.254.1.1"));
    assert!(lab(&["exec", "node-1", "--", "ip", "rule"]).contains("512:"));
    let here = std::env::current_dir().unwrap();
    assert_eq!(lab(&["exec", "web", "--", "pwd"]).trim(), here.to_str().unwrap());
    assert!(lab(&["status"]).contains("web"));
    lab(&["status", "-o", "json"]).parse::<serde_json::Value>().unwrap();
    // Exits with 0 only when nothing failed.
    let doctor = lab(&["exec", "node-1", "--", "venictl", "doctor"]);
    assert!(doctor.contains(" 0 warnings, 0 failed"), "{doctor}");
    let restarted = lab(&["restart", "node-1"]);
    assert!(restarted.contains("veni-ipamd on node-1 is ready"), "{restarted}");
    a_node_without_a_daemon_is_told(&name);
    let unknown = refused(&name, &["restart", "node-9"]);
    assert!(unknown.contains("no node \"node-9\"") && unknown.contains("node-1"), "{unknown}");
    lab(&["del", "node-1", "web"]);
    lab(&["down"]);
    assert!(!place::of(&name).exists(), "the lab's directory is left");
}

/// What is said of a daemon that is stopped.
const HANGS: &str = "veni-ipamd on node-1 hangs: no answer within 4 s (veni-lab restart node-1)";
/// A policy.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/network-policy.yaml");

/// Its daemon is killed: the change is in force on the other node, and that is not called success.
fn a_node_without_a_daemon_is_told(name: &str) {
    let status: serde_json::Value = lab(name, &["status", "-o", "json"]).parse().unwrap();
    let pid = status["nodes"][0]["ipamd"]["Ok"]["daemon"]["pid"].as_u64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    wait_for_the_end_of(&[pid]);
    let applied = command(name, &["apply", "-f", EXAMPLE]);
    let text = String::from_utf8_lossy(&applied.stdout);
    assert_eq!(applied.status.code(), Some(1), "{text}");
    assert!(text.starts_with("not on node-1: veni-ipamd on node-1: does not run"), "{text}");
    assert!(text.contains("\n1 object in force on 1 of 2 nodes after"), "{text}");
    lab(name, &["restart", "node-1"]);
    lab(name, &["delete", "-f", EXAMPLE]);
}

/// A policy that is applied closes a path, and opens it again when it is deleted.
fn policy_comes_and_goes(name: &str) {
    let options = ["--namespace", "shop", "--label", "app=db", "--port", "sql=5432/TCP"];
    let added = lab(name, &[&["add", "node-2", "db"], &options[..]].concat());
    assert!(added.starts_with("shop/db on node-2: 10.0."), "{added}");
    let address = added.split_whitespace().nth(3).unwrap().to_owned();
    let ping = |count: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_veni-lab"));
        command.args(["exec", "web", "--", "ping", "-c", count, "-W", "1", &address]);
        command.env("VENI_LAB", name).output().unwrap().status.success()
    };
    assert!(ping("1"), "no policy, no answer");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("close.yaml");
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                  metadata: {namespace: shop, name: close}\nspec: {podSelector: {}}\n";
    std::fs::write(&file, policy).unwrap();
    let path = file.to_str().unwrap();
    let applied = lab(name, &["apply", "-f", path]);
    assert!(applied.starts_with("1 object in force on every node after"), "{applied}");
    assert!(!ping("1"), "a policy that denies everything lets a ping through");
    let again = dir.path().join("then.yaml");
    std::fs::write(&again, policy).unwrap();
    for args in [
        &["apply", "-f", again.to_str().unwrap()][..],
        &["apply", "-f", path, "-f", again.to_str().unwrap()],
    ] {
        let shadowed = lab(name, args);
        assert!(
            shadowed.contains("then.yaml") && shadowed.contains("is already defined in"),
            "{shadowed}"
        );
        assert!(shadowed.contains("close.yaml, document 1"), "{shadowed}");
        let counted = if args.len() > 3 { "1 object" } else { "0 objects" };
        assert!(shadowed.contains(&format!("{counted} in force on every node")), "{shadowed}");
    }
    let gone = lab(name, &["delete", "-f", dir.path().to_str().unwrap()]);
    assert!(gone.starts_with("2 files gone on every node after"), "{gone}");
    assert!(ping("1"), "the policy is gone and the path is closed");
    assert!(refused(name, &["delete", "-f", path]).contains("never applied"));
    assert!(refused(name, &["add", "node-1", "Web"]).contains("lower-case"));
}

/// A pod that has a group is open where the group is, and what the group is shows.
fn a_security_group_can_be_played_with(name: &str) {
    let lab = |args: &[&str]| lab(name, args);
    lab(&["group", "create", "sg-web"]);
    let allowed = lab(&["group", "allow", "sg-web", "--protocol", "icmp", "--peer", "10.0.0.0/16"]);
    let rule = allowed.split(':').next().unwrap();
    assert!(rule.starts_with("sgr-"), "{allowed}");
    let listed = lab(&["group", "list"]);
    assert!(listed.contains(&format!("{rule}  ingress  ICMP  from 10.0.0.0/16")), "{listed}");
    let added = lab(&[
        "add",
        "node-2",
        "grouped",
        "--annotation",
        "vpc.amazonaws.com/security-groups=sg-web",
    ]);
    let address = added.split_whitespace().nth(3).unwrap().to_owned();
    // The daemon asks EC2 for the group now; until it has the answer, the pod is closed.
    let start = Instant::now();
    let ping = ["exec", "web", "--", "ping", "-c", "1", "-W", "1", &address];
    while !command(name, &ping).status.success() {
        assert!(start.elapsed() < Duration::from_secs(10), "closed, although the group lets it in");
    }
    let explained =
        lab(&["exec", "node-2", "--", "venictl", "policy", "explain", "--live", "lab/grouped"]);
    assert!(explained.contains("SecurityGroup sg-web, no rule of which allows it"), "{explained}");
    lab(&["del", "grouped"]);
    lab(&["group", "revoke", rule]);
    assert!(!lab(&["group", "list"]).contains(rule));
    lab(&["group", "delete", "sg-web"]);
    assert!(refused(name, &["group", "delete", "sg-web"]).contains("sg-web"));
    assert!(refused(name, &["group", "allow", "sg-web", "--peer", "all"]).contains("no CIDR"));
}

/// The daemons are stopped: an ADD waits for an answer, and others are answered meanwhile; nothing waits for long.
fn an_add_that_waits_keeps_nobody_waiting(name: &str) {
    let daemons = daemons_of(name);
    let signal_all = |signal| {
        for pid in &daemons {
            kill(Pid::from_raw(i32::try_from(*pid).unwrap()), signal).unwrap();
        }
    };
    signal_all(Signal::SIGSTOP);
    let mut add = Command::new(env!("CARGO_BIN_EXE_veni-lab"));
    add.args(["add", "node-1", "late"]).env("VENI_LAB", name).stderr(Stdio::piped());
    let add = add.spawn().unwrap();
    let start = Instant::now();
    assert!(lab(name, &["exec", "web", "--", "echo", "inside"]).contains("inside"));
    assert!(refused(name, &["exec", "node-1", "--", "venictl", "status"]).contains("ipamd hangs"));
    assert!(lab(name, &["status"]).contains("hangs: no answer"));
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    let added = add.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&added.stderr);
    assert!(!added.status.success() && text.contains(HANGS), "{text}");
    let start = Instant::now();
    let applied = command(name, &["apply", "-f", EXAMPLE]);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let text = String::from_utf8_lossy(&applied.stdout);
    assert!(!applied.status.success() && text.contains(HANGS), "{text}");
    assert!(text.ends_with("1 object in force on 0 of 2 nodes\n"), "{text}");
    signal_all(Signal::SIGCONT);
    lab(name, &["delete", "-f", EXAMPLE]);
    lab(name, &["add", "node-1", "late"]);
    lab(name, &["del", "late"]);
}

/// The README's lines and the walkthrough's, each as it is printed there.
#[test]
fn what_the_documentation_says_runs_as_printed() {
    if let Some(missing) = ns::missing_feature() {
        println!("SKIPPED: {missing}");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let program = Path::new(env!("CARGO_BIN_EXE_veni-lab"));
    let mut path = program.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    for (document, lines) in [("README.md", 7), ("docs/lab.md", 17)] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        let printed = text.lines().map(|line| line.trim_start_matches("target/veni/"));
        let walked: Vec<_> = printed
            .filter(|line| line.starts_with("veni-lab "))
            .scan(false, |is_down, line| {
                (!std::mem::replace(is_down, line.ends_with(" down"))).then_some(line)
            })
            .collect();
        assert_eq!(walked.len(), lines, "{document}: {walked:#?}");
        for line in walked {
            let mut shell = Command::new("sh");
            shell.args(["-c", line]).env("PATH", &path).current_dir(&root);
            let output = shell.env("VENI_LAB", format!("doc-{}", std::process::id())).output();
            let Output { status, stdout, stderr } = output.unwrap();
            let said = [stdout, stderr].concat();
            assert!(status.success(), "{document}: {line}: {}", String::from_utf8_lossy(&said));
        }
    }
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
    let holder = place::holder(&name).unwrap();
    let mut processes = daemons_of(&name);
    assert_eq!(processes.len(), 2);
    kill(Pid::from_raw(i32::try_from(holder).unwrap()), Signal::SIGKILL).unwrap();
    processes.push(holder.into());
    wait_for_the_end_of(&processes);
    lab(&name, &["up", "--instant"]);
    assert!(!lab(&name, &["status"]).contains("web"), "the new lab has the dead one's pod");
    lab(&name, &["down"]);
}

#[test]
fn a_lab_that_does_not_come_up_leaves_the_log_that_it_names() {
    if let Some(missing) = ns::missing_feature() {
        println!("SKIPPED: {missing}");
        return;
    }
    let name = format!("flawed-{}", std::process::id());
    let said = refused(&name, &["up", "--instant", "--env", "VENI_TABLE_BASE=none"]);
    let (_, path) = said.split_once("(log: ").expect("the message names the log");
    let path = path.split(')').next().unwrap();
    let log =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}: {said}"));
    assert!(log.contains("VENI_TABLE_BASE"), "{log}");
    std::fs::remove_file(path).unwrap();
}

/// Whether a process is there and no zombie.
fn runs(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
