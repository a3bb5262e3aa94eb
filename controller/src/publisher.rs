//! Publishes the security groups that are named in the cluster, resolved, for all nodes.
//!
//! A group is written when it changes. A heartbeat of its own, one small object a minute, says that there is a leader and that
//! all that is published and not marked as stale is as EC2 has it. It is written only after all has been brought up to date;
//! nodes that miss it ask EC2 themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use tokio::{
    select,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use veni_core::{chain::chain, id::SecurityGroupId};
use veni_eniconfig_crd::resolved_security_group::{
    HEARTBEAT, Heartbeat, ResolvedSecurityGroupSpec,
};
use veni_provider::Cloud;
use veni_security_groups::{Limits, Resolver, SecurityGroups as _, Settings, answered};

use crate::{
    elector::Fence,
    groups::{Objects, desired, marks},
    metrics::Metrics,
    named::Named,
};

/// Between two heartbeats.
const BEAT: Duration = Duration::from_secs(60);
/// How long a new leader waits for EC2 before it says what it does not know.
const FIRST: Duration = Duration::from_secs(30);
/// How often the groups' standing is looked at, which no change of their content tells.
const GLANCE: Duration = Duration::from_secs(5);
/// How long a request may take.
const CALL: Duration = Duration::from_secs(10);
/// Changes that come within this time are written together.
const GATHER: Duration = Duration::from_secs(1);

/// It.
#[derive(Debug)]
pub struct Publisher {
    api: Api<DynamicObject>,
    kind: ApiResource,
    named: watch::Receiver<Named>,
    leader: String,
    metrics: Arc<Metrics>,
}

/// What there is, with the versions.
type Found = BTreeMap<String, (String, ResolvedSecurityGroupSpec)>;

/// Why nothing more is written now.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("not the leader any more, or not surely")]
    Fenced,
    #[error("{0}")]
    Failed(String),
}

impl Publisher {
    /// Publishes what is `named`, as `leader`.
    #[must_use]
    pub fn new(
        client: Client,
        named: watch::Receiver<Named>,
        leader: String,
        metrics: Arc<Metrics>,
    ) -> Self {
        let kind = GroupVersionKind::gvk("veni.dev", "v1alpha1", "ResolvedSecurityGroup");
        let kind = ApiResource::from_gvk_with_plural(&kind, "resolvedsecuritygroups");
        Self { api: Api::all_with(client, &kind), kind, named, leader, metrics }
    }

    /// Publishes as long as it is let.
    pub async fn run<C: Cloud>(mut self, cloud: Arc<C>, seed: u64, fence: &impl Fence) {
        // For all nodes together. Half of a node's interval: what a node learns is as old as what it would read itself.
        let limits = Limits { groups: 10_000, members: 1 << 20, ..Limits::default() };
        let settings = Settings { seed, refresh_secs: 30, limits, ..Settings::default() };
        let (resolver, driver) = Resolver::new(cloud, settings);
        let _driver = Guard(tokio::spawn(driver.run()).abort_handle());
        let mut snapshots = resolver.subscribe();
        let wanted = self.wanted().await;
        resolver.want(wanted.clone());
        drop(timeout(FIRST, answered(&mut snapshots, &wanted)).await);
        let mut beat_at = Instant::now();
        let mut trouble = String::new();
        loop {
            let wanted = self.wanted().await;
            resolver.want(wanted.clone());
            let snapshot = snapshots.borrow_and_update().clone();
            let statuses = resolver.status();
            let beats = Instant::now() >= beat_at;
            let make = |existing: &Objects| desired(&wanted, &snapshot, &statuses, existing);
            let synced = self.sync(make, beats, fence).await;
            self.metrics.published(synced.is_ok(), wanted.len());
            match synced {
                Ok(()) => {
                    trouble.clear();
                    beat_at = if beats { Instant::now() + BEAT } else { beat_at };
                }
                Err(error) => {
                    told_once(&mut trouble, &error);
                    beat_at = Instant::now() + CALL;
                    sleep(CALL).await;
                }
            }
            let written = marks(&statuses);
            loop {
                select! {
                    _ = snapshots.changed() => break,
                    changed = self.named.changed() => if changed.is_err() { return } else { break },
                    () = sleep_until(beat_at) => break,
                    () = sleep(GLANCE) => if marks(&resolver.status()) != written { break },
                }
            }
            sleep(GATHER).await;
        }
    }

