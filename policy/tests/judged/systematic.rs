//! The systematic cases: that they are all there, and that the compiler agrees with the oracle on each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;
use veni_core::wire::inspect::policy::Family;
use veni_policy::index::{Index, Scope};
use veni_policy::oracle::systematic::{
    Addresses, Case, Cell, PROTOCOLS, Theme, cases, example_addresses, matrix,
};
use veni_policy::view::View;

use crate::compiled::Compiled;
use crate::generate::{Change, outside};
use crate::support::{identity, number, pods, valid_objects};

fn all() -> Vec<Case> {
    cases(&example_addresses)
}

/// IPv4 as in the examples, and IPv6 of the same shape.
fn dual_stack(namespace: &str, name: &str) -> Vec<IpAddr> {
    let mut addresses = example_addresses(namespace, name);
    if let IpAddr::V4(address) = addresses[0] {
        let [.., block, host] = address.octets();
        let last = u16::from_be_bytes([block, host]);
        addresses.push(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]));
    }
    addresses
}

/// IPv6 alone, so that blocks are IPv6 blocks.
fn v6_only(namespace: &str, name: &str) -> Vec<IpAddr> {
    dual_stack(namespace, name).split_off(1)
}

/// What leads from one state to the next.
fn changes(old: &[Value], new: &[Value]) -> Vec<Change> {
    let gone = old.iter().filter(|object| !new.iter().any(|other| same(object, other)));
    let come = new.iter().filter(|object| !old.contains(object));
    let gone = gone.cloned().map(Change::Delete);
    gone.chain(come.cloned().map(Change::Apply)).collect()
}

fn same(one: &Value, other: &Value) -> bool {
    identity(one) == identity(other)
}

/// Runs every case through the compiler, step by step.
fn compile(addresses: Addresses<'_>) {
    let ports = [53, 79, 80, 81, 84, 85];
    let probes = |protocol| ports.map(|port| (number(protocol), port));
    let probes: Vec<_> = PROTOCOLS.iter().flat_map(|protocol| probes(protocol)).collect();
    for case in cases(addresses) {
        let mut compiled = Compiled::with_peers(Scope::All, outside(), probes.clone());
        let mut state: &[Value] = &[];
        for next in &case.states {
            let result = compiled.apply(&changes(state, next));
            result.unwrap_or_else(|error| panic!("{}: {error}", case.name));
            state = next;
        }
        compiled.compare_with_fresh().unwrap_or_else(|error| panic!("{}: {error}", case.name));
    }
}

#[test]
fn the_compiler_agrees_on_every_case_over_ipv4() {
    compile(&example_addresses);
}

#[test]
fn the_compiler_agrees_on_every_case_over_ipv6() {
    compile(&v6_only);
}

#[test]
fn the_compiler_agrees_on_every_case_over_both() {
    compile(&dual_stack);
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

#[test]
fn a_matrix_has_a_cell_for_every_pair_port_and_protocol() {
    let cases = all();
    for case in cases.iter().filter(|case| case.theme != Theme::Action) {
        let cells = matrix(&case.states[0]).expect("every object is valid");
        assert_eq!(cells.len(), 9 * 9 * 6, "{}", case.name);
    }
    let base = cases.iter().find(|case| case.name == "target: namespace x").expect("it is there");
    let cells = matrix(&base.states[0]).expect("every object is valid");
    // x/a takes TCP 80 from b and c of x and y, and sends it to a and b of y and z, and talks to itself.
    let to = |cell: &&Cell| cell.to.0 == "x" && cell.to.1 == "a" && cell.allowed;
    let from = |cell: &&Cell| cell.from.0 == "x" && cell.from.1 == "a" && cell.allowed;
    assert_eq!(cells.iter().filter(to).count(), 4 + 6);
    assert_eq!(cells.iter().filter(from).count(), 4 + 6);
}

/// What users are shown: from, to, protocol, port, whether IPv6, whether allowed.
type Shown = BTreeSet<(String, String, String, u16, bool, bool)>;

/// The matrix that `venictl policy matrix` prints.
fn shown(state: &[Value]) -> Shown {
    let objects = valid_objects(state);
    let mut index = Index::new(Scope::All);
    index.reset(objects.clone());
    let change = index.change();
    assert_eq!(change.refused, []);
    let flows = View::new(pods(&objects), &index).matrix(None, None).expect("no filter").flows;
    let shown = flows.into_iter().map(|flow| {
        let v6 = flow.family == Some(Family::V6);
        (flow.from, flow.to, flow.protocol, flow.port, v6, flow.allowed)
    });
    shown.collect()
}

#[test]
fn the_matrix_that_users_see_is_the_oracles() {
    for case in cases(&dual_stack) {
        for state in &case.states {
            let name = |(namespace, name): &(String, String)| format!("{namespace}/{name}");
            let cells = matrix(state).expect("every object is valid");
            let cells: Shown = cells
                .iter()
                .map(|cell| {
                    let protocol = cell.protocol.as_str().to_owned();
                    let (from, to) = (name(&cell.from), name(&cell.to));
                    (from, to, protocol, cell.port, cell.address.is_ipv6(), cell.allowed)
                })
                .collect();
            assert_eq!(shown(state), cells, "{}", case.name);
        }
    }
}
