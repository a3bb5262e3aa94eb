//! The controller's settings, read from environment variables that are handed in. Those that a daemon has too mean the same.

use std::{collections::BTreeMap, time::Duration};

use veni_core::id::InstanceId;

/// Every variable, with its default and its meaning.
pub const VARIABLES: &[(&str, &str, &str)] = &[
    ("CLUSTER_NAME", "", "the cluster, as its ENIs' tags name it; without it nothing is swept"),
    ("DISABLE_LEAKED_ENI_CLEANUP", "false", "do not sweep leaked ENIs"),
    ("VENI_PROVIDER", "aws", "the cloud: aws, or sim:<socket> for a simulator"),
    ("VENI_SIM_INSTANCE", "i-0", "whose calls these are to a simulator"),
    (
        "VENI_PUBLISH_SECURITY_GROUPS",
        "true",
        "resolve the security groups of pods once for all nodes",
    ),
    ("VENI_CONTROLLER_BIND", "0.0.0.0:61680", "where /healthz, /readyz and /metrics are served"),
    ("VENI_LEASE_NAME", "veni-controller", "the Lease that the leader holds"),
    ("POD_NAMESPACE", "kube-system", "the namespace of the Lease"),
    ("POD_NAME", "the host's name", "how this replica is called"),
    ("VENI_SWEEP_INTERVAL_SECS", "600", "between two looks for leaked ENIs, about"),
    ("VENI_SWEEP_GRACE_SECS", "300", "a younger ENI is never taken for leaked; 60 at least"),
    ("AWS_VPC_K8S_CNI_LOGLEVEL", "info", "what is logged"),
];

/// It.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `CLUSTER_NAME`; `None`: nothing is swept.
    pub cluster: Option<String>,
    /// `DISABLE_LEAKED_ENI_CLEANUP`.
    pub sweeps: bool,
    /// `VENI_PUBLISH_SECURITY_GROUPS`.
    pub publishes: bool,
    /// `VENI_PROVIDER`.
    pub provider: Provider,
    /// `VENI_CONTROLLER_BIND`.
    pub bind: String,
    /// `VENI_LEASE_NAME`.
    pub lease: String,
    /// `POD_NAMESPACE`.
    pub namespace: String,
    /// `POD_NAME`.
    pub name: Option<String>,
    /// `VENI_SWEEP_INTERVAL_SECS`.
    pub interval: Duration,
    /// `VENI_SWEEP_GRACE_SECS`.
    pub grace: Duration,
    /// `AWS_VPC_K8S_CNI_LOGLEVEL`.
    pub log_level: String,
}

/// Which cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// EC2.
    Aws,
    /// A simulator behind a socket.
    Sim {
        /// The socket.
        socket: String,
        /// Whose calls these are.
        instance: InstanceId,
    },
}

/// A variable that is wrong, and what is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?}: {message}")]
pub struct Wrong {
    name: &'static str,
    value: String,
    message: String,
}

impl Settings {
    /// Reads them; `aws`: whether this build has EC2.
    ///
    /// # Errors
    /// All that is wrong, together.
    pub fn read(
        variables: impl IntoIterator<Item = (String, String)>,
        aws: bool,
    ) -> Result<Self, Vec<Wrong>> {
        let set: BTreeMap<_, _> =
            variables.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let mut wrong = Vec::new();
        let text = |name: &str| set.get(name).cloned();
        let mut reader = Reader { set: &set, wrong: &mut wrong };
        let settings = Self {
            cluster: text("CLUSTER_NAME"),
            sweeps: !reader.bool("DISABLE_LEAKED_ENI_CLEANUP", false),
            publishes: reader.bool("VENI_PUBLISH_SECURITY_GROUPS", true),
            provider: reader.provider(aws),
            bind: text("VENI_CONTROLLER_BIND").unwrap_or_else(|| "0.0.0.0:61680".to_owned()),
            lease: text("VENI_LEASE_NAME").unwrap_or_else(|| "veni-controller".to_owned()),
            namespace: text("POD_NAMESPACE").unwrap_or_else(|| "kube-system".to_owned()),
            name: text("POD_NAME"),
            interval: reader.secs("VENI_SWEEP_INTERVAL_SECS", 600, 10),
            grace: reader.secs("VENI_SWEEP_GRACE_SECS", 300, 60),
            log_level: text("AWS_VPC_K8S_CNI_LOGLEVEL")
                .map_or_else(|| "info".to_owned(), |level| level.to_lowercase()),
        };
        if wrong.is_empty() { Ok(settings) } else { Err(wrong) }
    }
}

