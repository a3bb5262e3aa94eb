//! `up`, `run`, `del`, `restart`, `status`, `down`.

use std::{
    fs::File,
    os::unix::net::UnixListener,
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, setsid},
};
use veni_core::wire::inspect::{Eni, Pool, View};
use veni_lab::{
    Lab, interrupt,
    kubernetes::{Kubernetes, Settings},
    lab::control_socket,
    place,
};

use super::{
    LabArgs, Output,
    control::{self, Answer, Request, Status, ask},
    print,
};

/// How long a lab may take to come up.
const UP: Duration = Duration::from_secs(180);
/// How long it may take to go.
const DOWN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// `up`: a `run` of its own session, waited for until it answers.
pub(super) fn up(args: &LabArgs) -> anyhow::Result<ExitCode> {
    let name = &args.lab.name;
    args.config()?;
    if let Some(pid) = place::holder(name) {
        bail!(
            "the lab {name} is up (process {pid}): `veni-lab status --name {name}`, `veni-lab down --name {name}`"
        );
    }
    let log = std::env::temp_dir().join(format!("veni-lab-{name}.log"));
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["run", "--detached", "--name", name])
        .stdin(Stdio::null())
        .stderr(output.try_clone()?)
        .stdout(output);
    for (option, values) in [("--node", &args.nodes), ("--env", &args.env)] {
        command.args(values.iter().flat_map(|value| [option, value]));
    }
    command.args(args.instant.then_some("--instant"));
    command.args(args.kubernetes.then_some("--kubernetes"));
    print::step(format!("bringing up the lab {name} (log: {})", log.display()));
    let mut child = command.spawn().context("cannot start the lab's process")?;
    let start = Instant::now();
    loop {
        if let Ok(Answer::Status(status)) = ask(name, &Request::Status) {
            show(&status);
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(status) = child.try_wait()? {
            bail!(
                "the lab did not come up ({status}): {}",
                std::fs::read_to_string(&log).unwrap_or_default().trim()
            );
        }
        if start.elapsed() > UP {
            child.kill()?;
            bail!("the lab did not come up within {UP:?}; its log is {}", log.display());
        }
        thread::sleep(POLL);
    }
}

