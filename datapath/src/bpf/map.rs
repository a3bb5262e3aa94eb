//! A map of the kernel with typed keys and values.

#![expect(unsafe_code, reason = "keys and values as bytes")]

use std::{
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::syscall;
use crate::error::{Error, Result};

/// Elements that are written or read in one call.
const BATCH: usize = 512;

/// Plain bytes: what goes into a map.
///
/// # Safety
/// `repr(C)` or an array of fixed-width integers, without padding, and every pattern of bits is a value.
pub(super) unsafe trait Plain: Copy + PartialEq + 'static {}

/// The key of a longest-prefix map: the length in bits, then the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Prefix<K> {
    pub(super) length: u32,
    pub(super) data: K,
}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: `repr(C)` of fixed-width fields without padding (asserted where it is defined), or an array.
            unsafe impl Plain for $type {}
            // SAFETY: a word, then bytes or a struct that starts with a word: no padding between.
            unsafe impl Plain for Prefix<$type> {}
        )*
    };
}

plain!(
    u32,
    u64,
    [u8; 4],
    [u8; 16],
    veni_ebpf_common::PodValue,
    veni_ebpf_common::PodState,
    veni_ebpf_common::Settings,
    veni_ebpf_common::Flow,
    veni_ebpf_common::FlowKeyV4,
    veni_ebpf_common::FlowKeyV6,
    veni_ebpf_common::table::VerdictKey,
    veni_ebpf_common::table::Profile,
    veni_ebpf_common::table::PortKey,
    veni_ebpf_common::table::Decision,
    veni_ebpf_common::table::ServiceKeyV4,
    veni_ebpf_common::table::ServiceKeyV6,
    veni_ebpf_common::table::ServiceValue,
    veni_ebpf_common::table::BackendKey,
    veni_ebpf_common::table::BackendValue,
    veni_ebpf_common::table::MemberKey,
    veni_ebpf_common::flow::AffinityKey,
    veni_ebpf_common::flow::AffinityValue,
);

/// See the module.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    name: &'static str,
    fd: OwnedFd,
    limit: u32,
    types: PhantomData<fn(K) -> V>,
}

fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: plain bytes of a live value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

fn many<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain bytes of live values.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn many_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: plain bytes of live values, and every pattern of bits is a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

fn zero<T: Plain>() -> T {
    // SAFETY: every pattern of bits is a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

impl<K: Plain, V: Plain> Map<K, V> {
    pub(super) fn new(name: &'static str, fd: OwnedFd, shape: syscall::Shape) -> Result<Self> {
        let sizes = (shape.key_size as usize, shape.value_size as usize);
        if sizes != (size_of::<K>(), size_of::<V>()) {
            let wrong = format!("{sizes:?} bytes a key and a value");
            return Err(Error::bpf(format!("map {name}"), io::Error::other(wrong)));
        }
        Ok(Self { name, fd, limit: shape.max_entries, types: PhantomData })
    }

    /// How many elements there can be.
    pub(super) const fn limit(&self) -> u32 {
        self.limit
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> Error {
        let operation = format!("{what} {}", self.name);
        let (map, limit) = (self.name, self.limit);
        move |source| match source.raw_os_error() {
            // E2BIG by hashes with a fixed number of elements, ENOSPC by prefix maps.
            Some(libc::E2BIG | libc::ENOSPC) => Error::TableFull { map, limit },
            _ => Error::bpf(operation, source),
        }
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = [zero::<V>()];
        let found = syscall::lookup(self.fd(), bytes(key), many_mut(&mut value))
            .map_err(self.failed("reading"))?;
        Ok(found.then_some(value[0]))
    }

    pub(super) fn set(&self, key: &K, value: &V) -> Result<()> {
        syscall::update(self.fd(), bytes(key), bytes(value), false)
            .map(drop)
            .map_err(self.failed("writing"))
    }

    /// The map pinned in `dir` under this one's name, if there is one with the same keys and values.
    pub(super) fn same_in(&self, dir: &Path) -> Result<Option<Self>> {
        self.earlier_in(dir)
    }

    /// As [`Map::same_in`], with the values that an earlier layout had.
    pub(super) fn earlier_in<W: Plain>(&self, dir: &Path) -> Result<Option<Map<K, W>>> {
        let path = dir.join(self.name);
        if !path.exists() {
            return Ok(None);
        }
        let failed = |source| Error::bpf(format!("map {}", path.display()), source);
        let fd = syscall::get_pinned(&path).map_err(failed)?;
        let theirs = syscall::shape(fd.as_fd()).map_err(failed)?;
        let sizes = (theirs.key_size as usize, theirs.value_size as usize);
        if sizes != (size_of::<K>(), size_of::<W>()) {
            tracing::warn!(path = %path.display(), "an older map of another shape");
            return Ok(None);
        }
        Map::new(self.name, fd, theirs).map(Some)
    }

    /// Adds an element unless there is one.
    pub(super) fn add(&self, key: &K, value: &V) -> Result<bool> {
        syscall::update(self.fd(), bytes(key), bytes(value), true).map_err(self.failed("writing"))
    }

    pub(super) fn set_all(&self, entries: &[(K, V)]) -> Result<()> {
        for entries in entries.chunks(BATCH) {
            let keys: Vec<K> = entries.iter().map(|(key, _)| *key).collect();
            let values: Vec<V> = entries.iter().map(|(_, value)| *value).collect();
            let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
            let (_, result) = syscall::update_batch(self.fd(), many(&keys), many(&values), count);
            result.map_err(self.failed("writing"))?;
        }
        Ok(())
    }

    /// Removes an element; whether there was one.
    pub(super) fn remove(&self, key: &K) -> Result<bool> {
        syscall::delete(self.fd(), bytes(key)).map_err(self.failed("removing from"))
    }

    /// All elements (of an array, all of its slots).
    pub(super) fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let mut cursor = None;
        let mut room = BATCH;
        loop {
            let (mut keys, mut values) = (vec![zero::<K>(); room], vec![zero::<V>(); room]);
            let count = u32::try_from(room).unwrap_or(u32::MAX);
            let mut next = cursor.clone();
            let read = syscall::lookup_batch(
                self.fd(),
                &mut next,
                many_mut(&mut keys),
                many_mut(&mut values),
                count,
            );
            match read {
                // A bucket with more elements than there was room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => room *= 2,
                Err(error) => return Err(self.failed("listing")(error)),
                Ok((read, more)) => {
                    entries.extend(keys.into_iter().zip(values).take(read as usize));
                    if !more {
                        return Ok(entries);
                    }
                    cursor = next;
                }
            }
        }
    }
}

impl<V: Plain> Map<u32, V> {
    /// An element of a per-CPU array, one value a CPU. `V` is 8 bytes, the size that the kernel rounds to.
    pub(super) fn per_cpu(&self, index: u32, cpus: usize) -> Result<Vec<V>> {
        let mut values = vec![zero::<V>(); cpus];
        syscall::lookup(self.fd(), bytes(&index), many_mut(&mut values))
            .map_err(self.failed("reading"))?;
        Ok(values)
    }
}
