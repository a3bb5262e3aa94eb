//! Problems with what to do about them.

use serde::Serialize;
use veni_core::wire::inspect::{Problem, View};

use crate::text;

/// A problem with its next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Trouble {
    pub(crate) kind: String,
    pub(crate) message: String,
    /// Since when; `None`: that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_secs: Option<u64>,
    pub(crate) next_step: String,
}

/// Everything that ipamd reports of itself, and that the node is full where pods wait for that.
pub(crate) fn of_node(view: &View) -> Vec<Trouble> {
    let reported = view.problems.iter().map(|Problem { kind, message, age_secs }| Trouble {
        age_secs: Some(*age_secs),
        ..Trouble::new(kind, message.clone(), next_step(kind).to_owned())
    });
    full(view).into_iter().chain(reported).collect()
}

/// What a person does about a problem of this kind. What the message names (an action, a subnet, a pod) comes first.
pub(crate) fn next_step(kind: &str) -> &'static str {
    match kind {
        "throttled" => {
            "wait: ipamd slows down by itself; if it stays, find who else calls EC2 in this account (CloudTrail), or ask AWS for \
             a higher API limit"
        }
        "denied" => {
            "add the action to the node role's IAM policy (docs/iam-policy.json has all of them); ipamd tries again by itself"
        }
        "subnet_full" => {
            "free addresses in the subnet, or give the node group a larger one; ipamd tries again by itself, and pods that end \
             give their addresses to those that wait"
        }
        "limit_reached" => {
            "raise what the message names (an account's quota, MAX_ENI), or use a larger instance type or more nodes; ipamd tries \
             again by itself"
        }
        "transient" => {
            "wait: it is tried again by itself; if it stays, check the route to EC2 (or its VPC endpoint) and instance metadata"
        }
        "invalid" | "not_found" => {
            "see in EC2 whether somebody changed or deleted what the message names; it is tried again by itself"
        }
        "address_lost" => {
            "delete the pod, its controller makes another (`venictl pool show --addresses` names it)"
        }
        "address_quarantined" => {
            "see whose link it is (`ip -d link show`) and remove it; the address is used again then"
        }
        "storage" => {
            "free space on the file system of VENI_STATE_DIR (`df`); pods are not added until then"
        }
        "filter" => {
            "`venictl doctor` looks at the filter, its maps and the kernel; ipamd tries again by itself, pods are not added \
             until then, and those that are there keep their traffic"
        }
        "host" => {
            "`venictl doctor` looks at links, rules, routes and nftables; it is tried again by itself"
        }
        "eni_config" => {
            "do what the message says; ipamd goes on by itself, and pods that run keep address and traffic meanwhile"
        }
        "eni_leaves" => {
            "nothing, if the ENIConfig was changed on purpose: it goes with its last pod; drain the node to be quicker"
        }
        "node_network_config" => {
            "mend the object (`kubectl edit nodenetworkconfig`); what was in force stays until then"
        }
        "policy" => "`venictl doctor` says what to do about each",
        _ => "look at the log of veni-ipamd",
    }
}

/// Pods wait or would have to, and no ENI can be added: EC2 is not even asked, so that ipamd has no problem to report.
pub(crate) fn full(view: &View) -> Option<Trouble> {
    let is_short = view.pool.waiting > 0 || !view.daemon.ready;
    holds_no_more(view).filter(|_| is_short)
}

/// No further pod can have an address, and none asks for one: as it should be where `maxPods` says so too.
pub(crate) fn just_full(view: &View) -> Option<Trouble> {
    if full(view).is_some() { None } else { holds_no_more(view) }
}

/// All addresses that the node can have are with pods or cool down.
fn holds_no_more(view: &View) -> Option<Trouble> {
    let (pool, node) = (&view.pool, &view.node);
    let primary_rests =
        view.settings.get("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG").is_some_and(|v| v == "true");
    let of_primary = if primary_rests { node.addresses_per_eni.saturating_sub(1) } else { 0 };
    let room = text::room(node).saturating_sub(of_primary);
    let is_full = room > 0 && pool.assigned + pool.cooling >= room;
    if !is_full || view.problems.iter().any(|problem| problem.kind == "limit_reached") {
        return None;
    }
    let max_eni = view.settings.get("MAX_ENI").filter(|value| !value.is_empty());
    let enis = text::counted(node.max_enis, "ENI");
    let (limit, raise) = match max_eni {
        Some(max_eni) => (
            format!("MAX_ENI={max_eni} allows {enis}"),
            "raise MAX_ENI as far as the instance type allows, ",
        ),
        None => (format!("a {} takes {enis}", node.instance_type), ""),
    };
    let message = format!(
        "the node is full: {limit} with {} for pods{}{}; {} with pods, {} cooling down",
        text::counted(node.addresses_per_eni.saturating_sub(1), "address"),
        if node.max_enis == 1 { "" } else { " each" },
        if primary_rests { ", the primary one with none" } else { "" },
        pool.assigned,
        pool.cooling
    );
    let next_step = format!(
        "{raise}use a larger instance type or more nodes, and give the kubelet maxPods={room} plus its pods on the node's \
         network, so that no more are scheduled here"
    );
    Some(Trouble::new("limit_reached", message, next_step))
}

