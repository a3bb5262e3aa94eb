//! A file, or the files of a folder, read once.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use veni_policy::object::{Key, Object};

use crate::{
    Diagnostic,
    file::{self, Contents, Placed},
};

/// Files of one folder.
const MAX_FILES: usize = 1 << 16;

/// What manifests hold.
#[derive(Debug, Default)]
pub struct Manifests {
    /// Every object once.
    pub objects: Vec<Object>,
    /// What is wrong with some of them, in the order of the files.
    pub diagnostics: Vec<Diagnostic>,
}

/// Manifests that cannot be read at all. What is wrong with a single object is a [`Diagnostic`] instead.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system refuses.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More than is sensible.
    #[error("{} has more than {limit} bytes; split it into a folder of files", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// In bytes.
        limit: u64,
    },
    /// More files than is sensible.
    #[error("{} has more than {limit} manifests; is it the right folder?", path.display())]
    TooMany {
        /// Which folder.
        path: PathBuf,
        /// In files.
        limit: usize,
    },
    /// Neither YAML nor JSON.
    #[error("{}{}: {message}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where, when it is known.
        line: Option<u64>,
        /// In the parser's words.
        message: String,
    },
}

/// Reads a file of YAML or JSON documents, a folder of such files (`.yaml`, `.yml`, `.json`, not its sub-folders, not
/// hidden ones), or standard input (`-`). Kinds that decide nothing about traffic are passed over.
///
/// # Errors
/// What cannot be read or is no YAML.
pub fn read(path: &Path) -> Result<Manifests, ReadError> {
    read_all([path])
}

/// Reads several as if they were one: of two definitions of an object the first is in force.
///
/// # Errors
/// As [`read`].
pub fn read_all<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Manifests, ReadError> {
    let mut files = Vec::new();
    let mut manifests = Manifests::default();
    for path in paths {
        let (expanded, dangling) = expand(path)?;
        for link in dangling {
            let shown: Arc<str> = link.display().to_string().into();
            manifests
                .diagnostics
                .push(Diagnostic::of_file(&shown, format!("{DANGLING}; passed over")));
        }
        if expanded.is_empty() {
            let shown: Arc<str> = path.display().to_string().into();
            let message = "holds no manifest: no file called .yaml, .yml or .json".to_owned();
            manifests.diagnostics.push(Diagnostic::of_file(&shown, message));
        }
        for file in expanded {
            let text = if file == Path::new(file::STDIN) {
                file::load_stdin()?
            } else {
                file::load(&file)?
            };
            let name: Arc<str> = file.display().to_string().into();
            files.push((Arc::clone(&name), file::parse(&name, &text)?));
        }
    }
    let mut places = BTreeMap::new();
    for (name, Contents { objects, diagnostics, .. }) in files {
        manifests.diagnostics.extend(diagnostics);
        for placed in objects {
            match claim(&mut places, &name, &placed) {
                None => manifests.objects.push(Arc::unwrap_or_clone(placed.object)),
                Some(diagnostic) => manifests.diagnostics.push(diagnostic),
            }
        }
    }
    Ok(manifests)
}

/// The file itself, or the folder's manifests by name; and links that lead to nothing.
fn expand(path: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), ReadError> {
    let itself = || Ok((vec![path.to_owned()], Vec::new()));
    if path == Path::new(file::STDIN) {
        return itself();
    }
    let fail = |source| ReadError::Io { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(fail)?.is_dir() {
        return itself();
    }
    let Listing { names, dangling } = list(path)?;
    let inside = |names: Vec<String>| names.into_iter().map(|name| path.join(name)).collect();
    Ok((inside(names), inside(dangling)))
}

/// What is wrong with a link that leads to nothing.
pub(crate) const DANGLING: &str = "is a symbolic link to what is not there";

/// The manifests of a folder, by name.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Files, and links to files (ConfigMaps are mounted so).
    pub(crate) names: Vec<String>,
    /// Links to nothing.
    pub(crate) dangling: Vec<String>,
}

/// The names of a folder's manifests, sorted.
pub(crate) fn list(folder: &Path) -> Result<Listing, ReadError> {
    let fail = |source| ReadError::Io { path: folder.to_owned(), source };
    let mut listing = Listing::default();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let Some(name) = manifest_name(&entry.file_name()) else { continue };
        // What is a symbolic link, is what it points to.
        let target = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => fs::metadata(entry.path()).map(|data| data.is_file()),
            kind => kind.map(|kind| kind.is_file()),
        };
        match target {
            Ok(true) => listing.names.push(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => listing.dangling.push(name),
            Ok(false) | Err(_) => {}
        }
        if listing.names.len() > MAX_FILES {
            return Err(ReadError::TooMany { path: folder.to_owned(), limit: MAX_FILES });
        }
    }
    listing.names.sort_unstable();
    listing.dangling.sort_unstable();
    Ok(listing)
}

/// The name, when it is one of a manifest.
pub(crate) fn manifest_name(name: &OsStr) -> Option<String> {
    let name = name.to_str().filter(|name| !name.starts_with('.'))?;
    let (_, extension) = name.rsplit_once('.')?;
    matches!(extension, "yaml" | "yml" | "json").then(|| name.to_owned())
}

/// Who defined which object first.
pub(crate) type Places = BTreeMap<Key, (Arc<str>, usize)>;

/// Notes the object's place, or tells that another one came first.
pub(crate) fn claim(places: &mut Places, file: &Arc<str>, placed: &Placed) -> Option<Diagnostic> {
    match places.entry(placed.object.key()) {
        Entry::Vacant(entry) => {
            entry.insert((Arc::clone(file), placed.document));
            None
        }
        Entry::Occupied(entry) => {
            let (first, document) = entry.get();
            let message =
                format!("is already defined in {first}, document {document}; this one is left out");
            Some(Diagnostic {
                file: Arc::clone(file),
                document: placed.document,
                line: placed.line,
                object: entry.key().to_string(),
                field: String::new(),
                message,
                shadowed_by: Some(Arc::clone(first)),
            })
        }
    }
}

#[cfg(test)]
mod tests;
