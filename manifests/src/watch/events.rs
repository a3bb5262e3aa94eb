//! inotify on a folder and on the one above it.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::{Interest, unix::AsyncFd};

use crate::read::manifest_name;

/// Room for some hundred events.
const BUFFER: usize = 16 << 10;

/// The watches.
#[derive(Debug)]
pub(super) struct Watched {
    inotify: AsyncFd<Inotify>,
    /// The folder, when it exists.
    folder: Option<WatchDescriptor>,
    /// What to look for above: the name of the folder, or of its first ancestor that does not exist.
    awaited: OsString,
}

/// What has happened since it was last looked at.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Anything at all.
    pub(super) any: bool,
    /// The folder came, went, or was replaced; or events were lost.
    pub(super) renewed: bool,
    /// Manifests that may have changed.
    pub(super) touched: BTreeSet<String>,
    begun: BTreeSet<String>,
    ended: BTreeSet<String>,
}

// === impl Watched ===

impl Watched {
    /// Watches of `folder`, or of what is above it while there is none.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        loop {
            // First above, then the folder: what is made in between is an event, or found.
            let (above, awaited) = watch_above(&inotify, folder)?;
            let descriptor = match inotify.watches().add(folder, contents_mask()) {
                Ok(descriptor) => Some(descriptor),
                Err(error) if is_absence(&error) => None,
                Err(error) => return Err(error),
            };
            if descriptor.is_some() || !above.join(&awaited).exists() {
                return Ok(Self { inotify: register(inotify)?, folder: descriptor, awaited });
            }
        }
    }

    /// Until there is an event.
    pub(super) async fn readable(&self) {
        // An error is one of the runtime that ends; `drain` finds nothing then.
        if let Ok(mut guard) = self.inotify.readable().await {
            guard.clear_ready();
        }
    }

    /// Adds the events that are there to `events`, without waiting.
    pub(super) fn drain(&mut self, events: &mut Events) {
        let mut buffer = [0; BUFFER];
        loop {
            // Edge-triggered readiness: read until there is nothing.
            let Ok(found) = self.inotify.get_mut().read_events(&mut buffer) else { return };
            let mut none = true;
            for event in found {
                none = false;
                let inside = self.folder.as_ref() == Some(&event.wd);
                events.any = true;
                if event.mask.intersects(EventMask::Q_OVERFLOW | EventMask::UNMOUNT | gone()) {
                    events.renewed = true;
                } else if inside {
                    events.note(event.mask, event.name);
                } else if event.name == Some(&self.awaited) {
                    events.renewed = true;
                }
            }
            if none {
                return;
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for types whose descriptor may change; Inotify owns one for life"
)]
fn register(inotify: Inotify) -> io::Result<AsyncFd<Inotify>> {
    AsyncFd::with_interest(inotify, Interest::READABLE)
}

fn watch_above(inotify: &Inotify, folder: &Path) -> io::Result<(PathBuf, OsString)> {
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    let mut child = folder;
    while let Some(above) = child.parent() {
        let name = child.file_name().unwrap_or_default().to_owned();
        match inotify.watches().add(above, mask) {
            Ok(_) => return Ok((above.to_owned(), name)),
            Err(error) if is_absence(&error) => child = above,
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "the root folder cannot be one of manifests"))
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn contents_mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MODIFY
        | WatchMask::CLOSE_WRITE
        | WatchMask::ATTRIB
        | WatchMask::MOVE
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}

const fn gone() -> EventMask {
    EventMask::DELETE_SELF.union(EventMask::MOVE_SELF).union(EventMask::IGNORED)
}

// === impl Events ===

impl Events {
    /// Takes what was begun and ended since the last time over into the files that are being written, and those that
    /// are open without being written.
    pub(super) fn settle(&mut self, writing: &mut BTreeSet<String>, open: &mut BTreeSet<String>) {
        writing.append(&mut self.begun);
        for name in std::mem::take(&mut self.ended) {
            writing.remove(&name);
            open.remove(&name);
        }
    }

    fn note(&mut self, mask: EventMask, name: Option<&OsStr>) {
        let Some(name) = name.and_then(manifest_name) else { return };
        self.touched.insert(name.clone());
        if mask.contains(EventMask::MODIFY) {
            self.ended.remove(&name);
            self.begun.insert(name);
        } else if mask.intersects(
            EventMask::CLOSE_WRITE
                | EventMask::MOVED_TO
                | EventMask::MOVED_FROM
                | EventMask::DELETE,
        ) {
            self.begun.remove(&name);
            self.ended.insert(name);
        }
    }
}
