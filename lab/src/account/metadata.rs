//! Instance metadata (IMDSv2) at its usual address, which every node reaches by its default route: it tells by the caller's
//! address which instance asks, as EC2 tells it by the ENI.

use std::{
    io::{self, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{Shutdown, shutdown};

use super::ec2::KEY;
use crate::{
    error::{Context as _, Result},
    ns::Namespace,
};

/// Where it is.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const PORT: u16 = 80;
const ROOT: &str = "/latest/meta-data/";
const TOKEN: &str = "lab-token";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// How long a caller may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// The role of every instance.
const ROLE: &str = "veni-lab-node";

/// What the instance that has this address reads at this path below `/latest/meta-data/`.
pub(super) type Values = Arc<dyn Fn(Ipv4Addr, &str) -> Option<String> + Send + Sync>;

/// The server. It ends when dropped.
#[derive(Debug)]
pub(super) struct Server {
    listener: Arc<TcpListener>,
    ends: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

/// One request.
#[derive(Debug, Default)]
struct Request {
    method: String,
    path: String,
    token: Option<String>,
    ttl: Option<String>,
}

// === impl Server ===

impl Server {
    /// Listens in `router`, which has [`ADDRESS`].
    pub(super) fn start(router: &Namespace, values: Values) -> Result<Self> {
        let at = SocketAddrV4::new(ADDRESS, PORT);
        let listener = router.run(|| {
            TcpListener::bind(at).context(|| format!("cannot serve instance metadata at {at}"))
        })?;
        let (listener, ends) = (Arc::new(listener), Arc::new(AtomicBool::new(false)));
        let accepting = thread::spawn({
            let (listener, ends) = (Arc::clone(&listener), Arc::clone(&ends));
            move || {
                for stream in listener.incoming() {
                    if ends.load(Ordering::Acquire) {
                        return;
                    }
                    // A caller that went away before it was heard.
                    let Ok(stream) = stream else { continue };
                    let values = Arc::clone(&values);
                    // What a caller does not wait for is its own affair.
                    thread::spawn(move || drop(answer(stream, &values)));
                }
            }
        });
        Ok(Self { listener, ends, accepting: Some(accepting) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        // Wakes the thread that accepts: listen(2)'s socket is none any more.
        shutdown(self.listener.as_raw_fd(), Shutdown::Both).ok();
        self.accepting.take().map(JoinHandle::join);
    }
}

fn answer(stream: TcpStream, values: &Values) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let IpAddr::V4(caller) = stream.peer_addr()?.ip() else { return Ok(()) };
    let mut stream = BufReader::new(stream);
    let request = Request::read(&mut stream)?;
    let (status, body) = request.answered(|path| values(caller, path));
    let ttl = request.ttl.map(|ttl| format!("{TTL_HEADER}: {ttl}\r\n")).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 {status}\r\n{ttl}Content-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.get_mut().write_all(answer.as_bytes())
}

// === impl Request ===

impl Request {
    fn read(stream: &mut impl io::BufRead) -> io::Result<Self> {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let mut words = line.split(' ').map(str::to_owned);
        let mut request = Self {
            method: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            ..Self::default()
        };
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
                return Ok(request);
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = Some(value.trim().to_owned());
            match name.to_ascii_lowercase().as_str() {
                TOKEN_HEADER => request.token = value,
                TTL_HEADER => request.ttl = value,
                _ => {}
            }
        }
    }

    /// The status and the body.
    fn answered(&self, value: impl FnOnce(&str) -> Option<String>) -> (&'static str, String) {
        if self.method == "PUT" && self.path == "/latest/api/token" {
            return match self.ttl {
                Some(_) => ("200 OK", TOKEN.to_owned()),
                None => ("400 Bad Request", String::new()),
            };
        }
        if self.token.as_deref() != Some(TOKEN) {
            return ("401 Unauthorized", String::new());
        }
        let found = match self.path.strip_prefix(ROOT) {
            Some("iam/security-credentials/") => Some(ROLE.to_owned()),
            Some(path) if path.strip_prefix("iam/security-credentials/") == Some(ROLE) => {
                Some(credentials())
            }
            Some(path) => value(path),
            None => None,
        };
        found.map_or_else(|| ("404 Not Found", String::new()), |body| ("200 OK", body))
    }
}

/// The role's. LocalStack takes any.
fn credentials() -> String {
    serde_json::json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": KEY, "SecretAccessKey": KEY, "Token": KEY, "Expiration": "2099-01-01T00:00:00Z",
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: (&str, &str)) {
        let request = Request::read(&mut text.as_bytes()).unwrap();
        let (status, body) = request.answered(|path| (path == "mac").then(|| "02:00".to_owned()));
        assert_eq!((status, body.as_str()), expect, "{text}");
    }

    #[test]
    fn a_value_takes_a_token_and_a_token_its_life() {
        let token = format!("X-aws-ec2-metadata-token: {TOKEN}\r\n\r\n");
        check(&format!("GET {ROOT}mac HTTP/1.1\r\n{token}"), ("200 OK", "02:00"));
        check(&format!("GET {ROOT}none HTTP/1.1\r\n{token}"), ("404 Not Found", ""));
        check(&format!("GET /latest/user-data HTTP/1.1\r\n{token}"), ("404 Not Found", ""));
        check(&format!("GET {ROOT}mac HTTP/1.1\r\n\r\n"), ("401 Unauthorized", ""));
        let ttl = "x-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
        check(&format!("PUT /latest/api/token HTTP/1.1\r\n{ttl}"), ("200 OK", TOKEN));
        check("PUT /latest/api/token HTTP/1.1\r\n\r\n", ("400 Bad Request", ""));
        let role = format!("GET {ROOT}iam/security-credentials/ HTTP/1.1\r\n{token}");
        check(&role, ("200 OK", ROLE));
    }
}
