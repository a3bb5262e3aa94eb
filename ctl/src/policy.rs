//! `venictl policy`: who may talk to whom and which rule says so, from manifests or from the daemon.
//!
//! Manifests that cannot be read are a wrong command line (exit 2); an object that is invalid is a diagnostic, in the
//! document and on stderr, and the rest is judged without it. A verdict is what was asked for: "denied" exits 0.

use std::{collections::BTreeSet, path::Path};

use veni_core::{
    config::NodePorts,
    wire::inspect::policy::{Diagnostic, Explanation, Flows, Standing},
};
use veni_policy::{
    object::Pod,
    view::{End, PodFilter, Question, Unanswerable},
};

use crate::{Report, Usage, cli::Format, http};
use arguments::{Check, Diff, Explain, Matrix, PolicyCommand, Source};
use cluster::{Cluster, OfNode};
use difference::Difference;

pub(crate) mod arguments;
mod cluster;
mod difference;
mod groups;
mod human;

mod picture;

/// As the daemon calls them among its settings.
const NODE_PORT_RANGE: &str = "VENI_NODE_PORT_RANGE";
/// An echo request: type 8 or 128, code 0.
const ECHO: [(u8, u16); 2] = [(1, 8 << 8), (58, 128 << 8)];

pub(crate) fn report(command: &PolicyCommand, format: Format) -> anyhow::Result<Report> {
    match command {
        PolicyCommand::Check(check) => self::check(check, format),
        PolicyCommand::Matrix(matrix) => self::matrix(matrix, format),
        PolicyCommand::Diff(diff) => self::diff(diff, format),
        PolicyCommand::Explain(explain) => self::explain(explain, format),
    }
}

fn check(check: &Check, format: Format) -> anyhow::Result<Report> {
    let question = question(check)?;
    let flows = if check.source.live {
        let parameters = [
            ("from", question.from.to_string()),
            ("to", question.to.to_string()),
            ("protocol", veni_policy::view::protocol_name(question.protocol)),
            ("port", question.port.to_string()),
        ];
        live::<Flows>(&check.source, "check", &parameters)?
    } else {
        let cluster = Cluster::read(&check.source.files, &check.source.security_groups)?
            .with_service_cidrs(check.service_cidrs.iter().filter_map(|given| given.0).collect());
        let node_ports = node_ports(check, &question, &cluster);
        let cluster = cluster.with_node_ports(node_ports);
        let mut flows = cluster.view().check(&question).map_err(usage)?;
        let notes = flows.flows.iter().filter_map(|flow| cluster.note(flow)).map(note);
        flows.diagnostics = notes.collect();
        flows.diagnostics.extend(cluster.diagnostics);
        flows
    };
    document(&flows, format, human::check)
}

/// The cluster's node ports: as told, as this node's daemon has them, or the API server's default. The daemon is asked only
/// where they matter.
fn node_ports(check: &Check, question: &Question, cluster: &Cluster) -> NodePorts {
    let of_daemon = || match question.to {
        End::Address(to) if cluster.is_of_node(to) => {
            http::setting(&check.source.daemon.introspection, NODE_PORT_RANGE)?.parse().ok()
        }
        _ => None,
    };
    check.node_port_range.and_then(|given| given.0).or_else(of_daemon).unwrap_or_default()
}

fn note(message: String) -> Diagnostic {
    Diagnostic { message, ..Diagnostic::default() }
}

