//! The program: where it is installed, its command line and environment, and whether it answers.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{control::Control, feed};

/// How long a connection that asks for its health may take.
const CONNECT: Duration = Duration::from_millis(100);
/// And the answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Which LocalStack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// As its makers ship it.
    Plain,
    /// With the extension that gives it EC2's address semantics.
    Semantics,
}

/// What a server is to be.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Which one.
    pub tier: Tier,
    /// Where it listens.
    pub listen: SocketAddrV4,
    /// Its own directory, which is there.
    pub directory: &'a Path,
    /// What the extension is told.
    pub control: &'a Control,
    /// The socket of who follows the ENIs ([`feed`]).
    pub feed: Option<&'a Path>,
}

impl Launch<'_> {
    /// Its command, whose environment is to be cleared: a developer's `AWS_…`, `SERVICES` or proxy is none of its
    /// business.
    ///
    /// # Errors
    /// `NotFound` when it is not installed, with what installs it.
    pub fn command(&self) -> io::Result<Command> {
        let mut command = Command::new(installed_python()?);
        command
            .args(["-m", "localstack.runtime.main"])
            .current_dir(self.directory)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory)
            .env("TMPDIR", self.directory)
            .env("FILESYSTEM_ROOT", self.directory.join("root"))
            .env("SERVICES", "ec2,sts")
            .env("GATEWAY_LISTEN", self.listen.to_string())
            // Ends within milliseconds; the default gateway takes seconds.
            .env("GATEWAY_SERVER", "hypercorn")
            .env("EAGER_SERVICE_LOADING", "1")
            .envs([
                ("DISABLE_EVENTS", "1"),
                ("SKIP_SSL_CERT_DOWNLOAD", "1"),
                ("DNS_ADDRESS", "0"),
                ("USE_SSL", "0"),
            ]);
        if self.tier == Tier::Semantics {
            command.env("VENI_EC2_SEMANTICS", "1").envs(self.control.environment());
            command.envs(self.feed.map(|socket| (feed::VARIABLE, socket)));
        }
        Ok(command)
    }
}

/// Whether the EC2 of the server at `address` answers, asked from the calling thread's network namespace.
#[must_use]
pub fn is_healthy(address: SocketAddr) -> bool {
    health(address).is_ok_and(|answer| {
        answer.contains("\"ec2\": \"running\"") || answer.contains("\"ec2\": \"available\"")
    })
}

fn health(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT)?;
    stream.set_read_timeout(Some(ANSWER))?;
    // HTTP/1.0: the answer ends with the connection.
    stream.write_all(b"GET /_localstack/health HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn installed_python() -> io::Result<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/localstack/bin/python");
    if python.exists() {
        return Ok(python);
    }
    let missing = python.display();
    let message =
        format!("LocalStack is not installed ({missing} is not there): run hack/localstack.sh");
    Err(io::Error::new(io::ErrorKind::NotFound, message))
}
