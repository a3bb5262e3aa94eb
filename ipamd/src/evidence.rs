//! What the container runtime still has, from libcni's result cache.
//!
//! libcni writes `<cache>/results/<network>-<container>-<interface>` after a successful ADD and removes it with DEL
//! (containernetworking/cni `libcni/api.go`, `cacheAdd`, `cacheDel`). containerd and CRI-O both use libcni, so this is
//! the runtime's state without a gRPC client in the daemon (docs/adr/0005).

use std::{fs, net::Ipv4Addr, path::PathBuf};

use serde::Deserialize;
use veni_core::wire::{Attachment, PodRef};

/// The runtime's cache.
#[derive(Debug, Clone)]
pub struct Evidence {
    results: PathBuf,
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
}

#[derive(Deserialize)]
struct CacheIp {
    address: String,
}

impl Evidence {
    /// Evidence from libcni's cache directory.
    #[must_use]
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { results: cache_dir.into().join("results") }
    }

    /// Whether the runtime still has `attachment`. An unreadable directory is no evidence of absence.
    #[must_use]
    pub fn runtime_has(&self, attachment: &Attachment) -> bool {
        let Attachment { network, container_id, ifname } = attachment;
        let file = self.results.join(format!("{network}-{container_id}-{ifname}"));
        file.try_exists().unwrap_or(true)
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
    let netns = PathBuf::from(file.netns);
    addresses.into_iter().next().map(|address| CachedAttachment { attachment, pod, address, netns })
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
    fn an_attachment_is_there_as_long_as_its_file_is() {
        let dir = tempfile::tempdir().unwrap();
        let evidence = Evidence::new(dir.path());
        let attachment = Attachment {
            network: "veni".parse().unwrap(),
            container_id: "c1".parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        };
        assert!(!evidence.runtime_has(&attachment));
        fs::create_dir(dir.path().join("results")).unwrap();
        fs::write(dir.path().join("results/veni-c1-eth0"), "{}").unwrap();
        assert!(evidence.runtime_has(&attachment));
    }
}
