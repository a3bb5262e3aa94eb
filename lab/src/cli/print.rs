//! What the terminal gets: colour only where there is one.

#![expect(clippy::print_stderr, reason = "the command line's own output")]

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};

/// A line of progress.
pub(super) fn step(text: impl fmt::Display) {
    line(format_args!("{} {text}", paint("==>", "1;34")));
}

/// A line under a step.
pub(super) fn note(text: impl fmt::Display) {
    line(format_args!("    {text}"));
}

/// As it is. A reader that has seen enough (`| head`) ends the program, quietly.
pub(super) fn line(text: impl fmt::Display) {
    if writeln!(io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// A check's outcome in one word.
pub(super) fn verdict(passed: bool) -> String {
    if passed { paint("ok", "32") } else { paint("FAILED", "1;31") }
}

/// An error with its causes.
pub(super) fn failure(error: &anyhow::Error) {
    let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
    eprintln!("veni-lab: {}", causes.join(": "));
}

/// An empty table with these headings.
pub(super) fn table<const N: usize>(headings: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(headings);
    table
}

/// `1 node`, `2 nodes`.
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Milliseconds with two digits.
pub(super) fn millis(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

fn paint(text: &str, colour: &str) -> String {
    let plain = !io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some();
    if plain { text.to_owned() } else { format!("\x1b[{colour}m{text}\x1b[0m") }
}
