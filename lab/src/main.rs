//! `veni-lab`: a VPC in a box, for playing, for the demo and for measuring.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
