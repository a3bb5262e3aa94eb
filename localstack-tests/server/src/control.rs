//! What the semantics extension is told (`semantics/veni_ec2_semantics/control.py`), and the log of calls it keeps.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A refusal that the extension injects.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// By which the server counts its hits, whatever else changes in the file.
    id: String,
    /// The EC2 action, or `*`.
    pub action: String,
    /// Whose calls: a part of the user agent.
    pub agent: String,
    /// Without or with its effect.
    pub when: When,
    /// EC2's code.
    pub code: String,
    /// The HTTP status.
    pub status: u16,
    /// So many calls pass first.
    pub skip: i64,
    /// Then so many are hit; -1: all.
    pub count: i64,
    /// How long it takes.
    pub delay_ms: u64,
}

/// On which side of the effect a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Nothing has happened.
    Before,
    /// It has happened, and is not told.
    After,
}

/// How long things take, for every account of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Delays {
    /// From `AttachNetworkInterface` to `attached`.
    pub attach_ms: u64,
    /// From `DetachNetworkInterface` to `available`.
    pub detach_ms: u64,
    /// From `CreateNetworkInterface` until Describe shows it.
    pub create_visible_ms: u64,
}

/// One EC2 call that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Call {
    /// The action.
    pub action: String,
    /// Whose.
    pub agent: String,
    /// The injected fault's code, or the HTTP status.
    pub code: String,
}

#[derive(Debug, Default, Serialize)]
struct Content {
    delays: Delays,
    faults: Vec<Fault>,
}

/// The control file and the log of one server.
#[derive(Debug)]
pub struct Control {
    file: PathBuf,
    log: PathBuf,
    content: Mutex<Content>,
}

impl Fault {
    /// A fault of the next call of `action` by the daemon whose user agent has `agent` in it.
    #[must_use]
    pub fn next(action: &str, agent: &str, when: When, code: &str, status: u16) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let id = IDS.fetch_add(1, Ordering::Relaxed).to_string();
        let (action, agent, code) = (action.to_owned(), agent.to_owned(), code.to_owned());
        Self { id, action, agent, when, code, status, skip: 0, count: 1, delay_ms: 0 }
    }

    /// So often instead of once.
    #[must_use]
    pub fn times(mut self, count: i64) -> Self {
        self.count = count;
        self
    }

    /// Takes so long.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self
    }
}

impl Control {
    /// In `directory`, nothing is asked for yet.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            file: directory.join("control.json"),
            log: directory.join("calls.jsonl"),
            content: Mutex::default(),
        }
    }

    pub(crate) fn environment(&self) -> [(&'static str, &Path); 2] {
        [("VENI_EC2_CONTROL", &self.file), ("VENI_EC2_LOG", &self.log)]
    }

    /// Replaces the faults of `agent`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_faults(&self, agent: &str, faults: Vec<Fault>) -> io::Result<()> {
        self.change(|content| {
            content.faults.retain(|fault| fault.agent != agent);
            content.faults.extend(faults);
        })
    }

    /// Sets how long things take.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_delays(&self, delays: Delays) -> io::Result<()> {
        self.change(|content| content.delays = delays)
    }

    fn change(&self, change: impl FnOnce(&mut Content)) -> io::Result<()> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut content);
        // In one step: the server may read at any moment.
        let staged = self.file.with_extension("new");
        std::fs::write(&staged, serde_json::to_vec(&*content)?)?;
        std::fs::rename(&staged, &self.file)
    }

    /// The calls answered so far whose user agent has `agent` in it.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn calls(&self, agent: &str) -> io::Result<Vec<Call>> {
        let text = match std::fs::read_to_string(&self.log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        let calls: Result<Vec<Call>, _> = text.lines().map(serde_json::from_str).collect();
        Ok(calls?.into_iter().filter(|call| call.agent.contains(agent)).collect())
    }
}
