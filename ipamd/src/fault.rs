//! Places where tests make the process die. They do nothing, and cost nothing, without the feature `fault-points`.
//!
//! `VENI_FAULT=<point>:<kill|panic|term>[:<nth>]`: at the nth time (1 when absent) that the point is passed.

/// Every point, so that the fault tests can walk all of them.
pub const POINTS: &[&str] = &[
    "add-before-journal",
    "add-after-journal",
    "add-after-filter",
    "add-before-reply",
    "del-before-journal",
    "del-after-journal",
    "del-before-reply",
    "step-before-intent",
    "step-after-intent",
    "step-after-call",
    "step-after-settle",
    "compact-before-rename",
    "compact-after-rename",
];

/// Passes `point`.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn point(_point: &str) {}

/// Passes `point`: dies there when `VENI_FAULT` says so.
#[cfg(feature = "fault-points")]
pub fn point(point: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSED: AtomicU32 = AtomicU32::new(0);
    debug_assert!(POINTS.contains(&point), "{point} is not listed");
    let Ok(fault) = std::env::var("VENI_FAULT") else { return };
    let mut parts = fault.split(':');
    if parts.next() != Some(point) {
        return;
    }
    let how = parts.next().unwrap_or("kill");
    let nth: u32 = parts.next().and_then(|n| n.parse().ok()).unwrap_or(1);
    if PASSED.fetch_add(1, Ordering::Relaxed) + 1 != nth {
        return;
    }
    match how {
        "panic" => panic!("VENI_FAULT at {point}"),
        "term" => {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM)
                .expect("a process can signal itself");
        }
        _ => {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)
                .expect("a process can signal itself");
        }
    }
}
