//! A netlink socket of any family: open, options, one datagram out, one in.

#![expect(unsafe_code, reason = "netlink sockets without a further dependency")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// `SIOCGIFNAME` (include/uapi/linux/sockios.h); libc's has another type than its `ioctl` on musl.
const SIOCGIFNAME: libc::Ioctl = 0x8910;

/// A netlink socket of any family, in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct RawSocket {
    fd: OwnedFd,
}

// === impl RawSocket ===

impl RawSocket {
    pub(crate) fn open(family: libc::c_int) -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before use.
        let fd =
            unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, family) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is open and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Whether no link of the socket's namespace has this index. Without the RTNL lock, unlike `RTM_GETLINK`
    /// (`dev_ifname`).
    pub(crate) fn is_free(&self, ifindex: u32) -> bool {
        // SAFETY: all zeroes is a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_ifindex = ifindex.cast_signed();
        // SAFETY: the pointer is to an `ifreq`, which the kernel reads and writes.
        let found = unsafe { libc::ioctl(self.fd.as_raw_fd(), SIOCGIFNAME, &raw mut request) };
        found != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENODEV)
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        retry(|| {
            // SAFETY: the pointer and the length describe `bytes`, which outlives the call.
            unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) }
        })
        .map(drop)
    }

    /// One datagram into `buffer`. Longer ones are an error (`EMSGSIZE`).
    pub(crate) fn receive<'a>(
        &self,
        buffer: &'a mut [u8],
        flags: libc::c_int,
    ) -> io::Result<&'a [u8]> {
        let room = buffer.len();
        let length = retry(|| {
            // SAFETY: the pointer and the length describe `buffer`, which outlives the call.
            unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    room,
                    flags | libc::MSG_TRUNC,
                )
            }
        })?;
        buffer.get(..length).ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))
    }

    pub(crate) fn set_option(
        &self,
        level: libc::c_int,
        option: libc::c_int,
        value: libc::c_int,
    ) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `value`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("4 fits"),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(feature = "host")]
impl RawSocket {
    /// Joins multicast groups by number.
    pub(crate) fn join(&self, groups: &[u32]) -> io::Result<()> {
        self.bind()?;
        for group in groups {
            self.set_option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group.cast_signed())?;
        }
        Ok(())
    }

    /// Gives the socket a port. Without one, notifications that no process caused pass it by: their sender's port is
    /// 0 too, and a sender does not hear itself (`do_one_broadcast`).
    fn bind(&self) -> io::Result<()> {
        // SAFETY: all zeroes is a valid address: any port, no groups.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).expect("16 fits");
        let length = libc::socklen_t::try_from(size_of_val(&address)).expect("12 fits");
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let result =
            unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Asks for room for this many bytes of notifications, past the administrator's limit where allowed.
    pub(crate) fn receive_buffer(&self, bytes: libc::c_int) {
        let forced = self.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes);
        if forced.is_err() && self.set_option(libc::SOL_SOCKET, libc::SO_RCVBUF, bytes).is_err() {
            tracing::debug!(bytes, "the netlink receive buffer keeps its default size");
        }
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for RawSocket {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

/// Repeats `call` while a signal interrupts it.
fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(length) => return Ok(length),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
