//! The controller: one of its replicas leads, what it publishes and sweeps, and what becomes of that when it is killed.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use veni_lab::{kubernetes::chart, vpc::VPC_CIDR};
use veni_provider::{
    CreateInterface, TAG_CLUSTER, TAG_CREATED_AT, TAG_INSTANCE_ID, TAG_NO_MANAGE,
    call::{Answer, Call},
    security_group::{RuleDirection, RulePeer, RuleTraffic, TCP},
    sim::Admin,
};

use crate::{
    checks::policy::{Fate, becomes, everywhere},
    cluster::{PORT, Pod, SETTLE, Stage, until},
    http,
    print::{Table, seconds, step},
};

const ASKER: &str = "asker";
const MEMBER: &str = "member";
/// Of each, so that there is one on each node.
const PODS: u32 = 2;
const GROUP: &str = "sg-0led";
/// The chart's.
const LEASE: &str = "veni-controller";
const REPLICAS: usize = 2;
const METRICS: u16 = 61680;
/// What its process is called, at most 15 bytes (prctl(2)).
const PROCESS: &str = "veni-controller";
/// What a node asks EC2 for a security group, where nobody publishes it.
const OF_GROUPS: [&str; 2] = ["DescribeSecurityGroupRules", "DescribeSecurityGroups"];
/// A leader's first look for leaked ENIs is a minute after its beginning, the second a minute after the first.
const SWEPT: Duration = Duration::from_secs(240);
/// No instance of the lab.
const GONE: &str = "i-0gone";

/// ENIs without an instance: by what keeps them.
struct Enis {
    leaked: String,
    left: Vec<(&'static str, String)>,
}

/// Calls of EC2, by the nodes and by the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Calls {
    nodes: u64,
    controller: u64,
}

pub(crate) fn check(stage: &mut Stage, table: &mut Table) -> anyhow::Result<()> {
    step("the controller");
    table.record("one of two controllers leads", one_leads(stage));
    let before = calls(stage, &OF_GROUPS);
    let end_of_rule = make_group(stage)?;
    let (askers, members) = (stage.pods(ASKER)?, stage.pods(MEMBER)?);
    let published = published(stage, &askers, &members, before);
    table.record("security groups: the leader asks EC2, no node does", published);
    let enis = leak(stage)?;
    let killed = killed(stage, &enis);
    let took_over = killed.is_ok();
    table.record("the leader is killed: the other one leads", killed);
    if took_over {
        stage.lab.account.change_groups(end_of_rule)?;
        let goes_on = goes_on(stage, &askers, &members, before);
        table.record("the leader is killed: security groups go on", goes_on);
        table.record("a leaked ENI is swept, others stay", swept(stage, &enis));
    }
    table.record("two controllers are there again", both_ready(stage));
    stage.cluster.kubectl(&["delete", "securitygrouppolicy", MEMBER])?;
    [ASKER, MEMBER].iter().try_for_each(|app| stage.delete(app, &[]).map(drop))?;
    stage.lab.account.change_groups(Admin::DeleteSecurityGroup(GROUP.parse()?))?;
    for (_, eni) in enis.left {
        ec2(stage, Call::DeleteInterface(eni.parse()?))?;
    }
    Ok(())
}

/// Both are ready, and the one that the Lease names is the only one that says that it leads.
fn one_leads(stage: &Stage) -> anyhow::Result<String> {
    until(SETTLE, || {
        let (leader, others) = leader(stage)?;
        ensure!(others.len() + 1 == REPLICAS, "beside {leader:?}: {others:?}");
        Ok(format!("{} on {}; {} waits", leader.name, leader.node, others[0].name))
    })
}

/// Who leads, by the Lease and by everybody's own word, and who does not.
fn leader(stage: &Stage) -> anyhow::Result<(Pod, Vec<Pod>)> {
    let holder = holder(stage)?;
    let of_lease = |pod: &Pod| holder.starts_with(&format!("{}_", pod.name));
    let (leader, others): (Vec<_>, Vec<_>) = stage.controllers()?.into_iter().partition(of_lease);
    let Ok([leader]) = <[Pod; 1]>::try_from(leader) else {
        bail!("the Lease is held by {holder:?}; there are {others:?}")
    };
    for pod in others.iter().chain([&leader]) {
        let leads = metric(stage, pod, "veni_controller_leader")? == 1;
        ensure!(leads == (pod.name == leader.name), "{}: leads is {leads}", pod.name);
    }
    Ok((leader, others))
}

/// As whom the Lease is held: a pod's name and a number.
fn holder(stage: &Stage) -> anyhow::Result<String> {
    let get = ["get", "lease", LEASE, "--namespace", chart::NAMESPACE];
    Ok(stage
        .cluster
        .kubectl(&[&get[..], &["--output=jsonpath={.spec.holderIdentity}"]].concat())?)
}

fn metric(stage: &Stage, pod: &Pod, name: &str) -> anyhow::Result<u64> {
    let host = stage.cluster.control.host();
    let text = http::get(host, (pod.address, METRICS).into(), "/metrics")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(lines.next().with_context(|| format!("{} has no {name}", pod.name))?.parse()?)
}

