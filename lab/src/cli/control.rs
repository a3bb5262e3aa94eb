//! The socket of a lab that is up: one JSON request and one answer a connection.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv4Addr,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};
use veni_core::{
    id::{SecurityGroupId, SecurityGroupRuleId},
    wire::inspect::View,
};
use veni_lab::{
    Error, Lab, PodSpec,
    kubernetes::control_plane,
    lab::{READY, control_socket},
    node::{Node, Restarted},
    place,
};
use veni_provider::sim::{Admin, AdminAnswer, GroupView, RuleSpec};

/// What is asked of a lab.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Request {
    Add {
        node: String,
        pod: PodSpec,
    },
    /// Manifests by file name; without a text they go. Answered when every node has the change in force.
    Manifests {
        files: BTreeMap<String, Option<String>>,
    },
    Del {
        pod: String,
    },
    /// Ends the node's daemon if it runs, starts it, and waits until it is ready.
    Restart {
        node: String,
    },
    /// All security groups.
    Groups,
    Group {
        change: GroupChange,
    },
    Status,
    /// Where a namespace can be entered.
    Resolve {
        place: String,
    },
    Down,
}

/// What is done to security groups.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum GroupChange {
    Create(SecurityGroupId),
    Allow(RuleSpec),
    Revoke(SecurityGroupRuleId),
    Delete(SecurityGroupId),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    Pod(PodView),
    Status(Status),
    /// Files of the lab's process.
    Entrance {
        net: PathBuf,
        mounts: PathBuf,
    },
    Restarted(RestartView),
    InForce(Change),
    Groups {
        groups: Vec<GroupView>,
    },
    /// The id of a rule that was made.
    Group {
        rule: Option<SecurityGroupRuleId>,
    },
    Done,
    Error {
        message: String,
    },
}

/// A lab.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) dir: PathBuf,
    pub(super) nodes: Vec<NodeView>,
    pub(super) pods: Vec<PodView>,
    pub(super) drops: Vec<String>,
}

/// A node.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NodeView {
    pub(super) name: String,
    pub(super) instance_type: String,
    pub(super) address: Ipv4Addr,
    pub(super) ipamd: Result<Box<View>, String>,
}

/// A pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PodView {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) address: Ipv4Addr,
    /// What the plugin took, microseconds.
    pub(super) micros: u64,
}

/// How a change of the manifests went.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Change {
    /// Which of the files had been there.
    pub(super) known: Vec<String>,
    pub(super) nodes: usize,
    /// Where it is not in force, and why.
    pub(super) missing: Vec<(String, String)>,
    /// Until it was in force on the last of the others.
    pub(super) micros: u64,
}

/// A daemon that was started again.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RestartView {
    pub(super) node: String,
    /// The process that was ended for it; `None` when none ran.
    pub(super) ended: Option<u32>,
    pub(super) pid: Option<u32>,
    /// From its start until it could serve an ADD.
    pub(super) ready_micros: u64,
}

/// Asks the lab `name`.
pub(super) fn ask(name: &str, request: &Request) -> anyhow::Result<Answer> {
    let socket = control_socket(&place::of(name));
    let mut stream = UnixStream::connect(&socket).with_context(|| match place::living() {
        labs if labs.is_empty() => format!("the lab {name} is not up: `veni-lab up --name {name}`"),
        labs => format!("the lab {name} is not up (there are: {})", labs.join(", ")),
    })?;
    serde_json::to_writer(&mut stream, request)?;
    stream.write_all(b"\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the lab went away")?;
    if line.is_empty() {
        bail!("the lab {name} went down before it answered");
    }
    match serde_json::from_str(&line).context("the lab's answer cannot be read")? {
        Answer::Error { message } => Err(anyhow!(message)),
        answer => Ok(answer),
    }
}

/// What one request does at a time, whatever others do.
#[derive(Debug, Default)]
struct Turns {
    /// Manifests: each waits until its own change is in force.
    manifests: Mutex<()>,
    /// Daemons that are started again.
    restarts: Mutex<()>,
}

/// Answers until asked to end, each request in a thread of its own: an ADD that waits for an address keeps nobody
/// waiting. Returns the lab, unless requests are still being answered: then it goes with the process.
pub(super) fn answer_until_down(lab: Lab, listener: UnixListener) -> anyhow::Result<Option<Lab>> {
    let (lab, turns) = (Arc::new(lab), Arc::new(Turns::default()));
    let (end, ended) = mpsc::channel();
    let kept = Arc::downgrade(&lab);
    thread::spawn(move || {
        for stream in listener.incoming() {
            // One that has gone while it waited in the queue.
            let Ok(stream) = stream else { continue };
            let (kept, turns, end) = (Weak::clone(&kept), Arc::clone(&turns), end.clone());
            thread::spawn(move || converse(stream, &kept, &turns, &end));
        }
    });
    ended.recv().context("the control socket ended")?;
    Ok(Arc::into_inner(lab))
}

fn converse(mut stream: UnixStream, lab: &Weak<Lab>, turns: &Turns, end: &mpsc::Sender<()>) {
    let request = read_request(&stream);
    let done = request.and_then(|request| {
        let lab = lab.upgrade().context("the lab goes down")?;
        answer(&lab, turns, request)
    });
    let is_down = matches!(done, Ok(Answer::Done));
    let failed = |error| Answer::Error { message: format!("{error:#}") };
    reply(&mut stream, &done.unwrap_or_else(failed));
    if is_down {
        // When nobody hears it, it goes already.
        end.send(()).unwrap_or(());
    }
}

