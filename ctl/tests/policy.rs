//! `venictl policy` from outside: every sentence of its contract, with the manifests that show it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

fn venictl(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_venictl"));
    command.current_dir(folder).env_remove("INTROSPECTION_BIND_ADDRESS").arg("policy").args(args);
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

#[test]
fn the_document_is_the_documented_one() {
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: x}\n\
        spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}\n";
    let document = matrix(&(two_pods() + policy), &["--from", "x/a"]);
    let expect = r#"{"flows":[{"from":"x/a","to":"y/b","protocol":"TCP","port":80,"allowed":true,"decided_by":{"egress":{"kind":"NetworkPolicy","namespace":"x","name":"p","rule":0},"ingress":{"default":"allow"}}}],"diagnostics":[]}"#;
    let expect: Value = serde_json::from_str(expect).expect("JSON");
    assert_eq!(document, expect);
}

#[test]
fn a_denied_flow_names_who_isolates() {
    let document = matrix(&(two_pods() + DENY_TO_B), &["--from", "x/a"]);
    let expect = json!({
        "egress": {"default": "allow"},
        "ingress": {"kind": "NetworkPolicy", "namespace": "y", "name": "deny", "rule": null},
    });
    assert_eq!(document["flows"][0]["decided_by"], expect);
}

#[test]
fn a_pod_reaches_itself_whatever_denies_it() {
    check(&(two_pods() + DENY_TO_B), &["x/a > y/b TCP 80 -", "y/b > y/b TCP 80 +"]);
}

#[test]
fn protocols_are_upper_case_and_tcp_when_absent() {
    let ports = "{containers: [{name: c, ports: [{containerPort: 53, protocol: UDP}, {containerPort: 53}, \
                 {containerPort: 9, protocol: SCTP}]}]}";
    check(
        &pod("x/a", "10.0.0.1", ports),
        &["x/a > x/a TCP 53 +", "x/a > x/a UDP 53 +", "x/a > x/a SCTP 9 +"],
    );
}

#[test]
fn ports_of_containers_and_sidecars_count_once() {
    let ports = "{containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 80, name: again}]}, \
                 {name: d, ports: [{containerPort: 81}]}], \
                 initContainers: [{name: sidecar, restartPolicy: Always, ports: [{containerPort: 82}, {containerPort: 80}]}, \
                 {name: init, ports: [{containerPort: 83}]}, \
                 {name: once, restartPolicy: OnFailure, ports: [{containerPort: 84}]}], \
                 ephemeralContainers: [{name: debug, ports: [{containerPort: 85}]}]}";
    check(
        &pod("x/a", "10.0.0.1", ports),
        &["x/a > x/a TCP 80 +", "x/a > x/a TCP 81 +", "x/a > x/a TCP 82 +"],
    );
}

#[test]
fn ports_are_always_numbers() {
    let named = "{containers: [{name: c, ports: [{containerPort: 8080, name: web}]}]}";
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: y}\n\
        spec: {podSelector: {}, ingress: [{ports: [{port: web}]}]}\n";
    let manifests = pod("x/a", "10.0.0.1", NO_PORT)
        + &pod("y/b", "10.0.0.2", named)
        + &pod("y/c", "10.0.0.3", PORT_80)
        + policy;
    let document = matrix(&manifests, &["--from", "x"]);
    assert_eq!(lines(&document), ["x/a > y/b TCP 8080 +", "x/a > y/c TCP 80 -"]);
}

#[test]
fn a_pod_on_the_node_has_no_exemption() {
    let on_node = |spec: &str| spec.replacen('{', "{nodeName: n, ", 1);
    let manifests = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: InternalIP, address: 10.0.0.9}]}\n"
        .to_owned()
        + &pod("x/host", "10.0.0.9", &on_node("{hostNetwork: true, containers: [{name: c}]}"))
        + &pod("y/b", "10.0.0.2", &on_node(PORT_80))
        + DENY_TO_B;
    check(&manifests, &["x/host > y/b TCP 80 -", "y/b > y/b TCP 80 +"]);
}