fn question(check: &Check) -> Result<Question, Usage> {
    let Check { from, to, protocol, port, icmp, .. } = check;
    let name = veni_policy::view::protocol_name(*protocol);
    let wrong = |sentence: String| Err(Usage(vec![sentence]));
    let echo = ECHO.iter().find(|(number, _)| number == protocol).map(|(_, port)| *port);
    let port = match (*port, *icmp, echo) {
        (Some(_), _, Some(_)) => {
            return wrong(format!(
                "{name} has no ports: leave --port out for an echo request, or name the message with --icmp TYPE[/CODE]"
            ));
        }
        (_, Some(_), None) => {
            return wrong(format!("--icmp is for ICMP and ICMPv6, and --protocol is {name}"));
        }
        (None, Some((kind, code)), Some(_)) => u16::from(kind) << 8 | u16::from(code),
        (None, None, Some(echo)) => echo,
        (port, None, None) => match (port, has_ports(*protocol)) {
            (Some(0), true) => return wrong("--port 0: no connection goes there".to_owned()),
            (Some(port), true) => port,
            (None, false) => 0,
            (None, true) => return wrong("--port is missing".to_owned()),
            (Some(_), false) => {
                return wrong(format!(
                    "--port is for TCP, UDP and SCTP: protocol {name} has none that are judged"
                ));
            }
        },
    };
    Ok(Question { from: from.clone(), to: to.clone(), protocol: *protocol, port })
}

/// TCP, UDP, SCTP.
const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

fn matrix(matrix: &Matrix, format: Format) -> anyhow::Result<Report> {
    let Matrix { from, to, source } = matrix;
    let flows = if source.live {
        live(source, "matrix", &narrowing(from.as_ref(), to.as_ref()))?
    } else {
        matrix_of(
            &Cluster::read(&source.files, &source.security_groups)?,
            from.as_ref(),
            to.as_ref(),
        )?
    };
    document(&flows, format, picture::matrix)
}

fn diff(diff: &Diff, format: Format) -> anyhow::Result<Report> {
    let Diff { files, live, .. } = diff;
    let (old, new) = match (&files[..], live) {
        ([old, new], false) => {
            // A pod that is filtered for may be in one of the two only.
            (Side::of(old, diff)?, Side::of(new, diff)?)
        }
        ([new], true) => return beside_live(new, diff, format),
        _ => {
            let sentence = "diff compares two: -f OLD -f NEW, or --live -f NEW".to_owned();
            return Err(Usage(vec![sentence]).into());
        }
    };
    if let (Some(absent), Some(_)) = (old.absent, &new.absent) {
        return Err(usage(absent).into());
    }
    let without = match (old.pods, new.pods) {
        (false, false) => {
            let [old, new] = [0, 1].map(|index| files[index].display());
            let sentence = format!(
                "neither {old} nor {new} has a pod with an address, so nothing can be compared: each has to be a whole set, \
                 Namespaces, Pods with addresses, Services and policies"
            );
            return Err(Usage(vec![sentence]).into());
        }
        (false, true) => Some(&files[0]),
        (true, false) => Some(&files[1]),
        (true, true) => None,
    };
    let mut difference = difference::between(old.flows, new.flows);
    difference.diagnostics.extend(without.map(|path| {
        let path = path.display();
        note(format!(
            "{path} has no pod with an address: every connection of the other's pods is told as a change"
        ))
    }));
    compared(&difference, format)
}

/// What is in force here and what would be, as far as this node judges it.
fn beside_live(new: &Path, diff: &Diff, format: Format) -> anyhow::Result<Report> {
    let address = &diff.daemon.introspection;
    let parameters = narrowing(diff.from.as_ref(), diff.to.as_ref());
    let live: Flows = http::document(address, "/v1/policy/matrix", &parameters)?;
    let standing: Standing = http::document(address, "/v1/policy", &[])?;
    let cluster = Cluster::read(&[new], &diff.security_groups)?.in_mode(&standing.mode);
    let elsewhere = difference::elsewhere(&live, cluster.pods());
    let node = OfNode { cluster: &cluster, elsewhere };
    let known: BTreeSet<_> = live.flows.iter().flat_map(|flow| [&flow.from, &flow.to]).collect();
    let is_known = |pod: &Pod| known.contains(&format!("{}/{}", pod.namespace, pod.name));
    if !known.is_empty() && !cluster.pods().any(is_known) {
        let sentence = format!(
            "{} has none of the pods that are in force here: it has to be the whole set, Namespaces, Pods with addresses and \
             policies (e.g. a copy of the folder VENI_MANIFEST_DIR with the change in it)",
            new.display()
        );
        return Err(Usage(vec![sentence]).into());
    }
    let view = cluster.view_of(&node);
    // A pod that is filtered for may be in force only.
    let mut flows = view.matrix(diff.from.as_ref(), diff.to.as_ref()).unwrap_or_default();
    flows.diagnostics.extend(cluster.diagnostics.iter().cloned());
    let pending = live.pending;
    let mut difference =
        difference::between_here(live, flows, &node.elsewhere, diff.security_groups.is_empty());
    if pending {
        let message = "not all of what is known is in force yet: what is compared is what will be";
        difference.diagnostics.push(note(message.to_owned()));
    }
    compared(&difference, format)
}

