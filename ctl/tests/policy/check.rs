//! `policy check`.

use super::*;

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
        ("x/a", "10.9.0.1", "20100", "--node-port-range=20000-20100", refused),
        ("x/a", "10.9.0.1", "30001", "--node-port-range=20000-20100", "ALLOWED"),
        ("x/a", "10.9.0.1", "1", "--node-port-range=30000", "such as 30000-32767"),
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
fn an_empty_variable_is_as_good_as_none() {
    let dir = folder(&[("m.yaml", &(two_pods() + DENY_TO_B))]);
    let args = ["policy", "check", "-f", "m.yaml", "--from", "x/a", "--to", "y/b", "--port", "80"];
    for (name, value, expect) in [
        ("VENI_NODE_PORT_RANGE", "", Some(0)),
        ("VENI_SERVICE_CIDRS", "", Some(0)),
        ("VENI_NODE_PORT_RANGE", "1", Some(2)),
        ("VENI_SERVICE_CIDRS", "172.20.0.0/16,", Some(0)),
        ("VENI_SERVICE_CIDRS", "x", Some(2)),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_venictl"));
        let output = command.args(args).env(name, value).current_dir(dir.path()).output();
        let output = output.expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), expect, "{name}={value:?}: {told}");
    }
}
