//! The CNI plugin: it asks ipamd over a unix socket what a pod gets, and wires it by blocking netlink.
//!
//! Invariants: standard output is the protocol's, one JSON object or nothing; standard error stays silent; an ADD that
//! fails leaves nothing behind; a DEL removes the link before ipamd may give the address to somebody else.
//!
//! Deliberately absent: threads, an async runtime, a log. The process lives for a millisecond per pod, so its start
//! is most of its time; the daemon logs what it is asked.

pub mod command;
pub mod config;
pub mod error;
pub mod invocation;
pub mod ipamd;
pub mod result;
pub mod spec;

use std::{ffi::OsString, io::Read};

use config::Config;
use error::Error;
use invocation::{Command, Invocation};
use spec::SpecVersion;

/// The longest configuration that is read, prevResult and the attachments of GC included.
pub const MAX_STDIN_BYTES: u64 = 1024 * 1024;

/// What goes to standard output, and how the process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// One JSON object, or nothing.
    pub stdout: String,
    /// Whether the exit status is 0.
    pub success: bool,
}

/// Handles one call of the plugin: environment variables by `variable`, configuration from `stdin`.
pub fn run(variable: impl Fn(&str) -> Option<OsString>, stdin: impl Read) -> Answer {
    // Until the configuration says which version the runtime speaks.
    let mut version = SpecVersion::NEWEST.to_string();
    match handle(variable, stdin, &mut version) {
        Ok(stdout) => Answer { stdout, success: true },
        Err(error) => Answer { stdout: error.to_json(&version), success: false },
    }
}

/// What goes to standard output when the plugin has a bug: `message` says where.
#[must_use]
pub fn panic_report(message: &str) -> String {
    Error::Bug(message.to_owned()).to_json(SpecVersion::NEWEST.as_str())
}

fn handle(
    variable: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read,
    version: &mut String,
) -> Result<String, Error> {
    let text = read_all(stdin)?;
    let raw = config::Raw::parse(&text)?;
    if let Some(stated) = raw.stated_version() {
        stated.clone_into(version);
    }
    let invocation = Invocation::parse(variable)?;
    if let Invocation::Version = invocation {
        return Ok(spec::version_report(version));
    }
    let config = Config::try_from(raw)?;
    match invocation {
        Invocation::Version => unreachable!("answered above"),
        Invocation::Pod(Command::Add, target) => {
            let result = command::add(&config, &target)?;
            Ok(result.to_json(config.version))
        }
        Invocation::Pod(Command::Del, target) => command::del(&config, &target),
        Invocation::Pod(Command::Check, target) => command::check(&config, &target),
        Invocation::Gc => command::gc(&config),
        Invocation::Status => command::status(&config),
    }
}

fn read_all(stdin: impl Read) -> Result<Vec<u8>, Error> {
    let mut text = Vec::with_capacity(4096);
    stdin.take(MAX_STDIN_BYTES + 1).read_to_end(&mut text).map_err(Error::Stdin)?;
    if text.len() as u64 > MAX_STDIN_BYTES {
        return Err(Error::StdinTooLong);
    }
    Ok(text)
}
