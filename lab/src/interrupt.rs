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

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    error::{Context as _, Error, Result},
    machine, place,
};

/// From now on, SIGINT, SIGTERM and SIGHUP remove the lab `lab` and end this process.
///
/// # Errors
/// When signals cannot be handled.
pub fn remove_on_signal(lab: &str) -> Result<()> {
    let what = || "cannot handle signals".to_owned();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context(what)?;
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let inside = runtime.enter();
    let [mut interrupt, mut terminate, mut hangup] = {
        let streams: std::io::Result<Vec<_>> = kinds.into_iter().map(signal).collect();
        <[_; 3]>::try_from(streams.context(what)?).map_err(|_| Error::invalid(what()))?
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

/// What is still dying may write its last line into the directory, and keeps its control group.
const REMOVE: &str = r#"
groups() { find /sys/fs/cgroup -mindepth 1 -depth -type d -path "*/$GROUPS_OF*" "$@" 2>/dev/null; }
for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    rm -rf -- "$1" 2>/dev/null
    [ -z "$(groups)" ] || groups -exec rmdir {} \;
    [ -e "$1" ] || [ -n "$(groups)" ] || break
    sleep 0.2
done
exit "$2""#;

/// Removes the lab's directory and ends this process with `code`.
pub fn leave(dir: &Path, code: i32) -> ! {
    // execve(2) ends all other threads first: nothing is written into the directory any more. The daemons end
    // with the threads that started them, the namespaces with their last descriptor.
    // A thread that cannot go on meanwhile waits for its end instead of telling the terminal.
    std::panic::set_hook(Box::new(|_| {
        loop {
            thread::park();
        }
    }));
    let mut remove = Command::new("/bin/sh");
    remove.args(["-c", REMOVE, "veni-lab"]).arg(dir).arg(code.to_string());
    remove.env("GROUPS_OF", machine::cgroup_parent(dir, ""));
    drop(remove.exec());
    // There is no shell: the next lab removes the directory.
    process::exit(code);
}
