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
    start: Instant,
}

#[derive(Debug)]
struct Row {
    name: String,
    passed: bool,
    seen: String,
}

impl Default for Table {
    fn default() -> Self {
        Self { rows: Vec::new(), start: Instant::now() }
    }
}

impl Table {
    /// Keeps an outcome: what was seen, or why it failed.
    pub(crate) fn record(&mut self, name: &str, outcome: anyhow::Result<String>) {
        let passed = outcome.is_ok();
        let seen = outcome.unwrap_or_else(|error| format!("{error:#}"));
        let verdict = if passed { paint("ok", "32") } else { paint("FAILED", "1;31") };
        note(format_args!("{verdict} {name}: {seen}"));
        self.rows.push(Row { name: name.to_owned(), passed, seen });
    }

    /// Whether there were checks and every one held.
    pub(crate) fn all_held(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.passed)
    }

    pub(crate) fn summary(&self) {
        let mut table = comfy_table::Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(["check", "result", "what was seen"]);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
        for row in &self.rows {
            let seen = row.seen.lines().next().unwrap_or_default();
            table.add_row([row.name.as_str(), if row.passed { "ok" } else { "FAILED" }, seen]);
        }
        println!("{table}");
        let held = self.rows.iter().filter(|row| row.passed).count();
        println!(
            "{held} of {} checks held, after {}",
            self.rows.len(),
            seconds(self.start.elapsed())
        );
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
