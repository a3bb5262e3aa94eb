use super::*;
use crate::{
    config::Targets,
    limits::{self, Hypervisor, NetworkCard},
};

fn of(instance_type: &str) -> InstanceLimits {
    limits::lookup(&instance_type.parse().unwrap()).unwrap()
}

fn shape(max_enis: u32, slots: u32) -> InstanceLimits {
    InstanceLimits {
        max_enis,
        addresses_per_eni: slots + 1,
        default_network_card: 0,
        network_cards: vec![NetworkCard { index: 0, max_enis }],
        hypervisor: Hypervisor::Nitro,
        bare_metal: false,
    }
}

fn settings(vars: &[(&str, &str)]) -> PoolSettings {
    PoolSettings::from_vars(vars.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))).unwrap().0
}

/// (ENIs, total, assigned, prefixes, pending)
type Sums = (u32, u32, u32, u32, u32);

fn sums(outcome: &Outcome) -> Sums {
    let Steady { enis, addresses, prefixes, pending } = outcome.steady;
    assert_eq!(addresses.total, addresses.assigned + addresses.warm);
    (enis, addresses.total, addresses.assigned, prefixes, pending)
}

/// Type, variables, pods, maxPods, and what the pool settles in.
type Case = (&'static str, &'static [(&'static str, &'static str)], u32, Option<u32>, Sums);

#[rustfmt::skip] // a table
const KNOWN: &[Case] = &[
    // Defaults: one spare ENI. AWS's own examples hold 60 and 100 addresses, primaries included.
    ("m5.large", &[], 0, None, (1, 9, 0, 0, 0)),
    ("m5.large", &[], 1, None, (2, 18, 1, 0, 0)),
    ("m5.large", &[], 9, None, (2, 18, 9, 0, 0)),
    ("m5.large", &[], 10, None, (3, 27, 10, 0, 0)),
    ("m5.8xlarge", &[], 10, None, (2, 58, 10, 0, 0)),
    ("m5.16xlarge", &[], 10, None, (2, 98, 10, 0, 0)),
    ("m5.large", &[], 40, None, (3, 27, 27, 0, 13)),
    // No spare ENI: the example of the documentation.
    ("m5.large", &[("WARM_ENI_TARGET", "0")], 11, None, (2, 18, 11, 0, 0)),
    ("m5.large", &[("WARM_ENI_TARGET", "0")], 0, None, (1, 9, 0, 0, 0)),
    ("m5.large", &[("WARM_ENI_TARGET", "0")], 8, None, (1, 9, 8, 0, 0)),
    ("m5.large", &[("WARM_ENI_TARGET", "0")], 27, None, (3, 27, 27, 0, 0)),
    ("m5.large", &[("WARM_ENI_TARGET", "2")], 1, None, (3, 27, 1, 0, 0)),
    ("m5.large", &[("MAX_ENI", "2")], 20, None, (2, 18, 18, 0, 2)),
    ("m5.large", &[("MAX_ENI", "99")], 20, None, (3, 27, 20, 0, 0)),
    // Targets.
    ("m5.xlarge", &[("WARM_IP_TARGET", "5"), ("MINIMUM_IP_TARGET", "10")], 0, None, (1, 10, 0, 0, 0)),
    ("m5.xlarge", &[("WARM_IP_TARGET", "5"), ("MINIMUM_IP_TARGET", "10")], 6, None, (1, 11, 6, 0, 0)),
    ("m5.xlarge", &[("WARM_IP_TARGET", "5"), ("MINIMUM_IP_TARGET", "10")], 30, None, (3, 35, 30, 0, 0)),
    ("m5.xlarge", &[("WARM_IP_TARGET", "5")], 60, None, (4, 56, 56, 0, 4)),
    ("m5.large", &[("MINIMUM_IP_TARGET", "5")], 11, None, (1, 5, 5, 0, 6)),
    ("m5.large", &[("WARM_IP_TARGET", "100")], 0, None, (3, 27, 0, 0, 0)),
    // The clamp stops growth, not a step that is begun.
    ("m5.large", &[], 1, Some(9), (1, 9, 1, 0, 0)),
    ("m5.large", &[], 12, Some(10), (2, 18, 12, 0, 0)),
    ("m5.large", &[("WARM_IP_TARGET", "5")], 20, Some(10), (2, 10, 10, 0, 10)),
    ("m5.large", &[], 3, Some(0), (1, 0, 0, 0, 3)),
];

