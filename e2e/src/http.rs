//! Just enough of HTTP to ask `agnhost netexec`.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use veni_lab::ns::Namespace;

/// How long a connection, and each answer on it, may take. Within it, a lost first segment is sent again twice.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

/// A connection, for one request after another.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Connection {
    /// From the calling thread's network namespace.
    pub(crate) fn open(to: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)
            .with_context(|| format!("connecting to {to}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), host: to })
    }

    /// The body of what is at `path`.
    pub(crate) fn get(&mut self, path: &str) -> anyhow::Result<String> {
        self.ask(path).with_context(|| format!("GET http://{}{path}", self.host))
    }

    fn ask(&mut self, path: &str) -> anyhow::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let mut length = None;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse()?);
            }
        }
        let mut body = vec![0; length.context("an answer without a length")?];
        self.stream.read_exact(&mut body)?;
        let body = String::from_utf8(body)?;
        ensure!(status.contains(" 200 "), "{status}: {body}");
        Ok(body)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end().to_owned())
    }
}

/// One request on a connection of its own, made in `namespace`.
pub(crate) fn get(namespace: &Namespace, to: SocketAddr, path: &str) -> anyhow::Result<String> {
    // The namespace's own errors are the lab's.
    namespace.run(|| Ok(Connection::open(to).and_then(|mut connection| connection.get(path))))?
}
