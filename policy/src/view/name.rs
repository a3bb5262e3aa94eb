//! How pods and addresses are named in questions.

use std::{fmt, net::IpAddr};

/// Which pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodFilter {
    /// All of a namespace.
    Namespace(String),
    /// One.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// Someone to be asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An address, which may be a pod's.
    Address(IpAddr),
}

// === impl End ===

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Not `namespace/name`, `name` (in the namespace `default`), or an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an address nor a pod, namespace/name")]
pub struct NoEnd(String);

impl std::str::FromStr for End {
    type Err = NoEnd;

    fn from_str(text: &str) -> Result<Self, NoEnd> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        // A pod may be called 10.0.0.300, but whoever writes that without a namespace means an address.
        let is_meant_as_address = text.contains(':')
            || text.contains('.') && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if is_meant_as_address {
            return Err(NoEnd(text.to_owned()));
        }
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        let is_name = |part: &str| !part.is_empty() && !part.contains(['/', ' ', '*']);
        if is_name(namespace) && is_name(name) {
            Ok(Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
        } else {
            Err(NoEnd(text.to_owned()))
        }
    }
}

// === impl PodFilter ===

/// Neither `namespace/name` nor `namespace`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a pod, namespace/name, nor a namespace")]
pub struct NoFilter(String);

impl std::str::FromStr for PodFilter {
    type Err = NoFilter;

    fn from_str(text: &str) -> Result<Self, NoFilter> {
        let (namespace, name) = text.split_once('/').unwrap_or((text, "*"));
        let wrong = |part: &str| part.is_empty() || part.contains(['/', ' ']);
        if wrong(namespace) || wrong(name) || namespace.contains('*') {
            Err(NoFilter(text.to_owned()))
        } else if name == "*" {
            Ok(Self::Namespace(namespace.to_owned()))
        } else {
            Ok(Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
        }
    }
}

impl fmt::Display for PodFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(namespace) => f.write_str(namespace),
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_pods_or_addresses() {
        for (text, expect) in [
            ("x/a", Some("x/a")),
            ("a", Some("default/a")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("x/", None),
            ("/a", None),
            ("", None),
            ("x/a/b", None),
            ("x/*", None),
            ("10.0.0.300", None),
            ("10.0.0", None),
            ("fd00::g", None),
            ("x/10.0.0.300", Some("x/10.0.0.300")),
        ] {
            let end = text.parse::<End>().ok().map(|end| end.to_string());
            assert_eq!(end.as_deref(), expect, "{text}");
        }
    }

    #[test]
    fn filters_are_pods_or_namespaces() {
        for (text, expect) in [
            ("x/a", Some("x/a")),
            ("x", Some("x")),
            ("x/*", Some("x")),
            ("*", None),
            ("*/a", None),
            ("", None),
            ("x/", None),
        ] {
            let filter = text.parse::<PodFilter>().ok().map(|filter| filter.to_string());
            assert_eq!(filter.as_deref(), expect, "{text}");
        }
    }
}
