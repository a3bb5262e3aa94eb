//! How policy stands on this node: lines for `status`, checks for `doctor`.

use std::path::Path;

use veni_core::wire::inspect::policy::{FlowTable, GroupStanding, Standing};

use crate::{http, links, policy::arguments::Daemon, problem::Trouble, text};

/// What ipamd says where no policy is enforced.
const NOT_ENFORCED: &str = "no policy is enforced";

/// What security groups of pods cannot do (README).
pub(crate) const LIMIT: &str = "a rule elsewhere in AWS that names a pod's group as its source sees the ENI's groups, not the pod's";

/// What ipamd says of a group right after its start (security-groups/src/assemble.rs): nothing has failed.
const TAKEN_OVER: &str = "as an earlier daemon left it";

/// Something that is not as it should be, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) what: String,
    pub(crate) next_step: String,
}

/// How it stands, or why that is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Policy {
    /// As ipamd says.
    Enforced(Box<Standing>),
    /// It is not enforced here.
    Off,
    /// ipamd did not say, for this reason.
    Unknown(String),
}

impl Policy {
    /// Asks over HTTP, where the socket has answered. Links that it names by number get their pods' names.
    pub(crate) fn ask(daemon: &Daemon, socket: &Path) -> Self {
        match http::document::<Standing>(&daemon.introspection, "/v1/policy", &[]) {
            Ok(mut standing) => {
                links::name_in_standing(&mut standing, socket);
                Self::Enforced(Box::new(standing))
            }
            Err(error) => {
                let unserved = error.downcast_ref::<http::Unserved>();
                let error =
                    unserved.map_or_else(|| format!("{error:#}"), http::Unserved::while_it_runs);
                if error.contains(NOT_ENFORCED) { Self::Off } else { Self::Unknown(error) }
            }
        }
    }

    pub(crate) const fn standing(&self) -> Option<&Standing> {
        match self {
            Self::Enforced(standing) => Some(standing),
            Self::Off | Self::Unknown(_) => None,
        }
    }

    /// What makes a node less than ready for pods.
    pub(crate) fn problems(&self) -> Vec<Trouble> {
        let wrong = match self {
            Self::Off => Vec::new(),
            Self::Unknown(why) => {
                let next = "`venictl doctor` looks at what policy needs; pods keep the rules that they have";
                vec![Wrong::new(format!("how policy stands is not known: {why}"), next)]
            }
            Self::Enforced(standing) => {
                let unread = Wrong::new(
                    "the objects were not read yet: pods keep what judged them, new ones are closed",
                    "mend what `venictl policy matrix --live` lists, or see that VENI_MANIFEST_DIR is there",
                );
                let unread = (!standing.complete).then_some(unread);
                unread.into_iter().chain(wrong(standing)).collect()
            }
        };
        wrong
            .into_iter()
            .map(|Wrong { what, next_step }| Trouble::new("policy", what, next_step))
            .collect()
    }

    /// For people: one line, and two for each thing that is not as it should be.
    pub(crate) fn lines(&self) -> String {
        match self {
            Self::Off => {
                "Policy: not enforced on this node (ipamd has neither VENI_MANIFEST_DIR nor an API server to read)\n"
                    .to_owned()
            }
            Self::Unknown(why) => {
                format!(
                    "Policy: not known: {why}\n    → `venictl doctor` looks at what policy needs\n"
                )
            }
            Self::Enforced(standing) => {
                let mut out = format!("Policy: {}\n", summary(standing));
                for Wrong { what, next_step } in wrong(standing) {
                    out += &format!("  {what}\n    → {next_step}\n");
                }
                out
            }
        }
    }
}

/// Percent from which on a table of flows is told of.
const CROWDED: u64 = 90;

/// In a line.
pub(crate) fn summary(standing: &Standing) -> String {
    let Standing { mode, generation, applied, pods, sets, security_groups, .. } = standing;
    let state = if !standing.complete {
        "objects not read yet".to_owned()
    } else if standing.pending == 0 {
        format!("generation {applied} in force")
    } else {
        let steps = text::counted(standing.pending, "step");
        format!("generation {generation} is not in force yet, {steps} pending")
    };
    let groups = match security_groups.len() {
        0 => String::new(),
        count => format!(", {}", text::counted(count, "security group")),
    };
    let (pods, sets) = (text::counted(*pods, "pod"), text::counted(*sets, "rule set"));
    format!("{mode}, {state}; {pods} judged by {sets}{groups}")
}