#[test]
fn a_pod_on_its_nodes_network_is_an_address() {
    let manifests = pod("x/a", "10.0.0.1", NO_PORT)
        + &pod("y/b", "10.0.0.9", PORT_80.replacen('{', "{hostNetwork: true, ", 1).as_str())
        + DENY_TO_B
        + "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: out, namespace: x}\n\
           spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.9/32}}]}]}\n";
    check(&manifests, &["x/a > y/b TCP 80 +", "y/b > y/b TCP 80 +"]);
}

#[test]
fn two_families_are_two_flows() {
    let dual = |name: &str, last: u8, spec: &str| {
        pod(
            name,
            &format!("10.0.0.{last}, podIPs: [{{ip: 10.0.0.{last}}}, {{ip: 'fd00::{last}'}}]"),
            spec,
        )
    };
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: v6, namespace: y}\n\
        spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 'fd00::/64'}}]}]}\n";
    let manifests = dual("x/a", 1, NO_PORT)
        + &dual("y/b", 2, PORT_80)
        + &pod("x/old", "10.0.0.3", NO_PORT)
        + &pod("x/new", "'fd00::4'", NO_PORT)
        + policy;
    check(
        &manifests,
        &[
            "x/a > y/b TCP 80 - IPv4",
            "x/a > y/b TCP 80 + IPv6",
            "x/new > y/b TCP 80 + IPv6",
            "x/old > y/b TCP 80 - IPv4",
            "y/b > y/b TCP 80 + IPv4",
            "y/b > y/b TCP 80 + IPv6",
        ],
    );
    let single = matrix(&two_pods(), &[]);
    assert!(single["flows"][0].get("family").is_none());
}

#[test]
fn who_has_no_address_or_has_finished_is_left_out_and_listed() {
    let finished = pod("x/done", "10.0.0.7", PORT_80).replace("podIP", "phase: Succeeded, podIP");
    let failed = pod("x/failed", "10.0.0.2", PORT_80).replace("podIP", "phase: Failed, podIP");
    let pending = pod("x/new", "''", PORT_80);
    let document = matrix(&(two_pods() + &finished + &failed + &pending), &[]);
    assert_eq!(lines(&document), ["x/a > y/b TCP 80 +", "y/b > y/b TCP 80 +"]);
    let diagnostics = document["diagnostics"].as_array().expect("a list");
    let told: Vec<_> = diagnostics.iter().map(|d| (&d["object"], &d["message"])).collect();
    assert_eq!(
        json!(told),
        json!([
            ["Pod x/done", "has finished; left out"],
            ["Pod x/failed", "has finished; left out"],
            ["Pod x/new", "has no address; left out"],
        ])
    );
}

#[test]
fn a_namespace_that_is_not_there_has_its_name_only() {
    let by = |labels: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: y}}\n\
             spec: {{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {labels}}}]}}]}}\n"
        )
    };
    let team = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {team: red}}\n";
    for (namespace, labels, sign) in [
        ("", "{matchLabels: {kubernetes.io/metadata.name: x}}", '+'),
        ("", "{matchLabels: {kubernetes.io/metadata.name: y}}", '-'),
        ("", "{matchLabels: {team: red}}", '-'),
        ("", "{matchExpressions: [{key: team, operator: DoesNotExist}]}", '+'),
        (team, "{matchLabels: {team: red}}", '+'),
        (team, "{matchLabels: {kubernetes.io/metadata.name: x}}", '+'),
    ] {
        let document = matrix(&(two_pods() + namespace + &by(labels)), &["--from", "x"]);
        assert_eq!(lines(&document), [format!("x/a > y/b TCP 80 {sign}")], "{namespace}{labels}");
    }
}

