//! Looking at the node. Nothing here decides what is right, and nothing is changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use veni_core::wire::inspect::{
    View,
    policy::{Diagnostic, Flows},
};

use crate::{
    cli::Paths,
    client::{self, Unanswered},
    http, links,
    standing::Policy,
};

/// What was found. A `String` error is the reason why something could not be looked at.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// `/proc/sys/kernel/osrelease`.
    pub(super) kernel: Result<String, String>,
    /// The kernel's configuration.
    pub(super) kernel_config: Result<String, String>,
    /// `/proc/mounts`.
    pub(super) mounts: Result<String, String>,
    pub(super) bpf_dir: PathBuf,
    /// What is pinned in `bpf_dir`.
    pub(super) pins: Result<Vec<String>, String>,
    /// By path under `/proc/sys`.
    pub(super) sysctls: BTreeMap<String, String>,
    pub(super) socket: PathBuf,
    pub(super) view: Result<View, Unanswered>,
    pub(super) policy: Policy,
    /// What is wrong with the objects that the daemon knows, but for pods of other nodes; empty when it did not say.
    pub(super) wrong_objects: Vec<Diagnostic>,
    /// Whether the nftables table is there.
    pub(super) nft_table: Result<bool, String>,
    pub(super) rules: Result<Vec<Rule>, String>,
    /// Routes by table.
    pub(super) routes: BTreeMap<u32, Result<Vec<Route>, String>>,
    pub(super) cni_conf_dir: PathBuf,
    /// Network configurations by name, sorted: runtimes take the first.
    pub(super) conflists: Result<Vec<(String, String)>, String>,
    pub(super) cni_bin_dir: PathBuf,
    /// Executable plugins.
    pub(super) plugins: Vec<String>,
}

/// An element of `ip -j rule show`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Rule {
    pub(super) priority: u32,
    pub(super) src: Option<String>,
    pub(super) dst: Option<String>,
    pub(super) dstlen: Option<u8>,
    pub(super) fwmark: Option<String>,
    pub(super) table: Option<String>,
}

/// An element of `ip -j route show`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Route {
    pub(super) dst: String,
}

pub(super) fn gather(socket: &Path, paths: &Paths) -> Facts {
    let mut view =
        client::inspect(socket, true).map_err(|error| crate::sooner(error, &paths.daemon));
    if let Ok(view) = &mut view {
        links::name(view);
    }
    let policy = match &view {
        Ok(_) => Policy::ask(&paths.daemon, socket),
        Err(_) => Policy::Unknown("needs ipamd's answer".to_owned()),
    };
    let wrong_objects = match (&view, policy.standing()) {
        (Ok(view), Some(standing)) if standing.diagnostics > 0 => wrong_objects(view, paths),
        _ => Vec::new(),
    };
    Facts {
        kernel: read("/proc/sys/kernel/osrelease").map(|release| release.trim().to_owned()),
        kernel_config: kernel_config(),
        mounts: read("/proc/mounts"),
        bpf_dir: paths.bpf_dir.clone(),
        pins: names(&paths.bpf_dir),
        sysctls: sysctls(view.as_ref().ok()),
        socket: socket.to_owned(),
        policy,
        wrong_objects,
        nft_table: nft_table(),
        rules: ip(&["rule", "show"]),
        routes: routes(view.as_ref().ok()),
        view,
        cni_conf_dir: paths.cni_conf_dir.clone(),
        conflists: conflists(&paths.cni_conf_dir),
        cni_bin_dir: paths.cni_bin_dir.clone(),
        plugins: executables(&paths.cni_bin_dir),
    }
}

/// Beside any part of the matrix, however small, the daemon tells all that is wrong with objects. Of pods that are not
/// here their own nodes tell.
fn wrong_objects(view: &View, paths: &Paths) -> Vec<Diagnostic> {
    let pods = view.addresses.iter().filter_map(|address| address.pod.as_ref());
    let here: BTreeSet<String> =
        pods.map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    let ask = |parameters: &[(&str, String)]| {
        let address = &paths.daemon.introspection;
        http::document::<Flows>(address, "/v1/policy/matrix", parameters).ok()
    };
    let narrowed = |pod: &String| ask(&[("from", pod.clone()), ("to", pod.clone())]);
    // A pod whose object is not here is refused.
    let flows = here.iter().take(4).find_map(narrowed).or_else(|| ask(&[]));
    let is_here =
        |wrong: &Diagnostic| wrong.object.strip_prefix("Pod ").is_none_or(|pod| here.contains(pod));
    let mut found = flows.map(|flows| flows.diagnostics).unwrap_or_default();
    found.retain(|wrong| !wrong.object.is_empty() && is_here(wrong) && !is_news(wrong));
    found
}

