use clap::Parser;
use serde_json::json;

use super::*;
use crate::cli::{Cli, Command};

fn observe(args: &str) -> Observe {
    let cli = Cli::parse_from(["venictl", "observe"].into_iter().chain(args.split_whitespace()));
    let Command::Observe(observe) = cli.command else { panic!("{args}") };
    observe
}

fn event(verdict: &str, direction: &str, pod: &str, peer: Option<&str>, port: u16) -> String {
    json!({
        "time_millis": 50_587_123, "verdict": verdict, "pod": pod, "direction": direction, "peer": peer,
        "source": "10.0.0.1:4711", "destination": format!("10.0.0.2:{port}"), "protocol": "TCP",
        "decided_by": {"kind": "NetworkPolicy", "namespace": "y", "name": "deny", "rule": null},
        "field_of_a_newer_ipamd": 1,
    })
    .to_string()
        + "\n"
}

fn stream() -> String {
    event("denied", "ingress", "y/b", Some("x/a"), 80)
        + "\n"
        + &event("allowed", "egress", "x/a", Some("y/b"), 53)
        + &event("dropped", "egress", "z/c", None, 80)
}

/// What is printed of the stream, and whether its end was one.
fn printed(args: &str, format: Format) -> (String, bool) {
    let mut out = Vec::new();
    let ended = follow(stream().as_bytes(), &observe(args), format, &mut out).is_err();
    (String::from_utf8(out).unwrap(), ended)
}

#[test]
fn filters_are_all_met() {
    for (args, expect) in [
        ("", "denied allowed dropped"),
        ("--pod x/a", "denied allowed"),
        ("--pod z/c", "dropped"),
        ("--pod b", ""),
        ("--pod 10.0.0.1", "denied allowed dropped"),
        ("--namespace y", "denied allowed"),
        ("--namespace y --port 80", "denied"),
        ("--port 80", "denied dropped"),
        ("--port 80 --port 53", "denied allowed dropped"),
        ("--verdict denied --verdict dropped", "denied dropped"),
        ("--verdict allowed --namespace z", ""),
        ("--limit 1", "denied"),
        ("--limit 0", ""),
    ] {
        let (text, _) = printed(args, Format::Json);
        let verdicts: Vec<String> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<FlowEvent>(line).unwrap().verdict.as_str().to_owned()
            })
            .collect();
        assert_eq!(verdicts.join(" "), expect, "{args}");
    }
}

#[test]
fn a_line_for_people_names_pods_verdict_and_rule() {
    let (text, _) = printed("--limit 1", Format::Human);
    assert_eq!(
        text,
        "14:03:07.123  DENIED   x/a (10.0.0.1:4711) -> y/b (10.0.0.2:80)  TCP  \
         ingress of y/b: NetworkPolicy y/deny, no rule of which allows it\n"
    );
}

#[test]
fn a_message_of_icmp_has_no_ports() {
    for (direction, protocol, source, destination, expect) in [
        (
            "egress",
            "ICMP",
            "10.0.0.1:77",
            "10.0.0.2:2048",
            "x/a (10.0.0.1) -> 10.0.0.2  ICMP echo request  egress",
        ),
        (
            "ingress",
            "ICMP",
            "10.0.0.2:2048",
            "10.0.0.1:77",
            "10.0.0.2 -> x/a (10.0.0.1)  ICMP echo request  ingress",
        ),
        (
            "egress",
            "ICMPv6",
            "[fd00::1]:7",
            "[fd00::2]:32768",
            "x/a (fd00::1) -> fd00::2  ICMPv6 echo request  egress",
        ),
        (
            "egress",
            "ICMP",
            "10.0.0.1:0",
            "10.0.0.2:3329",
            "-> 10.0.0.2  ICMP type 13 code 1  egress",
        ),
        ("egress", "UDP", "10.0.0.1:77", "10.0.0.2:2048", "-> 10.0.0.2:2048  UDP  egress"),
    ] {
        let event = json!({"time_millis": 1, "verdict": "denied", "pod": "x/a", "direction": direction,
            "source": source, "destination": destination, "protocol": protocol});
        let text = human(&serde_json::from_value(event).unwrap());
        assert!(text.contains(expect), "{text}");
    }
}

#[test]
fn the_end_of_the_daemon_is_told_and_the_limit_is_not() {
    assert!(printed("", Format::Json).1);
    assert!(!printed("--limit 2", Format::Json).1);
}
