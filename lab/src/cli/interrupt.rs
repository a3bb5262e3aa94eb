//! Ctrl-C and SIGTERM: the lab's directory goes, and the process; everything else of a lab goes with it.
//!
//! Signals are handled, not blocked: programs that are started inherit the blocked ones (since Rust 1.66), and a
//! daemon must hear its SIGTERM.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{self, Command},
    thread,
};

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
        let code = 128 + kind.as_raw_value();
        leave(&dir, code);
    });
    Ok(())
}

/// Removes the lab's directory and ends this process with `code`.
pub(super) fn leave(dir: &Path, code: i32) -> ! {
    // execve(2) ends all other threads first: nothing is written into the directory any more. The daemons end
    // with the threads that started them, the namespaces with their last descriptor.
    // A thread that cannot go on meanwhile waits for its end instead of telling the terminal.
    std::panic::set_hook(Box::new(|_| {
        loop {
            thread::park();
        }
    }));
    let mut remove = Command::new("/bin/sh");
    remove.args(["-c", r#"rm -rf -- "$1"; exit "$2""#, "veni-lab"]).arg(dir).arg(code.to_string());
    drop(remove.exec());
    // There is no shell: the next lab removes the directory.
    process::exit(code);
}
