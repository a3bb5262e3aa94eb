//! `venictl config`: every variable.

use serde::Serialize;
use veni_core::config::{Support, VARIABLES};

use crate::{Report, cli::Format, text};

/// An element of what `-o json` prints (docs/venictl.md).
#[derive(Debug, Serialize)]
struct Document {
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
    /// `honoured`, `ignored`, `warned` or `refused`.
    support: &'static str,
    /// Which values are warned about or refused: `true`, `set`; all others are fine.
    #[serde(skip_serializing_if = "Option::is_none")]
    when: Option<String>,
    /// What happens when it is set to something else than the default, where it is not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    consequence: Option<&'static str>,
    /// What it does that its name does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    trap: Option<&'static str>,
}

pub(crate) fn report(format: Format) -> anyhow::Result<Report> {
    let document: Vec<_> = VARIABLES
        .iter()
        .map(|variable| Document {
            name: variable.name,
            default: variable.default,
            meaning: variable.meaning,
            support: variable.support.word(),
            when: variable.unsupported_values(),
            consequence: match variable.support {
                Support::Warned(sentence) | Support::Refused(sentence) => Some(sentence),
                Support::Honoured | Support::Ignored => None,
            },
            trap: variable.trap(),
        })
        .collect();
    Report::of(format, &document, || {
        let rows = document.iter().map(|v| {
            let default = if v.default.is_empty() { "-" } else { v.default };
            let support = match &v.when {
                Some(values) => format!("{} if {values}", v.support),
                None => v.support.to_owned(),
            };
            let parts = [Some(v.meaning), v.consequence, v.trap];
            let meaning = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
            vec![v.name.to_owned(), default.to_owned(), support, meaning]
        });
        text::table(&["VARIABLE", "DEFAULT", "VENI", "MEANING"], 0..0, rows.collect())
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_page_in_the_repository_is_what_the_registry_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        let page = veni_core::config::page();
        if std::env::var_os("VENI_UPDATE_DOCS").is_some() {
            fs::write(&path, &page).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == page,
            "docs/configuration.md is another one: VENI_UPDATE_DOCS=1 cargo test -p veni-ctl --lib page"
        );
    }

    #[test]
    fn every_variable_is_listed_in_both_forms() {
        let human = report(Format::Human).unwrap().text;
        assert_eq!(human.lines().count(), VARIABLES.len() + 1);
        let json: Vec<serde_json::Value> =
            serde_json::from_str(&report(Format::Json).unwrap().text).unwrap();
        assert_eq!(json.len(), VARIABLES.len());
        let prefixes = json.iter().find(|v| v["name"] == "ENABLE_PREFIX_DELEGATION").unwrap();
        assert_eq!(
            (&prefixes["support"], &prefixes["default"]),
            (&"warned".into(), &"false".into())
        );
        assert!(prefixes["consequence"].is_string());
        let floor = json.iter().find(|v| v["name"] == "MINIMUM_IP_TARGET").unwrap();
        assert!(floor["trap"].as_str().unwrap().contains("never grows past"), "{floor}");
        for (name, word) in [
            ("ENABLE_PREFIX_DELEGATION", "warned if true"),
            ("ENABLE_POD_ENI", "warned if true"),
            ("ENABLE_IPv4", "refused if false"),
            ("NETWORK_POLICY_ENFORCING_MODE", "honoured "),
            ("AWS_VPC_K8S_CNI_BACKING_STORE", "warned if set"),
            ("WARM_IP_TARGET", "honoured "),
        ] {
            let row = human.lines().find(|line| line.trim_start().starts_with(&format!("{name} ")));
            assert!(row.unwrap().contains(word), "{row:?}");
        }
    }
}
