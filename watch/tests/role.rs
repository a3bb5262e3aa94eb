//! The chart's ClusterRole grants what is read and written, and no more.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what does not hold")]

use std::{collections::BTreeSet, fs, path::Path};

use veni_watch::{Resource, WRITTEN};

/// `group/plural verb`.
type Grants = BTreeSet<String>;

/// The rules of the role, each in three lines: groups, resources, verbs. The rest of the file is a template.
fn granted() -> Grants {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/veni/templates/rbac.yaml");
    let text = fs::read_to_string(file).unwrap();
    let rules = text.split("\nrules:\n").nth(1).unwrap().split("---").next().unwrap();
    // What is granted on a condition is granted by the file.
    let template = |line: &&str| line.starts_with('#') || line.starts_with("{{-");
    let lines = rules.lines().map(str::trim).filter(|line| !template(line));
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len() % 3, 0, "{lines:#?}");
    let mut grants = Grants::new();
    for rule in lines.chunks(3) {
        let [group] = list(rule[0], "- apiGroups: ")[..] else { panic!("{rule:?}: one group") };
        for resource in list(rule[1], "resources: ") {
            for verb in list(rule[2], "verbs: ") {
                let fresh = grants.insert(format!("{group}/{resource} {verb}"));
                assert!(fresh, "{group}/{resource} {verb} is granted twice");
            }
        }
    }
    grants
}

fn list<'a>(line: &'a str, key: &str) -> Vec<&'a str> {
    let items = line.strip_prefix(key).and_then(|rest| rest.strip_prefix('[')).unwrap();
    let items = items.strip_suffix(']').unwrap();
    items.split(", ").map(|item| item.trim_matches('"')).collect()
}

#[test]
fn the_charts_role_grants_what_is_read_and_written_and_no_more() {
    let mut read = Grants::new();
    for resource in Resource::ALL {
        let name = format!("{}/{}", resource.group(), resource.plural());
        read.extend(["list", "watch"].map(|verb| format!("{name} {verb}")));
    }
    // Followed apart from what policy waits for.
    read.extend(["list", "watch"].map(|verb| format!("veni.dev/resolvedsecuritygroups {verb}")));
    // Asked for by name.
    read.extend(["/pods get", "/nodes get", "veni.dev/nodenetworkconfigs get"].map(str::to_owned));
    read.extend(WRITTEN.iter().map(|(group, name, verb)| format!("{group}/{name} {verb}")));
    assert_eq!(granted(), read);
}