/// A table of flows that is nearly full. When it is full the kernel forgets flows without counting them.
fn crowded(table: &FlowTable) -> Option<Wrong> {
    let FlowTable { family, flows, room } = table;
    let percent = flows.saturating_mul(100).checked_div(*room)?;
    let next = "find who has so many connections (`venictl observe`), or spread such pods over more nodes; what it does to \
                other pods' flows: docs/drops.md";
    (percent >= CROWDED).then(|| {
        let what = format!(
            "the table of established {family} flows is {percent} % full ({flows} of {room}): from a full one those are \
             forgotten that were idle longest"
        );
        Wrong::new(what, next)
    })
}

/// What is not as it should be.
pub(crate) fn wrong(standing: &Standing) -> Vec<Wrong> {
    let mut all = Vec::new();
    if let Some(failure) = &standing.write_failure {
        let next = "it is tried again by itself; where a table is full use fewer or shorter rules, else look at the log of veni-ipamd";
        all.push(Wrong::new(format!("the tables cannot be written: {failure}"), next));
    }
    if !standing.waiting_addresses.is_empty() {
        let addresses: Vec<_> =
            standing.waiting_addresses.iter().map(ToString::to_string).collect();
        let what = format!(
            "isolated pods may not reach the node at {}: the objects were not all read since these addresses came",
            addresses.join(", ")
        );
        all.push(Wrong::new(
            what,
            "it ends once the API server, or the folder of manifests, is read",
        ));
    }
    all.extend(standing.flow_tables.iter().filter_map(crowded));
    all.extend(standing.unlabelled.iter().map(|pod| {
        let age = text::duration(pod.age_secs);
        let what = format!("{}: {}, for {age}: {}", pod.pod, pod.judged_by.sentence(), pod.reason);
        let next = format!(
            "see that the pod's object reaches this node (VENI_MANIFEST_DIR); `venictl policy explain --live {}` says what holds \
             meanwhile",
            pod.pod.split(' ').next().unwrap_or_default()
        );
        Wrong { what, next_step: next }
    }));
    let refused = "use fewer or shorter rules, or more nodes: every change of policy tries again";
    all.extend(standing.refused.iter().map(|what| Wrong::new(what.clone(), refused)));
    all.extend(standing.foreign.iter().map(|foreign| {
        let next = "find out whose it is (`bpftool net`, `tc filter show`) and remove it";
        Wrong::new(foreign.what.clone(), next)
    }));
    all.extend(standing.security_groups.iter().filter_map(group));
    if standing.diagnostics > 0 {
        let what = match standing.diagnostics {
            1 => "1 thing is wrong with objects".to_owned(),
            count => format!("{count} things are wrong with objects"),
        };
        all.push(Wrong::new(what, "`venictl policy matrix --live` lists them: mend the manifests"));
    }
    all
}

/// A reason beside the group's id, which it need not say again.
pub(crate) fn of_it(id: &str, why: &str) -> String {
    let rest = why.strip_prefix(id).and_then(|rest| rest.strip_prefix(' '));
    rest.map_or_else(|| why.to_owned(), |rest| format!("it {rest}"))
}

/// What is not as it should be with a group.
pub(crate) fn group(group: &GroupStanding) -> Option<Wrong> {
    let GroupStanding { id, state, reason, age_secs, last_error, .. } = group;
    let of_before = |reason: &&str| reason.starts_with(TAKEN_OVER);
    let is_taken_over = last_error.is_none() && reason.as_deref().as_ref().is_some_and(of_before);
    let why = reason.as_deref().filter(|reason| last_error.is_none() || !of_before(reason));
    let why = why.or(last_error.as_deref()).unwrap_or("no reason is known");
    let why = &of_it(id, why);
    let (what, next) = match state.as_str() {
        "fresh" => return None,
        "stale" if is_taken_over => (
            format!(
                "in force as an earlier daemon read it {} ago, this one has not read it yet",
                text::duration(age_secs.unwrap_or(0))
            ),
            "wait some seconds; if it stays, check the node role's IAM policy (docs/iam-policy.json) and the route to EC2",
        ),
        "stale" => (
            format!(
                "in force as it was {} ago, because the last refresh failed: {why}",
                text::duration(age_secs.unwrap_or(0))
            ),
            "it is tried again by itself; check the node role's IAM policy (docs/iam-policy.json) and the route to EC2",
        ),
        "pending" => (
            format!(
                "not known yet, its pods keep what they had and new ones stay closed: {}",
                reason.as_deref().unwrap_or("EC2 has not answered yet")
            ),
            "wait some seconds; if it stays, check the node role's IAM policy (docs/iam-policy.json) and the route to EC2",
        ),
        _ => (
            format!("its pods are denied everything: {why}"),
            "see that the group exists in this VPC, and that the node's role may read it (docs/iam-policy.json)",
        ),
    };
    Some(Wrong::new(format!("security group {id}: {what}"), next))
}