/// Calls of these actions so far.
fn calls(stage: &Stage, actions: &[&str]) -> Calls {
    let sim = stage.lab.account.sim();
    let mut calls = Calls { nodes: 0, controller: 0 };
    for (instance, counts) in &sim.calls().by_instance {
        let of = counts.iter().filter(|(action, _)| actions.contains(&action.as_str()));
        let count: u64 = of.map(|(_, count)| count.calls).sum();
        match instance.as_str() {
            chart::CONTROLLER => calls.controller += count,
            _ => calls.nodes += count,
        }
    }
    calls
}

/// A new group that lets the VPC in, pods that are its members, and pods that ask them; what takes the rule away.
fn make_group(stage: &Stage) -> anyhow::Result<Admin> {
    let traffic = RuleTraffic::Ports { protocol: TCP, first: PORT, last: PORT };
    let rule = (RuleDirection::Ingress, traffic, RulePeer::Cidr(VPC_CIDR.parse()?));
    let rules = stage.lab.account.create_group(&GROUP.parse()?, [rule])?;
    let policy = json!({
        "apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
        "metadata": {"name": MEMBER},
        "spec": {
            "podSelector": {"matchLabels": {"app": MEMBER}},
            "securityGroups": {"groupIds": [GROUP]},
        },
    });
    stage.cluster.apply(&[policy, Stage::web(MEMBER, PODS), Stage::web(ASKER, PODS)])?;
    stage.rolled_out(MEMBER)?;
    stage.rolled_out(ASKER)?;
    rules.into_iter().next().map(Admin::RevokeRule).context("no rule was made")
}

/// The group is published by the leader and in force on the nodes, none of which has asked EC2 for it.
fn published(
    stage: &Stage,
    askers: &[Pod],
    members: &[Pod],
    before: Calls,
) -> anyhow::Result<String> {
    let took = becomes(stage, askers, members, Fate::Open)?;
    let holder = until(SETTLE, || vouched_for(stage))?;
    let (leader, _) = leader(stage)?;
    ensure!(holder.starts_with(&leader.name), "{holder} publishes, {} leads", leader.name);
    let asked = nobody_asked(stage, before)?;
    Ok(format!("in force on both nodes within {} of its pods being ready; {asked}", seconds(took)))
}

/// The group is published, and a leader vouches for it: who.
fn vouched_for(stage: &Stage) -> anyhow::Result<String> {
    let objects = stage.cluster.objects(&["get", "resolvedsecuritygroups"])?;
    let of_group = |object: &&Value| object["spec"]["group"]["id"] == GROUP;
    let group = objects.iter().find(of_group).with_context(|| format!("no {GROUP}"))?;
    ensure!(group["spec"]["group"]["state"] == "Resolved", "{group}");
    ensure!(group["spec"]["group"]["stale"] != true, "{group}");
    let leader = objects.iter().find_map(|object| object["spec"]["heartbeat"]["leader"].as_str());
    Ok(leader.context("no heartbeat")?.to_owned())
}

fn nobody_asked(stage: &Stage, before: Calls) -> anyhow::Result<String> {
    let after = calls(stage, &OF_GROUPS);
    let (nodes, controller) = (after.nodes - before.nodes, after.controller - before.controller);
    ensure!(nodes == 0, "the nodes have asked EC2 {nodes} times for security groups");
    ensure!(controller > 0, "nobody has asked EC2");
    Ok(format!("{controller} calls by the leader, 0 by the nodes"))
}

/// ENIs that are attached to nothing: one that an instance left, and such as are somebody else's.
fn leak(stage: &Stage) -> anyhow::Result<Enis> {
    let tags = |cluster, instance| {
        vec![
            (TAG_CLUSTER, cluster),
            (TAG_INSTANCE_ID, instance),
            (TAG_CREATED_AT, "2026-01-01T00:00:00Z"),
        ]
    };
    let description = format!("aws-K8S-{GONE}");
    let kept = [tags("lab", GONE), vec![(TAG_NO_MANAGE, "true")]].concat();
    Ok(Enis {
        leaked: make_eni(stage, &description, &tags("lab", GONE))?,
        left: vec![
            ("another cluster's", make_eni(stage, &description, &tags("other", GONE))?),
            ("one not to be managed", make_eni(stage, &description, &kept)?),
            ("a load balancer's", make_eni(stage, "ELB app/web", &tags("lab", GONE))?),
        ],
    })
}

fn make_eni(stage: &Stage, description: &str, tags: &[(&str, &str)]) -> anyhow::Result<String> {
    let node = stage.lab.nodes().first().context("no nodes")?;
    let create = CreateInterface {
        subnet_id: node.subnet.clone(),
        security_groups: Vec::new(),
        secondary_addresses: 0,
        prefixes: 0,
        description: description.to_owned(),
        tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        client_token: String::new(),
    };
    match ec2(stage, Call::CreateInterface(create))? {
        Answer::Interface(eni) => Ok(eni.id.to_string()),
        other => bail!("an ENI was to be made: {other:?}"),
    }
}

