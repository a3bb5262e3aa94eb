//! How long the journal was when something last left the node for good.
//!
//! A journal that was cut at the end of a line looks whole. Where the lines that are missing say what the kernel shows too
//! (pods), that is found out; that an address is on its way back to EC2 only the journal knew. So its length is kept beside
//! it each time, and a shorter one counts as damaged. On the way of an ADD or DEL nothing is written.
//!
//! Deliberately absent: certainty. A length that could not be kept is none.

use std::{fs, io, path::Path};

use veni_core::ipam::Record;

const EXTENSION: &str = "extent";

/// Whether a journal that lacks this record would hand out what is not the node's any more.
pub(super) fn must_stay(record: &Record) -> bool {
    matches!(record, Record::Unassigning { .. } | Record::EniDraining { .. })
}

pub(super) fn read(journal: &Path) -> Option<u64> {
    fs::read_to_string(journal.with_extension(EXTENSION)).ok()?.trim().parse().ok()
}

/// Written over, not renamed: a torn one is no number, or too small a one.
pub(super) fn write(journal: &Path, len: u64) {
    if let Err(error) = fs::write(journal.with_extension(EXTENSION), format!("{len}\n")) {
        tracing::debug!(%error, "journal's length not kept");
        forget(journal);
    }
}

pub(super) fn forget(journal: &Path) {
    match fs::remove_file(journal.with_extension(EXTENSION)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "journal's length not forgotten");
        }
        _ => {}
    }
}
