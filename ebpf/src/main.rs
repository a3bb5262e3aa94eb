//! veni's eBPF programs, one file a hook, linked into one object.
//!
//! Built for `bpfel-unknown-none` by `datapath/build.rs` (toolchain: `hack/bpf.sh`). For any other target this is an
//! empty program, so that the workspace's ordinary checks read the same code.
//!
//! A packet costs one look at its head, the pod's entry, and its flow. What has no flow is judged by the tables
//! (`veni_ebpf_common::table`), and becomes one. Everything off that path is a function of its own: the verifier walks it
//! at each call, but it keeps the hot path short.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "the kernel's interface is pointers")]
#![allow(
    clippy::inline_always,
    reason = "a call in BPF costs the verifier's knowledge about its arguments"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "a checked conversion is a branch that the verifier has to walk"
)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "by value is a copy on a stack of 512 bytes"
)]

mod conntrack;
mod end;
mod events;
mod family;
mod fragment;
mod half_open;
mod icmp;
mod maps;
mod pod_egress;
mod pod_ingress;
mod policy;
mod service;
mod skb;
mod slow;
mod track;
mod translate;
mod work;

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
