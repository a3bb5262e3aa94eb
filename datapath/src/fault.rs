//! Places to die at, for the tests of half-done work.
//!
//! Without feature `fault-points` every [`point`] is nothing. With it, `VENI_FAULT=<point>:kill` ends the process
//! there by `SIGKILL`, as an out-of-memory kill would: no destructor, no undo.

#![cfg_attr(feature = "fault-points", expect(unsafe_code, reason = "raising SIGKILL"))]

/// Dies here if the environment says so.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    let armed = std::env::var("VENI_FAULT")
        .is_ok_and(|fault| fault.strip_suffix(":kill").is_some_and(|armed| armed == name));
    if armed {
        // SAFETY: no pointers.
        unsafe { libc::raise(libc::SIGKILL) };
    }
}

/// Nothing: this build has no fault points.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_name: &str) {}
