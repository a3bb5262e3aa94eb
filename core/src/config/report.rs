//! What was wrong with a variable: told together, at start.

/// A value that cannot be worked around.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is not usable: {problem}", shown(variable, value))]
pub struct ConfigError {
    /// The variable.
    pub variable: String,
    /// Its value, cut to 128 characters.
    pub value: String,
    /// Why, what is allowed, and what to do.
    pub problem: String,
}

/// A value that was worked around, or a combination that does not do what it seems to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", shown(variable, value))]
pub struct Warning {
    /// The variable.
    pub variable: String,
    /// Its value, cut to 128 characters.
    pub value: String,
    /// What was made of it, and what to do.
    pub message: String,
}

impl ConfigError {
    pub(super) fn new(variable: &str, value: &str, problem: impl Into<String>) -> Self {
        Self { variable: variable.to_owned(), value: cut(value), problem: problem.into() }
    }
}

impl Warning {
    pub(super) fn new(variable: &str, value: &str, message: impl Into<String>) -> Self {
        Self { variable: variable.to_owned(), value: cut(value), message: message.into() }
    }
}

/// `NAME="value"`; an empty value is an unset one.
fn shown(variable: &str, value: &str) -> String {
    if value.is_empty() { format!("{variable} (unset)") } else { format!("{variable}={value:?}") }
}

fn cut(value: &str) -> String {
    value.chars().take(128).collect()
}
