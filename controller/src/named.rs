//! Which security groups are named in the cluster: by SecurityGroupPolicies, whole, and by pods' annotations, of which only
//! the metadata is read. What is not read yet names nothing; what was read stays when the API server goes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::PartialObjectMeta,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::Value;
use tokio::sync::watch;
use veni_core::id::SecurityGroupId;
use veni_policy::object::SECURITY_GROUPS_ANNOTATION;
use veni_watch::{Collection, News};

use crate::groups::ids;

/// The groups that are named.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Named {
    /// By SecurityGroupPolicies; `None`: not read yet.
    policies: Option<Names>,
    /// By pods.
    pods: Option<Names>,
}

/// Who names which.
type Names = BTreeMap<String, BTreeSet<SecurityGroupId>>;

impl Named {
    /// All of them; `None` before all was read.
    #[must_use]
    pub fn groups(&self) -> Option<BTreeSet<SecurityGroupId>> {
        let (policies, pods) = (self.policies.as_ref()?, self.pods.as_ref()?);
        Some(policies.values().chain(pods.values()).flatten().cloned().collect())
    }
}

/// Follows them, as long as somebody listens.
#[must_use]
pub fn follow(client: Client) -> watch::Receiver<Named> {
    let (sender, named) = watch::channel(Named::default());
    let kind = GroupVersionKind::gvk("vpcresources.k8s.aws", "v1beta1", "SecurityGroupPolicy");
    let kind = ApiResource::from_gvk_with_plural(&kind, "securitygrouppolicies");
    let policies = Collection::whole("securitygrouppolicies", Api::all_with(client.clone(), &kind));
    let told = sender.clone();
    let policies =
        policies.follow(of_policy, move |news| tell(&told, news, |named| &mut named.policies));
    tokio::spawn(policies);
    let pods = Collection::metadata("pods", Api::<Pod>::all(client));
    let pods = pods.follow(of_pod, move |news| tell(&sender, news, |named| &mut named.pods));
    tokio::spawn(pods);
    named
}

fn of_policy(policy: DynamicObject) -> Option<BTreeSet<SecurityGroupId>> {
    let list = policy.data.pointer("/spec/securityGroups/groupIds").and_then(Value::as_array);
    some(ids(list.into_iter().flatten().filter_map(Value::as_str)))
}

fn of_pod(pod: PartialObjectMeta<Pod>) -> Option<BTreeSet<SecurityGroupId>> {
    let list = pod.annotations().get(SECURITY_GROUPS_ANNOTATION);
    some(ids(list.into_iter().flat_map(|list| list.split(','))))
}

/// Who names none is not kept.
fn some(groups: BTreeSet<SecurityGroupId>) -> Option<BTreeSet<SecurityGroupId>> {
    (!groups.is_empty()).then_some(groups)
}

/// Takes news in. `false`: nobody listens.
fn tell(
    sender: &watch::Sender<Named>,
    news: News<BTreeSet<SecurityGroupId>>,
    part: fn(&mut Named) -> &mut Option<Names>,
) -> bool {
    sender.send_if_modified(|all| {
        let names = part(all);
        match news {
            News::Listed(objects) => {
                let next = Some(objects.into_iter().collect());
                let changed = *names != next;
                *names = next;
                changed
            }
            News::Changed(key, groups) => {
                let names = names.get_or_insert_default();
                names.insert(key, groups.clone()) != Some(groups)
            }
            News::Gone(key) => names.as_mut().is_some_and(|names| names.remove(&key).is_some()),
        }
    });
    !sender.is_closed()
}
