//! Placeholder: filled by the first change to this crate.
