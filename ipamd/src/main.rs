//! The daemon: reads its settings, puts the parts together, and runs until it is told to end.

// The daemon's future holds the AWS SDK's, which nest deeper than the compiler's 128 (features `aws` and `kube`).
#![recursion_limit = "256"]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};
use tracing_subscriber::EnvFilter;
use veni_core::config::{Build, Config, Provider};
use veni_ipamd::{
    clock::BootClock,
    enforcer::Handle,
    environment,
    host::{HostEvent, kernel::Kernel},
    http, install,
    journal::{self, Journal},
    metrics::Metrics,
    owner::{Command, Owner},
    placement, policy, server,
    start::{self, Channels, Start},
    startup::Startup,
    uninstall,
};
use veni_provider::Cloud;

const HELP: &str = "\
veni-ipamd keeps a node's pool of pod addresses. It is configured by environment variables: `venictl config` lists them.

Usage: veni-ipamd [--install | --uninstall | --version | --help]

      --install    Copy the plugin veni-cni, which stands beside this program, to HOST_CNI_BIN_PATH
      --uninstall  Remove what veni has left on this node (filter, rules, routes, nft table, journal); refused while
                   pods use it or another ipamd runs
      --version    Print the version
      --help       Print this";

const BUILD: Build = Build { aws: cfg!(feature = "aws") };

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    match argument.as_deref() {
        None | Some("--install" | "--uninstall") => {}
        Some("--help" | "-h") => return say(HELP),
        Some("--version" | "-V") => return say(concat!("veni-ipamd ", env!("CARGO_PKG_VERSION"))),
        Some(unknown) => {
            complain(unknown);
            return ExitCode::from(2);
        }
    }
    // What is left on the node goes without a cloud.
    let build = if argument.is_some() { Build::WHOLE } else { BUILD };
    let Some(config) = configuration(build) else { return ExitCode::from(2) };
    let job = match argument.as_deref() {
        Some("--install") => Some(install::plugin(&config)),
        Some(_) => Some(uninstall::uninstall(&config)),
        None => None,
    };
    if let Some(ended) = job {
        return match ended {
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

/// Reads the settings and begins the log; `None` when they are wrong, all of which is told.
fn configuration(build: Build) -> Option<Config> {
    let (vars, illegible) = environment::read(std::env::vars_os());
    let mut errors = illegible;
    match Config::for_build(vars.iter().cloned(), build) {
        Ok((config, warnings)) if errors.is_empty() => {
            init_logs(&config);
            for warning in warnings {
                tracing::warn!(%warning, "setting");
            }
            return Some(config);
        }
        Ok(_) => {}
        Err(others) => errors.extend(others),
    }
    init_logs(&Config::default());
    for warning in Config::warnings(vars.into_iter()) {
        tracing::warn!(%warning, "setting");
    }
    for error in &errors {
        tracing::error!(%error, "setting");
    }
    tracing::error!(
        errors = errors.len(),
        "ipamd does not start with wrong settings: correct them all"
    );
    None
}

#[expect(clippy::print_stdout, reason = "asked for by the caller")]
fn say(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, reason = "before there is a log")]
fn complain(unknown: &str) {
    eprintln!("veni-ipamd: there is no option {unknown:?}\n\n{HELP}");
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

/// What those who ask meet from the first moment on.
struct Desk {
    startup: Startup,
    metrics: Arc<Metrics>,
    commands: mpsc::Sender<Command>,
    requests: mpsc::Receiver<Command>,
    /// Takes the routes of the daemon that serves.
    listening: http::Listening,
}

async fn run(config: Arc<Config>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        ended = until_stopped(config) => ended,
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

async fn until_stopped(config: Arc<Config>) -> Result<()> {
    let Channels { commands: (commands, requests), events } = Channels::default();
    let (metrics, startup) = (Arc::new(Metrics::new()), Startup::default());
    let listening = http::listen(&config, &metrics, &startup);
    startup.waits_patiently(
        "another ipamd, which serves this node, to end",
        "nothing in a rolling update; otherwise end the other one",
    );
    let _lock = start::lock(Path::new(&config.state_dir)).await?;
    startup.waits_for("the journal and the kernel", "look at the log of veni-ipamd");
    let listener = server::bind(Path::new(&config.socket))
        .with_context(|| format!("listening on {}", config.socket))?;
    tokio::spawn(server::serve(listener, commands.clone(), metrics.clone()));
    let desk = Desk { startup, metrics, commands, requests, listening };
    match &config.provider {
        Provider::Sim { socket, instance } => {
            let cloud = veni_provider_socket::Client::new(PathBuf::from(socket), instance.clone());
            let connect = async || cloud.clone();
            // Boxed: the start of everything is in it.
            Box::pin(serve(config.clone(), desk, events, "sim", connect)).await
        }
        #[cfg(feature = "aws")]
        Provider::Aws => {
            let startup = desk.startup.clone();
            let connect = async || {
                let what = "the AWS client, which takes the region from instance metadata";
                let next = "set AWS_REGION, or see that the node reaches http://169.254.169.254";
                startup.persist(what, next, veni_provider_aws::AwsCloud::from_env).await
            };
            Box::pin(serve(config.clone(), desk, events, "aws", connect)).await
        }
        #[cfg(not(feature = "aws"))]
        Provider::Aws => {
            unreachable!("refused among the settings: see BUILD")
        }
    }
}

type Events = (mpsc::UnboundedSender<HostEvent>, mpsc::UnboundedReceiver<HostEvent>);

async fn serve<C: Cloud>(
    config: Arc<Config>,
    desk: Desk,
    (events, news): Events,
    provider_name: &'static str,
    connect: impl AsyncFnOnce() -> C,
) -> Result<()> {
    let Desk { startup, metrics, commands, mut requests, listening } = desk;
    let begin = async {
        let cloud = Arc::new(connect().await);
        begin(&config, cloud, events, &startup, &metrics, provider_name).await
    };
    let (begun, early) = startup.answer_while(&mut requests, begin).await;
    let (owner, enforcer) = begun?;
    listening.started(metrics, commands, enforcer);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = config.socket, "ipamd serves");
    let (able, told) = oneshot::channel();
    tokio::spawn(announce(config, told));
    owner.with_early(early).when_able(able).run(requests, news).await;
    Ok(())
}

/// Tells the container runtime that the node can take pods, once it can.
async fn announce(config: Arc<Config>, able: oneshot::Receiver<()>) {
    const RETRY: Duration = Duration::from_secs(30);
    if able.await.is_err() {
        return;
    }
    loop {
        match install::conflist(&config) {
            Ok(true) => {
                tracing::info!(name = install::CONFLIST, "configuration list written");
                return;
            }
            Ok(false) => return,
            Err(error) => {
                tracing::error!(%error, name = install::CONFLIST, "list not written, the node stays not ready: free space in HOST_CNI_CONFDIR_PATH, see that it is mounted to be written");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn begin<C: Cloud>(
    config: &Arc<Config>,
    cloud: Arc<C>,
    events: mpsc::UnboundedSender<HostEvent>,
    startup: &Startup,
    metrics: &Arc<Metrics>,
    provider_name: &'static str,
) -> Result<(Owner<C, Kernel, Journal>, Option<Handle>)> {
    let state_dir = Path::new(&config.state_dir);
    let boot_id = journal::boot_id().context("reading the boot id")?;
    let (store, recovered) = Journal::open(state_dir, &boot_id)
        .with_context(|| format!("opening the journal in {}", state_dir.display()))?;
    let mut host = Kernel::start(config.clone(), events).context("preparing the node's network")?;
    let whereabouts = start::kept_or_asked(&*cloud, recovered.whereabouts.clone(), startup).await;
    let kernel_pods = host.known_pods().context("looking for pods in the kernel")?;
    startup.waits_for("policy", "look at the log of veni-ipamd");
    let wired: Vec<_> = recovered.ledger.allocations().map(policy::pod).collect();
    let started =
        policy::start(config, cloud.clone(), host.filter(), &whereabouts.identity, &wired).await?;
    let (enforcer, beside) =
        started.map_or((None, None), |policy| (Some(policy.handle), policy.beside));
    if let Some(enforcer) = &enforcer {
        host.enforce(enforcer.clone());
    }
    let (placing, settings, teller) = match beside {
        Some(policy::Beside { placing, settings, teller }) => {
            metrics.told_by(teller.clone());
            (Some(placing), Some(settings), Some(teller))
        }
        None => (None, None, None),
    };
    let placed = placement::start(config, cloud.clone(), &whereabouts, placing);
    let placed = placed.context("watching VENI_MANIFEST_DIR for ENIConfigs")?;
    let start = Start {
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
    };
    let owner = start::owner_after(start, startup).await;
    let owner = match placed {
        Some(source) => owner.placed_by(source),
        None => owner,
    };
    let owner = owner.told_by(teller);
    let owner = match settings {
        Some(source) => owner.configured_by(source),
        None => owner,
    };
    Ok((owner, enforcer))
}
