//! Two policies that disagree: the one that allows wins, in its own direction only.

use serde_json::{Value, json};

use super::super::manifest::{labels, network_policy};
use super::{Addresses, Case, Direction, Theme, dns_rule, one_step};

/// What a policy says about one direction of its target.
#[derive(Debug, Clone, Copy)]
enum Says {
    AllowAll,
    DenyAll,
    AllowByPod,
    AllowByIp,
    /// A rule that no pod meets.
    DenyByPod,
    /// A rule that no address meets.
    DenyByIp,
}

impl Says {
    const fn name(self) -> &'static str {
        match self {
            Self::AllowAll => "allow-all",
            Self::DenyAll => "deny-all",
            Self::AllowByPod => "allow-all-by-pod",
            Self::AllowByIp => "allow-all-by-ip",
            Self::DenyByPod => "deny-all-by-pod",
            Self::DenyByIp => "deny-all-by-ip",
        }
    }

    fn rules(self, direction: Direction) -> Value {
        let peers = |peer: Value| json!([{direction.peers(): [peer]}]);
        let nobody = labels(&json!({"this-will-never-happen": "qrs123"}));
        match self {
            Self::AllowAll => json!([{}]),
            Self::DenyAll => json!([]),
            Self::AllowByPod => peers(json!({"namespaceSelector": {}})),
            Self::AllowByIp => peers(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})),
            Self::DenyByPod => peers(json!({"namespaceSelector": nobody})),
            Self::DenyByIp => peers(json!({"ipBlock": {"cidr": "0.0.0.0/31"}})),
        }
    }
}

/// Each target is x/b (the source of the first two cases) or y/c (their destination).
#[derive(Debug, Clone, Copy)]
enum Target {
    Xb,
    Yc,
}

pub(super) fn cases(addresses: Addresses<'_>) -> Vec<Case> {
    use Direction::{Egress, Ingress};
    use Says::{AllowAll, AllowByIp, AllowByPod, DenyAll, DenyByIp, DenyByPod};
    use Target::{Xb, Yc};
    let table: [&[(Target, Direction, Says)]; 16] = [
        &[(Xb, Egress, DenyAll), (Yc, Ingress, AllowAll)],
        &[(Xb, Egress, AllowAll), (Yc, Ingress, DenyAll)],
        &[(Xb, Egress, DenyAll), (Xb, Egress, AllowAll)],
        &[(Yc, Ingress, DenyAll), (Yc, Ingress, AllowAll)],
        &[(Xb, Egress, DenyAll), (Xb, Egress, AllowByPod)],
        &[(Xb, Egress, DenyAll), (Xb, Egress, AllowByIp)],
        &[(Xb, Egress, DenyByIp), (Xb, Egress, AllowByPod)],
        &[(Xb, Egress, DenyByPod), (Xb, Egress, AllowByIp)],
        &[(Xb, Ingress, DenyAll), (Xb, Ingress, AllowByPod)],
        &[(Xb, Ingress, DenyAll), (Xb, Ingress, AllowByIp)],
        &[(Xb, Ingress, DenyByIp), (Xb, Ingress, AllowByPod)],
        &[(Xb, Ingress, DenyByPod), (Xb, Ingress, AllowByIp)],
        &[(Xb, Egress, DenyByIp)],
        &[(Xb, Egress, DenyByPod)],
        &[(Xb, Ingress, DenyByIp)],
        &[(Xb, Ingress, DenyByPod)],
    ];
    table.iter().map(|policies| case(addresses, policies)).collect()
}

fn case(addresses: Addresses<'_>, policies: &[(Target, Direction, Says)]) -> Case {
    let mut manifests: Vec<Value> = policies.iter().map(|policy| manifest(*policy)).collect();
    if policies.iter().any(|(_, direction, _)| *direction == Direction::Egress) {
        let rules = Some(json!([dns_rule()]));
        manifests.push(network_policy("x", "dns", &labels(&json!({"pod": "b"})), None, rules));
    }
    let names: Vec<String> = policies
        .iter()
        .map(|(target, direction, says)| format!("{target:?} {} {}", direction.name(), says.name()))
        .collect();
    one_step(addresses, Theme::Conflict, format!("conflict: {}", names.join(", ")), manifests)
}

fn manifest((target, direction, says): (Target, Direction, Says)) -> Value {
    let (namespace, pod) = match target {
        Target::Xb => ("x", "b"),
        Target::Yc => ("y", "c"),
    };
    let (ingress, egress) = match direction {
        Direction::Ingress => (Some(says.rules(direction)), None),
        Direction::Egress => (None, Some(says.rules(direction))),
    };
    let name = format!("{}-{}", says.name(), direction.name());
    network_policy(namespace, &name, &labels(&json!({"pod": pod})), ingress, egress)
}
