//! The daemon: reads its settings, puts the parts together, and runs until it is told to end.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use veni_core::config::{Build, Config, Provider};
use veni_ipamd::{
    clock::BootClock,
    host::kernel::Kernel,
    http,
    journal::{self, Journal},
    metrics::Metrics,
    policy, server,
    start::{self, Channels, Start},
    uninstall,
};
use veni_provider::Cloud;

const HELP: &str = "\
veni-ipamd keeps a node's pool of pod addresses. It is configured by environment variables: `venictl config` lists them.

Usage: veni-ipamd [--uninstall | --version | --help]

      --uninstall  Remove what veni has left on this node (filter, rules, routes, nft table, journal); refused while
                   pods use it or another ipamd runs
      --version    Print the version
      --help       Print this";

const BUILD: Build = Build { aws: cfg!(feature = "aws") };

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    match argument.as_deref() {
        None | Some("--uninstall") => {}
        Some("--help" | "-h") => return say(HELP),
        Some("--version" | "-V") => return say(concat!("veni-ipamd ", env!("CARGO_PKG_VERSION"))),
        Some(_) => {
            say(HELP);
            return ExitCode::from(2);
        }
    }
    // What is left on the node goes without a cloud.
    let build = if argument.is_some() { Build::WHOLE } else { BUILD };
    let config = match Config::for_build(std::env::vars(), build) {
        Ok((config, warnings)) => {
            init_logs(&config);
            for warning in warnings {
                tracing::warn!(%warning, "setting");
            }
            config
        }
        Err(errors) => {
            init_logs(&Config::default());
            for warning in Config::warnings(std::env::vars()) {
                tracing::warn!(%warning, "setting");
            }
            for error in &errors {
                tracing::error!(%error, "setting");
            }
            tracing::error!(
                errors = errors.len(),
                "ipamd does not start with wrong settings: correct them all"
            );
            return ExitCode::from(2);
        }
    };
    if argument.is_some() {
        return match uninstall::uninstall(&config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    // One thread: the owner's work is microseconds, and memory is shared with the pods.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(run(Arc::new(config))))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "asked for by the caller")]
fn say(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

fn init_logs(config: &Config) {
    let filter = EnvFilter::try_new(&config.log_level).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stdout)
        .init();
}

async fn run(config: Arc<Config>) -> Result<()> {
    match &config.provider {
        Provider::Sim { socket, instance } => {
            let cloud = veni_provider_socket::Client::new(PathBuf::from(socket), instance.clone());
            serve(config.clone(), Arc::new(cloud), "sim").await
        }
        #[cfg(feature = "aws")]
        Provider::Aws => {
            let cloud =
                veni_provider_aws::AwsCloud::from_env().await.context("starting the AWS client")?;
            serve(config.clone(), Arc::new(cloud), "aws").await
        }
        #[cfg(not(feature = "aws"))]
        Provider::Aws => {
            unreachable!("refused among the settings: see BUILD")
        }
    }
}

async fn serve<C: Cloud>(
    config: Arc<Config>,
    cloud: Arc<C>,
    provider_name: &'static str,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        ended = until_stopped(config, cloud, provider_name) => ended,
        _ = terminate.recv() => stopped("SIGTERM"),
        _ = interrupt.recv() => stopped("SIGINT"),
    }
}

/// The journal is written already, the kernel keeps filter, routes and rules: there is nothing to undo.
#[expect(clippy::unnecessary_wraps, reason = "one of three ends that are compared")]
fn stopped(signal: &str) -> Result<()> {
    tracing::info!(signal, "ipamd ends; pods keep their addresses, traffic and filter");
    Ok(())
}

async fn until_stopped<C: Cloud>(
    config: Arc<Config>,
    cloud: Arc<C>,
    provider_name: &'static str,
) -> Result<()> {
    let state_dir = PathBuf::from(&config.state_dir);
    let _lock = start::lock(&state_dir).await?;
    let boot_id = journal::boot_id().context("reading the boot id")?;
    let (store, recovered) = Journal::open(&state_dir, &boot_id)
        .with_context(|| format!("opening the journal in {}", state_dir.display()))?;
    let Channels { commands: (commands, requests), events: (events, news) } = Channels::default();
    let mut host = Kernel::start(config.clone(), events).context("preparing the node's network")?;
    let kernel_pods = host.known_pods().context("looking for pods in the kernel")?;
    let whereabouts = start::kept_or_asked(&*cloud, recovered.whereabouts.clone()).await;
    let wired: Vec<_> = recovered.ledger.allocations().map(policy::pod).collect();
    let enforcer =
        policy::start(&config, cloud.clone(), host.filter(), &whereabouts.identity, &wired).await?;
    if let Some(enforcer) = &enforcer {
        host.enforce(enforcer.clone());
    }
    let metrics = Arc::new(Metrics::new());
    let owner = start::owner(Start {
        cloud,
        host,
        store,
        recovered,
        config: config.clone(),
        clock: Arc::new(BootClock),
        whereabouts,
        kernel_pods,
        metrics: metrics.clone(),
        provider_name,
        booted_at_secs: start::booted_at_secs().context("reading the time of boot")?,
    })
    .await;
    let listener = server::bind(&PathBuf::from(&config.socket))
        .with_context(|| format!("listening on {}", config.socket))?;
    tokio::spawn(server::serve(listener, commands.clone(), metrics.clone()));
    if let Some(address) = &config.http_bind {
        tokio::spawn(http::serve(
            address.clone(),
            http::router(metrics, commands.clone(), enforcer),
        ));
    }
    drop(commands);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = config.socket, "ipamd serves");
    owner.run(requests, news).await;
    Ok(())
}
