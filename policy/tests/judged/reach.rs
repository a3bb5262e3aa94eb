//! That the random clusters are worth judging: every kind of decision comes up, in both directions, often.

use std::collections::BTreeMap;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use veni_policy::change::Direction;
use veni_policy::object::{Object, Pod};
use veni_policy::oracle::{By, Half, Oracle};
use veni_policy::security_group::SecurityGroups;

use crate::generate::{Change, History, PORTS, history, naming_nodes, outside, own_addresses};
use crate::support::{objects, pods};

/// What a verdict is counted as.
fn kinds(half: &Half) -> Vec<(&'static str, bool)> {
    let kind = |by: &By| match by {
        By::Default => "default",
        By::Itself => "itself",
        By::NetworkPolicy { rule: Some(_), .. } => "NetworkPolicy",
        By::NetworkPolicy { rule: None, .. } => "isolation",
        By::ClusterNetworkPolicy { .. } => "ClusterNetworkPolicy",
        By::SecurityGroup { rule: Some(_), .. } => "group",
        By::SecurityGroup { rule: None, .. } => "no group",
        By::InvalidGroups => "invalid groups",
        By::Unfiltered => "unfiltered",
        By::Strict => "strict",
        By::Unknown => "unknown",
    };
    half.rules.iter().map(|by| (kind(by), half.allowed)).collect()
}

/// Objects and groups of random clusters, each history changed like this.
fn clusters(
    change: impl Fn(History) -> History,
) -> impl Iterator<Item = (Vec<Object>, SecurityGroups)> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(proptest::test_runner::Config::default(), rng);
    (0..150).map(move |_| {
        let history = change(history(0).new_tree(&mut runner).expect("a history").current());
        let mut manifests = Vec::new();
        let mut groups = SecurityGroups::default();
        for change in history.into_iter().flatten() {
            match change {
                Change::Apply(manifest) => crate::support::put(&mut manifests, manifest),
                Change::Groups(resolved) => groups = resolved,
                Change::Delete(manifest) => crate::support::remove(&mut manifests, &manifest),
                Change::Attach(..) | Change::Detach(_) => {}
            }
        }
        (objects(&manifests), groups)
    })
}

#[test]
fn random_clusters_reach_every_kind_of_decision() {
    let mut reached: BTreeMap<(Direction, &str, bool), u32> = BTreeMap::new();
    for (objects, groups) in clusters(|history| history) {
        count(&objects, &groups, &mut reached);
    }
    for direction in Direction::BOTH {
        for kind in [
            ("default", true),
            ("NetworkPolicy", true),
            ("isolation", false),
            ("ClusterNetworkPolicy", true),
            ("ClusterNetworkPolicy", false),
            ("group", true),
            ("no group", false),
            ("invalid groups", false),
        ] {
            let count = reached.get(&(direction, kind.0, kind.1)).copied().unwrap_or_default();
            assert!(count >= 100, "{direction} {kind:?}: {count}");
        }
    }
}

#[test]
fn random_clusters_reach_every_kind_of_decision_about_the_own_node() {
    let mut reached: BTreeMap<(&str, bool), u32> = BTreeMap::new();
    let own = own_addresses(0);
    for (objects, groups) in clusters(naming_nodes) {
        let oracle = Oracle::new(&objects, &groups).at_node("node0", &own);
        let pods = pods(&objects);
        let here = |pod: &&&Pod| pod.node.as_deref() == Some("node0");
        for pod in pods.iter().filter(here).filter(|pod| !pod.host_network && !pod.finished) {
            for address in &own {
                for (protocol, port) in [(6, PORTS[3]), (17, PORTS[5]), (1, 0x0800)] {
                    let half = oracle.judge(Direction::Egress, pod, *address, protocol, port);
                    for kind in kinds(&half) {
                        *reached.entry(kind).or_default() += 1;
                    }
                }
            }
        }
    }
    let kinds = [
        ("default", true),
        ("NetworkPolicy", true),
        ("ClusterNetworkPolicy", true),
        ("ClusterNetworkPolicy", false),
    ];
    for kind in kinds {
        let count = reached.get(&kind).copied().unwrap_or_default();
        assert!(count >= 20, "{kind:?}: {count} of {reached:?}");
    }
    assert_eq!(reached.len(), kinds.len(), "{reached:?}");
}

fn count(
    objects: &[Object],
    groups: &SecurityGroups,
    reached: &mut BTreeMap<(Direction, &'static str, bool), u32>,
) {
    let oracle = Oracle::new(objects, groups);
    let pods = pods(objects);
    let addresses = pods.iter().flat_map(|pod| pod.addresses.iter().copied()).chain(outside());
    for peer in addresses {
        for pod in pods.iter().filter(|pod| !pod.host_network && !pod.finished) {
            for direction in Direction::BOTH {
                for (protocol, port) in [(6, PORTS[3]), (17, PORTS[5]), (1, 0x0800)] {
                    let half = oracle.judge(direction, pod, peer, protocol, port);
                    for (kind, allowed) in kinds(&half) {
                        *reached.entry((direction, kind, allowed)).or_default() += 1;
                    }
                }
            }
        }
    }
}
