//! Verdicts, changes and explanations for people.

use std::fmt::Write as _;

use veni_core::wire::inspect::policy::{
    Decision, Diagnostic, Explanation, Family, Flow, Flows, PolicyRef, PortEntry, Side, TableEntry,
};

use super::difference::{Change, Compared, Difference, Judged, is_elsewhere};
use crate::{standing::of_it, text};

/// Under what the tables do not have yet.
const PENDING: &str = "Pending: not all of it is in the programs' tables yet; packets are judged by what was before.\n";
/// Peers of an entry that are printed by name.
const PEERS: usize = 8;

/// Characters of the column of peers; longer lists go on below.
const PEER_WIDTH: usize = 60;

/// A verdict a family, with what decided at each end.
pub(super) fn check(flows: &Flows) -> String {
    let behind = if flows.pending { PENDING } else { "" };
    let verdict = |flow| verdict(flow, &flows.diagnostics);
    flows.flows.iter().map(verdict).chain([behind.to_owned()]).collect()
}

/// What decided at one end, or that it was not asked here.
fn side_of(decision: &Decision, node: Option<&str>) -> String {
    if is_elsewhere(decision) {
        return format!("not judged here ({} decides)", node.unwrap_or("its own node"));
    }
    decision.to_string()
}

/// The node that judges a pod, as the daemon tells it beside its verdicts (`is on NODE: …`).
fn node_of<'a>(pod: &str, told: &'a [Diagnostic]) -> Option<&'a str> {
    let of_pod = |told: &&Diagnostic| told.object.strip_prefix("Pod ") == Some(pod);
    let said = told.iter().filter(of_pod).find_map(|told| told.message.strip_prefix("is on "))?;
    said.split_once(':').map(|(node, _)| node)
}

fn verdict(flow: &Flow, nodes: &[Diagnostic]) -> String {
    let Flow { from, to, protocol, port, family, service, allowed, decided_by, security_groups } =
        flow;
    let unjudged = [&decided_by.egress, &decided_by.ingress].map(is_elsewhere);
    let verdict = match (*allowed, unjudged) {
        (false, _) => "DENIED",
        (true, [false, false]) => "ALLOWED",
        (true, [true, true]) => "NOT JUDGED here",
        (true, _) => "ALLOWED here",
    };
    let over = over(*family);
    let service =
        service.as_ref().map(|service| format!("  (Service {service})")).unwrap_or_default();
    let mut out = format!(
        "{verdict}  {from} -> {to}  {}{over}{service}\n  egress of {from}: {}\n  ingress of {to}: {}\n",
        traffic(protocol, *port),
        side_of(&decided_by.egress, node_of(from, nodes)),
        side_of(&decided_by.ingress, node_of(to, nodes))
    );
    if verdict.ends_with("here") {
        out += "  Whoever judges the other end has to allow it, too: ask there.\n";
    }
    let groups = security_groups.as_ref();
    for (end, decision) in [
        (from, groups.and_then(|groups| groups.egress.as_ref())),
        (to, groups.and_then(|groups| groups.ingress.as_ref())),
    ] {
        if let Some(decision) = decision {
            out += &format!("  security groups of {end} by themselves: {decision}\n");
        }
    }
    out
}

/// `TCP 80`, `ICMP type 8 code 0`, `47`.
fn traffic(protocol: &str, port: u16) -> String {
    match protocol {
        "TCP" | "UDP" | "SCTP" => format!("{protocol} {port}"),
        "ICMP" | "ICMPv6" => format!("{protocol} type {} code {}", port >> 8, port & 0xff),
        _ => protocol.to_owned(),
    }
}

fn over(family: Option<Family>) -> String {
    family.map(|family| format!(" over {family}")).unwrap_or_default()
}

/// The connections that change, and their sum.
pub(super) fn difference(difference: &Difference) -> String {
    changes(difference) + &difference.compared.as_ref().map(compared).unwrap_or_default()
}

