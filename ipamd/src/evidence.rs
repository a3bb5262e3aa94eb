//! What the container runtime still has, from libcni's result cache.
//!
//! libcni writes `<cache>/results/<network>-<container>-<interface>` after a successful ADD and removes it with DEL
//! (containernetworking/cni `libcni/api.go`, `cacheAdd`, `cacheDel`). containerd and CRI-O both use libcni, so this is
//! the runtime's state without a gRPC client in the daemon (docs/adr/0005).
//!
//! Invariant: a directory that is not there, or cannot be read, says nothing: neither that the runtime has a pod nor
//! that it has none. A node with pods has one; where it has not, the runtime keeps its cache elsewhere.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Deserialize;
use veni_core::wire::{Attachment, PodRef};

/// The runtime's cache.
#[derive(Debug, Clone)]
pub struct Evidence {
    results: PathBuf,
    warned: Arc<AtomicBool>,
}

/// An attachment that the runtime has, with what its result says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedAttachment {
    /// The key.
    pub attachment: Attachment,
    /// The pod.
    pub pod: PodRef,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The links of the result that are on the node; empty where it names none.
    host_ifnames: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheFile {
    container_id: String,
    if_name: String,
    network_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    netns: String,
    result: CacheResult,
}

#[derive(Deserialize)]
struct CacheResult {
    #[serde(default)]
    ips: Vec<CacheIp>,
    #[serde(default)]
    interfaces: Vec<CacheInterface>,
}

#[derive(Deserialize)]
struct CacheInterface {
    name: String,
    /// Empty for a link of the node.
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct CacheIp {
    address: String,
}

impl CachedAttachment {
    /// Whether this is what the node shows as `host_ifname` with `address`: an entry that was left behind names another
    /// link than the pod that has the address now.
    #[must_use]
    pub fn is(&self, address: Ipv4Addr, host_ifname: &str) -> bool {
        self.address == address
            && (self.host_ifnames.is_empty() || self.host_ifnames.iter().any(|n| n == host_ifname))
    }
}

impl Evidence {
    /// Evidence from libcni's cache directory.
    #[must_use]
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { results: cache_dir.into().join("results"), warned: Arc::default() }
    }

    /// Whether the runtime may still have `attachment`: false only when the directory is there and has no entry.
    #[must_use]
    pub fn runtime_has(&self, attachment: &Attachment) -> bool {
        if let Err(error) = fs::metadata(&self.results) {
            self.warn_once(&error);
            return true;
        }
        self.file(attachment).try_exists().unwrap_or(true)
    }

    /// Whether the runtime has the result of this ADD for sure: its plugin is done.
    #[must_use]
    pub fn has_result(&self, attachment: &Attachment) -> bool {
        self.file(attachment).try_exists().unwrap_or(false)
    }

    fn file(&self, attachment: &Attachment) -> PathBuf {
        let Attachment { network, container_id, ifname } = attachment;
        self.results.join(format!("{network}-{container_id}-{ifname}"))
    }

    fn warn_once(&self, error: &std::io::Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            let next = "set VENI_CNI_CACHE_DIR to the directory in which the container runtime's libcni keeps `results`, \
                        and mount it into ipamd's container";
            tracing::warn!(%error, results = %self.results.display(), next,
                "the runtime's results cannot be read: addresses of pods that vanish without a DEL are kept");
        }
    }

    /// Everything that the runtime has with an IPv4 address.
    #[must_use]
    pub fn attachments(&self) -> Vec<CachedAttachment> {
        let Ok(entries) = fs::read_dir(&self.results) else { return Vec::new() };
        entries.flatten().filter_map(|entry| parse(&fs::read(entry.path()).ok()?)).collect()
    }
}

fn parse(bytes: &[u8]) -> Option<CachedAttachment> {
    let file: CacheFile = serde_json::from_slice(bytes).ok()?;
    let attachment = Attachment {
        network: file.network_name.parse().ok()?,
        container_id: file.container_id.parse().ok()?,
        ifname: file.if_name.parse().ok()?,
    };
    let addresses =
        file.result.ips.iter().filter_map(|ip| ip.address.split('/').next()?.parse().ok());
    let argument = |name: &str| {
        file.cni_args.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    let pod = PodRef {
        namespace: argument("K8S_POD_NAMESPACE").unwrap_or_default(),
        name: argument("K8S_POD_NAME").unwrap_or_default(),
        uid: argument("K8S_POD_UID"),
    };
    let on_node = file.result.interfaces.into_iter().filter(|i| i.sandbox.is_empty());
    let host_ifnames = on_node.map(|interface| interface.name).collect();
    let netns = PathBuf::from(file.netns);
    let address = addresses.into_iter().next()?;
    Some(CachedAttachment { attachment, pod, address, netns, host_ifnames })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_result_names_the_attachment_its_pod_and_address() {
        let json = br#"{"kind":"cniCacheV1","containerId":"c1","config":"e30=","ifName":"eth0","networkName":"veni",
            "netns":"/run/netns/a","cniArgs":[["K8S_POD_NAMESPACE","ns"],["K8S_POD_NAME","p"]],
            "result":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.9/32"}]}}"#;
        let cached = parse(json).unwrap();
        assert_eq!(cached.address, Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!((cached.pod.namespace.as_str(), cached.pod.name.as_str()), ("ns", "p"));
        assert!(parse(b"{}").is_none() && parse(b"").is_none());
    }

    #[test]
    fn an_entry_of_another_link_is_not_the_pod_that_has_its_address_now() {
        let json = |interfaces: &str| {
            format!(
                r#"{{"containerId":"c1","ifName":"eth0","networkName":"veni","result":{{"ips":[{{"address":"10.0.0.9/32"}}],"interfaces":{interfaces}}}}}"#
            )
        };
        let with_link = json(r#"[{"name":"eni1"},{"name":"eth0","sandbox":"/run/netns/a"}]"#);
        for (json, address, link, expect) in [
            (&with_link, [10, 0, 0, 9], "eni1", true),
            (&with_link, [10, 0, 0, 9], "eni2", false),
            (&with_link, [10, 0, 0, 9], "eth0", false),
            (&with_link, [10, 0, 0, 8], "eni1", false),
            (&json("[]"), [10, 0, 0, 9], "eni2", true),
        ] {
            let cached = parse(json.as_bytes()).unwrap();
            assert_eq!(cached.is(address.into(), link), expect, "{json} as {link}");
        }
    }

    #[test]
    fn an_attachment_is_there_as_long_as_its_file_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("results")).unwrap();
        let evidence = Evidence::new(dir.path());
        assert!(!evidence.runtime_has(&attachment()));
        fs::write(dir.path().join("results/veni-c1-eth0"), "{}").unwrap();
        assert!(evidence.runtime_has(&attachment()));
        fs::remove_file(dir.path().join("results/veni-c1-eth0")).unwrap();
        assert!(!evidence.runtime_has(&attachment()));
        assert!(!evidence.warned.load(Ordering::Relaxed));
    }

    #[test]
    fn a_missing_directory_is_no_evidence_that_a_pod_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let evidence = Evidence::new(dir.path());
        assert!(evidence.runtime_has(&attachment()));
        assert!(evidence.warned.load(Ordering::Relaxed), "a person is told");
        fs::create_dir(dir.path().join("results")).unwrap();
        assert!(!evidence.runtime_has(&attachment()));
    }

    fn attachment() -> Attachment {
        Attachment {
            network: "veni".parse().unwrap(),
            container_id: "c1".parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        }
    }
}
