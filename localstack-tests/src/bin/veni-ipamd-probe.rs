//! ipamd's pool over the AWS provider alone in a process, with as many pods as its argument says: what it costs, as
//! one JSON object. Everything of the daemon but the kernel's side, which the simulator's measurement has too.

use std::{io::Write, sync::Arc};

use anyhow::{Context, bail};
use veni_core::{
    config::Config,
    wire::{AddRequest, Attachment, PodRef, ReplyBody},
};
use veni_ipamd::{
    clock::BootClock,
    host::fake::FakeHost,
    journal::Journal,
    metrics::Metrics,
    requests::Requests,
    start::{self, Channels, Start},
};
use veni_provider_aws::AwsCloud;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let pods: u32 = std::env::args().nth(1).context("say how many pods")?.parse()?;
    let state = tempfile::tempdir()?;
    let (config, _) =
        Config::from_vars(std::env::vars().chain([(
            "VENI_CNI_CACHE_DIR".to_owned(),
            state.path().to_string_lossy().into_owned(),
        )]))
        .map_err(|errors| anyhow::anyhow!("settings: {errors:?}"))?;
    let Channels { commands: (commands, received), events: (events, news) } = Channels::default();
    let host = FakeHost::new(events);
    let cloud = Arc::new(AwsCloud::from_env().await?);
    let (store, recovered) = Journal::open(state.path(), "the-boot-of-this-probe")?;
    let owner = start::owner(Start {
        whereabouts: start::whereabouts(&*cloud).await,
        cloud,
        host: host.clone(),
        store,
        recovered,
        config: Arc::new(config),
        clock: Arc::new(BootClock),
        kernel_pods: Vec::new(),
        metrics: Arc::new(Metrics::new()),
        provider_name: "aws",
        booted_at_secs: start::booted_at_secs()?,
    });
    tokio::spawn(Box::pin(owner).await.run(received, news));
    let requests = Requests::new(commands);
    for n in 0..pods {
        let attachment = Attachment {
            network: "veni".parse()?,
            container_id: format!("{n:064x}").parse()?,
            ifname: "eth0".parse()?,
        };
        let request = AddRequest {
            attachment,
            pod: PodRef { namespace: "default".into(), name: format!("pod-{n}"), uid: None },
            netns: "/proc/self/ns/net".into(),
            wait_millis: None,
        };
        match requests.add(request, |body| host.wire(body)).await {
            Some(ReplyBody::Wiring(_)) => {}
            other => bail!("ADD of pod {n}: {other:?}"),
        }
    }
    let told = serde_json::json!({ "pods": pods, "resident_kib": resident_kib()? });
    writeln!(std::io::stdout(), "{told}")?;
    Ok(())
}

/// `VmRSS` of this process.
fn resident_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
