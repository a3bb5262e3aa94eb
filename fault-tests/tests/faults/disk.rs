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

fn full_disk() -> Result<()> {
    let Some(mut bench) = Bench::without_daemon("disk")? else { return Ok(()) };
    in_state_dir(&bench.node, |dir| {
        let options = Some("size=64k");
        Ok(mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), options)?)
    })?;
    bench.start()?;
    bench.settle(0, 1, 1)?;
    bench.add_all(&["a", "b", "c"])?;
    bench.rest(3)?;

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
    bench.start().context("a start on a full disk")?;
    checks::sound(&bench)?;
    add_is_refused(&mut bench, "d")?;

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
