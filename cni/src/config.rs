//! The network configuration on standard input.
//!
//! Two steps, so that an error can still be reported in the runtime's version: [`Raw`] is any JSON object,
//! [`Config`] has been understood. All that is wrong is reported at once. Unknown fields are ignored.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use veni_core::{
    id::NetworkName,
    wire::{DEFAULT_SOCKET, ValidAttachment},
};

use crate::{
    error::Error,
    result::AddResult,
    spec::{Code, SpecVersion},
};

/// The smallest and the largest MTU that `mtu` may say: IPv4 hosts take 576 (RFC 791), the VPC no more than 9001.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 576..=9001;

/// The configuration as JSON: nothing understood yet but the version.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Raw {
    cni_version: Option<Value>,
    name: Option<Value>,
    socket: Option<Value>,
    mtu: Option<Value>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", deserialize_with = "stated")]
    valid_attachments: Option<Value>,
}

/// The configuration, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `cniVersion`.
    pub version: SpecVersion,
    /// `name`.
    pub network: NetworkName,
    /// `socket`: ipamd's.
    pub socket: PathBuf,
    /// `mtu`: the pods' instead of the daemon's.
    pub mtu: Option<u32>,
    /// `prevResult`.
    pub previous: Option<AddResult>,
    /// `cni.dev/valid-attachments` (GC).
    pub valid: Option<Vec<ValidAttachment>>,
}

// === impl Raw ===

impl Raw {
    /// Reads any JSON object.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::NotAnObject`].
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
            // An empty configuration is one without fields: VERSION needs none.
            None => return Ok(Self::default()),
            // serde would read an array as the fields in order.
            Some(b'[') => return Err(Error::NotAnObject),
            Some(_) => {}
        }
        serde_json::from_slice(text).map_err(Error::Json)
    }

    /// `cniVersion`, whether we speak it or not.
    #[must_use]
    pub fn stated_version(&self) -> Option<&str> {
        self.cni_version.as_ref()?.as_str()
    }
}

// === impl Config ===

impl Config {
    /// Refuses `command` when the configuration is of a version that does not have it.
    ///
    /// # Errors
    /// [`Error::Refused`] with the specification's code 1.
    pub fn require(&self, command: &str, since: SpecVersion) -> Result<(), Error> {
        if self.version >= since {
            return Ok(());
        }
        Err(Error::Refused {
            code: Code::IncompatibleVersion,
            message: format!(
                "{command} came with CNI {since}, the network configuration says {}",
                self.version
            ),
        })
    }
}

impl TryFrom<Raw> for Config {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self, Error> {
        let version = version(raw.stated_version())?;
        let mut problems = Vec::new();
        let network = name(raw.name.as_ref()).map_err(|p| problems.push(p)).ok();
        let socket = socket(raw.socket).map_err(|p| problems.push(p)).ok();
        let mtu = mtu(raw.mtu.as_ref()).map_err(|p| problems.push(p)).ok();
        let previous = optional("prevResult", raw.prev_result).map_err(|p| problems.push(p)).ok();
        let valid = optional("cni.dev/valid-attachments", raw.valid_attachments.map(runtime_keys))
            .map_err(|p| problems.push(p))
            .ok();
        match (network, socket, mtu, previous, valid) {
            (Some(network), Some(socket), Some(mtu), Some(previous), Some(valid)) => {
                Ok(Self { version, network, socket, mtu, previous, valid })
            }
            _ => Err(Error::Config(problems)),
        }
    }
}

fn version(stated: Option<&str>) -> Result<SpecVersion, Error> {
    let stated = stated.unwrap_or("(missing)");
    stated.parse().map_err(|_| Error::Refused {
        code: Code::IncompatibleVersion,
        message: format!("cniVersion {stated} is not one of 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
    })
}

fn name(value: Option<&Value>) -> Result<NetworkName, String> {
    let text = value.and_then(Value::as_str).ok_or("name: missing")?;
    text.parse().map_err(|error| format!("name: {error}"))
}

fn socket(value: Option<Value>) -> Result<PathBuf, String> {
    match value {
        None => Ok(PathBuf::from(DEFAULT_SOCKET)),
        Some(Value::String(path)) if Path::new(&path).is_absolute() => Ok(PathBuf::from(path)),
        Some(other) => Err(format!("socket: {other} is not an absolute path")),
    }
}

fn mtu(value: Option<&Value>) -> Result<Option<u32>, String> {
    let Some(value) = value else { return Ok(None) };
    let problem = || {
        format!("mtu: {value} is not a number from {} to {}", MTU_RANGE.start(), MTU_RANGE.end())
    };
    let number = value.as_u64().filter(|n| MTU_RANGE.contains(n)).ok_or_else(problem)?;
    u32::try_from(number).map(Some).map_err(|_| problem())
}

fn optional<T: for<'a> Deserialize<'a>>(
    field: &str,
    value: Option<Value>,
) -> Result<Option<T>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            serde_json::from_value(value).map(Some).map_err(|error| format!("{field}: {error}"))
        }
    }
}

