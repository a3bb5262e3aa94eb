//! docs/configuration.md: the registry as a page for people. A test of venictl holds the page in the repository
//! against it: no files are read here.

use std::fmt::Write as _;

use super::variables::{Support, VARIABLES, Variable};

const INTRODUCTION: &str = "# Configuration

Made from the code (`core/src/config/variables.rs`, `traps.rs`) by `VENI_UPDATE_DOCS=1 cargo test -p veni-ctl --lib page`;
`venictl config` prints the same, `venictl config -o json` for programs. All settings of the daemon are environment variables:
`env` in the chart's values, where `helm upgrade` replaces the pods one after the other, with nothing lost.

A value that would put pods in the wrong network or leave them unprotected is refused: the daemon does not start and names
every such value at once. One that can be worked around is a warning in the log, and the default holds. A name that is
almost one of these is warned about.

**honoured**: it does what it says. **ignored**: setting it is fine and does nothing. **warned**, **refused**: not here (yet);
what happens at which value is said.
";

/// Where a part of the page begins: the part's first variable.
const PARTS: [(&str, &str); 5] = [
    ("WARM_ENI_TARGET", "The pool and its ENIs"),
    ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "Addresses, SNAT and links"),
    ("ENABLE_IPv4", "Families, security groups, policy, annotations"),
    ("AWS_VPC_K8S_CNI_LOGLEVEL", "Operations"),
    ("VENI_MAX_PODS", "veni's own"),
];

/// The whole page.
#[must_use]
pub fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for variable in VARIABLES {
        if let Some((_, part)) = PARTS.iter().find(|(first, _)| *first == variable.name) {
            page += &format!(
                "\n## {part}\n\n| variable | default | veni | meaning | trap |\n|---|---|---|---|---|\n"
            );
        }
        page += &row(variable);
    }
    page
}

fn row(variable: &Variable) -> String {
    let Variable { name, default, meaning, support } = variable;
    let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
    let standing = match (variable.unsupported_values(), support) {
        (Some(values), Support::Warned(why) | Support::Refused(why)) => {
            format!("{} if {values}: {why}", support.word())
        }
        _ => support.word().to_owned(),
    };
    let cells = [&standing, *meaning, variable.trap().unwrap_or_default()];
    let mut row = format!("| `{name}` | {default} |");
    for cell in cells {
        write!(row, " {} |", in_cell(cell)).expect("a String takes everything");
    }
    row + "\n"
}

/// What follows a pipe would be a column of its own.
fn in_cell(text: &str) -> String {
    text.replace('|', r"\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{find, traps::TRAPS};

    #[test]
    fn a_pipe_in_a_cell_is_escaped_once() {
        assert_eq!(in_cell("strict|none"), "strict\\|none");
    }

    #[test]
    fn every_part_and_every_trap_is_of_a_variable() {
        let names = PARTS.iter().map(|(first, _)| first).chain(TRAPS.iter().map(|(name, _)| name));
        for name in names {
            assert!(find(name).is_some(), "{name}");
        }
        for (i, (name, _)) in TRAPS.iter().enumerate() {
            assert!(TRAPS[i + 1..].iter().all(|(other, _)| other != name), "{name}");
        }
        for variable in VARIABLES {
            assert!(page().contains(&format!("\n| `{}` |", variable.name)), "{}", variable.name);
        }
    }
}