#[test]
fn security_groups_count_only_if_they_are_given() {
    let with_groups = "---\napiVersion: vpcresources.k8s.aws/v1beta1\nkind: SecurityGroupPolicy\nmetadata: {name: g, namespace: y}\n\
        spec: {podSelector: {}, securityGroups: {groupIds: [sg-0123456789abcdef0]}}\n";
    let document = matrix(&(two_pods() + with_groups), &["--from", "x"]);
    assert_eq!(lines(&document), ["x/a > y/b TCP 80 +"]);
    assert_eq!(document["diagnostics"].as_array().map(Vec::len), Some(1));

    let rules = r#"{"SecurityGroupRules":[{"SecurityGroupRuleId":"sgr-1","GroupId":"sg-0123456789abcdef0","IsEgress":false,
        "IpProtocol":"tcp","FromPort":443,"ToPort":443,"CidrIpv4":"0.0.0.0/0"}]}"#;
    let dir = folder(&[("m.yaml", &(two_pods() + with_groups)), ("sg.json", rules)]);
    let ask = |port: &str| {
        let args = [
            "check",
            "-f",
            "m.yaml",
            "--security-groups",
            "sg.json",
            "--from",
            "x/a",
            "--to",
            "y/b",
            "-o",
            "json",
        ];
        let output = venictl(dir.path(), &[&args[..], &["--port", port]].concat());
        serde_json::from_slice::<Value>(&output.stdout).expect("a document")["flows"][0].clone()
    };
    let (denied, allowed) = (ask("80"), ask("443"));
    assert_eq!((&denied["allowed"], &allowed["allowed"]), (&json!(false), &json!(true)));
    assert_eq!(allowed["security_groups"]["ingress"]["rule"], "sgr-1");
    let by = |flow: &Value, field: &str| flow["decided_by"]["ingress"][field].clone();
    assert_eq!(by(&denied, "kind"), "SecurityGroup");
    assert_eq!(
        (by(&denied, "name"), by(&denied, "rule")),
        (json!("sg-0123456789abcdef0"), Value::Null)
    );
}

#[test]
fn an_invalid_object_is_a_diagnostic() {
    let bad_pod =
        pod("x/bad", "10.0.0.5", "{containers: [{name: c, ports: [{containerPort: eighty}]}]}");
    let bad_policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: y}\n\
        spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}]}\n";
    let document = matrix(&(two_pods() + &bad_pod + bad_policy), &["--from", "x"]);
    // What is valid of the pod counts, and policies still name it by its labels.
    let denied = ["x/a > y/b TCP 80 -", "x/bad > y/b TCP 80 -"];
    assert_eq!(lines(&document), denied, "an invalid peer opens nothing");
    let diagnostics = document["diagnostics"].as_array().expect("a list");
    let places: Vec<_> = diagnostics
        .iter()
        .map(|d| json!([d["file"], d["document"], d["line"], d["object"], d["field"]]))
        .collect();
    assert_eq!(
        json!(places),
        json!([
            ["m.yaml", 3, 17, "Pod x/bad", "spec.containers[0].ports[0].containerPort"],
            ["m.yaml", 4, 23, "NetworkPolicy y/p", "spec.ingress[0].from[0].ipBlock.cidr"],
        ])
    );
}

#[test]
fn what_cannot_be_read_exits_2() {
    let dir = folder(&[("bad.yaml", "a: ["), ("good.yaml", &two_pods())]);
    for (args, words) in [
        (&["matrix", "-f", "bad.yaml"][..], "bad.yaml:1"),
        (&["matrix", "-f", "."], "bad.yaml:1"),
        (&["matrix", "-f", "missing.yaml"], "No such file"),
        (
            &["check", "-f", "bad.yaml", "--from", "x/a", "--to", "y/b", "--port", "80"],
            "bad.yaml:1",
        ),
        (&["diff", "-f", "good.yaml", "-f", "bad.yaml"], "bad.yaml:1"),
        (&["explain", "x/a", "-f", "bad.yaml"], "bad.yaml:1"),
        // And so does a wrong command line.
        (&["matrix"], "--file"),
        (&["matrix", "-f", "good.yaml", "--live"], "--live"),
        (&["matrix", "-f", "good.yaml", "--from", "x/nobody"], "no pod x/nobody"),
        (&["matrix", "-f", "good.yaml", "--to", "nowhere"], "nowhere"),
        (
            &["check", "-f", "good.yaml", "--from", "x/a", "--to", "y/nobody", "--port", "80"],
            "no pod y/nobody",
        ),
        (&["check", "-f", "good.yaml", "--from", "x/a", "--to", "y/b"], "--port"),
        (
            &["check", "-f", "good.yaml", "--from", "x/a", "--to", "fd00::1", "--port", "1"],
            "family",
        ),
        (&["diff", "-f", "good.yaml"], "-f OLD -f NEW"),
    ] {
        let output = venictl(dir.path(), args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(words) && output.stdout.is_empty(), "{args:?}: {stderr}");
    }
}

