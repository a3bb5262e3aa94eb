//! The dependency graph as `cargo metadata` tells it, and the rules of `deny.toml` that can be checked with it alone.
//!
//! `cargo-deny` checks the same and more, but takes minutes to install: these rules hold on every `make test`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

/// The packages of the workspace and everything that they can pull in.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// Every package, ours and others'.
    pub packages: Vec<Package>,
}

/// A package.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its SPDX expression.
    pub license: Option<String>,
    /// Where it comes from; `None` for ours.
    pub source: Option<String>,
    /// Where its manifest is.
    pub manifest_path: PathBuf,
    /// What it names in its manifest.
    pub dependencies: Vec<Dependency>,
    /// What is built of it.
    pub targets: Vec<Target>,
}

/// A library, a binary, a test.
#[derive(Debug, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `lib`, `bin`, `test`, …
    pub kind: Vec<String>,
}

/// A dependency as a manifest names it.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The package's name.
    pub name: String,
    /// `dev`, `build`, or none for an ordinary one.
    pub kind: Option<String>,
}

/// The part of `deny.toml` that is checked here.
#[derive(Debug, Deserialize)]
pub struct Deny {
    /// Which licences are fine.
    pub licenses: Licenses,
    /// Who may depend on what.
    pub bans: Bans,
}

/// `[licenses]`.
#[derive(Debug, Deserialize)]
pub struct Licenses {
    /// SPDX identifiers.
    pub allow: Vec<String>,
    /// Crates with licences of their own.
    pub exceptions: Vec<LicenseException>,
}

/// `[licenses] exceptions`.
#[derive(Debug, Deserialize)]
pub struct LicenseException {
    /// The crate.
    #[serde(rename = "crate")]
    pub name: String,
    /// What is fine for it.
    pub allow: Vec<String>,
}

/// `[bans]`.
#[derive(Debug, Deserialize)]
pub struct Bans {
    /// The banned crates.
    pub deny: Vec<Ban>,
}

/// A crate that only its wrappers may name.
#[derive(Debug, Deserialize)]
pub struct Ban {
    /// The crate.
    #[serde(rename = "crate")]
    pub name: String,
    /// The crates that may depend on it directly.
    #[serde(default)]
    pub wrappers: Vec<String>,
}

// === impl Metadata ===

impl Metadata {
    /// What `cargo metadata` says of the workspace that holds this crate.
    ///
    /// # Errors
    /// When cargo fails.
    pub fn load() -> anyhow::Result<Self> {
        let output = Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--format-version=1",
                "--locked",
                "--filter-platform=x86_64-unknown-linux-gnu",
            ])
            .current_dir(root())
            .output()?;
        ensure!(
            output.status.success(),
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Our own packages.
    pub fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| package.source.is_none())
    }

    /// Which packages name each package, as an ordinary or build dependency. What others' packages name behind a
    /// feature that nobody asks for is not there, and does not count; what ours name always does.
    #[must_use]
    pub fn dependents(&self) -> BTreeMap<&str, Vec<&str>> {
        let there: BTreeSet<&str> = self.packages.iter().map(|p| p.name.as_str()).collect();
        let mut dependents = BTreeMap::<_, Vec<_>>::new();
        for package in &self.packages {
            for dependency in package.dependencies.iter().filter(|d| {
                d.kind.as_deref() != Some("dev")
                    && (package.source.is_none() || there.contains(d.name.as_str()))
            }) {
                dependents.entry(dependency.name.as_str()).or_default().push(package.name.as_str());
            }
        }
        dependents
    }
}

// === impl Deny ===

impl Deny {
    /// The workspace's `deny.toml`.
    ///
    /// # Errors
    /// When it is missing or malformed.
    pub fn load() -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(root().join("deny.toml")).context("reading deny.toml")?;
        Ok(toml::from_str(&text)?)
    }

    /// Whether `package` may be used under a licence that we accept: one term of each `OR`, all of each `AND`.
    #[must_use]
    pub fn accepts_licence_of(&self, package: &Package) -> bool {
        let exception = self.licenses.exceptions.iter().find(|e| e.name == package.name);
        let allowed = exception.map_or(&self.licenses.allow, |e| &e.allow);
        package.license.as_deref().is_some_and(|expression| satisfied(expression, allowed))
    }
}

/// The workspace's directory.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// SPDX expressions as crates write them: `AND` binds tighter than `OR`, parentheses, and the old `/` for `OR`.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    for (operator, all) in [(" OR ", false), (" AND ", true)] {
        let terms = split_outside_parentheses(expression, operator);
        if terms.len() > 1 {
            let mut held = terms.into_iter().map(|term| satisfied(term, allowed));
            return if all { held.all(|ok| ok) } else { held.any(|ok| ok) };
        }
    }
    match expression.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => satisfied(inner, allowed),
        None => allowed.iter().any(|id| id == expression),
    }
}

fn split_outside_parentheses<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0usize);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 && at >= start && text[at..].starts_with(separator) => {
                parts.push(&text[start..at]);
                start = at + separator.len();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions_follow_spdx() {
        let allowed = ["MIT".to_string(), "Apache-2.0".into(), "Unicode-3.0".into()];
        let check = |expression, expect| {
            assert_eq!(satisfied(expression, &allowed), expect, "{expression}")
        };
        check("MIT", true);
        check("MIT OR GPL-3.0", true);
        check("GPL-3.0 OR LGPL-2.1", false);
        check("MIT/GPL-3.0", true);
        check("MIT AND GPL-3.0", false);
        check("(MIT OR GPL-3.0) AND Unicode-3.0", true);
        check("(GPL-2.0 OR GPL-3.0) AND Unicode-3.0", false);
        check("", false);
    }
}
