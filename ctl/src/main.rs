//! `venictl`: see, explain and simulate what veni does on this node.

use std::process::ExitCode;

fn main() -> ExitCode {
    veni_ctl::main()
}
