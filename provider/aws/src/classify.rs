//! EC2's error codes → [`ErrorClass`]: one table.
//!
//! Codes: "Error codes for the Amazon EC2 API"
//! (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>).

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::error::display::DisplayErrorContext;
use veni_core::id::{EniId, InstanceType, SubnetId};
use veni_provider::{CloudError, ErrorClass};

/// The call that failed: what an error's class has to name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Call<'a> {
    /// The EC2 action, e.g. `CreateNetworkInterface`.
    pub action: &'static str,
    /// The subnet that it took addresses from, where known.
    pub subnet: Option<&'a SubnetId>,
    /// The ENI that it was about.
    pub eni: Option<&'a EniId>,
    /// The instance type that it asked for.
    pub instance_type: Option<&'a InstanceType>,
}

/// What was answered instead of a result.
#[derive(Debug, Clone, Copy, Default)]
pub struct Refusal<'a> {
    /// EC2's code.
    pub code: &'a str,
    /// EC2's words.
    pub message: &'a str,
    /// The HTTP status.
    pub status: u16,
    /// `Retry-After`, in milliseconds.
    pub retry_after_millis: Option<u64>,
}

/// A row's meaning; [`class`] adds the ids.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Throttled,
    SubnetExhausted,
    AddressLimit,
    AttachmentLimit,
    Quota,
    NotFound,
    Denied,
    Transient,
    Invalid,
    UnknownInstanceType,
}

/// Exact codes. Those that are not here go by their ending (`.NotFound`) and the HTTP status.
const CODES: &[(&str, Kind)] = &[
    ("RequestLimitExceeded", Kind::Throttled),
    ("Throttling", Kind::Throttled),
    ("ThrottlingException", Kind::Throttled),
    ("ThrottledException", Kind::Throttled),
    ("EC2ThrottledException", Kind::Throttled),
    ("RequestThrottled", Kind::Throttled),
    ("RequestThrottledException", Kind::Throttled),
    ("TooManyRequestsException", Kind::Throttled),
    ("BandwidthLimitExceeded", Kind::Throttled),
    ("SlowDown", Kind::Throttled),
    ("PriorRequestNotComplete", Kind::Throttled),
    ("InsufficientFreeAddressesInSubnet", Kind::SubnetExhausted),
    ("InsufficientCidrBlocks", Kind::SubnetExhausted),
    ("PrivateIpAddressLimitExceeded", Kind::AddressLimit),
    ("AttachmentLimitExceeded", Kind::AttachmentLimit),
    ("NetworkInterfaceLimitExceeded", Kind::Quota),
    ("ResourceCountExceeded", Kind::Quota),
    ("ResourceLimitExceeded", Kind::Quota),
    ("InvalidNetworkInterfaceId.NotFound", Kind::NotFound),
    ("UnauthorizedOperation", Kind::Denied),
    ("AccessDenied", Kind::Denied),
    ("AccessDeniedException", Kind::Denied),
    ("AuthFailure", Kind::Denied),
    ("InvalidClientTokenId", Kind::Denied),
    ("SignatureDoesNotMatch", Kind::Denied),
    ("OptInRequired", Kind::Denied),
    // Credentials that have run out are fetched again by the SDK.
    ("ExpiredToken", Kind::Transient),
    ("ExpiredTokenException", Kind::Transient),
    ("RequestExpired", Kind::Transient),
    ("InternalError", Kind::Transient),
    ("InternalFailure", Kind::Transient),
    ("Unavailable", Kind::Transient),
    ("ServiceUnavailable", Kind::Transient),
    ("RequestTimeout", Kind::Transient),
    ("RequestTimeoutException", Kind::Transient),
    // Another call was changing the tags at that moment.
    ("ConcurrentTagAccess", Kind::Transient),
    ("InvalidInstanceType", Kind::UnknownInstanceType),
];

