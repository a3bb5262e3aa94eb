//! Why a filter dropped a packet.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $slot:literal, $name:literal;)*) => {
        /// Why a filter dropped a packet. The number is the slot of its counter, and never changes its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum DropReason {
            $($(#[$doc])* $variant = $slot,)*
        }

        impl DropReason {
            /// All of them, by slot.
            pub const ALL: [Self; [$($slot),*].len()] = [$(Self::$variant),*];

            /// The name in metrics and views.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

reasons! {
    /// The interface is no pod's: its entry is gone, or was never written.
    UnknownInterface = 0, "unknown_interface";
    /// The frame's source MAC is not the pod's.
    SourceMac = 1, "source_mac";
    /// The source address is not the pod's.
    SourceAddress = 2, "source_address";
    /// An ARP packet whose sender (MAC or address) is not the pod.
    ArpSender = 3, "arp_sender";
    /// IPv6: no address of it is assigned to the pod.
    Ipv6 = 4, "ipv6";
    /// A VLAN tag.
    Vlan = 5, "vlan";
    /// The packet ends inside a header that has to be read.
    Truncated = 6, "truncated";
    /// A header that contradicts itself, or a fragment that could overwrite the header that was judged.
    Malformed = 7, "malformed";
    /// An EtherType that pods have no use for.
    EtherType = 8, "ether_type";
    /// What the pod may send (its policies and groups) does not hold this.
    EgressDenied = 9, "egress_denied";
    /// What may be sent to the pod does not hold this.
    IngressDenied = 10, "ingress_denied";
    /// The tables lack something that an entry names (a set without its default, a profile).
    TablesIncomplete = 11, "tables_incomplete";
    /// Sent to a pod's interface, but not to its address.
    DestinationAddress = 12, "destination_address";
    /// A later fragment whose first was not seen, or not let through.
    FragmentUnknown = 13, "fragment_unknown";
    /// Extension headers out of order, doubled, or more than are followed.
    ExtensionHeader = 14, "extension_header";
    /// A Service without back ends, from a pod whose egress is restricted.
    NoBackend = 15, "no_backend";
    /// An address of the Service range, or a node port, that no Service is known for, from a pod whose egress is restricted.
    UnknownService = 16, "unknown_service";
    /// The pod's port is taken by a translated flow to the same peer.
    PortCollision = 17, "port_collision";
    /// SCTP to a Service whose back end has another port, from a pod whose egress is restricted (CRC32c).
    SctpPort = 18, "sctp_port";
    /// Instance metadata, closed for pods without a rule that opens it.
    Metadata = 19, "metadata";
    /// A flow that policy allowed once, and no longer does.
    Revoked = 20, "revoked";
    /// Neighbour discovery that a pod has no right to (a router's, or another's address).
    NeighbourDiscovery = 21, "neighbour_discovery";
    /// A Service whose back end is itself a front end of this node, from a pod whose egress is restricted.
    NestedService = 22, "nested_service";
    /// A source route: the packet would go elsewhere than to its destination.
    SourceRoute = 23, "source_route";
    /// A Service's flow that could not be tracked: the table refused it.
    Untracked = 24, "untracked";
    /// The programs' own settings are missing: a defect.
    Settings = 25, "settings";
}

impl DropReason {
    /// The counter's slot.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self as u32
    }

    /// The reason with this slot.
    #[must_use]
    pub fn from_slot(slot: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.slot() == slot)
    }
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn each_reason_is_explained_in_the_documentation() {
        let page = include_str!("../../../docs/drops.md");
        for reason in DropReason::ALL {
            assert!(page.contains(&format!("| `{}` |", reason.name())), "{}", reason.name());
        }
    }

    #[test]
    fn slots_are_the_positions() {
        for (position, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(usize::try_from(reason.slot()).unwrap(), position, "{}", reason.name());
            assert_eq!(DropReason::from_slot(reason.slot()), Some(reason));
        }
    }
}
