//! veni's eBPF programs, one file a hook, linked into one object.
//!
//! Built for `bpfel-unknown-none` by `datapath/build.rs` (toolchain: `hack/bpf.sh`). For any other target this is an
//! empty program, so that the workspace's ordinary checks read the same code.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "the kernel's interface is pointers")]

mod pod_egress;

/// The crate is Apache-2.0 OR GPL-2.0-only. The kernel knows no such pair and asks for the second half only.
#[cfg(target_arch = "bpf")]
// SAFETY: the section's only object; nothing else has this name.
#[unsafe(link_section = "license")]
// SAFETY: as above.
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
