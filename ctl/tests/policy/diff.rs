//! `policy diff`.

use super::*;

#[test]
fn diff_tells_what_changes() {
    let old = two_pods() + DENY_TO_B;
    let new = two_pods() + &pod("x/late", "10.0.0.3", NO_PORT);
    let dir = folder(&[("old.yaml", &old), ("new.yaml", &new)]);
    let output = venictl(dir.path(), &["diff", "-f", "old.yaml", "-f", "new.yaml", "-o", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).expect("a document");
    let changes: Vec<_> = document["changes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|c| {
            json!([c["from"], c["to"], c["port"], c["before"]["allowed"], c["after"]["allowed"]])
        })
        .collect();
    assert_eq!(
        json!(changes),
        json!([["x/a", "y/b", 80, false, true], ["x/late", "y/b", 80, null, true]])
    );
    let same = venictl(dir.path(), &["diff", "-f", "old.yaml", "-f", "old.yaml"]);
    assert_eq!(String::from_utf8_lossy(&same.stdout), "No connection changes.\n");
}

#[test]
fn diff_says_where_there_are_no_pods_to_compare() {
    let with_pods = two_pods() + DENY_TO_B;
    let dir = folder(&[("none.yaml", DENY_TO_B), ("pods.yaml", &with_pods)]);
    for (old, new, code, words) in [
        ("none.yaml", "none.yaml", 2, "neither none.yaml nor none.yaml has a pod"),
        ("none.yaml", "pods.yaml", 0, "none.yaml has no pod with an address"),
        ("pods.yaml", "none.yaml", 0, "none.yaml has no pod with an address"),
        ("pods.yaml", "pods.yaml", 0, ""),
    ] {
        let output = venictl(dir.path(), &["diff", "-f", old, "-f", new]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{old} {new}: {said}");
        assert!(said.contains(words) && said.is_empty() == words.is_empty(), "{said}");
    }
}
