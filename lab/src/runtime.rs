//! The container runtime's side of CNI: executes the plugin as libcni does, and keeps libcni's result cache.
//!
//! Invariants: as in libcni, the cache entry of an attachment is written after a successful ADD and removed after a
//! successful DEL; a DEL gets the cached result as `prevResult`. The plugin runs in the node's network namespace with
//! nothing in its environment but `PATH` and the `CNI_*` variables.

use std::{
    ffi::OsString,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cluster::PodSpec,
    error::{Context as _, Error, Result, make_dir},
    ns::Namespace,
};

/// The network's name in the conflist.
pub const NETWORK: &str = "veni";
/// The interface inside every pod.
pub const IFNAME: &str = "eth0";
/// The conflist's version: what containerd 1.6 and the chained plugins speak.
const CNI_VERSION: &str = "1.0.0";

/// What a runtime knows on one node.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The node.
    pub node: Namespace,
    /// The plugin.
    pub plugin: PathBuf,
    /// libcni's cache (`VENI_CNI_CACHE_DIR`).
    pub cache_dir: PathBuf,
    /// The daemon's socket, named in the plugin's configuration.
    pub socket: PathBuf,
}

/// One sandbox: what the runtime passes to the plugin.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// The pod's name in the lab: `name`, or `namespace/name`.
    pub pod: String,
}

/// One execution of the plugin.
#[derive(Debug)]
pub struct Execution {
    /// From before the fork to after the exit.
    pub elapsed: Duration,
    /// What it printed on its standard output.
    pub stdout: Vec<u8>,
    /// What it printed on its standard error.
    pub stderr: Vec<u8>,
    /// Whether it exited with 0.
    pub success: bool,
}

/// A successful ADD.
#[derive(Debug, Clone)]
pub struct Added {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The result as the plugin printed it.
    pub result: Value,
    /// How long the plugin took, as the runtime sees it.
    pub elapsed: Duration,
}

// === impl Runtime ===

impl Runtime {
    /// ADD, then the cache entry.
    ///
    /// # Errors
    /// [`Error::Plugin`] when the plugin refuses.
    pub fn add(&self, sandbox: &Sandbox) -> Result<Added> {
        self.node.run(|| self.add_here(sandbox))
    }

    /// As [`Runtime::add`] on a thread that is in the node already.
    ///
    /// # Errors
    /// As [`Runtime::add`].
    pub fn add_here(&self, sandbox: &Sandbox) -> Result<Added> {
        let execution = self.execute("ADD", sandbox, None)?;
        let result = execution.json("ADD", sandbox)?;
        let address = result["ips"][0]["address"]
            .as_str()
            .and_then(|a| a.split('/').next())
            .and_then(|a| a.parse().ok());
        let address = address
            .ok_or_else(|| plugin_error("ADD", sandbox, format!("no address in {result}")))?;
        self.write_cache(sandbox, &result)?;
        Ok(Added { address, result, elapsed: execution.elapsed })
    }

    /// DEL with the cached result, then the cache entry goes.
    ///
    /// # Errors
    /// [`Error::Plugin`] when the plugin refuses.
    pub fn del(&self, sandbox: &Sandbox) -> Result<Duration> {
        self.node.run(|| self.del_here(sandbox))
    }

    /// As [`Runtime::del`] on a thread that is in the node already.
    ///
    /// # Errors
    /// As [`Runtime::del`].
    pub fn del_here(&self, sandbox: &Sandbox) -> Result<Duration> {
        let execution = self.execute("DEL", sandbox, self.cached(sandbox))?;
        execution.check("DEL", sandbox)?;
        match std::fs::remove_file(self.cache_file(sandbox)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
                .context(|| format!("cannot remove {}", self.cache_file(sandbox).display())),
            _ => Ok(execution.elapsed),
        }
    }

