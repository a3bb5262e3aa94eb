use std::net::Ipv4Addr;

use veni_core::ipam::{BootTime, EniFacts};

use super::*;

fn primary() -> Record {
    Record::EniAdopted {
        slot: veni_core::marks::EniSlot::new(0, 0).unwrap(),
        primary: true,
        eni: EniFacts {
            id: "eni-0".parse().unwrap(),
            mac: veni_core::net::Mac::local(1),
            subnet: "subnet-1".parse().unwrap(),
            subnet_prefix: None,
            primary_address: Ipv4Addr::new(10, 0, 0, 4),
        },
        addresses: Vec::new(),
        attachment: Some("eni-attach-0".parse().unwrap()),
        protected: true,
        at: BootTime(0),
    }
}

fn gained(n: u8) -> Record {
    let slot = veni_core::marks::EniSlot::new(0, 0).unwrap();
    Record::Gained { slot, addresses: vec![Ipv4Addr::new(10, 0, 0, n)], at: BootTime(n.into()) }
}

fn written(dir: &Path, records: &[Record]) -> PathBuf {
    let (mut journal, _) = Journal::open(dir, "boot-1").unwrap();
    for record in records {
        journal.commit(std::slice::from_ref(record)).unwrap();
    }
    dir.join(FILE)
}

fn free(recovered: &Recovered) -> u32 {
    recovered.ledger.counts().free
}

#[test]
fn what_was_committed_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &[primary(), gained(10), gained(11)]);
    let (_, recovered) = Journal::open(dir.path(), "boot-1").unwrap();
    assert!(recovered.resumed && !recovered.damaged);
    assert_eq!(free(&recovered), 2);
}

#[test]
fn a_torn_last_line_is_dropped_and_the_journal_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), &[primary(), gained(10), gained(11)]);
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    for cut in last + 1..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let (mut journal, recovered) = Journal::open(dir.path(), "boot-1").unwrap();
        assert!(recovered.resumed && !recovered.damaged, "cut at {cut}: {:?}", recovered.notes);
        assert_eq!(free(&recovered), 1);
        journal.commit(&[gained(12)]).unwrap();
        let (_, again) = Journal::open(dir.path(), "boot-1").unwrap();
        assert_eq!((free(&again), again.damaged), (2, false));
    }
}

#[test]
fn a_flipped_bit_never_becomes_a_record_and_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), &[primary(), gained(10), gained(11)]);
    let whole = fs::read(&path).unwrap();
    let body = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
    for at in (body..whole.len() - 1).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x04;
        fs::write(&path, &bytes).unwrap();
        let (_, recovered) = Journal::open(dir.path(), "boot-1").unwrap();
        assert!(recovered.damaged, "bit flipped at {at} went unseen");
        assert!(dir.path().join("journal.damaged").exists());
    }
}

#[test]
fn a_journal_of_another_boot_or_version_is_set_aside() {
    for (boot, header) in [("boot-2", None), ("boot-1", Some(VERSION + 1))] {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), &[primary(), gained(10)]);
        if let Some(version) = header {
            let mut lines = Vec::new();
            push_line(&mut lines, &Header { veni_journal: version, boot_id: "boot-1".into() });
            fs::write(&path, lines).unwrap();
        }
        let (_, recovered) = Journal::open(dir.path(), boot).unwrap();
        assert!(!recovered.resumed);
        assert_eq!(recovered.notes.len(), 2, "{:?}", recovered.notes);
        assert!(dir.path().join("journal.old").exists());
        let (_, next) = Journal::open(dir.path(), boot).unwrap();
        assert!(next.resumed, "the fresh journal is in place");
    }
}

#[test]
fn facts_that_cannot_be_written_are_kept_and_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path(), "boot-1").unwrap();
    journal.commit(&[primary()]).unwrap();
    let writable = std::mem::replace(&mut journal.file, File::open(dir.path().join(FILE)).unwrap());
    journal.note(vec![gained(10)]);
    assert!(journal.commit(&[gained(11)]).is_err(), "a read-only file takes nothing");
    assert_eq!(journal.backlog(), 1);
    journal.file = writable;
    journal.commit(&[gained(12)]).unwrap();
    assert_eq!(journal.backlog(), 0);
    let (_, recovered) = Journal::open(dir.path(), "boot-1").unwrap();
    assert_eq!((free(&recovered), recovered.damaged), (2, false));
}

#[test]
fn a_snapshot_replaces_a_long_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, mut recovered) = Journal::open(dir.path(), "boot-1").unwrap();
    let slot = veni_core::marks::EniSlot::new(0, 0).unwrap();
    let mut records = vec![primary(), gained(10)];
    let address = vec![Ipv4Addr::new(10, 0, 0, 10)];
    for at in (0..20_000).map(BootTime) {
        records.push(Record::Unassigning { slot, addresses: address.clone(), at });
        records.push(Record::UnassignRefused { slot, addresses: address.clone(), at });
    }
    for chunk in records.chunks(1000) {
        journal.commit(chunk).unwrap();
    }
    for record in &records {
        recovered.ledger.apply(record).unwrap();
    }
    assert!(journal.len > COMPACT_BYTES);
    journal.compact(&recovered.ledger);
    assert!(journal.len < 2_000, "{}", journal.len);
    journal.commit(&[gained(11)]).unwrap();
    let (_, again) = Journal::open(dir.path(), "boot-1").unwrap();
    assert_eq!((free(&again), again.damaged), (2, false));
}
