//! What a cloud call can fail with. The class alone decides what happens next.

use std::time::Duration;

use veni_core::id::{EniId, InstanceType, SubnetId};

/// A failed cloud call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action} failed: {class} ({code}: {message})")]
pub struct CloudError {
    /// The EC2 action or metadata path, e.g. `CreateNetworkInterface`.
    pub action: &'static str,
    /// What it means for us.
    pub class: ErrorClass,
    /// The cloud's own code, e.g. `InsufficientFreeAddressesInSubnet`.
    pub code: String,
    /// The cloud's own words, cut to 512 characters.
    pub message: String,
}

/// What an error means for the caller.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// Too many calls; not before this long from now, where the cloud says so.
    #[error("throttled")]
    Throttled {
        /// How long to wait, where the cloud says so.
        retry_after_millis: Option<u64>,
    },
    /// No free address (or no free /28) in the subnet.
    #[error("subnet {subnet:?} has no free address")]
    SubnetExhausted {
        /// Which one, where known.
        subnet: Option<SubnetId>,
    },
    /// The ENI holds as many addresses as its instance type allows.
    #[error("ENI {eni:?} holds as many addresses as it may")]
    AddressLimit {
        /// Which one, where known.
        eni: Option<EniId>,
    },
    /// The instance has as many ENIs as its type allows, or the device index is taken.
    #[error("the instance cannot take another ENI")]
    AttachmentLimit,
    /// The account or the region does not give more (ENIs per region).
    #[error("quota of the account reached")]
    Quota,
    /// The resource does not exist, or not any more, or not yet (EC2 is eventually consistent).
    #[error("not found")]
    NotFound,
    /// The caller may not do this.
    #[error("denied: the IAM policy lacks ec2:{action}")]
    Denied {
        /// The missing action, without the `ec2:` prefix.
        action: String,
    },
    /// The answer is unknown or the service failed: the effect may or may not have happened.
    #[error("transient")]
    Transient,
    /// The request is wrong in itself, or does not fit the resource's state: do not repeat it unchanged.
    #[error("invalid")]
    Invalid,
    /// An instance type that the cloud does not know.
    #[error("unknown instance type {0}")]
    UnknownInstanceType(InstanceType),
}

impl CloudError {
    /// An error of `class`.
    #[must_use]
    pub fn new(
        action: &'static str,
        class: ErrorClass,
        code: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            action,
            class,
            code: code.into(),
            message: message.into().chars().take(512).collect(),
        }
    }

    /// How long the cloud asked to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self.class {
            ErrorClass::Throttled { retry_after_millis } => {
                retry_after_millis.map(Duration::from_millis)
            }
            _ => None,
        }
    }

    /// Whether the effect may have happened although the call failed: look before repeating a call that is not
    /// idempotent.
    #[must_use]
    pub fn effect_unknown(&self) -> bool {
        matches!(self.class, ErrorClass::Transient)
    }
}
