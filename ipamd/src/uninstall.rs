//! Leaving a node: everything that veni has made there goes. The opposite of a restart, which leaves everything.

use std::{fs, io, path::Path};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use veni_core::config::Config;
use veni_datapath::{
    bpf::{self, Filter},
    host::{self, Desired},
    nft,
};

use crate::{install, start};

/// Removes filter, rules, routes, the nft table, socket and journal, in the current network namespace.
///
/// # Errors
/// When pods still use veni, when another ipamd runs, or when the kernel refuses.
pub fn uninstall(config: &Config) -> Result<()> {
    let state_dir = Path::new(&config.state_dir);
    let (lock, file) = start::lock_file(state_dir)?;
    let Ok(_held) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        bail!("another ipamd ({}) serves this node: stop it first", start::holder(&lock));
    };
    refuse_while_pods(config)?;
    install::remove(config)?;
    nft::remove().context("removing the nft table")?;
    let report = host::reconcile(&Desired::nothing(config.table_base))
        .context("removing rules and routes")?;
    for repair in report.repaired {
        tracing::info!(kind = repair.kind.name(), what = repair.what, "removed");
    }
    if !report.failed.is_empty() {
        bail!("not removed: {}", report.failed.join("; "));
    }
    bpf::remove(Path::new(&config.bpf_dir)).context("removing the filter")?;
    // The lock's file stays: a daemon that waits for it holds this very file.
    let mut files = vec![Path::new(&config.socket).to_path_buf()];
    let listed =
        fs::read_dir(state_dir).with_context(|| format!("listing {}", state_dir.display()))?;
    for entry in listed {
        let entry = entry.with_context(|| format!("listing {}", state_dir.display()))?;
        // `journal`, and beside it `.whereabouts`, `.old`, `.next`, `.damaged…`.
        if entry.file_name().to_string_lossy().starts_with("journal") {
            files.push(entry.path());
        }
    }
    for path in files {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    tracing::info!("veni has left this node; sysctls stay as they are");
    Ok(())
}

fn refuse_while_pods(config: &Config) -> Result<()> {
    let filter = Filter::open(Path::new(&config.bpf_dir), config.eni_mark_mask)
        .context("opening the filter's maps")?;
    let pods = filter.pods().context("reading the filter's map")?;
    let links = host::links().context("listing links")?;
    let using =
        pods.keys().filter(|index| links.iter().any(|link| link.ifindex == **index)).count();
    if using > 0 {
        bail!("{using} pods on this node still use veni: drain the node first");
    }
    Ok(())
}
