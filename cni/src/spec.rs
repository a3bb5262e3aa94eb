//! The CNI specification's versions and error codes (<https://www.cni.dev/docs/spec/>, 1.1.0).

use std::{fmt, str::FromStr};

use serde::Serialize;

/// A version of the specification that this plugin speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.1: `ips[].version`.
    V0_3_1,
    /// 0.4.0: CHECK, and prevResult for DEL.
    V0_4_0,
    /// 1.0.0: no `ips[].version`.
    V1_0_0,
    /// 1.1.0: GC and STATUS, `interfaces[].mtu`.
    V1_1_0,
}

/// An error code: below 100 the specification's, from 100 on our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration's cniVersion is not one of ours, or too old for the command.
    IncompatibleVersion = 1,
    /// The container is not known or does not exist: the runtime need not clean up.
    UnknownContainer = 3,
    /// Environment variables are missing or wrong.
    InvalidEnvironment = 4,
    /// Input or output failed.
    Io = 5,
    /// The configuration is no JSON object.
    Decode = 6,
    /// The configuration's fields are missing or wrong.
    InvalidConfig = 7,
    /// What is missing may be there soon.
    TryAgainLater = 11,
    /// STATUS: ADDs end in an error.
    NotAvailable = 50,
    /// The kernel refused a part of the wiring.
    Wiring = 100,
    /// CHECK: something is not as ADD left it.
    NotWired = 101,
    /// Plugin and daemon do not understand each other.
    Protocol = 102,
    /// The daemon failed.
    Daemon = 103,
    /// The plugin failed (the specification's own plugins use this number).
    Internal = 999,
}

/// What is not a version that this plugin speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnsupportedVersion;

// === impl SpecVersion ===

impl SpecVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As it stands in `cniVersion`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl FromStr for SpecVersion {
    type Err = UnsupportedVersion;
    fn from_str(text: &str) -> Result<Self, UnsupportedVersion> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or(UnsupportedVersion)
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer to VERSION, in the version that was asked in.
#[must_use]
pub fn version_report(asked: &str) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Report<'a> {
        cni_version: &'a str,
        supported_versions: [&'static str; 4],
    }
    let supported_versions = SpecVersion::ALL.map(SpecVersion::as_str);
    to_json(&Report { cni_version: asked, supported_versions })
}

/// What cannot fail: our own types have string keys only.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our types have string keys only")
}
