//! Network namespaces of a lab, and threads that enter them.
//!
//! Invariants: the machine's own namespaces are never written to. Every namespace lives in the lab's private mount
//! namespace only, so that all of a lab is gone as soon as its processes are, whatever killed them. Entering is per
//! thread: a thread that entered a namespace never comes back, it ends.
//!
//! Deliberately absent: `ip netns exec`, which remounts `/sys` and hides cgroups and bpffs from what it starts.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, mpsc},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use crate::error::{Context as _, Error, Result, succeeded};

/// The private mount namespace that all of a lab sees, and the outer network namespace that its threads start in.
#[derive(Debug, Clone)]
pub struct Outer {
    mounts: Arc<File>,
    net: Arc<File>,
}

/// One network namespace of the lab: a node, a pod, the router, a host.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: Arc<str>,
    path: Arc<Path>,
    net: Arc<File>,
    outer: Outer,
}

/// A thread that lives in a namespace and starts programs there. It lives as long as this does: a program that is to
/// die with its parent (`PR_SET_PDEATHSIG`) dies with the thread that started it.
#[derive(Debug)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

/// Why no lab can be laid on this machine, `None` when one can. For tests, which then say that they are skipped.
#[must_use]
pub fn missing_feature() -> Option<String> {
    let namespaces =
        ["net", "mnt"].into_iter().find(|kind| !Path::new("/proc/self/ns").join(kind).exists());
    if let Some(kind) = namespaces {
        return Some(format!("the kernel has no {kind} namespaces"));
    }
    let tried = on_thread(|| unshare(CloneFlags::CLONE_NEWNET).context(String::new));
    match tried {
        Err(Error::Io { source, .. }) if source.raw_os_error() == Some(nix::libc::EPERM) => {
            Some("CAP_SYS_ADMIN (run the tests as root)".to_owned())
        }
        _ => None,
    }
}

// === impl Outer ===

impl Outer {
    /// A new mount namespace from which no mount escapes, and a new network namespace.
    ///
    /// # Errors
    /// When the caller lacks `CAP_SYS_ADMIN`.
    pub fn new() -> Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
                .context(|| {
                    "cannot make the lab's own namespaces (run it as root, with CAP_SYS_ADMIN)"
                        .to_owned()
                })?;
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
            .context(|| "cannot make the lab's mounts private".to_owned())?;
            Ok(Self {
                mounts: Arc::new(own_namespace("mnt")?),
                net: Arc::new(own_namespace("net")?),
            })
        })
    }

    /// Runs `work` on a thread of its own in the lab's mount namespace and outer network namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            self.enter_mounts()?;
            setns(&*self.net, CloneFlags::CLONE_NEWNET)
                .context(|| "cannot enter the outer network".to_owned())?;
            work()
        })
    }

    /// Mounts a BPF filesystem at `dir`, visible inside the lab only.
    pub(crate) fn mount_bpf(&self, dir: &Path) -> Result<()> {
        self.run(|| {
            mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
                .context(|| format!("cannot mount a BPF filesystem at {}", dir.display()))
        })
    }

    fn enter_mounts(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_FS)
            .context(|| "cannot leave the process's file system context".to_owned())?;
        setns(&*self.mounts, CloneFlags::CLONE_NEWNS)
            .context(|| "cannot enter the lab's mount namespace".to_owned())
    }
}

// === impl Namespace ===

impl Namespace {
    /// A new, empty network namespace, bound to `path` inside the lab, its loopback up.
    ///
    /// # Errors
    /// When the kernel refuses a namespace or the mount.
    pub fn create(name: &str, path: PathBuf, outer: &Outer) -> Result<Self> {
        let net = on_thread(|| {
            outer.enter_mounts()?;
            unshare(CloneFlags::CLONE_NEWNET)
                .context(|| format!("cannot make the network namespace of {name}"))?;
            File::create(&path).context(|| format!("cannot create {}", path.display()))?;
            mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .context(|| format!("cannot bind {name}'s network namespace to {}", path.display()))?;
            crate::netlink::loopback_up()
                .context(|| format!("cannot bring up {name}'s loopback"))?;
            own_namespace("net")
        })?;
        Ok(Self { name: name.into(), path: path.into(), net: Arc::new(net), outer: outer.clone() })
    }

