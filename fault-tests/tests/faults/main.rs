//! Faults that veni survives, each with the real daemon, plugin and kernel.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test says what it has seen")]

mod cloud;
mod disk;
mod journals;
mod plugin;
mod points;
mod repair;
mod start;
mod traffic;
mod two;
