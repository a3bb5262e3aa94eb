//! A program of the cluster that runs until it is told otherwise, with a log.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    error::{Context as _, Error, Result},
    ns::Worker,
};

/// How many of a log's last lines are told when its program ends early.
const TOLD: usize = 12;
/// How long a program has to end by itself.
const END: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// A program. It is killed when dropped, and with the lab's process.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

// === impl Process ===

impl Process {
    /// Starts `command` where `worker` is; what it prints is added to `<logs>/<name>.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        worker: &Worker,
        logs: &Path,
        name: &str,
        command: &Command,
    ) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.context(|| format!("cannot open {}", log.display()))?;
        let errors = output.try_clone().context(|| format!("cannot share {}", log.display()))?;
        // A process dies with the thread that started it.
        let mut tied = Command::new("setpriv");
        tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program());
        tied.args(command.get_args()).env_clear();
        tied.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(dir) = command.get_current_dir() {
            tied.current_dir(dir);
        }
        tied.stdin(Stdio::null()).stdout(output).stderr(errors);
        let what = format!("cannot start {name}");
        let child = worker.run(move || tied.spawn().context(|| what))?;
        Ok(Self { name: name.to_owned(), log, child })
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// # Errors
    /// When it has ended: with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.trouble(&format!("ended ({status})"))),
            Err(source) => Err(Error::Io { what: format!("cannot look at {}", self.name), source }),
        }
    }

    /// Waits until `is_there` succeeds.
    ///
    /// # Errors
    /// When that takes longer than `timeout`, or the program ends: with the end of its log.
    pub(crate) fn wait_until<T>(
        &mut self,
        timeout: Duration,
        mut is_there: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            match is_there() {
                Ok(value) => return Ok(value),
                Err(error) if start.elapsed() > timeout => {
                    return Err(self.trouble(&format!("is not ready after {timeout:?}: {error}")));
                }
                Err(_) => self.check()?,
            }
            thread::sleep(POLL);
        }
    }

    /// Asks it to end (SIGTERM) and waits for that; kills it after 10 s.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(mut self) -> Result<()> {
        let what = format!("cannot end {}", self.name);
        let pid = i32::try_from(self.child.id()).map_err(std::io::Error::other);
        let pid = Pid::from_raw(pid.context(|| what.clone())?);
        // One that has ended already is not there to be told.
        kill(pid, Signal::SIGTERM).ok();
        let start = Instant::now();
        while self.child.try_wait().context(|| what.clone())?.is_none() && start.elapsed() < END {
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn trouble(&self, message: &str) -> Error {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(TOLD)..].join("\n");
        Error::invalid(format!("{} {message}; the end of its log:\n{end}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
