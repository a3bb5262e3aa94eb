//! Reading an object's parts, and saying what is wrong with them.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::de::DeserializeOwned;
use serde_json::Value;
use veni_core::id::ParseIdError;

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The field, e.g. `spec.subnet`.
    pub field: String,
    /// What is wrong with which value.
    pub message: String,
}

impl Problem {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// The object's name.
pub(crate) fn name(object: &Value) -> Result<String, Problem> {
    object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .ok_or_else(|| Problem::new("metadata.name", "is missing"))
}

/// The object's spec; `known` are its fields, and others are noted: one that is misspelt is not in force.
pub(crate) fn spec<T: DeserializeOwned>(
    object: &Value,
    known: &[&str],
    notes: &mut Vec<Problem>,
) -> Result<T, Problem> {
    let spec = object.get("spec").ok_or_else(|| Problem::new("spec", "is missing"))?;
    // serde takes a list for a struct.
    let fields = spec.as_object().ok_or_else(|| Problem::new("spec", "is no map"))?;
    for field in fields.keys() {
        if !known.contains(&field.as_str()) {
            notes.push(Problem::new(
                format!("spec.{field}"),
                "is not a known field, and is ignored",
            ));
        }
    }
    T::deserialize(spec).map_err(|error| Problem::new("spec", error.to_string()))
}

/// The items as ids, each once, in their order; what is none is a problem.
pub(crate) fn ids<'a, T: FromStr<Err = ParseIdError> + PartialEq>(
    field: &str,
    items: impl IntoIterator<Item = &'a String>,
    problems: &mut Vec<Problem>,
) -> Vec<T> {
    let mut ids = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        match item.trim().parse::<T>() {
            Ok(id) if ids.contains(&id) => {}
            Ok(id) => ids.push(id),
            Err(error) => {
                problems.push(Problem::new(format!("{field}[{index}]"), error.to_string()))
            }
        }
    }
    ids
}
