//! How the SDK is set up: one HTTP client for everything, no retries of EC2 calls, bounded waits.

use std::time::Duration;

use aws_config::{
    AppName, BehaviorVersion, ConfigLoader, Region, imds, retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_sdk_ec2::config::Credentials;
use veni_provider::{CloudError, CloudResult, ErrorClass};

/// EC2 and metadata are near: a connection that takes longer has been lost.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// An EC2 call answers within seconds, `CreateNetworkInterface` with many addresses included. After this its outcome
/// is unknown, which the caller can deal with; a call that hangs it cannot.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Metadata is a local service.
const IMDS_TIMEOUT: Duration = Duration::from_secs(2);
/// Metadata reads are idempotent: the SDK may repeat them, over a blip and no longer.
const IMDS_ATTEMPTS: u32 = 3;

/// The name in the user agent (`app/veni`), by which CloudTrail tells the daemon's calls from others of the same role.
const APP_NAME: &str = "veni";

/// What stands in for the environment, where several clouds live in one process (tests).
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `AWS_ENDPOINT_URL_EC2`.
    pub ec2_endpoint: Option<String>,
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub metadata_endpoint: Option<String>,
    /// `AWS_REGION`.
    pub region: Option<String>,
    /// The name in the user agent instead of `veni`: letters, digits and `-`.
    pub app_name: Option<String>,
    /// An access key and its secret.
    pub credentials: Option<(String, String)>,
}

/// The EC2 client, the metadata client and the region.
pub(crate) async fn load(
    overrides: Overrides,
) -> CloudResult<(aws_sdk_ec2::Client, imds::Client, String)> {
    let imds = metadata_client(overrides.metadata_endpoint.as_deref())?;
    let shared = loader(overrides)?.load().await;
    let region = shared.region().map(ToString::to_string).ok_or_else(|| {
        CloudError::new(
            "placement/region",
            ErrorClass::Transient,
            "NoRegion",
            "neither AWS_REGION nor instance metadata names a region: set AWS_REGION, or check that the pod \
             may reach http://169.254.169.254 (hop limit 2, or hostNetwork)",
        )
    })?;
    Ok((aws_sdk_ec2::Client::new(&shared), imds, region))
}

fn metadata_client(endpoint: Option<&str>) -> CloudResult<imds::Client> {
    let mut builder = imds::Client::builder()
        .connect_timeout(IMDS_TIMEOUT)
        .read_timeout(IMDS_TIMEOUT)
        .max_attempts(IMDS_ATTEMPTS);
    if let Some(endpoint) = endpoint {
        builder = builder.endpoint(endpoint).map_err(|error| {
            CloudError::new(
                "metadata",
                ErrorClass::Invalid,
                "InvalidEndpoint",
                format!("{endpoint}: {error}"),
            )
        })?;
    }
    Ok(builder.build())
}

fn loader(overrides: Overrides) -> CloudResult<ConfigLoader> {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_timeout(CALL_TIMEOUT)
        .build();
    // Retries off for every call, not only for `AssignPrivateIpAddresses` (which has no token: a repeated one assigns
    // twice): the daemon's executor repeats by error class, with one jittered backoff and one budget for the node.
    // Retries below it would multiply, hide throttling from the budget and answer a waiting ADD too late.
    let app_name = AppName::new(overrides.app_name.unwrap_or_else(|| APP_NAME.to_owned()))
        .map_err(|error| {
            CloudError::new(
                "configuration",
                ErrorClass::Invalid,
                "InvalidAppName",
                error.to_string(),
            )
        })?;
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .app_name(app_name);
    if let Some(endpoint) = overrides.ec2_endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(region) = overrides.region {
        loader = loader.region(Region::new(region));
    }
    if let Some((key, secret)) = overrides.credentials {
        loader =
            loader.credentials_provider(Credentials::new(key, secret, None, None, "overrides"));
    }
    Ok(loader)
}
