//! Reading single variables: each method parses as the AWS VPC CNI does, and notes what it had to work around.

use std::collections::BTreeMap;

use super::{ConfigError, Warning, variables};
use crate::net::Ipv4Prefix;

/// The variables, and what was found wrong with them so far.
#[derive(Debug)]
pub(super) struct Reader {
    vars: BTreeMap<String, String>,
    /// Whether a value that cannot be parsed is an error (a person's command line) or worked around (a daemon).
    strict: bool,
    pub(super) warnings: Vec<Warning>,
    pub(super) errors: Vec<ConfigError>,
}

impl Reader {
    pub(super) fn new(vars: impl Iterator<Item = (String, String)>, strict: bool) -> Self {
        Self { vars: vars.collect(), strict, warnings: Vec::new(), errors: Vec::new() }
    }

    /// The warnings, each once.
    pub(super) fn into_warnings(self) -> Vec<Warning> {
        let mut warnings: Vec<Warning> = Vec::new();
        for warning in self.warnings {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        warnings
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.vars.keys().map(String::as_str)
    }

    /// The value of a variable; an empty one is an unset one.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(ToOwned::to_owned)
    }

    pub(super) fn warn(&mut self, name: &str, message: impl Into<String>) {
        let value = self.get(name).unwrap_or_default().to_owned();
        self.warnings.push(Warning::new(name, &value, message));
    }

    pub(super) fn fail(&mut self, name: &str, problem: impl Into<String>) {
        let value = self.get(name).unwrap_or_default().to_owned();
        self.errors.push(ConfigError::new(name, &value, problem));
    }

    /// A value that cannot be parsed: the documented default, with a warning.
    pub(super) fn unparsable(&mut self, name: &str, allowed: &str) {
        if self.strict {
            self.fail(name, format!("expected {allowed}"));
        } else {
            let default = default_of(name);
            self.warn(name, format!("expected {allowed}; {default} is used"));
        }
    }

    /// Go's `strconv.ParseBool`, as the AWS VPC CNI reads booleans.
    pub(super) fn bool(&mut self, name: &str, default: bool) -> bool {
        match self.get(name) {
            None => default,
            Some("1" | "t" | "T" | "TRUE" | "true" | "True") => true,
            Some("0" | "f" | "F" | "FALSE" | "false" | "False") => false,
            Some(_) => {
                self.unparsable(name, "true or false");
                default
            }
        }
    }

    /// Go's `strconv.Atoi`. `None` when unset or not a whole number (noted).
    pub(super) fn integer(&mut self, name: &str) -> Option<i64> {
        let parsed = self.get(name)?.parse().ok();
        if parsed.is_none() {
            self.unparsable(name, "a whole number");
        }
        parsed
    }

    /// A count of at least `min`. Below it, and unparsable: `None`, noted, for the default.
    pub(super) fn at_least(&mut self, name: &str, min: u32) -> Option<u32> {
        let number = self.integer(name)?;
        if number < i64::from(min) {
            let default = default_of(name);
            self.warn(
                name,
                format!("expected a whole number of at least {min}; {default} is used"),
            );
            return None;
        }
        Some(u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// A number in a range outside of which nothing sensible can be assumed.
    pub(super) fn in_range(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Option<u32> {
        let parsed = self.get(name)?.parse().ok().filter(|number| range.contains(number));
        if parsed.is_none() {
            self.fail(
                name,
                format!("expected a whole number from {} to {}", range.start(), range.end()),
            );
        }
        parsed
    }

    /// A comma-separated list of IPv4 CIDRs. Host bits are cut off, IPv6 ones left out (both noted).
    pub(super) fn cidrs(&mut self, name: &str) -> Vec<Ipv4Prefix> {
        let list = self.text(name).unwrap_or_default();
        let mut prefixes = Vec::new();
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item.parse::<ipnet::IpNet>() {
                Ok(ipnet::IpNet::V4(net)) => {
                    let prefix = Ipv4Prefix::new(net.network(), net.prefix_len())
                        .expect("a network address has no host bits");
                    if net.addr() != net.network() {
                        self.warn(name, format!("{item} has bits set after its length; {prefix} is used"));
                    }
                    prefixes.push(prefix);
                }
                Ok(ipnet::IpNet::V6(_)) => {
                    self.warn(name, format!("{item} is IPv6, which is not supported yet; it is left out"));
                }
                Err(_) => self.fail(
                    name,
                    format!("{item:?} is not a CIDR; expected a comma-separated list such as 10.1.0.0/16,10.2.0.0/16"),
                ),
            }
        }
        prefixes
    }

    /// An absolute path.
    pub(super) fn path(&mut self, name: &str, default: String) -> String {
        match self.text(name) {
            None => default,
            Some(path) if path.starts_with('/') => path,
            Some(_) => {
                self.fail(name, "expected an absolute path");
                default
            }
        }
    }
}

fn default_of(name: &str) -> String {
    match variables::find(name).map(|variable| variable.default) {
        None | Some("") => "unset".to_owned(),
        Some(default) => format!("the default, {default},"),
    }
}

/// A mark: decimal, or hexadecimal, octal or binary with Go's prefixes (`strconv.ParseInt(…, 0, 64)`); never 0.
pub(super) fn parse_mark(text: &str) -> Option<u32> {
    let text = text.to_ascii_lowercase();
    let (digits, radix) = if let Some(digits) = text.strip_prefix("0x") {
        (digits, 16)
    } else if let Some(digits) = text.strip_prefix("0b") {
        (digits, 2)
    } else if let Some(digits) = text.strip_prefix("0o").or_else(|| text.strip_prefix('0')) {
        (digits, 8)
    } else {
        (text.as_str(), 10)
    };
    let bare = !digits.starts_with(['+', '-']);
    bare.then(|| u32::from_str_radix(digits, radix).ok()).flatten().filter(|mark| *mark > 0)
}
