//! The journal is damaged, lost, or not for this daemon, while pods run: each keeps its address and its traffic, and
//! new pods get others.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use veni_fault_tests::{Bench, Daemon, Death, bench::in_lanes, checks, journal};
use veni_lab::Node;

/// What happens to the file.
type Accident = fn(&Node, &Path) -> Result<()>;

const ACCIDENTS: [(&str, Accident); 12] = [
    ("deleted", |_, path| Ok(fs::remove_file(path)?)),
    ("empty", |_, path| cut(path, |_| 0)),
    ("half of the header", |_, path| cut(path, |_| 20)),
    ("nothing but the header", |node, _| keep(node, |lines| lines.truncate(1))),
    ("torn in the middle", |_, path| cut(path, |len| len / 2)),
    ("torn in the last line", |_, path| cut(path, |len| len - 10)),
    ("without its second half", |node, _| keep(node, |lines| lines.truncate(lines.len() / 2))),
    ("without its second half, and torn", |node, path| {
        keep(node, |lines| lines.truncate(lines.len() / 2))?;
        cut(path, |len| len - 10)
    }),
    ("a bit flipped in the header", |_, path| flip(path, |_| 12)),
    ("garbage", |_, path| Ok(fs::write(path, [0x5a; 4096])?)),
    ("from another boot", |node, _| header(node, "boot_id", json!("another-boot"))),
    ("of a newer version", |node, _| header(node, "veni_journal", json!(999))),
];

fn cut(path: &Path, len: impl Fn(usize) -> usize) -> Result<()> {
    let mut bytes = fs::read(path)?;
    bytes.truncate(len(bytes.len()));
    Ok(fs::write(path, bytes)?)
}

fn flip(path: &Path, at: impl Fn(usize) -> usize) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let at = at(bytes.len());
    bytes[at] ^= 0x10;
    Ok(fs::write(path, bytes)?)
}

fn keep(node: &Node, change: impl Fn(&mut Vec<Value>)) -> Result<()> {
    let mut lines = journal::read(node)?;
    change(&mut lines);
    journal::write(node, &lines)
}

fn header(node: &Node, key: &str, value: Value) -> Result<()> {
    keep(node, |lines| lines[0][key] = value.clone())
}

/// Where in the file line `n` begins.
fn start_of_line(path: &Path, n: usize) -> Result<usize> {
    let text = fs::read(path)?;
    Ok(text.split_inclusive(|b| *b == b'\n').take(n).map(<[u8]>::len).sum())
}

/// Labs side by side.
const LANES: usize = 4;
/// Past the age before which an ENI is kept.
const OLD: Duration = Duration::from_secs(120);
const PODS: [&str; 5] = ["a", "c", "d", "e", "f"];

fn busy(test: &str) -> Result<Option<Bench>> {
    let Some(mut bench) = Bench::up(test)? else { return Ok(None) };
    fill(&mut bench)?;
    checks::sound(&bench)?;
    Ok(Some(bench))
}

/// Five pods over two ENIs, one of them on an address that another pod had before.
fn fill(bench: &mut Bench) -> Result<()> {
    bench.add_all(&["a", "b"])?;
    bench.rest(2)?;
    bench.add_all(&["c", "d"])?;
    bench.rest(4)?;
    bench.add("e")?;
    bench.del("b")?;
    bench.add("f")?;
    bench.rest(5).map(drop)
}

fn empty(bench: &mut Bench) -> Result<()> {
    for pod in PODS {
        bench.del(pod)?;
    }
    bench.rest(0)?;
    bench.grow_old(OLD, None)?;
    bench.rest(0).map(drop)
}

fn finish(mut bench: Bench) -> Result<()> {
    empty(&mut bench)?;
    checks::sound(&bench)
}

/// The daemon is killed, `accident` happens, and the next one starts.
fn survives(bench: &mut Bench, accident: &dyn Fn(&Node, &Path) -> Result<()>) -> Result<()> {
    bench.stop(Signal::SIGKILL)?;
    accident(&bench.node, &journal::path(&bench.node))?;
    bench.start()?;
    bench.rest(5)?;
    checks::sound(bench)?;
    bench.add("new")?;
    bench.rest(6)?;
    checks::sound(bench)?;
    bench.del("new")?;
    bench.rest(5)?;
    checks::sound(bench)
}

