//! The ports of one rule: none, single forms, forms that match nothing, pairs.

use serde_json::{Value, json};

use super::{Addresses, Base, Case, Direction, PORTS, PROTOCOLS, Theme, one_step, port_name};

pub(super) fn cases(addresses: Addresses<'_>) -> Vec<Case> {
    let lists: Vec<Value> = std::iter::once(json!([]))
        .chain(single().into_iter().map(|port| json!([port])))
        .chain(pathological().into_iter().map(|port| json!([port])))
        .chain(pairs())
        .collect();
    let mut cases = Vec::new();
    for direction in Direction::BOTH {
        for list in &lists {
            let mut base = Base::new();
            base.rule(direction)["ports"] = list.clone();
            let name = format!("ports: {} {list}", direction.name());
            cases.push(one_step(addresses, Theme::Ports, name, [base.manifest()]));
        }
    }
    cases
}

/// Protocol {nil, TCP, UDP, SCTP} × port {nil, 80, 81}; six names; two ranges × three protocols.
fn single() -> Vec<Value> {
    let mut ports = Vec::new();
    for protocol in [None, Some("TCP"), Some("UDP"), Some("SCTP")] {
        for port in [None, Some(80), Some(81)] {
            let mut entry = json!({});
            if let Some(protocol) = protocol {
                entry["protocol"] = json!(protocol);
            }
            if let Some(port) = port {
                entry["port"] = json!(port);
            }
            ports.push(entry);
        }
    }
    for port in PORTS {
        for protocol in PROTOCOLS {
            ports.push(json!({"protocol": protocol, "port": port_name(port, protocol)}));
        }
    }
    for end in [80, 84] {
        for protocol in PROTOCOLS {
            ports.push(json!({"protocol": protocol, "port": 53, "endPort": end}));
        }
    }
    ports
}

/// A name under another protocol, a name and a number that nobody serves.
fn pathological() -> [Value; 3] {
    [
        json!({"protocol": "UDP", "port": "serve-80-tcp"}),
        json!({"protocol": "TCP", "port": "serve-7981-tcp"}),
        json!({"protocol": "TCP", "port": 7981}),
    ]
}

fn pairs() -> [Value; 7] {
    let tcp = |port: Value| json!({"protocol": "TCP", "port": port});
    let udp = |port: Value| json!({"protocol": "UDP", "port": port});
    let sctp = |port: Value| json!({"protocol": "SCTP", "port": port});
    [
        json!([tcp(json!(80)), tcp(json!(81))]),
        json!([tcp(json!(80)), udp(json!(80))]),
        json!([tcp(json!(80)), sctp(json!(81))]),
        json!([{"protocol": "TCP"}, udp(json!(81))]),
        json!([tcp(json!("serve-80-tcp")), udp(json!("serve-81-udp"))]),
        json!([tcp(json!("serve-81-tcp")), tcp(json!(80))]),
        json!([tcp(json!(80)), tcp(json!("serve-80-tcp"))]),
    ]
}
