//! What is wrong with a manifest that can be read.

use std::{fmt, sync::Arc};

use serde::Serialize;
use veni_core::wire::inspect;
use veni_policy::object;

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    /// The file, as it was named or found.
    pub file: Arc<str>,
    /// Which of the file's documents, from 1; empty ones do not count. 0: the whole file.
    pub document: usize,
    /// The line in the file, when it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The object, e.g. `Pod x/a`; empty when it cannot be told.
    pub object: String,
    /// The field, e.g. `spec.ingress[0].from[1]`; empty when it is the whole object.
    pub field: String,
    /// What is wrong with which value, and what follows.
    pub message: String,
    /// Of an object that is left out because another file, or this one, defines it first: which file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadowed_by: Option<Arc<str>>,
}

impl Diagnostic {
    /// About a whole file.
    pub(crate) fn of_file(file: &Arc<str>, message: String) -> Self {
        Self {
            file: Arc::clone(file),
            document: 0,
            line: None,
            object: String::new(),
            field: String::new(),
            message,
            shadowed_by: None,
        }
    }

    /// About an object.
    pub(crate) fn of_object(
        file: &Arc<str>,
        document: usize,
        line: Option<u64>,
        what: &object::Diagnostic,
    ) -> Self {
        Self {
            file: Arc::clone(file),
            document,
            line,
            object: what.key.to_string(),
            field: what.field.clone(),
            message: what.message.clone(),
            shadowed_by: None,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        match self.line {
            Some(line) => write!(f, ":{line}")?,
            None if self.document > 0 => write!(f, ": document {}", self.document)?,
            None => {}
        }
        for part in [&self.object, &self.field].into_iter().filter(|part| !part.is_empty()) {
            write!(f, ": {part}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl From<Diagnostic> for inspect::policy::Diagnostic {
    fn from(found: Diagnostic) -> Self {
        Self {
            object: found.object,
            field: found.field,
            message: found.message,
            file: Some(found.file.to_string()),
            document: u64::try_from(found.document).ok().filter(|number| *number > 0),
            line: found.line,
        }
    }
}
