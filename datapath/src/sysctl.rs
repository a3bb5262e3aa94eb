//! Sysctls of the calling thread's network namespace, under `ipv4` in `/proc/sys/net`, or where that is mounted: a
//! container has `/proc/sys` read-only, and the node's own elsewhere.
//!
//! Deliberately absent: anything outside `net.ipv4` of the current namespace. `/proc/sys/net` shows the namespace of
//! the thread that opens the file, so a thread that entered one needs nothing more.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// A setting that pods' traffic needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sysctl {
    /// `net.ipv4.ip_forward`.
    IpForward,
    /// `net.ipv4.conf.<interface>.forwarding`.
    Forwarding(String),
    /// `net.ipv4.conf.<interface>.rp_filter`. The strictest of `all` and the interface's is *not* what counts: the
    /// kernel takes the larger number (`IN_DEV_RPFILTER`), so 2 (loose) on the interface wins over `all`'s 1.
    RpFilter(String),
}

impl Sysctl {
    fn path(&self, net: &Path) -> PathBuf {
        let base = net.join("ipv4");
        match self {
            Self::IpForward => base.join("ip_forward"),
            Self::Forwarding(interface) => base.join("conf").join(interface).join("forwarding"),
            Self::RpFilter(interface) => base.join("conf").join(interface).join("rp_filter"),
        }
    }

    /// The value now. `net` is the folder of `net`'s settings.
    ///
    /// # Errors
    /// When it cannot be read (the interface is gone).
    pub fn read(&self, net: &Path) -> Result<String> {
        let path = self.path(net);
        fs::read_to_string(&path)
            .map(|text| text.trim().to_owned())
            .map_err(Error::io(format!("reading {self} ({})", path.display())))
    }

    /// Sets it.
    ///
    /// # Errors
    /// When it cannot be written (read-only, the interface is gone).
    pub fn write(&self, net: &Path, value: &str) -> Result<()> {
        let path = self.path(net);
        fs::write(&path, value)
            .map_err(Error::io(format!("setting {self} to {value} ({})", path.display())))
    }
}

impl std::fmt::Display for Sysctl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::IpForward => f.write_str("net.ipv4.ip_forward"),
            Self::Forwarding(interface) => write!(f, "net.ipv4.conf.{interface}.forwarding"),
            Self::RpFilter(interface) => write!(f, "net.ipv4.conf.{interface}.rp_filter"),
        }
    }
}
