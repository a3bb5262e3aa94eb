//! A node as a machine: mount, PID, UTS and IPC namespaces around its network namespace, for programs that take a
//! whole machine for their own (a kubelet, a container runtime).
//!
//! Invariants: everything that runs in it dies with it, and it with the lab's process. Nothing is written to the real
//! machine but control groups below [`cgroup_parent`], which are removed with the lab's directory. What it needs in
//! `/etc`, `/opt`, `/var/lib`, `/var/log` and `/run` is there for itself only.
//!
//! Deliberately absent: a user namespace and a kernel of its own: disks, memory and settings that belong to no network
//! namespace are the real machine's.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    error::{Context as _, Error, Result},
    ns::{Namespace, Worker},
};

const FIRST_PROCESS: &str = include_str!("machine.sh");
const CGROUPS: &str = "/sys/fs/cgroup";
/// How long control groups may take to be empty after their last process was killed.
const EMPTY: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// A machine that runs. It ends when dropped.
#[derive(Debug)]
pub struct Machine {
    network: Namespace,
    first: Child,
    /// The first process dies with this thread.
    _worker: Worker,
}

// === impl Machine ===

impl Machine {
    /// Starts the machine of the node that has the network namespace `network` and keeps its files in `dir`, in the lab
    /// that keeps its in `lab`.
    ///
    /// # Errors
    /// When its namespaces or mounts are refused.
    pub(crate) fn start(network: &Namespace, dir: &Path, lab: &Path) -> Result<Self> {
        let what = format!("cannot start the machine {} with setpriv and unshare", network.name());
        let worker = Worker::start(network)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
        command.args(["--pid", "--uts", "--ipc", "--fork", "--kill-child", "--"]);
        command.args(["bash", "-c", FIRST_PROCESS]).env_clear();
        command.env("PATH", SEARCH_PATH).env("NAME", network.name()).env("DIR", dir);
        command.env("LAB", lab).env("CGROUP", cgroup_parent(lab, network.name()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let first = worker.run(move || command.spawn().context(|| what))?;
        let mut machine = Self { network: network.clone(), first, _worker: worker };
        machine.wait_until_made()?;
        Ok(machine)
    }

    fn wait_until_made(&mut self) -> Result<()> {
        let mut line = String::new();
        if let Some(output) = self.first.stdout.take() {
            // An error is an empty line as well.
            drop(BufReader::new(output).read_line(&mut line));
        }
        if line.trim() == "ready" {
            return Ok(());
        }
        let mut trouble = String::new();
        if let Some(mut errors) = self.first.stderr.take() {
            drop(errors.read_to_string(&mut trouble));
        }
        let name = self.network.name();
        Err(Error::invalid(format!("the machine {name} cannot be made: {}", trouble.trim())))
    }

    /// A thread whose programs run in the machine. The thread itself must not start threads.
    ///
    /// # Errors
    /// When a namespace cannot be entered.
    pub fn worker(&self) -> Result<Worker> {
        let pid = self.first.id();
        let open = |kind: &str| {
            let path = format!("/proc/{pid}/ns/{kind}");
            File::open(&path).context(|| format!("cannot open {path}"))
        };
        let kinds = [
            ("mnt", CloneFlags::CLONE_NEWNS),
            ("uts", CloneFlags::CLONE_NEWUTS),
            ("ipc", CloneFlags::CLONE_NEWIPC),
            ("pid_for_children", CloneFlags::CLONE_NEWPID),
        ];
        let files = kinds.map(|(kind, flag)| open(kind).map(|file| (file, flag)));
        let network = self.network.clone();
        Worker::start_with(move || {
            // First the lab's: it leaves the process's file system context too.
            network.enter()?;
            for file in files {
                let (file, flag) = file?;
                setns(file, flag).context(|| format!("cannot enter {}", network.name()))?;
            }
            Ok(())
        })
    }

    /// The first process, as the real machine numbers it; `None` when it has ended.
    fn inner(&self) -> Option<Pid> {
        let pid = self.first.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The kernel kills all others of its PID namespace and the first one's parent ends once they are gone. Without a
        // first one the parent is all there is.
        let killed = self.inner().is_some_and(|pid| kill(pid, Signal::SIGKILL).is_ok());
        if !killed {
            self.first.kill().ok();
        }
        self.first.wait().ok();
    }
}

/// Where a machine's programs look for others.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The parent of the control groups of `node` in the lab that keeps its files in `lab`, below each hierarchy's root.
#[must_use]
pub fn cgroup_parent(lab: &Path, node: &str) -> String {
    format!("{}{node}", cgroup_prefix(lab))
}

fn cgroup_prefix(lab: &Path) -> String {
    let name = lab.file_name().unwrap_or_default().to_string_lossy();
    format!("veni-lab.{name}.")
}

/// Removes the control groups of the machines of the lab that kept its files in `lab`; waits for those that die.
pub(crate) fn remove_cgroups(lab: &Path) {
    let prefix = cgroup_prefix(lab);
    let start = Instant::now();
    loop {
        let left = hierarchies().flat_map(|root| children(&root)).filter(|dir| {
            dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        });
        // All are tried, whichever cannot be removed yet.
        let failed = left.filter(|dir| !remove_tree(dir)).count();
        if failed == 0 || start.elapsed() > EMPTY {
            return;
        }
        std::thread::sleep(POLL);
    }
}

fn hierarchies() -> impl Iterator<Item = PathBuf> {
    std::iter::once(PathBuf::from(CGROUPS)).chain(children(Path::new(CGROUPS)))
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}

/// Deepest first; whether all of it is gone.
fn remove_tree(dir: &Path) -> bool {
    // One that stays keeps its parent.
    children(dir).iter().filter(|child| !remove_tree(child)).count() == 0
        && fs::remove_dir(dir).is_ok()
}
