//! `venictl policy` from outside: every sentence of its contract, with the manifests that show it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

mod check;
mod diff;
mod explain;
mod matrix;

fn venictl(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_venictl"));
    // Nobody answers there, whatever runs on this machine.
    command.current_dir(folder).env("INTROSPECTION_BIND_ADDRESS", "127.0.0.1:1");
    command.env_remove("VENI_NODE_PORT_RANGE").env_remove("VENI_SERVICE_CIDRS");
    command.arg("policy").args(args);
    command.output().expect("cargo has built the binary")
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        fs::write(dir.path().join(name), text).expect("a file in it");
    }
    dir
}

/// The matrix of manifests in one file, and what is said on stderr.
fn matrix(manifests: &str, args: &[&str]) -> Value {
    let dir = folder(&[("m.yaml", manifests)]);
    let output = venictl(dir.path(), &[&["matrix", "-f", "m.yaml", "-o", "json"], args].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"))
}

/// `x/a > y/b TCP 80 +`, a line a flow; with the family where it is told.
fn lines(document: &Value) -> Vec<String> {
    let flows = document["flows"].as_array().expect("a list of flows");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let line = |flow: &Value| {
        let family = flow.get("family").map(|family| format!(" {}", text(family)));
        format!(
            "{} > {} {} {} {}{}",
            text(&flow["from"]),
            text(&flow["to"]),
            text(&flow["protocol"]),
            flow["port"].as_u64().expect("a number"),
            if flow["allowed"].as_bool().expect("a boolean") { "+" } else { "-" },
            family.unwrap_or_default(),
        )
    };
    flows.iter().map(line).collect()
}

fn check(manifests: &str, expect: &[&str]) {
    let document = matrix(manifests, &[]);
    assert_eq!(lines(&document), expect, "{document:#}\n{manifests}");
}

/// A pod `namespace/name` with an address and this `spec`.
fn pod(name: &str, address: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{pod: {name}}}}}\n\
         spec: {spec}\nstatus: {{podIP: {address}}}\n"
    )
}

const PORT_80: &str = "{containers: [{name: c, ports: [{containerPort: 80}]}]}";
const NO_PORT: &str = "{containers: [{name: c}]}";
const DENY_TO_B: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {name: deny, namespace: y}\nspec: {podSelector: {matchLabels: {pod: b}}}\n";

fn two_pods() -> String {
    pod("x/a", "10.0.0.1", NO_PORT) + &pod("y/b", "10.0.0.2", PORT_80)
}
