//! `add`, `apply`, `delete`: what the lab's API server has.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use veni_lab::{
    PodSpec,
    cluster::{APPLIED, PodPort},
};

use super::{
    Name,
    control::{Answer, Change, Request, ask},
    print,
};

/// What a pod's author writes.
#[derive(Debug, Clone, Args)]
pub(super) struct Spec {
    /// The pod's namespace (`lab` unless told otherwise); in others the pod is called NAMESPACE/POD in the lab
    #[arg(long)]
    namespace: Option<String>,
    /// A label, NAME=VALUE, several times
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// An annotation, NAME=VALUE, several times
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    annotations: Vec<String>,
    /// A container port, [NAME=]NUMBER[/PROTOCOL], several times
    #[arg(long = "port", value_name = "[NAME=]NUMBER[/PROTOCOL]")]
    ports: Vec<PodPort>,
}

/// Manifests.
#[derive(Debug, Clone, Args)]
pub(super) struct Files {
    #[command(flatten)]
    lab: Name,
    /// A file of YAML or JSON documents, or a folder of such files; several times
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
}

pub(super) fn add(lab: &str, node: String, pod: &str, spec: Spec) -> anyhow::Result<ExitCode> {
    let mut pod = PodSpec::called(pod);
    pod.namespace = spec.namespace.unwrap_or(pod.namespace);
    pod.labels = pairs(&spec.labels, "--label")?;
    pod.annotations = pairs(&spec.annotations, "--annotation")?;
    pod.ports = spec.ports;
    let Answer::Pod(pod) = ask(lab, &Request::Add { node, pod })? else {
        bail!("the lab answered something else")
    };
    print::line(format!("{} on {}: {} ({} µs)", pod.name, pod.node, pod.address, pod.micros));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn apply(files: &Files) -> anyhow::Result<ExitCode> {
    let texts = files.read(|path| {
        let text = std::fs::read_to_string(path);
        text.map(Some).with_context(|| format!("cannot read {}", path.display()))
    })?;
    // What the daemons cannot read at all is refused here; what is wrong with an object is theirs to judge.
    let paths = files.by_name()?;
    let manifests = veni_manifests::read_all(paths.iter().map(PathBuf::as_path))
        .context("nothing is applied")?;
    for diagnostic in &manifests.diagnostics {
        print::note(format!("{diagnostic}"));
    }
    let names: BTreeSet<String> = texts.keys().cloned().collect();
    let change = change(&files.lab.name, texts)?;
    for name in &change.known {
        print::note(format!("{name}: in place of what was applied under this name before"));
    }
    let shadowed = beside(&veni_lab::place::of(&files.lab.name).join("manifests"), &names)?;
    let objects = manifests.objects.len().saturating_sub(shadowed);
    Ok(tell(&format!("{} in force", print::count(objects, "object")), &change))
}

/// Tells which objects are in one of these files and in another that was applied before: of two, the first by file name
/// is in force. Returns how many of these files' are not.
fn beside(folder: &Path, names: &BTreeSet<String>) -> anyhow::Result<usize> {
    let all = veni_manifests::read(folder).context("cannot read what was applied")?;
    let is_ours = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        name.strip_prefix(APPLIED).is_some_and(|name| names.contains(name))
    };
    let mut shadowed = 0;
    for diagnostic in &all.diagnostics {
        let Some(first) = &diagnostic.shadowed_by else { continue };
        if is_ours(&diagnostic.file) != is_ours(first) {
            print::note(format!("{diagnostic}"));
            shadowed += usize::from(is_ours(&diagnostic.file));
        }
    }
    Ok(shadowed)
}

pub(super) fn delete(files: &Files) -> anyhow::Result<ExitCode> {
    let names = files.read(|_| Ok(None))?;
    let asked: Vec<_> = names.keys().cloned().collect();
    let change = change(&files.lab.name, names)?;
    let unknown: Vec<_> = asked.into_iter().filter(|name| !change.known.contains(name)).collect();
    ensure!(unknown.is_empty(), "never applied under this name: {}", unknown.join(", "));
    Ok(tell(&format!("{} gone", print::count(change.known.len(), "file")), &change))
}

fn change(lab: &str, files: BTreeMap<String, Option<String>>) -> anyhow::Result<Change> {
    match ask(lab, &Request::Manifests { files })? {
        Answer::InForce(change) => Ok(change),
        _ => bail!("the lab {lab} answered something else: is it of another version?"),
    }
}

/// On which nodes it is done, and why not on the others: a failure.
fn tell(what: &str, change: &Change) -> ExitCode {
    let Change { nodes, missing, micros, .. } = change;
    for (node, why) in missing {
        print::line(format!("not on {node}: {why}; its pods are judged by what was before"));
    }
    let done = nodes.saturating_sub(missing.len());
    let took = print::millis(Duration::from_micros(*micros));
    print::line(match done {
        _ if missing.is_empty() => format!("{what} on every node after {took}"),
        0 => format!("{what} on 0 of {}", print::count(*nodes, "node")),
        _ => format!("{what} on {done} of {} after {took}", print::count(*nodes, "node")),
    });
    if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn pairs(texts: &[String], option: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (name, value) = super::pair(text, option, "NAME=VALUE")?;
        Ok((name.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

// === impl Files ===

impl Files {
    /// Every file in the order of their names, which decides between two definitions of an object.
    fn by_name(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        for path in &self.files {
            all.extend(files_of(path)?);
        }
        all.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
        Ok(all)
    }

    /// Every file by its name, with what `read` makes of it.
    fn read(
        &self,
        read: impl Fn(&Path) -> anyhow::Result<Option<String>>,
    ) -> anyhow::Result<BTreeMap<String, Option<String>>> {
        let mut files = BTreeMap::new();
        for path in &self.files {
            for file in files_of(path)? {
                let name = file.file_name().and_then(|name| name.to_str());
                let name = name.with_context(|| format!("{} has no name", file.display()))?;
                let text = read(&file)?;
                ensure!(
                    files.insert(name.to_owned(), text).is_none(),
                    "two files are called {name}: the lab knows manifests by their file names"
                );
            }
        }
        ensure!(!files.is_empty(), "no manifests (.yaml, .yml, .json)");
        Ok(files)
    }
}

fn files_of(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let is_manifest =
        |path: &PathBuf| path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    let entries =
        std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_manifest).collect())
}
