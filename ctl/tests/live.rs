//! `venictl policy --live` and `venictl observe` against a daemon that says what it was asked.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    process::{Command, Output},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Answers one request with these bytes; its request line is the thread's result.
fn daemon(answer: String) -> (String, JoinHandle<String>) {
    let (address, server) = daemon_of(vec![answer]);
    (address, std::thread::spawn(move || server.join().expect("asked").remove(0)))
}

/// Answers so many requests, each on a connection of its own.
fn daemon_of(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound").to_string();
    let server = std::thread::spawn(move || {
        let answer_one = |answer: String| {
            let (mut stream, _) = listener.accept().expect("venictl connects");
            let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
            let line = lines.next().expect("a request").expect("text");
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            stream.write_all(answer.as_bytes()).expect("venictl reads");
            line
        };
        answers.into_iter().map(answer_one).collect()
    });
    (address, server)
}

fn venictl(address: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_venictl"));
    command.env("INTROSPECTION_BIND_ADDRESS", address).env("http_proxy", "http://192.0.2.1:1");
    command.args(args).output().expect("cargo has built the binary")
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn chunked(lines: &[&str]) -> String {
    let chunks: String =
        lines.iter().map(|line| format!("{:x}\r\n{line}\n\r\n", line.len() + 1)).collect();
    format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
}

const FLOWS: &str = r#"{"flows":[{"from":"x/a","to":"y/b","protocol":"TCP","port":80,"allowed":false,"decided_by":{"egress":{"default":"allow"},"ingress":{"kind":"NetworkPolicy","namespace":"y","name":"p","rule":null}}}],"diagnostics":[]}"#;

#[test]
fn the_daemon_is_asked_what_was_asked() {
    let explanation = r#"{"pod":"x/a","addresses":["10.0.0.1"],"labels":{},"namespace_labels":{},"egress":{"isolated":false,"policies":[],"table":[]},"ingress":{"isolated":false,"policies":[],"table":[]}}"#;
    for (args, body, request) in [
        (&["matrix"][..], FLOWS, "GET /v1/policy/matrix HTTP/1.1"),
        (
            &["matrix", "--from", "x", "--to", "y/b"],
            FLOWS,
            "GET /v1/policy/matrix?from=x&to=y/b HTTP/1.1",
        ),
        (
            &["check", "--from", "x/a", "--to", "10.0.0.2", "--port", "80"],
            FLOWS,
            "GET /v1/policy/check?from=x/a&to=10.0.0.2&protocol=TCP&port=80 HTTP/1.1",
        ),
        (&["explain", "x/a"], explanation, "GET /v1/policy/explain?pod=x/a HTTP/1.1"),
    ] {
        let (address, server) = daemon(ok(body));
        let output = venictl(&address, &[&["policy"], args, &["--live", "-o", "json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let asked = server.join().expect("the daemon was asked").replace("%2F", "/");
        assert_eq!(asked, request, "{args:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("a document");
    }
}

/// Pods x/a and y/b on node `here`, z/c on another, and what is `beside` them.
fn plan(beside: &str) -> tempfile::TempDir {
    let pod = |namespace: &str, name: &str, last: u8, node: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{nodeName: {node}, containers: [{{ports: [{{containerPort: 80}}]}}]}}\n\
             status: {{podIP: 10.0.0.{last}}}\n"
        )
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let pods = pod("x", "a", 1, "here") + &pod("y", "b", 2, "here") + &pod("z", "c", 3, "there");
    std::fs::write(dir.path().join("new.yaml"), pods + beside).expect("a file");
    dir
}

/// As a daemon of the node `here` has it: only what its own pods' ends say counts.
fn live(y_is_closed: bool, of_group: bool) -> String {
    let allow = serde_json::json!({"default": "allow"});
    let elsewhere = serde_json::json!({"default": "allow", "because": "judged on its own node"});
    let pods = ["x/a", "y/b", "z/c"];
    let mut flows = Vec::new();
    for (from, to) in pods.iter().flat_map(|from| pods.map(|to| (*from, to))) {
        let closed = y_is_closed && to == "y/b" && from != to;
        let ingress = match to {
            "z/c" => elsewhere.clone(),
            _ if closed => {
                serde_json::json!({"kind": "NetworkPolicy", "namespace": "y", "name": "p", "rule": null})
            }
            _ => allow.clone(),
        };
        let egress = if from == "z/c" { elsewhere.clone() } else { allow.clone() };
        let mut flow = serde_json::json!({"from": from, "to": to, "protocol": "TCP", "port": 80,
            "allowed": !closed, "decided_by": {"egress": egress, "ingress": ingress}});
        if of_group && to == "x/a" {
            flow["security_groups"] = serde_json::json!({"ingress": {"default": "allow"}});
        }
        flows.push(flow);
    }
    serde_json::json!({"flows": flows, "diagnostics": []}).to_string()
}

const NOTHING_INTO_C: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {name: c, namespace: z}\nspec: {podSelector: {}}\n";

#[test]
fn a_plan_is_compared_with_what_this_node_judges() {
    let policy = |namespace: &str| {
        NOTHING_INTO_C.replace("namespace: z", &format!("namespace: {namespace}"))
    };
    let standard = r#"{"mode":"standard","complete":true}"#;
    let strict = r#"{"mode":"strict","complete":true}"#;
    for (beside, live, mode, changes, of_groups) in [
        // Another node judges what comes to z/c.
        (NOTHING_INTO_C.to_owned(), live(false, false), standard, &[][..], 0),
        (policy("y"), live(true, false), standard, &[], 0),
        (String::new(), live(true, false), standard, &["x/a y/b true", "z/c y/b true"], 0),
        (policy("x"), live(false, false), standard, &["y/b x/a false", "z/c x/a false"], 0),
        (policy("x"), live(false, true), standard, &[], 3),
        // In the mode of the node, what no policy selects is closed.
        (
            String::new(),
            live(false, false),
            strict,
            &[
                "x/a y/b false",
                "x/a z/c false",
                "y/b x/a false",
                "y/b z/c false",
                "z/c x/a false",
                "z/c y/b false",
            ],
            0,
        ),
    ] {
        let dir = plan(&beside);
        let (address, server) = daemon_of(vec![ok(&live), ok(mode)]);
        let path = dir.path().join("new.yaml").display().to_string();
        let output = venictl(&address, &["policy", "diff", "--live", "-f", &path, "-o", "json"]);
        server.join().expect("the daemon was asked");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let found = document["changes"].as_array().expect("a list").iter().map(|change| {
            let text = |name: &str| change[name].as_str().expect("text").to_owned();
            format!("{} {} {}", text("from"), text("to"), change["after"]["allowed"])
        });
        assert_eq!(found.collect::<Vec<_>>(), changes, "{beside}: {document:#}");
        let compared = &document["compared"];
        assert_eq!(compared["elsewhere"], serde_json::json!(["z/c"]), "{compared}");
        assert_eq!(compared["of_groups"], of_groups, "{compared}");
    }
}

#[test]
fn doctor_asks_what_is_wrong_with_objects_and_fails_for_a_pod_whose_groups_are_none() {
    let invalid = |pod: &str| {
        serde_json::json!({"object": format!("Pod {pod}"), "field": "metadata.annotations.vpc.amazonaws.com/security-groups",
            "message": "\"nosuch\" is not a security group's id; the pod is denied everything"})
    };
    let flows = serde_json::json!({"flows": [], "diagnostics": [invalid("default/web-0"), invalid("x/of-another-node")]});
    let standing = r#"{"mode":"standard","complete":true,"diagnostics":2}"#;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let node = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("venictl connects");
        let mut line = String::new();
        BufReader::new(stream.try_clone().expect("a descriptor"))
            .read_line(&mut line)
            .expect("a request");
        let view: serde_json::Value =
            serde_json::from_str(include_str!("../src/testdata/busy.json")).expect("JSON");
        writeln!(stream, "{view}").expect("venictl reads");
    });
    let (address, server) = daemon_of(vec![ok(standing), ok(&flows.to_string())]);
    let path = socket.display().to_string();
    let output = venictl(&address, &["--socket", &path, "doctor", "-o", "json"]);
    node.join().expect("the node was asked");
    let asked = server.join().expect("the daemon was asked").remove(1).replace("%2F", "/");
    assert_eq!(asked, "GET /v1/policy/matrix?from=default/web-0&to=default/web-0 HTTP/1.1");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a document");
    let check = |name: &str| {
        let checks = document["checks"].as_array().expect("a list").iter();
        checks.filter(|check| check["name"] == name).cloned().collect::<Vec<_>>().remove(0)
    };
    let found = check("groups")["found"].as_str().expect("text").to_owned();
    assert_eq!(check("groups")["status"], "failed", "{document:#}");
    assert!(found.contains("web-0") && found.contains("nosuch"), "{found}");
    assert!(!found.contains("another-node"), "{found}");
    assert_eq!(check("policy")["status"], "warning", "{document:#}");
}

#[test]
fn an_end_that_another_node_judges_is_no_verdict() {
    let allow = serde_json::json!({"default": "allow"});
    let elsewhere = serde_json::json!({"default": "allow", "because": "judged on its own node"});
    let told = serde_json::json!([{"object": "Pod z/c", "field": "",
        "message": "is on there: its side is judged there, and not looked at here. Ask there, too"}]);
    for (egress, ingress, first) in [
        (&allow, &allow, "ALLOWED  x/a"),
        (&allow, &elsewhere, "ALLOWED here  x/a"),
        (&elsewhere, &elsewhere, "NOT JUDGED here  x/a"),
    ] {
        let flows = serde_json::json!({"diagnostics": told, "flows": [{"from": "x/a", "to": "z/c", "protocol": "TCP",
            "port": 80, "allowed": true, "decided_by": {"egress": egress, "ingress": ingress}}]});
        let (address, server) = daemon(ok(&flows.to_string()));
        let args = ["policy", "check", "--from", "x/a", "--to", "z/c", "--port", "80", "--live"];
        let output = venictl(&address, &args);
        server.join().expect("the daemon was asked");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with(first), "{text}");
        let unjudged = text.contains("ingress of z/c: not judged here (there decides)\n");
        assert_eq!(unjudged, ingress == &elsewhere, "{text}");
        assert_eq!(text.contains("has to allow it, too"), ingress == &elsewhere, "{text}");
    }
}