/// Tells `null` from a field that is not there.
fn stated<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// The specification says `containerID` where our messages say `container_id`. A runtime in Go writes an empty list,
/// "no attachment is left", as `null`.
fn runtime_keys(mut attachments: Value) -> Value {
    if attachments.is_null() {
        return Value::Array(Vec::new());
    }
    for attachment in attachments.as_array_mut().into_iter().flatten() {
        let Some(fields) = attachment.as_object_mut() else { continue };
        if let Some(id) = fields.remove("containerID") {
            fields.insert("container_id".to_owned(), id);
        }
    }
    attachments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, Error> {
        Config::try_from(Raw::parse(text.as_bytes())?)
    }

    #[test]
    fn defaults_are_filled_and_unknown_fields_ignored() {
        let config =
            config(r#"{"cniVersion":"1.0.0","name":"veni","type":"veni-cni","x":{"y":[1]}}"#)
                .unwrap();
        assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!((config.mtu, config.previous, config.valid), (None, None, None));
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let text =
            r#"{"cniVersion":"1.0.0","name":"a b","socket":"run/x","mtu":70000,"prevResult":7}"#;
        let message = config(text).unwrap_err().to_string();
        for part in ["name: \"a b\"", "socket: \"run/x\"", "mtu: 70000", "prevResult: "] {
            assert!(message.contains(part), "{part} is missing from {message}");
        }
    }

    #[test]
    fn foreign_versions_are_refused_by_name() {
        for version in ["0.1.0", "0.3.0", "1.2.0", ""] {
            let error =
                config(&format!(r#"{{"cniVersion":"{version}","name":"veni"}}"#)).unwrap_err();
            assert_eq!(error.code(), Code::IncompatibleVersion, "{version}");
        }
        assert_eq!(config(r#"{"name":"veni"}"#).unwrap_err().code(), Code::IncompatibleVersion);
    }

    #[test]
    fn valid_attachments_are_read_as_the_specification_spells_them() {
        let text = r#"{"cniVersion":"1.1.0","name":"veni",
            "cni.dev/valid-attachments":[{"containerID":"abc","ifname":"eth0"}]}"#;
        let valid = config(text).unwrap().valid.unwrap();
        assert_eq!(valid[0].container_id.as_str(), "abc");
    }

    #[test]
    fn no_valid_attachments_are_an_empty_list_or_null_and_not_a_missing_field() {
        for (field, expect) in [
            (r#","cni.dev/valid-attachments":null"#, Some(Vec::new())),
            (r#","cni.dev/valid-attachments":[]"#, Some(Vec::new())),
            ("", None),
        ] {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"veni"{field}}}"#);
            assert_eq!(config(&text).unwrap().valid, expect, "{field}");
        }
    }

    #[test]
    fn the_installed_conflists_are_ones_that_we_read() {
        let former = include_str!("../install/10-veni.conflist");
        let newer = include_str!("../install/10-veni-1.1.conflist");
        for (text, version) in [(former, SpecVersion::V1_0_0), (newer, SpecVersion::V1_1_0)] {
            is_ours(text, version);
        }
        // Nothing else differs.
        assert_eq!(newer.replace(r#""1.1.0""#, r#""1.0.0""#), former);
    }

    fn is_ours(text: &str, version: SpecVersion) {
        let list: Value = serde_json::from_str(text).unwrap();
        let mut ours = list["plugins"][0].clone();
        assert_eq!(
            (list["name"].as_str(), ours["type"].as_str()),
            (Some("veni"), Some("veni-cni"))
        );
        // The runtime copies these two into each plugin's configuration.
        ours["cniVersion"] = list["cniVersion"].clone();
        ours["name"] = list["name"].clone();
        let config = config(&ours.to_string()).unwrap();
        assert_eq!(config.version, version);
        assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(list["plugins"][1]["type"], "portmap");
        assert_eq!(list["plugins"][1]["capabilities"]["portMappings"], true);
    }
}