#[test]
fn from_and_to_narrow_the_matrix() {
    let manifests = two_pods() + &pod("y/c", "10.0.0.3", PORT_80);
    for (args, expect) in [
        (&["--from", "x/a", "--to", "y/c"][..], &["x/a > y/c TCP 80 +"][..]),
        (&["--to", "y/b"], &["x/a > y/b TCP 80 +", "y/b > y/b TCP 80 +", "y/c > y/b TCP 80 +"]),
        (&["--from", "x"], &["x/a > y/b TCP 80 +", "x/a > y/c TCP 80 +"]),
        (&["--from", "y/*", "--to", "x"], &[]),
    ] {
        assert_eq!(lines(&matrix(&manifests, args)), expect, "{args:?}");
    }
}

#[test]
fn a_folder_a_list_and_json_are_manifests_too() {
    let list = r#"{"kind":"List","apiVersion":"v1","items":[{"kind":"Pod","apiVersion":"v1","metadata":{"name":"b","namespace":"y"},
        "spec":{"containers":[{"ports":[{"containerPort":80}]}]},"status":{"podIPs":[{"ip":"10.0.0.2"}]}}]}"#;
    let dir = folder(&[("a.yaml", &pod("x/a", "10.0.0.1", NO_PORT)), ("b.json", list)]);
    let output = venictl(dir.path(), &["matrix", "-f", ".", "-o", "json"]);
    let document = serde_json::from_slice(&output.stdout).expect("a document");
    assert_eq!(lines(&document), ["x/a > y/b TCP 80 +", "y/b > y/b TCP 80 +"]);
}

