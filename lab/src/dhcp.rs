//! What an instance's DHCP client leaves behind on its first interface, before anything of veni runs.

use std::net::Ipv4Addr;

use veni_core::net::Ipv4Prefix;

use crate::{error::Result, ns::Namespace};

/// Configures `eth0` as systemd-networkd does on an EC2 instance: the primary address with the subnet's length, and
/// the default route through the subnet's router in the main table.
///
/// # Errors
/// When the link is not there.
pub fn configure(node: &Namespace, address: Ipv4Addr, subnet: Ipv4Prefix) -> Result<()> {
    let (gateway, len) = (subnet.vpc_router(), subnet.len());
    node.ip(&format!(
        "addr add {address}/{len} brd + dev eth0\nlink set eth0 up\n\
         route add default via {gateway} dev eth0 proto dhcp src {address} metric 100\n\
         route add {gateway}/32 dev eth0 proto dhcp scope link src {address} metric 100\n"
    ))
}