fn compared(difference: &Difference, format: Format) -> anyhow::Result<Report> {
    let mut report = Report::of(format, difference, || human::difference(difference))?;
    report.asides = difference.diagnostics.iter().map(|line| format!("warning: {line}")).collect();
    Ok(report)
}

/// One of two states that are compared.
struct Side {
    flows: Flows,
    /// Whether any pod of it has an address, filtered for or not.
    pods: bool,
    /// What was asked for is not in it.
    absent: Option<Unanswerable>,
}

impl Side {
    fn of(path: &Path, diff: &Diff) -> anyhow::Result<Self> {
        let cluster = Cluster::read(&[path], &diff.security_groups)?;
        let pods = cluster.pods().any(|pod| !pod.finished && !pod.addresses.is_empty());
        Ok(match cluster.view().matrix(diff.from.as_ref(), diff.to.as_ref()) {
            Ok(mut flows) => {
                flows.diagnostics.splice(0..0, cluster.diagnostics.iter().cloned());
                Self { flows, pods, absent: None }
            }
            Err(absent) => {
                let diagnostics = cluster.diagnostics;
                let flows = Flows { diagnostics, ..Flows::default() };
                Self { flows, pods, absent: Some(absent) }
            }
        })
    }
}

fn explain(explain: &Explain, format: Format) -> anyhow::Result<Report> {
    let End::Pod { namespace, name } = &explain.pod else {
        return Err(
            Usage(vec![format!("{} is no pod: name it namespace/name", explain.pod)]).into()
        );
    };
    let explanation: Explanation = if explain.source.live {
        live(&explain.source, "explain", &[("pod", explain.pod.to_string())])?
    } else {
        Cluster::read(&explain.source.files, &explain.source.security_groups)?
            .explain(namespace, name)
            .map_err(usage)?
    };
    let mut report = Report::of(format, &explanation, || human::explanation(&explanation))?;
    report.asides = explanation.diagnostics.iter().map(|line| format!("warning: {line}")).collect();
    Ok(report)
}

fn matrix_of(
    cluster: &Cluster,
    from: Option<&PodFilter>,
    to: Option<&PodFilter>,
) -> Result<Flows, Usage> {
    let mut flows = cluster.view().matrix(from, to).map_err(usage)?;
    flows.diagnostics.splice(0..0, cluster.diagnostics.iter().cloned());
    Ok(flows)
}

fn live<T: serde::de::DeserializeOwned>(
    source: &Source,
    what: &str,
    parameters: &[(&str, String)],
) -> anyhow::Result<T> {
    http::document(&source.daemon.introspection, &format!("/v1/policy/{what}"), parameters)
}

fn narrowing(from: Option<&PodFilter>, to: Option<&PodFilter>) -> Vec<(&'static str, String)> {
    [("from", from), ("to", to)]
        .into_iter()
        .filter_map(|(name, filter)| filter.map(|filter| (name, filter.to_string())))
        .collect()
}

fn document(
    flows: &Flows,
    format: Format,
    draw: impl FnOnce(&Flows) -> String,
) -> anyhow::Result<Report> {
    let mut report = Report::of(format, flows, || draw(flows))?;
    report.asides = flows.diagnostics.iter().map(|line| format!("warning: {line}")).collect();
    Ok(report)
}

fn usage(unanswerable: Unanswerable) -> Usage {
    Usage(vec![unanswerable.to_string()])
}
