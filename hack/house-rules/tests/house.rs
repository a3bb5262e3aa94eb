//! The house rules: who may depend on what, and under which licences.

use std::collections::BTreeSet;

use veni_house_rules::{Deny, Metadata, root};

/// What the pure crates may name: data types and derives, nothing that does I/O or tells the time.
const PURE: &[(&str, &[&str])] = &[
    ("veni-core", &["ipnet", "serde", "serde_json", "thiserror"]),
    ("veni-provider", &["ipnet", "serde", "serde_json", "thiserror", "veni-core"]),
    (
        "veni-policy",
        &["foldhash", "ipnet", "serde", "serde_json", "thiserror", "veni-core", "veni-ebpf-common"],
    ),
    // The last three make definitions, behind the feature `schema`.
    (
        "veni-eniconfig-crd",
        &["serde", "serde_json", "veni-core", "kube", "k8s-openapi", "schemars"],
    ),
];

/// What the plugin may not pull in, at any depth: an asynchronous runtime, BPF, the AWS SDK.
const NOT_IN_THE_PLUGIN: &[&str] = &["tokio", "aya", "aws-sdk-ec2", "aws-config", "hyper", "clap"];

#[test]
fn banned_crates_are_named_by_their_wrappers_only() {
    let (metadata, deny) = (Metadata::load().unwrap(), Deny::load().unwrap());
    let dependents = metadata.dependents();
    for ban in &deny.bans.deny {
        let named_by = dependents.get(ban.name.as_str()).cloned().unwrap_or_default();
        let foreign: Vec<_> =
            named_by.iter().filter(|name| !ban.wrappers.iter().any(|w| w == *name)).collect();
        assert!(
            foreign.is_empty(),
            "{} is a dependency of {foreign:?}; deny.toml allows {:?}",
            ban.name,
            ban.wrappers
        );
    }
}

#[test]
fn every_ban_with_wrappers_names_a_crate_that_is_there() {
    let (metadata, deny) = (Metadata::load().unwrap(), Deny::load().unwrap());
    let known: BTreeSet<_> =
        metadata.packages.iter().map(|package| package.name.as_str()).collect();
    for ban in deny.bans.deny.iter().filter(|ban| !ban.wrappers.is_empty()) {
        assert!(
            known.contains(ban.name.as_str()),
            "deny.toml rules {}, which nothing uses",
            ban.name
        );
        for wrapper in &ban.wrappers {
            assert!(
                known.contains(wrapper.as_str()),
                "deny.toml names {wrapper}, which is not here"
            );
        }
    }
}

#[test]
fn every_licence_is_accepted() {
    let (metadata, deny) = (Metadata::load().unwrap(), Deny::load().unwrap());
    let refused: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| !deny.accepts_licence_of(package))
        .map(|package| format!("{} {}: {:?}", package.name, package.version, package.license))
        .collect();
    assert!(refused.is_empty(), "licences outside deny.toml's list: {refused:#?}");
}

#[test]
fn pure_crates_name_nothing_that_does_io() {
    let metadata = Metadata::load().unwrap();
    for (name, allowed) in PURE {
        let package = metadata
            .ours()
            .find(|package| package.name == *name)
            .expect("a member of the workspace");
        for dependency in package.dependencies.iter().filter(|d| d.kind.is_none()) {
            assert!(
                allowed.contains(&dependency.name.as_str()),
                "{name} must not depend on {}",
                dependency.name
            );
        }
    }
}

#[test]
fn the_plugin_stays_small() {
    let output = std::process::Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--package=veni-cni",
            "--edges=normal",
            "--prefix=none",
            "--format={p}",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    for line in tree.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        assert!(!NOT_IN_THE_PLUGIN.contains(&name), "veni-cni pulls in {name}");
    }
}

#[test]
fn crates_from_the_registry_are_pinned_in_one_place() {
    for package in Metadata::load().unwrap().ours() {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        for (number, line) in manifest.lines().enumerate() {
            let own_version = line.contains("version = \"") && line.contains('{');
            assert!(!own_version, "{} line {}: use `workspace = true`", package.name, number + 1);
        }
    }
}

