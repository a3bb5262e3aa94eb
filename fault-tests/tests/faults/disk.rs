//! The disk of the state directory is full.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};
use veni_fault_tests::{
    Bench,
    bench::eventually,
    checks,
    plugin::{refusal, run},
};
use veni_lab::Node;

/// Runs `work` with the state directory where the daemon sees it.
fn in_state_dir(node: &Node, work: impl FnOnce(&Path) -> Result<()> + Send) -> Result<()> {
    let dir = node.dir.join("state");
    node.namespace.run(|| Ok(work(&dir)))?
}

fn fill(node: &Node) -> Result<()> {
    in_state_dir(node, |dir| {
        let mut file = File::create(dir.join("ballast"))?;
        let mut chunk = 4096;
        while chunk > 0 {
            match file.write_all(&vec![0; chunk]) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) => chunk /= 2,
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
        Ok(())
    })
}

fn free(node: &Node) -> Result<()> {
    in_state_dir(node, |dir| Ok(fs::remove_file(dir.join("ballast"))?))
}

fn problems(bench: &Bench) -> Result<Vec<String>> {
    Ok(bench.view()?.problems.into_iter().map(|p| format!("{}: {}", p.kind, p.message)).collect())
}

/// ADD says what is missing and leaves nothing.
fn add_is_refused(bench: &mut Bench, name: &str) -> Result<()> {
    let sandbox = bench.sandbox(name)?;
    let output = run(&bench.node, "ADD", &sandbox, None, None)?;
    let (code, message) = refusal(&output)?;
    println!("{code}: {message}");
    ensure!(message.contains("free space in the state directory"), "{message}");
    ensure!(message.contains("No space left on device"), "{message}");
    checks::sound(bench)
}

/// The node says that it takes no pods, and why.
fn is_unready(bench: &Bench) -> Result<()> {
    let view = bench.view()?;
    ensure!(!view.daemon.ready, "ready with a full disk");
    ensure!(view.problems.iter().any(|p| p.kind == "storage"), "{:?}", view.problems);
    Ok(())
}

/// Three pods on a node whose state directory has 64 KiB.
fn small_disk(test: &str) -> Result<Option<Bench>> {
    let Some(mut bench) = Bench::without_daemon(test)? else { return Ok(None) };
    in_state_dir(&bench.node, |dir| {
        let options = Some("size=64k");
        Ok(mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), options)?)
    })?;
    bench.start()?;
    bench.settle(0, 1, 1)?;
    bench.add_all(&["a", "b", "c"])?;
    bench.rest(3)?;
    Ok(Some(bench))
}

fn full_disk() -> Result<()> {
    let Some(mut bench) = small_disk("disk")? else { return Ok(()) };

    // The journal's last page takes a few records more than the disk: until it is full too.
    fill(&bench.node)?;
    let mut fillers = Vec::new();
    let refused = (0..50).find_map(|n| {
        let name = format!("filler-{n}");
        let refused = bench.add(&name).is_err();
        bench.del(&name).err().into_iter().for_each(|error| fillers.push(error));
        refused.then_some(name)
    });
    ensure!(fillers.is_empty(), "DEL on a full disk: {fillers:?}");
    refused.context("the disk is never full")?;
    add_is_refused(&mut bench, "d")?;
    bench.del("b").context("DEL on a full disk")?;
    checks::sound(&bench)?;
    ensure!(
        problems(&bench)?.iter().any(|p| p.starts_with("storage: ")),
        "{:?}",
        problems(&bench)?
    );

    // What it could not write is found out again.
    bench.stop(Signal::SIGKILL)?;
    bench.start_unready().context("a start on a full disk")?;
    checks::sound(&bench)?;
    add_is_refused(&mut bench, "d")?;
    is_unready(&bench)?;

    free(&bench.node)?;
    let took = eventually(Duration::from_secs(10), || {
        let problems = problems(&bench)?;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })?;
    println!("the problem is gone {took:?} after the space is back");
    bench.add("d")?;
    bench.rest(3)?;
    checks::sound(&bench)?;
    // All of it is written.
    bench.stop(Signal::SIGKILL)?;
    bench.start()?;
    bench.rest(3)?;
    checks::sound(&bench)?;
    for pod in ["a", "c", "d"] {
        bench.del(pod)?;
    }
    bench.rest(0)?;
    checks::sound(&bench)
}

#[test]
fn a_full_disk_refuses_adds_and_takes_dels() {
    full_disk().unwrap();
}

/// What happens to the journal's bytes; none is added.
type Spoil = fn(&mut [u8]);

/// Replaces a word of the first line by another of the same length, and mends its checksum.
fn of_another_boot(bytes: &mut [u8]) {
    let end = bytes.iter().position(|b| *b == b'\n').expect("a header");
    bytes[end - 6] = if bytes[end - 6] == b'0' { b'1' } else { b'0' };
    let crc = format!("{:08x}", crc32fast::hash(&bytes[9..end]));
    bytes[..8].copy_from_slice(crc.as_bytes());
}

const SPOILT: [(&str, Spoil); 3] = [
    ("of another boot", of_another_boot),
    ("an unreadable header", |bytes| bytes[12] ^= 0x10),
    ("a damaged record", |bytes| {
        let at = bytes.len() - 40;
        bytes[at] ^= 0x10;
    }),
];

/// A start with a journal that is of no use, on a disk that takes no other: it serves what it can, says why not more, keeps
/// the datapath in repair, and goes on by itself.
fn starts_without_space(bench: &mut Bench, spoil: Spoil) -> Result<()> {
    bench.stop(Signal::SIGKILL)?;
    let path = Path::new("journal");
    in_state_dir(&bench.node, |dir| {
        let mut bytes = fs::read(dir.join(path))?;
        spoil(&mut bytes);
        let mut file = File::options().write(true).open(dir.join(path))?;
        Ok(file.write_all(&bytes)?)
    })?;
    fill(&bench.node)?;
    // A daemon that was restarted again and again would lose the former journal at the second start.
    for _ in 0..2 {
        bench.start_unready().context("a start without space")?;
        is_unready(bench)?;
        checks::sound(bench)?;
        bench.stop(Signal::SIGKILL)?;
    }
    bench.start_unready()?;
    add_is_refused(bench, "d")?;
    let flush = ["route", "flush", "table", "7600"];
    ip(&bench.node, &flush)?;
    eventually(Duration::from_secs(5), || checks::sound(bench)).context("repair")?;
    bench.del("b").context("DEL on a full disk")?;

    free(&bench.node)?;
    eventually(Duration::from_secs(10), || {
        ensure!(bench.view()?.daemon.ready, "{:?}", problems(bench)?);
        Ok(())
    })?;
    bench.add("b")?;
    checks::sound(bench)?;
    // All of it is written.
    bench.stop(Signal::SIGKILL)?;
    bench.start()?;
    bench.rest(3)?;
    checks::sound(bench)
}

fn ip(node: &Node, arguments: &[&str]) -> Result<()> {
    let run = || Ok(std::process::Command::new("ip").args(arguments).output());
    let output = node.namespace.run(run)?.context("running ip")?;
    ensure!(output.status.success(), "ip {arguments:?}: {output:?}");
    Ok(())
}

#[test]
fn a_start_on_a_full_disk_with_a_useless_journal_serves_what_it_can() {
    let Some(mut bench) = small_disk("spoilt").unwrap() else { return };
    for (what, spoil) in SPOILT {
        starts_without_space(&mut bench, spoil).context(what).unwrap();
    }
}