    async fn wanted(&mut self) -> BTreeSet<SecurityGroupId> {
        loop {
            let named = self.named.borrow_and_update().groups();
            if let Some(groups) = named {
                return groups;
            }
            if self.named.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Brings the objects up to date, and beats.
    async fn sync(
        &self,
        make: impl Fn(&Objects) -> Objects,
        beats: bool,
        fence: &impl Fence,
    ) -> Result<(), Stop> {
        let mut found = self.list().await?;
        let heartbeat = found.remove(HEARTBEAT);
        let existing = found.iter().map(|(name, (_, spec))| (name.clone(), spec.clone())).collect();
        let wanted = make(&existing);
        for (name, spec) in &wanted {
            match found.get(name) {
                Some((_, is)) if is == spec => {}
                Some((version, _)) => self.write(name, Some(version), spec, fence).await?,
                None => self.write(name, None, spec, fence).await?,
            }
        }
        for name in existing.keys().filter(|name| !wanted.contains_key(*name)) {
            self.delete(name, fence).await?;
        }
        if beats {
            let beat = Heartbeat {
                leader: self.leader.clone(),
                at_secs: Timestamp::now().as_second(),
                every_secs: u32::try_from(BEAT.as_secs()).unwrap_or(u32::MAX),
            };
            let spec = ResolvedSecurityGroupSpec { heartbeat: Some(beat), group: None };
            let version = heartbeat.as_ref().map(|(version, _)| version);
            self.write(HEARTBEAT, version, &spec, fence).await?;
        }
        Ok(())
    }

    async fn list(&self) -> Result<Found, Stop> {
        let (mut found, mut params) = (Found::new(), ListParams::default().limit(100));
        loop {
            let page = bounded(self.api.list(&params)).await?;
            for object in page.items {
                let spec = object.data.get("spec").cloned().unwrap_or_default();
                // What another version wrote is written anew.
                let spec = serde_json::from_value(spec).unwrap_or_default();
                let version = object.resource_version().unwrap_or_default();
                found.insert(object.name_any(), (version, spec));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(found),
            }
        }
    }

    /// Replaced only if it has still this version; made, if there is none.
    async fn write(
        &self,
        name: &str,
        version: Option<&String>,
        spec: &ResolvedSecurityGroupSpec,
        fence: &impl Fence,
    ) -> Result<(), Stop> {
        fenced(fence).await?;
        let mut object = DynamicObject::new(name, &self.kind);
        object.data = serde_json::json!({"spec": spec});
        object.metadata.resource_version = version.cloned();
        let params = PostParams::default();
        if version.is_some() {
            bounded(self.api.replace(name, &params, &object)).await.map(drop)
        } else {
            bounded(self.api.create(&params, &object)).await.map(drop)
        }
    }

    async fn delete(&self, name: &str, fence: &impl Fence) -> Result<(), Stop> {
        fenced(fence).await?;
        bounded(self.api.delete(name, &DeleteParams::default())).await.map(drop)
    }
}

/// Says what is in the way when it is another than before.
fn told_once(trouble: &mut String, error: &Stop) {
    let now = error.to_string();
    if *trouble == now {
        tracing::debug!(%error, "security groups are still not published");
        return;
    }
    let next = "see that helm/veni/crds/resolvedsecuritygroups.yaml is installed and the controller's role has it";
    tracing::warn!(%error, next, "security groups are not published: nodes ask EC2 themselves");
    *trouble = now;
}

/// Ends a task with who began it.
struct Guard(tokio::task::AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn fenced(fence: &impl Fence) -> Result<(), Stop> {
    if fence.confirm().await { Ok(()) } else { Err(Stop::Fenced) }
}

async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Stop> {
    match timeout(CALL, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Stop::Failed(chain(&error))),
        Err(_) => Err(Stop::Failed(format!("no answer within {} s", CALL.as_secs()))),
    }
}