#[test]
fn check_tells_both_sides() {
    let dir = folder(&[("m.yaml", &(two_pods() + DENY_TO_B))]);
    let ask = |args: &[&str]| {
        let output = venictl(dir.path(), &[&["check", "-f", "m.yaml"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let text = ask(&["--from", "x/a", "--to", "y/b", "--port", "80", "--protocol", "tcp"]);
    assert_eq!(
        text,
        "DENIED  x/a -> y/b  TCP 80\n  egress of x/a: allowed by default\n  \
         ingress of y/b: NetworkPolicy y/deny, no rule of which allows it\n"
    );
    for (args, expect) in [
        (&["--from", "y/b", "--to", "10.0.0.1", "--port", "1"][..], &["y/b > x/a TCP 1 +"][..]),
        (
            &["--from", "8.8.8.8", "--to", "y/b", "--port", "53", "--protocol", "UDP"],
            &["8.8.8.8 > y/b UDP 53 -"],
        ),
        (
            &["--from", "x/a", "--to", "8.8.8.8", "--protocol", "icmp"],
            &["x/a > 8.8.8.8 ICMP 2048 +"],
        ),
        (&["--from", "y/b", "--to", "y/b", "--port", "9"], &["y/b > y/b TCP 9 +"]),
    ] {
        let text = ask(&[args, &["-o", "json"]].concat());
        let document = serde_json::from_str(&text).expect("a document");
        assert_eq!(lines(&document), expect, "{args:?}");
    }
}

#[test]
fn check_follows_a_service_to_its_back_ends() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: y}\n\
        spec: {clusterIP: 10.96.0.1, selector: {pod: b}, ports: [{port: 8000, targetPort: 80}]}\n";
    let none = service
        .replace("name: s,", "name: none,")
        .replace("0.1,", "0.2,")
        .replace("pod: b", "pod: q");
    let dir = folder(&[("m.yaml", &(two_pods() + DENY_TO_B + service + &none))]);
    let ask = |to: &str, port: &str| {
        let args =
            ["check", "-f", "m.yaml", "--from", "x/a", "--to", to, "--port", port, "-o", "json"];
        let output = venictl(dir.path(), &args);
        serde_json::from_slice::<Value>(&output.stdout).expect("a document")
    };
    let found = ask("10.96.0.1", "8000");
    assert_eq!(lines(&found), ["x/a > y/b TCP 80 -"]);
    assert_eq!(found["flows"][0]["service"], "y/s");
    let refused = ask("10.96.0.2", "8000");
    assert_eq!(lines(&refused), ["x/a > 10.96.0.2 TCP 8000 -"]);
    assert_eq!(refused["flows"][0]["decided_by"]["egress"]["because"], "no_back_end");
    assert_eq!(lines(&ask("10.96.0.1", "9")), ["x/a > 10.96.0.1 TCP 9 +"], "no front end");
}

#[test]
fn check_of_icmp_prints_a_message_and_no_port() {
    let dir = folder(&[("m.yaml", &(two_pods() + &pod("z/six", "fd00::3", NO_PORT)))]);
    let ask = |line: &str| {
        let args: Vec<_> = ["check", "-f", "m.yaml"].into_iter().chain(line.split(' ')).collect();
        let output = venictl(dir.path(), &args);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("UTF-8"))
    };
    for (line, code, words) in [
        ("--from x/a --to y/b --protocol icmp", 0, "ALLOWED  x/a -> y/b  ICMP type 8 code 0\n"),
        ("--from x/a --to y/b --protocol icmp --icmp 3/1", 0, "ICMP type 3 code 1\n"),
        ("--from x/a --to y/b --protocol 47", 0, "ALLOWED  x/a -> y/b  47\n"),
        ("--from x/a --to y/b --protocol icmp --port 80", 2, "ICMP has no ports: leave --port out"),
        ("--from x/a --to y/b --protocol 47 --port 80", 2, "--port is for TCP, UDP and SCTP"),
        ("--from x/a --to y/b --port 80 --icmp 8", 2, "--icmp is for ICMP and ICMPv6"),
        ("--from x/a --to y/b --protocol icmp --icmp 300", 2, "no number up to 255"),
        ("--from x/a --to y/b --port 0", 2, "--port 0"),
        ("--from x/a --to y/b", 2, "--port is missing"),
        (
            "--from x/a --to y/b --protocol icmpv6",
            2,
            "ICMPv6 is IPv6's, and x/a and y/b have no IPv6",
        ),
        ("--from z/six --to fd00::9 --protocol icmp", 2, "ICMP is IPv4's"),
        ("--from fd00::8 --to fd00::9 --protocol icmp", 2, "ICMP is IPv4's"),
        ("--from z/six --to fd00::9 --protocol icmpv6", 0, "ALLOWED"),
        (
            "--from x/a --to fd00::9 --port 80",
            2,
            "x/a and fd00::9 have no address family in common",
        ),
    ] {
        let (found, said) = ask(line);
        assert_eq!(found, Some(code), "{line}: {said}");
        assert!(said.contains(words), "{line}: {said}");
    }
}

#[test]
fn check_says_where_the_programs_refuse_before_any_rule_is_asked() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: y}\n\
        spec: {clusterIP: 10.96.0.1, selector: {pod: b}, ports: [{port: 8000, targetPort: 80}]}\n";
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n}\n\
        status: {addresses: [{type: InternalIP, address: 10.9.0.1}]}\n";
    let all_out = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: out, namespace: x}\n\
        spec: {podSelector: {}, policyTypes: [Egress], egress: [{}]}\n";
    let dir = folder(&[("m.yaml", &(two_pods() + service + node + all_out))]);
    let refused = "DENIED  x/a";
    let note = "no known Service's front end";
    for (from, to, port, options, words) in [
        ("x/a", "10.96.0.1", "8000", "", "ALLOWED  x/a -> y/b  TCP 80  (Service y/s)"),
        ("x/a", "10.96.0.1", "9", "", refused),
        ("y/b", "10.96.0.1", "9", "", "ALLOWED"),
        ("x/a", "10.96.0.7", "9", "", note),
        ("y/b", "10.96.0.7", "9", "", "ALLOWED"),
        ("x/a", "8.8.8.8", "53", "", "ALLOWED"),
        ("x/a", "10.96.0.7", "9", "--service-cidrs=10.96.0.0/16", refused),
        ("x/a", "10.97.0.7", "9", "--service-cidrs=10.96.0.0/16", "ALLOWED"),
        ("x/a", "10.9.0.1", "30001", "", refused),
        ("x/a", "10.9.0.1", "22", "", "ALLOWED"),
    ] {
        let mut args = vec!["check", "-f", "m.yaml", "--from", from, "--to", to, "--port", port];
        args.extend((!options.is_empty()).then_some(options));
        let output = venictl(dir.path(), &args);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(text.contains(words), "{from} {to} {port} {options}: {text}");
        assert_eq!(text.contains("unknown_service"), [refused, note].contains(&words), "{text}");
    }
}

