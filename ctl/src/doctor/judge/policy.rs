//! Policy, security groups of pods, and others' programs where packets are judged.

use veni_core::wire::inspect::policy::Standing;

use super::super::{Check, Status, facts::Facts};
use crate::standing::{self, LIMIT, Policy};

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
    let wrong = standing::wrong(&policy);
    if let (Some(_), _) | (None, false) = (&standing.write_failure, standing.complete) {
        let found = [&[standing::summary(standing)], &wrong[..]].concat().join("; ");
        return Check::failed(name, found, "look at the log of veni-ipamd: what is above is in it");
    }
    if wrong.is_empty() {
        return Check::ok(name, standing::summary(standing));
    }
    let step = "see that the pods' objects reach this node; `venictl policy explain POD --live` says what holds meanwhile";
    Check::warning(name, wrong.join("; "), step)
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
    let wrong: Vec<_> = groups.iter().filter_map(standing::group).collect();
    if wrong.is_empty() {
        return Check::ok(
            name,
            format!("{} security groups fresh; the limit: {LIMIT}", groups.len()),
        );
    }
    let denied = groups.iter().any(|group| !["fresh", "stale"].contains(&group.state.as_str()));
    let status = if denied { Status::Failed } else { Status::Warning };
    let step = "check that the groups exist in this VPC and that the node's role may read them (docs/iam-policy.json)";
    Check::new(name, status, format!("{}; the limit: {LIMIT}", wrong.join("; ")), step)
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