/// The class of a refusal.
#[must_use]
pub fn class(call: Call<'_>, refusal: Refusal<'_>) -> ErrorClass {
    match kind(refusal) {
        Kind::Throttled => ErrorClass::Throttled { retry_after_millis: refusal.retry_after_millis },
        Kind::SubnetExhausted => ErrorClass::SubnetExhausted { subnet: call.subnet.cloned() },
        Kind::AddressLimit => ErrorClass::AddressLimit { eni: call.eni.cloned() },
        Kind::AttachmentLimit => ErrorClass::AttachmentLimit,
        Kind::Quota => ErrorClass::Quota,
        Kind::NotFound => ErrorClass::NotFound,
        Kind::Denied => ErrorClass::Denied { action: denied_action(refusal.message, call.action) },
        Kind::Transient => ErrorClass::Transient,
        Kind::Invalid => ErrorClass::Invalid,
        Kind::UnknownInstanceType => call
            .instance_type
            .map_or(ErrorClass::Invalid, |t| ErrorClass::UnknownInstanceType(t.clone())),
    }
}

fn kind(refusal: Refusal<'_>) -> Kind {
    // EC2's XML has `Client.` before some codes.
    let code = refusal.code.strip_prefix("Client.").unwrap_or(refusal.code);
    if let Some((_, kind)) = CODES.iter().find(|(known, _)| *known == code) {
        return *kind;
    }
    match code {
        // "Instance 'i-…' already has an interface attached at device index '1'." has no code of its own.
        "InvalidParameterValue" if refusal.message.contains("attached at device index") => {
            Kind::AttachmentLimit
        }
        _ if code.ends_with(".NotFound") => Kind::NotFound,
        _ if refusal.status == 429 => Kind::Throttled,
        // No code at all: an intermediary answered (a proxy, a load balancer), not EC2.
        _ if refusal.status >= 500 || code.is_empty() => Kind::Transient,
        _ => Kind::Invalid,
    }
}

/// The action that the policy lacks, which need not be the one called: `CreateNetworkInterface` with tags is refused
/// for want of `CreateTags` ("… is not authorized to perform: ec2:CreateTags on resource: …").
fn denied_action(message: &str, called: &str) -> String {
    message
        .split_once("perform: ec2:")
        .map(|(_, rest)| rest.chars().take_while(char::is_ascii_alphanumeric).collect::<String>())
        .filter(|action| !action.is_empty())
        .unwrap_or_else(|| called.to_owned())
}

