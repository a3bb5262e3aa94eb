//! Why a filter dropped a packet.

/// Why a filter dropped a packet. The number is the slot of its counter, and never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum DropReason {
    /// The interface is no pod's: its entry is gone, or was never written.
    UnknownInterface = 0,
    /// The frame's source MAC is not the pod's.
    SourceMac = 1,
    /// The IPv4 source address is not the pod's.
    SourceAddress = 2,
    /// An ARP packet whose sender (MAC or address) is not the pod.
    ArpSender = 3,
    /// IPv6: no address of it is assigned to the pod.
    Ipv6 = 4,
    /// A VLAN tag.
    Vlan = 5,
    /// The frame ends inside a header that has to be read.
    Truncated = 6,
    /// A header that contradicts itself (IPv4 version or length, ARP types).
    Malformed = 7,
    /// An EtherType that pods have no use for.
    EtherType = 8,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::UnknownInterface,
        Self::SourceMac,
        Self::SourceAddress,
        Self::ArpSender,
        Self::Ipv6,
        Self::Vlan,
        Self::Truncated,
        Self::Malformed,
        Self::EtherType,
    ];

    /// The name in metrics and views.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownInterface => "unknown_interface",
            Self::SourceMac => "source_mac",
            Self::SourceAddress => "source_address",
            Self::ArpSender => "arp_sender",
            Self::Ipv6 => "ipv6",
            Self::Vlan => "vlan",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::EtherType => "ether_type",
        }
    }

    /// The counter's slot.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn slots_are_the_positions() {
        for (position, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(usize::try_from(reason.slot()).unwrap(), position, "{}", reason.name());
        }
    }
}
