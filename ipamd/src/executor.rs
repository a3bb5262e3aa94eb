//! One step, one cloud call.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use veni_core::{config::Config, id::InstanceId, ipam::plan::Step};
use veni_provider::{
    AttachInterface, Cloud, CloudError, CloudResult, CreateInterface, ErrorClass, InterfaceFilter,
    TAG_CLUSTER, TAG_CREATED_AT, TAG_INSTANCE_ID, TAG_OWNER,
};

use crate::pool::Outcome;

/// How long a call may take before its outcome counts as unknown.
const PATIENCE: Duration = Duration::from_secs(60);

/// What new ENIs are called and tagged.
#[derive(Debug, Clone)]
pub struct Naming {
    instance_id: InstanceId,
    cluster_name: Option<String>,
    additional: Vec<(String, String)>,
}

impl Naming {
    /// From the settings.
    pub fn new(instance_id: InstanceId, config: &Config) -> Self {
        Self {
            instance_id,
            cluster_name: config.cluster_name.clone(),
            additional: config.additional_eni_tags.clone(),
        }
    }

    /// `aws-K8S-<instance id>`, by which the peer's own clean-up knows them too.
    pub fn description(&self) -> String {
        format!("aws-K8S-{}", self.instance_id)
    }

    /// The tags of an ENI made now.
    pub fn tags(&self, created_at: String) -> BTreeMap<String, String> {
        let mut tags: BTreeMap<_, _> = self.additional.iter().cloned().collect();
        tags.insert(TAG_INSTANCE_ID.to_owned(), self.instance_id.to_string());
        tags.insert(TAG_CREATED_AT.to_owned(), created_at);
        if let Some(cluster) = &self.cluster_name {
            tags.insert(TAG_CLUSTER.to_owned(), cluster.clone());
            tags.insert(TAG_OWNER.to_owned(), "amazon-vpc-cni".to_owned());
        }
        tags
    }
}

/// Runs `step` against the cloud.
pub async fn execute<C: Cloud>(cloud: Arc<C>, naming: Arc<Naming>, step: &Step) -> Outcome {
    let action = crate::metrics::action(step);
    bounded(action, run(&*cloud, &naming, step)).await.unwrap_or_else(Outcome::Failed)
}

/// A call that is not answered in time has an unknown outcome.
pub async fn bounded<T>(
    action: &'static str,
    call: impl Future<Output = CloudResult<T>>,
) -> CloudResult<T> {
    tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} s", PATIENCE.as_secs());
        Err(CloudError::new(action, ErrorClass::Transient, "Timeout", message))
    })
}

async fn run<C: Cloud>(cloud: &C, naming: &Naming, step: &Step) -> Result<Outcome, CloudError> {
    match step {
        Step::CreateEni { token, addresses, place, planned, .. } => {
            let request = CreateInterface {
                subnet_id: place.subnet.clone(),
                security_groups: place.security_groups.clone(),
                secondary_addresses: *addresses,
                prefixes: 0,
                description: naming.description(),
                tags: naming.tags(created_at(token)),
                client_token: token.clone(),
            };
            match cloud.create_interface(request).await {
                // The answer of an earlier attempt may have been lost, not its effect.
                Err(error) if *planned && refused(&error.class) => {
                    left_behind(cloud, &naming.instance_id, error).await
                }
                answer => answer.map(Outcome::Created),
            }
        }
        Step::AttachEni { slot, eni } => {
            let request = AttachInterface {
                eni: eni.clone(),
                instance: naming.instance_id.clone(),
                device_index: slot.device_index(),
                network_card: 0,
            };
            cloud.attach_interface(request).await.map(Outcome::Attached)
        }
        Step::ProtectEni { eni, attachment, .. } => {
            cloud.set_delete_on_termination(eni, attachment).await.map(|()| Outcome::Done)
        }
        Step::SetGroups { eni, groups, .. } => {
            cloud.set_security_groups(eni, groups).await.map(|()| Outcome::Done)
        }
        Step::Assign { eni, count, .. } => {
            cloud.assign_addresses(eni, *count).await.map(Outcome::Assigned)
        }
        Step::Unassign { eni, addresses, .. } => {
            cloud.unassign_addresses(eni, addresses).await.map(|()| Outcome::Done)
        }
        Step::DetachEni { attachment, .. } => {
            cloud.detach_interface(attachment).await.map(|()| Outcome::Done)
        }
        Step::DeleteEni { eni, .. } => cloud.delete_interface(eni).await.map(|()| Outcome::Done),
        Step::Observe { eni, .. } => {
            let seen = cloud.describe_interfaces(InterfaceFilter::Ids(vec![eni.clone()])).await?;
            Ok(Outcome::Observed(seen.into_iter().find(|i| i.id == *eni)))
        }
    }
}

/// Whether EC2 has said no: repeating the call as it is changes nothing.
fn refused(class: &ErrorClass) -> bool {
    !matches!(class, ErrorClass::Throttled { .. } | ErrorClass::Transient)
}

/// What earlier attempts of a refused creation may have left: unattached ENIs of this instance. EC2 refuses a token with
/// other parameters (`IdempotentParameterMismatch`: the tags were changed between two daemons), and a token whose
/// call is not allowed any more.
async fn left_behind<C: Cloud>(
    cloud: &C,
    instance: &InstanceId,
    error: CloudError,
) -> Result<Outcome, CloudError> {
    let filter = InterfaceFilter::AvailableWithTag {
        key: TAG_INSTANCE_ID.to_owned(),
        value: instance.to_string(),
    };
    match cloud.describe_interfaces(filter).await {
        Ok(left) => Ok(Outcome::Refused { error, left }),
        Err(unseen) if refused(&unseen.class) => {
            // Without an answer the ENI may be there: its place is kept until there is one.
            Err(CloudError { class: ErrorClass::Transient, ..unseen })
        }
        Err(unseen) => Err(unseen),
    }
}

/// The time of creation out of the token, so that a repeated call is the same call to the letter (EC2 refuses a token
/// with other parameters): the seed holds the time of the daemon's boot, the token's last part milliseconds since.
pub(crate) fn created_at(token: &str) -> String {
    let mut parts = token.rsplit('-');
    let since_boot: u64 = parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
    let _slot = parts.next();
    let boot: u64 = parts.next().and_then(|p| u64::from_str_radix(p, 16).ok()).unwrap_or(0);
    rfc3339(boot + since_boot / 1000)
}

/// Seconds since 1970 as RFC 3339 in UTC (civil-from-days, H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn rfc3339(secs: u64) -> String {
    let (days, rest) = (secs / 86_400, secs % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc3339() {
        for (secs, expect) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_254_245, "2026-11-21T09:44:05Z"),
        ] {
            assert_eq!(rfc3339(secs), expect);
        }
    }

    #[test]
    fn a_repeated_creation_carries_the_same_time() {
        assert_eq!(created_at("i-0abc-65f00000-2-5000"), rfc3339(0x65f0_0000 + 5));
    }
}
