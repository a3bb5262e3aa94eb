//! The objects of manifests, and who judges them.

use std::{net::IpAddr, path::Path};

use veni_core::wire::inspect::policy::{Diagnostic, Explanation, PolicyRef, Side};
use veni_policy::{
    change::{Direction, PodKey},
    index::{Change, Index, Scope},
    object::{ClusterNetworkPolicy, Key, Kind, Namespace, Object, Pod, Protocol, Tier},
    service::{Found, FrontEnd, OwnNode, ServiceTables},
    view::{self, Judge, Judgement, Party, Translated, Unanswerable, View},
};

use super::groups;
use crate::Usage;

/// What manifests describe.
#[derive(Debug)]
pub(super) struct Cluster {
    objects: Vec<Object>,
    index: Index,
    /// What is wrong with them.
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl Cluster {
    /// Reads files and folders of manifests, and the rules of security groups, without which the pods' groups do not
    /// count.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(super) fn read(
        manifests: &[impl AsRef<Path>],
        groups: &[impl AsRef<Path>],
    ) -> Result<Self, Usage> {
        let manifests = veni_manifests::read_all(manifests.iter().map(AsRef::as_ref))
            .map_err(|error| Usage(vec![veni_core::chain::chain(&error)]))?;
        let mut objects = manifests.objects;
        let mut diagnostics: Vec<_> =
            manifests.diagnostics.into_iter().map(Diagnostic::from).collect();
        if groups.is_empty() && forget_groups(&mut objects) {
            let message = "security groups are not looked at, because their rules are not given (--security-groups)";
            diagnostics.push(Diagnostic { message: message.to_owned(), ..Diagnostic::default() });
        }
        let mut index = Index::new(Scope::All);
        index.set_security_groups(groups::read(groups, &mut diagnostics)?);
        index.reset(objects.clone());
        let Change { refused, .. } = index.change();
        diagnostics.extend(refused.iter().map(|refusal| {
            let message = format!(
                "{} of {} pods do not fit: {} has room for {} entries; those pods are denied everything",
                refusal.direction,
                refusal.pods.len(),
                refusal.map,
                refusal.capacity
            );
            Diagnostic { message, ..Diagnostic::default() }
        }));
        Ok(Self { objects, index, diagnostics })
    }

    /// The pods with their judge.
    pub(super) fn view(&self) -> View<'_, Self> {
        View::new(self.pods(), self)
    }

    fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.objects.iter().filter_map(|object| match object {
            Object::Pod(pod) => Some(pod),
            _ => None,
        })
    }

    /// What applies to a pod.
    ///
    /// # Errors
    /// When it does not exist.
    pub(super) fn explain(&self, namespace: &str, name: &str) -> Result<Explanation, Unanswerable> {
        let pod = self.view().pod(namespace, name)?;
        let of_namespace = self.namespace(namespace);
        let key = PodKey { namespace: namespace.to_owned(), name: name.to_owned() };
        let found = self.index.explain(&key).map(|found| view::explanation(&found));
        let note = if pod.finished {
            Some("It has finished: nothing is judged for it.")
        } else if pod.addresses.is_empty() {
            Some("It has no address yet (status.podIPs): nothing comes to it.")
        } else {
            None
        };
        let mut explanation = found.unwrap_or_else(|| Explanation {
            pod: key.to_string(),
            addresses: pod.addresses.clone(),
            labels: pod.labels.clone(),
            namespace_labels: of_namespace.labels.clone(),
            host_network: pod.host_network,
            security_groups: Vec::new(),
            egress: Side::default(),
            ingress: Side::default(),
            notes: Vec::new(),
            diagnostics: Vec::new(),
        });
        explanation.notes.extend(note.map(str::to_owned));
        explanation.namespace_labels = of_namespace.labels.clone();
        let mut concerned = vec![Key::new(Kind::Pod, namespace, name)];
        if !pod.host_network {
            for (side, direction) in [
                (&mut explanation.egress, Direction::Egress),
                (&mut explanation.ingress, Direction::Ingress),
            ] {
                let policies = self.selecting(pod, &of_namespace, direction);
                side.isolated = policies.iter().any(|(key, _)| key.kind == Kind::NetworkPolicy);
                concerned.extend(policies.iter().map(|(key, _)| key.clone()));
                side.policies = policies.into_iter().map(|(_, policy)| policy).collect();
            }
        }
        let concerned: Vec<String> = concerned.iter().map(ToString::to_string).collect();
        let mine = self.diagnostics.iter().filter(|d| concerned.contains(&d.object));
        explanation.diagnostics = mine.cloned().collect();
        Ok(explanation)
    }

    /// A namespace that is not in the input has only its name.
    fn namespace(&self, name: &str) -> Namespace {
        let found = self.objects.iter().find_map(|object| match object {
            Object::Namespace(namespace) if namespace.name == name => Some(namespace.clone()),
            _ => None,
        });
        found.unwrap_or_else(|| Namespace::named(name))
    }

    /// Policies that select the pod and say something of the direction, in the order in which they are asked.
    fn selecting(
        &self,
        pod: &Pod,
        namespace: &Namespace,
        direction: Direction,
    ) -> Vec<(Key, PolicyRef)> {
        let mut found: Vec<_> = self
            .objects
            .iter()
            .filter_map(|object| {
                let (stage, rules) = match object {
                    Object::NetworkPolicy(policy) => {
                        let rules = match direction {
                            Direction::Egress => policy.egress.as_ref(),
                            Direction::Ingress => policy.ingress.as_ref(),
                        }?;
                        let selects =
                            policy.namespace == pod.namespace && policy.pods.matches(&pod.labels);
                        (selects.then_some((1, 0))?, rules.len())
                    }
                    Object::ClusterNetworkPolicy(policy) => {
                        let rules = match direction {
                            Direction::Egress => &policy.egress,
                            Direction::Ingress => &policy.ingress,
                        };
                        let selects = policy.subject.namespaces.matches(&namespace.labels)
                            && policy.subject.pods.matches(&pod.labels);
                        (Some(stage(policy)).filter(|_| selects && !rules.is_empty())?, rules.len())
                    }
                    _ => return None,
                };
                Some((stage, object, rules))
            })
            .collect();
        found.sort_by_key(|(stage, object, _)| (*stage, object.key()));
        found
            .into_iter()
            .map(|(_, object, rules)| (object.key(), reference(object, rules)))
            .collect()
    }
}

