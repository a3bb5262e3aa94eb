//! `policy matrix`, and what holds for all that is judged from manifests.

use super::*;

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
