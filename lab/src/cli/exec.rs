//! `veni-lab exec`: this process moves into the lab and becomes the command, in the directory
//! where it was called.

use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, setns};
use veni_lab::{
    binaries,
    kubernetes::{Programs, control_plane},
    node, place,
};

use super::control::{Answer, Request, ask};

pub(super) fn kubectl(lab: &str, args: Vec<String>) -> anyhow::Result<ExitCode> {
    let config = control_plane::kubeconfig(&place::of(lab), "admin");
    ensure!(config.exists(), "the lab {lab} has no Kubernetes: `veni-lab up --kubernetes`");
    let program = Programs::find()?.kubernetes("kubectl");
    let own = [program, "--kubeconfig".into(), config].map(|path| path.display().to_string());
    exec(lab, control_plane::HOST, &own.into_iter().chain(args).collect::<Vec<_>>())
}

pub(super) fn exec(lab: &str, place: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let Answer::Entrance { net, mounts } = ask(lab, &Request::Resolve { place: place.to_owned() })?
    else {
        bail!("the lab {lab} answered something else: is it of another version?");
    };
    let [program, args @ ..] = command else { bail!("no command") };
    let open = |path| File::open(path).with_context(|| format!("cannot open {place}'s namespace"));
    let (net, mounts) = (open(net)?, open(mounts)?);
    // Entering mounts leads to their root.
    let here = std::env::current_dir();
    // This process has one thread: the mount namespace can be changed.
    setns(mounts, CloneFlags::CLONE_NEWNS).context("cannot enter the lab's mounts")?;
    setns(net, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {place}"))?;
    let mut command = Command::new(program);
    command.args(args);
    if let Some(here) = here.ok().filter(|here| here.is_dir()) {
        command.current_dir(here);
    }
    let node = place::of(lab).join("nodes").join(place);
    if node.is_dir() {
        command.envs(node::directories(&node));
    }
    // So that `venictl` is found, after whatever the caller's own path has.
    if let Ok(venictl) = binaries::find("venictl") {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).chain(venictl.path.parent().map(Into::into));
        command.env("PATH", std::env::join_paths(dirs).context("PATH cannot be extended")?);
    }
    Err(command.exec()).with_context(|| format!("cannot execute {program} on {place}"))
}
