//! SecurityGroupPolicy, `vpcresources.k8s.aws/v1beta1`.
//!
//! Groups only allow, and a pod's are a union: one that is given to too many pods opens. So a policy of which it is not
//! known whom it selects gives no groups, and denies those that it might select.
//!
//! Deliberately absent: service accounts' labels, which are on objects that are not among ours.

use veni_core::id::SecurityGroupId;

use super::{
    Diagnostic, Selector,
    reader::{Invalid, Reader},
};

/// A SecurityGroupPolicy: gives security groups to the pods that it selects, closed where it was invalid: with
/// invalid groups the pods are denied everything, and so are those that it might select where that cannot be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroupPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pods of its namespace that it selects; with `undecided`, that it might select.
    pub pods: Selector,
    /// Why it cannot be told which of `pods` it selects: all of them are denied everything. It then gives no groups.
    pub undecided: Option<String>,
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
        let (pods, undecided) = match selection(&spec) {
            Ok(pods) => (pods, None),
            Err((pods, invalid)) => (pods, Some(note(root, invalid))),
        };
        let (mut groups, mut invalid_groups) =
            read_groups(root, &spec.get("securityGroups").get("groupIds"));
        if undecided.is_some() {
            (groups, invalid_groups) = (Vec::new(), Vec::new());
        }
        Self {
            namespace: root.key().namespace.clone(),
            name: root.key().name.clone(),
            pods,
            undecided,
            groups,
            invalid_groups,
            diagnostics: root.taken(),
        }
    }
}

/// Notes why the selection cannot be told. Returns it, for those who ask a pod.
fn note(root: &Reader<'_>, Invalid { field, message }: Invalid) -> String {
    let reason = format!("{field} {message}");
    let message = format!("{message}; every pod that it might select is denied everything");
    root.note(Invalid { field, message });
    reason
}

/// The pods that it selects, or those that it might select and why that cannot be told. As the VPC resource controller
/// reads it (`filterPodSecurityGroups` in its pkg/utils/helper.go): of two selectors both must match, and an empty one
/// matches all. One without any it passes over; here that closes, as all that is invalid.
fn selection(spec: &Reader<'_>) -> Result<Selector, (Selector, Invalid)> {
    let of_all = |invalid| (Selector::everything(), invalid);
    spec.only(&["podSelector", "serviceAccountSelector", "securityGroups"]).map_err(of_all)?;
    let (pods, accounts) = (spec.get("podSelector"), spec.get("serviceAccountSelector"));
    if pods.is_absent() && accounts.is_absent() {
        let message = "is missing; write {} to select every pod of the namespace";
        return Err(of_all(pods.invalid(message)));
    }
    let selected = Selector::read(&pods).map_err(of_all)?;
    if accounts.is_absent() {
        return Ok(selected);
    }
    match Selector::read(&accounts) {
        Ok(accounts) if accounts == Selector::everything() => Ok(selected),
        Ok(_) => {
            let message = "is not supported, as veni does not know service accounts' labels: select the pods by podSelector instead";
            Err((selected, accounts.invalid(message)))
        }
        Err(invalid) => Err((selected, invalid)),
    }
}

fn read_groups(root: &Reader<'_>, at: &Reader<'_>) -> (Vec<SecurityGroupId>, Vec<String>) {
    let (mut groups, mut invalid) = (Vec::new(), Vec::new());
    let items = root.noted(at.list()).unwrap_or_default();
    if items.is_empty() {
        root.note(at.invalid("needs at least one group; the pods are denied everything"));
        invalid.push(String::new());
    }
    for item in &items {
        let id = item.parsed("a security group's id; the pods are denied everything");
        let id = id.and_then(|id| id.ok_or_else(|| item.invalid("is null")));
        match root.noted(id) {
            Some(id) => groups.push(id),
            None => invalid.push(item.shown()),
        }
    }
    groups.sort();
    groups.dedup();
    (groups, invalid)
}
