//! SecurityGroupPolicy, `vpcresources.k8s.aws/v1beta1`.

use veni_core::id::SecurityGroupId;

use super::{
    Diagnostic, Selector,
    reader::{Read, Reader},
};

/// A SecurityGroupPolicy: gives security groups to the pods that it selects, closed where it was invalid: with
/// invalid groups the pods are denied everything, an invalid selector selects the whole namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroupPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pods of its namespace that it selects.
    pub pods: Selector,
    /// The groups that they get.
    pub groups: Vec<SecurityGroupId>,
    /// Items of `groupIds` that are no ids: the pods are denied everything until they are mended.
    pub invalid_groups: Vec<String>,
    /// What was wrong and is closed.
    pub diagnostics: Vec<Diagnostic>,
}

impl SecurityGroupPolicy {
    pub(super) fn read(root: &Reader<'_>) -> Self {
        let spec = root.get("spec");
        let known = ["podSelector", "serviceAccountSelector", "securityGroups"];
        let sound = root.noted(spec.only(&known)).is_some();
        let pods = if sound { root.noted(read_selector(&spec)) } else { None };
        let (groups, invalid_groups) =
            read_groups(root, &spec.get("securityGroups").get("groupIds"));
        Self {
            namespace: root.key().namespace.clone(),
            name: root.key().name.clone(),
            pods: pods.unwrap_or_default(),
            groups,
            invalid_groups,
            diagnostics: root.taken(),
        }
    }
}

fn read_selector(spec: &Reader<'_>) -> Read<Selector> {
    let accounts = spec.get("serviceAccountSelector");
    if !accounts.is_absent() {
        // Labels of service accounts are not among our objects.
        let message =
            "is not supported: the groups are given to every pod that podSelector selects";
        accounts.note(accounts.invalid(message));
    }
    Selector::read(&spec.get("podSelector"))
}

fn read_groups(root: &Reader<'_>, at: &Reader<'_>) -> (Vec<SecurityGroupId>, Vec<String>) {
    let (mut groups, mut invalid) = (Vec::new(), Vec::new());
    let items = root.noted(at.list()).unwrap_or_default();
    if items.is_empty() {
        root.note(at.invalid("needs at least one group; the pods are denied everything"));
        invalid.push(String::new());
    }
    for item in &items {
        match root.noted(item.parsed("a security group's id; the pods are denied everything")) {
            Some(Some(id)) => groups.push(id),
            _ => invalid.push(item.shown()),
        }
    }
    groups.sort();
    groups.dedup();
    (groups, invalid)
}
