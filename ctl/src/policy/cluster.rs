//! The objects of manifests, and who judges them.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use veni_core::wire::inspect::policy::{Diagnostic, Explanation, PolicyRef};
use veni_policy::{
    change::{Direction, PodKey},
    index::{Change, Index, Scope},
    object::{Key, Kind, Namespace, Object, Pod, Protocol},
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
        diagnostics.extend(
            refused.iter().map(|refusal| Diagnostic {
                message: refusal.to_string(),
                ..Diagnostic::default()
            }),
        );
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
            ..Explanation::default()
        });
        explanation.notes.extend(note.map(str::to_owned));
        let policies = explanation.egress.policies.iter().chain(&explanation.ingress.policies);
        let mut concerned: BTreeSet<String> = policies.map(object).collect();
        concerned.insert(Key::new(Kind::Pod, namespace, name).to_string());
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
}

/// As diagnostics name it.
fn object(policy: &PolicyRef) -> String {
    match &policy.namespace {
        Some(namespace) => format!("{} {namespace}/{}", policy.kind, policy.name),
        None => format!("{} {}", policy.kind, policy.name),
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
        if translation.of_proxy && !self.index.is_isolated(from, Direction::Egress) {
            return None;
        }
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
