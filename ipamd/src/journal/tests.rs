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
        // The next daemon finds a whole journal, and knows all the same.
        let (mut journal, next) = Journal::open(dir.path(), "boot-1").unwrap();
        assert!(!next.damaged && next.ledger.unconfirmed(), "bit flipped at {at}");
        let mut ledger = next.ledger;
        ledger.apply(&Record::Confirmed).unwrap();
        journal.rewrite(&ledger);
        let (_, confirmed) = Journal::open(dir.path(), "boot-1").unwrap();
        assert!(!confirmed.ledger.unconfirmed());
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("confirmed"), "an older ipamd does not know the word: {text}");
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
    let closed = File::open(dir.path().join(FILE)).unwrap();
    let writable = journal.file.replace(closed);
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

/// A directory where the next file would be written: like a full disk, it lets no journal begin.
fn fill(dir: &Path) -> PathBuf {
    let in_the_way = dir.join("journal.next");
    fs::create_dir(&in_the_way).unwrap();
    in_the_way
}

/// What was in the state directory, and what of it can be read.
fn spoilt(spoil: impl Fn(&mut Vec<u8>)) -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), &[primary(), gained(10), gained(11)]);
    let mut bytes = fs::read(&path).unwrap();
    spoil(&mut bytes);
    fs::write(&path, &bytes).unwrap();
    (dir, bytes)
}

#[test]
fn a_journal_opens_on_a_full_disk_whatever_is_there_and_begins_when_there_is_space() {
    type Spoil = fn(&mut Vec<u8>);
    let cases: [(&str, &str, Spoil, Option<&str>, u32); 4] = [
        ("nothing there", "boot-1", Vec::clear, None, 0),
        ("a reboot", "boot-2", |_| {}, Some("journal.old"), 0),
        ("an unreadable header", "boot-1", |bytes| bytes[12] ^= 4, Some("journal.old"), 0),
        (
            "a damaged line",
            "boot-1",
            |bytes| {
                let at = bytes.len() - 20;
                bytes[at] ^= 4;
            },
            Some("journal.damaged"),
            1,
        ),
    ];
    for (name, boot, spoil, aside, left) in cases {
        let (dir, former) = spoilt(spoil);
        let in_the_way = fill(dir.path());
        for _ in 0..2 {
            let (_, again) = Journal::open(dir.path(), boot).unwrap();
            assert_eq!(free(&again), left, "{name}");
        }
        let (mut journal, recovered) = Journal::open(dir.path(), boot).unwrap();
        let told = recovered.notes.iter().any(|note| note.contains("free space"));
        assert!(told && journal.trouble().is_some(), "{name}: {:?}", recovered.notes);
        let facts = if left == 0 { vec![primary(), gained(20)] } else { vec![gained(20)] };
        let count = facts.len();
        journal.note(facts);
        assert!(journal.commit(&[gained(21)]).is_err(), "{name}: an ADD is refused");
        journal.retry();
        assert_eq!((journal.backlog(), journal.trouble().is_some()), (count, true), "{name}");
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), former, "{name}: it stays");

        fs::remove_dir(in_the_way).unwrap();
        journal.retry();
        assert_eq!((journal.backlog(), journal.trouble()), (0, None), "{name}");
        journal.commit(&[gained(22)]).unwrap();
        let (_, again) = Journal::open(dir.path(), boot).unwrap();
        assert!(again.resumed && !again.damaged, "{name}: {:?}", again.notes);
        assert_eq!(free(&again), left + 2, "{name}");
        if let Some(aside) = aside {
            assert_eq!(fs::read(dir.path().join(aside)).unwrap(), former, "{name}");
        }
    }
}

#[test]
fn an_empty_file_is_no_journal_to_keep() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("journal.old"), "precious").unwrap();
    fs::write(dir.path().join(FILE), "").unwrap();
    let (journal, recovered) = Journal::open(dir.path(), "boot-1").unwrap();
    assert!(journal.trouble().is_none() && !recovered.resumed);
    assert_eq!(fs::read_to_string(dir.path().join("journal.old")).unwrap(), "precious");
}

#[test]
fn the_last_journals_that_were_set_aside_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut former = Vec::new();
    for boot in 0..6 {
        drop(Journal::open(dir.path(), &format!("boot-{boot}")).unwrap());
        former.insert(0, fs::read(dir.path().join(FILE)).unwrap());
    }
    for (n, name) in ["journal.old", "journal.old.1", "journal.old.2"].iter().enumerate() {
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), former[n + 1], "{name}");
    }
    assert!(!dir.path().join("journal.old.3").exists());
}

#[test]
fn a_disk_that_took_no_record_counts_as_full_until_it_takes_one_or_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), &[primary()]);
    let (mut journal, _) = Journal::open(dir.path(), "boot-1").unwrap();
    let closed = File::open(&path).unwrap();
    let writable = journal.file.replace(closed);
    assert!(journal.commit(&[gained(10)]).is_err());
    journal.retry();
    assert!(journal.trouble().is_some());
    journal.file = writable;
    let before = fs::read(&path).unwrap();
    journal.retry();
    assert_eq!(journal.trouble(), None);
    assert_eq!(fs::read(&path).unwrap(), before, "nothing of the attempt is left");
}

#[test]
fn a_journal_cut_before_what_left_the_node_counts_as_damaged_and_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path(), "boot-1").unwrap();
    journal.commit(&[primary(), gained(10), gained(11)]).unwrap();
    let slot = veni_core::marks::EniSlot::new(0, 0).unwrap();
    let at = BootTime(5);
    journal
        .commit(&[Record::Unassigning { slot, addresses: vec![Ipv4Addr::new(10, 0, 0, 10)], at }])
        .unwrap();
    journal.commit(&[gained(12)]).unwrap();
    drop(journal);
    let path = dir.path().join(FILE);
    let whole = fs::read(&path).unwrap();
    let ends: Vec<usize> =
        whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).collect();
    let intent = ends.len() - 1;
    for (lines, end) in ends.iter().enumerate().map(|(n, end)| (n + 1, *end)) {
        fs::write(&path, &whole[..end]).unwrap();
        // The length belongs to the journal as it was: opening a damaged one replaces both.
        extent::write(&path, u64::try_from(ends[intent - 1]).unwrap());
        let (_, recovered) = Journal::open(dir.path(), "boot-1").unwrap();
        let (damaged, doubted) = (recovered.damaged, recovered.ledger.unconfirmed());
        assert_eq!((damaged, doubted), (lines < intent, lines < intent), "{lines} lines are left");
    }
}
