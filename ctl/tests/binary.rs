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