fn read_request(stream: &UnixStream) -> anyhow::Result<Request> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn reply(stream: &mut UnixStream, answer: &Answer) {
    // A client that does not wait for its answer does not get one.
    drop(serde_json::to_writer(stream, answer));
}

fn answer(lab: &Lab, turns: &Turns, request: Request) -> anyhow::Result<Answer> {
    Ok(match request {
        Request::Add { .. } | Request::Manifests { .. } if is_cluster(lab) => bail!(
            "the pods and policies of this lab are its API server's: `veni-lab kubectl apply -f FILE`"
        ),
        Request::Add { node, pod } => {
            // The plugin would wait for its answer as long as a kubelet does.
            if let Err(hangs @ Error::Hangs { .. }) = lab.node(&node)?.glance() {
                return Err(hangs.into());
            }
            Answer::Pod(view(&lab.add(&node, &pod)?))
        }
        Request::Manifests { files } => {
            let _turn = turns.manifests.lock().unwrap_or_else(PoisonError::into_inner);
            Answer::InForce(manifests(lab, files)?)
        }
        Request::Del { pod } => {
            let before = view(&lab.pod(&pod)?);
            Answer::Pod(PodView { micros: micros(lab.del_pod(&pod)?), ..before })
        }
        Request::Restart { .. } if is_cluster(lab) => bail!(
            "the daemons of this lab are pods: `veni-lab kubectl -n kube-system delete pod --field-selector spec.nodeName=NODE --selector app.kubernetes.io/name=veni`"
        ),
        Request::Restart { node } => {
            let _turn = turns.restarts.lock().unwrap_or_else(PoisonError::into_inner);
            let Restarted { ended, ready } = lab.node(&node)?.restart_ipamd(READY)?;
            let pid = lab.node(&node)?.ipamd_pid();
            Answer::Restarted(RestartView { node, ended, pid, ready_micros: micros(ready) })
        }
        Request::Groups => {
            Answer::Groups { groups: lab.account.sim().security_groups().cloned().collect() }
        }
        Request::Group { change } => group(lab, change)?,
        Request::Status => Answer::Status(status(lab)?),
        Request::Resolve { place } => {
            let namespace = lab.namespace(&place)?;
            let (net, mounts) = namespace.fds();
            let file = |fd| PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()));
            Answer::Entrance { net: file(net), mounts: file(mounts) }
        }
        Request::Down => Answer::Done,
    })
}

fn is_cluster(lab: &Lab) -> bool {
    lab.namespace(control_plane::HOST).is_ok()
}

fn manifests(lab: &Lab, files: BTreeMap<String, Option<String>>) -> anyhow::Result<Change> {
    let start = Instant::now();
    let mut known = Vec::new();
    for (name, text) in files {
        let existed = match text {
            Some(text) => lab.cluster.apply(&name, &text)?,
            None => lab.cluster.delete(&name)?,
        };
        known.extend(existed.then_some(name));
    }
    let (mut took, mut missing) = (start.elapsed(), Vec::new());
    let mut last = Duration::ZERO;
    for (node, outcome) in lab.settle_each()? {
        match outcome {
            Ok(elapsed) => last = last.max(elapsed),
            Err(error) => missing.push((node.name.clone(), format!("{:#}", anyhow!(error)))),
        }
    }
    took += last;
    Ok(Change { known, nodes: lab.nodes().len(), missing, micros: micros(took) })
}

fn group(lab: &Lab, change: GroupChange) -> anyhow::Result<Answer> {
    let change = match change {
        GroupChange::Create(id) => {
            lab.account.create_group(&id, [])?;
            return Ok(Answer::Group { rule: None });
        }
        GroupChange::Allow(rule) => Admin::AuthorizeRule(rule),
        GroupChange::Revoke(rule) => Admin::RevokeRule(rule),
        GroupChange::Delete(id) => Admin::DeleteSecurityGroup(id),
    };
    let rule = match lab.account.change_groups(change)? {
        AdminAnswer::Rule(rule) => Some(rule),
        _ => None,
    };
    Ok(Answer::Group { rule })
}

fn status(lab: &Lab) -> anyhow::Result<Status> {
    // Each by itself: one that hangs keeps the others waiting no longer than itself.
    let nodes: anyhow::Result<Vec<_>> = thread::scope(|scope| {
        let views = lab.nodes().iter().map(|node| scope.spawn(|| node_view(node)));
        let views: Vec<_> = views.collect();
        let joined = views.into_iter().map(thread::ScopedJoinHandle::join);
        joined.map(|view| view.map_err(|_| anyhow!("a node cannot be looked at"))).collect()
    });
    let drops = lab.vpc.drops()?;
    let mut dropped = drops.offenders;
    if drops.no_public_address > 0 {
        dropped.push(format!(
            "{} packets to or from the internet without a public address",
            drops.no_public_address
        ));
    }
    Ok(Status {
        name: lab.name.clone(),
        pid: std::process::id(),
        dir: lab.dir.clone(),
        nodes: nodes?,
        pods: lab.pods().iter().map(view).collect(),
        drops: dropped,
    })
}

fn node_view(node: &Node) -> NodeView {
    NodeView {
        name: node.name.clone(),
        instance_type: node.instance_type.to_string(),
        address: node.address,
        ipamd: node.glance().map(Box::new).map_err(|error| error.to_string()),
    }
}

fn view(pod: &veni_lab::Pod) -> PodView {
    PodView {
        name: pod.name.clone(),
        node: pod.node.name.clone(),
        address: pod.added.address,
        micros: micros(pod.added.elapsed),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
