//! What can go wrong, the specification's code for it, and its form on standard output.

use std::{io, path::PathBuf};

use serde::Serialize;
use veni_core::{
    id::ParseIdError,
    wire::{ErrorCode, WireError},
};
use veni_datapath::{netlink, netns, pod};

use crate::{
    ipamd,
    spec::{Code, to_json},
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Standard input cannot be read.
    #[error("reading the network configuration from standard input")]
    Stdin(#[source] io::Error),
    /// Standard input does not end.
    #[error("the network configuration is longer than {} bytes", crate::MAX_STDIN_BYTES)]
    StdinTooLong,
    /// Standard input is not JSON.
    #[error("the network configuration is not JSON")]
    Json(#[source] serde_json::Error),
    /// Standard input is JSON, but no object.
    #[error("the network configuration is not a JSON object")]
    NotAnObject,
    /// Fields of the configuration are missing or wrong.
    #[error("network configuration: {}", .0.join("; "))]
    Config(Vec<String>),
    /// Environment variables are missing or wrong.
    #[error("{}", environment(missing, wrong))]
    Environment {
        /// The names of those that are missing.
        missing: Vec<&'static str>,
        /// What is wrong with the others.
        wrong: Vec<String>,
    },
    /// The call is not one that can be served; the message is for people.
    #[error("{message}")]
    Refused {
        /// The specification's code.
        code: Code,
        /// What and why.
        message: String,
    },
    /// The pod's namespace is not there: the pod is gone.
    #[error("the pod's network namespace {} is gone: the pod was removed meanwhile", path.display())]
    PodGone {
        /// `CNI_NETNS`.
        path: PathBuf,
    },
    /// The pod's namespace is there and cannot be used.
    #[error("the pod's network namespace")]
    NetNs(#[source] netns::Error),
    /// No netlink socket.
    #[error("asking the kernel")]
    Netlink(#[source] netlink::Error),
    /// The pod cannot be wired.
    #[error("wiring the pod")]
    Wiring(#[source] pod::Error),
    /// Links are left that could not be removed.
    #[error("removing links: {}", .0.join("; "))]
    Unwiring(Vec<String>),
    /// CHECK: the pod is not as ADD left it.
    #[error("the pod's network is not as ADD left it: {}; delete the pod to have it made anew", .0.join("; "))]
    NotWired(Vec<String>),
    /// ipamd cannot be asked, or refuses.
    #[error(transparent)]
    Ipamd(#[from] ipamd::Error),
    /// STATUS: ipamd cannot be asked, or refuses.
    #[error("no pod can be added now")]
    NotAvailable(#[source] ipamd::Error),
    /// It failed, and so did giving the address back.
    #[error("{cause}; the address is given back when the runtime calls DEL ({release})")]
    Release {
        /// What failed first.
        cause: Box<Self>,
        /// Why the address could not be given back.
        release: ipamd::Error,
    },
    /// The plugin is wrong.
    #[error("this is a bug in veni-cni, please report it: {0}")]
    Bug(String),
    /// A name in a message that is no name.
    #[error(transparent)]
    Name(#[from] ParseIdError),
}

// === impl Error ===

impl Error {
    /// The specification's code, or our own from 100 on.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Environment { .. } => Code::InvalidEnvironment,
            Self::Stdin(_) => Code::Io,
            Self::StdinTooLong | Self::Json(_) | Self::NotAnObject => Code::Decode,
            Self::Config(_) => Code::InvalidConfig,
            Self::PodGone { .. } => Code::UnknownContainer,
            Self::NetNs(_) | Self::Netlink(_) | Self::Wiring(_) | Self::Unwiring(_) => Code::Wiring,
            Self::NotWired(_) => Code::NotWired,
            Self::NotAvailable(_) => Code::NotAvailable,
            Self::Release { cause, .. } => cause.code(),
            Self::Name(_) => Code::Protocol,
            Self::Bug(_) => Code::Internal,
            Self::Ipamd(error) => match error {
                ipamd::Error::Missing { .. }
                | ipamd::Error::Refused { .. }
                | ipamd::Error::Timeout { .. }
                | ipamd::Error::Lost { .. }
                | ipamd::Error::Closed => Code::TryAgainLater,
                ipamd::Error::Connect { .. } | ipamd::Error::Exchange(_) => Code::Io,
                ipamd::Error::Version { .. }
                | ipamd::Error::ForeignVersion { .. }
                | ipamd::Error::TooLong
                | ipamd::Error::Unreadable(_)
                | ipamd::Error::Unexpected => Code::Protocol,
                ipamd::Error::Denied(WireError { code, .. }) => match code {
                    ErrorCode::NoAddress | ErrorCode::NotReady => Code::TryAgainLater,
                    ErrorCode::UnknownAttachment => Code::NotWired,
                    ErrorCode::Storage => Code::Io,
                    ErrorCode::BadRequest | ErrorCode::Version => Code::Protocol,
                    ErrorCode::Internal => Code::Daemon,
                },
            },
        }
    }

    /// As the specification wants it (section 5, "Error"), in the runtime's version.
    #[must_use]
    pub fn to_json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Report<'a> {
            cni_version: &'a str,
            code: u32,
            msg: String,
            #[serde(skip_serializing_if = "String::is_empty")]
            details: String,
        }
        to_json(&Report {
            cni_version: version,
            code: self.code() as u32,
            msg: format!("veni: {self}"),
            details: causes(self),
        })
    }
}

/// The sources of `error`, outermost first.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(cause) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn environment(missing: &[&str], wrong: &[String]) -> String {
    let mut parts = wrong.to_vec();
    if !missing.is_empty() {
        parts.insert(0, format!("missing environment variables: {}", missing.join(", ")));
    }
    parts.join("; ")
}
