//! Sets the provider up from the environment alone, as the daemon does, and tells what it sees and what it costs, as
//! one JSON object. A program of its own because an environment belongs to a process.

use veni_provider::{Cloud, InterfaceFilter};
use veni_provider_aws::AwsCloud;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cloud = AwsCloud::from_env().await?;
    let identity = cloud.identity().await?;
    let attached = cloud
        .describe_interfaces(InterfaceFilter::AttachedTo(identity.instance_id.clone()))
        .await?;
    let shown = cloud.metadata_interfaces().await?;
    let told = serde_json::json!({
        "identity": identity,
        "attached": attached,
        "metadata": shown,
        "resident_kib": resident_kib()?,
    });
    use std::io::Write;
    writeln!(std::io::stdout(), "{told}")?;
    Ok(())
}

/// `VmRSS` of this process.
fn resident_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
