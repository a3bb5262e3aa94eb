//! The controller: reads its settings, puts the parts together, and runs until it is told to end.

use std::{
    ffi::OsString,
    future::pending,
    hash::{BuildHasher as _, RandomState},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use k8s_openapi::jiff::Timestamp;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;
use veni_controller::{
    elector::{Elector, Leadership},
    http,
    lease::Terms,
    metrics::Metrics,
    named,
    publisher::Publisher,
    settings::{Provider, Settings, VARIABLES},
    sweep::Rules,
    sweeper::{Pace, Sweeper},
    trying::until_there,
};
use veni_provider::Cloud;
use veni_watch::Access;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--help" | "-h") => return say(&help(), ExitCode::SUCCESS),
        Some("--version" | "-V") => {
            return say(concat!("veni-controller ", env!("CARGO_PKG_VERSION")), ExitCode::SUCCESS);
        }
        Some(_) => return say(&help(), ExitCode::from(2)),
    }
    // `vars` would panic at a variable of anybody's that is not UTF-8; ours are refused by their own rules then.
    let text = |text: OsString| text.to_string_lossy().into_owned();
    let variables = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    let settings = match Settings::read(variables, cfg!(feature = "aws")) {
        Ok(settings) => settings,
        Err(wrong) => {
            init_logs("info");
            for error in wrong {
                tracing::error!(%error, "setting");
            }
            return ExitCode::from(2);
        }
    };
    init_logs(&settings.log_level);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("starting the runtime").and_then(|it| it.block_on(run(settings))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "asked for by the caller")]
fn say(text: &str, code: ExitCode) -> ExitCode {
    println!("{text}");
    code
}

fn help() -> String {
    let lines = VARIABLES.iter().map(|(name, default, meaning)| {
        let default = if default.is_empty() { String::new() } else { format!(" [{default}]") };
        format!("  {name}{default}\n      {meaning}\n")
    });
    format!(
        "veni-controller does what is done once for a whole cluster: the one of its replicas that holds a Lease sweeps the\nENIs that instances which are gone left behind, and resolves the security groups of pods. It is configured by environment variables:\n\n{}",
        lines.collect::<String>()
    )
}

fn init_logs(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stdout)
        .init();
}

async fn run(settings: Settings) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.send_replace(true);
    });
    let metrics = Arc::new(Metrics::default());
    let (address, told) = (settings.bind.clone(), metrics.clone());
    tokio::spawn(async move {
        if let Err(error) = http::serve(&address, told).await {
            tracing::error!(%error, address, "health and metrics are not served");
        }
    });
    match settings.provider.clone() {
        Provider::Sim { socket, instance } => {
            let cloud = veni_provider_socket::Client::new(socket, instance);
            Box::pin(lead(settings, Arc::new(cloud), metrics, stopped)).await
        }
        #[cfg(feature = "aws")]
        Provider::Aws => {
            let mut stopped = stopped;
            let Some(cloud) = until_there(&metrics, &mut stopped, ec2).await else { return Ok(()) };
            Box::pin(lead(settings, Arc::new(cloud), metrics, stopped)).await
        }
        #[cfg(not(feature = "aws"))]
        Provider::Aws => unreachable!("refused among the settings"),
    }
}

/// EC2's client, if there can be one now.
#[cfg(feature = "aws")]
async fn ec2() -> Option<veni_provider_aws::AwsCloud> {
    match veni_provider_aws::AwsCloud::from_env().await {
        Ok(cloud) => Some(cloud),
        Err(error) => {
            let next = "set AWS_REGION, or see that http://169.254.169.254 is reached";
            tracing::warn!(%error, next, "no AWS client yet");
            None
        }
    }
}

async fn lead<C: Cloud>(
    settings: Settings,
    cloud: Arc<C>,
    metrics: Arc<Metrics>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let access = Access::from_env().context(
        "no cluster: neither KUBECONFIG nor KUBERNETES_SERVICE_HOST is set; the leader is elected by a Lease there",
    )?;
    let connect = async || match access.connect().await {
        Ok(client) => Some(client),
        Err(error) => {
            let error = veni_core::chain::chain(&error);
            tracing::warn!(error, "no way to the API server yet");
            None
        }
    };
    let client = until_there(&metrics, &mut stopped, connect).await;
    let Some(client) = client else { return Ok(()) };
    let sweeps = sweeps(&settings);
    let seed = RandomState::new().hash_one(&settings.name);
    let identity = identity(&settings, seed);
    let place = (settings.namespace.as_str(), settings.lease.as_str());
    let named = settings.publishes.then(|| named::follow(client.clone()));
    let leader = identity.clone();
    let elector = Elector::new(client.clone(), place, identity, Terms::default(), metrics.clone());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), lease = settings.lease, "waits to lead");
    let pace = Pace { interval: settings.interval, ..Pace::default() };
    let duty = |leadership: Arc<Leadership>| {
        let (rules, clock) = (sweeps.clone(), Timestamp::now as fn() -> Timestamp);
        let (cloud, pace, metrics) = (cloud.clone(), pace.clone(), metrics.clone());
        let publisher = named
            .clone()
            .map(|named| Publisher::new(client.clone(), named, leader.clone(), metrics.clone()));
        async move {
            let sweep = async {
                if let Some(rules) = rules {
                    let sweeper = Sweeper::new(cloud.clone(), rules, pace, metrics, (clock, seed));
                    sweeper.run(&*leadership).await;
                }
                pending::<()>().await;
            };
            let publish = async {
                if let Some(publisher) = publisher {
                    publisher.run(cloud.clone(), seed, &*leadership).await;
                }
                pending::<()>().await;
            };
            tokio::join!(sweep, publish);
        }
    };
    elector.run(stopped, duty).await;
    tracing::info!("ends");
    Ok(())
}

/// What is swept, if anything is.
fn sweeps(settings: &Settings) -> Option<Rules> {
    if !settings.sweeps {
        tracing::info!("DISABLE_LEAKED_ENI_CLEANUP is set: leaked ENIs are not swept");
        return None;
    }
    let Some(cluster) = settings.cluster.clone() else {
        let next = "set CLUSTER_NAME here and for the daemons, which tag their ENIs with it";
        tracing::warn!(
            next,
            "which ENIs are this cluster's is not told: leaked ones are not swept"
        );
        return None;
    };
    Some(Rules { cluster, grace: settings.grace, apart: Duration::from_secs(60) })
}

/// A name for people, and a number: a replica that begins anew in the same pod is another one.
fn identity(settings: &Settings, seed: u64) -> String {
    let hostname = || {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().to_owned()
    };
    format!("{}_{seed:016x}", settings.name.clone().unwrap_or_else(hostname))
}
