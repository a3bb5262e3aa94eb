//! The tier runner, on tiers made up for it: nothing that went wrong may look like success.
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::{
    os::unix::fs::MetadataExt as _,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use veni_house_rules::root;

const OK: &str = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored'";

/// Runs hack/test.sh over one tier, `made_up`, with this body.
fn run(body: &str) -> Output {
    // Bodies of one length ran at once: one took the other's folder away.
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("veni-runner-{}-{run}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let tiers = dir.join("tiers.sh");
    std::fs::write(&tiers, format!("TIERS=(made_up)\ntier_made_up() {{\n{body}\n}}\n")).unwrap();
    let output = Command::new(root().join("hack/test.sh"))
        .env("VENI_TIERS", &tiers)
        .env("VENI_TEST_LOGS", &dir)
        .output()
        .unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    output
}

#[track_caller]
fn check(body: &str, succeeds: bool, last_lines: &str) {
    let output = run(body);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.success(), succeeds, "{text}");
    assert!(text.contains(last_lines), "{last_lines:?} is not in:\n{text}");
}

#[test]
fn counts_are_summed_over_commands() {
    check(&format!("{OK}\n{OK}"), true, "\n6 passed, 0 failed, 0 skipped");
}

#[test]
fn a_tier_that_ran_nothing_has_failed() {
    check("echo 'test result: ok. 0 passed; 0 failed'", false, "DID NOT RUN");
}

#[test]
fn a_failed_test_fails_the_run() {
    check(
        "echo 'test result: FAILED. 2 passed; 1 failed'; return 1",
        false,
        "\n2 passed, 1 failed, 0 skipped",
    );
}

#[test]
fn a_command_that_fails_before_its_tests_fails_the_run_although_others_passed() {
    check(&format!("false\n{OK}"), false, "\n3 passed, 1 failed, 0 skipped");
}

#[test]
fn a_check_is_a_test() {
    check(
        "check fine true\ncheck 'not fine' false\ncheck fine true",
        false,
        "\n2 passed, 1 failed, 0 skipped",
    );
}

#[test]
fn a_skip_is_shown_with_its_reason_and_counted() {
    let body = format!("echo 'SKIPPED: CONFIG_NETKIT'\n{OK}");
    check(&body, !is_root(), "1 SKIPPED: CONFIG_NETKIT");
    let failed = u8::from(is_root());
    check(&body, !is_root(), &format!("\n3 passed, {failed} failed, 1 skipped"));
}

/// Root has what the tests need.
#[test]
fn root_skips_nothing() {
    let word = if is_root() { "SKIPPED AS ROOT" } else { " ok\n" };
    check(&format!("echo 'SKIPPED: CAP_SYS_ADMIN'\n{OK}"), !is_root(), word);
}

#[test]
fn a_tier_that_there_is_not_is_refused_before_any_runs() {
    let output = Command::new(root().join("hack/test.sh"))
        .args(["house", "nope"])
        .env("VENI_TEST_LOGS", std::env::temp_dir())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("no tier 'nope'; there are: lint house unit"), "{said}");
    assert!(output.stdout.is_empty(), "a tier ran");
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}
