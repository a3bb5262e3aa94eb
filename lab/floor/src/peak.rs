//! Runs a program and says how much memory it had at the most: `veni-peak PROGRAM [ARGUMENT…]`. The program has this
//! one's input, outputs and environment; `ru_maxrss` (kibibytes, a line) is written to standard error after its end.
//!
//! Why a program of its own: the kernel counts in a process's peak what it was before its exec (`exec_mmap`), which is
//! the parent's memory. So the parent must be smaller than what is measured.

#![no_main]
#![expect(unsafe_code, reason = "fork, exec and wait4 without the standard library's start-up")]

use std::mem::zeroed;

use libc::{c_char, c_int};

// SAFETY: no other symbol of the program is called `main`.
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    if argc < 2 {
        return fail(c"veni-peak: wants a program");
    }
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: argv holds argc C strings and a null after them, and argc is at least 2.
        unsafe {
            libc::execv(*argv.add(1), argv.add(1));
            libc::perror(c"veni-peak: cannot execute".as_ptr());
            libc::_exit(127)
        }
    }
    let mut status = 0;
    // SAFETY: a C structure of integers.
    let mut usage: libc::rusage = unsafe { zeroed() };
    // SAFETY: both pointers are to locals that outlive the call. A failed fork is waited for in vain, and told.
    if unsafe { libc::wait4(child, &raw mut status, 0, &raw mut usage) } != child {
        return fail(c"veni-peak: cannot wait");
    }
    let mut line = [0u8; 24];
    // SAFETY: the buffer is as long as stated, and the format takes one long, which is what is given.
    let length = unsafe {
        libc::snprintf(line.as_mut_ptr().cast(), line.len(), c"%ld\n".as_ptr(), usage.ru_maxrss)
    };
    // SAFETY: at most 22 characters of the buffer were written: a long's, and the line's end.
    unsafe { libc::write(2, line.as_ptr().cast(), usize::try_from(length).unwrap_or(0)) };
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 1 }
}

fn fail(step: &std::ffi::CStr) -> c_int {
    // SAFETY: a C string. The system's own words are added.
    unsafe { libc::perror(step.as_ptr()) };
    1
}
