//! Services: front ends and back ends, judged case by case and by an evaluator that knows nothing of increments.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod cases;
mod endpoints;
mod generate;
mod maps;
mod naive;
mod property;
mod support;
