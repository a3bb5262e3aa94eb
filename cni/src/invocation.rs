//! What the runtime wants: the `CNI_*` environment variables.

use std::{ffi::OsString, fmt::Display, path::PathBuf, str::FromStr};

use veni_core::{
    id::{ContainerId, IfName},
    wire::PodRef,
};

use crate::error::Error;

/// One call, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// ADD, DEL or CHECK of one attachment.
    Pod(Command, Target),
    /// GC of the network.
    Gc,
    /// STATUS of the plugin.
    Status,
    /// VERSION of the plugin.
    Version,
}

/// What to do with an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// ADD.
    Add,
    /// DEL.
    Del,
    /// CHECK.
    Check,
}

/// An attachment, but for its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `CNI_CONTAINERID`.
    pub container_id: ContainerId,
    /// `CNI_IFNAME`.
    pub ifname: IfName,
    /// `CNI_NETNS`; DEL may come without.
    pub netns: Option<PathBuf>,
    /// `K8S_POD_*` of `CNI_ARGS`.
    pub pod: PodRef,
}

/// Reads variables and gathers what is wrong with them.
struct Reader<F> {
    variable: F,
    missing: Vec<&'static str>,
    wrong: Vec<String>,
}

// === impl Invocation ===

impl Invocation {
    /// Reads the call from the environment.
    ///
    /// # Errors
    /// [`Error::Environment`] names everything that is missing or wrong.
    pub fn parse(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let mut reader = Reader { variable, missing: Vec::new(), wrong: Vec::new() };
        let command = reader.text("CNI_COMMAND");
        let command = match command.as_deref() {
            Some("VERSION") => return Ok(Self::Version),
            Some("STATUS") => return Ok(Self::Status),
            Some("GC") => return Ok(Self::Gc),
            Some("ADD") => Some(Command::Add),
            Some("DEL") => Some(Command::Del),
            Some("CHECK") => Some(Command::Check),
            Some(other) => {
                reader.wrong.push(format!(
                    "CNI_COMMAND={other} is not one of ADD, DEL, CHECK, GC, STATUS, VERSION"
                ));
                None
            }
            None => {
                reader.missing.push("CNI_COMMAND");
                None
            }
        };
        let container_id = reader.required("CNI_CONTAINERID");
        let ifname = reader.required("CNI_IFNAME");
        let netns = reader.path("CNI_NETNS", command != Some(Command::Del));
        let pod = reader.pod();
        match (command, container_id, ifname) {
            (Some(command), Some(container_id), Some(ifname)) if reader.is_content() => {
                Ok(Self::Pod(command, Target { container_id, ifname, netns, pod }))
            }
            _ => Err(Error::Environment { missing: reader.missing, wrong: reader.wrong }),
        }
    }
}

// === impl Reader ===

impl<F: Fn(&str) -> Option<OsString>> Reader<F> {
    fn is_content(&self) -> bool {
        self.missing.is_empty() && self.wrong.is_empty()
    }

    /// An empty variable is a missing one: libcni sets those that it has no value for.
    fn raw(&self, name: &str) -> Option<OsString> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    fn text(&mut self, name: &'static str) -> Option<String> {
        let value = self.raw(name)?.into_string();
        value.map_err(|_| self.wrong.push(format!("{name} is not UTF-8"))).ok()
    }

    fn required<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Option<T> {
        if self.raw(name).is_none() {
            self.missing.push(name);
            return None;
        }
        let text = self.text(name)?;
        text.parse().map_err(|error| self.wrong.push(format!("{name}: {error}"))).ok()
    }

    fn path(&mut self, name: &'static str, required: bool) -> Option<PathBuf> {
        let path = self.raw(name).map(PathBuf::from);
        if required && path.is_none() {
            self.missing.push(name);
        }
        path
    }

    /// `CNI_ARGS`: `KEY=value;KEY=value`. Unknown keys are other plugins'.
    fn pod(&mut self) -> PodRef {
        let mut pod = PodRef::default();
        let Some(args) = self.text("CNI_ARGS") else { return pod };
        for pair in args.split(';').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("K8S_POD_NAMESPACE", value)) => value.clone_into(&mut pod.namespace),
                Some(("K8S_POD_NAME", value)) => value.clone_into(&mut pod.name),
                Some(("K8S_POD_UID", value)) => pod.uid = Some(value.to_owned()),
                Some(_) => {}
                None => self.wrong.push(format!("CNI_ARGS: {pair:?} is not KEY=value")),
            }
        }
        pod
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Invocation, Error> {
        Invocation::parse(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
        })
    }

    const POD: [(&str, &str); 3] =
        [("CNI_CONTAINERID", "abc"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/run/netns/x")];

    #[test]
    fn what_is_missing_is_named_all_at_once() {
        let error = parse(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "missing environment variables: CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS"
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value() {
        let error = parse(&[
            ("CNI_COMMAND", "EAT"),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_ARGS", "A=1;broken"),
        ])
        .unwrap_err()
        .to_string();
        for part in ["CNI_NETNS", "CNI_COMMAND=EAT", "\"-x\"", "\"a/b\"", "\"broken\""] {
            assert!(error.contains(part), "{part} is missing from {error}");
        }
    }

    #[test]
    fn only_del_comes_without_a_namespace() {
        for (command, expect) in [("ADD", false), ("CHECK", false), ("DEL", true)] {
            let mut variables = POD[..2].to_vec();
            variables.push(("CNI_COMMAND", command));
            assert_eq!(parse(&variables).is_ok(), expect, "{command}");
        }
    }

    #[test]
    fn commands_without_a_pod_need_nothing_else() {
        assert_eq!(parse(&[("CNI_COMMAND", "VERSION")]).unwrap(), Invocation::Version);
        assert_eq!(parse(&[("CNI_COMMAND", "STATUS")]).unwrap(), Invocation::Status);
        assert_eq!(parse(&[("CNI_COMMAND", "GC")]).unwrap(), Invocation::Gc);
    }

    #[test]
    fn the_pod_is_read_from_cni_args() {
        let mut variables = POD.to_vec();
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u;X=a=b;";
        variables.extend([("CNI_COMMAND", "ADD"), ("CNI_ARGS", args)]);
        let Invocation::Pod(Command::Add, target) = parse(&variables).unwrap() else {
            panic!("not an ADD")
        };
        let expect =
            PodRef { namespace: "shop".into(), name: "web-0".into(), uid: Some("u".into()) };
        assert_eq!(target.pod, expect);
    }
}
