//! The journal: an append-only file of records, one a line, bound to the machine's boot.
//!
//! A line is `<crc32 of the JSON, 8 hex digits> <JSON>\n`; the first is the [`Header`]. There is no `fsync`: a
//! process that dies loses nothing that was written, and after a reboot no pod survives.
//!
//! Invariants: what [`Journal::commit`] returned `Ok` for is there after `kill -9`; a torn or damaged line is never
//! read as a record; an unreadable journal is set aside, and the pool is rebuilt from the kernel, the runtime and the
//! cloud; the last [`KEPT`] of a kind are kept; an empty file is none of them. A journal opens on a full disk too: it
//! takes facts then, which it keeps in memory, and refuses everything else until the disk takes what it begins with.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use veni_core::ipam::{Ledger, Record};

use crate::{fault, whereabouts::Whereabouts};

mod extent;

/// The format that this build writes.
pub const VERSION: u32 = 1;
/// The journal is rewritten as a snapshot when it has grown past this and past four times its last snapshot.
const COMPACT_BYTES: u64 = 1024 * 1024;
const FILE: &str = "journal";
/// How many journals of a kind (`old`, `damaged`) are kept beside the one in use.
const KEPT: usize = 3;
/// What must fit for the disk to count as writable again: the rest of a last page is no space for long.
const PROBE: [u8; 4096] = [0; 4096];

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    veni_journal: u32,
    boot_id: String,
}

/// Where records go. Implemented by [`Journal`] and, in tests, by memory.
pub trait Store: Send + 'static {
    /// Makes `records` durable, or fails and leaves nothing of them behind.
    ///
    /// # Errors
    /// Disk full, I/O error: nothing was written.
    fn commit(&mut self, records: &[Record]) -> io::Result<()>;

    /// Records facts that are true already: kept in memory and written before anything else when they cannot be
    /// written now.
    fn note(&mut self, records: Vec<Record>);

    /// Facts that are not on disk yet.
    fn backlog(&self) -> usize;

    /// Why the last attempt to write failed; `None` when it did not.
    fn trouble(&self) -> Option<&str>;

    /// Tries to write again after a failure: what waits, or whether anything could be written.
    fn retry(&mut self);

    /// Rewrites the journal as a snapshot of `ledger`, when that is worth it.
    fn compact(&mut self, ledger: &Ledger);

    /// Rewrites the journal as a snapshot of `ledger`, now.
    fn rewrite(&mut self, ledger: &Ledger);

    /// Keeps, beside the records, who and where this instance is. Without it the next start asks the cloud.
    fn keep_whereabouts(&mut self, whereabouts: &Whereabouts);
}

/// The journal in a file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    boot_id: String,
    /// `None` as long as the disk has not taken `beginning`.
    file: Option<File>,
    beginning: Beginning,
    /// How much of the file is whole lines.
    len: u64,
    snapshot_len: u64,
    backlog: Vec<Record>,
    trouble: Option<String>,
    kept: Option<Whereabouts>,
}

