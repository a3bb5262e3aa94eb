//! What `venictl` does: one module a command; `client` and `http` speak to ipamd, `text` draws.
//!
//! Invariants: what a command found goes to stdout, and with `-o json` is one JSON document (`observe`: one a line);
//! warnings and errors go to stderr. Exit status 0: done; 1: it failed, or `doctor` found something; 2: the command line
//! was wrong, or manifests cannot be read.
//! Deliberately absent: any change to the node, colours, and but for `connectivity test` an async runtime.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

pub mod cli;
mod client;
mod config;
pub mod connectivity;
mod doctor;
mod http;
mod links;
mod observe;
mod policy;
mod pool;
mod problem;
mod standing;
mod status;
mod steady;
mod text;

use cli::{Cli, Command, Format, PoolCommand};

/// What a command has to say.
#[derive(Debug, Default)]
struct Report {
    /// For stdout.
    text: String,
    /// For stderr, one line each.
    asides: Vec<String>,
    /// Whether something that was looked for is wrong (exit status 1).
    failed: bool,
}

/// A wrong command line (exit status 2).
#[derive(Debug)]
struct Usage(Vec<String>);

/// Runs the program with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli).map_err(|error| told(error, &cli.socket)) {
        Ok(report) => {
            for aside in &report.asides {
                tell(aside);
            }
            match io::stdout().write_all(report.text.as_bytes()) {
                // The reader has seen enough (`venictl config | head`).
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    tell(&format!("venictl: cannot write to stdout: {error}"));
                    ExitCode::FAILURE
                }
                _ if report.failed => ExitCode::FAILURE,
                _ => ExitCode::SUCCESS,
            }
        }
        Err(error) => match error.downcast_ref::<Usage>() {
            Some(Usage(sentences)) => {
                for sentence in sentences {
                    tell(&format!("venictl: {sentence}"));
                }
                ExitCode::from(2)
            }
            None => {
                tell(&format!("venictl: {error:#}"));
                ExitCode::FAILURE
            }
        },
    }
}

fn run(cli: &Cli) -> anyhow::Result<Report> {
    let inspect = |addresses| -> Result<_, client::Unanswered> {
        let mut view = client::inspect(&cli.socket, addresses)?;
        links::name(&mut view);
        Ok(view)
    };
    match &cli.command {
        Command::Status(daemon) => {
            let view = inspect(false).map_err(|error| sooner(error, daemon))?;
            status::report(&view, &standing::Policy::ask(daemon, &cli.socket), cli.output)
        }
        Command::Pool { command: PoolCommand::Show { addresses } } => {
            pool::show(&inspect(*addresses)?, *addresses, cli.output)
        }
        Command::Pool { command: PoolCommand::Explain } => {
            pool::explain(&inspect(false)?, cli.output)
        }
        Command::Pool { command: PoolCommand::Steady(question) } => {
            steady::report(question, cli.output)
        }
        Command::Policy { command } => policy::report(command, cli.output),
        Command::Observe(observe) => {
            observe::run(observe, cli.output, &mut io::stdout().lock())?;
            Ok(Report::default())
        }
        Command::Connectivity { command } => connectivity::report(command, cli.output),
        Command::Doctor(paths) => doctor::report(&cli.socket, paths, cli.output),
        Command::Config => config::report(cli.output),
    }
}

/// A daemon that has no socket yet may say over HTTP what it waits for.
fn sooner(error: client::Unanswered, daemon: &policy::arguments::Daemon) -> client::Unanswered {
    let said = error.is_absent.then(|| http::starting(&daemon.introspection)).flatten();
    said.unwrap_or(error)
}

/// Where nobody answers HTTP, the socket knows whether ipamd runs.
fn told(error: anyhow::Error, socket: &std::path::Path) -> anyhow::Error {
    let Some(unserved) = error.downcast_ref::<http::Unserved>() else { return error };
    match client::inspect(socket, false) {
        Ok(_) => anyhow::anyhow!(unserved.while_it_runs()),
        Err(unanswered) if unanswered.is_absent => error,
        Err(unanswered) => anyhow::anyhow!("{unserved}; over its socket: {unanswered}"),
    }
}

/// A line on stderr; a closed stderr is nobody's loss.
fn tell(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

// === impl Report ===

impl Report {
    /// Text for people, or `document` for programs.
    fn of<T: serde::Serialize>(
        format: Format,
        document: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<Self> {
        let text = match format {
            Format::Human => text(),
            Format::Json => serde_json::to_string(document)? + "\n",
        };
        Ok(Self { text, ..Self::default() })
    }
}

// === impl Usage ===

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Usage {}

#[cfg(test)]
mod fixtures;
