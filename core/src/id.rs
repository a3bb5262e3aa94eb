//! Typed identifiers. Each parses once, at the edge, and can then be trusted: no `From<String>`.
//!
//! Deliberately absent: any id that veni does not put into a request, a ledger entry or a message.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a string is not the identifier it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {kind}: {expected}")]
pub struct ParseIdError {
    /// What was to be parsed, e.g. `ENI id`.
    pub kind: &'static str,
    /// The rejected text, cut to 64 characters.
    pub value: String,
    /// What would have been accepted.
    pub expected: &'static str,
}

impl ParseIdError {
    pub(crate) fn new(kind: &'static str, value: &str, expected: &'static str) -> Self {
        Self { kind, value: value.chars().take(64).collect(), expected }
    }
}

/// `prefix-` followed by 1 to 32 lower-case alphanumerics (AWS uses 8 or 17 hexadecimal digits; doubles
/// such as LocalStack are laxer).
fn is_aws_id(value: &str, prefix: &str) -> bool {
    value.strip_prefix(prefix).is_some_and(|rest| {
        (1..=32).contains(&rest.len())
            && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    })
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(value: &str) -> Result<Self, ParseIdError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(value) {
                    Ok(Self(value.into()))
                } else {
                    Err(ParseIdError::new($kind, value, $expected))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;
            fn try_from(value: String) -> Result<Self, ParseIdError> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

string_id!(
    /// An EC2 instance, `i-…`.
    InstanceId, "instance id", "`i-` and 1 to 32 lower-case letters or digits", |v| is_aws_id(v, "i-")
);
string_id!(
    /// An elastic network interface, `eni-…`.
    EniId, "ENI id", "`eni-` and 1 to 32 lower-case letters or digits",
    |v| is_aws_id(v, "eni-") && !v.starts_with("eni-attach")
);
string_id!(
    /// The attachment of an ENI to an instance, `eni-attach-…`.
    AttachmentId, "ENI attachment id", "`eni-attach-` and 1 to 32 lower-case letters or digits",
    |v| is_aws_id(v, "eni-attach-")
);
string_id!(
    /// A subnet, `subnet-…`.
    SubnetId, "subnet id", "`subnet-` and 1 to 32 lower-case letters or digits", |v| is_aws_id(v, "subnet-")
);
string_id!(
    /// A VPC, `vpc-…`.
    VpcId, "VPC id", "`vpc-` and 1 to 32 lower-case letters or digits", |v| is_aws_id(v, "vpc-")
);
string_id!(
    /// A security group, `sg-…`.
    SecurityGroupId, "security group id", "`sg-` and 1 to 32 lower-case letters or digits", |v| is_aws_id(v, "sg-")
);
string_id!(
    /// A rule of a security group, `sgr-…`.
    SecurityGroupRuleId, "security group rule id", "`sgr-` and 1 to 32 lower-case letters or digits",
    |v| is_aws_id(v, "sgr-")
);
string_id!(
    /// A managed prefix list, `pl-…`.
    PrefixListId, "prefix list id", "`pl-` and 1 to 32 lower-case letters or digits", |v| is_aws_id(v, "pl-")
);
string_id!(
    /// An EC2 instance type, e.g. `m5.xlarge` or `u-6tb1.metal`.
    InstanceType, "instance type", "letters, digits and `-`, a dot, letters, digits and `-`",
    |v| v.len() <= 64 && v.split_once('.').is_some_and(|(family, size)| {
        [family, size].iter().all(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
    })
);
string_id!(
    /// A container's id as the runtime gives it (`CNI_CONTAINERID`, CNI spec section 2).
    ContainerId, "container id", "1 to 128 of A–Z a–z 0–9 _ . -, starting with a letter or digit",
    |v| v.len() <= 128
        && v.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && v.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
);
string_id!(
    /// A network interface's name: 1 to 15 bytes, no `/`, `:` or space (kernel `dev_valid_name`, CNI spec `CNI_IFNAME`).
    IfName, "interface name", "1 to 15 bytes without `/`, `:` or white space, not `.` or `..`",
    |v| (1..=15).contains(&v.len())
        && v != "." && v != ".."
        && !v.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0)
);
string_id!(
    /// A CNI network's name (CNI spec, `name` of a network configuration).
    NetworkName, "network name", "1 to 128 of A–Z a–z 0–9 _ . -, starting with a letter or digit",
    |v| v.len() <= 128
        && v.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && v.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aws_ids_accept_their_own_prefix_only() {
        assert!("eni-0a1b2c3d".parse::<EniId>().is_ok());
        for bad in ["", "eni-", "eni-XYZ", "subnet-1", "eni-attach-12", "eni-1 ", "eni-é"] {
            assert!(bad.parse::<EniId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        assert!("eth0".parse::<IfName>().is_ok());
        for bad in ["", "a/b", "..", "sixteen_bytes_xx", "a b", "a:b"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn ids_round_trip_as_json_strings_and_reject_bad_ones() {
        let id: SubnetId = serde_json::from_str("\"subnet-0abc\"").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"subnet-0abc\"");
        assert!(serde_json::from_str::<SubnetId>("\"eni-0abc\"").is_err());
    }

    #[test]
    fn instance_types_have_a_family_and_a_size() {
        for good in ["m5.xlarge", "u-6tb1.metal", "p5.48xlarge", "c6gd.metal"] {
            assert!(good.parse::<InstanceType>().is_ok(), "{good}");
        }
        for bad in ["m5", "m5.", ".large", "m5.large ", "M5.large"] {
            assert!(bad.parse::<InstanceType>().is_err(), "{bad}");
        }
    }
}
