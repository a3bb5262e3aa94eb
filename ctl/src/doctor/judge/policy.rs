//! Policy, security groups of pods, and others' programs where packets are judged.

use veni_core::wire::inspect::policy::{Diagnostic, Standing};
use veni_policy::object::SECURITY_GROUPS_ANNOTATION;

use super::super::{Check, Status, facts::Facts};
use crate::{
    standing::{self, LIMIT, Policy, Wrong},
    text,
};

/// Objects that are wrong and are named; the rest is counted.
const OBJECTS: usize = 3;

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
    let mut all = standing::wrong(&policy);
    all.extend(objects(standing, &facts.wrong_objects));
    all.extend(standing.ranges_unknown.then(|| Wrong {
        what: "the cluster's Service range is not known: an isolated pod's packet to a Service that is not known yet is judged as any \
               other"
            .to_owned(),
        next_step: "set VENI_SERVICE_CIDRS (in the chart: env.VENI_SERVICE_CIDRS); API servers from 1.33 on tell it by themselves"
            .to_owned(),
    }));
    let (wrong, next_steps) = apart(all);
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

/// What is wrong with objects, but for groups, which have their own line.
fn objects(standing: &Standing, wrong: &[Diagnostic]) -> Option<Wrong> {
    let others: Vec<_> = wrong.iter().filter(|wrong| !is_of_groups(wrong)).collect();
    let count = standing.diagnostics.saturating_sub(wrong.len() - others.len());
    let mut named: Vec<_> = others.iter().take(OBJECTS).map(ToString::to_string).collect();
    let more = count.saturating_sub(named.len());
    if more > 0 {
        let beside = if named.is_empty() { "" } else { "more " };
        named.push(text::counted(more, &format!("{beside}thing")) + " wrong with objects");
    }
    (count > 0).then(|| Wrong {
        what: named.join("; "),
        next_step:
            "`venictl policy matrix --live` lists what is wrong with objects: mend the manifests"
                .to_owned(),
    })
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
    let invalid: Vec<_> = facts.wrong_objects.iter().filter(|wrong| is_of_groups(wrong)).collect();
    if groups.is_empty() && invalid.is_empty() {
        return Check::ok(name, "no pod here has security groups of its own");
    }
    let (mut wrong, mut steps) = apart(groups.iter().filter_map(standing::group).collect());
    if !invalid.is_empty() {
        wrong.extend(invalid.iter().map(ToString::to_string));
        steps.push("mend the annotation or the SecurityGroupPolicy: ids of groups, sg-…, separated by commas".to_owned());
    }
    if wrong.is_empty() {
        return Check::ok(
            name,
            format!("{} fresh; the limit: {LIMIT}", text::counted(groups.len(), "security group")),
        );
    }
    let denied = !invalid.is_empty()
        || groups.iter().any(|group| !["fresh", "stale"].contains(&group.state.as_str()));
    let status = if denied { Status::Failed } else { Status::Warning };
    Check::new(name, status, format!("{}; the limit: {LIMIT}", wrong.join("; ")), &steps.join("; "))
}

/// Whether it is about which groups pods have: those of the pods are closed until it is mended.
fn is_of_groups(wrong: &Diagnostic) -> bool {
    wrong.field.contains(SECURITY_GROUPS_ANNOTATION)
        || wrong.object.starts_with("SecurityGroupPolicy ")
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
