//! A node: a namespace with a first interface, a BPF filesystem, and veni's daemon in it.
//!
//! Invariants: all that the daemon writes is below the node's directory. The daemon dies with the lab's process
//! (`PR_SET_PDEATHSIG`), whatever ends it.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::de::DeserializeOwned;
use veni_core::{
    id::{InstanceId, InstanceType, SubnetId},
    wire::inspect::View,
};

use crate::{
    error::{Context as _, Error, Result, succeeded},
    machine::Machine,
    ns::{Namespace, Worker},
    runtime::Runtime,
    wire,
};

/// Where the daemon serves its metrics unless told otherwise (`INTROSPECTION_BIND_ADDRESS`).
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 61679);
/// How often a condition is looked at again that nothing announces.
const POLL: Duration = Duration::from_millis(5);

/// How long a daemon may take to tell a person how it is: it answers from memory.
const GLANCE: Duration = Duration::from_secs(4);

/// How long the introspection endpoint may be silent: beyond what `/v1/policy/applied` waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a daemon has to end by itself when it is restarted.
const END: Duration = Duration::from_secs(5);

/// A node of the lab.
#[derive(Debug)]
pub struct Node {
    /// Its name in the lab.
    pub name: String,
    /// Its network namespace.
    pub namespace: Namespace,
    /// Its files.
    pub dir: PathBuf,
    /// Its EC2 instance.
    pub instance: InstanceId,
    /// Its type.
    pub instance_type: InstanceType,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its primary ENI's address.
    pub address: Ipv4Addr,
    /// Its availability zone.
    pub zone: &'static str,
    /// The container runtime on it.
    pub runtime: Runtime,
    /// What is around its network namespace, if it is a machine.
    pub machine: Option<Machine>,
    pub(crate) daemon: Daemon,
}

/// The daemon of a node.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) program: PathBuf,
    pub(crate) environment: BTreeMap<String, String>,
    /// Starts it: a process dies with the thread that started it.
    pub(crate) worker: Worker,
    pub(crate) process: Mutex<Option<Child>>,
}

/// How a restart went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restarted {
    /// The process that was ended for it; `None` when none ran.
    pub ended: Option<u32>,
    /// From the start of the new one until it could serve an ADD.
    pub ready: Duration,
}

// === impl Node ===

