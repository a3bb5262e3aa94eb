//! Whether this kernel's verifier takes the programs, and how much of its patience they use.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it measured"
)]
#![cfg(feature = "bpf")]

use std::time::Instant;

use aya::programs::loaded_programs;
use veni_core::marks::EniMarkMask;
use veni_datapath::bpf::Filter;

#[path = "support/node.rs"]
mod node;

/// `BPF_COMPLEXITY_LIMIT_INSNS` (include/linux/bpf.h).
const LIMIT: u32 = 1_000_000;

/// Half of the limit is left for changes: a program at its edge fails on the next kernel.
#[test]
fn the_verifier_takes_every_program_with_room_to_spare() {
    node::in_node(|directory| {
        let start = Instant::now();
        let filter = Filter::open(&node::pins(directory), EniMarkMask::default()).unwrap();
        let took = start.elapsed();
        let ours = filter.program_ids();
        let programs: Vec<_> =
            loaded_programs().flatten().filter(|program| ours.contains(&program.id())).collect();
        assert_eq!(programs.len(), ours.len());
        for program in programs {
            let verified = program.verified_instruction_count().unwrap();
            println!(
                "verifier: {:<14} {:>6} instructions, {verified:>7} verified of at most {LIMIT}",
                program.name_as_str().unwrap(),
                program.size_translated().unwrap() / 8,
            );
            assert!(verified < LIMIT / 2, "{verified}");
        }
        println!("verifier: programs and maps loaded in {} ms", took.as_millis());
    });
}
