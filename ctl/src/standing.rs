//! How policy stands on this node: lines for `status`, checks for `doctor`.

use veni_core::wire::inspect::{
    Problem,
    policy::{GroupStanding, Standing},
};

use crate::{http, policy::arguments::Daemon, text};

/// What ipamd says where no policy is enforced.
const NOT_ENFORCED: &str = "no policy is enforced";

/// What security groups of pods cannot do (README).
pub(crate) const LIMIT: &str = "a rule elsewhere in AWS that names a pod's group as its source sees the ENI's groups, not the pod's";

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
    pub(crate) fn ask(daemon: &Daemon) -> Self {
        match http::document(&daemon.introspection, "/v1/policy", &[]) {
            Ok(standing) => Self::Enforced(Box::new(standing)),
            Err(error) => {
                let error = format!("{error:#}");
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
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let messages = match self {
            Self::Off => Vec::new(),
            Self::Unknown(why) => vec![format!("how policy stands is not known: {why}")],
            Self::Enforced(standing) => {
                let unread = "the objects were not read yet: pods keep what judged them, new ones are closed; see VENI_MANIFEST_DIR and `venictl policy matrix --live`";
                let unread = (!standing.complete).then(|| unread.to_owned());
                unread.into_iter().chain(wrong(standing)).collect()
            }
        };
        let problem = |message| Problem { kind: "policy".to_owned(), message, age_secs: 0 };
        messages.into_iter().map(problem).collect()
    }

    /// For people: one line, and one for each thing that is not as it should be.
    pub(crate) fn lines(&self) -> String {
        match self {
            Self::Off => {
                "Policy: not enforced on this node (VENI_MANIFEST_DIR is not set)\n".to_owned()
            }
            Self::Unknown(why) => format!("Policy: not known: {why}\n"),
            Self::Enforced(standing) => {
                let mut out = format!("Policy: {}\n", summary(standing));
                for wrong in wrong(standing) {
                    out += &format!("  {wrong}\n");
                }
                out
            }
        }
    }
}

/// In a line.
pub(crate) fn summary(standing: &Standing) -> String {
    let Standing { mode, generation, applied, pods, sets, security_groups, .. } = standing;
    let state = if !standing.complete {
        "objects not read yet".to_owned()
    } else if standing.pending == 0 {
        format!("generation {applied} in force")
    } else {
        format!("generation {generation} is not in force yet, {} steps pending", standing.pending)
    };
    let groups = match security_groups.len() {
        0 => String::new(),
        count => format!(", {count} security groups"),
    };
    format!("{mode}, {state}; {pods} pods judged by {sets} rule sets{groups}")
}

/// What is not as it should be.
pub(crate) fn wrong(standing: &Standing) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(failure) = &standing.write_failure {
        all.push(format!("the tables cannot be written, it is tried again: {failure}"));
    }
    all.extend(standing.unlabelled.iter().map(|pod| {
        let age = text::duration(pod.age_secs);
        format!("{}: {}, for {age}: {}", pod.pod, pod.judged_by.sentence(), pod.reason)
    }));
    all.extend(standing.refused.iter().cloned());
    all.extend(standing.foreign.iter().map(|foreign| foreign.what.clone()));
    all.extend(standing.security_groups.iter().filter_map(group));
    if standing.diagnostics > 0 {
        let count = standing.diagnostics;
        all.push(format!(
            "{count} things are wrong with objects: `venictl policy matrix --live` lists them"
        ));
    }
    all
}

/// What is not as it should be with a group.
pub(crate) fn group(group: &GroupStanding) -> Option<String> {
    let GroupStanding { id, state, reason, age_secs, last_error, .. } = group;
    let why = reason.as_deref().or(last_error.as_deref()).unwrap_or("no reason is known");
    match state.as_str() {
        "fresh" => None,
        "stale" => Some(format!(
            "security group {id}: in force as it was {} ago, because the last refresh failed: {why}",
            text::duration(age_secs.unwrap_or(0))
        )),
        "pending" => Some(format!(
            "security group {id}: not known yet, its pods keep what they had and new ones stay closed: {}",
            reason.as_deref().unwrap_or("EC2 has not answered yet")
        )),
        _ => Some(format!("security group {id}: its pods are denied everything: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(lines, expected);
        (standing.pending, standing.generation) = (7, 5);
        standing.write_failure = Some("VERDICTS is full".to_owned());
        let lines = Policy::Enforced(Box::new(standing)).lines();
        assert!(lines.contains("generation 5 is not in force yet, 7 steps pending"), "{lines}");
        assert!(lines.contains("VERDICTS is full"), "{lines}");
    }
}
