//! Where the lab finds the programs that it runs.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::error::{Context as _, Error, Result};

/// The directories of the plugin's own build profile and targets (`cargo build --profile plugin --target …`), the
/// better one first.
const PLUGIN_BUILDS: [&str; 2] =
    ["x86_64-unknown-linux-musl/plugin", "x86_64-unknown-linux-gnu/plugin"];

/// A program of veni's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// Its size, bytes.
    pub bytes: u64,
    /// Whether it is linked statically: no interpreter is loaded before it.
    pub is_static: bool,
}

/// See [`prefer`].
static PREFERRED: OnceLock<PathBuf> = OnceLock::new();

/// From now on, this process's labs take the programs that are in `dir` before any other: builds for tests. Only the
/// first call counts.
pub fn prefer(dir: &Path) -> &'static Path {
    PREFERRED.get_or_init(|| dir.to_owned())
}

/// The program `name`: in `VENI_BIN_DIR` (a list like `PATH`), beside this executable, or in the
/// same cargo target directory, where the plugin's static build goes before another.
///
/// # Errors
/// When there is none; the message says how to build it.
pub fn find(name: &str) -> Result<Binary> {
    let given = std::env::var_os("VENI_BIN_DIR").unwrap_or_default();
    let given = std::env::split_paths(&given).filter(|dir| !dir.as_os_str().is_empty());
    let here = std::env::current_exe().context(|| "cannot find this executable".to_owned())?;
    let mut places: Vec<_> = given.chain(places_near(&here)).collect();
    places.splice(..0, PREFERRED.get().cloned());
    let found = places.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    let path = found.ok_or_else(|| {
        Error::invalid(format!(
            "{name} is not in {places:?}: build it (`make build`), or set VENI_BIN_DIR to the directories that have it"
        ))
    })?;
    let what = || format!("cannot read {}", path.display());
    let image = std::fs::read(&path).context(what)?;
    let path = std::fs::canonicalize(&path).context(what)?;
    Ok(Binary { path, bytes: image.len() as u64, is_static: !has_interpreter(&image) })
}

/// Whether an executable needs a dynamic linker.
pub(crate) fn is_dynamic(program: &Path) -> Result<bool> {
    let image = std::fs::read(program).context(|| format!("cannot read {}", program.display()))?;
    Ok(has_interpreter(&image))
}

fn places_near(executable: &Path) -> Vec<PathBuf> {
    let ancestors: Vec<_> = executable.ancestors().skip(1).take(4).collect();
    let plugin =
        PLUGIN_BUILDS.iter().flat_map(|build| ancestors.iter().map(move |dir| dir.join(build)));
    // A test's executable is in `deps`, below its profile's directory.
    let near = ancestors.iter().take(2).map(|dir| dir.to_path_buf());
    plugin.filter(|dir| dir.is_dir()).chain(near).collect()
}

/// Whether an ELF image (64 bit, little endian) has a program header of type `PT_INTERP` (elf(5)).
fn has_interpreter(image: &[u8]) -> bool {
    let half = |at: usize| {
        image.get(at..at + 2).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])))
    };
    let word = |at: usize| {
        image.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    let headers = word(32) as usize;
    (0..half(56)).any(|n| word(headers + n * half(54)) == 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_executable_has_an_interpreter() {
        let image = std::fs::read("/bin/sh").unwrap();
        assert!(has_interpreter(&image));
        assert!(!has_interpreter(&image[..16]));
    }

    #[test]
    fn the_plugins_own_build_is_preferred() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = dir.path().join(PLUGIN_BUILDS[1]);
        std::fs::create_dir_all(&plugin).unwrap();
        let places = places_near(&dir.path().join("debug/deps/test-1"));
        assert_eq!(places, [plugin, dir.path().join("debug/deps"), dir.path().join("debug")]);
    }
}
