//! A daemon of a node that is the test's own: started with a fault, watched until it dies.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Child, ExitStatus},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use veni_lab::{Node, lab::READY};

const POLL: Duration = Duration::from_millis(2);

/// How a process dies at a fault point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// `SIGKILL`.
    Kill,
    /// A panic.
    Panic,
    /// `SIGTERM`, which ends it a little later.
    Term,
}

/// A running daemon. It is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    node: Arc<Node>,
    child: Child,
    ended: Option<ExitStatus>,
}

// === impl Death ===

impl Death {
    /// As `VENI_FAULT` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Panic => "panic",
            Self::Term => "term",
        }
    }

    /// Whether a daemon that ended with `status` died this way. (101: Rust's exit status after a panic.)
    #[must_use]
    pub fn explains(self, status: ExitStatus) -> bool {
        match self {
            Self::Kill => status.signal() == Some(Signal::SIGKILL as i32),
            Self::Panic => status.code() == Some(101),
            Self::Term => status.code() == Some(0),
        }
    }
}

// === impl Daemon ===

impl Daemon {
    /// Starts one; `fault` is the value of `VENI_FAULT`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(node: &Arc<Node>, fault: Option<&str>) -> Result<Self> {
        let extra: Vec<_> = fault.map(|fault| ("VENI_FAULT", fault)).into_iter().collect();
        let child = node.start_ipamd(&extra)?;
        Ok(Self { node: Arc::clone(node), child, ended: None })
    }

    /// Starts one without a fault and waits until it serves.
    ///
    /// # Errors
    /// When it ends or is not ready in time.
    pub fn serving(node: &Arc<Node>) -> Result<Self> {
        let mut daemon = Self::start(node, None)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Waits until it serves: it, not one before it whose socket is still there.
    ///
    /// # Errors
    /// When it ends or does not serve in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_up()?;
        self.node.wait_ready(READY)?;
        Ok(())
    }

    /// Waits until it has started, whether it is ready or not: it, not one before it whose socket is still there.
    ///
    /// # Errors
    /// When it ends or does not answer in time.
    pub fn wait_up(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                bail!("ipamd ended ({status}) before it was ready; {}", self.log_tail());
            }
            if self.node.inspect().is_ok_and(|view| view.daemon.pid == self.child.id()) {
                return Ok(());
            }
            ensure!(start.elapsed() < READY, "ipamd does not serve; {}", self.log_tail());
            thread::sleep(POLL);
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the process cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().context("waiting for ipamd")?;
        }
        Ok(self.ended)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it lives on.
    pub fn wait_end(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            ensure!(start.elapsed() < timeout, "ipamd lives on; {}", self.log_tail());
            thread::sleep(POLL);
        }
    }

    /// Sends it `signal` and waits for its end.
    ///
    /// # Errors
    /// When it has ended already, or does not.
    pub fn stop(mut self, signal: Signal) -> Result<ExitStatus> {
        ensure!(self.ended()?.is_none(), "ipamd has ended already; {}", self.log_tail());
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?;
        self.wait_end(Duration::from_secs(5))
    }

    /// Holds it still, or lets it go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn hold(&self, still: bool) -> Result<()> {
        let signal = if still { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// The end of its log, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.node.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(25)..].join("\n");
        format!("the end of its log:\n{tail}")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.ended(), Ok(None)) {
            // A process that cannot be killed dies with the lab's thread.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