#[test]
fn a_plan_without_the_nodes_pods_is_no_whole_set() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("new.yaml");
    std::fs::write(&path, NOTHING_INTO_C).expect("a file");
    let standing = r#"{"mode":"standard","complete":true}"#;
    let (address, server) = daemon_of(vec![ok(&live(false, false)), ok(standing)]);
    let path = path.display().to_string();
    let output = venictl(&address, &["policy", "diff", "--live", "-f", &path]);
    server.join().expect("the daemon was asked");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("has to be the whole set"), "{said}");
}

#[test]
fn a_refusal_is_told_in_the_daemons_words() {
    let refuse = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    for (answer, code, words) in [
        (refuse("404 Not Found", "there is no pod x/q"), 2, "there is no pod x/q"),
        (refuse("404 Not Found", ""), 1, "older than this venictl"),
        (
            refuse(
                "503 Service Unavailable",
                "starting: waits for EC2 for 3 s; next step: check the route",
            ),
            1,
            "ipamd is starting: waits for EC2 for 3 s; next step: check the route",
        ),
        (ok("{"), 1, "cannot be read"),
    ] {
        let (address, server) = daemon(answer);
        let output = venictl(&address, &["policy", "explain", "x/q", "--live"]);
        server.join().expect("the daemon was asked");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }
}

