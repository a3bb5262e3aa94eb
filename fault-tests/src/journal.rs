//! The daemon's journal as a file that time and accidents happen to.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use veni_lab::Node;

/// Where it is.
#[must_use]
pub fn path(node: &Node) -> PathBuf {
    node.dir.join("state/journal")
}

/// The JSON of a journal's lines, header first.
///
/// # Errors
/// When it cannot be read, or a line is not whole.
pub fn read(node: &Node) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path(node)).context("reading the journal")?;
    let parse = |line: &str| serde_json::from_str(line.get(9..).unwrap_or_default());
    text.lines().map(parse).collect::<std::result::Result<_, _>>().context("a line of the journal")
}

/// Writes a journal of these lines, with right checksums.
///
/// # Errors
/// When the disk refuses.
pub fn write(node: &Node, lines: &[Value]) -> Result<()> {
    let mut text = String::new();
    for line in lines {
        let json = line.to_string();
        text.push_str(&format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())));
    }
    fs::write(path(node), text).context("writing the journal")
}

/// Makes everything in it `age` older, as if so much time had passed since: no test waits for an ENI to grow old.
///
/// # Errors
/// As [`read()`] and [`write()`].
pub fn grow_old(node: &Node, age: Duration) -> Result<()> {
    let mut lines = read(node)?;
    let millis = u64::try_from(age.as_millis())?;
    for line in &mut lines {
        for key in ["at", "released_until"] {
            if let Some(time) = line.get_mut(key)
                && let Some(at) = time.as_u64()
            {
                *time = at.saturating_sub(millis).into();
            }
        }
    }
    write(node, &lines)
}
