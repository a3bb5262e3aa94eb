//! What a folder holds, file by file, and what of it is in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;
use veni_core::chain::chain;
use veni_policy::object::{Key, Object};

use super::Batch;
use crate::{
    Diagnostic, ReadError,
    file::{self, Contents},
    read::{DANGLING, Listing, Places, claim, list},
};

/// A folder.
#[derive(Debug, Default)]
pub(super) struct Folder {
    path: PathBuf,
    files: BTreeMap<String, Known>,
    in_force: BTreeMap<Key, Arc<Object>>,
    /// Links that lead to nothing.
    dangling: BTreeSet<String>,
    /// Why the folder cannot be read.
    failure: Option<String>,
    /// Whether every file in it was read at one time. Before that nothing is in force: a policy that is in a file which
    /// cannot be read is not known from before, and pods would be open without it.
    complete: bool,
    /// What was told last; `None` before the first time.
    told: Option<Vec<Diagnostic>>,
    /// What was last handed on as it is.
    beside: Vec<Value>,
}

/// A file.
#[derive(Debug)]
struct Known {
    name: Arc<str>,
    fingerprint: Option<Fingerprint>,
    contents: Contents,
    /// Whether it could be read once.
    was_read: bool,
    /// Why what is there now is not in force.
    failure: Option<String>,
}

/// Changes when the file does, unless it is written twice within the clock's tick: for that there are the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What was found in the folder.
#[derive(Debug)]
pub(super) struct Reading {
    names: Result<BTreeSet<String>, ReadError>,
    dangling: BTreeSet<String>,
    files: Vec<(String, Option<Fingerprint>, Result<Contents, ReadError>)>,
}

// === impl Folder ===

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }

    /// Has every file read again.
    pub(super) fn forget_fingerprints(&mut self) {
        for known in self.files.values_mut() {
            known.fingerprint = None;
        }
    }

    /// Reads what is new, what was touched and what looks changed, but not what is being written.
    pub(super) fn read(&self, touched: &BTreeSet<String>, writing: &BTreeSet<String>) -> Reading {
        let Listing { names, dangling } = match list(&self.path) {
            Ok(listing) => listing,
            Err(error) => {
                let dangling = self.dangling.clone();
                return Reading { names: Err(error), dangling, files: Vec::new() };
            }
        };
        let mut files = Vec::new();
        for name in names.iter().filter(|name| !writing.contains(*name)) {
            let path = self.path.join(name);
            let fingerprint = Fingerprint::of(&path);
            let known = self.files.get(name).and_then(|known| known.fingerprint);
            if touched.contains(name) || fingerprint.is_none() || known != fingerprint {
                let shown: Arc<str> = name.as_str().into();
                let contents = file::load(&path).and_then(|text| file::parse(&shown, &text));
                files.push((name.clone(), fingerprint, contents));
            }
        }
        let (names, dangling) = (names.into_iter().collect(), dangling.into_iter().collect());
        Reading { names: Ok(names), dangling, files }
    }

    /// Takes over what was found, except of files that are about to change. Files in `open` have a writer that does not
    /// write and does not close either: what they lack may still come. `None`: nothing has changed.
    pub(super) fn adopt(
        &mut self,
        reading: Reading,
        unsettled: &BTreeSet<String>,
        open: &BTreeSet<String>,
    ) -> Option<Batch> {
        self.dangling = reading.dangling;
        let names = match reading.names {
            Ok(names) => {
                self.failure = None;
                // What a link led to may come back, and a policy is not taken away meanwhile.
                let dangling = &self.dangling;
                self.files.retain(|name, _| {
                    names.contains(name) || unsettled.contains(name) || dangling.contains(name)
                });
                Some(names)
            }
            Err(error) => {
                self.failure = Some(chain(&error));
                None
            }
        };
        for (name, fingerprint, contents) in reading.files {
            // Gone between the listing and the reading: its event is on its way.
            let vanished = matches!(&contents, Err(ReadError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound);
            if !unsettled.contains(&name) && !vanished {
                let shown = name.as_str().into();
                let is_open = open.contains(&name);
                let known = self.files.entry(name).or_insert_with(|| Known::new(shown));
                known.take(fingerprint, contents, is_open);
            }
        }
        let was_read = |name: &String| self.files.get(name).is_some_and(|known| known.was_read);
        self.complete |= names.is_some_and(|names| names.iter().all(was_read));
        self.publish()
    }

    /// What differs from what was told before.
    fn publish(&mut self) -> Option<Batch> {
        let (known, diagnostics) = self.wanted();
        let wanted = if self.complete { known } else { BTreeMap::new() };
        let delete: Vec<_> =
            self.in_force.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        let apply: Vec<_> = wanted
            .iter()
            .filter(|(key, object)| self.in_force.get(*key).is_none_or(|old| !same(old, object)))
            .map(|(_, object)| Object::clone(object))
            .collect();
        self.in_force = wanted;
        let beside = if self.complete { self.beside() } else { Vec::new() };
        let unchanged = self.told.as_ref() == Some(&diagnostics) && self.beside == beside;
        if apply.is_empty() && delete.is_empty() && unchanged {
            return None;
        }
        self.told = Some(diagnostics.clone());
        self.beside.clone_from(&beside);
        Some(Batch { apply, delete, beside, diagnostics, complete: self.complete })
    }

    /// Of two definitions the first by file name.
    fn beside(&self) -> Vec<Value> {
        let all = self.files.values().flat_map(|known| &known.contents.beside);
        let mut seen = BTreeSet::new();
        all.filter(|value| seen.insert(file::beside_key(value))).cloned().collect()
    }

    fn wanted(&self) -> (BTreeMap<Key, Arc<Object>>, Vec<Diagnostic>) {
        let mut places = Places::new();
        let mut wanted = BTreeMap::new();
        let mut diagnostics = Vec::new();
        if let Some(failure) = &self.failure {
            let shown = self.path.display().to_string().into();
            let message = format!("{failure}; what was known of it stays in force");
            diagnostics.push(Diagnostic::of_file(&shown, message));
        }
        for name in &self.dangling {
            let then = match self.files.contains_key(name) {
                true => "its previous objects stay in force",
                false => "passed over",
            };
            let message = format!("{DANGLING}; {then}");
            diagnostics.push(Diagnostic::of_file(&name.as_str().into(), message));
        }
        for known in self.files.values() {
            diagnostics.extend(known.contents.diagnostics.iter().cloned());
            if let Some(failure) = &known.failure {
                let then = match (self.complete, known.was_read) {
                    (false, _) => {
                        "nothing of the folder is in force until each of its files was read: mend it, or take it away"
                    }
                    (true, true) => "its previous objects stay in force",
                    (true, false) => "none of its objects is known",
                };
                let message = format!("{failure}; {then}");
                diagnostics.push(Diagnostic::of_file(&known.name, message));
            }
            for placed in &known.contents.objects {
                match claim(&mut places, &known.name, placed) {
                    None => drop(wanted.insert(placed.object.key(), Arc::clone(&placed.object))),
                    Some(diagnostic) => diagnostics.push(diagnostic),
                }
            }
        }
        (wanted, diagnostics)
    }
}