/// Tier and priority.
const fn stage(policy: &ClusterNetworkPolicy) -> (u8, u16) {
    match policy.tier {
        Tier::Admin => (0, policy.priority),
        Tier::Baseline => (2, policy.priority),
    }
}

fn reference(object: &Object, rules: usize) -> PolicyRef {
    let Key { kind, namespace, name } = object.key();
    let cluster_policy = match object {
        Object::ClusterNetworkPolicy(policy) => Some(policy),
        _ => None,
    };
    let tier = cluster_policy.map(|policy| match policy.tier {
        Tier::Admin => "Admin".to_owned(),
        Tier::Baseline => "Baseline".to_owned(),
    });
    PolicyRef {
        kind: kind.to_string(),
        namespace: Some(namespace).filter(|namespace| !namespace.is_empty()),
        name,
        tier,
        priority: cluster_policy.map(|policy| policy.priority),
        rules: u32::try_from(rules).unwrap_or(u32::MAX),
    }
}

impl Judge for Cluster {
    fn translate(&self, from: &Pod, to: IpAddr, protocol: u8, port: u16) -> Option<Translated> {
        // Front ends are those of the node that the pod is on: NodePorts, and Services that stay on a node.
        let node = self.objects.iter().find_map(|object| match object {
            Object::Node(node) if Some(&node.name) == from.node.as_ref() => Some(node),
            _ => None,
        });
        let own = OwnNode {
            name: from.node.clone().unwrap_or_default(),
            zone: None,
            addresses: node
                .map(|node| node.addresses.iter().copied().collect())
                .unwrap_or_default(),
        };
        let mut tables = ServiceTables::new(own, &Found::default());
        drop(tables.reset(&self.objects));
        let protocol = Protocol::from_number(protocol)?;
        let translation = tables.translate(FrontEnd { address: to, port, protocol })?;
        let owner = &translation.port.owner;
        Some(Translated {
            service: format!("{}/{}", owner.namespace, owner.name),
            back_ends: translation.back_ends.iter().map(|end| (end.address, end.port)).collect(),
        })
    }

    fn judge(&self, from: Party<'_>, to: Party<'_>, protocol: u8, port: u16) -> Judgement {
        Judge::judge(&self.index, from, to, protocol, port)
    }
}

/// Takes the groups from all pods; whether any had some.
fn forget_groups(objects: &mut Vec<Object>) -> bool {
    let before = objects.len();
    objects.retain(|object| !matches!(object, Object::SecurityGroupPolicy(_)));
    let mut forgotten = objects.len() < before;
    for object in objects {
        if let Object::Pod(pod) = object {
            forgotten |= pod.security_groups.take().is_some();
        }
    }
    forgotten
}
