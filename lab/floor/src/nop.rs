//! Does nothing, as soon as it is started: the price of a fork and an exec, which the floor is compared with so that
//! nobody can make the floor slow.

#![no_main]
#![expect(unsafe_code, reason = "the C entry point, without the standard library's start-up")]

// SAFETY: no other symbol of the program is called `main`.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    0
}
