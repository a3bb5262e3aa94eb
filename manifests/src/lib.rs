//! Kubernetes objects from YAML files and watched folders, for `veni-policy`.
//!
//! Invariants: what cannot be read at all is an error; what is wrong with one object is a [`Diagnostic`] that names
//! file, document, line, object and field, and concerns no other object. Of two definitions of an object the first by
//! file name is in force. Size, nesting and aliases of what is read are bounded. Deliberately absent: templates,
//! sub-folders, a cluster.

mod diagnostic;
mod file;
mod node;
mod read;
mod text;
pub mod watch;

pub use diagnostic::Diagnostic;
pub use read::{Manifests, ReadError, read, read_all};
pub use watch::watch;