    /// CHECK with the cached result.
    ///
    /// # Errors
    /// [`Error::Plugin`] when something is not as it was.
    pub fn check(&self, sandbox: &Sandbox) -> Result<()> {
        self.node
            .run(|| self.execute("CHECK", sandbox, self.cached(sandbox))?.check("CHECK", sandbox))
    }

    /// Executes the plugin from the calling thread, which is in the node.
    ///
    /// # Errors
    /// When it cannot be started. A refusal is in the [`Execution`].
    pub fn execute(
        &self,
        operation: &'static str,
        sandbox: &Sandbox,
        previous: Option<Value>,
    ) -> Result<Execution> {
        let input = self.configuration(previous).to_string();
        execute(&self.plugin, &[], &self.environment(operation, sandbox), input.as_bytes())
    }

    /// The plugin's configuration, as libcni makes it of the conflist.
    #[must_use]
    pub fn configuration(&self, previous: Option<Value>) -> Value {
        let mut configuration = json!({"cniVersion": CNI_VERSION, "name": NETWORK, "type": "veni-cni", "socket": self.socket});
        if let Some(previous) = previous {
            configuration["prevResult"] = previous;
        }
        configuration
    }

    /// Puts the network's conflist and the plugin where a runtime looks for them. The lab's own runtime needs
    /// neither: they are there for whoever looks at the node (`venictl doctor`).
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn install(&self, conf_dir: &Path, bin_dir: &Path) -> Result<()> {
        let mut plugin = self.configuration(None);
        let fields = plugin.as_object_mut().into_iter();
        fields.for_each(|fields| fields.retain(|name, _| name != "cniVersion" && name != "name"));
        let conflist = json!({"cniVersion": CNI_VERSION, "name": NETWORK, "plugins": [plugin]});
        let file = conf_dir.join("10-veni.conflist");
        std::fs::write(&file, conflist.to_string())
            .context(|| format!("cannot write {}", file.display()))?;
        let link = bin_dir.join("veni-cni");
        std::os::unix::fs::symlink(&self.plugin, &link)
            .context(|| format!("cannot make {}", link.display()))
    }

    /// The plugin's whole environment.
    #[must_use]
    pub fn environment(&self, operation: &str, sandbox: &Sandbox) -> Vec<(&'static str, OsString)> {
        let args = arguments(sandbox).map(|(name, value)| format!("{name}={value}")).join(";");
        vec![
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            ("CNI_COMMAND", operation.into()),
            ("CNI_CONTAINERID", sandbox.container_id.clone().into()),
            ("CNI_NETNS", sandbox.netns.clone().into()),
            ("CNI_IFNAME", IFNAME.into()),
            ("CNI_ARGS", args.into()),
            ("CNI_PATH", self.plugin.parent().unwrap_or(Path::new("/opt/cni/bin")).into()),
        ]
    }

    fn cache_file(&self, sandbox: &Sandbox) -> PathBuf {
        self.cache_dir.join("results").join(format!("{NETWORK}-{}-{IFNAME}", sandbox.container_id))
    }

    /// The cached result of an attachment.
    fn cached(&self, sandbox: &Sandbox) -> Option<Value> {
        let text = std::fs::read(self.cache_file(sandbox)).ok()?;
        let entry: Value = serde_json::from_slice(&text).ok()?;
        entry.get("result").cloned()
    }

    /// libcni's `cniCacheV1` (containernetworking/cni, libcni/api.go, `cachedInfo`), without the configuration's copy.
    fn write_cache(&self, sandbox: &Sandbox, result: &Value) -> Result<()> {
        let file = self.cache_file(sandbox);
        let entry = json!({
            "kind": "cniCacheV1",
            "containerId": sandbox.container_id,
            "ifName": IFNAME,
            "networkName": NETWORK,
            "cniArgs": arguments(sandbox),
            "result": result,
        });
        make_dir(&self.cache_dir.join("results"))?;
        std::fs::write(&file, entry.to_string())
            .context(|| format!("cannot write {}", file.display()))
    }
}

