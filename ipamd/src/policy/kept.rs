//! The security groups that are in force, on disk: a daemon that starts while EC2 does not answer has them from here.
//!
//! Written whole, and put in place by a rename: a reader finds the old file or the new one. One that cannot be read is as
//! if there were none, and said.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task};
use veni_core::chain::chain;
use veni_security_groups::Kept;

/// The format that this build writes.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    veni_security_groups: u32,
    #[serde(flatten)]
    kept: Kept,
}

/// What the last daemon kept.
pub(super) fn read(path: &Path) -> Kept {
    match load(path) {
        Ok(kept) => kept,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
        Err(error) => {
            let path = path.display();
            tracing::warn!(error = chain(&error), %path, "kept security groups not read: pods keep their rules until EC2 answers, new ones stay closed");
            Kept::default()
        }
    }
}

fn load(path: &Path) -> io::Result<Kept> {
    let document: Document = serde_json::from_slice(&fs::read(path)?)?;
    if document.veni_security_groups > VERSION {
        let found = document.veni_security_groups;
        return Err(io::Error::other(format!("it is of version {found}, this is {VERSION}")));
    }
    Ok(document.kept)
}

/// Writes what is to be kept, until nobody says so any more.
pub(super) async fn follow(path: PathBuf, mut kept: watch::Receiver<Arc<Kept>>) {
    while kept.changed().await.is_ok() {
        let (now, to) = (Arc::clone(&kept.borrow_and_update()), path.clone());
        let written = task::spawn_blocking(move || store(&to, &now)).await;
        if let Ok(Err(error)) = written {
            let path = path.display();
            tracing::warn!(error = chain(&error), %path, "security groups not kept: the next daemon has to read them from EC2");
        }
    }
}

fn store(path: &Path, kept: &Kept) -> io::Result<()> {
    let document = Document { veni_security_groups: VERSION, kept: kept.clone() };
    let next = path.with_extension("groups.next");
    let mut file = File::create(&next)?;
    file.write_all(&serde_json::to_vec(&document)?)?;
    // A machine that loses power does not leave an empty file under the name.
    file.sync_all()?;
    fs::rename(&next, path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kept() -> Kept {
        let rule = |peer| json!({"id": "sgr-1", "protocol": {"number": 6}, "first": 80, "last": 81, "peer": peer});
        let group = json!({"id": "sg-1", "state": "resolved",
            "ingress": [rule(json!({"group": "sg-2"})), rule(json!({"cidr": "fd00::/64"}))],
            "egress": [{"id": "sgr-2", "protocol": "any", "first": 0, "last": 65535, "peer": {"cidr": "0.0.0.0/0"}}]});
        let document = json!({"veni_security_groups": 1,
            "groups": {"groups": {"sg-1": group}, "members": {"sg-2": ["10.0.0.1", "fd00::1"]}},
            "read_at_secs": {"sg-1": 1_700_000_000_u64}});
        serde_json::from_value::<Document>(document).unwrap().kept
    }

    #[test]
    fn what_is_written_is_read_again_and_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.groups");
        assert_eq!(read(&path), Kept::default());
        for kept in [kept(), Kept::default(), kept()] {
            store(&path, &kept).unwrap();
            assert_eq!(read(&path), kept);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_cannot_be_read_is_as_if_there_were_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.groups");
        let whole = {
            store(&path, &kept()).unwrap();
            fs::read_to_string(&path).unwrap()
        };
        let later = whole.replace("\"veni_security_groups\":1", "\"veni_security_groups\":2");
        for broken in ["", "{", &whole[..whole.len() / 2], &later] {
            fs::write(&path, broken).unwrap();
            assert_eq!(read(&path), Kept::default(), "{broken}");
        }
    }
}