struct Reader<'a> {
    set: &'a BTreeMap<String, String>,
    wrong: &'a mut Vec<Wrong>,
}

impl Reader<'_> {
    fn fail(&mut self, name: &'static str, message: impl Into<String>) {
        let value = self.set.get(name).cloned().unwrap_or_default();
        self.wrong.push(Wrong { name, value, message: message.into() });
    }

    /// As Go's `strconv.ParseBool`, which reads the variable for the AWS VPC CNI.
    fn bool(&mut self, name: &'static str, default: bool) -> bool {
        match self.set.get(name).map(String::as_str) {
            None => default,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some(_) => {
                self.fail(name, "expected true or false");
                default
            }
        }
    }

    fn secs(&mut self, name: &'static str, default: u64, least: u64) -> Duration {
        let Some(text) = self.set.get(name) else { return Duration::from_secs(default) };
        match text.parse() {
            Ok(secs) if secs >= least => Duration::from_secs(secs),
            _ => {
                self.fail(name, format!("expected seconds, {least} at least"));
                Duration::from_secs(default)
            }
        }
    }

    fn provider(&mut self, aws: bool) -> Provider {
        const NAME: &str = "VENI_PROVIDER";
        let Some(text) = self.set.get(NAME).filter(|text| *text != "aws") else {
            if !aws {
                self.fail(NAME, "aws is the default, and this controller was built without it: set sim:/path, or build with `--features aws`");
            }
            return Provider::Aws;
        };
        let Some(socket) = text.strip_prefix("sim:").filter(|socket| socket.starts_with('/'))
        else {
            self.fail(NAME, "expected aws, or sim:/path/of/the/simulator's.sock");
            return Provider::Aws;
        };
        let instance = self.set.get("VENI_SIM_INSTANCE").map_or("i-0", String::as_str);
        match instance.parse() {
            Ok(instance) => Provider::Sim { socket: socket.to_owned(), instance },
            Err(error) => {
                self.fail("VENI_SIM_INSTANCE", format!("{error}"));
                Provider::Aws
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)], aws: bool) -> Result<Settings, Vec<Wrong>> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Settings::read(variables.iter().map(owned), aws)
    }

    #[test]
    fn nothing_set_is_the_defaults_that_are_told() {
        let settings = read(&[], true).unwrap();
        let told = |name: &str| VARIABLES.iter().find(|(it, ..)| *it == name).unwrap().1.to_owned();
        assert_eq!(settings.bind, told("VENI_CONTROLLER_BIND"));
        assert_eq!(settings.lease, told("VENI_LEASE_NAME"));
        assert_eq!(settings.namespace, told("POD_NAMESPACE"));
        assert_eq!(settings.interval.as_secs().to_string(), told("VENI_SWEEP_INTERVAL_SECS"));
        assert_eq!(settings.grace.as_secs().to_string(), told("VENI_SWEEP_GRACE_SECS"));
        assert_eq!((settings.cluster, settings.sweeps, settings.publishes), (None, true, true));
        assert_eq!(settings.provider, Provider::Aws);
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let wrong = read(
            &[
                ("VENI_PROVIDER", "gcp"),
                ("DISABLE_LEAKED_ENI_CLEANUP", "yes"),
                ("VENI_SWEEP_GRACE_SECS", "5"),
            ],
            true,
        );
        assert_eq!(wrong.unwrap_err().len(), 3);
        let wrong = read(&[], false).unwrap_err();
        assert!(wrong[0].to_string().contains("--features aws"), "{wrong:?}");
        let sim = read(&[("VENI_PROVIDER", "sim:/run/sim.sock")], false).unwrap().provider;
        assert!(matches!(sim, Provider::Sim { socket, .. } if socket == "/run/sim.sock"));
    }
}
