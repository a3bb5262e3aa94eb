//! A folder of manifests, followed: what changes becomes batches of objects to apply and to delete.
//!
//! inotify tells when to look; what is there is always read from the folder itself, so a lost event costs nothing but
//! time. Invariants: the first batch with objects says all that there is, so that no pod is open for want of a policy in
//! a file that cannot be read; nothing is deleted because something could not be read:
//! a file that is half written, unreadable or no YAML, an object that has become invalid, a folder that is missing
//! keep what they had, and a diagnostic says so. What cannot be told is a file that was cut short and closed (a full disk)
//! from one that was made shorter: only a rename is safe. Nothing waits for a quiet moment: events that are there are taken
//! together, those that come meanwhile are the next batch.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::mpsc, task, time};
use veni_policy::object::{Key, Object};

use crate::Diagnostic;
use events::{Events, Watched};
use folder::Folder;

mod events;
mod folder;

/// Batches that may wait for their reader; after that the kernel keeps the events.
const BATCHES: usize = 16;
/// What a writer that holds its file open for longer without writing has written so far is taken; what it has not
/// written (yet) is not taken away.
const WRITING: Duration = Duration::from_secs(2);
/// When inotify itself fails (no more watches).
const RETRY: Duration = Duration::from_secs(5);

/// What changed.
#[derive(Debug, Default)]
pub struct Batch {
    /// New and changed objects.
    pub apply: Vec<Object>,
    /// Objects that are gone.
    pub delete: Vec<Key>,
    /// Nodes and ENIConfigs as they stand in the files: all that there are now, each once.
    pub beside: Vec<Value>,
    /// Everything that is wrong now, not only what is new.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether each file of the folder has been read at all: before that there are no objects, and one that is not known
    /// may well exist.
    pub complete: bool,
}

/// Follows the manifests of a folder, which need not exist yet, until the receiver is dropped. The first batch comes
/// at once, or when inotify can be used; later ones when something has changed.
///
/// # Errors
/// When the path is none, or is relative to a folder that is gone.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn watch(folder: &Path) -> io::Result<mpsc::Receiver<Batch>> {
    let path = std::path::absolute(folder)?;
    let (sender, receiver) = mpsc::channel(BATCHES);
    task::spawn(follow(path, sender));
    Ok(receiver)
}

async fn follow(path: PathBuf, sender: mpsc::Sender<Batch>) {
    let mut folder = Folder::new(path.clone());
    loop {
        let mut watched = loop {
            match Watched::new(&path) {
                Ok(watched) => break watched,
                Err(error) => {
                    tracing::error!(folder = %path.display(), %error, "cannot watch the manifests (sysctl fs.inotify says how many may be watched); trying again");
                    tokio::select! {
                        () = sender.closed() => return,
                        () = time::sleep(RETRY) => {}
                    }
                }
            }
        };
        // Whatever happened before the watch was there is in the folder now.
        if !look(&mut folder, &mut watched, &sender).await {
            return;
        }
    }
}

/// Reads the folder again and again. True: the watch has to be set up anew; false: nobody listens any more.
async fn look(folder: &mut Folder, watched: &mut Watched, sender: &mpsc::Sender<Batch>) -> bool {
    let (mut writing, mut open) = (BTreeSet::new(), BTreeSet::new());
    let mut events = Events::default();
    folder.forget_fingerprints();
    loop {
        let touched = std::mem::take(&mut events.touched);
        let skipped = writing.clone();
        let moved = std::mem::take(folder);
        let read = task::spawn_blocking(move || {
            let reading = moved.read(&touched, &skipped);
            (moved, reading)
        });
        let Ok((back, reading)) = read.await else { return false };
        *folder = back;
        // What was touched while it was read may have been read by half, or be missed between two names: it is read
        // once more.
        watched.drain(&mut events);
        events.settle(&mut writing, &mut open);
        let unsettled = writing.union(&events.touched).cloned().collect();
        if let Some(batch) = folder.adopt(reading, &unsettled, &open)
            && sender.send(batch).await.is_err()
        {
            return false;
        }
        if events.renewed {
            return true;
        }
        if !events.any {
            tokio::select! {
                () = sender.closed() => return false,
                () = watched.readable() => {}
                () = time::sleep(WRITING), if !writing.is_empty() => {
                    open.extend(writing.iter().cloned());
                    events.touched.append(&mut writing);
                }
            }
            watched.drain(&mut events);
            events.settle(&mut writing, &mut open);
        }
        events.any = false;
    }
}

#[cfg(test)]
mod tests;