#[test]
fn known_states_are_met() {
    for (instance_type, vars, pods, max_pods, expect) in KNOWN {
        let outcome = steady(&of(instance_type), &settings(vars), *pods, *max_pods);
        assert_eq!(
            sums(&outcome),
            *expect,
            "{instance_type} {vars:?} {pods} pods, max {max_pods:?}"
        );
    }
}

#[test]
fn known_states_with_prefixes_are_met() {
    let check = |instance_type: &str, vars: &[(&str, &str)], pods: u32, expect: Sums| {
        let vars = [vars, &[("ENABLE_PREFIX_DELEGATION", "true")]].concat();
        let outcome = steady(&of(instance_type), &settings(&vars), pods, None);
        assert_eq!(sums(&outcome), expect, "{instance_type} {vars:?} {pods} pods");
    };
    check("m5.large", &[("WARM_PREFIX_TARGET", "1")], 0, (1, 16, 0, 1, 0));
    check("m5.large", &[("WARM_PREFIX_TARGET", "1")], 1, (1, 32, 1, 2, 0));
    check("m5.large", &[("WARM_PREFIX_TARGET", "1")], 17, (1, 48, 17, 3, 0));
    check("m5.large", &[("WARM_PREFIX_TARGET", "1")], 150, (2, 176, 150, 11, 0));
    check("t3.small", &[("WARM_PREFIX_TARGET", "1")], 200, (3, 144, 144, 9, 56));
    check("m5.large", &[("WARM_IP_TARGET", "5"), ("MINIMUM_IP_TARGET", "20")], 0, (1, 32, 0, 2, 0));
    check(
        "m5.large",
        &[("WARM_IP_TARGET", "5"), ("WARM_PREFIX_TARGET", "1")],
        12,
        (1, 32, 12, 2, 0),
    );
    check("m5.large", &[("MINIMUM_IP_TARGET", "20")], 40, (1, 32, 32, 2, 8));
    // ENI targets do not count here.
    check(
        "m5.large",
        &[("WARM_ENI_TARGET", "2"), ("WARM_PREFIX_TARGET", "1")],
        3,
        (1, 32, 3, 2, 0),
    );
    // Nothing kept warm: a prefix comes when the last address goes.
    check("m5.large", &[], 5, (1, 16, 5, 1, 0));
    check("m5.large", &[], 20, (1, 32, 20, 2, 0));
}

#[test]
fn what_never_settles_answers_its_fullest_state_and_says_so() {
    let check = |vars: &[(&str, &str)], pods: u32, expect: Sums, restless: bool| {
        let outcome = steady(&of("m5.large"), &settings(vars), pods, None);
        assert_eq!(sums(&outcome), expect, "{vars:?} {pods}");
        assert_eq!(
            outcome.notes.iter().any(|n| n.contains("does not settle")),
            restless,
            "{:?}",
            outcome.notes
        );
    };
    check(&[("WARM_ENI_TARGET", "0")], 9, (2, 18, 9, 0, 0), true);
    check(&[("WARM_ENI_TARGET", "0")], 10, (2, 18, 10, 0, 0), false);
    check(&[("WARM_ENI_TARGET", "0")], 27, (3, 27, 27, 0, 0), false);
    check(&[("ENABLE_PREFIX_DELEGATION", "true")], 0, (1, 16, 0, 1, 0), true);
    check(&[("ENABLE_PREFIX_DELEGATION", "true")], 32, (1, 48, 32, 3, 0), true);
}

#[test]
fn a_xen_instance_falls_back_to_single_addresses() {
    let vars = [("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_PREFIX_TARGET", "1")];
    let outcome = steady(&of("m4.4xlarge"), &settings(&vars), 10, None);
    assert_eq!(sums(&outcome), (2, 58, 10, 0, 0));
    assert!(outcome.notes[0].contains("Nitro"), "{:?}", outcome.notes);
}

#[test]
fn reserved_enis_and_frozen_pools_are_honoured() {
    let check = |vars: &[(&str, &str)], pods: u32, expect: Sums| {
        assert_eq!(
            sums(&steady(&of("m5.large"), &settings(vars), pods, None)),
            expect,
            "{vars:?} {pods}"
        );
    };
    check(&[("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true")], 0, (2, 9, 0, 0, 0));
    check(&[("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true")], 30, (3, 18, 18, 0, 12));
    check(&[("ENABLE_POD_ENI", "true")], 30, (2, 18, 18, 0, 12));
    check(&[("DISABLE_NETWORK_RESOURCE_PROVISIONING", "true")], 2, (1, 0, 0, 0, 2));
}

