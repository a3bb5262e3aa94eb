//! Where policy's objects come from: a folder of manifests, or the cluster's API server.
//!
//! `VENI_MANIFEST_DIR` comes first, because it is veni's own; then `KUBECONFIG`, then the cluster that the daemon runs in.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use tokio::sync::{mpsc, watch};
use veni_core::{config::Config, wire::inspect::policy::Diagnostic};
use veni_manifests::watch as folder;
use veni_policy::{
    change::PodKey,
    object::{Key, Object},
};

#[cfg(feature = "kube")]
use crate::following::{Heard, Known};
use crate::{following, placement, report::Tell};

use super::ranges::Cidrs;

/// Asks for a pod of this name, with this UID where it is known, until then.
pub(super) type Ask = Box<dyn Fn(&PodKey, Option<&str>, Instant) + Send>;

/// What of the cluster is about this node's own network.
#[derive(Debug, Clone)]
pub struct Beside {
    /// What decides where its ENIs are made; `None` before it was read.
    pub placing: watch::Receiver<Option<placement::Objects>>,
    /// What decides the pool's settings.
    pub settings: following::Source,
    /// Tells the cluster.
    pub teller: Arc<dyn Tell>,
}

/// What changed.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// New and changed objects.
    pub(super) apply: Vec<Object>,
    /// Objects that are gone.
    pub(super) delete: Vec<Key>,
    /// Everything that is wrong now.
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Whether all that there is was read once.
    pub(super) complete: bool,
    /// Pods that are told later, and what each waits for.
    pub(super) held: BTreeMap<PodKey, String>,
}

/// A source.
#[derive(Debug)]
pub(super) enum Source {
    /// A folder.
    Folder(mpsc::Receiver<folder::Batch>, String),
    /// An API server.
    #[cfg(feature = "kube")]
    Cluster(veni_watch::Watch),
    /// None, on a node that isolates pods: nothing is ever read, so that what is in force stays, and new pods are closed.
    Nowhere {
        /// That was told.
        told: bool,
    },
}

impl Source {
    /// Whether the settings or the environment name one.
    ///
    /// # Errors
    /// When they name a cluster, and this daemon cannot read one.
    pub(super) fn is_named(config: &Config) -> Result<bool> {
        named(config.policy.manifest_dir.is_some(), in_cluster(), cfg!(feature = "kube"))
    }

    /// None.
    pub(super) const fn nowhere() -> Self {
        Self::Nowhere { told: false }
    }

    /// Follows it.
    ///
    /// # Errors
    /// When it cannot be followed.
    pub(super) fn follow(config: &Config, node: &str) -> Result<Self> {
        let Some(folder) = &config.policy.manifest_dir else { return cluster(node) };
        let batches = folder::watch(Path::new(folder))
            .with_context(|| format!("watching VENI_MANIFEST_DIR={folder}"))?;
        Ok(Self::Folder(batches, folder.clone()))
    }

    pub(super) const fn is_folder(&self) -> bool {
        matches!(self, Self::Folder(..))
    }

    /// Whether what it does not have at once it will not have before somebody mends something.
    pub(super) const fn tells_at_once(&self) -> bool {
        matches!(self, Self::Folder(..) | Self::Nowhere { .. })
    }

    /// Where the Services' addresses are, where that comes with it; `None` before it was read.
    pub(super) fn service_cidrs(&self) -> Option<watch::Receiver<Option<Cidrs>>> {
        match self {
            Self::Folder(..) | Self::Nowhere { .. } => None,
            #[cfg(feature = "kube")]
            Self::Cluster(watch) => Some(watch.service_cidrs.clone()),
        }
    }

    /// Asks for one pod. A folder has told all that it has.
    pub(super) fn ask(&self) -> Ask {
        match self {
            Self::Folder(..) | Self::Nowhere { .. } => Box::new(|_, _, _| {}),
            #[cfg(feature = "kube")]
            Self::Cluster(watch) => {
                let asking = watch.asking.clone();
                Box::new(move |pod, uid, until| asking.pod(&pod.namespace, &pod.name, uid, until))
            }
        }
    }

