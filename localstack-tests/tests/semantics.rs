//! The extension's own tests (Python, in its process, without a server).

use std::{path::Path, process::Command};

#[test]
fn the_semantics_extension_passes_its_own_tests() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.join("../.tools/localstack/bin/python");
    assert!(python.exists(), "LocalStack is not installed: run hack/localstack.sh");
    let ran = Command::new(python)
        .args(["-B", "-m", "unittest", "discover", "-v", "-s"])
        .arg(here.join("semantics/tests"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&ran.stderr);
    println!("{told}");
    assert!(ran.status.success(), "{told}");
    assert!(!told.contains("Ran 0 tests"), "{told}");
}
