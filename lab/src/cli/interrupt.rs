//! Ctrl-C and SIGTERM: the lab's directory goes, and the process; everything else of a lab goes with it.
//!
//! Signals are handled, not blocked: programs that are started inherit the blocked ones (since Rust 1.66), and a
//! daemon must hear its SIGTERM.

use std::{process, thread};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use veni_lab::place;

/// What SIGINT, SIGTERM and SIGHUP do from now on.
pub(super) fn remove_on_signal(lab: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let inside = runtime.enter();
    let [mut interrupt, mut terminate, mut hangup] = {
        let streams: Result<Vec<_>, _> = kinds.into_iter().map(signal).collect();
        let streams = streams.context("cannot handle signals")?;
        <[_; 3]>::try_from(streams).map_err(|_| anyhow::anyhow!("cannot handle signals"))?
    };
    drop(inside);
    let dir = place::of(lab);
    thread::spawn(move || {
        let kind = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
                _ = hangup.recv() => SignalKind::hangup(),
            }
        });
        // What is left is removed by the next lab.
        drop(std::fs::remove_dir_all(dir));
        process::exit(128 + kind.as_raw_value());
    });
    Ok(())
}