// === impl Wrong ===

impl Wrong {
    fn new(what: impl Into<String>, next_step: &str) -> Self {
        Self { what: what.into(), next_step: next_step.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_named_once_and_what_was_taken_over_has_not_failed() {
        for (state, reason, last_error, expect) in [
            (
                "unresolved",
                "sg-1 does not exist in this account and region",
                None,
                "security group sg-1: its pods are denied everything: it does not exist in this account and region",
            ),
            (
                "stale",
                "as an earlier daemon left it, not read yet",
                None,
                "security group sg-1: in force as an earlier daemon read it 117 s ago, this one has not read it yet",
            ),
            (
                "stale",
                "as an earlier daemon left it, not read yet",
                Some("RequestLimitExceeded"),
                "security group sg-1: in force as it was 117 s ago, because the last refresh failed: RequestLimitExceeded",
            ),
        ] {
            let standing = GroupStanding {
                id: "sg-1".to_owned(),
                state: state.to_owned(),
                reason: Some(reason.to_owned()),
                age_secs: Some(117),
                last_error: last_error.map(str::to_owned),
                ..GroupStanding::default()
            };
            assert_eq!(group(&standing).unwrap().what, expect);
        }
    }

    #[test]
    fn what_is_wrong_with_policy_is_under_its_line() {
        let group = |id: &str, state: &str| GroupStanding {
            id: id.to_owned(),
            state: state.to_owned(),
            reason: (state == "unresolved").then(|| "it does not exist".to_owned()),
            age_secs: Some(600),
            last_error: (state == "stale").then(|| "UnauthorizedOperation".to_owned()),
            ..GroupStanding::default()
        };
        let mut standing: Standing = serde_json::from_str(
            r#"{"mode":"standard","complete":true,"generation":4,"applied":4,"pods":3,"sets":5,
                "unlabelled":[{"pod":"x/a","judged_by":"closed","reason":"there is no object of this name","age_secs":180}],
                "foreign":[{"what":"TCX programs","bypasses":true}],"a_later_field":1}"#,
        )
        .unwrap();
        standing.security_groups = ["fresh", "stale", "unresolved"]
            .map(|state| group(&format!("sg-{state}"), state))
            .into();
        let lines = Policy::Enforced(Box::new(standing.clone())).lines();
        let expected = "Policy: standard, generation 4 in force; 3 pods judged by 5 rule sets, 3 security groups\n  \
             x/a: closed to all but its own node, for 3 min: there is no object of this name\n  \
             TCX programs\n  \
             security group sg-stale: in force as it was 10 min ago, because the last refresh failed: UnauthorizedOperation\n  \
             security group sg-unresolved: its pods are denied everything: it does not exist\n";
        let (steps, others): (Vec<_>, Vec<_>) =
            lines.split_inclusive('\n').partition(|l| l.starts_with("    → "));
        assert_eq!(others.concat(), expected);
        assert_eq!(steps.len(), 4, "one a line: {lines}");
        assert!(lines.contains("explain --live x/a"), "{lines}");
        standing.waiting_addresses = ["10.0.0.9".parse().unwrap()].into();
        (standing.pending, standing.generation) = (7, 5);
        standing.write_failure = Some("VERDICTS is full".to_owned());
        let lines = Policy::Enforced(Box::new(standing)).lines();
        assert!(lines.contains("generation 5 is not in force yet, 7 steps pending"), "{lines}");
        assert!(lines.contains("VERDICTS is full"), "{lines}");
        assert!(lines.contains("may not reach the node at 10.0.0.9:"), "{lines}");
    }
}