    /// Its name in the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is bound, as seen from inside the lab (`CNI_NETNS`).
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open network and mount namespaces, for programs outside the lab (`/proc/<pid>/fd/<n>`).
    #[must_use]
    pub fn fds(&self) -> (i32, i32) {
        (self.net.as_raw_fd(), self.outer.mounts.as_raw_fd())
    }

    /// Removes the binding. The namespace goes with its last process and socket.
    ///
    /// # Errors
    /// When it is not bound any more.
    pub fn unbind(&self) -> Result<()> {
        self.outer.run(|| {
            umount2(&*self.path, MntFlags::MNT_DETACH)
                .context(|| format!("cannot unmount {}", self.path.display()))?;
            std::fs::remove_file(&self.path)
                .context(|| format!("cannot remove {}", self.path.display()))
        })
    }

    /// Moves the calling thread into the namespace (and into the lab's mounts), for good.
    ///
    /// # Errors
    /// When the namespaces cannot be entered.
    pub fn enter(&self) -> Result<()> {
        self.outer.enter_mounts()?;
        setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET)
            .context(|| format!("cannot enter {}", self.name))
    }

    /// Runs `work` on a thread of its own inside the namespace. A socket made there stays there.
    ///
    /// # Errors
    /// What `work` fails with, or the entering.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// Runs `command` inside and collects its output.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let what = format!("{command:?}");
        self.run(|| command.output().context(|| format!("cannot run {what}")))
    }

    /// Runs `program` with `args` inside, feeds it `input`, and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be started or ends in failure.
    pub fn tool(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        self.run(|| tool(program, args, input))
    }

    /// `ip -batch`: the lines in order, stopping at the first failure.
    ///
    /// # Errors
    /// When a line fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.tool("ip", &["-batch", "-"], lines).map(drop)
    }

    /// `nft -f -`, atomically.
    ///
    /// # Errors
    /// When the rule set is refused.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.tool("nft", &["-f", "-"], rules).map(drop)
    }

    /// Writes `net` sysctls, each `("ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// When one is missing or refuses the value.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                std::fs::write(Path::new("/proc/sys/net").join(name), value)
                    .context(|| format!("cannot set net/{name} = {value}"))?;
            }
            Ok(())
        })
    }
}

// === impl Worker ===

impl Worker {
    /// A worker inside `namespace`.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let namespace = namespace.clone();
        Self::start_with(move || namespace.enter())
    }

    /// A worker wherever `enter` leads its thread.
    pub(crate) fn start_with(enter: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (entered, outcome) = mpsc::channel();
        thread::spawn(move || {
            let result = enter();
            let failed = result.is_err();
            if entered.send(result).is_err() || failed {
                return;
            }
            while let Ok(job) = queue.recv() {
                job();
            }
        });
        outcome
            .recv()
            .unwrap_or_else(|_| Err(Error::invalid("the worker's thread ended at its start")))?;
        Ok(Self { jobs })
    }

    /// Runs `work` inside and waits for it.
    ///
    /// # Errors
    /// When the worker is gone, or what `work` fails with.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, outcome) = mpsc::channel();
        let gone = || Error::invalid("the worker's thread is gone");
        // The receiver below outlives the job.
        let job: Job = Box::new(move || drop(done.send(work())));
        self.jobs.send(job).map_err(|_| gone())?;
        outcome.recv().map_err(|_| gone())?
    }
}

/// Runs `program` in the calling thread's namespaces.
fn tool(program: &str, args: &[&str], input: &str) -> Result<String> {
    let command = format!("{program} {}", args.join(" "));
    let output = (|| {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        // A program that fails early closes its input: what it says then is the better message.
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => drop(stdin),
        }
        child.wait_with_output()
    })();
    let output = succeeded(&command, output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The calling thread's namespace of `kind`.
fn own_namespace(kind: &str) -> Result<File> {
    let path = format!("/proc/thread-self/ns/{kind}");
    File::open(&path).context(|| format!("cannot open {path}"))
}

/// Runs `work` on a thread of its own, which then ends and takes its namespaces with it.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
