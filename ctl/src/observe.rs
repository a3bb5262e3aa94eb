//! `venictl observe`: flows as they happen.

use std::{
    io::{BufRead, ErrorKind, Write},
    net::SocketAddr,
};

use clap::{Args, ValueEnum};
use veni_core::wire::inspect::policy::{Direction, FlowEvent, Verdict};
use veni_policy::view::End;

use crate::{
    cli::Format,
    http,
    policy::arguments::{Daemon, port},
    text,
};

/// Which flows.
#[derive(Debug, Args)]
pub struct Observe {
    /// Only those from or to this pod: namespace/pod.
    #[arg(long, value_name = "POD")]
    pub pod: Option<End>,
    /// Only those from or to pods of this namespace.
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Only those with this verdict; may be repeated.
    #[arg(long, value_name = "VERDICT", value_enum)]
    pub verdict: Vec<Wanted>,
    /// Only those to this port; may be repeated.
    #[arg(long, value_name = "N", value_parser = port)]
    pub port: Vec<u16>,
    /// Stop after so many.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Where ipamd answers.
    #[command(flatten)]
    pub daemon: Daemon,
}

/// A verdict on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// New flows that pass.
    Allowed,
    /// What a policy or a security group refuses.
    Denied,
    /// What is dropped for another reason.
    Dropped,
}

/// Prints flows until the daemon ends, the reader has seen enough, or the limit is reached.
///
/// # Errors
/// When the daemon cannot be asked, ends, or sends what cannot be read.
pub(crate) fn run(observe: &Observe, format: Format, out: &mut impl Write) -> anyhow::Result<()> {
    let lines = http::lines(&observe.daemon.introspection, "/v1/flows", &parameters(observe))?;
    follow(lines, observe, format, out)
}

fn follow(
    lines: impl BufRead,
    observe: &Observe,
    format: Format,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut left = observe.limit;
    for line in lines.lines() {
        if left == Some(0) {
            return Ok(());
        }
        let line = line.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => anyhow::anyhow!("{error}"),
            _ => anyhow::anyhow!("ipamd has ended: {error}"),
        })?;
        if line.is_empty() {
            continue;
        }
        let event: FlowEvent = serde_json::from_str(&line).map_err(|error| {
            anyhow::anyhow!("ipamd sent what is no flow event: {error}: {line}")
        })?;
        // Whatever the daemon makes of the parameters.
        if !observe.wants(&event) {
            continue;
        }
        let shown = match format {
            Format::Human => human(&event),
            Format::Json => serde_json::to_string(&event)?,
        };
        match writeln!(out, "{shown}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        left = left.map(|left| left - 1);
        if left == Some(0) {
            return Ok(());
        }
    }
    anyhow::bail!("ipamd has ended; start it, then observe again")
}

fn parameters(observe: &Observe) -> Vec<(&'static str, String)> {
    let mut parameters = Vec::new();
    // The daemon filters by name; addresses are ours to compare.
    let pod = observe.pod.iter().filter(|end| matches!(end, End::Pod { .. }));
    parameters.extend(pod.map(|pod| ("pod", pod.to_string())));
    parameters.extend(observe.namespace.iter().map(|name| ("namespace", name.clone())));
    parameters.extend(observe.verdict.iter().map(|v| ("verdict", v.verdict().as_str().to_owned())));
    parameters.extend(observe.port.iter().map(|port| ("port", port.to_string())));
    parameters
}

/// `14:03:07.123 DENIED  x/a (10.0.1.7:4711) -> y/b (10.0.1.8:80) TCP  ingress: NetworkPolicy y/deny …`
fn human(event: &FlowEvent) -> String {
    let (source, destination) = event.ends();
    let message = message(event);
    let named = |name: Option<&str>, address: SocketAddr| {
        let address = match message {
            Some(_) => address.ip().to_string(),
            None => address.to_string(),
        };
        match name {
            Some(name) => format!("{name} ({address})"),
            None => address,
        }
    };
    let direction = match event.direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    };
    let cause = match (&event.decided_by, &event.reason) {
        (_, Some(reason)) => reason.clone(),
        (Some(decision), None) => decision.to_string(),
        (None, None) => String::new(),
    };
    let lost = match event.lost {
        0 => String::new(),
        1 => "  (1 event before this one was not sent)".to_owned(),
        lost => format!("  ({} before this one were not sent)", text::counted(lost, "event")),
    };
    format!(
        "{}  {:<7}  {} -> {}  {}  {direction} of {}: {cause}{lost}",
        clock(event.time_millis),
        event.verdict.as_str().to_uppercase(),
        named(source, event.source),
        named(destination, event.destination),
        message.unwrap_or_else(|| event.protocol.clone()),
        event.pod,
    )
}

/// Which ICMP message, as the programs tell it (ebpf/src/events.rs): type × 256 + code in the place of the other end's
/// port, and the number of an echo in that of the pod's own.
fn message(event: &FlowEvent) -> Option<String> {
    let remote = match event.direction {
        Direction::Egress => event.destination.port(),
        Direction::Ingress => event.source.port(),
    };
    let [kind, code] = remote.to_be_bytes();
    let name = match (event.protocol.as_str(), kind, code) {
        ("ICMP", 8, 0) | ("ICMPv6", 128, 0) => "echo request".to_owned(),
        ("ICMP", 0, 0) | ("ICMPv6", 129, 0) => "echo reply".to_owned(),
        ("ICMP" | "ICMPv6", kind, code) => format!("type {kind} code {code}"),
        _ => return None,
    };
    Some(format!("{} {name}", event.protocol))
}

/// The time of day, UTC.
fn clock(millis: u64) -> String {
    let (secs, millis) = (millis / 1000 % 86_400, millis % 1000);
    format!("{:02}:{:02}:{:02}.{millis:03}", secs / 3600, secs / 60 % 60, secs % 60)
}

// === impl Observe ===

impl Observe {
    fn wants(&self, event: &FlowEvent) -> bool {
        let ends = [Some(event.pod.as_str()), event.peer.as_deref()];
        let any = |wanted: &dyn Fn(&str) -> bool| ends.iter().flatten().any(|end| wanted(end));
        let pod = self.pod.as_ref().map(ToString::to_string);
        let address = match &self.pod {
            Some(End::Address(address)) => Some(*address),
            _ => None,
        };
        let is_pod = pod.is_none_or(|pod| {
            any(&|end| end == pod)
                || address.is_some_and(|a| [event.source.ip(), event.destination.ip()].contains(&a))
        });
        let is_inside = self.namespace.as_ref().is_none_or(|namespace| {
            any(&|end| end.split_once('/').is_some_and(|(of, _)| of == namespace))
        });
        let is_verdict =
            self.verdict.is_empty() || self.verdict.iter().any(|v| v.verdict() == event.verdict);
        let is_port = self.port.is_empty() || self.port.contains(&event.destination.port());
        is_pod && is_inside && is_verdict && is_port
    }
}

// === impl Wanted ===

impl Wanted {
    const fn verdict(self) -> Verdict {
        match self {
            Self::Allowed => Verdict::Allowed,
            Self::Denied => Verdict::Denied,
            Self::Dropped => Verdict::Dropped,
        }
    }
}

#[cfg(test)]
mod tests;
