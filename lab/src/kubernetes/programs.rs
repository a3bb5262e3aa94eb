//! Where the cluster's programs are.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The programs that `hack/kubernetes.sh` builds, and those that `hack/setup.sh test` unpacks.
#[derive(Debug, Clone)]
pub struct Programs {
    kubernetes: PathBuf,
    containerd: PathBuf,
}

// === impl Programs ===

impl Programs {
    /// In `VENI_KUBERNETES_DIR` and `VENI_CONTAINERD_DIR`, by default `.tools/kubernetes` and `.tools/containerd` of this
    /// workspace.
    ///
    /// # Errors
    /// When one is not there; the message says what makes it.
    pub fn find() -> Result<Self> {
        let kubernetes = directory("VENI_KUBERNETES_DIR", ".tools/kubernetes");
        let containerd = directory("VENI_CONTAINERD_DIR", ".tools/containerd");
        for (dir, file, maker) in [
            (&kubernetes, "bin/kube-apiserver", "hack/kubernetes.sh"),
            (&kubernetes, "bin/pki", "hack/kubernetes.sh"),
            (&kubernetes, "dns/coredns", "hack/kubernetes.sh"),
            (&kubernetes, "policy-api/clusternetworkpolicies.yaml", "hack/kubernetes.sh"),
            (&containerd, "usr/bin/containerd", "hack/setup.sh test"),
            (&containerd, "usr/sbin/runc", "hack/setup.sh test"),
            (&containerd, "bin/busybox", "hack/setup.sh test"),
        ] {
            if !dir.join(file).exists() {
                let missing = dir.join(file).display().to_string();
                return Err(Error::invalid(format!("{missing} is missing: run {maker}")));
            }
        }
        Ok(Self { kubernetes, containerd })
    }

    /// A program of Kubernetes, etcd's, `helm`, `agnhost` or `pki`.
    #[must_use]
    pub fn kubernetes(&self, name: &str) -> PathBuf {
        self.kubernetes.join("bin").join(name)
    }

    /// The cluster's DNS server.
    #[must_use]
    pub fn coredns(&self) -> PathBuf {
        self.kubernetes.join("dns/coredns")
    }

    /// The definition of ClusterNetworkPolicy.
    #[must_use]
    pub fn cluster_network_policy(&self) -> PathBuf {
        self.kubernetes.join("policy-api/clusternetworkpolicies.yaml")
    }

    /// network-policy-api's own conformance tests (`hack/kubernetes.sh upstream`).
    ///
    /// # Errors
    /// When they are not there.
    pub fn policy_conformance(&self) -> Result<PathBuf> {
        let path = self.kubernetes.join("policy-conformance/conformance.test");
        if path.exists() {
            return Ok(path);
        }
        let missing = path.display();
        Err(Error::invalid(format!("{missing} is missing: run hack/kubernetes.sh upstream")))
    }

    /// veni's chart, of this workspace.
    #[must_use]
    pub fn chart(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/veni")
    }

    /// Kubernetes' own end-to-end tests (`hack/kubernetes.sh upstream`).
    ///
    /// # Errors
    /// When they are not there.
    pub fn e2e_test(&self) -> Result<PathBuf> {
        let path = self.upstream("e2e.test");
        if path.exists() {
            return Ok(path);
        }
        let missing = path.display();
        Err(Error::invalid(format!("{missing} is missing: run hack/kubernetes.sh upstream")))
    }

    /// Where containerd's own programs are.
    #[must_use]
    pub fn containerd_dirs(&self) -> [PathBuf; 2] {
        [self.containerd.join("usr/bin"), self.containerd.join("usr/sbin")]
    }

    /// A static busybox.
    #[must_use]
    pub fn busybox(&self) -> PathBuf {
        self.containerd.join("bin/busybox")
    }

    /// The reference CNI plugins.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.containerd.join("usr/lib/cni")
    }

    /// What `hack/kubernetes.sh upstream` makes.
    pub(super) fn upstream(&self, name: &str) -> PathBuf {
        self.kubernetes.join("upstream").join(name)
    }
}

fn directory(variable: &str, default: &str) -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(default);
    let dir = std::env::var_os(variable).map_or_else(default, PathBuf::from);
    std::fs::canonicalize(&dir).unwrap_or(dir)
}