/// What a journal that is not there yet begins with.
#[derive(Debug, Default)]
struct Beginning {
    /// After the header: what could be read of the damaged one.
    records: Vec<Record>,
    /// The extension under which the file that is in its place is kept.
    aside: Option<&'static str>,
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The records, in order; empty for a fresh journal.
    pub ledger: Ledger,
    /// Whether there was a journal of this boot.
    pub resumed: bool,
    /// Whether part of it could not be read or did not fit: what is missing must be found out elsewhere.
    pub damaged: bool,
    /// Who and where this instance is, as a daemon of this boot has kept it.
    pub whereabouts: Option<Whereabouts>,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl Recovered {
    fn is_damaged(&mut self, what: &str) {
        self.damaged = true;
        // A daemon that is killed before EC2 has answered leaves the next one to ask.
        self.ledger.apply(&Record::Unconfirmed).expect("it fits any ledger");
        self.notes.push(format!("{what}: it is checked against the kernel and EC2"));
    }
}

impl Journal {
    /// Opens the journal in `dir`, reading what a former daemon of this boot left. A disk that takes nothing is no
    /// error: see [`Store::trouble`].
    ///
    /// # Errors
    /// When the directory cannot be made or the file cannot be read.
    pub fn open(dir: &Path, boot_id: &str) -> io::Result<(Self, Recovered)> {
        fs::create_dir_all(dir)?;
        let path = dir.join(FILE);
        let mut recovered = Recovered::default();
        let mut keep = 0;
        match fs::read(&path) {
            Ok(bytes) => keep = recover(&bytes, boot_id, &mut recovered),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let extent = extent::read(&path);
        if recovered.resumed && extent.is_some_and(|extent| keep < extent) && !recovered.damaged {
            recovered.is_damaged("the journal's end is cut off");
        }
        let found = fs::metadata(&path).is_ok_and(|file| file.len() > 0);
        let whole = recovered.resumed && !recovered.damaged;
        let file =
            if whole { Some(OpenOptions::new().read(true).write(true).open(&path)?) } else { None };
        let aside = match (whole, found, recovered.damaged) {
            (false, true, true) => Some("damaged"),
            (false, true, false) => Some("old"),
            _ => None,
        };
        let records = if whole { Vec::new() } else { recovered.ledger.to_records() };
        let mut journal = Self {
            path,
            boot_id: boot_id.to_owned(),
            file,
            beginning: Beginning { records, aside },
            len: keep,
            // Not known: a journal that is long at the start is rewritten once.
            snapshot_len: 0,
            backlog: Vec::new(),
            trouble: None,
            kept: None,
        };
        journal.kept = journal.read_whereabouts();
        recovered.whereabouts.clone_from(&journal.kept);
        if let Some(aside) = aside {
            let kept = journal.path.with_extension(aside);
            recovered.notes.push(format!("the former journal is kept as {}", kept.display()));
        }
        let begun = if whole { journal.cut() } else { journal.begin(&[]) };
        if let Err(error) = journal.told(begun) {
            let next = "free space in the state directory; no pod is added until then";
            recovered.notes.push(format!("the journal cannot be written ({error}): {next}"));
        }
        Ok((journal, recovered))
    }

    /// Two lines as the journal's: the header, which binds it to this boot, and what was kept.
    fn read_whereabouts(&self) -> Option<Whereabouts> {
        let bytes = fs::read(self.path.with_extension("whereabouts")).ok()?;
        let mut lines = bytes.split_inclusive(|b| *b == b'\n').map(sound);
        let header: Header = serde_json::from_slice(lines.next()??).ok()?;
        let ours = header.boot_id == self.boot_id && header.veni_journal <= VERSION;
        let kept = serde_json::from_slice(lines.next()??).ok()?;
        ours.then_some(kept)
    }

    fn write_whereabouts(&self, whereabouts: &Whereabouts) -> io::Result<()> {
        let mut lines = header_line(&self.boot_id);
        push_line(&mut lines, whereabouts);
        let next = self.path.with_extension("whereabouts.next");
        fs::write(&next, lines)?;
        fs::rename(&next, self.path.with_extension("whereabouts"))
    }

    /// Removes what is behind the last whole line.
    fn cut(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.set_len(self.len)?;
        file.seek(SeekFrom::Start(self.len))?;
        Ok(())
    }

    /// What the last attempt to write came to is kept for those who ask.
    fn told(&mut self, outcome: io::Result<()>) -> io::Result<()> {
        self.trouble = outcome.as_ref().err().map(ToString::to_string);
        outcome
    }

    /// Writes all of `lines` behind the last whole line, or nothing.
    fn write_lines(&mut self, lines: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let written = file.seek(SeekFrom::Start(self.len)).and_then(|_| file.write_all(lines));
        if let Err(error) = written {
            // What did go in is behind `len` and is cut now or overwritten by the next attempt.
            if let Err(cut) = self.cut() {
                tracing::warn!(error = %cut, "journal tail not cut");
            }
            return Err(error);
        }
        self.len += lines.len() as u64;
        Ok(())
    }

    /// Makes the journal, with `records` at its end, in one step: until it is whole, what was there stays.
    fn begin(&mut self, records: &[Record]) -> io::Result<()> {
        let mut lines = header_line(&self.boot_id);
        for record in self.beginning.records.iter().chain(&self.backlog).chain(records) {
            push_line(&mut lines, record);
        }
        self.replace(&lines)?;
        self.beginning = Beginning::default();
        Ok(())
    }

    fn put_snapshot(&mut self, ledger: &Ledger) -> io::Result<()> {
        let mut lines = header_line(&self.boot_id);
        for record in ledger.to_records() {
            push_line(&mut lines, &record);
        }
        self.replace(&lines)?;
        self.snapshot_len = self.len;
        Ok(())
    }

    /// Puts a file of these lines in the journal's place. What is to be kept of the former one is linked aside first,
    /// which takes no space.
    fn replace(&mut self, lines: &[u8]) -> io::Result<()> {
        let next = self.path.with_extension("next");
        let written = write_anew(&next, lines);
        if written.is_err() {
            // A part of it would only take space.
            drop(fs::remove_file(&next));
        }
        let file = written?;
        if let Some(aside) = self.beginning.aside {
            set_aside(&self.path, aside);
        }
        // What comes in its place may be shorter.
        extent::forget(&self.path);
        fault::point("compact-before-rename");
        fs::rename(&next, &self.path)?;
        fault::point("compact-after-rename");
        self.file = Some(file);
        self.len = lines.len() as u64;
        extent::write(&self.path, self.len);
        self.backlog.clear();
        Ok(())
    }

    /// Whether the disk takes anything. Of a process that dies in between, a torn last line is left.
    fn probe(&mut self) -> io::Result<()> {
        let len = self.len;
        let written = self.write_lines(&PROBE);
        self.len = len;
        written.and_then(|()| self.cut())
    }
}

impl Store for Journal {
    fn commit(&mut self, records: &[Record]) -> io::Result<()> {
        if self.file.is_none() {
            let begun = self.begin(records);
            return self.told(begun);
        }
        let mut lines = Vec::with_capacity(256 * (records.len() + self.backlog.len()));
        for record in self.backlog.iter().chain(records) {
            push_line(&mut lines, record);
        }
        let written = self.write_lines(&lines);
        self.told(written)?;
        if self.backlog.iter().chain(records).any(extent::must_stay) {
            extent::write(&self.path, self.len);
        }
        self.backlog.clear();
        Ok(())
    }