/// What of a node's state was compared.
fn compared(compared: &Compared) -> String {
    let Compared { connections, elsewhere, of_groups } = compared;
    let connections = text::counted(*connections, "connection");
    let mut out = format!("Compared: {connections} that this node judges.\n");
    if !elsewhere.is_empty() {
        let named: Vec<_> = elsewhere.iter().take(PEERS).map(String::as_str).collect();
        let more = match elsewhere.len().saturating_sub(PEERS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        out += &format!(
            "Not compared: the ends of {}{more}, which other nodes judge: ask there, too.\n",
            named.join(", ")
        );
    }
    if *of_groups > 0 {
        out += &format!(
            "Not compared: {} of pods with security groups, whose rules are not given (--security-groups).\n",
            text::counted(*of_groups, "connection")
        );
    }
    out
}

fn changes(difference: &Difference) -> String {
    if difference.changes.is_empty() {
        return "No connection changes.\n".to_owned();
    }
    let rows = difference.changes.iter().map(change).collect();
    let (mut opened, mut closed) = (0, 0);
    for change in &difference.changes {
        let allowed = |judged: &Option<Judged>| judged.as_ref().is_some_and(|j| j.allowed);
        opened += u32::from(allowed(&change.after) && !allowed(&change.before));
        closed += u32::from(allowed(&change.before) && !allowed(&change.after));
    }
    let table =
        text::table(&["", "FROM", "TO", "PORT", "BEFORE", "AFTER", "BECAUSE OF"], 0..0, rows);
    let open = if opened == 1 { "opens" } else { "open" };
    let close = if closed == 1 { "closes" } else { "close" };
    format!("{table}\n{} {open}, {closed} {close}.\n", text::counted(opened, "connection"))
}

fn change(change: &Change) -> Vec<String> {
    let Change { from, to, protocol, port, family, before, after } = change;
    let word = |judged: &Option<Judged>| match judged {
        None => "-",
        Some(judged) if judged.allowed => "allowed",
        Some(_) => "denied",
    };
    let sign = if after.as_ref().is_some_and(|after| after.allowed) { "+" } else { "-" };
    let cause = after.as_ref().or(before.as_ref()).map(|judged| {
        let by = &judged.decided_by;
        // An allowed connection has two causes, a denied one those sides that deny; both are worth reading.
        format!("{}; {}", side_of(&by.egress, None), side_of(&by.ingress, None))
    });
    vec![
        sign.to_owned(),
        from.clone(),
        to.clone(),
        format!("{}{}", traffic(protocol, *port), over(*family)),
        word(before).to_owned(),
        word(after).to_owned(),
        cause.unwrap_or_default(),
    ]
}

/// What applies to a pod.
pub(super) fn explanation(explanation: &Explanation) -> String {
    let Explanation { pod, addresses, labels, namespace_labels, .. } = explanation;
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let pairs = |labels: &std::collections::BTreeMap<String, String>| {
        let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if pairs.is_empty() { "(none)".to_owned() } else { pairs.join(" ") }
    };
    let mut out = format!(
        "{pod}  {}\n  labels: {}\n  labels of its namespace: {}\n",
        if addresses.is_empty() { "(no address)".to_owned() } else { addresses.join(" ") },
        pairs(labels),
        pairs(namespace_labels),
    );
    if explanation.host_network {
        out += "  It is on its node's network, where no policy holds.\n";
    }
    for group in &explanation.security_groups {
        let state = group
            .unresolved
            .as_ref()
            .map(|why| format!(": denies everything: {}", of_it(&group.id, why)));
        out += &format!("  security group {}{}\n", group.id, state.unwrap_or_default());
    }
    if explanation.pending {
        out += &format!("  {PENDING}");
    }
    for note in &explanation.notes {
        out += &format!("  {note}\n");
    }
    let has_groups = !explanation.security_groups.is_empty();
    out + &side("Egress: what it may connect to", &explanation.egress, has_groups)
        + &side("Ingress: who may connect to it", &explanation.ingress, has_groups)
}

fn side(heading: &str, side: &Side, has_groups: bool) -> String {
    let isolation = match (side.isolated, has_groups) {
        (true, true) => "isolated by a NetworkPolicy, restricted by security groups",
        (true, false) => "isolated by a NetworkPolicy",
        (false, true) => "restricted by security groups",
        (false, false) => "not isolated",
    };
    let mut out = format!("\n{heading} ({isolation})\n");
    for policy in &side.policies {
        out += &format!("  {}\n", named(policy));
    }
    if side.policies.is_empty() {
        out += "  no policy selects it\n";
    }
    let rows: Vec<Vec<String>> = side.table.iter().flat_map(entry).collect();
    if !rows.is_empty() {
        out.push('\n');
        for line in text::table(&["PEER", "PORTS", "VERDICT", "DECIDED BY"], 0..0, rows).lines() {
            writeln!(out, " {line}").expect("a string takes everything");
        }
    }
    out
}

fn named(policy: &PolicyRef) -> String {
    let PolicyRef { kind, namespace, name, tier, priority, rules } = policy;
    let namespace = namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    let tier = match (tier, priority) {
        (Some(tier), Some(priority)) => format!(" ({tier}, priority {priority})"),
        _ => String::new(),
    };
    format!("{kind} {namespace}{name}{tier}: {}", text::counted(*rules, "rule"))
}

fn entry(entry: &TableEntry) -> Vec<Vec<String>> {
    let peer = match &entry.peers[..] {
        [] => "everyone else".to_owned(),
        peers if peers.len() > PEERS => {
            format!("{} and {} more", peers[..PEERS].join(" "), peers.len() - PEERS)
        }
        peers => peers.join(" "),
    };
    let mut peer = text::wrapped(&peer, PEER_WIDTH);
    let rows = entry.ports.iter().map(|port| {
        vec![
            std::mem::take(&mut peer),
            ports(port),
            if port.allowed { "allow" } else { "deny" }.to_owned(),
            port.decided_by.to_string(),
        ]
    });
    rows.collect()
}

fn ports(entry: &PortEntry) -> String {
    let PortEntry { protocol, first, last, .. } = entry;
    match (protocol.as_str(), *first, *last) {
        ("*", 0, u16::MAX) => "all".to_owned(),
        (_, 0, u16::MAX) => protocol.clone(),
        ("ICMP" | "ICMPv6", first, last) if first >> 8 == last >> 8 && last - first == 0xff => {
            format!("{protocol} type {}", first >> 8)
        }
        ("ICMP" | "ICMPv6", first, last) if first != last => {
            format!("{} to type {} code {}", traffic(protocol, first), last >> 8, last & 0xff)
        }
        (_, first, last) if first == last => traffic(protocol, first),
        _ => format!("{protocol} {first}-{last}"),
    }
}
