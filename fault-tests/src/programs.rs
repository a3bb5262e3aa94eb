//! The programs with fault points compiled in.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context as _, Result, ensure};
use veni_lab::binaries;

/// What is built: a package and its features. Two calls, so that cargo does not unify the plugin's features with the
/// daemon's.
const PROGRAMS: [&str; 2] = ["veni-ipamd", "veni-cni"];

/// Builds the programs once a process, and makes the labs of this process use them. `VENI_FAULT_BIN_DIR` names a
/// directory that has them already.
///
/// # Errors
/// When cargo fails; it has said why on the standard error.
pub fn build() -> Result<()> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    match BUILT.get_or_init(|| make().map_err(|error| format!("{error:#}"))) {
        Ok(dir) => {
            binaries::prefer(dir);
            Ok(())
        }
        Err(error) => Err(anyhow::anyhow!("{error}")),
    }
}

#[expect(clippy::print_stdout, reason = "a build takes its time: it says what it does")]
fn make() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("VENI_FAULT_BIN_DIR") {
        return Ok(dir.into());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = workspace.join("target/fault");
    for package in PROGRAMS {
        println!("building {package} with fault points into {}", target.display());
        let status = Command::new(&cargo)
            .current_dir(workspace)
            .args(["build", "--quiet", "--package", package, "--features", "fault-points"])
            .arg("--target-dir")
            .arg(&target)
            .status()
            .with_context(|| format!("starting {}", cargo.display()))?;
        ensure!(status.success(), "cargo build --package {package} --features fault-points failed");
    }
    Ok(target.join("debug"))
}
