//! `venictl policy`: who may talk to whom and which rule says so, from manifests or from the daemon.
//!
//! Manifests that cannot be read are a wrong command line (exit 2); an object that is invalid is a diagnostic, in the
//! document and on stderr, and the rest is judged without it. A verdict is what was asked for: "denied" exits 0.

use std::path::Path;

use veni_core::wire::inspect::policy::{Explanation, Flows};
use veni_policy::view::{End, PodFilter, Question, Unanswerable};

use crate::{Report, Usage, cli::Format, http};
use arguments::{Check, Diff, Explain, Matrix, PolicyCommand, Source};
use cluster::Cluster;

pub(crate) mod arguments;
mod cluster;
mod difference;
mod groups;
mod human;

mod picture;

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
        live(&check.source, "check", &parameters)?
    } else {
        let cluster = Cluster::read(&check.source.files, &check.source.security_groups)?;
        let mut flows = cluster.view().check(&question).map_err(usage)?;
        flows.diagnostics = cluster.diagnostics;
        flows
    };
    document(&flows, format, human::check)
}

fn question(check: &Check) -> Result<Question, Usage> {
    let Check { from, to, protocol, port, .. } = check;
    let echo = ECHO.iter().find(|(number, _)| number == protocol).map(|(_, port)| *port);
    let port = match (*port, echo) {
        (Some(port), _) | (None, Some(port)) => port,
        (None, None) if matches!(protocol, 6 | 17 | 132) => {
            return Err(Usage(vec!["--port is missing".to_owned()]));
        }
        (None, None) => 0,
    };
    Ok(Question { from: from.clone(), to: to.clone(), protocol: *protocol, port })
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
    let Diff { files, live, daemon, .. } = diff;
    let (old, new) = match (&files[..], live) {
        ([old, new], false) => {
            // A pod that is filtered for may be in one of the two only.
            (Side::of(old, diff)?, Side::of(new, diff)?)
        }
        ([new], true) => {
            let parameters = narrowing(diff.from.as_ref(), diff.to.as_ref());
            let old = http::document(&daemon.introspection, "/v1/policy/matrix", &parameters)?;
            (Side { flows: old, absent: None }, Side::of(new, diff)?)
        }
        _ => {
            let sentence = "diff compares two: -f OLD -f NEW, or --live -f NEW".to_owned();
            return Err(Usage(vec![sentence]).into());
        }
    };
    if let (Some(absent), Some(_)) = (old.absent, &new.absent) {
        return Err(usage(absent).into());
    }
    let difference = difference::between(old.flows, new.flows);
    let mut report = Report::of(format, &difference, || human::difference(&difference))?;
    report.asides = difference.diagnostics.iter().map(|line| format!("warning: {line}")).collect();
    Ok(report)
}

/// One of two states that are compared.
struct Side {
    flows: Flows,
    /// What was asked for is not in it.
    absent: Option<Unanswerable>,
}

impl Side {
    fn of(path: &Path, diff: &Diff) -> anyhow::Result<Self> {
        let cluster = Cluster::read(&[path], &diff.security_groups)?;
        Ok(match cluster.view().matrix(diff.from.as_ref(), diff.to.as_ref()) {
            Ok(mut flows) => {
                flows.diagnostics.splice(0..0, cluster.diagnostics.iter().cloned());
                Self { flows, absent: None }
            }
            Err(absent) => {
                let diagnostics = cluster.diagnostics;
                Self { flows: Flows { diagnostics, ..Flows::default() }, absent: Some(absent) }
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
