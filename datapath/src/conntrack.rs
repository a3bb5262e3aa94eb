//! Conntrack entries of an address that changed hands.
//!
//! An entry left over from the last owner would translate or misroute the first packets of the next
//! (amazon-vpc-cni-k8s #3634). Those of one address are removed by the kernel's own filter (`CTA_FILTER`). It walks the
//! whole table for each of the four places in which an entry can name the address (158 ms over 40,000 entries), so
//! those of several are found by listing the table once.
//!
//! `CTA_FILTER` works for listing since Linux 5.8 (cb8aa9a3affb), for deleting since 6.8 (e966273e5f3a). On kernels
//! in between the matching entries are listed by the filter and deleted one by one.

use std::{collections::BTreeSet, io, net::Ipv4Addr};

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
    each_place(address, |netfilter, entries| match netfilter.delete(entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            netfilter.delete_one_by_one(entries)
        }
        other => other,
    })
}

/// As [`flush`] for several addresses, in one listing of the table.
///
/// # Errors
/// As [`flush`].
pub fn flush_all(addresses: &BTreeSet<Ipv4Addr>) -> Result<()> {
    match (addresses.first(), addresses.len()) {
        (None, _) => Ok(()),
        (Some(address), 1) => flush(*address),
        _ => {
            let run = || Netfilter::open()?.delete_naming(addresses);
            run().map_err(Error::io(format!(
                "flushing conntrack entries of {} addresses",
                addresses.len()
            )))
        }
    }
}

/// As [`flush`], the way of kernels before 6.8: for tests.
///
/// # Errors
/// As [`flush`].
#[doc(hidden)]
pub fn flush_one_by_one(address: Ipv4Addr) -> Result<()> {
    each_place(address, Netfilter::delete_one_by_one)
}

fn each_place(
    address: Ipv4Addr,
    mut delete: impl FnMut(&mut Netfilter, &Flush) -> io::Result<()>,
) -> Result<()> {
    let mut run = || {
        let mut netfilter = Netfilter::open()?;
        PLACES.into_iter().try_for_each(|(direction, side)| {
            delete(&mut netfilter, &Flush { address, direction, side })
        })
    };
    run().map_err(Error::io(format!("flushing conntrack entries of {address}")))
}