impl Node {
    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("ipamd.sock")
    }

    /// The daemon's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("ipamd.log")
    }

    /// Runs a command on the node and collects its output.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<Output> {
        self.namespace.output(Command::new(program).args(args))
    }

    /// Starts the daemon, with `extra` variables over the node's. Does not wait: see [`Node::wait_ready`].
    ///
    /// # Errors
    /// When it runs already, or cannot be started.
    pub fn spawn_ipamd(&self, extra: &[(&str, &str)]) -> Result<()> {
        let mut process = self.daemon.process();
        if matches!(process.as_mut().map(Child::try_wait), Some(Ok(None))) {
            return Err(self.trouble("runs already"));
        }
        *process = Some(self.start_ipamd(extra)?);
        Ok(())
    }

    /// Starts a further daemon beside the one that runs, as a rolling update does. It is the caller's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_ipamd(&self, extra: &[(&str, &str)]) -> Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(self.log());
        let log = log.context(|| format!("cannot open {}", self.log().display()))?;
        let errors =
            log.try_clone().context(|| format!("cannot share {}", self.log().display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.daemon.program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(&self.daemon.environment);
        command.envs(extra.iter().copied()).stdin(Stdio::null()).stdout(log).stderr(errors);
        let what = format!("cannot start {} on {}", self.daemon.program.display(), self.name);
        self.daemon.worker.run(move || command.spawn().context(|| what))
    }

    /// Waits until the daemon can serve an ADD; returns how long that took from now.
    ///
    /// # Errors
    /// When it ends, or is not ready within `timeout`.
    pub fn wait_ready(&self, timeout: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let ended = self.daemon.process().as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = ended {
                return Err(self.trouble(&format!("ended ({status}) before it was ready")));
            }
            // Not STATUS, which does not fail while an empty pool grows.
            let last = match self.inspect() {
                Ok(view) if view.daemon.ready => return Ok(start.elapsed()),
                Ok(view) => format!("{:?}, {:?}", view.plan, view.problems),
                Err(error) => error.to_string(),
            };
            if start.elapsed() > timeout {
                return Err(self.trouble(&format!("is not ready after {timeout:?}: {last}")));
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until the daemon's view of itself is as `expected` says.
    ///
    /// # Errors
    /// When it is not within `timeout`: with the last view's pool.
    pub fn wait_for(
        &self,
        what: &str,
        timeout: Duration,
        expected: impl Fn(&View) -> bool,
    ) -> Result<View> {
        let start = Instant::now();
        loop {
            let view = self.inspect()?;
            if expected(&view) {
                return Ok(view);
            }
            if start.elapsed() > timeout {
                let enis: Vec<_> = view.enis.iter().map(|e| e.phase.clone()).collect();
                return Err(self.trouble(&format!(
                    "{what}: not after {timeout:?}; ENIs {enis:?}, {:?}",
                    view.pool
                )));
            }
            thread::sleep(POLL * 4);
        }
    }

    /// The daemon's view of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn inspect(&self) -> Result<View> {
        wire::inspect(&self.socket())
    }

    /// As [`Node::inspect`], for people, who see soon that it hangs.
    ///
    /// # Errors
    /// When it does not answer: [`Error::Hangs`] when it takes the question and is silent.
    pub fn glance(&self) -> Result<View> {
        wire::inspect_within(&self.socket(), GLANCE).map_err(|error| match &error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::WouldBlock => {
                Error::Hangs { node: self.name.clone(), patience: GLANCE }
            }
            _ => error,
        })
    }

    /// What the daemon answers to `GET /metrics`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<String> {
        self.get("/metrics")
    }

    /// Waits until the daemon has flushed what it deleted: work of before is not measured with what comes.
    ///
    /// # Errors
    /// When it has not within `timeout`.
    pub fn wait_flushed(&self, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        while !self.metrics()?.lines().any(|line| line == "veni_flushing_addresses 0") {
            if start.elapsed() > timeout {
                let what = format!("still flushes conntrack entries after {timeout:?}");
                return Err(self.trouble(&what));
            }
            thread::sleep(POLL * 4);
        }
        Ok(())
    }

    /// The JSON document that the daemon has at `path` of its introspection endpoint.
    ///
    /// # Errors
    /// When it does not answer, or answers something else.
    pub fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.document_within(path, PATIENCE)
    }

    /// As [`Node::document`], with another patience.
    ///
    /// # Errors
    /// As [`Node::document`].
    pub fn document_within<T: DeserializeOwned>(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<T> {
        let body = self.get_within(path, patience)?;
        serde_json::from_str(&body)
            .map_err(std::io::Error::from)
            .context(|| format!("cannot read what ipamd on {} has at {path}", self.name))
    }

    /// What the daemon's introspection endpoint answers to `GET path`, with success.
    ///
    /// # Errors
    /// When it does not answer, or refuses: with its reason.
    pub fn get(&self, path: &str) -> Result<String> {
        self.get_within(path, PATIENCE)
    }

    fn get_within(&self, path: &str, patience: Duration) -> Result<String> {
        self.namespace.run(|| {
            let what = || format!("cannot read {path} of ipamd on {}", self.name);
            let mut stream = TcpStream::connect(METRICS).context(what)?;
            stream.set_read_timeout(Some(patience)).context(what)?;
            // HTTP/1.0: the answer ends with the connection.
            let request = format!("GET {path} HTTP/1.0\r\nHost: ipamd\r\n\r\n");
            stream.write_all(request.as_bytes()).context(what)?;
            let mut text = String::new();
            stream.read_to_string(&mut text).context(what)?;
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
            let status = head.split(' ').nth(1).unwrap_or_default();
            if status.starts_with('2') {
                return Ok(body.to_owned());
            }
            Err(self.trouble(&format!("answers {status} to {path}: {}", body.trim())))
        })
    }

    /// Runs `veni-ipamd --uninstall` with the node's environment: what the daemon has left on the node goes.
    ///
    /// # Errors
    /// When it fails.
    pub fn uninstall(&self) -> Result<()> {
        let mut command = Command::new(&self.daemon.program);
        command.arg("--uninstall").env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let output = self.namespace.output(command.envs(&self.daemon.environment))?;
        succeeded("veni-ipamd --uninstall", Ok(output)).map(drop)
    }

    /// The daemon's process id, while it runs.
    #[must_use]
    pub fn ipamd_pid(&self) -> Option<u32> {
        let mut process = self.daemon.process();
        let child = process.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| child.id())
    }

    /// Sends the daemon `signal` and waits for its end.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop_ipamd(&self, signal: Signal) -> Result<ExitStatus> {
        let mut child = self.daemon.process().take().ok_or_else(|| self.trouble("does not run"))?;
        self.signal(child.id(), signal)?;
        child.wait().context(|| format!("cannot wait for ipamd on {}", self.name))
    }

    /// Ends the daemon if it runs (SIGTERM, and SIGKILL after 5 s), starts it with the node's variables, and waits until
    /// it is ready. One that was suspended is woken to end.
    ///
    /// # Errors
    /// When it does not end, cannot be started, or is not ready within `timeout`.
    pub fn restart_ipamd(&self, timeout: Duration) -> Result<Restarted> {
        let ended = self.ipamd_pid();
        if let Some(pid) = ended {
            self.signal(pid, Signal::SIGTERM)?;
            self.signal(pid, Signal::SIGCONT)?;
            let start = Instant::now();
            while self.ipamd_pid().is_some() && start.elapsed() < END {
                thread::sleep(POLL);
            }
            if self.ipamd_pid().is_some() {
                self.stop_ipamd(Signal::SIGKILL)?;
            }
        }
        self.spawn_ipamd(&[])?;
        Ok(Restarted { ended, ready: self.wait_ready(timeout)? })
    }

    fn signal(&self, pid: u32, signal: Signal) -> Result<()> {
        let pid = i32::try_from(pid)
            .map_err(std::io::Error::other)
            .context(|| "a process id".to_owned())?;
        kill(Pid::from_raw(pid), signal).context(|| format!("cannot signal ipamd on {}", self.name))
    }

    fn trouble(&self, message: &str) -> Error {
        Error::Daemon {
            node: self.name.clone(),
            message: format!("{message} (log: {})", self.log().display()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.ipamd_pid().is_some() {
            drop(self.stop_ipamd(Signal::SIGKILL));
        }
    }
}

// === impl Daemon ===

impl Daemon {
    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where things are on the node that keeps its files in `dir`, as the variables of `venictl` name them.
#[must_use]
pub fn directories(dir: &Path) -> [(&'static str, PathBuf); 4] {
    [
        ("VENI_SOCKET", dir.join("ipamd.sock")),
        ("VENI_BPF_DIR", dir.join("bpf/veni")),
        ("VENI_CNI_CONF_DIR", dir.join("net.d")),
        ("VENI_CNI_BIN_DIR", dir.join("bin")),
    ]
}

/// The daemon's environment on the node that keeps its files in `dir`, without settings of the pool and its way to EC2.
pub(crate) fn environment(dir: &Path, name: &str) -> BTreeMap<String, String> {
    let below = |file: &str| dir.join(file).display().to_string();
    [
        ("VENI_SOCKET", below("ipamd.sock")),
        ("VENI_STATE_DIR", below("state")),
        ("VENI_BPF_DIR", below("bpf/veni")),
        ("VENI_CNI_CACHE_DIR", below("cni")),
        ("MY_NODE_NAME", name.to_owned()),
        ("CLUSTER_NAME", "lab".to_owned()),
        ("RUST_BACKTRACE", "1".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}
