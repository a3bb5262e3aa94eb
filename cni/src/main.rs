//! `veni-cni`, the CNI plugin's executable.

use std::{
    io::{self, Write},
    process::{ExitCode, exit},
};

use veni_datapath::arena::Arena;

/// The process lives for a millisecond: nothing is given back before it ends.
#[global_allocator]
static ARENA: Arena = Arena::new();

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        // The runtime shows what is on standard output, and what is left is found by the next ADD or DEL.
        let report = veni_cni::panic_report(&info.to_string());
        exit(if write(&report) { 1 } else { 2 });
    }));
    let answer = veni_cni::run(|name| std::env::var_os(name), io::stdin().lock());
    if write(&answer.stdout) && answer.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write(text: &str) -> bool {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
}