/// `run`: holds the lab.
pub(super) fn run(args: &LabArgs) -> anyhow::Result<ExitCode> {
    let name = &args.lab.name;
    interrupt::remove_on_signal(name)?;
    if args.detached {
        setsid().context("cannot leave the terminal")?;
    }
    let config = args.config()?;
    let lab = Lab::up(&config)?;
    let settings = Settings { env: args.variables()?, ..Settings::default() };
    let kubernetes = args.kubernetes.then(|| Kubernetes::up(&lab, &settings)).transpose()?;
    let listener =
        UnixListener::bind(control_socket(&lab.dir)).context("cannot make the control socket")?;
    print::step(format!("the lab {name} is up; `veni-lab status --name {name}`"));
    // Pods that are still being added, with plugins that wait, go with the process.
    let lab = control::answer_until_down(lab, listener)?;
    drop(kubernetes);
    match lab {
        Some(lab) => drop(lab),
        None => interrupt::leave(&place::of(name), 0),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn del(lab: &str, names: &[String]) -> anyhow::Result<ExitCode> {
    let pod = names.last().context("which pod?")?.clone();
    let Answer::Pod(pod) = ask(lab, &Request::Del { pod })? else {
        bail!("the lab answered something else")
    };
    print::line(format!("{} ({}) is gone ({} µs)", pod.name, pod.address, pod.micros));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn restart(lab: &str, node: String) -> anyhow::Result<ExitCode> {
    print::step(format!("restarting veni-ipamd on {node}"));
    let Answer::Restarted(done) = ask(lab, &Request::Restart { node })? else {
        bail!("the lab {lab} answered something else: is it of another version?")
    };
    print::note(match done.ended {
        Some(pid) => format!("process {pid} has ended"),
        None => "it did not run".to_owned(),
    });
    let pid = done.pid.map_or_else(|| "which has ended since".to_owned(), |pid| pid.to_string());
    print::line(format!(
        "veni-ipamd on {} is ready (process {pid}, {} after its start)",
        done.node,
        print::millis(Duration::from_micros(done.ready_micros))
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn status(lab: &str, output: Output) -> anyhow::Result<ExitCode> {
    let Answer::Status(status) = ask(lab, &Request::Status)? else {
        bail!("the lab answered something else")
    };
    match output {
        Output::Table => show(&status),
        Output::Json => print::line(serde_json::to_string_pretty(&status)?),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn down(lab: &str) -> anyhow::Result<ExitCode> {
    let Some(pid) = place::holder(lab) else {
        print::line(format!("the lab {lab} is not up"));
        return Ok(ExitCode::SUCCESS);
    };
    if ask(lab, &Request::Down).is_err() {
        // It is on its way up, or does not answer: everything of it goes with its process.
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)
            .context("cannot end the lab's process")?;
    }
    let start = Instant::now();
    while place::holder(lab).is_some() {
        if start.elapsed() > DOWN {
            bail!(
                "the lab {lab} (process {pid}) is still there after {DOWN:?}: kill it, the rest goes with it"
            );
        }
        thread::sleep(POLL);
    }
    print::line(format!("the lab {lab} is down"));
    Ok(ExitCode::SUCCESS)
}

fn show(status: &Status) {
    print::line(format!(
        "lab {} (process {}, files in {})",
        status.name,
        status.pid,
        status.dir.display()
    ));
    let views = status
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node.instance_type.as_str(), node.ipamd.as_deref()));
    pools(views.map(|(name, kind, view)| (name, kind, view.map_err(String::as_str))));
    if !status.pods.is_empty() {
        let mut table = print::table(["pod", "node", "address"]);
        for pod in &status.pods {
            table.add_row([&pod.name, &pod.node, &pod.address.to_string()]);
        }
        print::line(table);
    }
    for drop in &status.drops {
        print::note(format!("dropped by the VPC: {drop}"));
    }
}

/// Each node's ENIs and pool.
pub(super) fn pools<'a>(
    nodes: impl Iterator<Item = (&'a str, &'a str, Result<&'a View, &'a str>)>,
) {
    let mut table = print::table([
        "node",
        "type",
        "ENI",
        "id",
        "state",
        "primary address",
        "held",
        "pods",
        "free",
        "cooling",
        "pending",
    ]);
    let mut silent = Vec::new();
    for (name, kind, view) in nodes {
        let view = match view {
            Ok(view) => view,
            Err(error) => {
                table.add_row([name, kind, "-"]);
                silent.push(format!("{name}: {error}"));
                continue;
            }
        };
        for eni in &view.enis {
            let mut row = vec![name.to_owned(), kind.to_owned()];
            row.extend([
                eni.ifname
                    .as_ref()
                    .map_or_else(|| eni.device_index.to_string(), ToString::to_string),
                eni.id.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                eni.phase.clone(),
                eni.primary_address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
            ]);
            row.extend(counts(&of_eni(eni)));
            table.add_row(row);
        }
        let mut row = vec![name.to_owned(), kind.to_owned(), "all".to_owned()];
        row.extend([String::new(), String::new(), String::new()]);
        row.extend(counts(&view.pool));
        table.add_row(row);
    }
    print::line(table);
    silent.iter().for_each(print::note);
}

fn counts(pool: &Pool) -> [String; 5] {
    [pool.total, pool.assigned, pool.available, pool.cooling, pool.pending].map(|n| n.to_string())
}

/// An ENI's part of the pool: what an ENI holds that is not in use yet, or no more, is free for nobody.
fn of_eni(eni: &Eni) -> Pool {
    let available = if eni.phase == "in_use" { eni.pool.available } else { 0 };
    Pool { available, ..eni.pool }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_eni_brings_is_pending_and_free_only_once_it_is_in_use() {
        for (phase, available, pending, expect) in [
            ("in_use", 3, 0, ["14", "0", "3", "0", "0"]),
            ("attaching", 14, 14, ["14", "0", "0", "0", "14"]),
            ("creating", 0, 14, ["14", "0", "0", "0", "14"]),
            ("detaching", 14, 0, ["14", "0", "0", "0", "0"]),
        ] {
            let pool = Pool { total: 14, available, pending, ..Pool::default() };
            let eni: Eni = serde_json::from_value(serde_json::json!({
                "primary": false, "device_index": 1, "phase": phase, "table": 7602, "mark": 0,
                "pool": pool,
            }))
            .unwrap();
            assert_eq!(counts(&of_eni(&eni)), expect, "{phase}");
        }
    }
}
