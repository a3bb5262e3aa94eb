//! Flow events, read from the ring that the programs write.

#![expect(unsafe_code, reason = "an event from its bytes")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use aya::maps::{MapData, RingBuf};
use veni_ebpf_common::Event;

use crate::error::{Error, Result};

/// Reads flow events. Readable (epoll) when there is one. One reader at a time: an event is given once.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub(super) fn new(fd: OwnedFd) -> Result<Self> {
        let failed = |source| Error::bpf("opening the events".to_owned(), source);
        let map = aya::maps::Map::RingBuf(MapData::from_fd(fd).map_err(failed)?);
        Ok(Self { ring: RingBuf::try_from(map).map_err(failed)? })
    }

    /// The next event; `None` when there is none yet.
    #[expect(clippy::should_implement_trait, reason = "it does not end at `None`")]
    pub fn next(&mut self) -> Option<Event> {
        loop {
            let item = self.ring.next()?;
            if item.len() == size_of::<Event>() {
                // SAFETY: the bytes of one event, written by a program with the same definition (the layout's
                // version is in the map's path); plain integers of any value, at any address.
                return Some(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
            }
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
