//! The systematic cases: that they are all there, and that the compiler agrees with the oracle on each.

use std::collections::{BTreeMap, BTreeSet};

use veni_policy::oracle::systematic::{Case, Theme, cases, example_addresses};

use crate::support::valid_objects;

fn all() -> Vec<Case> {
    cases(&example_addresses)
}

#[test]
fn all_230_cases_are_there_once() {
    let cases = all();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "names are unique");
    let mut by_theme: BTreeMap<Theme, usize> = BTreeMap::new();
    for case in &cases {
        *by_theme.entry(case.theme).or_default() += 1;
    }
    let expected = [
        (Theme::Target, 6),
        (Theme::Rules, 4),
        (Theme::Peers, 112),
        (Theme::Ports, 70),
        (Theme::Example, 1),
        (Theme::Action, 6),
        (Theme::Conflict, 16),
        (Theme::Namespace, 2),
        (Theme::Upstream, 13),
    ];
    assert_eq!(by_theme, expected.into());
}

#[test]
fn every_object_of_every_case_is_valid() {
    for case in all() {
        for state in &case.states {
            assert_eq!(valid_objects(state).len(), state.len(), "{}", case.name);
        }
    }
}
