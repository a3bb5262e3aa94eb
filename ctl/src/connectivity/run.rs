//! The test from its first request to its last: whatever ends it, nothing is left.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use super::{
    Test,
    api::{Cluster, Live},
    judge::Outcome,
    objects::NAMESPACE,
    paths, policies, stage,
};
use crate::{Report, cli::Format};

/// How long taking everything away may take.
const CLEANUP: Duration = Duration::from_secs(120);

pub(super) fn report(test: &Test, format: Format) -> anyhow::Result<Report> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let mut outcome = Outcome::default();
    runtime.block_on(async {
        let mut interrupted = interrupted()?;
        let cluster = tokio::select! {
            cluster = Live::connect(test) => cluster?,
            name = &mut interrupted => anyhow::bail!("ended by {name}"),
        };
        run(&cluster, test, &mut interrupted, &mut outcome).await;
        anyhow::Ok(())
    })?;
    outcome.report(format)
}

/// Tests until the end or until `interrupted` says what ends it, and takes everything away.
pub(super) async fn run(
    cluster: &impl Cluster,
    test: &Test,
    mut interrupted: impl Future<Output = &'static str> + Unpin,
    outcome: &mut Outcome,
) {
    let run = run_id();
    let ended = tokio::select! {
        biased;
        done = checks(cluster, test, &run, outcome) => done.err().map(|error| format!("{error:#}")),
        name = &mut interrupted => Some(format!("ended by {name}")),
    };
    outcome.ended = ended;
    outcome.say("cleaning up");
    let cleaned = tokio::select! {
        biased;
        cleaned = timeout(CLEANUP, stage::release(cluster, &run, test)) => match cleaned {
            Ok(cleaned) => cleaned,
            Err(_) => Err(anyhow::anyhow!("it takes longer than {CLEANUP:?}")),
        },
        // A second one: the user will not wait.
        name = interrupted => Err(anyhow::anyhow!("ended by {name}")),
    };
    outcome.left = cleaned.err().map(|error| {
        format!("not all could be taken away ({error:#}): the next test does, or `kubectl delete namespace {NAMESPACE}`")
    });
}

async fn checks(
    cluster: &impl Cluster,
    test: &Test,
    run: &str,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    stage::claim(cluster, run, test, outcome).await?;
    tokio::select! {
        done = all(cluster, test, outcome) => done,
        () = stage::beat(cluster) => Ok(()),
    }
}

async fn all(cluster: &impl Cluster, test: &Test, outcome: &mut Outcome) -> anyhow::Result<()> {
    let (stage, took) = stage::up(cluster, test, outcome).await.context("bringing pods up")?;
    let nodes: Vec<_> = stage.nodes.iter().map(|node| node.name.as_str()).collect();
    let short = stage.short.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
    let (pods, took) = (2 * nodes.len(), paths::seconds(took));
    let seen = format!("{pods} on {} after {took}{short}", nodes.join(", "));
    outcome.record("pods run", Ok(seen));
    paths::check(cluster, &stage, test, outcome).await;
    policies::check(cluster, &stage, test, outcome).await;
    if test.perf {
        paths::perf(cluster, &stage, test, outcome).await;
    }
    Ok(())
}

/// Tells this run from another one.
fn run_id() -> String {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("{}-{}", std::process::id(), since.as_nanos())
}

/// Resolves at each of Ctrl-C, SIGTERM and SIGHUP, to its name: it may be awaited twice.
fn interrupted() -> anyhow::Result<Interrupted> {
    let open = |kind| signal(kind).context("handling signals");
    Ok(Interrupted {
        streams: [
            ("SIGINT", open(SignalKind::interrupt())?),
            ("SIGTERM", open(SignalKind::terminate())?),
            ("SIGHUP", open(SignalKind::hangup())?),
        ],
    })
}

struct Interrupted {
    streams: [(&'static str, Signal); 3],
}

impl Future for Interrupted {
    type Output = &'static str;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<&'static str> {
        for (name, stream) in &mut self.streams {
            if stream.poll_recv(context).is_ready() {
                return Poll::Ready(name);
            }
        }
        Poll::Pending
    }
}
