//! The policy's and the Services' tables as the programs look them up: keys, values, sizes.
//!
//! One new flow costs: the peer's class (hash, then LPM on a miss), the pair (set, class) → profile, the profile's
//! ranges. A set is of one direction; pods with the same policies share it. What is written here is final: all
//! tiers and security groups are flattened in user space, so one lookup decides, and names the rule that did.
//!
//! | map | kind | key → value |
//! |---|---|---|
//! | `CLASS_V4`, `CLASS_V6` | hash | a pod's address → class |
//! | `CIDR_V4`, `CIDR_V6` | LPM | prefix → class |
//! | `VERDICTS` | hash | [`VerdictKey`] → profile number |
//! | `PROFILES` | array | profile number → [`Profile`] |
//! | `PORTS` | LPM | [`PortKey`] → [`Decision`], for profiles with more than [`INLINE_RANGES`] ranges |
//! | `SERVICE_V4`, `SERVICE_V6` | hash | [`ServiceKeyV4`], [`ServiceKeyV6`] → [`ServiceValue`] |
//! | `BACKENDS` | hash | [`BackendKey`] → [`BackendValue`] |
//! | `MEMBERS` | hash | [`MemberKey`] → slot: whether a list has a back end, wherever in it |
//!
//! The node itself is exempt from what a pod's egress set says, but where the profile of the address' class
//! [judges the node](Profile::judges_node). The mark is in a byte that was always zero: programs that do not know it exempt
//! the node as before, and tables without it exempt it under programs that do.
//!
//! Invariants: ports in keys are in network order, ports in [`PortRange`] in host order; for ICMP and ICMPv6 the
//! "port" is type << 8 | code. Class 0 is an address that no rule names; [`ANY_CLASS`] is a set's answer for every
//! class without an entry of its own, and every set has it.

/// The class of an address that is in no map.
pub const NO_CLASS: u32 = 0;
/// The pseudo-class whose entry answers for classes without one.
pub const ANY_CLASS: u32 = u32::MAX;
/// The set of a direction in which the pod is not isolated and nothing has to be looked up: allowed by default.
pub const OPEN_SET: u32 = 0;
/// Ranges inside a profile.
pub const INLINE_RANGES: usize = 8;
/// Matches every protocol in a [`PortRange`].
pub const ANY_PROTOCOL: u8 = 0xff;

/// Entries that each map can hold at most. Full maps refuse the new set; nothing is truncated.
pub mod capacity {
    /// Pods' addresses of one family.
    pub const CLASS: u32 = 262_144;
    /// Prefixes of one family.
    pub const CIDR: u32 = 131_072;
    /// (set, class) pairs.
    pub const VERDICTS: u32 = 524_288;
    /// Port profiles.
    pub const PROFILES: u32 = 16_384;
    /// Prefixes of ports over all profiles.
    pub const PORTS: u32 = 262_144;
    /// Front ends of one family.
    pub const SERVICE: u32 = 65_536;
    /// Back ends over all front ends.
    pub const BACKENDS: u32 = 262_144;
}

/// Allow or deny, and the rule that says so: bit 31 is "allow", the rest is the rule's number ([`Decision::rule`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Decision(pub u32);

impl Decision {
    const ALLOW: u32 = 1 << 31;

    /// Allowed by this rule.
    #[must_use]
    pub const fn allow(rule: u32) -> Self {
        Self(Self::ALLOW | rule)
    }

    /// Denied by this rule.
    #[must_use]
    pub const fn deny(rule: u32) -> Self {
        Self(rule & !Self::ALLOW)
    }

    /// Whether the packet passes.
    #[must_use]
    pub const fn allowed(self) -> bool {
        self.0 & Self::ALLOW != 0
    }

    /// The deciding rule's number; 0 is "no rule: the default".
    #[must_use]
    pub const fn rule(self) -> u32 {
        self.0 & !Self::ALLOW
    }
}

/// A set's entry for one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct VerdictKey {
    /// The rule set (of one direction).
    pub set: u32,
    /// The peer's class, or [`ANY_CLASS`].
    pub class: u32,
}

/// Ports of one protocol with one decision. Ranges of a profile do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PortRange {
    /// IP protocol number, or [`ANY_PROTOCOL`].
    pub protocol: u8,
    /// 1 in the first range, used or not, of a profile that [judges the node](Profile::judges_node); else 0.
    pub of_node: u8,
    /// First port, host order.
    pub first: u16,
    /// Last port, host order, included.
    pub last: u16,
    /// Zero.
    pub reserved2: u16,
    /// What happens to it.
    pub decision: Decision,
}

/// What a class may do with which ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Profile {
    /// The decision where no range matches.
    pub otherwise: Decision,
    /// Ranges in use, from the first; [`Profile::IN_PORTS`] when they are in `PORTS` instead.
    pub count: u32,
    /// The ranges.
    pub ranges: [PortRange; INLINE_RANGES],
}

impl Profile {
    /// `count` of a profile whose ranges are in the map `PORTS`.
    pub const IN_PORTS: u32 = u32::MAX;