#[test]
fn explain_tells_what_applies_and_what_it_is_compiled_to() {
    let policies = "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: admin}\n\
        spec: {tier: Admin, priority: 7, subject: {namespaces: {}}, \
        ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: c}}}}]}]}\n\
        ---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: y}\n\
        spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0/16]}}], \
        ports: [{port: 80, endPort: 90}]}]}\n";
    let manifests = two_pods() + &pod("x/c", "10.0.0.3", NO_PORT) + DENY_TO_B + policies;
    let dir = folder(&[("m.yaml", &manifests)]);
    let output = venictl(dir.path(), &["explain", "y/b", "-f", "m.yaml"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "\
y/b  10.0.0.2
  labels: pod=b
  labels of its namespace: kubernetes.io/metadata.name=y

Egress: what it may connect to (not isolated)
  no policy selects it

  PEER           PORTS  VERDICT  DECIDED BY
  everyone else  all    allow    allowed by default

Ingress: who may connect to it (isolated by a NetworkPolicy)
  ClusterNetworkPolicy admin (Admin, priority 7): 1 rule
  NetworkPolicy y/deny: 0 rules
  NetworkPolicy y/web: 1 rule

  PEER                                     PORTS      VERDICT  DECIDED BY
  10.0.0.0/8 (except 10.9.0.0/16) x/a y/b  TCP 80-90  allow    NetworkPolicy y/web rule 0
                                           all        deny     NetworkPolicy y/deny, no rule of which allows it
  x/c                                      all        deny     ClusterNetworkPolicy admin (Admin) rule 0
  everyone else                            all        deny     NetworkPolicy y/deny, no rule of which allows it
"
    );
    for (pod, words) in [("x/late", "no address yet"), ("x/host", "on its node's network")] {
        let more = self::pod("x/late", "''", NO_PORT)
            + &self::pod("x/host", "10.0.0.9", "{hostNetwork: true}");
        let dir = folder(&[("m.yaml", &more)]);
        let output = venictl(dir.path(), &["explain", pod, "-f", "m.yaml"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(words), "{text}");
    }
}

#[test]
fn diff_tells_what_changes() {
    let old = two_pods() + DENY_TO_B;
    let new = two_pods() + &pod("x/late", "10.0.0.3", NO_PORT);
    let dir = folder(&[("old.yaml", &old), ("new.yaml", &new)]);
    let output = venictl(dir.path(), &["diff", "-f", "old.yaml", "-f", "new.yaml", "-o", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).expect("a document");
    let changes: Vec<_> = document["changes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|c| {
            json!([c["from"], c["to"], c["port"], c["before"]["allowed"], c["after"]["allowed"]])
        })
        .collect();
    assert_eq!(
        json!(changes),
        json!([["x/a", "y/b", 80, false, true], ["x/late", "y/b", 80, null, true]])
    );
    let same = venictl(dir.path(), &["diff", "-f", "old.yaml", "-f", "old.yaml"]);
    assert_eq!(String::from_utf8_lossy(&same.stdout), "No connection changes.\n");
}

#[test]
fn diff_says_where_there_are_no_pods_to_compare() {
    let with_pods = two_pods() + DENY_TO_B;
    let dir = folder(&[("none.yaml", DENY_TO_B), ("pods.yaml", &with_pods)]);
    for (old, new, code, words) in [
        ("none.yaml", "none.yaml", 2, "neither none.yaml nor none.yaml has a pod"),
        ("none.yaml", "pods.yaml", 0, "none.yaml has no pod with an address"),
        ("pods.yaml", "none.yaml", 0, "none.yaml has no pod with an address"),
        ("pods.yaml", "pods.yaml", 0, ""),
    ] {
        let output = venictl(dir.path(), &["diff", "-f", old, "-f", new]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{old} {new}: {said}");
        assert!(said.contains(words) && said.is_empty() == words.is_empty(), "{said}");
    }
}

#[test]
fn what_is_no_address_and_no_port_is_told() {
    let dir = folder(&[("m.yaml", &two_pods())]);
    for (to, port, words) in [
        ("10.0.0.300", "80", "neither an address nor a pod"),
        ("y/b", "sql", "a number from 1 to 65535"),
    ] {
        let args = ["check", "-f", "m.yaml", "--from", "x/a", "--to", to, "--port", port];
        let output = venictl(dir.path(), &args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(words), "{said}");
    }
}

#[test]
fn explain_names_the_groups_rule_that_opens_a_pod() {
    let with_groups = "---\napiVersion: vpcresources.k8s.aws/v1beta1\nkind: SecurityGroupPolicy\nmetadata: {name: g, namespace: y}\n\
        spec: {podSelector: {}, securityGroups: {groupIds: [sg-0123456789abcdef0]}}\n";
    let rule = |id: &str, port: u16, cidr: &str| {
        json!({"SecurityGroupRuleId": id, "GroupId": "sg-0123456789abcdef0", "IsEgress": false,
            "IpProtocol": "tcp", "FromPort": port, "ToPort": port, "CidrIpv4": cidr})
    };
    let rules = json!({"SecurityGroupRules": [
        rule("sgr-1", 8080, "10.0.0.0/16"), rule("sgr-2", 8081, "10.0.0.0/16"), rule("sgr-3", 9, "192.0.2.0/24"),
    ]});
    let many: String = (10..16)
        .map(|n| pod(&format!("x/a-pod-with-a-long-name-{n}"), &format!("10.0.0.{n}"), NO_PORT))
        .collect();
    let manifests = two_pods() + &many + with_groups;
    let dir = folder(&[("m.yaml", &manifests), ("sg.json", &rules.to_string())]);
    let args = ["explain", "y/b", "-f", "m.yaml", "--security-groups", "sg.json"];
    let output = venictl(dir.path(), &args);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("who may connect to it (restricted by security groups)"), "{text}");
    for (port, id) in [("TCP 8080", "sgr-1"), ("TCP 8081", "sgr-2"), ("TCP 9", "sgr-3")] {
        let of_port = text.lines().find(|line| line.contains(&format!("{port} ")));
        let of_port = of_port.unwrap_or_else(|| panic!("{port} is missing: {text}"));
        assert!(of_port.contains("allow") && of_port.contains(id), "{of_port}\n{text}");
    }
    assert!(!text.contains("allowed by default"), "{text}");
    let ports_at = text.lines().filter_map(|line| line.find(" PORTS "));
    assert!(ports_at.into_iter().all(|at| at < 66), "{text}");
}

#[test]
fn the_picture_for_people() {
    let manifests = two_pods() + &pod("y/c", "10.0.0.3", PORT_80) + DENY_TO_B;
    let dir = folder(&[("m.yaml", &manifests)]);
    let output = venictl(dir.path(), &["matrix", "-f", "m.yaml", "-o", "table"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "\
TCP 80
      1 2
  x/a ✗ ✓
  y/b ✓ ✓
  y/c ✗ ✓
  1 = y/b
  2 = y/c

✓ allowed   ✗ denied
4 of 6 connections are allowed. Rows connect to columns.
"
    );
}