fn same(old: &Arc<Object>, new: &Arc<Object>) -> bool {
    Arc::ptr_eq(old, new) || old == new
}

// === impl Known ===

impl Known {
    fn new(name: Arc<str>) -> Self {
        let contents = Contents::default();
        Self { name, fingerprint: None, contents, was_read: false, failure: None }
    }

    fn take(
        &mut self,
        fingerprint: Option<Fingerprint>,
        found: Result<Contents, ReadError>,
        is_open: bool,
    ) {
        self.fingerprint = fingerprint;
        match found {
            Ok(mut contents) => {
                self.keep_rejected(&mut contents);
                if is_open {
                    self.keep_missing(&mut contents);
                }
                // What its writer has not written yet is not known from before, either.
                self.was_read |= !is_open;
                self.contents = contents;
                self.failure = None;
            }
            Err(error) => self.failure = Some(chain(&error)),
        }
    }

    /// Half a file is often a whole one's beginning: what it lacks stays until its writer is done.
    fn keep_missing(&self, contents: &mut Contents) {
        let there: BTreeSet<Key> =
            contents.objects.iter().map(|placed| placed.object.key()).collect();
        let missing = self.contents.objects.iter();
        let missing: Vec<_> =
            missing.filter(|placed| !there.contains(&placed.object.key())).cloned().collect();
        if !missing.is_empty() {
            let message = format!(
                "is still open for writing; {} objects that it lacks stay in force. Write another file and rename it to this one",
                missing.len()
            );
            contents.diagnostics.push(Diagnostic::of_file(&self.name, message));
            contents.objects.extend(missing);
        }
        let there: BTreeSet<_> = contents.beside.iter().map(file::beside_key).collect();
        let missing = self.contents.beside.iter();
        let missing: Vec<_> =
            missing.filter(|value| !there.contains(&file::beside_key(value))).cloned().collect();
        contents.beside.extend(missing);
    }

    /// An object that has become invalid stays as it was: taking a policy away would open what it closed.
    fn keep_rejected(&self, contents: &mut Contents) {
        for key in &contents.rejected {
            let old = self.contents.objects.iter().find(|placed| placed.object.key() == *key);
            if let Some(old) = old {
                contents.objects.retain(|placed| placed.object.key() != *key);
                let mut diagnostic = Diagnostic::of_file(
                    &self.name,
                    "its previous version stays in force".to_owned(),
                );
                diagnostic.object = key.to_string();
                contents.diagnostics.push(diagnostic);
                contents.objects.push(old.clone());
            }
        }
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}