    /// What comes with it of this node's own network.
    pub(super) fn beside(&self) -> Option<Beside> {
        match self {
            Self::Folder(..) | Self::Nowhere { .. } => None,
            #[cfg(feature = "kube")]
            Self::Cluster(watch) => {
                let placing = read_out(watch.configuration.clone(), placed);
                let settings = read_out(watch.configuration.clone(), followed);
                let (reports, costs) = (watch.reports.clone(), watch.costs.clone());
                let teller = Arc::new(super::cluster::Cluster { reports, costs });
                Some(Beside { placing, settings, teller })
            }
        }
    }

    /// What changes next; `None`: it is not followed any more.
    pub(super) async fn next(&mut self) -> Option<Batch> {
        match self {
            Self::Folder(batches, _) => batches.recv().await.map(|batch| {
                for diagnostic in &batch.diagnostics {
                    tracing::warn!(diagnostic = %diagnostic, "manifest");
                }
                let diagnostics = batch.diagnostics.into_iter().map(Into::into).collect();
                let (apply, delete, complete) = (batch.apply, batch.delete, batch.complete);
                Batch { apply, delete, diagnostics, complete, held: BTreeMap::new() }
            }),
            #[cfg(feature = "kube")]
            Self::Cluster(watch) => watch.batches.recv().await.map(|batch| {
                let veni_watch::Batch { apply, delete, diagnostics, complete, held } = batch;
                for Diagnostic { object, field, message, .. } in &diagnostics {
                    tracing::debug!(object, field, message, "object");
                }
                let pod = |key: Key| PodKey::new(&key.namespace, &key.name);
                let held = held.into_iter().map(|(key, waits)| (pod(key), waits)).collect();
                Batch { apply, delete, diagnostics, complete, held }
            }),
            Self::Nowhere { told } => {
                if std::mem::replace(told, true) {
                    return std::future::pending().await;
                }
                tracing::error!(next = NEXT, UNNAMED);
                let message = format!("{UNNAMED}; {NEXT}");
                let object = "the source of policy".to_owned();
                let diagnostics = vec![Diagnostic { object, message, ..Diagnostic::default() }];
                Some(Batch { diagnostics, ..Batch::default() })
            }
        }
    }
}

/// What holds without a source on a node that isolates pods.
const UNNAMED: &str = "nothing says where policy comes from: what is in force stays as it is, and new pods are closed";
/// What to do about it.
const NEXT: &str = "set VENI_MANIFEST_DIR, or have the daemon run in its cluster (KUBERNETES_SERVICE_HOST) or read it \
                    (KUBECONFIG); to end policy on this node set NETWORK_POLICY_ENFORCING_MODE=none";

/// A daemon in a cluster that it cannot read must not look like one without policies.
fn named(folder: bool, cluster: bool, client: bool) -> Result<bool> {
    anyhow::ensure!(
        folder || client || !cluster,
        "KUBECONFIG or KUBERNETES_SERVICE_HOST names a cluster, and this veni-ipamd is built without a Kubernetes client (cargo \
         feature kube): its policies would not be enforced. Use an image that has it, or set VENI_MANIFEST_DIR. Pods keep \
         what is in force"
    );
    Ok(folder || cluster)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(_, folder) => write!(f, "VENI_MANIFEST_DIR={folder}"),
            #[cfg(feature = "kube")]
            Self::Cluster(_) => f.write_str("API server"),
            Self::Nowhere { .. } => f.write_str("no source"),
        }
    }
}

#[cfg(feature = "kube")]
fn in_cluster() -> bool {
    veni_watch::Access::from_env().is_some()
}

#[cfg(not(feature = "kube"))]
fn in_cluster() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_set("KUBECONFIG") || is_set("KUBERNETES_SERVICE_HOST")
}

#[cfg(feature = "kube")]
fn cluster(node: &str) -> Result<Source> {
    let access = veni_watch::Access::from_env()
        .context("neither KUBECONFIG nor KUBERNETES_SERVICE_HOST is set any more")?;
    tracing::info!(?access, node, "policy comes from the API server");
    let watch = veni_watch::start(access, node, veni_watch::Settings::default())
        .context("watching the API server")?;
    Ok(Source::Cluster(watch))
}