#[test]
fn without_a_daemon_the_next_step_is_told() {
    let output = venictl("127.0.0.1:1", &["observe"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("--introspection"), "{stderr}");
}

#[test]
fn a_daemon_that_hangs_is_told_within_seconds() {
    // The kernel takes connections for it; nobody reads them.
    let hung = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = hung.local_addr().expect("bound").to_string();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let socket = dir.path().join("s");
    let _hung_too = UnixListener::bind(&socket).expect("a socket");
    let socket = socket.to_str().expect("text");
    let commands: [&[&str]; 5] = [
        &["policy", "matrix", "--live"],
        &["observe"],
        &["status", "--socket", socket],
        &["pool", "show", "--socket", socket],
        &["doctor", "--socket", socket],
    ];
    let start = Instant::now();
    std::thread::scope(|scope| {
        for args in commands {
            let address = &address;
            scope.spawn(move || {
                let output = venictl(address, args);
                let said = [output.stderr, output.stdout].concat();
                let said = String::from_utf8_lossy(&said);
                assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
                let tells = said.contains("ipamd hangs") && said.contains("restart it");
                assert!(tells, "{args:?}: {said}");
            });
        }
    });
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}

#[test]
fn a_daemon_that_hangs_while_it_is_observed_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound").to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("venictl connects");
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n\n\r\n";
        stream.write_all(head.as_bytes()).expect("venictl reads");
        // Both stay open, and nobody answers any more.
        (listener, stream)
    });
    let start = Instant::now();
    let output = venictl(&address, &["observe"]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("venictl: ipamd hangs") && said.contains("restart it"), "{said}");
    drop(server.join().expect("the daemon was asked"));
}

