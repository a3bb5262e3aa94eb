//! `veni-cni`, the CNI plugin's executable.

use std::{
    io::{self, Write},
    process::ExitCode,
};

fn main() -> ExitCode {
    let answer = veni_cni::run(|name| std::env::var_os(name), io::stdin().lock());
    let written = io::stdout().lock().write_all(answer.stdout.as_bytes());
    if answer.success && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
