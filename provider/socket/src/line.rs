//! One JSON message a line, of limited size.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::MESSAGE_LIMIT;

/// The next line without its end, `None` when the other side has closed.
pub(crate) async fn read(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let limit = MESSAGE_LIMIT as u64 + 1;
    reader.take(limit).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        let why = if line.len() >= MESSAGE_LIMIT { "longer than the limit" } else { "cut off" };
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {} bytes or more is {why}", line.len()),
        ));
    }
    Ok(Some(line))
}

/// Parses a line.
pub(crate) fn parse<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    serde_json::from_slice(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes a message as one line.
pub(crate) async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