/// New pods with about the same journal.
fn refill(bench: &mut Bench) -> Result<()> {
    empty(bench)?;
    bench.stop(Signal::SIGTERM)?;
    fs::remove_file(journal::path(&bench.node))?;
    bench.start()?;
    fill(bench)
}

#[test]
fn pods_keep_their_addresses_over_a_lost_or_foreign_journal() {
    in_lanes(LANES, |lane| {
        let Some(mut bench) = busy(&format!("journal-{lane}"))? else { return Ok(()) };
        for (what, accident) in ACCIDENTS.into_iter().skip(lane).step_by(LANES) {
            survives(&mut bench, &accident).context(what)?;
            refill(&mut bench).context(what)?;
        }
        finish(bench)
    })
    .unwrap();
}

/// Whichever record it is that is lost.
#[test]
fn pods_keep_their_addresses_over_a_bit_flip_in_any_line() {
    in_lanes(LANES, |lane| {
        let Some(mut bench) = busy(&format!("bitflip-{lane}"))? else { return Ok(()) };
        // After the header.
        let mut n = 1 + lane;
        while let Some(line) = journal::read(&bench.node)?.get(n) {
            let flip_in_line = |_: &Node, path: &Path| {
                let start = start_of_line(path, n)?;
                flip(path, |_| start + 30)
            };
            survives(&mut bench, &flip_in_line).with_context(|| format!("line {n}: {line}"))?;
            refill(&mut bench).with_context(|| format!("after line {n}: {line}"))?;
            n += LANES;
        }
        println!("lane {lane} ends before line {n}");
        finish(bench)
    })
    .unwrap();
}

/// Rewriting a journal (here: a damaged one) is a step at which a daemon can die.
#[test]
fn a_daemon_that_dies_while_it_rewrites_the_journal_loses_nothing() {
    let Some(mut bench) = busy("rewrite").unwrap() else { return };
    for death in [Death::Kill, Death::Panic, Death::Term] {
        for point in ["compact-before-rename", "compact-after-rename"] {
            let what = format!("{point}:{}", death.name());
            dies_rewriting(&mut bench, death, &what).context(what).unwrap();
        }
    }
    finish(bench).unwrap();
}

fn dies_rewriting(bench: &mut Bench, death: Death, fault: &str) -> Result<()> {
    bench.stop(Signal::SIGKILL)?;
    let path = journal::path(&bench.node);
    let start = start_of_line(&path, 1)?;
    flip(&path, |_| start + 30)?;
    let mut daemon = Daemon::start(&bench.node, Some(fault))?;
    let status = daemon.wait_end(Duration::from_secs(5)).context("the point was not passed")?;
    ensure!(death.explains(status), "the daemon died by itself: {status}");
    bench.start()?;
    bench.rest(5)?;
    checks::sound(bench)
}

/// A journal that has grown long is rewritten by the daemon at work.
#[test]
fn a_daemon_that_dies_while_it_compacts_the_journal_loses_nothing() {
    let Some(mut bench) = busy("compact").unwrap() else { return };
    for death in [Death::Kill, Death::Panic, Death::Term] {
        for point in ["compact-before-rename", "compact-after-rename"] {
            let what = format!("{point}:{}", death.name());
            dies_compacting(&mut bench, death, &what).context(what).unwrap();
        }
    }
    finish(bench).unwrap();
}

fn dies_compacting(bench: &mut Bench, death: Death, fault: &str) -> Result<()> {
    bench.stop(Signal::SIGKILL)?;
    // Records that change nothing, as after a long day of cooldowns.
    let mut lines = journal::read(&bench.node)?;
    let idle = json!({"record": "thawed", "released_until": 1});
    lines.extend(std::iter::repeat_n(idle, 25_000));
    journal::write(&bench.node, &lines)?;
    let mut daemon = Daemon::start(&bench.node, Some(fault))?;
    let status = daemon.wait_end(Duration::from_secs(5)).context("the point was not passed")?;
    ensure!(death.explains(status), "the daemon died by itself: {status}");
    bench.start()?;
    bench.settle(5, 6, 2)?;
    checks::sound(bench)?;
    let len = fs::metadata(journal::path(&bench.node))?.len();
    ensure!(len < 100_000, "the journal was not compacted: {len} bytes");
    Ok(())
}
