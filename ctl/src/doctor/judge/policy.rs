//! Policy, security groups of pods, and others' programs where packets are judged.

use veni_core::wire::inspect::policy::Standing;

use super::super::{Check, Status, facts::Facts};
use crate::standing::{self, LIMIT, Policy, Wrong};

/// How policy stands, or the check that says that it does not.
fn known<'a>(facts: &'a Facts, name: &'static str) -> Result<&'a Standing, Check> {
    match &facts.policy {
        Policy::Enforced(standing) => Ok(standing),
        Policy::Off => Err(Check::ok(name, "no policy is enforced on this node")),
        Policy::Unknown(why) => Err(Check::skipped(name, why)),
    }
}

pub(super) fn standing(facts: &Facts) -> Check {
    let name = "policy";
    let standing = match known(facts, name) {
        Ok(standing) => standing,
        Err(check) => return check,
    };
    // Groups and programs have their own lines.
    let policy = Standing {
        security_groups: Vec::new(),
        foreign: Vec::new(),
        diagnostics: 0,
        ..standing.clone()
    };
    let (wrong, next_steps) = apart(standing::wrong(&policy));
    if let (Some(_), _) | (None, false) = (&standing.write_failure, standing.complete) {
        let found = [&[standing::summary(standing)], &wrong[..]].concat().join("; ");
        let log = "look at the log of veni-ipamd: what is above is in it".to_owned();
        return Check::failed(name, found, &[&next_steps[..], &[log]].concat().join("; "));
    }
    if wrong.is_empty() {
        return Check::ok(name, standing::summary(standing));
    }
    Check::warning(name, wrong.join("; "), &next_steps.join("; "))
}

/// What is wrong, and what to do about it: each step once.
fn apart(all: Vec<Wrong>) -> (Vec<String>, Vec<String>) {
    let (mut found, mut steps) = (Vec::new(), Vec::new());
    for Wrong { what, next_step } in all {
        found.push(what);
        if !steps.contains(&next_step) {
            steps.push(next_step);
        }
    }
    (found, steps)
}

pub(super) fn groups(facts: &Facts) -> Check {
    let name = "groups";
    let standing = match known(facts, name) {
        Ok(standing) => standing,
        Err(check) => return check,
    };
    let groups = &standing.security_groups;
    if groups.is_empty() {
        return Check::ok(name, "no pod here has security groups of its own");
    }
    let (wrong, steps) = apart(groups.iter().filter_map(standing::group).collect());
    if wrong.is_empty() {
        return Check::ok(
            name,
            format!("{} security groups fresh; the limit: {LIMIT}", groups.len()),
        );
    }
    let denied = groups.iter().any(|group| !["fresh", "stale"].contains(&group.state.as_str()));
    let status = if denied { Status::Failed } else { Status::Warning };
    Check::new(name, status, format!("{}; the limit: {LIMIT}", wrong.join("; ")), &steps.join("; "))
}

pub(super) fn hooks(facts: &Facts) -> Check {
    let name = "hooks";
    let standing = match known(facts, name) {
        Ok(standing) => standing,
        Err(check) => return check,
    };
    let found: Vec<_> = standing.foreign.iter().map(|foreign| foreign.what.clone()).collect();
    if found.is_empty() {
        return Check::ok(name, "veni's programs are alone at the pods' links");
    }
    let bypasses = standing.foreign.iter().any(|foreign| foreign.bypasses);
    let status = if bypasses { Status::Failed } else { Status::Warning };
    Check::new(name, status, found.join("; "), "find out whose they are: packets may pass unjudged")
}