#[test]
fn every_test_target_is_in_a_tier() {
    let tiers = std::fs::read_to_string(root().join("hack/tiers.sh")).unwrap();
    let words: Vec<&str> = tiers.split_whitespace().collect();
    let named: BTreeSet<&str> = words
        .windows(2)
        .filter(|pair| pair[0] == "--test")
        .map(|pair| pair[1].trim_end_matches(';'))
        .collect();
    assert!(named.contains("house") && !named.contains("linked"), "{named:?}");
    // The tier that compiles the AWS SDK runs all that these have.
    let whole = ["veni-provider-aws", "veni-localstack-tests"];
    for package in Metadata::load().unwrap().ours().filter(|p| !whole.contains(&p.name.as_str())) {
        for target in &package.targets {
            let is_in = match target.kind[0].as_str() {
                "test" => named.contains(target.name.as_str()),
                "bin" => words.contains(&"--bins"),
                "lib" => words.contains(&"--lib"),
                _ => true,
            };
            assert!(is_in, "{} of {} is in no tier", target.name, package.name);
        }
    }
}

#[expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]
fn sources(folder: &std::path::Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, text);
        } else if entry.file_name().is_some_and(|name| name != "tests.rs") {
            let source = std::fs::read_to_string(&entry).unwrap();
            text.push_str(source.split("#[cfg(test)]").next().unwrap_or_default());
        }
    }
}

#[test]
fn every_metric_of_the_daemon_is_in_its_page() {
    let page = std::fs::read_to_string(root().join("docs/http.md")).unwrap();
    let mut code = String::new();
    sources(&root().join("ipamd/src"), &mut code);
    let is_name = |word: &&str| {
        (word.starts_with("veni_") || word.starts_with("awscni_"))
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let names: BTreeSet<_> = code.split('"').filter(is_name).collect();
    assert!(names.contains("veni_watch_bytes") && names.len() > 30, "{names:?}");
    let lacking: Vec<_> = names.iter().filter(|name| !page.contains(**name)).collect();
    assert!(lacking.is_empty(), "docs/http.md lacks {lacking:?}");
}

/// Each pure crate's clippy.toml shuts the standard library's doors: files, sockets, clocks, the environment.
#[test]
fn pure_crates_have_no_way_out() {
    let doors = |name: &str| {
        let folder = name.strip_prefix("veni-").unwrap();
        let path = root().join(folder).join("clippy.toml");
        let text = std::fs::read_to_string(&path);
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.lines().filter(|line| line.contains("pure crate: ")).count()
    };
    let most = doors("veni-core");
    assert!(most > 10);
    for (name, _) in PURE {
        assert_eq!(doors(name), most, "{name}");
    }
}

/// `veni-ipamd` is its own dev-dependency: cargo takes `--features veni-ipamd/x` for that one's, which a build leaves out.
#[test]
fn programs_are_built_with_features_that_reach_them() {
    for path in ["Dockerfile", "hack/build.sh", "Makefile"] {
        let text = std::fs::read_to_string(root().join(path)).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let lost: Vec<_> = code.filter(|line| line.contains("veni-ipamd/")).collect();
        assert!(lost.is_empty(), "{path}: {lost:?}");
    }
}

#[test]
fn the_controllers_page_has_its_variables_and_metrics() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (page, settings, metrics) = (
        read("docs/controller.md"),
        read("controller/src/settings.rs"),
        read("controller/src/metrics.rs"),
    );
    let table = settings.split("pub const VARIABLES").nth(1).unwrap().split("];").next().unwrap();
    let quoted = |text: &str| text.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let in_the_table: Vec<String> = quoted(table);
    let variables: Vec<_> = in_the_table.chunks(3).map(|row| &row[0]).collect();
    assert!(variables.contains(&&"CLUSTER_NAME".to_owned()), "{variables:?}");
    for name in variables {
        assert!(page.contains(&format!("\n| `{name}` |")), "docs/controller.md lacks {name}");
    }
    let in_metrics: Vec<String> = quoted(metrics.split("#[cfg(test)]").next().unwrap());
    let names: Vec<_> =
        in_metrics.iter().filter(|text| text.starts_with("veni_controller_")).collect();
    assert!(!names.is_empty());
    for name in names {
        assert!(page.contains(&format!("\n| `{name}")), "docs/controller.md lacks {name}");
    }
}
