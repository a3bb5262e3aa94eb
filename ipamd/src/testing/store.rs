//! A journal without a disk.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use veni_core::ipam::{Ledger, Record};

use super::lock;
use crate::{
    journal::{Recovered, Store},
    whereabouts::Whereabouts,
};

/// A journal in memory that outlives the owner.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    records: Arc<Mutex<Vec<Record>>>,
    backlog: Vec<Record>,
    trouble: Option<String>,
    full: Arc<AtomicBool>,
    damaged: Arc<AtomicBool>,
    kept: Arc<Mutex<Option<Whereabouts>>>,
}

impl MemoryStore {
    /// What a daemon that starts now reads.
    #[must_use]
    pub fn recover(&self) -> Recovered {
        let mut ledger = Ledger::default();
        let records = lock(&self.records);
        for record in records.iter() {
            ledger.apply(record).expect("what was committed fits");
        }
        Recovered {
            ledger,
            resumed: !records.is_empty(),
            damaged: self.damaged.load(Ordering::Relaxed),
            whereabouts: lock(&self.kept).clone(),
            notes: Vec::new(),
        }
    }

    /// From now on the disk is full, or not any more.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    /// How many records there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a journal is never empty")]
    pub fn len(&self) -> usize {
        lock(&self.records).len()
    }

    /// Loses everything.
    pub fn erase(&self) {
        lock(&self.records).clear();
        *lock(&self.kept) = None;
    }

    /// Loses one record: what does not fit without it is lost too, and the next daemon finds the journal damaged.
    pub fn damage(&self, at: usize) {
        let mut records = lock(&self.records);
        let mut ledger = Ledger::default();
        let lost = at % records.len().max(1);
        for (_, record) in records.iter().enumerate().filter(|(n, _)| *n != lost) {
            // As the journal's recovery: what does not fit is left out.
            drop(ledger.apply(record));
        }
        ledger.apply(&Record::Unconfirmed).expect("it fits any ledger");
        *records = ledger.to_records();
        self.damaged.store(true, Ordering::Relaxed);
    }

    /// Another daemon has read it and begun it anew.
    pub(super) fn begun_anew(&self) {
        self.damaged.store(false, Ordering::Relaxed);
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, records: &[Record]) -> io::Result<()> {
        self.trouble = None;
        if self.full.load(Ordering::Relaxed) {
            let error = io::Error::from(io::ErrorKind::StorageFull);
            self.trouble = Some(error.to_string());
            return Err(error);
        }
        let mut written = lock(&self.records);
        written.append(&mut self.backlog);
        written.extend_from_slice(records);
        Ok(())
    }

    fn note(&mut self, records: Vec<Record>) {
        if self.commit(&records).is_err() {
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
        // Told by `trouble`.
        drop(self.commit(&[]));
    }

    fn compact(&mut self, ledger: &Ledger) {
        if self.len() > 512 {
            self.rewrite(ledger);
        }
    }

    fn rewrite(&mut self, ledger: &Ledger) {
        // As the journal: a full disk takes no new file, and what waited for the disk is in the ledger.
        if !self.full.load(Ordering::Relaxed) {
            *lock(&self.records) = ledger.to_records();
            self.backlog.clear();
        }
    }

    fn keep_whereabouts(&mut self, whereabouts: &Whereabouts) {
        *lock(&self.kept) = Some(whereabouts.clone());
    }
}
