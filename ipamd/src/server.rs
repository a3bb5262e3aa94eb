//! The unix socket that the plugin and `venictl` speak to.

use std::{io, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use veni_core::wire::{
    Attachment, ErrorCode, MAX_REQUEST_BYTES, Reply, ReplyBody, Request, RequestBody, VERSIONS,
    WireError,
};

use crate::owner::Command;

/// How long a client may take to say what it wants, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the connection of an ADD may stay open after its answer.
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
pub async fn serve(listener: UnixListener, commands: mpsc::Sender<Command>) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(converse(stream, commands.clone()));
                }
                Err(error) => {
                    // Out of file descriptors: those in use come back.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = commands.closed() => return,
        }
    }
}

async fn converse(mut stream: UnixStream, commands: mpsc::Sender<Command>) {
    let body = match timeout(PATIENCE, read_line(&mut stream)).await {
        Ok(Ok(line)) if line.is_empty() => return,
        Ok(Ok(line)) => parse(&line),
        Ok(Err(error)) => Err(bad_request(&error.to_string())),
        Err(_) => Err(bad_request("no whole line within 10 s")),
    };
    match body {
        Ok((version, RequestBody::Add(request))) => {
            let attachment = request.attachment.clone();
            let (reply, answer) = oneshot::channel();
            if commands.send(Command::Add(request, reply)).await.is_err() {
                return;
            }
            add(&mut stream, version, answer).await;
            closed(&commands, attachment).await;
        }
        Ok((version, body)) => {
            let answer = ask(&commands, body).await;
            send(&mut stream, version, answer).await;
        }
        Err(error) => send(&mut stream, VERSIONS.max, ReplyBody::Error(error)).await,
    }
}

/// Answers an ADD, then waits until its plugin has let go. A plugin that dies while it waits takes its ADD back.
async fn add(stream: &mut UnixStream, version: u32, answer: oneshot::Receiver<ReplyBody>) {
    let body = tokio::select! {
        answer = answer => match answer {
            Ok(body) => body,
            Err(_) => return,
        },
        () = hung_up(stream) => return,
    };
    send(stream, version, body).await;
    if timeout(WIRING, hung_up(stream)).await.is_err() {
        tracing::warn!("a plugin kept its ADD open for 60 s");
    }
}

/// Returns when the other side has closed.
async fn hung_up(stream: &mut UnixStream) {
    let mut rest = [0u8; 64];
    while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
}

async fn closed(commands: &mpsc::Sender<Command>, attachment: Attachment) {
    // At shutdown there is nobody to tell.
    drop(commands.send(Command::AddClosed(attachment)).await);
}

async fn ask(commands: &mpsc::Sender<Command>, body: RequestBody) -> ReplyBody {
    let (reply, answer) = oneshot::channel();
    let command = match body {
        RequestBody::Add(_) => unreachable!("handled by the caller"),
        RequestBody::Del(request) => Command::Del(request.attachment, request.reason, reply),
        RequestBody::Check(request) => Command::Check(request.attachment, reply),
        RequestBody::Gc(request) => Command::Gc(request, reply),
        RequestBody::Status => Command::Status(reply),
        RequestBody::Inspect(query) => Command::Inspect(query, reply),
    };
    let sent = commands.send(command).await.is_ok();
    match answer.await {
        Ok(body) if sent => body,
        _ => ReplyBody::Error(WireError {
            code: ErrorCode::NotReady,
            message: "ipamd is stopping: try again, the next one takes over".to_owned(),
        }),
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
