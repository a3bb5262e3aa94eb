//! What the terminal gets: each outcome as it comes, and all of them in a table at the end.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the command line's own output")]

use std::{
    fmt,
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use comfy_table::{ContentArrangement, presets::UTF8_FULL_CONDENSED};

/// The table's width, in characters.
const WIDTH: u16 = 132;

/// All checks and their outcomes.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Row>,
    /// What took how long.
    parts: Vec<(&'static str, Duration)>,
    start: Instant,
}

#[derive(Debug)]
struct Row {
    name: String,
    outcome: Outcome,
    seen: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Held,
    Failed,
    /// It cannot be run here.
    NotRun,
}

impl Default for Table {
    fn default() -> Self {
        Self { rows: Vec::new(), parts: Vec::new(), start: Instant::now() }
    }
}

impl Table {
    /// Keeps an outcome: what was seen, or why it failed.
    pub(crate) fn record(&mut self, name: &str, outcome: anyhow::Result<String>) {
        let (outcome, seen) = match outcome {
            Ok(seen) => (Outcome::Held, seen),
            Err(error) => (Outcome::Failed, format!("{error:#}")),
        };
        self.push(name, outcome, seen);
    }

    /// Keeps what is not run here, and why.
    pub(crate) fn not_run(&mut self, name: &str, why: &str) {
        self.push(name, Outcome::NotRun, why.to_owned());
    }

    /// Keeps how long a part took.
    pub(crate) fn took(&mut self, part: &'static str, time: Duration) {
        self.parts.push((part, time));
    }

    fn push(&mut self, name: &str, outcome: Outcome, seen: String) {
        note(format_args!("{} {name}: {seen}", outcome.painted()));
        self.rows.push(Row { name: name.to_owned(), outcome, seen });
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.rows.iter().filter(|row| row.outcome == outcome).count()
    }

    /// Whether there were checks and every one held.
    pub(crate) fn all_held(&self) -> bool {
        self.count(Outcome::Held) > 0 && self.count(Outcome::Failed) == 0
    }

    pub(crate) fn summary(&self) {
        let mut table = comfy_table::Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(["check", "result", "what was seen"]);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
        for row in &self.rows {
            let seen = row.seen.lines().next().unwrap_or_default();
            table.add_row([row.name.as_str(), row.outcome.word(), seen]);
        }
        println!("{table}");
        let parts: Vec<_> =
            self.parts.iter().map(|(part, time)| format!("{part} {}", seconds(*time))).collect();
        println!("{}", parts.join(", "));
        let (held, failed) = (self.count(Outcome::Held), self.count(Outcome::Failed));
        let not_run = match self.count(Outcome::NotRun) {
            0 => String::new(),
            many => format!(", {many} cannot be run here"),
        };
        let took = seconds(self.start.elapsed());
        // `.ci/run` adds it to what the tiers say of themselves.
        println!("{held} passed, {failed} failed{not_run}, after {took}");
    }
}

// === impl Outcome ===

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Held => "ok",
            Self::Failed => "FAILED",
            Self::NotRun => "not run",
        }
    }

    fn painted(self) -> String {
        let colour = match self {
            Self::Held => "32",
            Self::Failed => "1;31",
            Self::NotRun => "33",
        };
        paint(self.word(), colour)
    }
}

/// A line of progress.
pub(crate) fn step(text: impl fmt::Display) {
    println!("{} {text}", paint("==>", "1;34"));
}

/// A line under a step.
pub(crate) fn note(text: impl fmt::Display) {
    println!("    {text}");
}

/// An error with its causes.
pub(crate) fn failure(error: &anyhow::Error) {
    eprintln!("veni-e2e: {error:#}");
}

pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn paint(text: &str, colour: &str) -> String {
    let plain = !io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some();
    if plain { text.to_owned() } else { format!("\x1b[{colour}m{text}\x1b[0m") }
}
