//! Label selectors (`metav1.LabelSelector`).

use super::{
    Labels,
    reader::{Read, Reader},
};

/// What a label must be. All requirements must hold; none selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Selector {
    /// Sorted, so that equal selectors compare equal.
    pub requirements: Vec<Requirement>,
}

/// One requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// The values of [`Operator::In`] and [`Operator::NotIn`], sorted; else empty.
    pub values: Vec<String>,
}

/// What a requirement asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// The label is there with one of the values.
    In,
    /// The label is not there, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl Selector {
    /// Selects everything.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// One requirement `key in (value)` for each label.
    #[must_use]
    pub fn of_labels(labels: &Labels) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In,
                values: vec![value.clone()],
            })
            .collect();
        Self { requirements }
    }

    /// Whether the labels meet every requirement.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_by(|key| labels.get(key).map(String::as_str))
    }

    /// As [`Selector::matches`], with the labels behind a look-up.
    pub fn matches_by<'a>(&self, mut label: impl FnMut(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }

    /// Reads a selector; the caller decides what an absent one means.
    pub(super) fn read(at: &Reader<'_>) -> Read<Self> {
        at.only(&["matchLabels", "matchExpressions"])?;
        let match_labels = at.get("matchLabels");
        let labels = match_labels.labels()?;
        for (key, value) in &labels {
            check_key(key, &match_labels.get(key))?;
            check_value(value, &match_labels.get(key))?;
        }
        let mut requirements = Self::of_labels(&labels).requirements;
        for expression in at.get("matchExpressions").list()? {
            requirements.push(Requirement::read(&expression)?);
        }
        requirements.sort();
        requirements.dedup();
        Ok(Self { requirements })
    }
}

impl Requirement {
    /// Whether a label with this value, or its absence, meets the requirement.
    #[must_use]
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.binary_search_by(|v| v.as_str().cmp(value)).is_ok();
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }

    fn read(at: &Reader<'_>) -> Read<Self> {
        at.only(&["key", "operator", "values"])?;
        let key = at.get("key").string()?.unwrap_or_default();
        check_key(&key, &at.get("key"))?;
        let operator = match at.get("operator").text()?.unwrap_or_default() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => {
                let message =
                    format!("{other:?} is none of \"In\", \"NotIn\", \"Exists\", \"DoesNotExist\"");
                return Err(at.get("operator").invalid(message));
            }
        };
        let mut values = Vec::new();
        for item in at.get("values").list()? {
            let value = item.given_text()?;
            check_value(value, &item)?;
            values.push(value.to_owned());
        }
        let wants_values = matches!(operator, Operator::In | Operator::NotIn);
        if wants_values == values.is_empty() {
            let message = if wants_values {
                "needs at least one value for this operator"
            } else {
                "must be empty for this operator"
            };
            return Err(at.get("values").invalid(message));
        }
        values.sort();
        values.dedup();
        Ok(Self { key, operator, values })
    }
}

/// A qualified name: optional DNS prefix and `/`, then a name (apimachinery `IsQualifiedName`).
fn check_key(key: &str, at: &Reader<'_>) -> Read<()> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    let prefix_ok = prefix.is_none_or(|prefix| {
        (1..=253).contains(&prefix.len())
            && prefix.split('.').all(|part| {
                is_bounded_by_alphanumerics(part)
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            })
    });
    if prefix_ok && is_name(name) {
        return Ok(());
    }
    Err(at.invalid(format!("{key:?} is not a label's key")))
}

/// Empty or a name (apimachinery `IsValidLabelValue`).
fn check_value(value: &str, at: &Reader<'_>) -> Read<()> {
    if value.is_empty() || is_name(value) {
        return Ok(());
    }
    Err(at.invalid(format!("{value:?} is not a label's value")))
}

fn is_name(name: &str) -> bool {
    name.len() <= 63
        && is_bounded_by_alphanumerics(name)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_bounded_by_alphanumerics(text: &str) -> bool {
    let ends = [text.bytes().next(), text.bytes().next_back()];
    ends.into_iter().all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()))
}
