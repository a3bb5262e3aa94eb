//! Random histories: after every batch of changes the compiler's tables have the oracle's verdicts, and on the way
//! there every table is of before or of after, never a mixture.
//!
//! `VENI_POLICY_STATES` sets how many cluster states are judged, `VENI_POLICY_SEED` which. A failing history is shrunk
//! and its seed kept beside this file; `make test` runs the kept seeds first.

use std::path::Path;

use proptest::strategy::Strategy;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner,
};
use veni_core::config::Enforcing;
use veni_policy::index::Scope;

use crate::compiled::Compiled;
use crate::generate::{History, history, naming_nodes, own_addresses};

/// Batches after the first of each history.
const CHANGES: usize = 7;
/// The histories are divided among as many tests, which run side by side.
const PARTS: u32 = 4;

#[expect(clippy::disallowed_methods, reason = "a test's own settings; the crate has none")]
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")),
        Err(_) => default,
    }
}

#[expect(clippy::print_stderr, reason = "the seed of a run has to be known to repeat it")]
fn announce(text: &str) {
    eprintln!("{text}");
}

/// `scope` gives the index's view: every pod, or one node's; `enforcing` what its node does.
fn histories(part: u32, scope: &Scope, enforcing: Enforcing) {
    histories_of(part, history(CHANGES), scope, enforcing);
}

fn histories_of(
    part: u32,
    histories: impl Strategy<Value = History>,
    scope: &Scope,
    enforcing: Enforcing,
) {
    let states = setting("VENI_POLICY_STATES", 2_400);
    let seed = setting("VENI_POLICY_SEED", 20_251_121);
    let per_history = u64::try_from(CHANGES + 1).expect("few");
    let cases = states.div_ceil(per_history * u64::from(PARTS));
    announce(&format!(
        "VENI_POLICY_SEED={seed} VENI_POLICY_STATES={states}: part {part}, {cases} histories"
    ));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..12].copy_from_slice(&part.to_le_bytes());
    let config = Config {
        cases: u32::try_from(cases).expect("fewer than 2^32 histories"),
        max_shrink_iters: 20_000,
        max_shrink_time: 240_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(Path::new(file!()).to_str().expect("this path is text")),
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let run = |history: History| check(&history, scope, enforcing).map_err(TestCaseError::fail);
    if let Err(failure) = runner.run(&histories, run) {
        panic!("VENI_POLICY_SEED={seed}, part {part}: {failure}");
    }
}

fn check(history: &History, scope: &Scope, enforcing: Enforcing) -> Result<(), String> {
    let mut compiled = Compiled::new(scope.clone()).enforcing(enforcing);
    for (number, batch) in history.iter().enumerate() {
        if let Scope::Node(_) = scope {
            compiled.own_addresses(own_addresses(number));
        }
        compiled.apply(batch)?;
    }
    compiled.compare_with_fresh()
}

#[test]
fn tables_agree_with_the_oracle_part_0() {
    histories(0, &Scope::All, Enforcing::Standard);
}

#[test]
fn tables_agree_with_the_oracle_part_1() {
    histories(1, &Scope::All, Enforcing::Standard);
}

#[test]
fn tables_agree_with_the_oracle_part_2() {
    histories(2, &Scope::All, Enforcing::Standard);
}

#[test]
fn tables_of_one_node_agree_with_the_oracle() {
    histories(3, &Scope::Node("node0".to_owned()), Enforcing::Standard);
}

#[test]
fn tables_of_a_node_that_policies_name_agree_with_the_oracle() {
    let scope = Scope::Node("node0".to_owned());
    histories_of(6, history(CHANGES).prop_map(naming_nodes), &scope, Enforcing::Standard);
}

#[test]
fn tables_of_strict_nodes_agree_with_the_oracle() {
    histories(4, &Scope::All, Enforcing::Strict);
}

#[test]
fn tables_of_nodes_that_enforce_no_policy_agree_with_the_oracle() {
    histories(5, &Scope::All, Enforcing::None);
}
