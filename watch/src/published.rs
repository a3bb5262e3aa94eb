//! The security groups that a leader publishes for all nodes (ADR 0020): nothing that policy waits for.

use std::time::Duration;

use kube::{
    Api,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use tokio::time::sleep;
use veni_core::chain::chain;
use veni_eniconfig_crd::resolved_security_group::ResolvedSecurityGroupSpec;

use crate::{
    Access,
    backoff::Backoff,
    collection::{Collection, News},
};

/// What is heard of ResolvedSecurityGroups: names and what they say. What cannot be read says nothing.
pub type GroupNews = News<ResolvedSecurityGroupSpec>;

/// Follows them until `tell` says that nobody listens (`false`). Without the definition there are none.
pub async fn follow_published(access: Access, tell: impl FnMut(GroupNews) -> bool) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let client = loop {
        match access.connect().await {
            Ok(client) => break client,
            Err(error) => tracing::debug!(error = chain(&error), "no way to the API server yet"),
        }
        sleep(backoff.next()).await;
    };
    let kind = GroupVersionKind::gvk("veni.dev", "v1alpha1", "ResolvedSecurityGroup");
    let kind = ApiResource::from_gvk_with_plural(&kind, "resolvedsecuritygroups");
    let api: Api<DynamicObject> = Api::all_with(client, &kind);
    let read = |object: DynamicObject| {
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        Some(serde_json::from_value(spec).unwrap_or_default())
    };
    Collection::whole("resolvedsecuritygroups", api).follow(read, tell).await;
}
