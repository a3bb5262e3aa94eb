//! Ctrl-C and SIGTERM: the lab's directory goes, and the process; everything else of a lab goes with it.

use std::{process, thread};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use veni_lab::place;

/// What a signal does from now on. To be called before any other thread is started: they inherit the blocked signals.
/// Programs that are started do not (the standard library empties the mask of its children).
pub(super) fn remove_on_signal(lab: &str) -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    let dir = place::of(lab);
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            // What is left is removed by the next lab.
            drop(std::fs::remove_dir_all(dir));
            process::exit(128 + signal as i32);
        }
    });
    Ok(())
}
