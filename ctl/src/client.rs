//! One question to ipamd over its socket.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use veni_core::wire::{
    MAX_REPLY_BYTES, Request, RequestBody,
    inspect::{Query, View},
};

mod lenient;

/// ipamd answers from memory; longer than this and something is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// ipamd's view of the node.
///
/// # Errors
/// When it cannot be reached, refuses, or answers what cannot be read: with the next step.
pub(crate) fn inspect(socket: &Path, addresses: bool) -> anyhow::Result<View> {
    let line = exchange(socket, &Request::new(RequestBody::Inspect(Query { addresses })))?;
    read_view(&line)
}

/// The view in a reply of this, an older or a newer ipamd.
pub(crate) fn read_view(line: &str) -> anyhow::Result<View> {
    let reply: Value = serde_json::from_str(line).context("ipamd's answer is not JSON")?;
    let text = |name: &str| reply.get(name).and_then(Value::as_str).unwrap_or("(none)");
    match text("result") {
        "inspect" => {}
        "error" => bail!("ipamd refused: {} (code {})", text("message"), text("code")),
        other => bail!("ipamd answered {other:?} to an inspect request; is this its socket?"),
    }
    lenient::view(reply).map_err(|error| {
        anyhow!(
            "ipamd's answer cannot be read by this venictl, {}: {error}; use the venictl that came with ipamd",
            env!("CARGO_PKG_VERSION")
        )
    })
}

fn exchange(socket: &Path, request: &Request) -> anyhow::Result<String> {
    let shown = socket.display();
    let mut stream = UnixStream::connect(socket).map_err(|error| unreachable(socket, &error))?;
    stream.set_read_timeout(Some(PATIENCE)).context("cannot set a timeout on the socket")?;
    stream.set_write_timeout(Some(PATIENCE)).context("cannot set a timeout on the socket")?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).with_context(|| format!("cannot ask ipamd at {shown}"))?;
    let mut answer = String::new();
    let limit = u64::try_from(MAX_REPLY_BYTES).expect("a constant of 8 MiB");
    match BufReader::new(stream.take(limit)).read_line(&mut answer) {
        Ok(0) => bail!("ipamd at {shown} closed the connection without an answer; look at its log"),
        Ok(_) => Ok(answer),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            bail!(
                "ipamd at {shown} did not answer within {} s; look at its log, and restart it if it hangs \
             (running pods keep their network)",
                PATIENCE.as_secs()
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot read ipamd's answer at {shown}")),
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> anyhow::Error {
    let shown = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "there is no socket at {shown}: ipamd does not run on this node, or listens elsewhere; start it, or name \
             its socket with --socket or VENI_SOCKET"
        ),
        io::ErrorKind::ConnectionRefused => anyhow!(
            "nobody listens at {shown}: ipamd has stopped; look at its log and start it (running pods keep their \
             network)"
        ),
        io::ErrorKind::PermissionDenied => {
            anyhow!("no permission to use {shown}: it is root's; run venictl as root")
        }
        _ => anyhow!("cannot connect to ipamd at {shown}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_ipamds_words() {
        let error =
            read_view(r#"{"version":1,"result":"error","code":"not_ready","message":"starting"}"#);
        assert_eq!(error.unwrap_err().to_string(), "ipamd refused: starting (code not_ready)");
    }

    #[test]
    fn a_missing_socket_names_the_next_step() {
        let error = inspect(Path::new("/nonexistent/ipamd.sock"), false).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ipamd.sock") && error.contains("--socket"), "{error}");
    }

    #[test]
    fn a_stale_socket_is_told_from_a_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = inspect(&path, false).unwrap_err().to_string();
        assert!(error.contains("has stopped"), "{error}");
    }

    #[test]
    fn the_question_and_the_answer_are_one_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut question).unwrap();
            stream.write_all(b"{\"version\":1,\"result\":\"inspect\"}\n").unwrap();
            question
        });
        let view = inspect(&path, true).unwrap();
        assert_eq!(view.enis, []);
        let question: Request = serde_json::from_str(&server.join().unwrap()).unwrap();
        assert_eq!(question.body, RequestBody::Inspect(Query { addresses: true }));
    }
}