    /// Whether it says what a pod may do at its own node. What any other profile says of an own address does not count: there
    /// the node is exempt. This one counts nowhere else.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as for `judge`")]
    #[must_use]
    pub const fn judges_node(&self) -> bool {
        self.ranges[0].of_node != 0
    }
}

/// The data of a `PORTS` key; the prefix counts its bits, so a whole protocol has a prefix of 48 bits, one port 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct PortKey {
    /// The profile's number.
    pub profile: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
    /// Port in network order.
    pub port: [u8; 2],
}

/// A Service's front end: ClusterIP, external or load-balancer address, NodePort or hostPort on an own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceKeyV4 {
    /// Its address.
    pub address: [u8; 4],
    /// Port in network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// As [`ServiceKeyV4`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceKeyV6 {
    /// Its address.
    pub address: [u8; 16],
    /// Port in network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// Where a front end's back ends are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ServiceValue {
    /// Their number in [`BackendKey`]; a changed list of back ends gets a new one, so that no reader sees a mixture.
    pub backends: u32,
    /// How many. 0: left to kube-proxy, which answers that there is none, from a pod that nothing restricts; refused
    /// without an answer from any other (see [`ServiceValue::OF_PROXY`]).
    pub count: u32,
    /// Session affinity by client address: seconds it holds, 0 for none.
    pub affinity_secs: u32,
    /// Identifies the front end's Service port across changes of its back ends (affinity's key).
    pub service: u32,
}

impl ServiceValue {
    /// The count of a front end that kube-proxy alone can serve. Where it leads is not known here: an isolated pod's
    /// packet is refused, any other is left to kube-proxy.
    pub const OF_PROXY: u32 = u32::MAX;
}

/// One back end: slots 0..count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct BackendKey {
    /// [`ServiceValue::backends`].
    pub backends: u32,
    /// 0 up to [`ServiceValue::count`].
    pub slot: u32,
}

/// A back end's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct BackendValue {
    /// IPv6, or IPv4 in the first four bytes and zeros.
    pub address: [u8; 16],
    /// Port in network order.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(
    size_of::<VerdictKey>() == 8
        && size_of::<PortRange>() == 12
        && size_of::<Profile>() == 8 + 12 * INLINE_RANGES
        && size_of::<PortKey>() == 8
        && size_of::<ServiceKeyV4>() == 8
        && size_of::<ServiceKeyV6>() == 20
        && size_of::<ServiceValue>() == 16
        && size_of::<BackendValue>() == 20
        && size_of::<MemberKey>() == 24
);

/// A back end of a list, by its address. Whoever writes `BACKENDS` keeps `MEMBERS` beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct MemberKey {
    /// [`ServiceValue::backends`].
    pub backends: u32,
    /// As in [`BackendValue`].
    pub address: [u8; 16],
    /// Port in network order.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
}

impl MemberKey {
    /// The back end `value` of the list `backends`.
    #[must_use]
    pub const fn of(backends: u32, value: &BackendValue) -> Self {
        Self { backends, address: value.address, port: value.port, reserved: [0; 2] }
    }
}

/// The tables behind a verdict, so that the programs and a model of their maps share [`judge`].
pub trait Tables {
    /// `VERDICTS`.
    fn verdict(&self, key: &VerdictKey) -> Option<u32>;
    /// Whether and how `PROFILES` decides; `None` when the profile is missing.
    fn profile(&self, profile: u32, protocol: u8, port: u16) -> Option<Decision>;
}

/// The verdict of a set on a peer's class, protocol and port (host order). `None`: the tables are incomplete (a set
/// without [`ANY_CLASS`], a missing profile), which callers count and refuse.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a call in BPF costs the verifier's knowledge about its arguments"
)]
pub fn judge<T: Tables>(
    tables: &T,
    set: u32,
    class: u32,
    protocol: u8,
    port: u16,
) -> Option<Decision> {
    if set == OPEN_SET {
        return Some(Decision::allow(0));
    }
    tables.profile(profile_of(tables, set, class)?, protocol, port)
}

/// The profile that a set, not the open one, has for a class. `None`: as for [`judge`].
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `judge`")]
pub fn profile_of<T: Tables>(tables: &T, set: u32, class: u32) -> Option<u32> {
    match tables.verdict(&VerdictKey { set, class }) {
        Some(profile) => Some(profile),
        None => tables.verdict(&VerdictKey { set, class: ANY_CLASS }),
    }
}

/// The decision of a profile whose ranges are inline.
#[inline(always)]
#[expect(clippy::inline_always, reason = "as for `judge`")]
#[must_use]
pub fn in_ranges(profile: &Profile, protocol: u8, port: u16) -> Decision {
    let mut left = profile.count;
    for range in &profile.ranges {
        if left == 0 {
            break;
        }
        if (range.protocol == protocol || range.protocol == ANY_PROTOCOL)
            && range.first <= port
            && port <= range.last
        {
            return range.decision;
        }
        left -= 1;
    }
    profile.otherwise
}
