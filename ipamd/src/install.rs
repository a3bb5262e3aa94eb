//! What the container runtime has to find on a node: the plugin, and the configuration list that names it.
//!
//! Invariants: each file is whole or not there (it is renamed into its place), and one that is as it should be is left
//! alone; the list comes once the node can take pods, because a kubelet takes its presence for that. It then stays through
//! restarts: running pods are deleted by it. Its name sorts before the AWS VPC CNI's `10-aws.conflist`, which that leaves
//! on a node, and runtimes take the first.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use veni_core::config::{CniVersion, Config, HostCni};

/// The configuration list's name.
pub use veni_core::config::CONFLIST;

const PLUGIN: &str = "veni-cni";

/// Copies the plugin, which stands beside this program, to `HOST_CNI_BIN_PATH`.
///
/// # Errors
/// When that is not set, or the plugin cannot be read or written.
pub fn plugin(config: &Config) -> Result<()> {
    let Some(folder) = &config.host_cni.bin_dir else {
        bail!(
            "HOST_CNI_BIN_PATH is not set: it says where the plugin goes, /host/opt/cni/bin for example"
        );
    };
    let own = std::env::current_exe().context("looking for the plugin beside this program")?;
    let (from, to) = (own.with_file_name(PLUGIN), Path::new(folder).join(PLUGIN));
    let bytes = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
    let written = put(&to, &bytes, 0o755).with_context(|| format!("writing {}", to.display()))?;
    tracing::info!(path = %to.display(), written, "plugin installed");
    if !Path::new(folder).join("portmap").exists() {
        tracing::warn!(
            folder,
            "there is no portmap plugin: no configuration list names it, and hostPorts are not reached from outside"
        );
    }
    Ok(())
}

/// Writes the configuration list, where `HOST_CNI_CONFDIR_PATH` says. Returns whether it was not there as it is.
///
/// # Errors
/// When the folder takes nothing.
pub fn conflist(config: &Config) -> io::Result<bool> {
    let Some(path) = conflist_path(&config.host_cni) else { return Ok(false) };
    let portmap =
        config.host_cni.bin_dir.as_ref().is_none_or(|dir| Path::new(dir).join("portmap").exists());
    let mut text = serde_json::to_vec_pretty(&list(config, portmap))?;
    text.push(b'\n');
    put(&path, &text, 0o644)
}

/// What was installed goes.
///
/// # Errors
/// When a file that is there cannot be removed.
pub fn remove(config: &Config) -> Result<()> {
    let plugin = config.host_cni.bin_dir.as_ref().map(|dir| Path::new(dir).join(PLUGIN));
    // The list first: no ADD is to meet it without its plugin.
    for path in conflist_path(&config.host_cni).into_iter().chain(plugin) {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn conflist_path(host_cni: &HostCni) -> Option<PathBuf> {
    host_cni.conf_dir.as_ref().map(|dir| Path::new(dir).join(CONFLIST))
}

fn list(config: &Config, portmap: bool) -> Value {
    let version = match config.host_cni.version {
        CniVersion::V1_0 => "1.0.0",
        CniVersion::V1_1 => "1.1.0",
    };
    let mut plugins = vec![json!({ "type": PLUGIN, "socket": config.socket })];
    if portmap {
        let ports = json!({ "portMappings": true });
        plugins.push(json!({ "type": "portmap", "capabilities": ports, "snat": true }));
    }
    json!({ "cniVersion": version, "name": "veni", "plugins": plugins })
}

/// Puts a file in its place, unless it is there with the same content and mode. Returns whether it was written.
fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<bool> {
    let same = |meta: fs::Metadata| meta.permissions().mode() & 0o777 == mode;
    if fs::metadata(path).is_ok_and(same) && fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    // In the same folder, or the rename would be a copy. No runtime takes this name for a list or a plugin.
    let next = path.with_extension("veni-next");
    let placed = fs::write(&next, bytes)
        .and_then(|()| fs::set_permissions(&next, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&next, path));
    if placed.is_err() {
        // A part of it would only take space.
        drop(fs::remove_file(&next));
    }
    placed.map(|()| true)
}

#[cfg(test)]
mod tests;