#[test]
fn the_json_is_the_documented_one() {
    let outcome = steady(&of("m5.large"), &settings(&[("WARM_ENI_TARGET", "0")]), 11, None);
    assert_eq!(
        serde_json::to_string(&outcome.steady).unwrap(),
        r#"{"enis":2,"addresses":{"total":18,"assigned":11,"warm":7},"prefixes":0,"pending":0}"#
    );
}

/// The same states in closed form, from the formulas rather than from the model: slots that the targets want for
/// `pods`, cut at what the instance holds.
fn closed_form(max_enis: u32, slots: u32, targets: &Targets, pods: u32) -> Sums {
    let Targets { warm_eni, warm_ip, minimum_ip, warm_prefix, prefix_delegation } = *targets;
    let size = if prefix_delegation { 16 } else { 1 };
    let capacity = max_enis * slots;
    // MINIMUM_IP_TARGET alone is a ceiling, too.
    let trap = warm_ip == 0 && minimum_ip > 0;
    let limit = if trap { capacity.min(minimum_ip.div_ceil(size)) } else { capacity };
    let placed = pods.min(limit * size);
    let wanted = if trap {
        limit
    } else if warm_ip > 0 {
        (placed + warm_ip).max(minimum_ip).div_ceil(size)
    } else if prefix_delegation {
        placed.div_ceil(16) + warm_prefix
    } else if warm_eni > 0 {
        (placed.div_ceil(slots) + warm_eni) * slots
    } else {
        (placed / slots + 1) * slots
    };
    let cidrs = wanted.min(capacity);
    let prefixes = if prefix_delegation { cidrs } else { 0 };
    (cidrs.div_ceil(slots).max(1), cidrs * size, placed, prefixes, pods - placed)
}

#[test]
fn the_model_agrees_with_the_closed_forms() {
    let mut compared = 0;
    for (max_enis, slots) in [(1, 1), (2, 1), (2, 3), (3, 3), (3, 9), (4, 5), (4, 14), (8, 29)] {
        let limits = shape(max_enis, slots);
        for prefix_delegation in [false, true] {
            for (warm_eni, warm_ip, minimum_ip, warm_prefix) in [
                (0, 0, 0, 1),
                (1, 0, 0, 1),
                (2, 0, 0, 2),
                (5, 0, 0, 7),
                (1, 1, 0, 0),
                (1, 2, 0, 0),
                (1, 5, 0, 1),
                (1, 5, 10, 0),
                (1, 1, 40, 0),
                (1, 16, 16, 0),
                (1, 17, 33, 3),
                (1, 0, 7, 0),
                (0, 0, 33, 1),
                (1, 1000, 0, 0),
            ] {
                let targets =
                    Targets { warm_eni, warm_ip, minimum_ip, warm_prefix, prefix_delegation };
                let settings = PoolSettings { targets, ..PoolSettings::default() };
                let most = max_enis * slots * if prefix_delegation { 16 } else { 1 };
                for pods in (0..40).chain([most - 1, most, most + 3]) {
                    let outcome = steady(&limits, &settings, pods, None);
                    assert_eq!(
                        sums(&outcome),
                        closed_form(max_enis, slots, &targets, pods),
                        "{max_enis} ENIs of {slots} slots, {targets:?}, {pods} pods"
                    );
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 8 * 2 * 14 * 43);
}

#[test]
fn every_instance_type_settles_with_every_kind_of_target() {
    let kinds: [&[(&str, &str)]; 5] = [
        &[],
        &[("WARM_ENI_TARGET", "0")],
        &[("WARM_IP_TARGET", "3"), ("MINIMUM_IP_TARGET", "12")],
        &[("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_PREFIX_TARGET", "1")],
        &[("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_IP_TARGET", "3")],
    ];
    let kinds = kinds.map(settings);
    for (instance_type, limits) in limits::all() {
        for settings in &kinds {
            let Steady { enis, addresses, pending, .. } =
                steady(&limits, settings, 30, Some(110)).steady;
            let fits = (limits.enis_for_pods() * limits.pod_addresses_per_eni()).min(30);
            assert!(enis <= limits.enis_for_pods(), "{instance_type}");
            assert!(
                addresses.assigned >= fits && addresses.assigned + pending == 30,
                "{instance_type}"
            );
        }
    }
}