    fn note(&mut self, records: Vec<Record>) {
        if let Err(error) = self.commit(&records) {
            if self.backlog.is_empty() {
                tracing::error!(%error, path = %self.path.display(), "journal not written, facts kept in memory");
            }
            self.backlog.extend(records);
        }
    }

    fn backlog(&self) -> usize {
        self.backlog.len()
    }

    fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    fn retry(&mut self) {
        let outcome = if self.file.is_some() && self.backlog.is_empty() {
            let probed = self.probe();
            self.told(probed)
        } else {
            self.commit(&[])
        };
        match outcome {
            Ok(()) => tracing::info!(path = %self.path.display(), "journal written again"),
            Err(error) => tracing::debug!(%error, "journal still not written"),
        }
    }

    fn compact(&mut self, ledger: &Ledger) {
        if self.len < COMPACT_BYTES || self.len < 4 * self.snapshot_len {
            return;
        }
        self.rewrite(ledger);
    }

    fn rewrite(&mut self, ledger: &Ledger) {
        if let Err(error) = self.put_snapshot(ledger) {
            tracing::warn!(%error, path = %self.path.display(), "journal not compacted");
            self.snapshot_len = self.len;
        }
    }

    fn keep_whereabouts(&mut self, whereabouts: &Whereabouts) {
        if self.kept.as_ref() == Some(whereabouts) {
            return;
        }
        match self.write_whereabouts(whereabouts) {
            Ok(()) => self.kept = Some(whereabouts.clone()),
            Err(error) => {
                tracing::warn!(%error, "whereabouts not kept: the next start waits for instance metadata")
            }
        }
    }
}

fn header_line(boot_id: &str) -> Vec<u8> {
    let mut line = Vec::new();
    push_line(&mut line, &Header { veni_journal: VERSION, boot_id: boot_id.to_owned() });
    line
}

fn push_line(lines: &mut Vec<u8>, value: &impl Serialize) {
    let json = serde_json::to_vec(value).expect("records have string keys only");
    lines.extend_from_slice(format!("{:08x} ", crc32fast::hash(&json)).as_bytes());
    lines.extend_from_slice(&json);
    lines.push(b'\n');
}

/// Reads what it can. Returns the length of the whole, sound lines at the beginning.
fn recover(bytes: &[u8], boot_id: &str, recovered: &mut Recovered) -> u64 {
    let mut lines = bytes.split_inclusive(|b| *b == b'\n');
    let header =
        lines.next().and_then(sound).and_then(|json| serde_json::from_slice::<Header>(json).ok());
    let Some(header) = header else {
        recovered.notes.push(
            "the journal has no readable header: the pool is rebuilt from the kernel and EC2"
                .into(),
        );
        return 0;
    };
    if header.veni_journal > VERSION {
        recovered.notes.push(format!(
            "the journal is of version {}, this ipamd reads up to {VERSION}: the pool is rebuilt from the kernel and EC2",
            header.veni_journal
        ));
        return 0;
    }
    if header.boot_id != boot_id {
        recovered.notes.push("the journal is from before a reboot: no pod of then is left".into());
        return 0;
    }
    recovered.resumed = true;
    let mut keep = bytes.iter().position(|b| *b == b'\n').map_or(0, |at| at as u64 + 1);
    for line in lines {
        let record = sound(line).and_then(|json| serde_json::from_slice::<Record>(json).ok());
        let applied = record.as_ref().map(|record| recovered.ledger.apply(record));
        match applied {
            Some(Ok(())) if !recovered.damaged => keep += line.len() as u64,
            Some(Ok(())) => {}
            None if !line.ends_with(b"\n") => {
                recovered
                    .notes
                    .push("the journal's last line was torn: it was never answered for".into());
            }
            _ => recovered.damaged = true,
        }
    }
    if recovered.damaged {
        recovered.is_damaged("part of the journal is damaged");
    }
    keep
}

/// The JSON of a whole line with a right checksum.
fn sound(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    let (crc, json) = line.split_at_checked(9)?;
    let digits = std::str::from_utf8(crc.strip_suffix(b" ")?).ok()?;
    let stated = u32::from_str_radix(digits, 16).ok()?;
    (stated == crc32fast::hash(json)).then_some(json)
}

fn write_anew(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file =
        OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Keeps the file at `path` as `<path>.<kind>`, and those of this kind that were kept before as `.1`, `.2`. For people
/// only: what cannot be kept is told.
fn set_aside(path: &Path, kind: &str) {
    let numbered = |n: usize| match n {
        0 => path.with_extension(kind),
        n => path.with_extension(format!("{kind}.{n}")),
    };
    for n in (1..KEPT).rev() {
        // It is not there most of the time.
        drop(fs::rename(numbered(n - 1), numbered(n)));
    }
    if let Err(error) = fs::hard_link(path, numbered(0)).or_else(|_| fs::rename(path, numbered(0)))
    {
        tracing::warn!(%error, path = %path.display(), kind, "former journal not kept");
    }
}

/// The kernel's id of this boot.
///
/// # Errors
/// When procfs is not there.
pub fn boot_id() -> io::Result<String> {
    let mut id = String::new();
    File::open("/proc/sys/kernel/random/boot_id")?.read_to_string(&mut id)?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests;
