//! The oracle judged by hand-written expectations, and the compiler judged by the oracle.

mod e2e;
mod support;
