//! The plugin is killed, is executed twice, or finds no daemon or no namespace.

use std::{fs, path::PathBuf, thread};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use veni_fault_tests::{
    Bench, checks,
    plugin::{killed_at, refusal, run},
};
use veni_lab::{runtime::Sandbox, snapshot::Snapshot};

const ADD_POINTS: [&str; 4] = ["add:asked", "add:allocated", "wire:host", "add:wired"];
/// CNI spec 1.0.0, "Error": 11, try again later; 100 and above are a plugin's own.
const TRY_AGAIN: u64 = 11;

fn bench(test: &str) -> Result<Option<Bench>> {
    let Some(mut bench) = Bench::up(test)? else { return Ok(None) };
    bench.add("a")?;
    Ok(Some(bench))
}

fn finish(mut bench: Bench) -> Result<()> {
    bench.del("a")?;
    bench.settle(0, 1, 1)?;
    checks::clean(&bench)
}

fn killed_adds() -> Result<()> {
    let Some(mut bench) = bench("plugin")? else { return Ok(()) };
    for point in ADD_POINTS {
        // Then ADD, and DEL.
        let sandbox = bench.sandbox("b")?;
        killed_at(&bench.node, point, "ADD", &sandbox, None)?;
        bench.add("b").with_context(|| format!("ADD after a death at {point}"))?;
        checks::sound(&bench).with_context(|| format!("after ADD after {point}"))?;
        bench.del("b").with_context(|| format!("DEL after {point}"))?;
        // Then DEL at once.
        let sandbox = bench.sandbox("c")?;
        killed_at(&bench.node, point, "ADD", &sandbox, None)?;
        bench.del("c").with_context(|| format!("DEL after a death at {point}"))?;
        bench.rest(1)?;
        checks::sound(&bench).with_context(|| format!("after DEL after {point}"))?;
        // A daemon that starts in between knows no connection that was open.
        let sandbox = bench.sandbox("d")?;
        killed_at(&bench.node, point, "ADD", &sandbox, None)?;
        bench.stop(Signal::SIGKILL)?;
        bench.start()?;
        bench.add("d").with_context(|| format!("ADD after {point} and a restart"))?;
        checks::sound(&bench).with_context(|| format!("after {point} and a restart"))?;
        bench.del("d")?;
    }
    let sandbox = bench.sandbox("b")?;
    bench.add("b")?;
    let previous = bench.pod("b")?.added.result.clone();
    killed_at(&bench.node, "del:unwired", "DEL", &sandbox, Some(previous))?;
    bench.del("b")?;
    bench.settle(1, 2, 1)?;
    finish(bench)
}

fn two_adds_at_once() -> Result<()> {
    let Some(mut bench) = bench("twice")? else { return Ok(()) };
    for _ in 0..10 {
        let sandbox = bench.sandbox("b")?;
        let runtime = &bench.node.runtime;
        let results = thread::scope(|scope| {
            let adds = [(); 3].map(|()| scope.spawn(|| runtime.add(&sandbox)));
            adds.map(|add| add.join().unwrap())
        });
        let address = bench.add("b")?;
        for result in results {
            ensure!(result?.address == address, "two addresses for one container");
        }
        checks::sound(&bench)?;
        bench.del("b")?;
    }
    bench.settle(1, 2, 1)?;
    finish(bench)
}

/// ADD without a daemon: refused in words that help, and nothing is left. DEL succeeds.
fn no_daemon() -> Result<()> {
    let Some(mut bench) = bench("socket")? else { return Ok(()) };
    bench.add("b")?;
    checks::sound(&bench)?;
    bench.stop(Signal::SIGKILL)?;
    let before = Snapshot::take(&bench.node.namespace)?;
    let (namespace, sandbox) = bench.lab.sandbox("c")?;
    let inside = Snapshot::take(&namespace)?;
    let socket = bench.node.socket();
    for (what, words) in [("refuses", "does not listen"), ("is gone", "does not exist")] {
        if what == "is gone" {
            fs::remove_file(&socket)?;
        }
        let (code, message) = refusal(&run(&bench.node, "ADD", &sandbox, None, None)?)?;
        println!("the socket {what}: {code}: {message}");
        ensure!(code == TRY_AGAIN, "code {code}");
        ensure!(message.contains(words) && message.contains("ipamd.sock"), "{message}");
        let difference = before.difference(&Snapshot::take(&bench.node.namespace)?);
        ensure!(difference.is_empty(), "the socket {what}: left on the node:\n{difference}");
        let difference = inside.difference(&Snapshot::take(&namespace)?);
        ensure!(difference.is_empty(), "the socket {what}: left in the pod:\n{difference}");
    }
    let output = run(&bench.node, "DEL", &sandbox, None, None)?;
    ensure!(output.status.success(), "DEL of what never was: {output:?}");
    bench.del("b").context("DEL of a pod without a daemon")?;
    bench.start()?;
    bench.settle(1, 2, 1)?;
    checks::sound(&bench)?;
    finish(bench)
}

fn no_namespace() -> Result<()> {
    let Some(mut bench) = bench("netns")? else { return Ok(()) };
    let nowhere = |path: PathBuf| Sandbox {
        container_id: "nowhere".to_owned(),
        netns: path,
        pod: "nowhere".to_owned(),
    };
    let file = bench.lab.dir.join("no-namespace");
    fs::write(&file, "")?;
    for path in [bench.lab.dir.join("netns/gone"), file] {
        let sandbox = nowhere(path.clone());
        let (code, message) = refusal(&run(&bench.node, "ADD", &sandbox, None, None)?)?;
        println!("{}: {code}: {message}", path.display());
        ensure!(message.contains(&path.display().to_string()), "{message}");
        let output = run(&bench.node, "DEL", &sandbox, None, None)?;
        ensure!(output.status.success(), "DEL: {output:?}");
        checks::sound(&bench)?;
    }
    // A pod whose namespace goes before its DEL.
    bench.add("b")?;
    bench.vanish("b")?;
    bench.del("b").context("DEL after the namespace")?;
    bench.settle(1, 2, 1)?;
    checks::sound(&bench)?;
    finish(bench)
}

#[test]
fn a_plugin_killed_at_any_point_leaves_nothing_behind() {
    killed_adds().unwrap();
}

#[test]
fn adds_for_one_container_at_once_are_one_add() {
    two_adds_at_once().unwrap();
}

#[test]
fn without_a_daemon_add_is_refused_and_del_succeeds() {
    no_daemon().unwrap();
}

#[test]
fn without_a_namespace_add_is_refused_and_del_succeeds() {
    no_namespace().unwrap();
}
