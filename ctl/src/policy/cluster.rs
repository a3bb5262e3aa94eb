//! The objects of manifests, and who judges them.

use std::path::Path;

use veni_core::wire::inspect::policy::{
    DecidedBy, Decision, DefaultVerdict, Diagnostic, Explanation, RuleName, RuleRef,
};
use veni_policy::{
    object::{Object, Pod},
    oracle::{By, End, Family, Half, Oracle},
    security_group::SecurityGroups,
    view::{Judge, Judgement, Party, Unanswerable, View},
};

use super::groups;
use crate::Usage;

/// What manifests describe.
#[derive(Debug)]
pub(super) struct Cluster {
    objects: Vec<Object>,
    groups: SecurityGroups,
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
        let mut diagnostics: Vec<_> = manifests.diagnostics.into_iter().map(diagnostic).collect();
        if groups.is_empty() && forget_groups(&mut objects) {
            let message = "security groups are not looked at, because their rules are not given (--security-groups)";
            diagnostics.push(Diagnostic { message: message.to_owned(), ..Diagnostic::default() });
        }
        let groups = groups::read(groups, &mut diagnostics)?;
        Ok(Self { objects, groups, diagnostics })
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

    pub(super) fn explain(&self, namespace: &str, name: &str) -> Result<Explanation, Unanswerable> {
        let pod = self.view().pod(namespace, name)?;
        Ok(Explanation {
            pod: format!("{namespace}/{name}"),
            addresses: pod.addresses.clone(),
            labels: pod.labels.clone(),
            namespace_labels: Default::default(),
            host_network: pod.host_network,
            security_groups: vec![],
            egress: Default::default(),
            ingress: Default::default(),
            notes: vec![],
            diagnostics: vec![],
        })
    }
}

impl Judge for Cluster {
    fn judge(&self, from: Party<'_>, to: Party<'_>, protocol: u8, port: u16) -> Judgement {
        let oracle = Oracle::new(&self.objects, &self.groups);
        let verdict = oracle.verdict(
            &End::Address(from.address),
            &End::Address(to.address),
            protocol,
            port,
            Family::V4,
        );
        let decision = |half: &Half| {
            let default = if half.allowed { DefaultVerdict::Allow } else { DefaultVerdict::Deny };
            let rule = |kind: &str, namespace: Option<&String>, name: &str, rule| {
                Decision::Rule(RuleRef {
                    kind: kind.into(),
                    namespace: namespace.cloned(),
                    name: name.into(),
                    tier: None,
                    rule,
                    reason: None,
                })
            };
            let index = |i: usize| RuleName::Index(u32::try_from(i).unwrap_or(u32::MAX));
            match half.rules.first() {
                None | Some(By::Default) => Decision::default_of(default),
                Some(By::Itself) => Decision::because(default, "self"),
                Some(By::InvalidGroups) => Decision::because(default, "invalid_groups"),
                Some(By::NetworkPolicy { namespace, name, rule: r }) => {
                    rule("NetworkPolicy", Some(namespace), name, r.map(index))
                }
                Some(By::ClusterNetworkPolicy { name, rule: r }) => {
                    rule("ClusterNetworkPolicy", None, name, Some(index(*r)))
                }
                Some(By::SecurityGroup { group, rule: r }) => {
                    rule("SecurityGroup", None, &group.to_string(), r.clone().map(RuleName::Id))
                }
            }
        };
        Judgement {
            allowed: verdict.allowed(),
            decided_by: DecidedBy {
                egress: decision(&verdict.egress),
                ingress: decision(&verdict.ingress),
            },
        }
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

fn diagnostic(found: veni_manifests::Diagnostic) -> Diagnostic {
    Diagnostic {
        object: found.object,
        field: found.field,
        message: found.message,
        file: Some(found.file.to_string()),
        document: u64::try_from(found.document).ok().filter(|number| *number > 0),
        line: found.line,
    }
}
