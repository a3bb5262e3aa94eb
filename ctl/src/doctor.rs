//! `venictl doctor`: what this node needs for veni to work, and what to do about what is missing.
//!
//! [`facts`] looks (all I/O is there), [`judge`] decides: each check is a pure function of the facts.

use std::path::Path;

use serde::Serialize;

use crate::{
    Report,
    cli::{Format, Paths},
    text,
};

mod facts;
mod judge;

/// The result of looking at one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// A stable word: `kernel`, `socket`, `rules`…
    name: &'static str,
    status: Status,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_step: Option<String>,
}

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// Works, but not as it should.
    Warning,
    /// Wrong.
    Failed,
    /// Could not be looked at; something else is wrong first, or a tool is missing.
    Skipped,
}

/// What `-o json` prints (docs/venictl.md).
#[derive(Debug, Serialize)]
struct Document<'a> {
    ok: bool,
    checks: &'a [Check],
}

pub(crate) fn report(socket: &Path, paths: &Paths, format: Format) -> anyhow::Result<Report> {
    written(&judge::all(&facts::gather(socket, paths)), format)
}

fn written(checks: &[Check], format: Format) -> anyhow::Result<Report> {
    let failed = checks.iter().any(|check| check.status == Status::Failed);
    let report = Report::of(format, &Document { ok: !failed, checks }, || human(checks))?;
    Ok(Report { failed, ..report })
}

fn human(checks: &[Check]) -> String {
    let mut out = String::new();
    for check in checks {
        out += &format!("{} {:<9} {}\n", check.status.symbol(), check.name, check.found);
        if let Some(step) = &check.next_step {
            out += &format!("            → {step}\n");
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (failed, warnings) = (count(Status::Failed), count(Status::Warning));
    let (passed, skipped) = (count(Status::Ok), count(Status::Skipped));
    out + &format!(
        "\n{passed} ok, {}, {failed} failed, {skipped} not looked at\n",
        text::counted(warnings, "warning")
    )
}

// === impl Check and Status ===

impl Check {
    fn new(name: &'static str, status: Status, found: impl Into<String>, next_step: &str) -> Self {
        let next_step = (!next_step.is_empty()).then(|| next_step.to_owned());
        Self { name, status, found: found.into(), next_step }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, found, "")
    }

    fn warning(name: &'static str, found: impl Into<String>, next_step: &str) -> Self {
        Self::new(name, Status::Warning, found, next_step)
    }

    fn failed(name: &'static str, found: impl Into<String>, next_step: &str) -> Self {
        Self::new(name, Status::Failed, found, next_step)
    }

    fn skipped(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Status::Skipped, found, "")
    }
}

impl Status {
    fn symbol(self) -> char {
        match self {
            Self::Ok => '✔',
            Self::Warning => '!',
            Self::Failed => '✘',
            Self::Skipped => '-',
        }
    }
}

#[cfg(test)]
mod tests;