/// What the matrix says beside its verdicts that is not wrong with an object.
fn is_news(found: &Diagnostic) -> bool {
    found.message.ends_with("left out") || found.message.contains("is judged there")
}

fn read(path: impl AsRef<Path>) -> Result<String, String> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Result<Vec<String>, String> {
    let entries =
        fs::read_dir(dir).map_err(|error| format!("cannot read {}: {error}", dir.display()))?;
    let mut names: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn kernel_config() -> Result<String, String> {
    let compressed = run("zcat", &["/proc/config.gz"]).and_then(|done| {
        if done.ok { Ok(done.stdout) } else { Err("/proc/config.gz cannot be read".to_owned()) }
    });
    compressed.or_else(|error| {
        let release = read("/proc/sys/kernel/osrelease")?;
        read(format!("/boot/config-{}", release.trim()))
            .map_err(|other| format!("{error}; {other}"))
    })
}

fn sysctls(view: Option<&View>) -> BTreeMap<String, String> {
    let links = view.into_iter().flat_map(|view| &view.enis).filter_map(|eni| eni.ifname.as_ref());
    let of_links = links.map(|link| format!("net/ipv4/conf/{link}/rp_filter"));
    let all = ["net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter"].map(ToOwned::to_owned);
    let values = all.into_iter().chain(of_links).filter_map(|name| {
        let value = read(Path::new("/proc/sys").join(&name)).ok()?.trim().to_owned();
        Some((name, value))
    });
    values.collect()
}

/// The pods' table and the ENIs'.
fn routes(view: Option<&View>) -> BTreeMap<u32, Result<Vec<Route>, String>> {
    let Some(view) = view else {
        return BTreeMap::new();
    };
    let enis = view.enis.iter().filter(|eni| !eni.primary).map(|eni| eni.table);
    let tables = enis.chain([super::judge::table_base(Some(view))]);
    tables.map(|table| (table, ip(&["route", "show", "table", &table.to_string()]))).collect()
}

fn conflists(dir: &Path) -> Result<Vec<(String, String)>, String> {
    let endings = [".conf", ".conflist", ".json"];
    let names = names(dir)?;
    let ours = names.into_iter().filter(|name| endings.iter().any(|ending| name.ends_with(ending)));
    Ok(ours.map(|name| (name.clone(), read(dir.join(name)).unwrap_or_default())).collect())
}

fn executables(dir: &Path) -> Vec<String> {
    let executable = |name: &String| {
        fs::metadata(dir.join(name))
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    names(dir).unwrap_or_default().into_iter().filter(executable).collect()
}

/// What a program did.
struct Done {
    ok: bool,
    stdout: String,
    stderr: String,
}

fn run(program: &str, args: &[&str]) -> Result<Done, String> {
    let output = Command::new(program).args(args).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("`{program}` is not installed"),
        _ => format!("cannot run `{program}`: {error}"),
    })?;
    Ok(Done {
        ok: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn nft_table() -> Result<bool, String> {
    let done = run("nft", &["list", "table", "ip", "veni"])?;
    match (done.ok, done.stderr.contains("No such file")) {
        (true, _) => Ok(true),
        (false, true) => Ok(false),
        (false, false) => Err(format!("`nft list table ip veni`: {}", done.stderr.trim())),
    }
}

/// `ip -j -4 …`; a table that does not exist is an empty one.
fn ip<T: serde::de::DeserializeOwned>(args: &[&str]) -> Result<Vec<T>, String> {
    let done = run("ip", &[&["-j", "-4"], args].concat())?;
    let shown = args.join(" ");
    if !done.ok && done.stderr.contains("does not exist")
        || done.ok && done.stdout.trim().is_empty()
    {
        return Ok(Vec::new());
    }
    if !done.ok {
        return Err(format!("`ip {shown}`: {}", done.stderr.trim()));
    }
    serde_json::from_str(&done.stdout)
        .map_err(|error| format!("`ip -j {shown}` printed something else: {error}"))
}
