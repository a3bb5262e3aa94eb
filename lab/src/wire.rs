//! A client of ipamd's socket: what the lab asks the daemon itself.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use veni_core::wire::{
    Reply, ReplyBody, Request, RequestBody,
    inspect::{Query, View},
};

use crate::error::{Context as _, Error, Result};

/// How long an answer may take: beyond `VENI_ADD_WAIT_SECS`'s default.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One request, one reply.
///
/// # Errors
/// When nobody listens at `socket`, or the answer is not one of ours.
pub fn ask(socket: &Path, body: RequestBody) -> Result<ReplyBody> {
    ask_within(socket, body, TIMEOUT)
}

fn ask_within(socket: &Path, body: RequestBody, timeout: Duration) -> Result<ReplyBody> {
    let what = || format!("cannot ask ipamd at {}", socket.display());
    let mut stream = UnixStream::connect(socket).context(what)?;
    stream.set_read_timeout(Some(timeout)).context(what)?;
    let mut line =
        serde_json::to_vec(&Request::new(body)).map_err(std::io::Error::from).context(what)?;
    line.push(b'\n');
    stream.write_all(&line).context(what)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context(what)?;
    let reply: Reply = serde_json::from_str(&answer).map_err(std::io::Error::from).context(what)?;
    Ok(reply.body)
}

/// The daemon's view of itself.
///
/// # Errors
/// As [`ask`].
pub fn inspect(socket: &Path) -> Result<View> {
    inspect_within(socket, TIMEOUT)
}

/// As [`inspect`], with another patience.
///
/// # Errors
/// As [`ask`].
pub fn inspect_within(socket: &Path, timeout: Duration) -> Result<View> {
    match ask_within(socket, RequestBody::Inspect(Query { addresses: true }), timeout)? {
        ReplyBody::Inspect(view) => Ok(*view),
        other => Err(Error::invalid(format!(
            "ipamd at {} answered {other:?} to Inspect",
            socket.display()
        ))),
    }
}
