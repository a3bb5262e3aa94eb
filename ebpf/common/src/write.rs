//! One entry of one table, written or removed: what user space computes and the datapath carries out, in order.

use crate::table::{
    BackendKey, BackendValue, Decision, PortKey, Profile, ServiceKeyV4, ServiceKeyV6, ServiceValue,
    VerdictKey,
};

/// An entry added or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// `CLASS_V4`: a pod's address.
    ClassV4 {
        /// The address.
        address: [u8; 4],
        /// Its class.
        class: u32,
    },
    /// `CLASS_V6`.
    ClassV6 {
        /// The address.
        address: [u8; 16],
        /// Its class.
        class: u32,
    },
    /// `CIDR_V4`: a prefix.
    CidrV4 {
        /// Its first address.
        prefix: [u8; 4],
        /// Its length in bits.
        length: u8,
        /// Its class.
        class: u32,
    },
    /// `CIDR_V6`.
    CidrV6 {
        /// Its first address.
        prefix: [u8; 16],
        /// Its length in bits.
        length: u8,
        /// Its class.
        class: u32,
    },
    /// `VERDICTS`.
    Verdict {
        /// The set and the class.
        key: VerdictKey,
        /// The profile's number.
        profile: u32,
    },
    /// `PROFILES`.
    Profile {
        /// Its number.
        number: u32,
        /// Its contents.
        profile: Profile,
    },
    /// `PORTS`.
    Port {
        /// The profile, protocol and port.
        key: PortKey,
        /// Bits of the key that count: 48 for a whole protocol, 64 for one port.
        length: u8,
        /// What happens to it.
        decision: Decision,
    },
    /// `SERVICE_V4`.
    ServiceV4 {
        /// The front end.
        key: ServiceKeyV4,
        /// Its back ends.
        value: ServiceValue,
    },
    /// `SERVICE_V6`.
    ServiceV6 {
        /// The front end.
        key: ServiceKeyV6,
        /// Its back ends.
        value: ServiceValue,
    },
    /// `BACKENDS`.
    Backend {
        /// The list and the position.
        key: BackendKey,
        /// The back end.
        value: BackendValue,
    },
}

/// An entry removed. One that is not there is no error. (`PROFILES` is an array: its entries are only replaced.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remove {
    /// `CLASS_V4`.
    ClassV4([u8; 4]),
    /// `CLASS_V6`.
    ClassV6([u8; 16]),
    /// `CIDR_V4`: a prefix and its length.
    CidrV4([u8; 4], u8),
    /// `CIDR_V6`.
    CidrV6([u8; 16], u8),
    /// `VERDICTS`.
    Verdict(VerdictKey),
    /// `PORTS`: the key and its length.
    Port(PortKey, u8),
    /// `SERVICE_V4`.
    ServiceV4(ServiceKeyV4),
    /// `SERVICE_V6`.
    ServiceV6(ServiceKeyV6),
    /// `BACKENDS`.
    Backend(BackendKey),
}
