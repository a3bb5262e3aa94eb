//! LocalStack in host mode as a child process, on a free port of the loopback.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use crate::control::Control;

/// A cold start takes about 4 s; the rest is for a machine that is busy compiling.
const START_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// Which LocalStack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// As its makers ship it.
    Plain,
    /// With the extension that gives it EC2's address semantics.
    Semantics,
}

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
        let python = installed_python()?;
        let directory = tempfile::tempdir().context("a directory for LocalStack")?;
        let port = free_port()?;
        let control = Control::in_directory(directory.path());
        let child = spawn(command(&python, tier, port, directory.path(), &control)?)?;
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
            if healthy(self.port) {
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

fn installed_python() -> anyhow::Result<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/localstack/bin/python");
    ensure!(
        python.exists(),
        "LocalStack is not installed ({} is not there): run hack/localstack.sh",
        python.display()
    );
    Ok(python)
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Its environment is cleared: a developer's `AWS_…`, `SERVICES` or proxy is none of its business.
fn command(
    python: &Path,
    tier: Tier,
    port: u16,
    directory: &Path,
    control: &Control,
) -> anyhow::Result<Command> {
    let output = File::create(directory.join("output"))?;
    // setpriv (util-linux): the kernel ends it when the thread that started it goes, so a test that is killed leaves
    // no server behind.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(python)
        .args(["-m", "localstack.runtime.main"])
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", directory)
        .env("TMPDIR", directory)
        .env("FILESYSTEM_ROOT", directory.join("root"))
        .env("SERVICES", "ec2,sts")
        .env("GATEWAY_LISTEN", format!("127.0.0.1:{port}"))
        // Ends within milliseconds; the default gateway takes seconds.
        .env("GATEWAY_SERVER", "hypercorn")
        .env("EAGER_SERVICE_LOADING", "1")
        .envs([
            ("DISABLE_EVENTS", "1"),
            ("SKIP_SSL_CERT_DOWNLOAD", "1"),
            ("DNS_ADDRESS", "0"),
            ("USE_SSL", "0"),
        ])
        .stdin(Stdio::null())
        .stderr(output.try_clone()?)
        .stdout(output);
    if tier == Tier::Semantics {
        command.env("VENI_EC2_SEMANTICS", "1").envs(control.environment());
    }
    Ok(command)
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

fn healthy(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, POLL) else { return false };
    let request = "GET /_localstack/health HTTP/1.0\r\nHost: localhost\r\n\r\n";
    let limit = Some(Duration::from_secs(5));
    let mut answer = String::new();
    stream.set_read_timeout(limit).is_ok()
        && stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && (answer.contains("\"ec2\": \"running\"") || answer.contains("\"ec2\": \"available\""))
}

/// A line for the person who watches.
#[expect(
    clippy::print_stderr,
    reason = "test support: what it starts is told to whoever runs the tests"
)]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}