// === impl Trouble ===

impl Trouble {
    /// Of which it is not known since when it is so.
    pub(crate) fn new(kind: &str, message: String, next_step: String) -> Self {
        Self { kind: kind.to_owned(), message, age_secs: None, next_step }
    }

    /// For people: what, since when, and the next step under it.
    pub(crate) fn lines(&self) -> String {
        let Self { kind, message, age_secs, next_step } = self;
        let since = match age_secs {
            None | Some(0) => String::new(),
            Some(secs) => format!(" (for {})", text::duration(*secs)),
        };
        format!("{kind}: {message}{since}\n    → {next_step}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::calm;

    #[test]
    fn every_kind_of_problem_has_its_next_step() {
        for (kind, word) in [
            ("throttled", "by itself"),
            ("denied", "iam-policy.json"),
            ("subnet_full", "larger one"),
            ("limit_reached", "MAX_ENI"),
            ("transient", "route to EC2"),
            ("invalid", "in EC2"),
            ("not_found", "in EC2"),
            ("address_lost", "delete the pod"),
            ("address_quarantined", "remove it"),
            ("eni_config", "by itself"),
            ("eni_leaves", "drain the node"),
            ("storage", "VENI_STATE_DIR"),
            ("filter", "venictl doctor"),
            ("host", "venictl doctor"),
            ("of a later version", "log"),
        ] {
            let mut view = calm();
            let message = "m".to_owned();
            view.problems = vec![Problem { kind: kind.to_owned(), message, age_secs: 1 }];
            let lines: Vec<_> = of_node(&view).iter().map(Trouble::lines).collect();
            assert!(lines[0].starts_with(&format!("{kind}: m (for 1 s)\n    → ")), "{lines:?}");
            assert!(lines[0].contains(word), "{lines:?}");
        }
    }

    #[test]
    fn a_node_with_custom_networking_is_full_without_addresses_on_its_primary_eni() {
        let mut view = calm();
        let per_eni = view.node.addresses_per_eni - 1;
        view.pool.assigned = text::room(&view.node) - per_eni;
        (view.pool.waiting, view.pool.cooling, view.daemon.ready) = (1, 0, false);
        assert_eq!(of_node(&view), []);
        let custom = ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG".to_owned(), "true".to_owned());
        view.settings.extend([custom]);
        let message = &of_node(&view)[0].message;
        assert!(message.contains(" each, the primary one with none; "), "{message}");
    }

    #[test]
    fn a_node_where_pods_wait_for_an_eni_that_cannot_be_says_which_limit_it_is() {
        let mut view = calm();
        let room = text::room(&view.node);
        for (assigned, waiting, max_eni, expected) in [
            (room, 0, "", None),
            (room - 1, 1, "", None),
            (room, 1, "", Some(("a m5.xlarge takes 4 ENIs", "use a larger instance type"))),
            (room, 1, "4", Some(("MAX_ENI=4 allows 4 ENIs", "raise MAX_ENI"))),
        ] {
            view.pool.assigned = assigned;
            view.daemon.ready = waiting == 0;
            (view.pool.waiting, view.pool.cooling) = (waiting, 0);
            view.settings.insert("MAX_ENI".to_owned(), max_eni.to_owned());
            let found = of_node(&view);
            assert_eq!(found.len(), usize::from(expected.is_some()), "{assigned} {waiting}");
            let full = just_full(&view).is_some();
            assert_eq!(full, assigned == room && waiting == 0, "{assigned} {waiting}");
            if let Some((limit, step)) = expected {
                assert!(found[0].message.contains(limit), "{found:?}");
                let document = serde_json::to_value(&found[0]).unwrap();
                assert!(document.get("age_secs").is_none(), "{document}");
                assert!(found[0].next_step.starts_with(step), "{found:?}");
            }
        }
    }
}