/// As the account's owner, whose calls are not the nodes'.
fn ec2(stage: &Stage, call: Call) -> anyhow::Result<Answer> {
    let (account, owner) = (&stage.lab.account, "i-0owner".parse()?);
    Ok(account.sim().call(account.now(), &owner, call)?)
}

/// The leader has seen the leaked ENI when it is killed, in a way that it cannot give the Lease back. No new one can come
/// meanwhile: it is the one that waited that takes the Lease.
fn killed(stage: &Stage, enis: &Enis) -> anyhow::Result<String> {
    let (leader, others) = leader(stage)?;
    let heir = others.first().context("nobody waits to lead")?;
    let mut waits = 0;
    until(SETTLE, || {
        waits = metric(stage, &leader, "veni_controller_leaked_enis")?;
        ensure!(waits > 0, "{} is not suspected", enis.leaked);
        Ok(())
    })?;
    ensure!(waits == 1, "{waits} ENIs are suspected instead of {}", enis.leaked);
    let nodes: Vec<_> = stage.lab.nodes().iter().map(|node| node.name.as_str()).collect();
    stage.cluster.kubectl(&[&["cordon"][..], &nodes].concat())?;
    let (start, ended) = (Instant::now(), end(stage, &leader));
    let led = ended.and_then(|()| {
        until(SETTLE, || {
            let holder = holder(stage)?;
            ensure!(holder.starts_with(&format!("{}_", heir.name)), "held by {holder}");
            ensure!(metric(stage, heir, "veni_controller_leader")? == 1, "{heir:?} does not lead");
            Ok(start.elapsed())
        })
    });
    stage.cluster.kubectl(&[&["uncordon"][..], &nodes].concat())?;
    Ok(format!("{} leads {} after the end of {}", heir.name, seconds(led?), leader.name))
}

/// Stops the process before its pod is deleted, so that it hears of no end: as when its machine dies.
fn end(stage: &Stage, pod: &Pod) -> anyhow::Result<()> {
    let get = ["get", "pod", &pod.name, "--namespace", chart::NAMESPACE];
    let uid =
        stage.cluster.kubectl(&[&get[..], &["--output=jsonpath={.metadata.uid}"]].concat())?;
    kill(process_of(&uid)?, Signal::SIGSTOP).context("SIGSTOP")?;
    let delete = ["delete", "pod", &pod.name, "--namespace", chart::NAMESPACE];
    stage.cluster.kubectl(&[&delete[..], &["--force", "--grace-period=0"]].concat())?;
    Ok(())
}

/// The controller's process in the pod of this UID, whose control groups are named after it.
fn process_of(uid: &str) -> anyhow::Result<Pid> {
    let is_it = |path: &Path| {
        let read = |file| fs::read_to_string(path.join(file)).unwrap_or_default();
        read("comm").trim() == PROCESS && read("cgroup").contains(uid)
    };
    let mut processes = fs::read_dir("/proc")?.flatten().filter(|entry| is_it(&entry.path()));
    let process = processes.next().with_context(|| format!("no {PROCESS} in the pod {uid}"))?;
    Ok(Pid::from_raw(process.file_name().to_string_lossy().parse()?))
}

/// A change of the group is brought to the nodes by the new leader; they have asked nobody all the time.
fn goes_on(
    stage: &Stage,
    askers: &[Pod],
    members: &[Pod],
    before: Calls,
) -> anyhow::Result<String> {
    let took = becomes(stage, askers, members, Fate::Dropped).context("a rule was taken away")?;
    everywhere(stage, askers, members, Fate::Dropped)?;
    let publisher = until(SETTLE, || {
        let (publisher, holder) = (vouched_for(stage)?, holder(stage)?);
        ensure!(publisher == holder, "{publisher} publishes, {holder} leads");
        Ok(publisher)
    })?;
    let asked = nobody_asked(stage, before)?;
    Ok(format!("closed {} after a rule's end, by {publisher}; {asked}", seconds(took)))
}

/// The new leader has swept the one ENI, and no other.
fn swept(stage: &Stage, enis: &Enis) -> anyhow::Result<String> {
    let start = Instant::now();
    let there = |eni: &str| {
        let sim = stage.lab.account.sim();
        sim.interfaces().any(|interface| interface.id.as_str() == eni)
    };
    until(SWEPT, || {
        ensure!(!there(&enis.leaked), "{} is still there", enis.leaked);
        Ok(())
    })?;
    let took = start.elapsed();
    for (whose, eni) in &enis.left {
        ensure!(there(eni), "{whose}, {eni}, is gone");
    }
    let (leader, _) = leader(stage)?;
    let deleted = metric(stage, &leader, "veni_controller_leaked_enis_deleted_total")?;
    let by_controller = calls(stage, &["DeleteNetworkInterface"]).controller;
    ensure!((deleted, by_controller) == (1, 1), "{deleted} deleted, {by_controller} calls");
    Ok(format!(
        "by the new leader, {} after that; {} of {} others stay",
        seconds(took),
        enis.left.len(),
        enis.left.len()
    ))
}

fn both_ready(stage: &Stage) -> anyhow::Result<String> {
    stage.rolled_out_in(chart::NAMESPACE, LEASE)?;
    one_leads(stage)
}
