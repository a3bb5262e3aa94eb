//! Network namespaces: opened by path and proved to be one, entered by a thread and left again.
//!
//! Invariant: a thread that entered a namespace through [`NetNs::enter`] is back in its own when the guard is gone;
//! a thread that cannot go back ends the process, because whatever it did next would hit the wrong machine.

#![expect(
    unsafe_code,
    reason = "setns, fstatfs and the namespace ioctl without a further dependency"
)]

use std::{
    fs::{File, OpenOptions},
    io,
    marker::PhantomData,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use crate::netlink;

/// `NS_GET_NSTYPE`, `_IO(0xb7, 0x3)` (include/uapi/linux/nsfs.h).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// `SIOCGSKNS` (include/uapi/linux/sockios.h); libc's has another type than its `ioctl` on musl.
const SIOCGSKNS: libc::Ioctl = 0x894c;

/// An open network namespace: it stays alive as long as this does.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

/// Why a network namespace cannot be had or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is there: the pod is gone.
    #[error("network namespace {} is gone", path.display())]
    Vanished {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Something is there that is not a network namespace (a bind mount was undone and left its file).
    #[error("{} is not a network namespace", path.display())]
    NotANetNs {
        /// What was opened.
        path: PathBuf,
    },
    /// It is there and cannot be opened.
    #[error("opening network namespace {}", path.display())]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// Why it could not.
        #[source]
        source: io::Error,
    },
    /// The thread could not move into it.
    #[error("entering a network namespace")]
    Enter(#[source] io::Error),
    /// No netlink socket could be opened inside.
    #[error("opening a netlink socket in a network namespace")]
    Socket(#[source] netlink::Error),
}

/// While it lives, the calling thread is inside the namespace. Not `Send`: the namespace is the thread's.
#[derive(Debug)]
#[must_use = "dropping it leaves the namespace at once"]
pub struct Entered {
    home: NetNs,
    not_send: PhantomData<*const ()>,
}

/// What this machine lacks when `error` is why a new namespace could not be made; `None` when something else has gone
/// wrong. For tests, which may be skipped for the former only.
#[must_use]
pub fn missing_feature(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EPERM => Some("CAP_SYS_ADMIN (run the tests as root)"),
        // unshare(2): the kernel was built without this kind of namespace.
        libc::EINVAL | libc::ENOSYS => Some("network namespaces (CONFIG_NET_NS)"),
        _ => None,
    }
}

// === impl Error ===

impl Error {
    /// See [`missing_feature`].
    #[must_use]
    pub fn missing_feature(&self) -> Option<&'static str> {
        match self {
            Self::Enter(error) => missing_feature(error),
            _ => None,
        }
    }
}

// === impl NetNs ===

impl NetNs {
    /// Opens the network namespace at `path`.
    ///
    /// # Errors
    /// [`Error::Vanished`] and [`Error::NotANetNs`] both mean that no pod lives there.
    pub fn open(path: &Path) -> Result<Self, Error> {
        // O_NONBLOCK: a FIFO at this path must not hang us.
        let file =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(
                |source| match source.raw_os_error() {
                    Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH) => {
                        Error::Vanished { path: path.to_owned() }
                    }
                    // A socket: `/proc/<pid>/fd/<n>` of a descriptor that is something else by now.
                    Some(libc::ENXIO) => Error::NotANetNs { path: path.to_owned() },
                    _ => Error::Open { path: path.to_owned(), source },
                },
            )?;
        if is_netns(&file) {
            Ok(Self { file })
        } else {
            Err(Error::NotANetNs { path: path.to_owned() })
        }
    }

    /// The calling thread's own.
    ///
    /// # Errors
    /// [`Error::Open`] when /proc is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Moves the calling thread into a new, empty namespace for good. For tests and labs.
    ///
    /// # Errors
    /// [`Error::Enter`] without `CAP_SYS_ADMIN`.
    pub fn unshare() -> Result<Self, Error> {
        // SAFETY: no pointers.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(Error::Enter(io::Error::last_os_error()));
        }
        Self::current()
    }

    /// Moves the calling thread inside until the guard is dropped.
    ///
    /// # Errors
    /// [`Error::Enter`] without `CAP_SYS_ADMIN`.
    pub fn enter(&self) -> Result<Entered, Error> {
        let home = Self::current()?;
        self.set()?;
        Ok(Entered { home, not_send: PhantomData })
    }

    /// Moves the calling thread inside for good: cheaper than [`NetNs::enter`], for a process that ends soon.
    ///
    /// # Errors
    /// [`Error::Enter`] without `CAP_SYS_ADMIN`.
    pub fn enter_for_good(&self) -> Result<(), Error> {
        self.set()
    }

    /// A netlink socket inside; the calling thread is back in its own namespace afterwards.
    ///
    /// # Errors
    /// [`Error::Enter`], [`Error::Socket`].
    pub fn socket(&self) -> Result<netlink::Socket, Error> {
        let _inside = self.enter()?;
        netlink::Socket::open().map_err(Error::Socket)
    }

    /// The namespace that `socket` was opened in (`SIOCGSKNS`, Linux 4.9).
    ///
    /// # Errors
    /// [`Error::Enter`] without `CAP_NET_ADMIN` there.
    pub fn of_socket(socket: &netlink::Socket) -> Result<Self, Error> {
        // SAFETY: the ioctl takes no argument and returns a new descriptor.
        let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) };
        if fd < 0 {
            return Err(Error::Enter(io::Error::last_os_error()));
        }
        // SAFETY: `fd` is open and owned by nobody else.
        Ok(Self { file: unsafe { File::from_raw_fd(fd) } })
    }

    /// Whether both are the same namespace (device and inode: namespaces(7)).
    ///
    /// # Errors
    /// When one cannot be examined.
    pub fn is_same(&self, other: &Self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let (a, b) = (self.file.metadata()?, other.file.metadata()?);
        Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
    }

    fn set(&self) -> Result<(), Error> {
        // SAFETY: no pointers; the descriptor is open.
        let result = unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) };
        if result == 0 { Ok(()) } else { Err(Error::Enter(io::Error::last_os_error())) }
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

