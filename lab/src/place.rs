//! Where labs keep their files, and whose they are.
//!
//! A lab's directory holds nothing that outlives its process but logs, journals and empty mount points: namespaces,
//! links and filters go with the process. So removing a dead lab is removing its directory, and the empty control groups
//! of its machines.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Context as _, Error, Result, make_dir},
    machine,
};

/// The holder of a lab's directory; it is removed when this is dropped.
#[derive(Debug)]
pub struct Lease {
    dir: PathBuf,
}

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    /// Clock ticks from boot to its start (proc(5), `/proc/pid/stat`, field 22).
    started: u64,
}

/// The directory of all labs: `VENI_LAB_DIR`, or `/run/veni-lab`.
#[must_use]
pub fn base() -> PathBuf {
    std::env::var_os("VENI_LAB_DIR").map_or_else(|| PathBuf::from("/run/veni-lab"), PathBuf::from)
}

/// The directory of the lab `name`.
#[must_use]
pub fn of(name: &str) -> PathBuf {
    base().join(name)
}

/// Takes the directory of the lab `name` for this process, after removing what dead labs have left.
///
/// # Errors
/// When a living process has it, or the name is unfit for a directory.
pub fn take(name: &str) -> Result<(Lease, PathBuf)> {
    let fits = (1..=24).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !fits {
        return Err(Error::invalid(format!(
            "a lab cannot be called {name:?}: 1 to 24 letters, digits and `-`"
        )));
    }
    let base = base();
    make_dir(&base)?;
    // One at a time: what one has found dead, another may have taken meanwhile.
    let lock = base.join(".lock");
    let what = || format!("cannot lock {}", lock.display());
    let lock_file = fs::File::create(&lock).context(what)?;
    lock_file.lock().context(what)?;
    remove_dead(&base)?;
    let dir = base.join(name);
    if let Err(source) = fs::create_dir(&dir) {
        let holder =
            owner(&dir).map_or_else(String::new, |owner| format!(" (process {})", owner.pid));
        return Err(match source.kind() {
            std::io::ErrorKind::AlreadyExists => Error::invalid(format!(
                "the lab {name} is up{holder}: `veni-lab down --name {name}`, or choose another name"
            )),
            _ => Error::Io { what: format!("cannot make {}", dir.display()), source },
        });
    }
    let lease = Lease { dir: dir.clone() };
    let pid = std::process::id();
    let me = Owner { pid, started: started(pid).unwrap_or_default() };
    let text = serde_json::to_string(&me).map_err(std::io::Error::from);
    let written = text.and_then(|text| fs::write(dir.join("owner.json"), text));
    written.context(|| format!("cannot write {}", dir.join("owner.json").display()))?;
    Ok((lease, dir))
}

/// The names of the labs that are up.
#[must_use]
pub fn living() -> Vec<String> {
    let entries = fs::read_dir(base()).into_iter().flatten().flatten();
    let living = entries.filter(|entry| owner(&entry.path()).is_some_and(Owner::lives));
    let mut names: Vec<_> =
        living.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The process that has the lab `name`, when it lives.
#[must_use]
pub fn holder(name: &str) -> Option<u32> {
    owner(&of(name)).filter(|owner| owner.lives()).map(|owner| owner.pid)
}

// === impl Lease ===

impl Drop for Lease {
    fn drop(&mut self) {
        if std::env::var_os("VENI_LAB_KEEP").is_none() {
            // Left-overs are removed by the next lab.
            drop(remove(&self.dir));
        }
    }
}

// === impl Owner ===

impl Owner {
    fn lives(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

fn remove_dead(base: &Path) -> Result<()> {
    let entries = fs::read_dir(base).context(|| format!("cannot read {}", base.display()))?;
    for dir in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        // One without an owner is just being made, or was left in that moment: it goes once it is old.
        let dead = match owner(&dir) {
            Some(owner) => !owner.lives(),
            None => is_old(&dir),
        };
        if dead {
            remove(&dir).context(|| format!("cannot remove the dead lab {}", dir.display()))?;
        }
    }
    Ok(())
}

/// Removes `dir`, although a daemon that is just being killed may still write its last line into it, and what the lab's
/// machines have left outside of it.
fn remove(dir: &Path) -> std::io::Result<()> {
    machine::remove_cgroups(dir);
    let mut attempts = 50;
    loop {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) if attempts > 0 => attempts -= 1,
            done => return done,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_old(dir: &Path) -> bool {
    let age = fs::metadata(dir)
        .and_then(|m| m.modified())
        .ok()
        .and_then(|modified| modified.elapsed().ok());
    age.is_some_and(|age| age.as_secs() > 10)
}

fn owner(dir: &Path) -> Option<Owner> {
    serde_json::from_slice(&fs::read(dir.join("owner.json")).ok()?).ok()
}

/// `None` for a process that is not there, or dead and only not waited for yet (nobody may ever wait: a container's
/// first process need not).
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may contain anything, spaces and parentheses too. Field 3 is the state.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let dead = matches!(fields.next()?, "Z" | "X");
    (!dead).then(|| fields.nth(18)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let pid = std::process::id();
        let me = Owner { pid, started: started(pid).unwrap() };
        assert!(me.lives());
        assert!(!Owner { started: me.started + 1, ..me }.lives());
        assert!(!Owner { pid: u32::MAX, started: 0 }.lives());
    }
}
