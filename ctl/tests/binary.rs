//! The binary from outside: output, streams and exit status.

use std::process::{Command, Output};

fn venictl(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_venictl"));
    command.env_remove("VENI_SOCKET").args(args).output().expect("cargo has built the binary")
}

fn steady(args: &[&str]) -> (Option<i32>, String, String) {
    let output = venictl(&[&["pool", "steady"], args].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("venictl prints UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[rustfmt::skip] // a table
const DOCUMENTED: &[(&str, &str)] = &[
    ("m5.large --pods 11 --env WARM_ENI_TARGET=0",
     r#"{"enis":2,"addresses":{"total":18,"assigned":11,"warm":7},"prefixes":0,"pending":0}"#),
    ("m5.xlarge --pods=30 --env WARM_IP_TARGET=5 MINIMUM_IP_TARGET=10",
     r#"{"enis":3,"addresses":{"total":35,"assigned":30,"warm":5},"prefixes":0,"pending":0}"#),
    ("t3.small --pods 20 --env WARM_IP_TARGET=1 --env MAX_ENI=2",
     r#"{"enis":2,"addresses":{"total":6,"assigned":6,"warm":0},"prefixes":0,"pending":14}"#),
    ("m5.large --pods 1 --max-pods 9",
     r#"{"enis":1,"addresses":{"total":9,"assigned":1,"warm":8},"prefixes":0,"pending":0}"#),
    ("m5.large --pods 17 --env ENABLE_PREFIX_DELEGATION=true --env WARM_PREFIX_TARGET=1",
     r#"{"enis":1,"addresses":{"total":48,"assigned":17,"warm":31},"prefixes":3,"pending":0}"#),
    // Out of range is what it is to the AWS VPC CNI: 1.
    ("m5.large --pods 1 --env WARM_ENI_TARGET=-1",
     r#"{"enis":2,"addresses":{"total":18,"assigned":1,"warm":17},"prefixes":0,"pending":0}"#),
];

#[test]
fn steady_prints_the_documented_json() {
    for (line, expect) in DOCUMENTED {
        let args: Vec<_> =
            ["-o", "json", "--instance-type"].into_iter().chain(line.split(' ')).collect();
        let (code, stdout, stderr) = steady(&args);
        assert_eq!((code, stdout.trim_end()), (Some(0), *expect), "{line}: {stderr}");
    }
}

#[test]
fn traps_and_fallbacks_go_to_stderr() {
    let (code, stdout, stderr) = steady(&[
        "--instance-type",
        "m4.large",
        "--pods",
        "3",
        "--env",
        "MINIMUM_IP_TARGET=2",
        "ENABLE_PREFIX_DELEGATION=true",
        "-o",
        "json",
    ]);
    assert_eq!(code, Some(0), "pods that do not fit are no error: {stderr}");
    assert!(stdout.contains("\"pending\":1") && stdout.lines().count() == 1, "{stdout}");
    assert!(stderr.contains("never grows past") && stderr.contains("Nitro"), "{stderr}");
}

#[test]
fn a_wrong_command_line_exits_2_with_a_sentence() {
    for (args, word) in [
        (&["--instance-type", "m99.huge", "--pods", "1"][..], "m99.huge"),
        (&["--instance-type", "M5", "--pods", "1"], "M5"),
        (&["--instance-type", "m5.large", "--pods", "many"], "many"),
        (&["--instance-type", "m5.large", "--pods", "-1"], "-1"),
        (&["--instance-type", "m5.large"], "--pods"),
        (&["--instance-type", "m5.large", "--pods", "1", "--env", "WARM_IP_TARGET"], "NAME=VALUE"),
        (&["--instance-type", "m5.large", "--pods", "1", "--env", "WARM_IP_TARGET=five"], "five"),
        (
            &[
                "--instance-type",
                "m5.large",
                "--pods",
                "1",
                "--env",
                "ENABLE_PREFIX_DELEGATION=maybe",
            ],
            "maybe",
        ),
        (
            &["--instance-type", "m5.large", "--pods", "1", "--env", "WARM_IP_TARGETS=5"],
            "WARM_IP_TARGET",
        ),
        (&["--instance-type", "m5.large", "--pods", "1", "--max-pods", "x"], "x"),
    ] {
        let (code, stdout, stderr) = steady(args);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    }
}

#[test]
fn all_bad_values_are_told_together() {
    let (code, _, stderr) = steady(&[
        "--instance-type",
        "m5.large",
        "--pods",
        "1",
        "--env",
        "WARM_IP_TARGET=a",
        "MAX_ENI=b",
    ]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("WARM_IP_TARGET") && stderr.contains("MAX_ENI"), "{stderr}");
}

#[test]
fn without_a_daemon_status_fails_and_names_the_next_step() {
    for args in [&["status"][..], &["pool", "show"], &["pool", "explain", "-o", "json"]] {
        let output = venictl(&[args, &["--socket", "/nonexistent/ipamd.sock"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{args:?}");
        assert!(
            stderr.contains("/nonexistent/ipamd.sock") && stderr.contains("start it"),
            "{stderr}"
        );
    }
}

#[test]
fn config_lists_the_variables_and_survives_a_closed_pipe() {
    let output = venictl(&["config", "-o", "json"]);
    let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(list.iter().any(|v| v["name"] == "WARM_IP_TARGET"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_venictl"))
        .arg("config")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// What the node would look like for the view of `testdata/busy.json`.
const NODE: &str = r#"
set -e
ip link set lo up
for n in 0 1; do
    ip link add name eth$n address 02:00:00:00:00:0$((n + 1)) type veth peer name far$n
    ip link set eth$n up
    ip link set far$n up
    sysctl -qw net.ipv4.conf.eth$n.rp_filter=2
done
sysctl -qw net.ipv4.ip_forward=1
ip rule add priority 512 lookup 7600 protocol 118
ip rule add priority 1024 fwmark 0x80/0x80 lookup main protocol 118
ip rule add priority 1536 fwmark 0x20000/0xff0000 lookup 7602 protocol 118
ip rule add priority 32765 from 10.0.1.77 lookup 7602 protocol 118
for n in $(seq 100 115); do ip route add 10.0.1.$n dev eth0 table 7600 proto 118; done
ip route add default via 10.0.1.1 dev eth1 onlink table 7602 proto 118
nft add table ip veni
"#;

/// `doctor -o json` in a fresh network namespace after `script`, with a daemon that answers one view:
/// the status of each check.
fn doctor_in(script: &str) -> std::collections::BTreeMap<String, String> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("venictl connects");
        let mut question = [0; 4096];
        let asked = std::io::Read::read(&mut stream, &mut question).expect("venictl asks");
        assert!(question[..asked].ends_with(b"\n"), "one line in one write");
        let answer = include_str!("../src/testdata/busy.json").replace('\n', " ") + "\n";
        std::io::Write::write_all(&mut stream, answer.as_bytes()).expect("venictl listens");
    });
    let run = format!("{script}\nexec \"$0\" doctor -o json --socket \"$1\"");
    let output = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", &run, env!("CARGO_BIN_EXE_venictl")])
        .arg(&socket)
        .output()
        .expect("unshare was found before");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    daemon.join().expect("the daemon was asked");
    let checks = document["checks"].as_array().expect("a list");
    checks.iter().map(|check| (word(&check["name"]), word(&check["status"]))).collect()
}

fn word(value: &serde_json::Value) -> String {
    value.as_str().expect("a word").to_owned()
}

#[test]
fn doctor_reads_a_real_kernel() {
    let tried = Command::new("unshare").args(["--net", "true"]).output().unwrap();
    let why = String::from_utf8_lossy(&tried.stderr).into_owned();
    if why.contains("Operation not permitted") {
        println!("SKIPPED: CAP_SYS_ADMIN (run the tests as root)");
        return;
    }
    assert!(tried.status.success(), "{why}");
    let healthy = doctor_in(NODE);
    for check in ["socket", "forward", "rp_filter", "rules", "routes", "nftables"] {
        assert_eq!(healthy[check], "ok", "{check}: {healthy:?}");
    }
    for (damage, check) in [
        ("sysctl -qw net.ipv4.ip_forward=0", "forward"),
        ("sysctl -qw net.ipv4.conf.eth1.rp_filter=1", "rp_filter"),
        ("ip rule del priority 1536", "rules"),
        ("ip route flush table 7602", "routes"),
        ("ip route del 10.0.1.107 table 7600", "routes"),
        ("nft delete table ip veni", "nftables"),
    ] {
        let found = doctor_in(&format!("{NODE}{damage}"));
        assert_eq!(found[check], "failed", "{damage}: {found:?}");
        let spoilt: Vec<_> =
            found.iter().filter(|(name, status)| healthy[*name] != **status).collect();
        assert_eq!(spoilt.len(), 1, "{damage}: {spoilt:?}");
    }
}

/// As in the chart's container, where the node's directories are mounted elsewhere and the daemon's variables say where.
#[test]
fn doctor_looks_where_the_daemon_writes() {
    let host = tempfile::tempdir().expect("a temporary directory");
    let (conf, bin) = (host.path().join("net.d"), host.path().join("bin"));
    for dir in [&conf, &bin] {
        std::fs::create_dir(dir).expect("a directory");
    }
    std::fs::write(conf.join("05-veni.conflist"), r#"{"plugins":[{"type":"veni-cni"}]}"#).unwrap();
    std::os::unix::fs::symlink("/bin/true", bin.join("veni-cni")).expect("a plugin");
    let doctor = |set: &[(&str, &std::path::Path)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_venictl"));
        for name in ["VENI_CNI_CONF_DIR", "VENI_CNI_BIN_DIR", "HOST_CNI_CONFDIR_PATH"] {
            command.env_remove(name);
        }
        command.env_remove("HOST_CNI_BIN_PATH").envs(set.iter().copied());
        command.args(["doctor", "-o", "json", "--socket", "/nonexistent/s"]);
        let output = command.output().expect("cargo has built the binary");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let checks = document["checks"].as_array().expect("a list");
        let of = |name| checks.iter().find(|check| check["name"] == name).expect("a check");
        ["conflist", "plugin"].map(|name| word(&of(name)["status"]))
    };
    let own = [("HOST_CNI_CONFDIR_PATH", conf.as_path()), ("HOST_CNI_BIN_PATH", bin.as_path())];
    assert_eq!(doctor(&own), ["ok", "ok"]);
    // What is meant for venictl itself goes first.
    let elsewhere = std::path::Path::new("/nonexistent");
    let named = [("VENI_CNI_CONF_DIR", elsewhere), ("VENI_CNI_BIN_DIR", elsewhere)];
    assert_eq!(doctor(&[own, named].concat()), ["failed", "failed"]);
}
