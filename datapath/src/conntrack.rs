//! Conntrack entries of an address that changed hands.
//!
//! An entry left over from the last owner would translate or misroute the first packets of the next
//! (amazon-vpc-cni-k8s #3634). Entries are removed by the kernel's own filter (`CTA_FILTER`), never by listing the
//! whole table.
//!
//! `CTA_FILTER` works for listing since Linux 5.8 (cb8aa9a3affb), for deleting since 6.8 (e966273e5f3a). On kernels
//! in between the matching entries are listed by the filter and deleted one by one.

use std::net::Ipv4Addr;

use crate::error::{Error, Result};

mod message;
mod socket;

use message::{Direction, Flush, Side};
use socket::Netfilter;

/// The four ways in which an entry can name an address.
const PLACES: [(Direction, Side); 4] = [
    (Direction::Original, Side::Source),
    (Direction::Original, Side::Destination),
    (Direction::Reply, Side::Source),
    (Direction::Reply, Side::Destination),
];

/// Removes every conntrack entry of the current network namespace that names `address`, in either direction, as
/// source or destination.
///
/// # Errors
/// When the kernel refuses (no `CAP_NET_ADMIN`, no `nf_conntrack_netlink`).
pub fn flush(address: Ipv4Addr) -> Result<()> {
    let operation = || Error::io(format!("flushing conntrack entries of {address}"));
    let mut netfilter = Netfilter::open().map_err(operation())?;
    for (direction, side) in PLACES {
        let flush = Flush { address, direction, side };
        match netfilter.delete(&flush) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                netfilter.delete_one_by_one(&flush).map_err(operation())?;
            }
            other => other.map_err(operation())?,
        }
    }
    Ok(())
}
