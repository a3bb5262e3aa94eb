//! An allocator for a process that lives a millisecond: it counts up through a static block and takes nothing back.
//!
//! musl's own costs some 25 system calls per ADD. The block is zero pages until touched; what does not fit (a GC over
//! hundreds of pods) goes to the system's allocator.

#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::UnsafeCell,
    sync::atomic::{AtomicUsize, Ordering},
};

const BYTES: usize = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Arena {
    used: AtomicUsize,
    block: UnsafeCell<Block>,
}

#[derive(Debug)]
#[repr(C, align(16))]
struct Block([u8; BYTES]);

// SAFETY: `used` hands out every byte of `block` once, whichever thread asks.
unsafe impl Sync for Arena {}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Arena {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { used: AtomicUsize::new(0), block: UnsafeCell::new(Block([0; BYTES])) }
    }

    fn start(&self) -> usize {
        self.block.get().addr()
    }

    fn owns(&self, pointer: *mut u8) -> bool {
        (self.start()..self.start() + BYTES).contains(&pointer.addr())
    }
}

// SAFETY: blocks are disjoint, aligned as asked, inside `block` or the system's; the system gets back only its own.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let start = (self.start() + used).next_multiple_of(layout.align()) - self.start();
            let Some(end) = start.checked_add(layout.size()).filter(|end| *end <= BYTES) else {
                // SAFETY: the caller's promises are the system's.
                return unsafe { System.alloc(layout) };
            };
            let taken =
                self.used.compare_exchange_weak(used, end, Ordering::Relaxed, Ordering::Relaxed);
            match taken {
                // SAFETY: start <= BYTES.
                Ok(_) => return unsafe { self.block.get().cast::<u8>().add(start) },
                Err(now) => used = now,
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        let pointer = unsafe { self.alloc(layout) };
        // What the arena hands out was never handed out before, and a static starts as zeros.
        if !pointer.is_null() && !self.owns(pointer) {
            // SAFETY: the system gave `size` bytes.
            unsafe { pointer.write_bytes(0, layout.size()) };
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if !self.owns(pointer) {
            // SAFETY: not ours, so the system's, with this layout.
            unsafe { System.dealloc(pointer, layout) };
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !self.owns(pointer) {
            // SAFETY: not ours, so the system's, with this layout.
            return unsafe { System.realloc(pointer, layout, new_size) };
        }
        if new_size <= layout.size() {
            return pointer;
        }
        // The last block grows in place.
        let end = pointer.addr() - self.start() + layout.size();
        let grown = end - layout.size() + new_size;
        let in_place = grown <= BYTES
            && self.used.compare_exchange(end, grown, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if in_place {
            return pointer;
        }
        // SAFETY: the caller's layout with a larger size (which it promises to be valid).
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(pointer, layout.size());
            }
            new
        }
    }
}
