//! LocalStack in host mode as a child process, on a free port of the loopback.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use veni_localstack::{
    control::Control,
    program::{Launch, Tier, is_healthy},
};

/// A cold start takes about 4 s; the rest is for a machine that is busy compiling.
const START_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// A running LocalStack. Ends with this process at the latest.
#[derive(Debug)]
pub struct LocalStack {
    tier: Tier,
    port: u16,
    pub(crate) control: Control,
    child: Mutex<Child>,
    // Its logs and state: kept until it has ended.
    _directory: tempfile::TempDir,
}

impl LocalStack {
    /// The server that all tests of this process share. A process has one tier.
    ///
    /// # Panics
    /// When it is not installed or does not start: a test that cannot run has failed.
    pub fn shared(tier: Tier) -> &'static Self {
        static SHARED: OnceLock<LocalStack> = OnceLock::new();
        let shared = SHARED.get_or_init(|| match Self::start(tier) {
            Ok(started) => started,
            Err(error) => panic!("{error:#}"),
        });
        assert_eq!(shared.tier, tier, "a test binary has one tier");
        shared
    }

    /// Starts a server and waits until its EC2 answers.
    ///
    /// # Errors
    /// When it is not installed, ends at once or does not answer in time; with the end of its log.
    pub fn start(tier: Tier) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("a directory for LocalStack")?;
        let port = free_port()?;
        let control = Control::in_directory(directory.path());
        let listen = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let launch =
            Launch { tier, listen, directory: directory.path(), control: &control, feed: None };
        let child = spawn(tied(&launch.command()?, directory.path())?)?;
        let started = Self { tier, port, control, child: Mutex::new(child), _directory: directory };
        let since = Instant::now();
        started.wait_until_healthy()?;
        say(&format!(
            "LocalStack ({tier:?}) answers on {} after {:?}",
            started.endpoint(),
            since.elapsed()
        ));
        Ok(started)
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn wait_until_healthy(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if is_healthy(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))) {
                return Ok(());
            }
            let ended = self.child.lock().expect("no thread panics holding it").try_wait()?;
            if let Some(status) = ended {
                bail!("LocalStack ended at once with {status}:\n{}", self.log_end());
            }
            ensure!(
                Instant::now() < deadline,
                "LocalStack does not answer on {} within {START_DEADLINE:?}:\n{}",
                self.endpoint(),
                self.log_end()
            );
            thread::sleep(POLL);
        }
    }

    fn log_end(&self) -> String {
        let text =
            std::fs::read_to_string(self._directory.path().join("output")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for LocalStack {
    fn drop(&mut self) {
        let child = self.child.get_mut().expect("no thread panics holding it");
        if child.kill().is_ok() && child.wait().is_err() {
            say("LocalStack did not end");
        }
    }
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a free port")?;
    Ok(listener.local_addr()?.port())
}

/// setpriv (util-linux): the kernel ends it when the thread that started it goes, so a test that is killed leaves no
/// server behind.
fn tied(command: &Command, directory: &Path) -> anyhow::Result<Command> {
    let output = File::create(directory.join("output"))?;
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    tied.current_dir(directory).env_clear();
    tied.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    tied.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
    Ok(tied)
}

/// From a thread that stays: the kernel counts the starting thread, not the process, as the parent (prctl(2),
/// `PR_SET_PDEATHSIG`), and a test's own thread ends with the test.
fn spawn(mut command: Command) -> anyhow::Result<Child> {
    let (started, child) = mpsc::channel();
    thread::Builder::new().name("localstack-parent".into()).spawn(move || {
        if started.send(command.spawn()).is_ok() {
            loop {
                thread::park();
            }
        }
    })?;
    child.recv()?.context("cannot start setpriv (package util-linux) with LocalStack's python")
}

/// A line for the person who watches.
#[expect(
    clippy::print_stderr,
    reason = "test support: what it starts is told to whoever runs the tests"
)]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}