// === impl Entered ===

impl Drop for Entered {
    fn drop(&mut self) {
        if self.home.set().is_err() {
            std::process::abort();
        }
    }
}

fn is_netns(file: &File) -> bool {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the pointer is to a `statfs`, which the kernel fills on success.
    if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: filled just above. The field's type and sign differ between libcs.
    let file_system = unsafe { stat.assume_init() }.f_type;
    // Only a namespace knows this ioctl: on another file the number could mean anything.
    // SAFETY: the ioctl takes no argument.
    i128::from(file_system) == i128::from(libc::NSFS_MAGIC)
        && unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) } == libc::CLONE_NEWNET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_path_has_vanished() {
        for path in ["/nonexistent/netns", "/proc/self/cmdline/x", "/proc/4194304/ns/net"] {
            let error = NetNs::open(Path::new(path)).unwrap_err();
            assert!(matches!(error, Error::Vanished { .. }), "{path}: {error:?}");
        }
    }

    #[test]
    fn only_network_namespaces_are_accepted() {
        for path in
            ["/proc/self/ns/uts", "/proc/self/ns/mnt", "/dev/null", "/proc/self/cmdline", "/tmp"]
        {
            let error = NetNs::open(Path::new(path)).unwrap_err();
            assert!(matches!(error, Error::NotANetNs { .. }), "{path}: {error:?}");
        }
        assert!(NetNs::current().is_ok());
    }

    #[test]
    fn only_what_the_machine_lacks_is_a_missing_feature() {
        for (errno, missing) in [
            (libc::EPERM, true),
            (libc::EINVAL, true),
            (libc::ENOSYS, true),
            (libc::ENOMEM, false),
            (libc::ENOSPC, false),
        ] {
            let error = Error::Enter(io::Error::from_raw_os_error(errno));
            assert_eq!(error.missing_feature().is_some(), missing, "{error:?}");
        }
        let vanished = Error::Vanished { path: "/nonexistent".into() };
        assert_eq!(vanished.missing_feature(), None);
    }

    #[test]
    fn a_guard_brings_the_thread_back() {
        std::thread::spawn(|| {
            let home = match NetNs::unshare().map_err(|error| (error.missing_feature(), error)) {
                Ok(home) => home,
                Err((Some(missing), _)) => return println!("SKIPPED: {missing}"),
                Err((None, error)) => panic!("{error:?}"),
            };
            let other = std::thread::spawn(NetNs::unshare).join().unwrap().unwrap();
            {
                let _inside = other.enter().unwrap();
                assert!(NetNs::current().unwrap().is_same(&other).unwrap());
            }
            assert!(NetNs::current().unwrap().is_same(&home).unwrap());
            assert!(!home.is_same(&other).unwrap());
        })
        .join()
        .unwrap();
    }
}