// === impl Sandbox ===

impl Sandbox {
    /// The pod's `metadata.uid`. A pod of the lab has one sandbox in its life, so that the container's id tells it.
    #[must_use]
    pub fn uid(&self) -> String {
        let id = &self.container_id;
        let first = id.get(..8).unwrap_or(id);
        format!("{first}-0000-4000-8000-{}", id.get(id.len().saturating_sub(12)..).unwrap_or(id))
    }
}

// === impl Execution ===

impl Execution {
    fn check(&self, operation: &'static str, sandbox: &Sandbox) -> Result<()> {
        if self.success {
            return Ok(());
        }
        let error: Value = serde_json::from_slice(&self.stdout).unwrap_or_default();
        let message = match (error["msg"].as_str(), error["details"].as_str()) {
            (Some(message), None | Some("")) => message.to_owned(),
            (Some(message), Some(details)) => format!("{message} ({details})"),
            (None, _) => {
                format!(
                    "{}{}",
                    String::from_utf8_lossy(&self.stdout),
                    String::from_utf8_lossy(&self.stderr)
                )
            }
        };
        Err(plugin_error(operation, sandbox, message))
    }

    fn json(&self, operation: &'static str, sandbox: &Sandbox) -> Result<Value> {
        self.check(operation, sandbox)?;
        let parsed = serde_json::from_slice(&self.stdout);
        parsed.map_err(|error| {
            plugin_error(operation, sandbox, format!("the result is not JSON: {error}"))
        })
    }
}

/// `CNI_ARGS`, as containerd has them.
fn arguments(sandbox: &Sandbox) -> [(&'static str, String); 5] {
    let PodSpec { namespace, name, .. } = PodSpec::called(&sandbox.pod);
    [
        ("IgnoreUnknown", "1".to_owned()),
        ("K8S_POD_NAMESPACE", namespace),
        ("K8S_POD_NAME", name),
        ("K8S_POD_INFRA_CONTAINER_ID", sandbox.container_id.clone()),
        ("K8S_POD_UID", sandbox.uid()),
    ]
}

/// Forks and executes `program` as a runtime does: input and outputs are pipes, nothing is inherited but `environment`.
///
/// # Errors
/// When it cannot be started.
pub fn execute(
    program: &Path,
    args: &[&str],
    environment: &[(&'static str, OsString)],
    input: &[u8],
) -> Result<Execution> {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let what = || format!("cannot execute {}", program.display());
    let start = Instant::now();
    let mut child = command.spawn().context(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that reads no input may be gone already: its exit status tells.
        drop(stdin.write_all(input));
    }
    let output = child.wait_with_output().context(what)?;
    let elapsed = start.elapsed();
    Ok(Execution {
        elapsed,
        stdout: output.stdout,
        stderr: output.stderr,
        success: output.status.success(),
    })
}

fn plugin_error(operation: &'static str, sandbox: &Sandbox, message: String) -> Error {
    Error::Plugin { operation, pod: sandbox.pod.clone(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_plugins_words() {
        let sandbox = Sandbox {
            container_id: "c".to_owned(),
            netns: PathBuf::from("/run/netns/c"),
            pod: "web".to_owned(),
        };
        for (stdout, told) in [
            (r#"{"code":11,"msg":"no address"}"#, "no address"),
            (r#"{"code":11,"msg":"no address","details":""}"#, "no address"),
            (r#"{"code":11,"msg":"no address","details":"full"}"#, "no address (full)"),
            ("killed", "killed"),
        ] {
            let (elapsed, stdout) = (Duration::ZERO, stdout.as_bytes().to_vec());
            let execution = Execution { elapsed, stdout, stderr: Vec::new(), success: false };
            let error = execution.check("ADD", &sandbox).unwrap_err();
            assert_eq!(error.to_string(), format!("veni-cni ADD of web: {told}"));
        }
    }
}
