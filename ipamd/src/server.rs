//! The unix socket that the plugin and `venictl` speak to.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};
use veni_core::wire::{
    ErrorCode, MAX_REQUEST_BYTES, Reply, ReplyBody, Request, RequestBody, VERSIONS, WireError,
};

use crate::{
    metrics::Metrics,
    owner::{Command, ConnectionId},
    requests::Requests,
};

/// How long a client may take to say what it wants, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// After how long the connection of an ADD that is open still is worth a word.
const WIRING: Duration = Duration::from_secs(60);

/// Binds `path`, mode 0600: nobody but root allocates or frees. A former daemon's socket is replaced atomically, so
/// that there is always one to connect to.
///
/// # Errors
/// When the directory cannot be made or written.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Serves until the owner has gone.
pub async fn serve(listener: UnixListener, commands: mpsc::Sender<Command>, metrics: Arc<Metrics>) {
    let requests = Requests::new(commands);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(converse(stream, requests.clone(), metrics.clone()));
                }
                Err(error) => {
                    // Out of file descriptors: those in use come back.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = requests.closed() => return,
        }
    }
}

async fn converse(mut stream: UnixStream, requests: Requests, metrics: Arc<Metrics>) {
    let body = match timeout(PATIENCE, read_line(&mut stream)).await {
        Ok(Ok(line)) if line.is_empty() => return,
        Ok(Ok(line)) => Ok((Instant::now(), line)),
        Ok(Err(error)) => Err(bad_request(&error.to_string())),
        Err(_) => Err(bad_request("no whole line within 10 s")),
    };
    match body.and_then(|(read_at, line)| Ok((read_at, parse(&line)?))) {
        Ok((read_at, (version, RequestBody::Add(request)))) => {
            let (connection, attachment) = (ConnectionId::next(), request.attachment.clone());
            let answer = requests.ask(|reply| Command::Add(connection, request, reply));
            let answered = add(&mut stream, version, answer).await;
            if answered {
                metrics.answered("add", read_at.elapsed());
                if timeout(WIRING, hung_up(&mut stream)).await.is_err() {
                    // Its address is kept for it: the connection closes when it is done, and when it dies. There are no more such
                    // connections than addresses.
                    tracing::warn!("a plugin keeps its ADD open for more than 60 s");
                    hung_up(&mut stream).await;
                }
            }
            requests.tell(Command::AddClosed(connection, attachment)).await;
        }
        Ok((read_at, (version, body))) => {
            let kind = kind(&body);
            let answer = ask(&requests, body).await;
            send(&mut stream, version, answer).await;
            metrics.answered(kind, read_at.elapsed());
        }
        Err(error) => send(&mut stream, VERSIONS.max, ReplyBody::Error(error)).await,
    }
}

/// Answers an ADD. A plugin that dies while it waits takes its ADD back.
async fn add(
    stream: &mut UnixStream,
    version: u32,
    answer: impl Future<Output = Option<ReplyBody>>,
) -> bool {
    let body = tokio::select! {
        answer = answer => answer,
        () = hung_up(stream) => None,
    };
    let Some(body) = body else { return false };
    send(stream, version, body).await;
    true
}

/// Returns when the other side has closed.
async fn hung_up(stream: &mut UnixStream) {
    let mut rest = [0u8; 64];
    while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
}

async fn ask(requests: &Requests, body: RequestBody) -> ReplyBody {
    let answer = requests.ask(|reply| match body {
        RequestBody::Add(_) => unreachable!("handled by the caller"),
        RequestBody::Del(request) => Command::Del(request.attachment, request.reason, reply),
        RequestBody::Check(request) => Command::Check(request.attachment, reply),
        RequestBody::Gc(request) => Command::Gc(request, reply),
        RequestBody::Status => Command::Status(reply),
        RequestBody::Inspect(query) => Command::Inspect(query, reply),
    });
    answer.await.unwrap_or_else(|| {
        ReplyBody::Error(WireError {
            code: ErrorCode::NotReady,
            message: "ipamd is stopping: try again, the next one takes over".to_owned(),
        })
    })
}

/// The request's name in metrics.
fn kind(body: &RequestBody) -> &'static str {
    match body {
        RequestBody::Add(_) => "add",
        RequestBody::Del(_) => "del",
        RequestBody::Check(_) => "check",
        RequestBody::Gc(_) => "gc",
        RequestBody::Status => "status",
        RequestBody::Inspect(_) => "inspect",
    }
}

async fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(1024);
    loop {
        let mut chunk = [0u8; 4096];
        let n = stream.read(&mut chunk).await?;
        line.extend_from_slice(&chunk[..n]);
        if n == 0 || line.ends_with(b"\n") {
            return Ok(line);
        }
        if line.len() > MAX_REQUEST_BYTES {
            let message = format!("the request is longer than {MAX_REQUEST_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
    }
}

fn parse(line: &[u8]) -> Result<(u32, RequestBody), WireError> {
    if line.len() > MAX_REQUEST_BYTES {
        return Err(bad_request(&format!("the request is longer than {MAX_REQUEST_BYTES} bytes")));
    }
    let request: Request =
        serde_json::from_slice(line).map_err(|error| bad_request(&error.to_string()))?;
    let version = VERSIONS.common(request.versions).ok_or_else(|| WireError {
        code: ErrorCode::Version,
        message: format!(
            "the plugin speaks protocol versions {} to {}, ipamd {} to {}: install the plugin of ipamd's release",
            request.versions.min, request.versions.max, VERSIONS.min, VERSIONS.max
        ),
    })?;
    Ok((version, request.body))
}

fn bad_request(why: &str) -> WireError {
    WireError { code: ErrorCode::BadRequest, message: format!("the request cannot be read: {why}") }
}

async fn send(stream: &mut UnixStream, version: u32, body: ReplyBody) {
    let mut line =
        serde_json::to_vec(&Reply { version, body }).expect("replies have string keys only");
    line.push(b'\n');
    match timeout(PATIENCE, stream.write_all(&line)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "client has gone before its answer"),
        Err(_) => tracing::warn!("client did not take its answer within 10 s"),
    }
}
