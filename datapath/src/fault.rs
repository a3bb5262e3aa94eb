//! Places to die at, for the tests of half-done work.
//!
//! Without feature `fault-points` every [`point`] is nothing. With it, `VENI_FAULT=<point>:kill` ends the process
//! there by `SIGKILL`, as an out-of-memory kill would: no destructor, no undo. `VENI_FAULT=<point>:panic` panics, `:stop` stops it by
//! `SIGSTOP` until somebody continues it.

#![cfg_attr(feature = "fault-points", expect(unsafe_code, reason = "raising signals"))]

/// Dies here if the environment says so.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    let Ok(fault) = std::env::var("VENI_FAULT") else { return };
    match fault.rsplit_once(':') {
        Some((armed, "kill")) if armed == name => {
            // SAFETY: no pointers.
            unsafe { libc::raise(libc::SIGKILL) };
        }
        Some((armed, "stop")) if armed == name => {
            // SAFETY: no pointers.
            unsafe { libc::raise(libc::SIGSTOP) };
        }
        Some((armed, "panic")) if armed == name => panic!("fault point {name}"),
        _ => {}
    }
}

/// Nothing: this build has no fault points.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_name: &str) {}
