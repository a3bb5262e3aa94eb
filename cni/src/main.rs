//! `veni-cni`, the CNI plugin's executable.
//!
//! It is started once per pod, so its start counts (docs/SPECIFICATION.md): it enters at C's `main`, past the standard
//! library's start-up (10 system calls, 9 page faults, a quarter of a bare process's life), and allocates from an arena.

#![no_main]
#![expect(unsafe_code, reason = "the C entry point and the global allocator")]

use std::{
    ffi::{c_char, c_int},
    io::{self, Write},
};

mod arena;

#[global_allocator]
static ARENA: arena::Arena = arena::Arena::new();

// SAFETY: no other symbol of the program is called `main`. Nothing here uses what the skipped start-up would have set
// up: arguments, the main thread's name, a stack overflow handler. A write to a closed pipe ends the process, as it
// would any C program.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    std::panic::set_hook(Box::new(|info| {
        // The runtime shows what is on standard output, and what is left is found by the next ADD or DEL.
        let report = veni_cni::panic_report(&info.to_string());
        let written = io::stdout().write_all(report.as_bytes()).and_then(|()| io::stdout().flush());
        std::process::exit(if written.is_ok() { 1 } else { 2 });
    }));
    let answer = veni_cni::run(|name| std::env::var_os(name), io::stdin().lock());
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(answer.stdout.as_bytes()).and_then(|()| stdout.flush());
    c_int::from(!answer.success || written.is_err())
}
