//! The checks' outcomes: a line each as they come, and all of them in a table or a document at the end.

use serde::Serialize;

use crate::{Report, cli::Format, tell, text};

/// A check's outcome in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    Failed,
    /// It could not be made here: the reason is in `seen`.
    Skipped,
}

/// A check and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) check: String,
    pub(super) result: Verdict,
    /// What was seen, or why it failed or could not be made.
    pub(super) seen: String,
}

/// All of them: what `-o json` prints (docs/venictl.md).
#[derive(Debug, Default, Serialize)]
pub(super) struct Outcome {
    pub(super) checks: Vec<Check>,
    /// Why the test ended before its last check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<String>,
    /// What could not be taken away again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) left: Option<String>,
    #[serde(skip)]
    pub(super) quiet: bool,
}

impl Outcome {
    /// Keeps what was seen, or why it failed.
    pub(super) fn record(&mut self, check: &str, outcome: anyhow::Result<String>) {
        let (result, seen) = match outcome {
            Ok(seen) => (Verdict::Ok, seen),
            Err(error) => (Verdict::Failed, format!("{error:#}")),
        };
        self.keep(check, result, seen);
    }

    /// Keeps that a check cannot be made here.
    pub(super) fn skip(&mut self, check: &str, why: &str) {
        self.keep(check, Verdict::Skipped, why.to_owned());
    }

    fn keep(&mut self, check: &str, result: Verdict, seen: String) {
        self.say(&format!("{:<7} {check}: {seen}", result.word()));
        self.checks.push(Check { check: check.to_owned(), result, seen });
    }

    /// A line of progress.
    pub(super) fn say(&self, line: &str) {
        if !self.quiet {
            tell(line);
        }
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.result == verdict).count()
    }

    /// Whether something was checked, all of it held, and nothing is left.
    pub(super) fn held(&self) -> bool {
        self.count(Verdict::Ok) > 0
            && self.count(Verdict::Failed) == 0
            && self.ended.is_none()
            && self.left.is_none()
    }

    pub(super) fn report(&self, format: Format) -> anyhow::Result<Report> {
        let mut report = Report::of(format, self, || self.table())?;
        report.failed = !self.held();
        report
            .asides
            .extend(self.ended.iter().chain(&self.left).map(|why| format!("venictl: {why}")));
        Ok(report)
    }

    fn table(&self) -> String {
        let row = |check: &Check| {
            vec![check.check.clone(), check.result.word().to_owned(), check.seen.replace('\n', " ")]
        };
        let rows = self.checks.iter().map(row).collect();
        let mut text = text::table(&["CHECK", "RESULT", "SEEN"], 0..0, rows);
        let (ok, failed, skipped) =
            (self.count(Verdict::Ok), self.count(Verdict::Failed), self.count(Verdict::Skipped));
        text.push_str(&format!("\n{ok} of {} checks held, {skipped} skipped\n", ok + failed));
        text
    }
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}
