//! What the lab can fail with, and the two lines that give a failure its place.

use std::{io, path::Path, process::Output, time::Duration};

/// A failure of the lab itself (not of what runs in it).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or a file.
    #[error("{what}")]
    Io {
        /// What was tried, with what.
        what: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A program that ended in failure.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// Its command line, shortened.
        command: String,
        /// How it ended.
        status: String,
        /// What it printed.
        stderr: String,
    },
    /// The plugin refused, in the words of the CNI specification.
    #[error("veni-cni {operation} of {pod}: {message}")]
    Plugin {
        /// `ADD`, `DEL`…
        operation: &'static str,
        /// The pod.
        pod: String,
        /// The plugin's message, code and details.
        message: String,
    },
    /// A daemon that did not become ready, or went away.
    #[error("veni-ipamd on {node}: {message}")]
    Daemon {
        /// The node.
        node: String,
        /// What is wrong and where its log is.
        message: String,
    },
    /// A daemon that takes connections and answers nothing.
    #[error("veni-ipamd on {node} hangs: no answer within {} s (veni-lab restart {node})", patience.as_secs())]
    Hangs {
        /// The node.
        node: String,
        /// How long its answer was waited for.
        patience: Duration,
    },
    /// A request that does not fit the lab: an unknown node, a name taken.
    #[error("{0}")]
    Invalid(String),
}

/// The lab's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was tried when a system call fails.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source: source.into() })
    }
}

impl Error {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }
}

/// The output of a program that was to succeed.
pub(crate) fn succeeded(command: &str, output: io::Result<Output>) -> Result<Output> {
    let output = output.context(|| format!("cannot run `{command}` (is it installed?)"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::Command {
        command: command.to_owned(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// `dir` with all of its parents.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).context(|| format!("cannot make the directory {}", dir.display()))
}
