//! The steps of a pod's wiring, in words: what was being done, and what to do when the kernel says that it is there
//! already.
//!
//! Pure.

use veni_core::{id::IfName, wire::Wiring};

/// One netlink message of the wiring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Pair,
    HostRoute,
    Qdisc,
    PodUp,
    PodAddress,
    GatewayRoute,
    DefaultRoute,
    Neighbour,
}

/// The messages of [`super::message::host_batch`], in order. The qdisc is left out without filters.
pub(super) const HOST: [Step; 3] = [Step::Pair, Step::HostRoute, Step::Qdisc];
/// The messages of [`super::message::pod_batch`], in order.
pub(super) const POD: [Step; 5] =
    [Step::PodUp, Step::PodAddress, Step::GatewayRoute, Step::DefaultRoute, Step::Neighbour];

impl Step {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Pair => "making the veth pair",
            Self::HostRoute => "adding the route to the pod",
            Self::Qdisc => "adding the filter's qdisc",
            Self::PodUp => "bringing the pod's end up",
            Self::PodAddress => "adding the pod's address",
            Self::GatewayRoute => "adding the route to the gateway",
            Self::DefaultRoute => "adding the default route",
            Self::Neighbour => "adding the gateway's neighbour entry",
        }
    }

    /// Who may have made it, how to see it, and what to do.
    pub(super) fn when_present(self, wiring: &Wiring, ifname: &IfName) -> String {
        let Wiring { address, gateway, host_ifname, pod_table, .. } = wiring;
        let other_network = "another network plugin has configured this pod first: take it out of the network \
                             configuration, or keep it off this";
        match self {
            Self::HostRoute => format!(
                "`ip route show table {pod_table} {address}` shows another's route to the pod's address; remove it if \
                 no pod has that address, and the runtime's next try succeeds"
            ),
            Self::Qdisc => format!(
                "another program put a clsact qdisc on {host_ifname} as it appeared (`tc qdisc show`, `bpftool net`); \
                 keep it off the links of pods"
            ),
            Self::PodAddress => format!("{other_network} (the address {address} on {ifname})"),
            Self::GatewayRoute | Self::Neighbour => format!("{other_network} (the way to {gateway})"),
            Self::DefaultRoute => format!("{other_network} (the default route)"),
            Self::Pair | Self::PodUp => {
                "the runtime's next try makes it anew; if this comes again, `ip -d link` on the node and in the pod \
                 shows whose it is"
                    .to_owned()
            }
        }
    }
}