/// Follows what `read` takes out of it; `None` before that is there.
#[cfg(feature = "kube")]
fn read_out<T: Send + Sync + 'static>(
    mut configuration: watch::Receiver<Arc<veni_watch::Configuration>>,
    read: fn(&veni_watch::Configuration) -> Option<T>,
) -> watch::Receiver<Option<T>> {
    let (sender, parts) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let now = configuration.borrow_and_update().clone();
            if let Some(heard) = read(&now) {
                sender.send_replace(Some(heard));
            }
            if configuration.changed().await.is_err() {
                return;
            }
        }
    });
    parts
}

/// `None`: the own Node or the NodeNetworkConfigs were not read yet.
#[cfg(feature = "kube")]
fn followed(configuration: &veni_watch::Configuration) -> Option<Heard> {
    let node = configuration.node.as_ref()?;
    let all = configuration.node_network_configs.as_ref()?.iter();
    let configs = all.map(|(name, known)| {
        let problems: Vec<_> = known.problems.iter().map(ToString::to_string).collect();
        let known = Known {
            uid: known.uid.clone(),
            generation: known.generation,
            value: known.value.clone(),
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
        };
        (name.clone(), known)
    });
    Some(Heard { labels: node.labels.clone(), configs: configs.collect() })
}

/// `None`: the own Node or the ENIConfigs were not read yet.
#[cfg(feature = "kube")]
fn placed(configuration: &veni_watch::Configuration) -> Option<placement::Objects> {
    let (node, all) = (configuration.node.as_ref()?, configuration.eni_configs.as_ref()?);
    let eni_configs = all.iter().map(|(name, known)| {
        let problems: Vec<_> = known.problems.iter().map(ToString::to_string).collect();
        let sound = known.value.clone().filter(|_| problems.is_empty());
        (name.clone(), sound.ok_or_else(|| problems.join("; ")))
    });
    Some(placement::Objects {
        labels: node.labels.clone(),
        annotations: node.annotations.clone(),
        eni_configs: eni_configs.collect(),
    })
}

#[cfg(not(feature = "kube"))]
fn cluster(_: &str) -> Result<Source> {
    anyhow::bail!("built without a Kubernetes client: set VENI_MANIFEST_DIR")
}

#[cfg(test)]
mod naming {
    use super::named;

    #[test]
    fn a_daemon_without_a_client_does_not_start_in_a_cluster() {
        let check = |folder, cluster, client, expected: Option<bool>| {
            assert_eq!(
                named(folder, cluster, client).ok(),
                expected,
                "{folder} {cluster} {client}"
            );
        };
        check(false, true, false, None);
        check(true, true, false, Some(true));
        check(false, true, true, Some(true));
        check(false, false, false, Some(false));
        check(false, false, true, Some(false));
    }
}

#[cfg(all(test, feature = "kube"))]
mod tests {
    use serde_json::json;
    use veni_eniconfig_crd::{EniConfig, eni_config::Keys};
    use veni_watch::{Configuration, NodeMetadata};

    use super::*;

    #[test]
    fn the_clusters_objects_choose_once_both_the_node_and_the_eni_configs_were_read() {
        let object = json!({"metadata": {"name": "pods"}, "spec": {"subnet": "subnet-1"}});
        let sound = EniConfig::parse(&object).unwrap();
        let broken =
            EniConfig::parse(&json!({"metadata": {"name": "pods"}, "spec": {}})).unwrap_err();
        let known = |problems| {
            let (generation, uid) = (1, String::new());
            veni_watch::Known { value: Some(sound.clone()), problems, generation, uid }
        };
        let configuration = |problems| Configuration {
            node: Some(NodeMetadata {
                annotations: [("k8s.amazonaws.com/eniConfig".to_owned(), "pods".to_owned())].into(),
                ..NodeMetadata::default()
            }),
            eni_configs: Some([("pods".to_owned(), known(problems))].into()),
            ..Configuration::default()
        };
        let choose =
            |heard: &Configuration| placed(heard).map(|all| all.choose("n", &Keys::default()));
        assert_eq!(choose(&configuration(Vec::new())), Some(Ok(sound.clone())));
        let refused = choose(&configuration(broken)).unwrap().unwrap_err();
        assert!(refused.contains("cannot be used") && refused.contains("spec.subnet"), "{refused}");
        let unread = Configuration { eni_configs: None, ..configuration(Vec::new()) };
        assert_eq!(choose(&unread), None);
        let unread = Configuration { node: None, ..configuration(Vec::new()) };
        assert_eq!(choose(&unread), None);
    }
}