/// The error of a failed EC2 call.
pub(crate) fn failed<E>(call: Call<'_>, error: SdkError<E, HttpResponse>) -> CloudError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let SdkError::ServiceError(service) = &error else {
        let (class, code) = match &error {
            // Not sent: a parameter that the SDK itself refuses.
            SdkError::ConstructionFailure(_) => (ErrorClass::Invalid, "ConstructionFailure"),
            SdkError::TimeoutError(_) => (ErrorClass::Transient, "Timeout"),
            SdkError::DispatchFailure(_) => (ErrorClass::Transient, "DispatchFailure"),
            _ => (ErrorClass::Transient, "UnreadableAnswer"),
        };
        return CloudError::new(call.action, class, code, DisplayErrorContext(&error).to_string());
    };
    let code = service.err().code().unwrap_or_default();
    let message = service.err().message().unwrap_or_default();
    let raw = service.raw();
    let refusal = Refusal {
        code,
        message,
        status: raw.status().as_u16(),
        retry_after_millis: raw
            .headers()
            .get("retry-after")
            .and_then(|seconds| seconds.trim().parse::<u64>().ok())
            .map(|seconds| seconds.saturating_mul(1000)),
    };
    let shown = if code.is_empty() { format!("HTTP {}", refusal.status) } else { code.to_owned() };
    CloudError::new(call.action, class(call, refusal), shown, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: &str, message: &str, status: u16, expect: &ErrorClass) {
        let subnet: SubnetId = "subnet-1".parse().unwrap();
        let eni: EniId = "eni-1".parse().unwrap();
        let instance_type: InstanceType = "m9.huge".parse().unwrap();
        let call = Call {
            action: "CreateNetworkInterface",
            subnet: Some(&subnet),
            eni: Some(&eni),
            instance_type: Some(&instance_type),
        };
        let refusal = Refusal { code, message, status, retry_after_millis: None };
        assert_eq!(class(call, refusal), *expect, "{code} {status} {message}");
    }

    #[test]
    fn every_code_that_ec2_documents_for_these_calls_has_its_class() {
        let throttled = ErrorClass::Throttled { retry_after_millis: None };
        let exhausted = ErrorClass::SubnetExhausted { subnet: Some("subnet-1".parse().unwrap()) };
        let address_limit = ErrorClass::AddressLimit { eni: Some("eni-1".parse().unwrap()) };
        let denied = ErrorClass::Denied { action: "CreateNetworkInterface".into() };
        for (code, status, expect) in [
            ("RequestLimitExceeded", 503, &throttled),
            ("Client.RequestLimitExceeded", 503, &throttled),
            ("Throttling", 400, &throttled),
            ("SomethingNew", 429, &throttled),
            ("InsufficientFreeAddressesInSubnet", 400, &exhausted),
            ("InsufficientCidrBlocks", 400, &exhausted),
            ("PrivateIpAddressLimitExceeded", 400, &address_limit),
            ("AttachmentLimitExceeded", 400, &ErrorClass::AttachmentLimit),
            ("NetworkInterfaceLimitExceeded", 400, &ErrorClass::Quota),
            ("InvalidNetworkInterfaceID.NotFound", 400, &ErrorClass::NotFound),
            ("InvalidAttachmentID.NotFound", 400, &ErrorClass::NotFound),
            ("InvalidSubnetID.NotFound", 400, &ErrorClass::NotFound),
            ("InvalidGroup.NotFound", 400, &ErrorClass::NotFound),
            ("UnauthorizedOperation", 403, &denied),
            ("AuthFailure", 401, &denied),
            ("RequestExpired", 400, &ErrorClass::Transient),
            ("InternalError", 500, &ErrorClass::Transient),
            ("Unavailable", 503, &ErrorClass::Transient),
            ("", 502, &ErrorClass::Transient),
            ("", 404, &ErrorClass::Transient),
            ("SomethingNew", 500, &ErrorClass::Transient),
            ("SomethingNew", 400, &ErrorClass::Invalid),
            ("InvalidParameterValue", 400, &ErrorClass::Invalid),
            ("OperationNotPermitted", 400, &ErrorClass::Invalid),
            ("IdempotentParameterMismatch", 400, &ErrorClass::Invalid),
            ("InvalidIPAddress.InUse", 400, &ErrorClass::Invalid),
            (
                "InvalidInstanceType",
                400,
                &ErrorClass::UnknownInstanceType("m9.huge".parse().unwrap()),
            ),
        ] {
            check(code, "", status, expect);
        }
    }

    #[test]
    fn a_taken_device_index_is_an_attachment_limit() {
        let message = "Instance 'i-1' already has an interface attached at device index '1'.";
        check("InvalidParameterValue", message, 400, &ErrorClass::AttachmentLimit);
    }

    #[test]
    fn a_denial_names_the_action_that_is_missing_not_the_one_called() {
        let message = "You are not authorized to perform this operation. User: arn:aws:sts::1:assumed-role/n/i-1 is \
                       not authorized to perform: ec2:CreateTags on resource: arn:aws:ec2:::network-interface/*";
        check(
            "UnauthorizedOperation",
            message,
            403,
            &ErrorClass::Denied { action: "CreateTags".into() },
        );
    }

    #[test]
    fn no_code_is_listed_twice() {
        let mut codes: Vec<_> = CODES.iter().map(|(code, _)| code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len());
    }
}
