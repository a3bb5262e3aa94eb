//! Waiting for programs that are running.

#![expect(unsafe_code, reason = "membarrier(2) has no wrapper")]

use std::io;

/// `MEMBARRIER_CMD_GLOBAL` of membarrier(2).
const GLOBAL: libc::c_int = 1;

/// Returns when every program that was running at the call has ended: what was taken out of a map before it is seen
/// by nobody after it. Some milliseconds to some tens of them, asleep.
///
/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()` (kernel/sched/membarrier.c), and programs of tc filters run inside
/// `rcu_read_lock()` (`cls_bpf_classify`).
///
/// # Errors
/// Where the kernel has none (`nohz_full` CPUs): the caller waits a fixed time instead.
pub fn wait() -> io::Result<()> {
    // SAFETY: takes integers only and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn returns_by_itself() {
        super::wait().unwrap();
    }
}