#[test]
fn where_http_is_off_the_variable_is_named() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let server = std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.expect("venictl connects");
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
            reader.read_line(&mut line).expect("venictl asks");
            let view = include_str!("../src/testdata/busy.json").replace('\n', " ") + "\n";
            stream.write_all(view.as_bytes()).expect("venictl reads");
        }
    });
    let socket = socket.to_str().expect("text");
    for (args, code) in [
        (&["policy", "matrix", "--live", "--socket", socket][..], 1),
        (&["status", "--socket", socket], 0),
    ] {
        let output = venictl("127.0.0.1:1", args);
        let said = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(
            said.contains("ipamd runs, but nobody answers")
                && said.contains("DISABLE_INTROSPECTION"),
            "{args:?}: {said}"
        );
    }
    server.join().expect("the daemon was asked twice");
}

#[test]
fn a_daemon_without_a_socket_yet_says_over_http_what_it_waits_for() {
    let body = "starting: waits for another ipamd for 9 s; next step: end the other one\n";
    let length = body.len();
    let (address, server) = daemon(format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: {length}\r\n\r\n{body}"
    ));
    let output = venictl(&address, &["status", "--socket", "/nonexistent/ipamd.sock"]);
    assert_eq!(server.join().expect("the daemon was asked"), "GET /readyz HTTP/1.1");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ipamd is starting: waits for another ipamd"), "{said}");
}

#[test]
fn flows_are_followed_line_by_line() {
    let event = r#"{"time_millis":1,"verdict":"denied","pod":"y/b","direction":"ingress","source":"[fd00::1]:5","destination":"[fd00::2]:80","protocol":"TCP"}"#;
    let (address, server) = daemon(chunked(&[event, event]));
    let output =
        venictl(&address, &["observe", "--verdict", "denied", "--port", "80", "-o", "json"]);
    let asked = server.join().expect("the daemon was asked");
    assert_eq!(asked, "GET /v1/flows?verdict=denied&port=80 HTTP/1.1");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
    assert_eq!(output.status.code(), Some(1), "the daemon has ended");
}

#[test]
fn what_is_not_in_force_yet_is_said() {
    let pending = FLOWS.replacen('{', r#"{"pending":true,"#, 1);
    for (body, said) in [(pending.as_str(), true), (FLOWS, false)] {
        let (address, server) = daemon(ok(body));
        let args = ["policy", "check", "--from", "x/a", "--to", "y/b", "--port", "80", "--live"];
        let output = venictl(&address, &args);
        server.join().expect("the daemon was asked");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.contains("Pending: not all of it"), said, "{text}");
    }
}

/// Of the daemon, unless the command line or the environment says.
#[test]
fn the_node_ports_of_manifests_are_those_of_the_nodes_daemon() {
    let manifests = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.9.0.1"}]}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "x"},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}]}, "status": {"podIP": "10.0.0.1"}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "x"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}}]}"#;
    let file = tempfile::NamedTempFile::with_suffix(".json").expect("a temporary file");
    std::fs::write(file.path(), manifests).expect("room for it");
    let path = file.path().to_str().expect("UTF-8");
    let check = |answer: String, port: &str, refused: bool| {
        let (address, asked) = daemon(answer);
        let args =
            ["policy", "check", "-f", path, "--from", "x/a", "--to", "10.9.0.1", "--port", port];
        let output = venictl(&address, &args);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(text.contains("unknown_service"), refused, "{port}: {text}");
        assert_eq!(asked.join().expect("asked"), "GET /v1/settings HTTP/1.1");
    };
    let known = r#"{"POD_MTU":"9001","VENI_NODE_PORT_RANGE":"20000-20100"}"#;
    check(ok(known), "20001", true);
    check(ok(known), "30001", false);
    check(ok("{}"), "30001", true);
    let starts = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 8\r\n\r\nstarting";
    check(starts.to_owned(), "30001", true);
    let of_environment = |address: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_venictl"));
        command.env("INTROSPECTION_BIND_ADDRESS", address).env("VENI_NODE_PORT_RANGE", "1-9");
        command.args(["policy", "check", "-f", path, "--from", "x/a", "--to", "10.9.0.1"]);
        command.args(["--port", "9"]).output().expect("cargo has built the binary")
    };
    // Nobody is there to be asked.
    let text = String::from_utf8(of_environment("127.0.0.1:1").stdout).expect("UTF-8");
    assert!(text.contains("unknown_service"), "{text}");
}
